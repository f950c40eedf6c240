"""`waitress_async.on_disconnect`: an app that runs learns that its client has left."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import RunningServer, ServeInThread
from tests.server.support import DEADLINE, Client, eventually, request, small_listener

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

Connect = Callable[[RunningServer], Client]
Register = Callable[[Callable[[], object]], None]

QUICK_SWEEPS = {"linger_timeout": 0.2}  # a sweep sees who is gone while nothing is read

ERROR = "Exception in a callback of the app"

who = ContextVar("who", default="nobody")


class App:
    """Runs `before(environ)` and says so, waits to be let go, and answers. `/plain` is answered at once."""

    def __init__(self, before: Callable[[WSGIEnvironment], object]) -> None:
        self._before = before
        self.running = threading.Event()
        self.gate = threading.Event()
        self.ended = threading.Event()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        if environ["PATH_INFO"] == "/plain":
            return [b"plain"]
        self._before(environ)
        self.running.set()
        assert self.gate.wait(DEADLINE)
        self.ended.set()
        return [b"whole"]


class Calls:
    """Notes the calls of its methods, with what was true then."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.gone: list[bool] = []
        self.app_threads: list[threading.Thread] = []
        self.came = threading.Event()

    def register(self, environ: WSGIEnvironment) -> None:
        """Have each disconnect noted. To be called by the app."""
        self.app_threads.append(threading.current_thread())
        gone: Callable[[], bool] = environ["waitress.client_disconnected"]

        def note() -> None:
            self.threads.append(threading.current_thread())
            self.gone.append(gone())
            self.came.set()

        environ["waitress_async.on_disconnect"](note)

    def wait(self) -> None:
        assert self.came.wait(DEADLINE), "it was not called"


def release(app: App, server: RunningServer) -> None:
    """Let the app end, and then the server: by then all calls have been made that ever will be."""
    app.gate.set()
    server.stop()


def get(path: str = "/") -> bytes:
    return request(path)


def upload(path: str = "/") -> bytes:
    return request(path, method="POST", body=bytes(100_000))


def pipelined(path: str = "/") -> bytes:
    """So much behind it that the server reads no further."""
    return request(path) + request(path, method="POST", body=bytes(1_000_000))


def half_an_upload(path: str = "/") -> bytes:
    """Of which the app reads nothing, and so the server reads no further."""
    return request(path, "Content-Length: 10000000\r\n", method="POST") + bytes(1_000_000)


# -- when it is called


@pytest.mark.parametrize("sent", [get, upload, pipelined, half_an_upload], ids=lambda sent: sent.__name__)
def test_a_reset_while_the_app_runs(
    serve_in_thread: ServeInThread, connect: Connect, sent: Callable[[], bytes]
) -> None:
    calls = Calls()
    app = App(calls.register)
    server = serve_in_thread(app, stream_request_body=sent is half_an_upload, **QUICK_SWEEPS)
    client = connect(server)
    sender = threading.Thread(target=send_what_is_taken, args=(client, sent()), daemon=True)
    sender.start()
    assert app.running.wait(DEADLINE)
    if sent in (pipelined, half_an_upload):
        eventually(lambda: reading_is_paused(server), "the server reads no further")
    else:
        sender.join(DEADLINE)
    assert calls.threads == []
    client.reset()
    calls.wait()
    assert not app.ended.is_set()  # it runs still, and need not have come up for air
    release(app, server)
    sender.join(DEADLINE)
    assert calls.gone == [True]
    assert not set(calls.threads) & set(calls.app_threads)
    assert server.thread not in calls.threads


def send_what_is_taken(client: Client, data: bytes) -> None:
    try:
        client.send(data)
    except OSError:  # it has been reset meanwhile
        pass


def reading_is_paused(server: RunningServer) -> bool:
    return any(protocol._reading_paused for protocol in list(server.server._runtime.connections._protocols))


@pytest.mark.parametrize("half_close", [False, True], ids=["whole", "half-closed before"])
def test_a_reset_while_the_response_is_streamed(
    serve_in_thread: ServeInThread, connect: Connect, half_close: bool
) -> None:
    """A generator is closed by the thread that runs it, at its next chunk."""
    calls = Calls()
    closed_by: list[threading.Thread] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        calls.register(environ)
        start_response("200 OK", [])
        try:
            while True:
                yield bytes(10_000)
        finally:
            closed_by.append(threading.current_thread())

    server = serve_in_thread(app, sockets=[small_listener()], outbuf_high_watermark=65_536)
    client = connect(server)
    client.send(request())
    assert client.sock.recv(1)
    if half_close:
        client.half_close()
    client.reset()
    calls.wait()
    eventually(lambda: closed_by, "the generator was closed")
    server.stop()
    assert closed_by == calls.app_threads
    assert calls.gone == [True]


def test_a_generator_that_waits_is_closed_at_its_next_chunk(
    serve_in_thread: ServeInThread, connect: Connect
) -> None:
    calls = Calls()
    waits, gate, closed = threading.Event(), threading.Event(), threading.Event()
    chunks: list[str] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        calls.register(environ)
        start_response("200 OK", [])
        try:
            yield b"first"
            chunks.append("first")
            waits.set()
            assert gate.wait(DEADLINE)
            yield b"second"
            chunks.append("second")
        finally:
            closed.set()

    server = serve_in_thread(app)
    client = connect(server)
    client.send(request())
    assert waits.wait(DEADLINE)
    client.reset()
    calls.wait()
    assert not closed.is_set()  # nobody but its own thread may close it
    gate.set()
    assert closed.wait(DEADLINE)
    server.stop()
    assert chunks == ["first"]


def test_a_half_close_is_no_disconnect(serve_in_thread: ServeInThread, connect: Connect) -> None:
    calls = Calls()
    app = App(calls.register)
    server = serve_in_thread(app)
    client = connect(server)
    client.send(request("/"))
    assert app.running.wait(DEADLINE)
    client.half_close()
    other = connect(server)
    assert other.get("/plain").body == b"plain"  # the end of the first has been seen by then
    app.gate.set()
    assert client.receive().body == b"whole"
    client.assert_ended()
    server.stop()
    assert calls.threads == []


@pytest.mark.parametrize("seen", [True, False], ids=["after it was seen", "before"])
def test_a_reset_after_a_half_close_is_one(
    serve_in_thread: ServeInThread, connect: Connect, seen: bool
) -> None:
    calls = Calls()
    app = App(calls.register)
    server = serve_in_thread(app, **QUICK_SWEEPS)
    client = connect(server)
    client.send(request("/"))
    assert app.running.wait(DEADLINE)
    client.half_close()
    if seen:
        assert connect(server).get("/plain").body == b"plain"
    client.reset()
    calls.wait()
    release(app, server)
    assert calls.gone == [True]


def test_at_once_if_the_client_has_left_already(serve_in_thread: ServeInThread, connect: Connect) -> None:
    calls = Calls()
    entered = threading.Event()

    def before(environ: WSGIEnvironment) -> None:
        entered.set()
        eventually(environ["waitress.client_disconnected"], "the client has left")
        calls.register(environ)

    app = App(before)
    server = serve_in_thread(app)
    client = connect(server)
    client.send(request())
    assert entered.wait(DEADLINE)
    client.reset()
    calls.wait()
    assert not app.ended.is_set()
    release(app, server)
    assert calls.gone == [True]
    assert not set(calls.threads) & set(calls.app_threads)


def test_each_callback_once_and_in_order(serve_in_thread: ServeInThread, connect: Connect) -> None:
    called: list[int] = []
    done = threading.Event()

    def before(environ: WSGIEnvironment) -> None:
        register: Register = environ["waitress_async.on_disconnect"]
        for number in range(20):
            register(lambda number=number: called.append(number))  # type: ignore[misc]
        register(done.set)

    app = App(before)
    server = serve_in_thread(app)
    client = connect(server)
    client.send(request())
    assert app.running.wait(DEADLINE)
    client.reset()
    assert done.wait(DEADLINE)
    release(app, server)
    assert called == list(range(20))


# -- when it is not


@pytest.mark.parametrize("leave", [Client.reset, lambda client: client.sock.close()], ids=["reset", "close"])
def test_not_after_the_response_is_complete(
    serve_in_thread: ServeInThread, connect: Connect, leave: Callable[[Client], None]
) -> None:
    calls = Calls()
    environs: list[dict[str, Any]] = []

    def before(environ: WSGIEnvironment) -> None:
        calls.register(environ)
        environs.append(environ)

    app = App(before)
    app.gate.set()
    server = serve_in_thread(app)
    client = connect(server)
    assert client.get("/").body == b"whole"
    assert client.get("/plain").body == b"plain"  # another request of the same connection
    leave(client)
    other = connect(server)
    assert other.get("/plain").body == b"plain"
    for environ in environs:  # and one that was kept says nothing more
        calls.register(environ)
    server.stop()
    assert calls.threads == []


def test_not_of_the_requests_of_others(serve_in_thread: ServeInThread, connect: Connect) -> None:
    left, stays = threading.Event(), threading.Event()
    entered: list[str] = []

    def before(environ: WSGIEnvironment) -> None:
        path = environ["PATH_INFO"]
        environ["waitress_async.on_disconnect"](left.set if path == "/leaves" else stays.set)
        entered.append(path)

    app = App(before)
    server = serve_in_thread(app)
    leaver, stayer = connect(server), connect(server)
    leaver.send(request("/leaves"))
    stayer.send(request("/stays"))
    eventually(lambda: len(entered) == 2, "both are served")
    leaver.reset()
    assert left.wait(DEADLINE)
    app.gate.set()
    assert stayer.receive().body == b"whole"
    server.stop()
    assert not stays.is_set()


# -- what it may do


def test_in_a_copy_of_the_callers_context(serve_in_thread: ServeInThread, connect: Connect) -> None:
    seen: list[str] = []
    changed = threading.Event()

    def before(environ: WSGIEnvironment) -> None:
        def change() -> None:
            seen.append(who.get())
            who.set("the callback")
            changed.set()

        register: Register = environ["waitress_async.on_disconnect"]
        who.set("the app")
        register(change)
        register(lambda: seen.append(who.get()))  # of its own copy: what the first changed is not in it
        who.set("the app, later")

    class Asks(App):
        def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            result = super().__call__(environ, start_response)
            seen.append(who.get())
            return result

    app = Asks(before)
    server = serve_in_thread(app)
    client = connect(server)
    client.send(request())
    assert app.running.wait(DEADLINE)
    client.reset()
    assert changed.wait(DEADLINE)
    eventually(lambda: len(seen) == 2, "both were called")
    release(app, server)
    assert seen == ["the app", "the app", "the app, later"]


class OnPurpose(BaseException):
    """Not even an Exception."""


@pytest.mark.parametrize("error", [ValueError, SystemExit, OnPurpose])
def test_an_error_in_it_is_logged_and_hurts_nobody(
    serve_in_thread: ServeInThread,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    error: type[BaseException],
) -> None:
    calls = Calls()

    def fail() -> None:
        raise error("on purpose")

    def before(environ: WSGIEnvironment) -> None:
        environ["waitress_async.on_disconnect"](fail)
        calls.register(environ)  # after it, and called all the same

    app = App(before)
    server = serve_in_thread(app)
    client = connect(server)
    client.send(request())
    assert app.running.wait(DEADLINE)
    client.reset()
    calls.wait()
    assert connect(server).get("/plain").body == b"plain"
    release(app, server)
    (record,) = [record for record in caplog.records if record.getMessage() == ERROR]
    assert record.name == "waitress_async"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], error)


def test_one_that_blocks_holds_up_no_request(serve_in_thread: ServeInThread, connect: Connect) -> None:
    blocked, gate, after = threading.Event(), threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        assert gate.wait(DEADLINE)

    def before(environ: WSGIEnvironment) -> None:
        register: Register = environ["waitress_async.on_disconnect"]
        register(block)
        register(after.set)

    app = App(before)
    server = serve_in_thread(app, threads=2)
    client = connect(server)
    client.send(request())
    assert app.running.wait(DEADLINE)
    client.reset()
    assert blocked.wait(DEADLINE)
    other = connect(server)
    for _ in range(20):
        assert other.get("/plain").body == b"plain"
    assert not after.is_set()
    gate.set()
    assert after.wait(DEADLINE)
    release(app, server)


def test_it_ends_a_wait_of_the_app(serve_in_thread: ServeInThread, connect: Connect) -> None:
    """This is what it is for: the one thread is free again, long before the app would have ended."""
    entered = threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        if environ["PATH_INFO"] == "/wait":
            cancelled = threading.Event()
            environ["waitress_async.on_disconnect"](cancelled.set)
            entered.set()
            assert cancelled.wait(DEADLINE)
        return [b"plain"]

    server = serve_in_thread(app, threads=1)
    client = connect(server)
    client.send(request("/wait"))
    assert entered.wait(DEADLINE)
    client.reset()
    assert connect(server).get("/").body == b"plain"


# -- the stop


def test_a_stop_that_cuts_the_client_calls_it(serve_in_thread: ServeInThread, connect: Connect) -> None:
    """To the app it is the same: nobody waits any more. So its thread ends, and does not hold the stop."""
    cancelled, entered = threading.Event(), threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        environ["waitress_async.on_disconnect"](cancelled.set)
        entered.set()
        assert cancelled.wait(DEADLINE)
        return [b"nobody sees this"]

    server = serve_in_thread(app, graceful_timeout=0)
    client = connect(server)
    client.send(request())
    assert entered.wait(DEADLINE)
    server.stop()
    assert cancelled.is_set()


def test_one_that_is_stuck_is_named(
    serve_in_thread: ServeInThread, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    stuck, gate = threading.Event(), threading.Event()

    def block() -> None:
        stuck.set()
        assert gate.wait(DEADLINE)

    app = App(lambda environ: environ["waitress_async.on_disconnect"](block))
    server = serve_in_thread(app, graceful_timeout=0.1)
    client = connect(server)
    client.send(request())
    assert app.running.wait(DEADLINE)
    client.reset()
    assert stuck.wait(DEADLINE)
    app.gate.set()
    assert app.ended.wait(DEADLINE)
    server.stop()
    gate.set()
    (told,) = [text for text in caplog.messages if "still running" in text]
    assert told == "1 thread(s) still running: waitress_async-callback-1"
    (stack,) = [text for text in caplog.messages if "is stuck here" in text]
    assert ", in block\n" in stack
