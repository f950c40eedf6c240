"""`wsgi.file_wrapper` around a file on disk: the server sends it, while the app's thread is free."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import io
import logging
import os
import random
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import pytest

from tests.conftest import RunningServer, ServeInThread
from tests.server.support import (
    DEADLINE,
    Client,
    descriptors,
    eventually,
    held,
    hello,
    in_thread,
    memory_used,
    needs_proc,
    on_each_loop,
    request,
    server_threads,
    settled,
    small_listener,
    temporary_files,
    visit_at_random,
)
from waitress_async.buffers import BufferMemory, FileRegion, SharedFile, Spool
from waitress_async.server.file_sender import FileSender

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Connect = Callable[[RunningServer], Client]

SIZE = 5_000_000
SMALL = 65_536  # the largest file that the app's thread reads itself

# More than what four kernel buffers of `small_listener` and of its client hold.
ON_THE_WAY = 1_000_000

POOL_THREAD = re.compile(r"waitress_async-\d+")
DISK_THREAD = re.compile(r"waitress_async-disk-\d+")

CONTENT = random.Random(1).randbytes(SIZE)


@dataclass(frozen=True)
class Closing:
    """What was seen in a call of the wrapper's close()."""

    thread: str
    position: int  # of the app's file
    sent: int  # bytes, by sendfile() so far


class SendFile:
    """os.sendfile, with a note of who called it, and how much it sent.

    `before(call)` runs in front of each call, with its number; it may raise or wait.
    """

    def __init__(self, real: Callable[[int, int, int, int], int]) -> None:
        self._real = real
        self.threads: list[str] = []
        self.sent = 0
        self.before: Callable[[int], object] = lambda _call: None
        self._lock = threading.Lock()

    def __call__(self, out: int, source: int, offset: int, count: int) -> int:
        self.threads.append(threading.current_thread().name)
        self.before(len(self.threads))
        size = self._real(out, source, offset, count)
        with self._lock:
            self.sent += size
        return size


@pytest.fixture
def sendfile(monkeypatch: pytest.MonkeyPatch) -> Iterator[SendFile]:
    """What sendfile() did. It is never called on the loop's thread, nor on one for apps."""
    recorder = SendFile(os.sendfile)
    monkeypatch.setattr("waitress_async.server.file_sender.os.sendfile", recorder)
    yield recorder
    assert all(DISK_THREAD.fullmatch(name) for name in recorder.threads), set(recorder.threads)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


class FileApp:
    """Answers with a file, but for `/hello`, and notes each close() of the wrapper around it.

    `open` opens the file, and may seek in it; `headers` go with it.
    """

    def __init__(
        self,
        path: Path,
        sendfile: SendFile,
        *,
        open: Callable[[Path], object] = lambda path: path.open("rb"),
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        self.path = path
        self.open = open
        self.headers = headers
        self.opened = 0
        self.closings: list[Closing] = []
        self._sendfile = sendfile

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/hello":
            return hello(environ, start_response)
        start_response("200 OK", list(self.headers))
        return self.wrap(environ, self.open(self.path))

    def wrap(self, environ: WSGIEnvironment, file: object) -> Iterable[bytes]:
        self.opened += 1
        wrapper: Any = environ["wsgi.file_wrapper"](file)
        close = wrapper.close

        def noted_close() -> None:
            position = -1
            with contextlib.suppress(AttributeError, OSError):
                position = cast(BinaryIO, file).tell()
            self.closings.append(Closing(threading.current_thread().name, position, self._sendfile.sent))
            close()

        wrapper.close = noted_close
        return cast(Iterable[bytes], wrapper)

    def wait_closed(self, times: int = 1) -> Closing:
        """Wait until `close` was called `times` in all, on a thread for apps. Returns the last."""
        eventually(lambda: len(self.closings) >= times, "close() was called")
        assert len(self.closings) == times
        assert all(POOL_THREAD.fullmatch(one.thread) for one in self.closings), self.closings
        return self.closings[-1]


@pytest.fixture
def app(path: Path, sendfile: SendFile) -> FileApp:
    return FileApp(path, sendfile)


def is_open(path: Path) -> bool:
    return any(name.startswith(str(path)) for name in descriptors())


def serve_slowly(serve_in_thread: ServeInThread, app: WSGIApplication, **settings: object) -> RunningServer:
    """A server whose connections hold little, with one thread for the app, and never another."""
    return serve_in_thread(
        app, **{"threads": 1, "spare_threads": 0, "sockets": [small_listener()], **settings}
    )


def slow_client(server: RunningServer) -> Client:
    return Client(server.address, receive_buffer=65_536)


def wait_blocked(sendfile: SendFile) -> int:
    """Wait until some has been sent, and no more for a while. Returns how much."""
    eventually(lambda: sendfile.sent, "some was sent")
    return settled(lambda: sendfile.sent)


def assert_hello(server: RunningServer, times: int = 1) -> None:
    with Client(server.address) as client:
        for _ in range(times):
            assert client.get("/hello").body == b"Hello, world!"


def wait_logged(caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    """Wait for the one record of the server that says that something is wrong."""

    def records() -> list[logging.LogRecord]:
        return [
            record
            for record in list(caplog.records)
            if record.name == "waitress_async" and record.levelno >= logging.WARNING
        ]

    eventually(records, "it was logged")
    (record,) = records()
    return record


def receive_cut(client: Client) -> tuple[int, int]:
    """Read to the end, or to a reset. Returns the Content-Length, and how much of it came."""
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while data := client.sock.recv(65_536):
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    match = re.search(rb"Content-Length: (\d+)", head)
    assert match is not None, head
    return int(match[1]), len(body)


# -- what comes


@pytest.mark.parametrize("size", [0, 1, SMALL - 1, SMALL, SMALL + 1, SIZE])
def test_every_byte_comes(
    serve_in_thread: ServeInThread, connect: Connect, app: FileApp, sendfile: SendFile, size: int
) -> None:
    os.truncate(app.path, size)
    client = connect(serve_in_thread(app))
    for times in (1, 2):
        response = client.get("/file")
        assert response.headers["content-length"] == str(size)
        assert response.body == CONTENT[:size]
        assert client.get("/hello").body == b"Hello, world!"
        app.wait_closed(times)
    assert sendfile.sent == (2 * size if size > SMALL else 0)


def test_a_slow_client_holds_no_thread(
    serve_in_thread: ServeInThread, app: FileApp, sendfile: SendFile
) -> None:
    server = serve_slowly(serve_in_thread, app)
    with slow_client(server) as first, slow_client(server) as second:
        for client in (first, second):
            client.send(request("/file"))
        eventually(lambda: app.opened == 2, "the app was called for both")
        assert wait_blocked(sendfile) < 2 * ON_THE_WAY
        assert_hello(server, 20)
        assert not app.closings
        for client in (first, second):
            assert client.receive().body == CONTENT
            assert client.get("/hello").body == b"Hello, world!"
    app.wait_closed(2)
    assert sendfile.sent == 2 * SIZE


def test_a_part_of_a_file(serve_in_thread: ServeInThread, connect: Connect, app: FileApp) -> None:
    start, length = 1_234_567, 2_000_003

    def open_there(path: Path) -> BinaryIO:
        file = path.open("rb")
        file.seek(start)
        return file

    app.open = open_there
    app.headers = [("Content-Length", str(length))]
    client = connect(serve_in_thread(app))
    for times in (1, 2):
        assert client.get("/part").body == CONTENT[start : start + length]
        assert app.wait_closed(times).position == start


def test_a_file_object_that_was_read_from_begins_where_it_stands(
    serve_in_thread: ServeInThread, connect: Connect, app: FileApp
) -> None:
    """What the object holds read ahead is none of the position."""

    def open_read(path: Path) -> BinaryIO:
        file = path.open("rb")
        file.readline()
        file.read(10)
        return file

    app.open = open_read
    response = connect(serve_in_thread(app)).get("/rest")
    start = CONTENT.index(b"\n") + 1 + 10
    assert response.body == CONTENT[start:]


@pytest.mark.parametrize("buffering", [0, -1], ids=["raw", "buffered"])
def test_a_file_that_can_be_written_too(
    serve_in_thread: ServeInThread, connect: Connect, app: FileApp, sendfile: SendFile, buffering: int
) -> None:
    app.open = lambda path: path.open("r+b", buffering)
    assert connect(serve_in_thread(app)).get("/file").body == CONTENT
    app.wait_closed()
    assert sendfile.sent == SIZE


def test_what_was_written_to_the_object_before_is_sent(
    serve_in_thread: ServeInThread, connect: Connect, app: FileApp
) -> None:
    """Also what the object has not yet written to the file."""

    def open_written(path: Path) -> BinaryIO:
        file = path.open("r+b")
        file.seek(0, os.SEEK_END)
        file.write(b"and this")
        file.seek(0)
        return file

    app.open = open_written
    assert connect(serve_in_thread(app)).get("/file").body == CONTENT + b"and this"


def test_a_named_temporary_file(
    serve_in_thread: ServeInThread, connect: Connect, app: FileApp, sendfile: SendFile
) -> None:
    def make(path: Path) -> object:
        file = tempfile.NamedTemporaryFile(dir=path.parent)  # noqa: SIM115 - the server closes it
        file.write(CONTENT)
        file.seek(0)
        return file

    app.open = make
    assert connect(serve_in_thread(app)).get("/file").body == CONTENT
    app.wait_closed()
    assert sendfile.sent == SIZE
    eventually(lambda: os.listdir(app.path.parent) == ["file"], "the temporary file is gone")


def test_1_0_with_keep_alive(serve_in_thread: ServeInThread, connect: Connect, app: FileApp) -> None:
    client = connect(serve_in_thread(app))
    for _ in range(2):
        client.send(b"GET /file HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        response = client.receive()
        assert response.headers["connection"] == "keep-alive"
        assert response.body == CONTENT
    client.send(b"GET /file HTTP/1.0\r\n\r\n")
    response = client.receive()
    assert response.closes
    assert response.body == CONTENT
    client.assert_ended()
    app.wait_closed(3)


def test_pipelined_requests_behind_a_file(
    serve_in_thread: ServeInThread, connect: Connect, app: FileApp
) -> None:
    client = connect(serve_slowly(serve_in_thread, app))
    client.send(b"".join(map(request, ("/file", "/hello", "/file", "/hello", "/hello"))))
    for path in ("/file", "/hello", "/file", "/hello", "/hello"):
        assert client.receive().body == (CONTENT if path == "/file" else b"Hello, world!")
    app.wait_closed(2)


def test_a_client_that_will_send_no_more_gets_all_of_it(serve_in_thread: ServeInThread, app: FileApp) -> None:
    server = serve_slowly(serve_in_thread, app)
    with slow_client(server) as client:
        client.send(request("/file") + request("/hello"))
        client.half_close()
        assert client.receive().body == CONTENT
        assert client.receive().body == b"Hello, world!"
        client.assert_ended()
    app.wait_closed()


def test_a_file_behind_what_was_written(
    serve_in_thread: ServeInThread, connect: Connect, path: Path, sendfile: SendFile
) -> None:
    app = FileApp(path, sendfile)

    def writing(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", [])
        write(b"before, ")
        return app.wrap(environ, path.open("rb"))

    client = connect(serve_in_thread(writing))
    for times in (1, 2):
        response = client.get("/file")
        assert response.headers["transfer-encoding"] == "chunked"
        assert response.body == b"before, " + CONTENT
        app.wait_closed(times)


@pytest.mark.parametrize("size", [1, SMALL, SIZE])
def test_head(serve_in_thread: ServeInThread, connect: Connect, app: FileApp, size: int) -> None:
    os.truncate(app.path, size)
    client = connect(serve_in_thread(app))
    for times in (1, 2):
        client.send(request("/file", method="HEAD"))
        response = client.receive("HEAD")
        assert response.headers["content-length"] == str(size)
        app.wait_closed(times)
    assert client.get("/hello").body == b"Hello, world!"


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_a_status_without_a_body(
    serve_in_thread: ServeInThread, connect: Connect, path: Path, sendfile: SendFile, status: str
) -> None:
    app = FileApp(path, sendfile)

    def bodiless(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response(status, [])
        return app.wrap(environ, path.open("rb"))

    client = connect(serve_in_thread(bodiless))
    for times in (1, 2):
        assert client.get("/file").body == b""
        app.wait_closed(times)


# -- files that are none


class OnlyRead:
    """The least that PEP 3333 asks of a file."""

    def __init__(self, path: Path) -> None:
        self._file = io.BytesIO(path.read_bytes())

    def read(self, size: int) -> bytes:
        return self._file.read(size)


class Decrypting(io.FileIO):
    """A file whose bytes are not those on disk."""

    def read(self, size: int | None = -1, /) -> bytes:
        return bytes(byte ^ 1 for byte in super().read(size) or b"")


def pipe_of(path: Path) -> BinaryIO:
    reader, writer = os.pipe()
    content = path.read_bytes()[:60_000]  # what a pipe holds

    with open(writer, "wb") as file:
        file.write(content)
    return open(reader, "rb")


def gzipped(path: Path) -> object:
    packed = path.with_suffix(".gz")
    with gzip.open(packed, "wb", 1) as file:
        file.write(path.read_bytes())
    return gzip.open(packed)


@pytest.mark.parametrize(
    ("open_it", "expected"),
    [
        (lambda path: io.BytesIO(path.read_bytes()), CONTENT[:300_000]),
        (OnlyRead, CONTENT[:300_000]),
        (gzipped, CONTENT[:300_000]),
        (pipe_of, CONTENT[:60_000]),
        (Decrypting, bytes(byte ^ 1 for byte in CONTENT[:300_000])),
    ],
    ids=["BytesIO", "only read()", "gzip", "pipe", "subclass"],
)
def test_what_is_no_file_on_disk_is_iterated(
    serve_in_thread: ServeInThread,
    connect: Connect,
    app: FileApp,
    sendfile: SendFile,
    open_it: Callable[[Path], object],
    expected: bytes,
) -> None:
    os.truncate(app.path, 300_000)
    app.open = open_it
    client = connect(serve_in_thread(app))
    for times in (1, 2):
        assert client.get("/file").body == expected
        app.wait_closed(times)
    assert not sendfile.threads


# -- close()


def test_close_comes_once_after_the_last_byte_and_the_position_is_the_apps(
    serve_in_thread: ServeInThread, app: FileApp
) -> None:
    files: list[BinaryIO] = []

    def keep(path: Path) -> BinaryIO:
        files.append(path.open("rb"))
        files[-1].seek(7)
        return files[-1]

    app.open = keep
    server = serve_slowly(serve_in_thread, app)
    with slow_client(server) as client:
        client.send(request("/file"))
        read = b""
        while len(read) < SIZE - ON_THE_WAY:
            assert not app.closings
            read += client.sock.recv(65_536)
        assert_hello(server, 3)
        assert not app.closings  # what is on the way is less than what is missing
        assert files[0].tell() == 7
        while len(read.partition(b"\r\n\r\n")[2]) < SIZE - 7:
            read += client.sock.recv(65_536)
        assert read.endswith(CONTENT[-1_000:])
        closing = app.wait_closed()
        assert closing.position == 7
        assert closing.sent == SIZE - 7
        assert client.get("/hello").status == 200
        server.stop()
    assert len(app.closings) == 1
    assert files[0].closed


@needs_proc
@pytest.mark.parametrize("leave", [Client.reset, lambda client: client.sock.close()], ids=["reset", "close"])
def test_a_client_goes_in_the_middle(
    serve_in_thread: ServeInThread, app: FileApp, sendfile: SendFile, leave: Callable[[Client], None]
) -> None:
    server = serve_slowly(serve_in_thread, app)
    before = held()
    with slow_client(server) as client:
        client.send(request("/file") + request("/hello"))
        assert client.sock.recv(1)
        wait_blocked(sendfile)
        assert not app.closings
        leave(client)
        assert app.wait_closed().position == 0
    eventually(lambda: held() == before, "as many sockets and files as before")
    eventually(lambda: not is_open(app.path), "the file is closed")
    eventually(lambda: memory_used(server) == 0, "no memory is counted")
    assert_hello(server)
    server.stop()
    assert len(app.closings) == 1


@needs_proc
def test_a_client_goes_while_the_file_waits_behind_an_earlier_answer(
    serve_in_thread: ServeInThread, path: Path, sendfile: SendFile, caplog: pytest.LogCaptureFixture
) -> None:
    """Some of the earlier answer is still in the transport, so nothing of the file has been sent."""
    app = FileApp(path, sendfile)
    fill = threading.Event()

    def both(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/fill":
            return app(environ, start_response)
        start_response("200 OK", [])
        fill.set()
        return [bytes(30_000)]  # less than what makes the transport ask for a pause

    server = serve_slowly(serve_in_thread, both)
    before = held()
    with slow_client(server) as client:
        while not app.opened:  # nothing is read: sooner or later answers stay in the transport
            client.send(request("/fill"))
            eventually(fill.is_set, "the app was called")
            fill.clear()
            (connection,) = server.server._runtime.connections._protocols
            eventually(lambda: connection._exchange is None, "the answer is with the transport")  # noqa: B023
            unsent = connection._transport.get_write_buffer_size
            if unsent() and settled(unsent):
                client.send(request("/file"))
                eventually(lambda: app.opened, "the app has answered with the file")
                eventually(lambda: connection._sender._file_task, "the file waits")  # noqa: B023
        assert sendfile.sent == 0
        client.reset()
        app.wait_closed()
    eventually(lambda: held() == before, "as many sockets and files as before")
    assert_hello(server)
    server.stop()
    assert len(app.closings) == 1
    assert not [record for record in caplog.records if record.levelname == "ERROR"], caplog.text


@needs_proc
@pytest.mark.parametrize("timeout", [0, 0.2])
def test_a_stop_cuts_a_file_at_its_deadline(
    serve_in_thread: ServeInThread, app: FileApp, sendfile: SendFile, timeout: float
) -> None:
    server = serve_slowly(serve_in_thread, app)
    with slow_client(server) as client:
        client.send(request("/file"))
        assert client.sock.recv(1)
        wait_blocked(sendfile)
        server.server.request_stop(timeout)
        server.thread.join(DEADLINE)
        assert not server.thread.is_alive()
        assert len(app.closings) == 1  # before the stop has returned
        app.wait_closed()
        assert not is_open(app.path)
        came = 1
        with contextlib.suppress(ConnectionResetError):
            while data := client.sock.recv(65_536):
                came += len(data)
        assert came < SIZE


def test_a_stop_waits_for_a_file(serve_in_thread: ServeInThread, app: FileApp, sendfile: SendFile) -> None:
    server = serve_slowly(serve_in_thread, app)
    with slow_client(server) as client, slow_client(server) as idle:
        assert idle.get("/hello").status == 200
        client.send(request("/file"))
        wait_blocked(sendfile)
        assert app.opened
        server.server.request_stop()
        idle.assert_ended()
        assert client.receive().body == CONTENT
        client.assert_ended()
    server.stop()
    assert len(app.closings) == 1


@pytest.mark.parametrize("size", [1_000, SIZE], ids=["read by the app's thread", "sent by the server"])
def test_a_close_that_raises_is_only_logged(
    serve_in_thread: ServeInThread,
    connect: Connect,
    path: Path,
    caplog: pytest.LogCaptureFixture,
    size: int,
) -> None:
    os.truncate(path, size)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        file = path.open("rb")
        wrapper: Any = environ["wsgi.file_wrapper"](file)

        def close() -> None:
            file.close()
            raise RuntimeError("the close has failed")

        wrapper.close = close
        return cast(Iterable[bytes], wrapper)

    client = connect(serve_in_thread(app, threads=1, spare_threads=0))
    for times in (1, 2, 3):
        assert client.get("/failing").body == CONTENT[:size]
        eventually(lambda: caplog.text.count("RuntimeError: the close has failed") == times, "logged")  # noqa: B023
    records = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.getMessage() for record in records] == ["Exception in close() while serving /failing"] * 3


def test_close_runs_in_the_context_of_its_request(
    serve_in_thread: ServeInThread, connect: Connect, path: Path
) -> None:
    number: ContextVar[int] = ContextVar("number")
    seen: list[int | None] = []
    calls = iter(range(10))

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        number.set(next(calls))
        start_response("200 OK", [])
        wrapper: Any = environ["wsgi.file_wrapper"](path.open("rb"))
        close = wrapper.close

        def noted_close() -> None:
            seen.append(number.get(None))
            close()

        wrapper.close = noted_close
        return cast(Iterable[bytes], wrapper)

    client = connect(serve_in_thread(app))
    for times in (1, 2):
        assert client.get().body == CONTENT
        eventually(lambda: len(seen) == times, "close() was called")  # noqa: B023
    assert seen == [0, 1]


# -- files that change, and disks that fail


@needs_proc
def test_a_file_that_is_truncated_is_visibly_cut(
    serve_in_thread: ServeInThread, app: FileApp, sendfile: SendFile, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve_slowly(serve_in_thread, app)
    before = held()
    with slow_client(server) as client:
        client.send(request("/file") + request("/hello"))
        wait_blocked(sendfile)
        os.truncate(app.path, 3_000_000)
        promised, came = receive_cut(client)
        assert promised == SIZE
        assert came == 3_000_000
    app.wait_closed()
    eventually(lambda: held() == before, "as many sockets and files as before")
    assert_hello(server)
    record = wait_logged(caplog)
    assert record.levelname == "ERROR"
    assert "cut" in record.getMessage()
    server.stop()
    assert len(app.closings) == 1


def test_of_a_file_that_grows_comes_what_was_promised(
    serve_in_thread: ServeInThread, app: FileApp, sendfile: SendFile
) -> None:
    server = serve_slowly(serve_in_thread, app)
    with slow_client(server) as client:
        client.send(request("/file") + request("/hello"))
        wait_blocked(sendfile)
        with app.path.open("ab") as file:
            file.write(bytes(1_000_000))
        assert client.receive().body == CONTENT
        assert client.receive().body == b"Hello, world!"
    app.wait_closed()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS])
@pytest.mark.parametrize("at", [1, 4], ids=["at first", "in the middle"])
def test_a_file_system_without_sendfile(
    serve_in_thread: ServeInThread, app: FileApp, sendfile: SendFile, number: int, at: int
) -> None:
    def refuse(call: int) -> None:
        if call >= at:
            raise OSError(number, os.strerror(number))

    sendfile.before = refuse
    server = serve_slowly(serve_in_thread, app)
    with slow_client(server) as client:
        client.send(request("/file") + request("/hello"))
        eventually(lambda: len(sendfile.threads) >= min(at, 2), "it was tried")
        assert_hello(server, 5)
        assert not app.closings
        assert client.receive().body == CONTENT
        assert client.receive().body == b"Hello, world!"
        assert (sendfile.sent > 0) is (at > 1)
        app.wait_closed()
        eventually(lambda: memory_used(server) == 0, "no memory is counted")


@needs_proc
@pytest.mark.parametrize("leave", [Client.reset, lambda client: client.sock.close()], ids=["reset", "close"])
def test_a_client_goes_while_its_file_is_copied(
    serve_in_thread: ServeInThread, app: FileApp, sendfile: SendFile, leave: Callable[[Client], None]
) -> None:
    def refuse(_call: int) -> None:
        raise OSError(errno.EINVAL, "no")

    sendfile.before = refuse
    server = serve_slowly(serve_in_thread, app)
    before = held()
    with slow_client(server) as client:
        client.send(request("/file"))
        assert client.sock.recv(1)
        assert_hello(server, 3)
        leave(client)
        app.wait_closed()
    eventually(lambda: held() == before, "as many sockets and files as before")
    eventually(lambda: memory_used(server) == 0, "no memory is counted")
    server.stop()
    assert len(app.closings) == 1


def test_a_file_that_is_copied_and_truncated_is_visibly_cut(
    serve_in_thread: ServeInThread, app: FileApp, sendfile: SendFile, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_call: int) -> None:
        raise OSError(errno.EINVAL, "no")

    sendfile.before = refuse
    server = serve_slowly(serve_in_thread, app)
    with slow_client(server) as client:
        client.send(request("/file"))
        assert client.sock.recv(1, socket.MSG_PEEK)
        os.truncate(app.path, 3_000_000)
        assert receive_cut(client) == (SIZE, 3_000_000)
    app.wait_closed()
    record = wait_logged(caplog)
    assert record.levelname == "ERROR"


@needs_proc
@pytest.mark.parametrize("at", [1, 3])
def test_a_disk_that_fails_cuts_the_answer(
    serve_in_thread: ServeInThread,
    app: FileApp,
    sendfile: SendFile,
    caplog: pytest.LogCaptureFixture,
    at: int,
) -> None:
    def fail(call: int) -> None:
        if call >= at:
            raise OSError(errno.EIO, "the disk is broken")

    sendfile.before = fail
    server = serve_slowly(serve_in_thread, app)
    before = held()
    with slow_client(server) as client:
        client.send(request("/file"))
        promised, came = receive_cut(client)
        assert promised == SIZE
        assert came < SIZE
    app.wait_closed()
    eventually(lambda: held() == before, "as many sockets and files as before")
    record = wait_logged(caplog)
    assert "the disk is broken" in record.getMessage()
    assert_hello(server)


@needs_proc
def test_the_loop_does_not_wait_for_a_disk_that_hangs(
    serve_in_thread: ServeInThread, app: FileApp, sendfile: SendFile
) -> None:
    gate, hanging = threading.Event(), threading.Event()

    def hang(_call: int) -> None:
        hanging.set()
        assert gate.wait(DEADLINE)

    sendfile.before = hang
    server = serve_slowly(serve_in_thread, app)
    before = held()
    try:
        with slow_client(server) as stays, slow_client(server) as leaves:
            stays.send(request("/file"))
            leaves.send(request("/file"))
            eventually(lambda: len(sendfile.threads) == 2, "both wait for the disk")
            assert hanging.is_set()
            assert_hello(server, 20)
            leaves.reset()
            # Of one connection there are both ends and what the disk's thread uses, of the other only that.
            eventually(lambda: held() == before + 3 + 1, "the connection is gone")
            eventually(lambda: memory_used(server) == 0, "no memory is counted")
            assert_hello(server)
            assert not app.closings
            gate.set()
            app.wait_closed(1)
            assert stays.receive().body == CONTENT
            app.wait_closed(2)
    finally:
        gate.set()
    eventually(lambda: held() == before, "as many sockets and files as before")
    server.stop()
    assert not is_open(app.path)
    assert len(app.closings) == 2


@needs_proc
def test_a_stop_while_a_disk_hangs(
    serve_in_thread: ServeInThread, app: FileApp, sendfile: SendFile, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread is named, and when the disk goes on, nothing stays: the loop has ended by then."""
    gate = threading.Event()
    sendfile.before = lambda _call: gate.wait(DEADLINE)
    threads = server_threads()
    server = serve_slowly(serve_in_thread, app)
    try:
        with Client(server.address) as client:
            client.send(request("/file"))
            eventually(lambda: sendfile.threads, "it waits for the disk")
            server.server.request_stop(0.1)
            server.thread.join(DEADLINE)
            assert not server.thread.is_alive()
            (record,) = [record for record in caplog.records if "still running" in record.getMessage()]
            assert sendfile.threads[0] in record.getMessage()
    finally:
        gate.set()
    try:
        eventually(lambda: not is_open(app.path), "the file is closed", 3)
        eventually(lambda: server_threads() == threads, "the threads end with the wait", 3)
    finally:  # if it fails, let the other tests not see a thread of this one
        server.server._runtime.pool._queue.put(None)
    app.wait_closed()


def test_a_client_that_takes_nothing_is_cut(serve_in_thread: ServeInThread, app: FileApp) -> None:
    server = serve_slowly(serve_in_thread, app, response_min_rate=1_000, min_rate_grace=0.1)
    with slow_client(server) as client:
        client.send(request("/file"))
        closing = app.wait_closed()
        assert 0 < closing.sent < ON_THE_WAY
        promised, came = receive_cut(client)
        assert came < promised


# -- many


@needs_proc
@pytest.mark.parametrize("has_sendfile", [True, False], ids=["sendfile", "copied"])
def test_many_clients_with_random_speeds_and_resets(
    serve_in_thread: ServeInThread, app: FileApp, sendfile: SendFile, has_sendfile: bool
) -> None:
    size = 1_500_000
    os.truncate(app.path, size)
    if not has_sendfile:

        def refuse(_call: int) -> None:
            raise OSError(errno.EINVAL, "no")

        sendfile.before = refuse
    server = serve_slowly(serve_in_thread, app, threads=2)
    before = held()
    whole: list[int] = []

    def visit(chance: random.Random) -> None:
        with Client(server.address, receive_buffer=chance.choice([16_384, 65_536, 262_144])) as client:
            if chance.random() < 0.1:
                client.send(request("/file")[: chance.randrange(20)])
                client.reset()
                return
            client.send(request("/file") * chance.choice([1, 1, 2]))
            step = chance.choice([1_000, 10_000, 100_000])
            end = chance.choice([0, 1, chance.randrange(size), size, size])
            read = 0
            digest = b""
            while read < end:
                data = client.sock.recv(step)
                assert data
                read += len(data)
                if len(digest) < size + 1_000:
                    digest += data
            if end == size:
                while len(digest.partition(b"\r\n\r\n")[2]) < size:
                    digest += client.sock.recv(step)
                assert digest.partition(b"\r\n\r\n")[2][:size] == CONTENT[:size]
                whole.append(1)
            if chance.random() < 0.6:
                client.reset()

    visit_at_random(visit, clients=8, visits=6)
    assert len(whole) > 10
    eventually(lambda: held() == before, "as many sockets and files as before")
    eventually(lambda: len(app.closings) == app.opened, "each file was closed")
    assert temporary_files() == 0
    eventually(lambda: not is_open(app.path), "each is closed")
    eventually(lambda: memory_used(server) == 0, "no memory is counted")
    assert_hello(server)
    server.stop()
    app.wait_closed(app.opened)


# -- what cannot be sent by the system


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("a certificate is made by openssl")
    folder = tmp_path_factory.mktemp("certificate")
    made, key = folder / "certificate.pem", folder / "key.pem"
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    subprocess.run([openssl, *command.split(), "-keyout", key, "-out", made], check=True, capture_output=True)
    return made, key


class Sending(asyncio.Protocol):
    """Sends a region of a file over its transport, and closes."""

    def __init__(self, path: Path, offset: int, size: int, transient: bool) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        self.file = SharedFile(descriptor, lambda: os.close(descriptor))
        self.region = FileRegion(self.file, offset, size, transient)
        self.memory = BufferMemory(1_000_000_000)
        self.progress: list[int] = []
        self.pauses = 0
        self.resumed: asyncio.Future[None] | None = None
        self.ended = asyncio.Event()
        self.done: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.done = asyncio.get_running_loop().create_task(self.send(cast(asyncio.Transport, transport)))

    async def send(self, transport: asyncio.Transport) -> None:
        sender = FileSender(transport, Spool(), self.memory, lambda: self.resumed, self.progress.append)
        transport.write(b"before, ")
        try:
            await sender.send(self.region)
            transport.write(b", after")
        finally:
            transport.close()

    def pause_writing(self) -> None:
        self.pauses += 1
        self.resumed = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        assert self.resumed is not None
        self.resumed.set_result(None)
        self.resumed = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.file.close()
        self.ended.set()


@pytest.mark.parametrize("how", ["tls", "transient"])
@on_each_loop
async def test_what_the_system_cannot_send_is_copied(
    path: Path, certificate: tuple[Path, Path], sendfile: SendFile, how: str
) -> None:
    offset, size = 1_000, 3_000_000
    server_context = client_context = None
    if how == "tls":
        server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_context.load_cert_chain(*certificate)
        client_context = ssl.create_default_context(cafile=str(certificate[0]))
        client_context.check_hostname = False
    protocol = Sending(path, offset, size, transient=how == "transient")
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: protocol, sock=small_listener(), ssl=server_context)
    address = server.sockets[0].getsockname()
    received = bytearray()

    def receive() -> None:
        with contextlib.ExitStack() as stack:
            sock: socket.socket = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            sock.settimeout(DEADLINE)
            sock.connect(address)
            if client_context is not None:
                sock = stack.enter_context(client_context.wrap_socket(sock))
            eventually(lambda: protocol.pauses, "the transport has enough")
            while data := sock.recv(65_536):
                received.extend(data)

    await in_thread(receive)
    assert protocol.done is not None
    await asyncio.wait_for(protocol.done, DEADLINE)
    await asyncio.wait_for(protocol.ended.wait(), DEADLINE)
    server.close()
    await server.wait_closed()
    assert bytes(received) == b"before, " + CONTENT[offset : offset + size] + b", after"
    assert sum(protocol.progress) == size
    assert protocol.memory.used == 0
    assert not sendfile.threads
