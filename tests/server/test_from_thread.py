"""`waitress_async.from_thread` and its environ key: apps that call what is on the server's loop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import RunningServer, ServeInThread
from tests.server.support import (
    DEADLINE,
    Client,
    bounded,
    eventually,
    eventually_async,
    fetch,
    hello,
    in_thread,
    local_server,
    nothing_left,
    on_each_loop,
    request,
    server_threads,
    small_listener,
)
from waitress_async import ClientDisconnected, ServerClosed, from_thread
from waitress_async.server import server as server_module

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Connect = Callable[[RunningServer], Client]

QUICK_SWEEPS = {"linger_timeout": 0.2}  # a sweep sees who is gone while nothing is read


async def where_am_i(path: str) -> str:
    """The path, and the thread."""
    await asyncio.sleep(0)
    return f"{path} {threading.current_thread().name}"


class Waiting:
    """An async function that waits until it is let go, and notes what becomes of it."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.ended = threading.Event()
        self.cancelled = False
        self._gate: asyncio.Event | None = None

    async def __call__(self) -> str:
        self._gate = asyncio.Event()
        self.entered.set()
        try:
            await self._gate.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        finally:
            self.ended.set()
        return "whole"

    async def let_go(self) -> None:
        assert self._gate is not None
        self._gate.set()


class Calling:
    """An app that answers with what a call gives, and notes what that raises. `/plain` makes none."""

    def __init__(self, call: Callable[[], str]) -> None:
        self._call = call
        self.errors: list[BaseException] = []

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        if environ["PATH_INFO"] == "/plain":
            return [b"plain"]
        try:
            return [self._call().encode()]
        except BaseException as error:
            self.errors.append(error)
            raise


# -- from all of an app


def test_from_everywhere_in_an_app(serve_in_thread: ServeInThread, connect: Connect) -> None:
    """The call, the iteration, and `close()`."""
    closed: list[str] = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            yield from_thread.run(where_am_i, "iteration").encode()

        def close(self) -> None:
            closed.append(from_thread.run(where_am_i, "close"))

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Call", from_thread.run(where_am_i, "call"))])
        return Body()

    server = serve_in_thread(app)
    answer = connect(server).get()
    assert answer.headers["call"] == f"call {server.thread.name}"
    assert answer.body.decode() == f"iteration {server.thread.name}"
    server.stop()
    assert closed == [f"close {server.thread.name}"]


def test_asyncio_is_told_what_is_called(serve_in_thread: ServeInThread, connect: Connect) -> None:
    """Its debug mode tells the name of a task that holds the loop up."""

    async def which() -> str:
        task = asyncio.current_task()
        assert task is not None
        return task.get_name()

    server = serve_in_thread(Calling(lambda: from_thread.run(which)))
    assert connect(server).get().body.decode() == f"{which.__qualname__} for a thread"


def test_the_environ_has_the_same(serve_in_thread: ServeInThread, connect: Connect) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        caller: from_thread.FromThread = environ["waitress_async.from_thread"]
        return [
            caller.run(where_am_i, "run", timeout=DEADLINE, cancel_on_disconnect=True).encode(),
            b", ",
            caller.run_sync(lambda: threading.current_thread().name).encode(),
        ]

    server = serve_in_thread(app)
    assert connect(server).get().body.decode() == f"run {server.thread.name}, {server.thread.name}"


def test_threads_of_the_apps_own(serve_in_thread: ServeInThread, connect: Connect) -> None:
    """By the environ's key, and in a copy of the context. Otherwise they are told of both."""

    def in_own_thread(call: Callable[[], str]) -> str:
        results: list[str] = []

        def run() -> None:
            try:
                results.append(call())
            except RuntimeError as error:
                results.append(str(error))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(DEADLINE)
        return results[0]

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        caller: from_thread.FromThread = environ["waitress_async.from_thread"]
        call = partial(from_thread.run, where_am_i, "copied")
        for_the_client = partial(caller.run, where_am_i, "", cancel_on_disconnect=True)
        calls: list[Callable[[], str]] = [
            partial(caller.run, where_am_i, "environ"),
            partial(contextvars.copy_context().run, call),
            call,
            for_the_client,
        ]
        return [in_own_thread(call).encode() + b"\n" for call in calls]

    server = serve_in_thread(app)
    environ, copied, bare, for_the_client = connect(server).get().body.decode().splitlines()
    assert environ == f"environ {server.thread.name}"
    assert copied == f"copied {server.thread.name}"
    assert bare.startswith("there is no server behind this thread: ")
    assert for_the_client.startswith("cancel_on_disconnect is for the thread")


def test_the_loop_serves_others_meanwhile(serve_in_thread: ServeInThread, connect: Connect) -> None:
    """Two threads wait, the third answers; and what lets them go is another request."""
    waits = [Waiting(), Waiting()]

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        match environ["PATH_INFO"]:
            case "/0" | "/1" as path:
                return [from_thread.run(waits[int(path[1])]).encode()]
            case "/go":
                for one in waits:
                    from_thread.run(one.let_go)
        return [b"answered"]

    server = serve_in_thread(app, threads=3)
    waiting = [connect(server), connect(server)]
    for number, client in enumerate(waiting):
        client.send(request(f"/{number}"))
        assert waits[number].entered.wait(DEADLINE)
    other = connect(server)
    for _ in range(10):
        assert other.get("/plain").body == b"answered"
    other.get("/go")
    for client in waiting:
        assert client.receive().body == b"whole"


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_an_error_of_the_function_is_the_apps(
    serve_in_thread: ServeInThread,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    error: type[BaseException],
) -> None:
    """And answered as all of them: the server goes on."""

    async def fails() -> str:
        raise error("on purpose")

    app = Calling(partial(from_thread.run, fails))
    server = serve_in_thread(app)
    client = connect(server)
    assert client.get("/fails").status == 500
    assert client.get("/plain").body == b"plain"
    (raised,) = app.errors
    assert type(raised) is error
    (record,) = [record for record in caplog.records if "Exception while serving" in record.getMessage()]
    assert record.exc_info is not None
    assert record.exc_info[1] is raised


# -- the client leaves


def test_a_client_that_leaves_cancels_what_was_asked_to_be(
    serve_in_thread: ServeInThread, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """So its thread is free, long before the function would have ended."""
    waiting = Waiting()
    app = Calling(partial(from_thread.run, waiting, cancel_on_disconnect=True))
    server = serve_in_thread(app, threads=1)
    client = connect(server)
    client.send(request())
    assert waiting.entered.wait(DEADLINE)
    client.reset()
    assert connect(server).get("/plain").body == b"plain"
    assert waiting.cancelled
    (error,) = app.errors
    assert isinstance(error, ClientDisconnected)
    server.stop()
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


def test_it_cancels_nothing_else(serve_in_thread: ServeInThread, connect: Connect) -> None:
    """Neither what was not asked to be, nor what is another client's."""
    not_asked, others = Waiting(), Waiting()
    left = threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        if environ["PATH_INFO"] == "/leaves":
            environ["waitress_async.on_disconnect"](left.set)
            return [from_thread.run(not_asked).encode()]
        return [from_thread.run(others, cancel_on_disconnect=True).encode()]

    server = serve_in_thread(app)
    leaver, stayer = connect(server), connect(server)
    leaver.send(request("/leaves"))
    stayer.send(request("/stays"))
    assert not_asked.entered.wait(DEADLINE)
    assert others.entered.wait(DEADLINE)
    leaver.reset()
    assert left.wait(DEADLINE)
    for one in (not_asked, others):
        asyncio.run_coroutine_threadsafe(one.let_go(), server.loop).result(DEADLINE)
    assert stayer.receive().body == b"whole"
    assert not_asked.ended.wait(DEADLINE)
    assert not not_asked.cancelled


def test_a_client_that_has_left_already(serve_in_thread: ServeInThread, connect: Connect) -> None:
    entered = threading.Event()
    waiting = Waiting()
    errors: list[BaseException] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        entered.set()
        eventually(environ["waitress.client_disconnected"], "the client has left")
        try:
            from_thread.run(waiting, cancel_on_disconnect=True)
        except BaseException as error:
            errors.append(error)
        return []

    server = serve_in_thread(app)
    client = connect(server)
    client.send(request())
    assert entered.wait(DEADLINE)
    client.reset()
    eventually(lambda: errors, "the call has ended")
    assert isinstance(errors[0], ClientDisconnected)
    assert not waiting.entered.is_set()  # nobody waits for it


@pytest.mark.parametrize("kind", ["bulky", "spare"])
def test_in_whatever_thread_the_app_is_called(
    serve_in_thread: ServeInThread, connect: Connect, kind: str
) -> None:
    """One whose path went to disk before, and a spare one that stands in for one that waits."""
    waiting = Waiting()
    errors: list[BaseException] = []
    stream = threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        if not stream.is_set():
            stream.set()
            return iter([bytes(100_000)] * 40)
        try:
            return [from_thread.run(waiting, cancel_on_disconnect=True).encode()]
        except BaseException as error:
            errors.append(error)
            raise

    settings: dict[str, object] = {"outbuf_overflow": 1_000, "threads": 1, "spare_threads": 1}
    if kind == "spare":
        settings["outbuf_high_watermark"] = 200_000
    server = serve_in_thread(app, sockets=[small_listener()], **settings)
    with ExitStack() as stack:
        first = stack.enter_context(Client(server.address, receive_buffer=4_096))
        first.send(request("/same"))
        if kind == "bulky":
            eventually(lambda: "/same" in server.server._runtime.bulky, "it is known that it goes to disk")
            assert len(first.receive().body) == 4_000_000
        else:
            eventually(lambda: len(server.server._runtime.pool.names) == 2, "a spare thread stands in")
        second = connect(server)
        second.send(request("/same"))
        assert waiting.entered.wait(DEADLINE)
        second.reset()
        eventually(lambda: errors, "the call was cancelled")
        assert isinstance(errors[0], ClientDisconnected)


def test_many_calls_for_one_client_leave_nothing_behind(
    serve_in_thread: ServeInThread, connect: Connect
) -> None:
    """Each is forgotten with its end, and the last one is cancelled as the first would have been."""
    waiting = Waiting()

    def calls() -> str:
        for number in range(1_000):
            assert from_thread.run(where_am_i, str(number), cancel_on_disconnect=True)
        return from_thread.run(waiting, cancel_on_disconnect=True)

    app = Calling(calls)
    server = serve_in_thread(app)
    client = connect(server)
    client.send(request())
    assert waiting.entered.wait(DEADLINE)
    (protocol,) = server.server._runtime.connections._protocols
    assert protocol._exchange is not None
    assert len(protocol._exchange.output._on_loss or ()) == 1
    client.reset()
    eventually(lambda: app.errors, "the last call was cancelled")
    assert isinstance(app.errors[0], ClientDisconnected)


# -- the stop


def test_a_stop_lets_calls_end(serve_in_thread: ServeInThread, connect: Connect) -> None:
    waiting = Waiting()
    server = serve_in_thread(Calling(partial(from_thread.run, waiting)))
    client = connect(server)
    client.send(request())
    assert waiting.entered.wait(DEADLINE)
    server.server.request_stop()
    eventually(server.server._runtime.connections.is_draining, "the stop has begun")
    asyncio.run_coroutine_threadsafe(waiting.let_go(), server.loop).result(DEADLINE)
    assert client.receive().body == b"whole"
    client.sock.close()  # or it would linger
    server.stop()
    assert not waiting.cancelled


@pytest.mark.parametrize("cancel_on_disconnect", [False, True])
def test_a_stop_that_cuts_cancels_them(
    serve_in_thread: ServeInThread,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    cancel_on_disconnect: bool,
) -> None:
    """So their threads end, and no more calls are made."""
    waiting = Waiting()
    refused: list[BaseException] = []

    def call() -> str:
        try:
            return from_thread.run(waiting, cancel_on_disconnect=cancel_on_disconnect)
        except ServerClosed:
            with pytest.raises(ServerClosed) as raised:
                from_thread.run_sync(int)
            refused.append(raised.value)
            raise

    app = Calling(call)
    server = serve_in_thread(app, graceful_timeout=0)
    client = connect(server)
    client.send(request())
    assert waiting.entered.wait(DEADLINE)
    server.stop()
    assert waiting.cancelled
    assert [type(error) for error in app.errors] == [ServerClosed]
    assert refused
    assert [text for text in caplog.messages if "still running" in text or "go on" in text] == []


def test_one_that_goes_on_is_named(
    serve_in_thread: ServeInThread,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "_UNWIND_TIMEOUT", 0.1)
    entered = threading.Event()

    async def stubborn() -> str:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.Event().wait()  # until the end of asyncio.run()
        raise AssertionError

    app = Calling(partial(from_thread.run, stubborn))
    server = serve_in_thread(app, graceful_timeout=0)
    client = connect(server)
    client.send(request())
    assert entered.wait(DEADLINE)
    server.server.request_stop()
    server.thread.join(DEADLINE)
    named = [text for text in caplog.messages if text.startswith("Calls from threads that go on")]
    assert len(named) == 1
    assert named[0].endswith("<locals>.stubborn")
    assert [text for text in caplog.messages if text.startswith("1 thread(s) still running")]
    eventually(lambda: app.errors, "the thread goes on when the loop ends")


# -- beside others on a loop


@on_each_loop
async def test_a_loop_that_goes_on_has_nothing_left() -> None:
    """With a call of the app, one of a thread of its own, and one that comes after the stop."""
    app_waits, own_waits = Waiting(), Waiting()
    own: list[threading.Thread] = []
    errors: list[BaseException] = []
    callers: list[from_thread.FromThread] = []

    def noting(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        caller = environ["waitress_async.from_thread"]
        callers.append(caller)
        own.append(threading.Thread(target=noting, args=(partial(caller.run, own_waits),)))
        own[0].start()
        noting(partial(from_thread.run, app_waits))
        return []

    tasks = asyncio.all_tasks()
    with nothing_left():
        async with local_server(app) as server:
            client = Client(("127.0.0.1", server.port))
            client.send(request())
            await eventually_async(
                lambda: app_waits.entered.is_set() and own_waits.entered.is_set(), "both wait"
            )
            assert len(asyncio.all_tasks() - tasks) == 2
            await server.stop(0)
            client.sock.close()
        assert asyncio.all_tasks() == tasks
        assert server_threads() == []
        await eventually_async(lambda: not own[0].is_alive(), "its own thread ended")
        await in_thread(partial(noting, partial(callers[0].run_sync, int)))
    assert [type(error) for error in errors] == [ServerClosed] * 3


@on_each_loop
async def test_a_stop_is_of_one_server_alone() -> None:
    waiting = Waiting()
    async with local_server(Calling(partial(from_thread.run, waiting))) as stays, local_server() as stops:
        answer = asyncio.create_task(fetch(stays.port))
        await eventually_async(waiting.entered.is_set, "it waits")
        assert await fetch(stops.port) == b"Hello, world!"
        await stops.stop(0)
        await waiting.let_go()
        await bounded(answer)
        assert answer.result() == b"whole"
    assert not waiting.cancelled


@on_each_loop
async def test_the_program_s_context_and_objects() -> None:
    """What the program has made on its loop, apps use; and see the context that the server was started in."""
    queue: asyncio.Queue[str] = asyncio.Queue()
    name = contextvars.ContextVar("name", default="nobody")

    async def put() -> str:
        await queue.put(name.get())
        return "put"

    name.set("the program")
    async with local_server(Calling(partial(from_thread.run, put))) as server:
        assert await fetch(server.port) == b"put"
    assert await asyncio.wait_for(queue.get(), DEADLINE) == "the program"


@on_each_loop
async def test_on_the_loop_itself() -> None:
    """In what an app has called there, and in what the program runs there: it says what to do."""
    messages: list[str] = []

    async def calls_in_turn() -> str:
        try:
            from_thread.run(where_am_i, "")
        except RuntimeError as error:
            return str(error)
        raise AssertionError

    async with local_server(Calling(partial(from_thread.run, calls_in_turn))) as server:
        messages.append((await fetch(server.port)).decode())
        with pytest.raises(RuntimeError, match="there is no server behind this thread"):
            from_thread.run_sync(int)
    assert messages == [
        "this is the loop's own thread, which would wait for itself: await the function there"
    ]


@on_each_loop
async def test_a_program_that_ends_without_a_stop() -> None:
    """asyncio.run() cancels all tasks then: no thread is left waiting."""
    waiting = Waiting()
    app = Calling(partial(from_thread.run, waiting))
    server = local_server(app)
    await server.start()
    client = Client(("127.0.0.1", server.port))
    client.send(request())
    await eventually_async(waiting.entered.is_set, "it waits")
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await eventually_async(lambda: app.errors, "the thread goes on")
    client.sock.close()
    await server.stop()


def test_the_plain_path_has_nothing_of_it(serve_in_thread: ServeInThread, connect: Connect) -> None:
    """One object of the server's, and no call is noted."""
    environs: list[dict[str, Any]] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environs.append(environ)
        return hello(environ, start_response)

    server = serve_in_thread(app)
    for client in (connect(server), connect(server)):
        for _ in range(3):
            assert client.get().status == 200
    portal = server.server._runtime.portal
    assert {id(environ["waitress_async.from_thread"]) for environ in environs} == {id(portal)}
    assert portal.names == []


def test_validated(serve_in_thread: ServeInThread, connect: Connect) -> None:
    """wsgiref.validate has no objection to the key."""
    from wsgiref.validate import validator

    plain: WSGIApplication = validator(Calling(partial(from_thread.run, where_am_i, "validated")))
    server = serve_in_thread(plain)
    assert connect(server).get().body.decode() == f"validated {server.thread.name}"
