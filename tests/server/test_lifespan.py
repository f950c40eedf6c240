"""A server's lifespan: entered before it listens, left after the last request, whatever goes wrong."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import LOOPS
from tests.server.support import (
    DEADLINE,
    GatedApp,
    bounded,
    eventually,
    eventually_async,
    fetch,
    hello,
    in_thread,
    local_server,
    nothing_left,
    on_each_loop,
    server_threads,
)
from waitress_async import LifespanError, Server, ServerClosed, SettingsError, create_server, serve_async
from waitress_async.server.lifespan import Lifespan

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

Step = Callable[[], Awaitable[object]]

FOR_EVER = 3600.0  # seconds, of which none is waited for to its end


async def nothing() -> None:
    pass


async def hang() -> None:
    await asyncio.sleep(FOR_EVER)


async def fail() -> None:
    raise LookupError("nothing there")


class Life:
    """A lifespan that notes what happens, and yields itself. `enter` and `leave` are awaited in it."""

    def __init__(self, enter: Step = nothing, leave: Step = nothing) -> None:
        self.events: list[str] = []
        self.tasks: set[object] = set()
        self._enter = enter
        self._leave = leave

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Life]:
        self._note("entering")
        try:
            await self._enter()
            self._note("entered")
            try:
                yield self
            finally:
                self._note("leaving")
                await self._leave()
        except asyncio.CancelledError:
            self._note("cancelled")
            raise
        self._note("left")

    def _note(self, event: str) -> None:
        self.events.append(event)
        self.tasks.add(asyncio.current_task())

    def app(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        self.events.append(environ["PATH_INFO"])
        assert environ["waitress_async.state"] is self
        start_response("200 OK", [])
        return [b"served"]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


def told(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the stop waits for at the least is soon over."""
    monkeypatch.setattr("waitress_async.server.server._LEAVE_TIMEOUT", 0.05)
    monkeypatch.setattr("waitress_async.server.server._UNWIND_TIMEOUT", 0.05)


# -- what it is good for


@on_each_loop
async def test_it_is_around_all_requests() -> None:
    life = Life()
    with nothing_left():
        server = local_server(life.app, lifespan=life)
        states = [server.state]
        async with server:
            states.append(server.state)
            assert life.events == ["entering", "entered"]
            for path in ("/1", "/2"):
                assert await fetch(server.port, path) == b"served"
        assert life.events == ["entering", "entered", "/1", "/2", "leaving", "left"]
    assert states == [None, life]
    assert len(life.tasks) == 1  # as task groups and cancel scopes need it


@on_each_loop
async def test_without_one_the_state_is_none() -> None:
    states = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        states.append(environ["waitress_async.state"])
        return hello(environ, start_response)

    async with local_server(app) as server:
        await fetch(server.port)
        assert (server.state, states) == (None, [None])


@on_each_loop
async def test_it_does_not_listen_before_it_is_entered() -> None:
    may_enter = asyncio.Event()
    life = Life(enter=may_enter.wait)
    port = free_port()
    server = Server(life.app, host="127.0.0.1", port=port, lifespan=life)
    starting = asyncio.create_task(server.start())
    await eventually_async(lambda: life.events, "it is being entered")
    assert not await listens(port)
    assert server.addresses == []
    may_enter.set()
    await bounded(starting)
    assert await fetch(port) == b"served"
    await server.stop()


@on_each_loop
async def test_it_is_left_after_the_request_in_flight_and_the_threads() -> None:
    life, app = Life(), GatedApp()
    server = local_server(app, lifespan=life, thread_exit=lambda: life.events.append("thread"), threads=2)
    await server.start()
    answer = asyncio.create_task(fetch(server.port, "/in-flight"))
    await eventually_async(lambda: app.entered, "the app was called")
    stopping = asyncio.create_task(server.stop())
    await eventually_async(server._runtime.connections.is_draining, "the stop has begun")
    assert life.events == ["entering", "entered"]
    app.let_go()
    assert await answer == b"/in-flight"
    await bounded(stopping)
    assert life.events == ["entering", "entered", "thread", "thread", "leaving", "left"]


@on_each_loop
async def test_it_is_left_though_a_thread_is_stuck(caplog: pytest.LogCaptureFixture, hurry: None) -> None:
    life, app = Life(), GatedApp()
    async with local_server(app, lifespan=life, graceful_timeout=0) as server:
        answer = asyncio.create_task(fetch(server.port))
        await eventually_async(lambda: app.entered, "the app was called")
    assert life.events == ["entering", "entered", "leaving", "left"]
    assert "still running" in told(caplog)[0]
    with pytest.raises((ConnectionError, AssertionError)):
        await answer
    app.let_go()
    await eventually_async(lambda: not server_threads(), "the thread has ended")


@on_each_loop
async def test_apps_and_thread_hooks_run_in_its_context() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    found: list[str] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        found.append(variable.get())
        variable.set("by the lifespan")
        yield

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        found.append(variable.get())
        return hello(environ, start_response)

    def note() -> None:
        found.append(variable.get())
        variable.set("by a thread")

    variable.set("by the starter")
    async with local_server(app, lifespan=lifespan, threads=1, thread_init=note, thread_exit=note) as server:
        await fetch(server.port)
    assert found == ["by the starter", *["by the lifespan"] * 3]
    assert variable.get() == "by the starter"


@on_each_loop
async def test_a_class_is_a_function_too() -> None:
    class Pool:
        closed = False

        async def __aenter__(self) -> Pool:
            return self

        async def __aexit__(self, *_error: object) -> None:
            self.closed = True

    async with local_server(lifespan=Pool) as server:
        assert not server.state.closed
    assert server.state.closed


def test_it_is_entered_by_serve_async_too() -> None:
    life = Life()
    port = free_port()

    async def main() -> None:
        serving = asyncio.create_task(serve_async(life.app, host="127.0.0.1", port=port, lifespan=life))
        await eventually_async(lambda: "entered" in life.events, "it is entered")
        assert await fetch(port) == b"served"
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await bounded(serving)

    asyncio.run(main())
    assert life.events == ["entering", "entered", "/", "leaving", "left"]


def test_create_server_holds_its_clients_until_it_is_entered() -> None:
    may_enter = threading.Event()

    async def enter() -> None:
        await in_thread(lambda: may_enter.wait(DEADLINE))

    life = Life(enter)
    with nothing_left(), ThreadPoolExecutor(2) as threads:
        server = create_server(life.app, host="127.0.0.1", port=0, lifespan=life)
        running = threads.submit(server.run)
        assert isinstance(server.effective_port, int)
        answer = threads.submit(asyncio.run, fetch(server.effective_port))
        eventually(lambda: life.events == ["entering"], "it is being entered")
        may_enter.set()
        assert answer.result(DEADLINE) == b"served"
        server.close()
        running.result(DEADLINE)
    assert life.events == ["entering", "entered", "/", "leaving", "left"]


@pytest.mark.parametrize("life", [Life(enter=fail), Life(leave=fail)], ids=["enter", "leave"])
def test_its_failure_is_raised_by_run(life: Life) -> None:
    with nothing_left(), ThreadPoolExecutor(1) as threads:
        server = create_server(life.app, host="127.0.0.1", port=0, lifespan=life)
        running = threads.submit(server.run)
        eventually(lambda: "entered" in life.events or running.done(), "it is entered, or has failed")
        server.close()
        with pytest.raises(LifespanError):
            running.result(DEADLINE)


def test_a_close_while_it_is_entered_ends_run() -> None:
    life = Life(enter=hang)
    with nothing_left(), ThreadPoolExecutor(1) as threads:
        server = create_server(life.app, host="127.0.0.1", port=0, lifespan=life)
        running = threads.submit(server.run)
        eventually(lambda: life.events, "it is being entered")
        server.close()
        running.result(DEADLINE)
    assert life.events == ["entering", "cancelled"]


# -- it cannot be entered


async def exit_it() -> None:
    raise SystemExit(3)


async def cancel_itself() -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("enter", "cause", "message"),
    [
        (fail, LookupError, "The lifespan did not start: LookupError: nothing there"),
        (exit_it, SystemExit, "The lifespan did not start: SystemExit: 3"),
        (cancel_itself, None, "The lifespan did not start: it was cancelled"),
    ],
)
@on_each_loop
async def test_a_failure_to_enter_is_one_to_start(
    enter: Step, cause: type[BaseException] | None, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    with nothing_left():
        server = Server(hello, host="127.0.0.1", port=port, lifespan=Life(enter))
        with pytest.raises(LifespanError) as raised:
            await server.start()
        assert not await listens(port)
        assert server_threads() == []
        await server.stop()
        with pytest.raises(ServerClosed):
            await server.start()
        await bounded(server.serve_forever())
    assert (str(raised.value), raised.value.is_logged) == (message, False)
    assert type(raised.value.__cause__) is (type(None) if cause is None else cause)
    assert told(caplog) == []


async def coroutine_function() -> AsyncIterator[None]:
    raise AssertionError("nobody awaits it")


async def generator_function() -> AsyncIterator[None]:
    yield


@contextmanager
def for_plain_code() -> Iterator[None]:
    yield


def with_argument(app: object) -> AbstractAsyncContextManager[None]:
    raise AssertionError(app)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (coroutine_function, "an object of type coroutine: write it as an async generator that yields once"),
        (generator_function, "an object of type async_generator: write it as"),
        (for_plain_code, "an object of type _GeneratorContextManager: write it as"),
        (with_argument, r"missing 1 required positional argument: 'app'"),
    ],
)
@on_each_loop
async def test_what_gives_no_context_manager_says_what_to_write(function: Any, reason: str) -> None:
    with nothing_left(), pytest.raises(LifespanError, match=f"did not start: TypeError: .*{reason}"):
        await local_server(lifespan=function).start()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (3, "3 is neither a function nor the name of one"),
        ("on", "'on' is uvicorn's, for ASGI apps: here it is a function, module:object"),
        ("shop:lifespan", "'shop:lifespan' is a name, which the command alone looks up: give the function"),
    ],
)
def test_what_is_no_function_is_refused(value: object, reason: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Server(hello, lifespan=value)
    assert str(raised.value).startswith(f"lifespan: {reason}")


def test_what_the_function_returns_is_not_the_function() -> None:
    """It is callable, too: contextlib makes decorators of context managers."""
    with pytest.raises(SettingsError, match="is a context manager: give the function that makes it"):
        Server(hello, lifespan=Life()())


@on_each_loop
async def test_it_is_left_again_where_the_server_cannot_listen() -> None:
    life = Life()
    with nothing_left(), socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = Server(hello, host="127.0.0.1", port=taken.getsockname()[1], lifespan=life)
        with pytest.raises(OSError, match="Cannot listen"):
            await server.start()
    assert life.events == ["entering", "entered", "leaving", "left"]


# -- stopped while it is entered


async def by_stop(server: Server, starting: asyncio.Task[None]) -> None:
    await server.stop()
    assert isinstance((await asyncio.gather(starting, return_exceptions=True))[0], ServerClosed)


async def by_request(server: Server, starting: asyncio.Task[None]) -> None:
    server.request_stop()
    with pytest.raises(ServerClosed):
        await starting


async def by_cancelling(_server: Server, starting: asyncio.Task[None]) -> None:
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting


ENDS = pytest.mark.parametrize("end", [by_stop, by_request, by_cancelling])
End = Callable[[Server, asyncio.Task[None]], Awaitable[None]]


@ENDS
@on_each_loop
async def test_a_stop_meanwhile_cancels_it(end: End) -> None:
    life = Life(enter=hang)
    with nothing_left():
        server = local_server(life.app, lifespan=life)
        starting = asyncio.create_task(server.start())
        await eventually_async(lambda: life.events, "it is being entered")
        await bounded(end(server, starting))
        assert life.events == ["entering", "cancelled"]
        assert (server.addresses, server.state, server_threads()) == ([], None, [])
        await bounded(server.stop())
        await bounded(server.serve_forever())


@ENDS
@on_each_loop
async def test_one_that_is_entered_all_the_same_is_left(end: End) -> None:
    async def enter() -> None:
        try:
            await hang()
        except asyncio.CancelledError:
            pass

    life = Life(enter)
    with nothing_left():
        server = local_server(lifespan=life)
        starting = asyncio.create_task(server.start())
        await eventually_async(lambda: life.events, "it is being entered")
        await bounded(end(server, starting))
    assert life.events == ["entering", "entered", "leaving", "left"]


@ENDS
@on_each_loop
async def test_the_stop_waits_for_what_it_has_begun(end: End) -> None:
    cleaning, may_end = asyncio.Event(), asyncio.Event()

    async def enter() -> None:
        try:
            await hang()
        finally:
            cleaning.set()
            await may_end.wait()

    life = Life(enter)
    with nothing_left():
        server = local_server(lifespan=life)
        starting = asyncio.create_task(server.start())
        await eventually_async(lambda: life.events, "it is being entered")
        ending = asyncio.ensure_future(end(server, starting))
        await bounded(cleaning.wait())
        assert not ending.done()
        may_end.set()
        await bounded(ending)
    assert life.events == ["entering", "cancelled"]


@on_each_loop
async def test_what_then_goes_wrong_in_it_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def enter() -> None:
        try:
            await hang()
        finally:
            await fail()

    life = Life(enter)
    with nothing_left():
        server = local_server(lifespan=life)
        starting = asyncio.create_task(server.start())
        await eventually_async(lambda: life.events, "it is being entered")
        await bounded(by_stop(server, starting))
    assert told(caplog) == ["The lifespan failed"]


@on_each_loop
async def test_a_second_stop_cuts_what_it_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    cleaning = asyncio.Event()

    async def enter() -> None:
        try:
            await hang()
        finally:
            cleaning.set()
            await hang()

    life = Life(enter)
    with nothing_left():
        server = local_server(lifespan=life)
        starting = asyncio.create_task(server.start())
        await eventually_async(lambda: life.events, "it is being entered")
        server.request_stop()
        await bounded(cleaning.wait())
        server.request_stop(0)
        with pytest.raises(ServerClosed):
            await bounded(starting)
    assert life.events == ["entering", "cancelled"]
    assert told(caplog) == ["The lifespan is cut: it does not end in time"]


@on_each_loop
async def test_a_start_that_is_cancelled_leaves_nothing() -> None:
    """After each of the steps from that on with which the lifespan begins."""

    async def cancelled_after(steps: int) -> str:
        begun = asyncio.Event()

        async def enter() -> None:
            begun.set()
            for _ in range(6):
                await asyncio.sleep(0)

        life = Life(enter)
        server = local_server(lifespan=life)
        starting = asyncio.create_task(server.start())
        await bounded(begun.wait())
        for _ in range(steps):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await bounded(server.stop())
        return " ".join(life.events)

    with nothing_left():
        ends = {await cancelled_after(steps) for steps in range(12)}
    assert ends == {"entering cancelled", "entering entered leaving left"}


@on_each_loop
async def test_one_that_is_cancelled_before_its_first_step_is_over() -> None:
    life = Life()
    lifespan = Lifespan(life, asyncio.Event)
    lifespan.cut()
    with pytest.raises(LifespanError, match="it was cancelled"):
        await bounded(lifespan.wait_entered())
    await bounded(lifespan.wait_over())
    assert (lifespan.is_over, lifespan.failure, life.events) == (True, None, [])


# -- it goes wrong at its end


@on_each_loop
async def test_a_failure_to_leave_is_logged_and_raised_by_who_waits(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with nothing_left():
        server = local_server(lifespan=Life(leave=fail))
        await server.start()
        waiting = [asyncio.create_task(server.serve_forever()) for _ in range(2)]
        await asyncio.sleep(0)
        await bounded(server.stop())
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(result, LifespanError)
            assert (str(result), result.is_logged) == (
                "The lifespan failed: LookupError: nothing there",
                True,
            )
            assert isinstance(result.__cause__, LookupError)
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "The lifespan failed")
    assert record.exc_info is not None
    assert record.exc_info[0] is LookupError
    messages = [record.getMessage() for record in caplog.records]
    assert messages[-1].startswith("Stopped: ")


@on_each_loop
async def test_a_block_that_ends_well_raises_it() -> None:
    with pytest.raises(LifespanError):
        async with local_server(lifespan=Life(leave=fail)):
            pass
    with pytest.raises(ZeroDivisionError):
        async with local_server(lifespan=Life(leave=fail)):
            raise ZeroDivisionError


@on_each_loop
async def test_one_that_does_not_end_is_cut_at_the_deadline(
    caplog: pytest.LogCaptureFixture, hurry: None
) -> None:
    life = Life(leave=hang)
    with nothing_left():
        server = local_server(lifespan=life, graceful_timeout=0)
        await server.start()
        await bounded(server.stop())
        await server.serve_forever()
    assert life.events == ["entering", "entered", "leaving", "cancelled"]
    assert told(caplog) == ["The lifespan is cut: it does not end in time"]
    assert not server.is_stuck


@on_each_loop
async def test_one_that_does_not_end_is_cut_by_a_second_stop(caplog: pytest.LogCaptureFixture) -> None:
    life = Life(leave=hang)
    with nothing_left():
        server = local_server(lifespan=life)
        await server.start()
        stopping = asyncio.create_task(server.stop())
        await eventually_async(lambda: "leaving" in life.events, "it is being left")
        await bounded(server.stop(0))
        await stopping
    assert life.events == ["entering", "entered", "leaving", "cancelled"]
    assert told(caplog) == ["The lifespan is cut: it does not end in time"]


@on_each_loop
async def test_one_that_goes_on_though_it_is_cut_is_left_to_itself(
    caplog: pytest.LogCaptureFixture, hurry: None
) -> None:
    freed = asyncio.Event()

    async def leave() -> None:
        while not freed.is_set():
            try:
                await freed.wait()
            except asyncio.CancelledError:
                pass

    life = Life(leave=leave)
    with nothing_left():
        server = local_server(lifespan=life, graceful_timeout=0)
        await server.start()
        stuck = [server.is_stuck]
        await bounded(server.stop())
        stuck.append(server.is_stuck)
        assert told(caplog) == [
            "The lifespan is cut: it does not end in time",
            "The lifespan goes on though it was cut, and is left to itself",
        ]
        freed.set()
        await eventually_async(lambda: life.events[-1] == "left", "it has ended after all")
        assert [*stuck, server.is_stuck] == [False, True, False]


# -- it ends by itself


@on_each_loop
async def test_a_task_group_in_it_that_fails_stops_the_server(caplog: pytest.LogCaptureFixture) -> None:
    """As it would if the server ran in the group's block. What is in flight is answered first."""
    app = GatedApp()
    may_fail = asyncio.Event()
    events: list[str] = []

    async def fail_later() -> None:
        await may_fail.wait()
        raise LookupError("the task failed")

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail_later())
            try:
                yield
            finally:
                events.append("leaving")

    with nothing_left():
        server = local_server(app, lifespan=lifespan)
        await server.start()
        serving = asyncio.create_task(server.serve_forever())
        answer = asyncio.create_task(fetch(server.port, "/in-flight"))
        await eventually_async(lambda: app.entered, "the app was called")
        may_fail.set()
        await eventually_async(server._runtime.connections.is_draining, "the stop has begun")
        assert events == []
        app.let_go()
        assert await answer == b"/in-flight"
        with pytest.raises(LifespanError) as raised:
            await bounded(serving)
    cause = raised.value.__cause__
    assert isinstance(cause, ExceptionGroup)
    assert isinstance(cause.exceptions[0], LookupError)
    assert told(caplog) == ["The lifespan was cancelled: the server stops", "The lifespan failed"]


@on_each_loop
async def test_a_task_group_in_it_that_fails_in_the_stop() -> None:
    life_events: list[str] = []
    may_fail = asyncio.Event()
    app = GatedApp()

    async def fail_later() -> None:
        await may_fail.wait()
        raise LookupError

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail_later())
            try:
                yield
            finally:
                life_events.append("leaving")

    with nothing_left():
        server = local_server(app, lifespan=lifespan)
        await server.start()
        answer = asyncio.create_task(fetch(server.port, "/in-flight"))
        await eventually_async(lambda: app.entered, "the app was called")
        stopping = asyncio.create_task(server.stop())
        await eventually_async(server._runtime.connections.is_draining, "the stop has begun")
        may_fail.set()
        for _ in range(10):
            await asyncio.sleep(0)
        assert life_events == []
        app.let_go()
        assert await answer == b"/in-flight"
        await bounded(stopping)
        with pytest.raises(LifespanError):
            await server.serve_forever()


@pytest.mark.parametrize("loop", LOOPS)
def test_the_end_of_asyncio_run_waits_for_all_of_it(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    """It cancels the lifespan, too, while a request is in flight."""
    life, app = Life(), GatedApp()
    errors: list[dict[str, object]] = []
    answers: list[bytes] = []
    ports: list[int] = []

    def visit() -> None:
        answers.append(asyncio.run(fetch(ports[0], "/in-flight")))

    def let_go() -> None:
        eventually(lambda: "The lifespan was cancelled: the server stops" in told(caplog), "it was cancelled")
        assert life.events == ["entering", "entered"]
        app.let_go()

    threads = [threading.Thread(target=visit), threading.Thread(target=let_go)]

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
        server = local_server(app, lifespan=life)
        await server.start()
        ports.append(server.port)
        for thread in threads:
            thread.start()
        await eventually_async(lambda: app.entered, "the app was called")

    with nothing_left():
        with asyncio.Runner(debug=True, loop_factory=LOOPS[loop]) as runner:
            runner.run(main())
        for thread in threads:
            thread.join(DEADLINE)
    assert life.events == ["entering", "entered", "leaving", "cancelled"]
    assert (answers, errors) == ([b"/in-flight"], [])


# -- threads


@on_each_loop
async def test_each_thread_of_the_app_calls_its_hooks() -> None:
    local = threading.local()
    exits: list[str] = []

    def init() -> None:
        local.name = threading.current_thread().name

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        return [local.name.encode()]

    async with local_server(
        app, threads=3, thread_init=init, thread_exit=lambda: exits.append(local.name)
    ) as server:
        assert (await fetch(server.port)).startswith(b"waitress_async-")
        assert exits == []
    assert sorted(exits) == ["waitress_async-1", "waitress_async-2", "waitress_async-3"]


@pytest.mark.parametrize("hook", ["thread_init", "thread_exit"])
@on_each_loop
async def test_a_hook_that_is_stuck_does_not_hold_the_stop(
    hook: str, caplog: pytest.LogCaptureFixture, hurry: None
) -> None:
    freed = threading.Event()
    hooks: dict[str, Any] = {hook: lambda: freed.wait(DEADLINE)}
    server = local_server(threads=1, graceful_timeout=0.1, **hooks)
    await server.start()
    await bounded(server.stop())
    assert told(caplog)[0] == "1 thread(s) still running: waitress_async-1"
    freed.set()
    await eventually_async(lambda: not server_threads(), "the thread has ended")
