"""Raw clients, apps that wait for a word, and bounded waiting for what happens elsewhere."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.conftest import LOOPS, RunningServer
from waitress_async import Server

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

DEADLINE = 20.0  # seconds; far more than anything here takes

needs_proc = pytest.mark.skipif(
    not os.path.isdir("/proc/self/fd"), reason="counts open files where the system lists them"
)


# -- waiting


def eventually(predicate: Callable[[], object], what: str, seconds: float = DEADLINE) -> None:
    """Wait until `predicate()` is true."""
    deadline = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
        time.sleep(0.005)


async def eventually_async(predicate: Callable[[], object], what: str) -> None:
    """Let the loop run until `predicate()` is true."""
    deadline = time.monotonic() + DEADLINE
    while not predicate():
        assert time.monotonic() < deadline, f"not in {DEADLINE} s: {what}"
        await asyncio.sleep(0.005)


def on_each_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an `async def` test on uvloop and on asyncio's own loop, in debug mode.

    It fails, too, if its loop was told of an error, or if it leaves a task behind.
    """

    @functools.wraps(test)
    def run(loop: str, **fixtures: object) -> None:
        errors: list[dict[str, object]] = []

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
            await test(**fixtures)
            assert asyncio.all_tasks() == {asyncio.current_task()}

        with asyncio.Runner(debug=True, loop_factory=LOOPS[loop]) as runner:
            runner.run(main())
        assert errors == []

    signature = inspect.signature(test)
    loop = inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)
    parameters = [*signature.parameters.values(), loop]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    marked: Callable[..., None] = pytest.mark.parametrize("loop", LOOPS)(run)
    return marked


def server_has_read(server: RunningServer) -> None:
    """Wait until the server has seen all that was sent to it so far: later bytes have an answer already."""
    with Client(server.address) as probe:
        probe.send(b"nonsense\r\n\r\n")
        assert probe.receive().status == 400


# -- what must not be left


def server_threads() -> list[str]:
    """The names of the threads of all servers of this process."""
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("waitress_async"))


def descriptors() -> list[str]:
    """What each open descriptor of this process is, as Linux shows it."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            pass  # the one that listed them
    return found


def _unnamed_files() -> set[str]:
    return {name for name in descriptors() if name.endswith(" (deleted)")}


_OF_PYTEST = _unnamed_files() if os.path.isdir("/proc/self/fd") else set()  # it captures output in some


def temporary_files() -> int:
    """Open files that have no name any more: those that the server puts request bodies into."""
    return len(_unnamed_files() - _OF_PYTEST)


def memory_used(server: RunningServer) -> int:
    """Bytes of bodies that a server counts as held in memory."""
    return server.server._runtime.memory.used


def held() -> int:
    """Open sockets and files without a name: what connections hold. (A loop opens more, when first used.)"""
    return sum(name.startswith("socket:") for name in descriptors()) + temporary_files()


@contextmanager
def nothing_left() -> Iterator[None]:
    """At the end there are the same threads of servers, and as many open sockets and files, as before."""
    threads, files = server_threads(), held() if sys.platform == "linux" else 0
    yield
    assert server_threads() == threads
    if sys.platform == "linux":
        assert held() == files, (files, descriptors())


# -- apps


def hello(_environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"Hello, world!"]


def echo(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """The path, a space, and the body."""
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    path: str = environ["PATH_INFO"]
    return [path.encode("latin-1"), b" ", environ["wsgi.input"].read()]


class GatedApp:
    """An app of which each call waits for `let_go`; then it answers with the path."""

    def __init__(self) -> None:
        self.entered: list[str] = []  # the paths of the calls so far
        self.done: list[str] = []
        self._tickets = threading.Semaphore(0)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path: str = environ["PATH_INFO"]
        self.entered.append(path)
        assert self._tickets.acquire(timeout=DEADLINE), "nobody opened the gate"
        start_response("200 OK", [("Content-Type", "text/plain")])
        self.done.append(path)
        return [path.encode("latin-1")]

    def let_go(self, calls: int = 1) -> None:
        self._tickets.release(calls)

    def wait_entered(self, calls: int = 1) -> None:
        eventually(lambda: len(self.entered) >= calls, f"{calls} calls of the app")


class StreamingApp:
    """An app that writes for as long as it is let; it notes how much, and how it ended."""

    def __init__(self, chunk: bytes = bytes(4_096), length: int | None = None) -> None:
        self.chunk = chunk
        self.length = length
        self.written = 0
        self.closed = threading.Event()

    def __call__(self, _environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return _Chunks(self)


class _Chunks:
    def __init__(self, app: StreamingApp) -> None:
        self._app = app

    def __iter__(self) -> Iterator[bytes]:
        app = self._app
        while app.length is None or app.written < app.length:
            yield app.chunk
            app.written += len(app.chunk)  # after it was taken

    def close(self) -> None:
        self._app.closed.set()


# -- sockets


def small_listener() -> socket.socket:
    """A socket to listen on whose connections hold little in the kernel, so that a pause is felt soon."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
    sock.bind(("127.0.0.1", 0))
    return sock


@dataclass
class Response:
    status: int
    reason: str
    headers: dict[str, str]  # by lower-case name
    body: bytes
    version: str = "HTTP/1.1"
    raw_headers: list[tuple[str, str]] = field(default_factory=list)

    @property
    def closes(self) -> bool:
        return self.headers.get("connection") == "close"


class Client:
    """A socket, and a strict reader of responses. What is sent, and when, is the test's."""

    def __init__(
        self, address: tuple[str, int], *, receive_buffer: int | None = None, send_buffer: int | None = None
    ) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            if receive_buffer is not None:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            if send_buffer is not None:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
            self.sock.settimeout(DEADLINE)
            self.sock.connect(address)
        except BaseException:
            self.sock.close()
            raise
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send_until_blocked(self, data: bytes, limit: int) -> int:
        """Send `data` again and again until the peer has taken nothing for a while, or `limit` is reached."""
        self.sock.settimeout(0.25)
        sent = 0
        try:
            while sent < limit:
                sent += self.sock.send(data[sent % len(data) :])
        except TimeoutError:
            pass
        finally:
            self.sock.settimeout(DEADLINE)
        return sent

    def get(self, path: str = "/", headers: str = "") -> Response:
        self.send(request(path, headers))
        return self.receive()

    def receive(self, method: str = "GET") -> Response:
        """One response, an interim one too."""
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        version, status, reason = status_line.split(" ", 2)
        pairs = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        headers = {name.lower(): value for name, value in pairs}
        assert len(headers) == len(pairs), f"a header occurs twice: {pairs}"
        code = int(status)
        if method == "HEAD" or code < 200 or code in (204, 304):
            body = b""
        elif "transfer-encoding" in headers:
            assert headers["transfer-encoding"] == "chunked"
            body = b"".join(self._chunks())
        elif "content-length" in headers:
            body = self._exactly(int(headers["content-length"]))
        else:
            body = self.rest()
        return Response(code, reason, headers, body, version, pairs)

    def rest(self) -> bytes:
        """All that comes until the server ends the stream."""
        while data := self.sock.recv(65_536):
            self._buffer += data
        rest, self._buffer = self._buffer, b""
        return rest

    def assert_ended(self) -> None:
        """The server has ended the stream, cleanly, and has said nothing more."""
        assert self.rest() == b""

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def _more(self) -> None:
        data = self.sock.recv(65_536)
        assert data, f"the stream ended after {self._buffer[:200]!r}"
        self._buffer += data

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            self._more()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self._line(), 16):
            yield self._exactly(size)
            assert self._line() == b""
        assert self._line() == b""


def request(path: str = "/", headers: str = "", method: str = "GET", body: bytes = b"") -> bytes:
    """An HTTP/1.1 request; `headers` are lines, each with its CR LF."""
    if body:
        headers += f"Content-Length: {len(body)}\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode("latin-1") + body


async def fetch(address: tuple[str, int] | int, path: str = "/") -> bytes:
    """The body of one answer, read on the running loop over a connection of its own."""
    host, port = ("127.0.0.1", address) if isinstance(address, int) else address[:2]
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request(path, "Connection: close\r\n"))
        answer = await asyncio.wait_for(reader.read(), DEADLINE)
    finally:
        writer.close()
        await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), answer
    return body


def settled(value: Callable[[], int]) -> int:
    """Wait until `value()` has not changed for a while, and return it."""
    last, since = value(), time.monotonic()
    deadline = since + DEADLINE
    while time.monotonic() - since < 0.15:
        assert time.monotonic() < deadline, "it does not settle"
        time.sleep(0.005)
        if value() != last:
            last, since = value(), time.monotonic()
    return last


async def in_thread(run: Callable[[], object]) -> None:
    """Run a blocking client beside the running loop, in a thread that is gone afterwards."""
    result: list[BaseException] = []

    def target() -> None:
        try:
            run()
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=target, name="blocking-client", daemon=True)
    thread.start()
    await eventually_async(lambda: not thread.is_alive(), "the client ended")
    if result:
        raise result[0]


def visit_at_random(visit: Callable[[random.Random], object], clients: int, visits: int) -> None:
    """Call `visit(chance)` so often in each of so many threads, which are seeded with their numbers."""
    failures: list[BaseException] = []

    def run(number: int) -> None:
        chance = random.Random(number)
        try:
            for _ in range(visits):
                visit(chance)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert failures == []


async def bounded(awaitable: Awaitable[object]) -> None:
    """Await, but not for ever."""
    await asyncio.wait_for(awaitable, DEADLINE)


def local_server(app: WSGIApplication = hello, **settings: object) -> Server:
    """A server, not started, on any port of the loopback."""
    return Server(app, **{"host": "127.0.0.1", "port": 0, **settings})
