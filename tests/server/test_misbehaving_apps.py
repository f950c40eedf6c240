"""Apps that do what they should not: it costs their own request, and nobody and nothing else."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.conftest import RunningServer, ServeInThread
from tests.server.support import (
    DEADLINE,
    Client,
    eventually,
    needs_proc,
    request,
    small_listener,
)
from tests.wsgi.logs import Log, strict_log
from waitress_async.bridge import Output
from waitress_async.errors import ClientDisconnected
from waitress_async.http import ResponseHead

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

Connect = Callable[[RunningServer], Client]

pytestmark = needs_proc


@pytest.fixture
def log() -> Iterator[Log]:
    with strict_log(logging.WARNING) as log:
        yield log


@pytest.mark.parametrize("when", ["iterating", "closing"])
def test_reading_on_when_the_response_is_over(serve_in_thread: ServeInThread, when: str) -> None:
    """The rest of the body has nowhere to go by then, so a read of it must not wait."""
    raised: list[BaseException] = []

    class App:
        def __init__(self, environ: WSGIEnvironment, start_response: StartResponse) -> None:
            start_response("200 OK", [("Content-Length", "5")])
            self._body = environ["wsgi.input"]

        def __iter__(self) -> Iterator[bytes]:
            yield b"early"
            if when == "iterating":
                self._read()

        def close(self) -> None:
            if when == "closing":
                self._read()

        def _read(self) -> None:
            try:
                self._body.read()
            except OSError as error:
                raised.append(error)

    server = serve_in_thread(App, stream_request_body=True, threads=1, spare_threads=0)
    for _ in range(3):  # each has the one thread
        with Client(server.address) as client:
            client.send(request("/", "Content-Length: 1000000\r\n", method="POST") + b"some")
            assert client.receive().body == b"early"
    eventually(lambda: len(raised) == 3, "the app's reads have ended")
    assert all(isinstance(error, ClientDisconnected) for error in raised)


def test_a_loop_of_the_apps_own(serve_in_thread: ServeInThread) -> None:
    """Files that are closed while it runs are not left to it: it ends with the call."""

    def app(_environ: object, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", [])

        async def main() -> None:
            for _ in range(50):
                write(bytes(10_000))

        asyncio.run(main())
        return []

    server = serve_in_thread(
        app, outbuf_overflow=1_000, outbuf_high_watermark=50_000, sockets=[small_listener()]
    )
    for _ in range(5):
        with Client(server.address, receive_buffer=4_096) as client:
            client.send(request())
            assert client.receive().body == bytes(500_000)
    eventually(lambda: server.server._runtime.spool.files == 0, "no temporary file")
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 10


def test_a_detached_body(serve_in_thread: ServeInThread, connect: Connect) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ["wsgi.input"].detach()
        start_response("200 OK", [])
        return [b"detached"]

    server = serve_in_thread(app, inbuf_overflow=1_000)
    client = connect(server)
    for _ in range(3):
        client.send(request("/", method="POST", body=bytes(100_000)))
        assert client.receive().body == b"detached"
    spool = server.server._runtime.spool
    eventually(lambda: spool.files == spool.used == 0, "no temporary file")


def test_one_file_for_two_clients(serve_in_thread: ServeInThread) -> None:
    """The first to have it closes it; what is opened then gets its number, and must not reach the second."""
    content = random.Random(1).randbytes(5_000_000)
    shared = tempfile.TemporaryFile()  # noqa: SIM115 - the server closes it
    shared.write(content)
    others: list[object] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        if environ["PATH_INFO"] != "/file":
            other = tempfile.TemporaryFile()  # noqa: SIM115
            other.write(b"\xff" * 5_000_000)
            others.append(other)
            return [b"opened"]
        shared.seek(0)
        result: Iterable[bytes] = environ["wsgi.file_wrapper"](shared)
        return result

    server = serve_in_thread(app, sockets=[small_listener()])
    with Client(server.address, receive_buffer=4_096) as slow, Client(server.address) as fast:
        slow.send(request("/file"))
        assert slow.sock.recv(1) == b"H"
        slow._buffer = b"H"
        assert fast.get("/file").body == content
        eventually(lambda: shared.closed, "the first has closed it")
        for _ in range(5):
            assert fast.get("/other").body == b"opened"
        assert slow.receive().body == content
    for other in others:
        other.close()  # type: ignore[attr-defined]


def test_what_ends_with_the_connection_is_not_cut_cleanly_by_a_stop(serve_in_thread: ServeInThread) -> None:
    """An HTTP/1.0 client has no other way to see that there should be more."""
    go_on = threading.Event()

    def app(_environ: object, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        yield b"some"
        go_on.wait(DEADLINE)
        yield b"more"

    server = serve_in_thread(app, graceful_timeout=0)
    try:
        with Client(server.address) as client:
            client.send(b"GET / HTTP/1.0\r\n\r\n")
            received = b""
            while not received.endswith(b"some"):
                received += client.sock.recv(1_000)
            server.server.request_stop()
            with pytest.raises(ConnectionResetError):
                client.rest()
    finally:
        go_on.set()


def test_a_response_that_goes_on_is_not_idle_because_its_request_is_not_complete(
    serve_in_thread: ServeInThread,
) -> None:
    steps = threading.Semaphore(0)

    def app(_environ: object, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        for _ in range(8):
            assert steps.acquire(timeout=DEADLINE)
            yield b"event"

    server = serve_in_thread(app, stream_request_body=True, channel_timeout=1)
    with Client(server.address) as client:
        client.send(request("/", "Content-Length: 1000000\r\n", method="POST"))
        pause = threading.Event()
        for _ in range(8):
            pause.wait(0.4)
            steps.release()
        assert client.receive().body == b"event" * 8


# -- whatever is raised, wherever


class Own(BaseException):
    """What no app's own `except Exception` would stop."""


class Unspeakable(Exception):
    """There is no way to say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no __str__")

    def __repr__(self) -> str:
        raise RuntimeError("no __repr__")


class Unprintable(Exception):
    """Whoever makes a traceback of it is told to exit, and handlers of logging pass that on."""

    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]
        raise SystemExit


def recursing() -> None:
    recursing()


def raising_on_an_exhausted_stack() -> None:
    try:
        raising_on_an_exhausted_stack()
    except RecursionError:
        raise Own("raised where there is no stack left") from None


def grouped() -> None:
    raise BaseExceptionGroup("several", [KeyboardInterrupt("one"), ValueError("another")])


def deeply_grouped() -> None:
    error: BaseException = ValueError("innermost")
    for _ in range(2_000):
        error = BaseExceptionGroup("again", [error])
    raise error


def raiser(error: type[BaseException], *arguments: object) -> Callable[[], object]:
    def run() -> None:
        raise error(*arguments)  # a new one, for its traceback holds all that was there

    return run


FAILURES: dict[str, Callable[[], object]] = {
    "SystemExit": raiser(SystemExit, 3),
    "KeyboardInterrupt": raiser(KeyboardInterrupt),
    "MemoryError": raiser(MemoryError),
    "GeneratorExit": raiser(GeneratorExit),
    "StopIteration": raiser(StopIteration),
    "StopAsyncIteration": raiser(StopAsyncIteration),
    "CancelledError": raiser(asyncio.CancelledError),
    "ClientDisconnected": raiser(ClientDisconnected, "of another request, whose input was kept"),
    "Own": raiser(Own),
    "Unspeakable": raiser(Unspeakable),
    "RecursionError": recursing,
    "no stack left": raising_on_an_exhausted_stack,
    "BaseExceptionGroup": grouped,
    "again": deeply_grouped,
    ": it cannot be shown (SystemExit)": raiser(Unprintable),
}


class Failing:
    """An app that fails as the first part of the path says, where the second does."""

    def __init__(self, fields: list[tuple[str, str]]) -> None:
        self._fields = fields
        self.closed: list[str] = []
        self.threads: set[int] = set()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.threads.add(threading.get_ident())
        path = environ["PATH_INFO"]
        number, where = path.strip("/").split("/")
        fail = list(FAILURES.values())[int(number)]
        start_response("200 OK", self._fields)
        if where == "call":
            fail()
        return _FailingBody(self, fail, path, where)


class _FailingBody:
    def __init__(self, app: Failing, fail: Callable[[], object], path: str, where: str) -> None:
        self._app, self._fail, self._path, self._where = app, fail, path, where
        self._steps = iter(["first", "later"])

    def __iter__(self) -> Iterator[bytes]:
        if self._where == "__iter__":
            self._fail()
        return self

    def __next__(self) -> bytes:
        if next(self._steps) == self._where:
            self._fail()
        return b"12345"

    def close(self) -> None:
        self._app.closed.append(self._path)
        if self._where == "close":
            self._fail()


SIZED = [("Content-Length", "10")]


@pytest.mark.parametrize(
    ("where", "version", "fields"),
    [
        *((where, "HTTP/1.1", []) for where in ("call", "__iter__", "first", "later", "close")),
        ("later", "HTTP/1.1", SIZED),
        ("later", "HTTP/1.0", []),
        ("close", "HTTP/1.0", []),
    ],
)
def test_whatever_is_raised(
    serve_in_thread: ServeInThread, log: Log, where: str, version: str, fields: list[tuple[str, str]]
) -> None:
    """A 500 or a visible cut, a traceback in the log, and the same thread serves the next."""
    app = Failing(fields)
    server = serve_in_thread(app, threads=1, spare_threads=0)
    for number, name in enumerate(FAILURES):
        if name == "StopIteration" and where in ("first", "later"):
            continue  # which is how an iterator ends
        path = f"/{number}/{where}"
        with Client(server.address) as client:
            client.send(f"GET {path} {version}\r\nHost: a\r\n\r\n".encode())
            if where == "later":
                assert_cut(client, until_close=version == "HTTP/1.0" and not fields)
            else:
                response = client.receive()
                wanted = (200, b"1234512345") if where == "close" else (500, response.body)
                assert (response.status, response.body) == wanted
                if version == "HTTP/1.1":  # and the connection is as good as before
                    assert client.get("/0/call").status == 500
                    log.take("ERROR waitress_async: Exception while serving /0/call\nTraceback ")
        of = "in close() while" if where == "close" else "while"
        record = log.take(f"ERROR waitress_async: Exception {of} serving {path}")
        assert name.replace("no stack left", "Own") in record
        assert ("Traceback (most recent call last)" in record) is not name.startswith(":")
    assert len(app.threads) == 1
    served = 0 if where == "call" else len(FAILURES) - (where in ("first", "later"))
    assert len(app.closed) == len(set(app.closed)) == served


def assert_cut(client: Client, *, until_close: bool) -> None:
    """The client has five bytes of a response, and sees that there should be more."""
    if until_close:
        with pytest.raises(ConnectionResetError):
            client.receive()
    else:
        with pytest.raises(AssertionError, match="the stream ended after"):
            client.receive()


@pytest.mark.parametrize("swallowing", [False, True])
def test_writes_until_the_stack_is_exhausted(
    serve_in_thread: ServeInThread, log: Log, swallowing: bool
) -> None:
    """The write that has no room fails before it has changed anything."""
    written: list[int] = []

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", [])

        def deeper(level: int) -> None:
            write(b"%d," % level)
            written.append(level)
            deeper(level + 1)

        try:
            deeper(0)
        except RecursionError:
            if not swallowing:
                raise
        return [b"end"]

    server = serve_in_thread(app, threads=1, spare_threads=0)
    for _ in range(20):
        written.clear()
        with Client(server.address) as client:
            client.send(request())
            if swallowing:
                body = client.receive().body
                expected = b"".join(b"%d," % level for level in written)
                assert body == expected + b"end"
            else:
                assert_cut(client, until_close=False)
                assert "RecursionError" in log.take("ERROR waitress_async: Exception while serving /\n")
        assert len(written) > 100


def test_a_failure_before_the_head_that_cannot_be_shown_to_the_client(
    serve_in_thread: ServeInThread, log: Log
) -> None:
    def app(_environ: WSGIEnvironment, _start_response: StartResponse) -> Iterable[bytes]:
        raise Unprintable

    server = serve_in_thread(app, expose_tracebacks=True)
    with Client(server.address) as client:
        assert client.get().status == 500
    log.take("ERROR waitress_async: Exception while serving /: it cannot be shown (SystemExit)")


# -- what is no WSGI app


def bad_iter() -> Iterable[bytes]:
    class Bad:
        def __iter__(self) -> Iterator[bytes]:
            raise LookupError("__iter__ failed")

    return Bad()


# What is returned after a start_response, and what the log says of it.
BAD_BODIES: dict[str, tuple[Callable[[], Any], str]] = {
    "none": (lambda: None, "'NoneType' object is not iterable"),
    "number": (lambda: 5, "'int' object is not iterable"),
    "str": (lambda: "text", "must yield and write bytes, not str"),
    "bytes": (lambda: b"bytes", "must yield and write bytes, not int"),
    "list-of-str": (lambda: ["text"], "must yield and write bytes, not str"),
    "str-chunk": (lambda: iter(["text"]), "must yield and write bytes, not str"),
    "none-chunk": (lambda: iter([None]), "must yield and write bytes, not NoneType"),
    "int-chunk": (lambda: iter([1]), "must yield and write bytes, not int"),
    "bytearray": (lambda: [bytearray(b"x")], "must yield and write bytes, not bytearray"),
    "iter": (bad_iter, "__iter__ failed"),
    "class": (lambda: Own, "not iterable"),
}

TEXT = [("Content-Type", "text/plain")]

# Arguments of start_response, called once for each, and what the log says of it.
BAD_STARTS: dict[str, tuple[list[tuple[Any, ...]], str]] = {
    "never": ([], "start_response was not called"),
    "twice": ([("200 OK", TEXT), ("200 OK", TEXT)], "start_response was called a second time"),
    "no-arguments": ([()], "missing 2 required positional arguments"),
    "status-int": ([(200, TEXT)], "status must be a str, not int"),
    "status-bytes": ([(b"200 OK", TEXT)], "status must be a str, not bytes"),
    "status-split": ([("200 OK\r\nX: y", TEXT)], "status must be three digits"),
    "headers-none": ([("200 OK", None)], "'NoneType' object is not iterable"),
    "header-str": ([("200 OK", ["X-A: b"])], "too many values to unpack"),
    "value-int": ([("200 OK", [("X-A", 1)])], "a header must be two str"),
    "value-bytes": ([("200 OK", [("X-A", b"1")])], "a header must be two str"),
    "value-split": ([("200 OK", [("X-A", "1\r\nX-B: 2")])], "without control characters"),
    "value-wide": ([("200 OK", [("X-A", "\u2713")])], "must be latin-1"),
    "name-split": ([("200 OK", [("X-A\r\nX-B", "1")])], "a header name must be a token"),
    "hop-by-hop": ([("200 OK", [("Transfer-Encoding", "chunked")])], "hop-by-hop"),
    "two-lengths": ([("200 OK", [("Content-Length", "1")] * 2)], "more than once"),
    "length-sign": ([("200 OK", [("Content-Length", "+1")])], "must be a decimal number"),
}


@pytest.mark.parametrize("kept_alive", [True, False])
def test_what_is_no_wsgi_app(serve_in_thread: ServeInThread, log: Log, kept_alive: bool) -> None:
    """It is a 500, the log says why, and the connection is as good as before."""

    def app(environ: WSGIEnvironment, start_response: Any) -> Any:
        name = environ["PATH_INFO"].strip("/")
        if name in BAD_STARTS:
            for arguments in BAD_STARTS[name][0]:
                start_response(*arguments)
            return [b"body"]
        start_response("200 OK", TEXT)
        return BAD_BODIES[name][0]() if name else [b"fine"]

    server = serve_in_thread(app, threads=1, spare_threads=0)
    client = Client(server.address)
    for name, (_, said) in {**BAD_BODIES, **BAD_STARTS}.items():
        if not kept_alive:
            client.sock.close()
            client = Client(server.address)
        assert client.get(f"/{name}").status == 500, name
        assert said in log.take(f"ERROR waitress_async: Exception while serving /{name}\n"), name
        assert client.get("/").body == b"fine", name
    client.sock.close()


def test_a_huge_header_is_the_apps_own_affair(serve_in_thread: ServeInThread, connect: Connect) -> None:
    """It is sent, and costs nobody else."""
    huge = "v" * 5_000_000

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("X-Huge", huge)] if environ["PATH_INFO"] == "/huge" else [])
        return [b"body"]

    client = connect(serve_in_thread(app))
    client.send(request("/huge") + request("/"))
    assert client.receive().headers["x-huge"] == huge
    assert client.receive().body == b"body"


# -- what is kept of a request that is over


@dataclass
class Kept:
    """All that an app can keep of a request."""

    environ: WSGIEnvironment
    start_response: StartResponse
    write: Callable[[bytes], object]

    def misuse(self) -> dict[str, str]:
        """Use all of it, and say what came of each."""
        read = self.environ["wsgi.input"].read
        spool = self.environ["waitress_async.spool"]
        uses: dict[str, Callable[[], object]] = {
            "write": lambda: self.write(b"STRAY"),
            "start": lambda: self.start_response("299 STRAY", []),
            "start, exc_info": lambda: self.start_response("299 STRAY", [], raised()),
            "read": lambda: read(1),
            "disconnected": self.environ["waitress.client_disconnected"],
            "shutting down": self.environ["waitress_async.shutting_down"],
            "on disconnect": lambda: self.environ["waitress_async.on_disconnect"](lambda: None),
            "spool": lambda: spool.size if spool is not None else None,
        }
        return {name: outcome(use) for name, use in uses.items()}


def raised() -> Any:
    try:
        raise LookupError("the app's own")
    except LookupError:
        return sys.exc_info()


def outcome(use: Callable[[], object]) -> str:
    try:
        return repr(use())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


OVER = {
    "write": "ValueError: write() was called after the end of the response",
    "start": "ValueError: start_response was called after the end of the response",
    "start, exc_info": "LookupError: the app's own",
    "disconnected": "False",
    "shutting down": "False",
    "on disconnect": "None",
}


class Keeping:
    """An app that keeps everything, and misuses it from a later request, or a thread of its own."""

    def __init__(self) -> None:
        self.kept: list[Kept] = []
        self.outcomes: list[dict[str, str]] = []

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/misuse":
            self.misuse()
        write = start_response("200 OK", [])
        self.kept.append(Kept(environ, start_response, write))
        if environ["PATH_INFO"] == "/misuse":
            return self._misusing_between_chunks()
        return [environ["PATH_INFO"].encode(), b" and more"]

    def _misusing_between_chunks(self) -> Iterator[bytes]:
        yield b"one "
        thread = threading.Thread(target=self.misuse)
        thread.start()
        thread.join(DEADLINE)
        yield b"two"

    def misuse(self) -> None:
        self.outcomes.append(self.kept[0].misuse())


@pytest.mark.parametrize("body", ["none", "small", "on disk", "streamed"])
@pytest.mark.parametrize("connections", [1, 2])
def test_what_is_kept_of_a_request_that_is_over(
    serve_in_thread: ServeInThread, connect: Connect, body: str, connections: int
) -> None:
    """Each use is a clear error or harmless, in whatever thread; and nothing of it is in another response."""
    app = Keeping()
    # One thread, so that it is done with a request, body and all, before it begins the next one.
    server = serve_in_thread(app, threads=1, inbuf_overflow=1_000, stream_request_body=body == "streamed")
    content = {"none": b"", "small": b"x", "on disk": bytes(1_000_000), "streamed": bytes(100)}[body]
    clients = [connect(server) for _ in range(connections)]
    clients[0].send(request("/first", method="POST", body=content))
    assert clients[0].receive().body == b"/first and more"
    for _ in range(3):
        clients[-1].send(request("/misuse"))
        response = clients[-1].receive()
        assert (response.status, response.body) == (200, b"one two")
        assert clients[0].get("/again").body == b"/again and more"
    assert len(app.outcomes) == 6
    for found in app.outcomes:
        assert {name: found[name] for name in OVER} == OVER
        assert found["read"] == "b''" if body == "none" else found["read"].startswith("ValueError: ")
    server.stop()
    assert app.kept[0].misuse()["shutting down"] == "True"
    for kept in app.kept:
        assert kept.misuse()["write"] == OVER["write"]


def test_what_is_kept_when_the_client_has_left(serve_in_thread: ServeInThread, log: Log) -> None:
    app = Keeping()
    entered, told = threading.Event(), threading.Event()

    def leaving(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ["waitress_async.on_disconnect"](told.set)
        entered.set()
        assert told.wait(DEADLINE)
        return app(environ, start_response)

    server = serve_in_thread(leaving)
    client = Client(server.address)
    client.send(request())
    assert entered.wait(DEADLINE)
    client.reset()
    eventually(lambda: app.kept, "it was told")
    eventually(
        lambda: outcome(lambda: app.kept[0].write(b"STRAY")) == OVER["write"], "the call of the app is over"
    )
    assert app.kept[0].misuse() == {**app.kept[0].misuse(), **OVER, "disconnected": "True"}


# -- threads of the app's own


def test_a_thread_that_outlives_its_request(serve_in_thread: ServeInThread) -> None:
    """It writes on, while the same connection and another have other responses under way."""
    ended = threading.Semaphore(0)
    errors: list[str] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/stray":
            start_response("200 OK", [])
            return iter([b"whole ", environ["PATH_INFO"].encode()])
        write = start_response("200 OK", [])

        def stray() -> None:
            try:
                while True:
                    write(b"STRAY")
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
            ended.release()

        write(b"begun ")
        threading.Thread(target=stray).start()
        return [b"end"]

    server = serve_in_thread(app)
    with Client(server.address) as client, Client(server.address) as other:
        for _ in range(10):
            client.send(request("/stray") + request("/a") + request("/b"))
            other.send(request("/c"))
            body = client.receive().body
            assert body.removeprefix(b"begun ").removesuffix(b"end").replace(b"STRAY", b"") == b""
            assert client.receive().body == b"whole /a"
            assert client.receive().body == b"whole /b"
            assert other.receive().body == b"whole /c"
    for _ in range(10):
        assert ended.acquire(timeout=DEADLINE)
    assert set(errors) <= {OVER["write"], "ClientDisconnected: the response has ended"}
    assert len(errors) == 10


class Gate(bytes):
    """Bytes whose length takes a while to tell, the third time: so long can a thread be interrupted."""

    def __new__(cls, content: bytes) -> Self:
        gate = super().__new__(cls, content)
        gate.asked = 0
        gate.reached, gate.open = threading.Event(), threading.Event()
        return gate

    asked: int
    reached: threading.Event
    open: threading.Event

    def __len__(self) -> int:
        self.asked += 1
        if self.asked == 3:
            self.reached.set()
            assert self.open.wait(DEADLINE)
        return super().__len__()


def test_two_threads_that_write_more_than_the_length_at_once(
    serve_in_thread: ServeInThread, log: Log, connect: Connect
) -> None:
    """Each has looked how much is still to come before the other wrote. The client must not take the rest
    for the beginning of the next response."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/next":
            start_response("200 OK", [])
            return [b"next"]
        write = start_response("200 OK", [("Content-Length", "10")])
        gate = Gate(b"STRAY")
        thread = threading.Thread(target=write, args=(gate,))
        thread.start()
        assert gate.reached.wait(DEADLINE)
        write(b"1234567")
        gate.open.set()
        thread.join(DEADLINE)
        return [b"89012"]

    server = serve_in_thread(app)
    client = connect(server)
    client.send(request("/") + request("/next"))
    received = client.rest()
    _, _, body = received.partition(b"\r\n\r\n")
    assert len(body) < 10  # it is cut, and nothing comes after it
    log.take("ERROR waitress_async: A response is cut: ")
    assert connect(server).get("/next").body == b"next"


# -- a body for two requests


def test_a_list_that_changes_while_it_is_sent(serve_in_thread: ServeInThread, connect: Connect) -> None:
    """As one that all requests share does, when they add to it."""
    shared: list[bytes] = []

    class Growing(bytes):
        def __len__(self) -> int:
            shared.append(b"STRAY")  # as if another thread had
            return super().__len__()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        shared[:] = [Growing(b"one "), b"two"]
        return shared

    client = connect(serve_in_thread(app))
    client.send(request("/") + request("/"))
    assert client.receive().body == b"one two"
    assert client.receive().body == b"one two"


@pytest.mark.parametrize("kind", ["list", "generator", "file", "wrapped file"])
def test_a_body_that_is_returned_twice(
    serve_in_thread: ServeInThread, connect: Connect, log: Log, kind: str
) -> None:
    """The second request has it whole, or sees that it has not."""
    bodies: list[Any] = []

    def make(environ: WSGIEnvironment) -> Any:
        if kind == "list":
            return [b"con", b"tent"]
        if kind == "generator":
            return (chunk for chunk in (b"con", b"tent"))
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the server closes it
        file.write(b"content")
        file.seek(0)
        return file if kind == "file" else environ["wsgi.file_wrapper"](file)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/other":
            start_response("200 OK", [])
            return [b"other"]
        start_response("200 OK", [("Content-Length", "7")])
        if not bodies:
            bodies.append(make(environ))
        body: Iterable[bytes] = bodies[0]
        return body

    server = serve_in_thread(app)
    first, second = connect(server), connect(server)
    assert first.get().body == b"content"
    if kind == "list":
        assert second.get().body == first.get().body == b"content"
    elif kind == "generator":  # at its end
        second.send(request())
        with pytest.raises(AssertionError, match="the stream ended after"):
            second.receive()
        log.take("WARNING waitress_async: application returned too few bytes (0) for specified")
    else:  # closed
        assert second.get().status == 500
        assert "closed" in log.take("ERROR waitress_async: Exception while serving /\n")
        assert second.get("/other").body == b"other"
    assert first.get("/other").body == b"other"


def test_a_generator_that_two_requests_run_at_once(
    serve_in_thread: ServeInThread, connect: Connect, log: Log
) -> None:
    go_on = threading.Event()

    def generate() -> Generator[bytes, None, None]:
        yield b"one "
        assert go_on.wait(DEADLINE)
        yield b"two"

    shared = generate()

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return shared

    server = serve_in_thread(app, threads=2)
    first, second = connect(server), connect(server)
    first.send(request())
    while not first._buffer.endswith(b"one \r\n"):
        first._more()
    eventually(lambda: inspect.getgeneratorstate(shared) == inspect.GEN_RUNNING, "the first waits in it")
    assert second.get().status == 500
    assert "generator already executing" in log.take("ERROR waitress_async: Exception while serving /\n")
    assert "already executing" in log.take("ERROR waitress_async: Exception in close() while serving /\n")
    go_on.set()
    assert first.receive().body == b"one two"


def test_a_thread_that_writes_just_when_the_app_returns_its_answer(
    serve_in_thread: ServeInThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing tells which was first: what was sent is one whole response, and the connection goes on."""
    received = threading.Event()
    written: list[Callable[[bytes], object]] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        written.append(start_response("200 OK", []))
        return [environ["PATH_INFO"].encode()]

    answer = Output.answer

    def answer_late(output: Output, head: ResponseHead, body: bytes) -> None:
        if body == b"/late":
            thread = threading.Thread(target=write, args=(b"early",))
            thread.start()
            assert received.wait(DEADLINE)
            thread.join(DEADLINE)
        answer(output, head, body)

    def write(data: bytes) -> None:
        response = written[-1].__self__  # type: ignore[attr-defined]
        response._sink.begin(response._head, None)
        response._sink.write(data)

    monkeypatch.setattr(Output, "answer", answer_late)
    server = serve_in_thread(app)
    with Client(server.address) as client:
        client.send(request("/late"))
        begun = client.sock.recv(65_536)
        assert begun.endswith(b"early\r\n")
        received.set()
        rest = b""
        while not rest.endswith(b"0\r\n\r\n"):
            rest += client.sock.recv(65_536)
        assert rest == b"5\r\n/late\r\n0\r\n\r\n"
        assert client.get("/next").body == b"/next"
