"""The disk: bounded, full, slow, and never waited for by the loop."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import RunningServer, ServeInThread
from tests.server.support import (
    Client,
    eventually,
    held,
    in_thread,
    local_server,
    needs_proc,
    on_each_loop,
    request,
    settled,
    small_listener,
    temporary_files,
)
from waitress_async.buffers import spool as spool_module

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

Connect = Callable[[RunningServer], Client]

pytestmark = needs_proc

OVERFLOW = 100_000
MIB = 1 << 20


def count(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """Answers how many bytes the body has."""
    start_response("200 OK", [])
    size = 0
    while data := environ["wsgi.input"].read(65_536):
        size += len(data)
    return [b"%d" % size]


class Endless:
    """Chunks without an end, on `/stream`; says how it ended. Else, `count`."""

    def __init__(self) -> None:
        self.written = 0
        self.closed = threading.Event()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/stream":
            return count(environ, start_response)
        start_response("200 OK", [])
        return self

    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield bytes(50_000)
            self.written += 50_000

    def close(self) -> None:
        self.closed.set()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Use up all the space."""
    path = folder / "fill"
    with path.open("wb", buffering=0) as file:
        for size in (65_536, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                pass
    return path


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def upload(client: Client, size: int, path: str = "/") -> bytes:
    client.send(request(path, method="POST", body=bytes(size)))
    response = client.receive()
    return b"%d" % response.status if response.status != 200 else response.body


# -- a full disk


def test_a_full_disk_is_a_507_and_uploads_come_back_with_the_space(
    serve_in_thread: ServeInThread, connect: Connect, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve_in_thread(count, inbuf_overflow=OVERFLOW, tmp_dir=str(small_disk), spool_min_free=0)
    before = held()
    under_way = connect(server)
    under_way.send(request("/", f"Content-Length: {MIB}\r\n", method="POST") + bytes(MIB // 2))
    eventually(lambda: temporary_files() == 1, "the first body is on disk")
    settled(lambda: server.server._runtime.spool.used)
    full = fill(small_disk)
    for chunked in (False, True):
        client = connect(server)
        if chunked:
            client.send(request("/", "Transfer-Encoding: chunked\r\n", method="POST"))
            client.send(b"%x\r\n%b\r\n0\r\n\r\n" % (2 * MIB, bytes(2 * MIB)))
            response = client.receive()
        else:
            client.send(request("/", method="POST", body=bytes(2 * MIB)))
            response = client.receive()
        assert response.status == 507
        assert response.closes
        client.sock.close()
    small = connect(server)
    assert upload(small, 50_000) == b"50000"  # needs no disk
    os.truncate(full, 0)
    under_way.send(bytes(MIB // 2))
    assert under_way.receive().body == b"%d" % MIB  # was there before, and is unharmed
    assert upload(small, 2 * MIB) == b"%d" % (2 * MIB)
    under_way.sock.close()
    small.sock.close()
    eventually(lambda: held() == before, "as many sockets and files as before")
    eventually(lambda: server.server._runtime.spool.used == 0, "no file is counted")
    assert errors(caplog) == ["A request body could not be stored: [Errno 28] No space left on device"] * 2


def test_a_full_disk_cuts_a_response_that_needs_it(
    serve_in_thread: ServeInThread, connect: Connect, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = Endless()
    server = serve_in_thread(
        app,
        outbuf_overflow=OVERFLOW,
        tmp_dir=str(small_disk),
        spool_min_free=0,
        sockets=[small_listener()],
    )
    before = held()
    with Client(server.address, receive_buffer=65_536) as slow:
        slow.send(request("/stream"))
        assert app.closed.wait(20)
        received = slow.rest()
        assert received
        assert not received.endswith(b"0\r\n\r\n")
    with connect(server) as other:
        assert upload(other, 50_000) == b"50000"
    eventually(lambda: held() == before, "as many sockets and files as before")
    eventually(lambda: server.server._runtime.memory.used == 0, "no memory counted")
    eventually(lambda: server.server._runtime.spool.used == 0, "no file is counted")
    told = errors(caplog)
    assert len(told) == 1
    assert "/stream" in told[0]
    assert "No space left on device" in told[0]


# -- bounds


def test_a_length_that_does_not_fit_is_refused_before_it_is_read(
    serve_in_thread: ServeInThread, connect: Connect
) -> None:
    server = serve_in_thread(count, inbuf_overflow=OVERFLOW, spool_limit=MIB)
    client = connect(server)
    client.send(request("/", f"Content-Length: {MIB + 1}\r\nExpect: 100-continue\r\n", method="POST"))
    response = client.receive()
    assert response.status == 507
    assert b"spool_limit" in response.body
    other = connect(server)
    other.send(request("/", f"Content-Length: {MIB}\r\nExpect: 100-continue\r\n", method="POST"))
    assert other.receive().status == 100
    other.send(bytes(MIB))
    assert other.receive().body == b"%d" % MIB


def test_the_limit_is_for_all_bodies_together(serve_in_thread: ServeInThread, connect: Connect) -> None:
    server = serve_in_thread(count, inbuf_overflow=OVERFLOW, spool_limit=2 * MIB)
    first, second = connect(server), connect(server)
    first.send(request("/", f"Content-Length: {2 * MIB}\r\n", method="POST") + bytes(2 * MIB - 100_000))
    spool = server.server._runtime.spool
    eventually(lambda: spool.used > MIB, "most of the first body is on disk")
    assert upload(second, MIB) == b"507"
    first.send(bytes(100_000))
    assert first.receive().body == b"%d" % (2 * MIB)
    eventually(lambda: spool.used == 0, "the first body is gone")
    assert upload(connect(server), MIB) == b"%d" % MIB


def test_space_is_left_for_others(serve_in_thread: ServeInThread, connect: Connect, small_disk: Path) -> None:
    server = serve_in_thread(count, inbuf_overflow=OVERFLOW, tmp_dir=str(small_disk), spool_min_free=2 * MIB)
    client = connect(server)
    client.send(request("/", method="POST", body=bytes(3 * MIB)))
    response = client.receive()
    assert response.status == 507
    assert b"spool_min_free" in response.body
    assert upload(connect(server), MIB) == b"%d" % MIB


def test_where_the_disk_has_no_room_a_response_waits_in_memory(
    serve_in_thread: ServeInThread, connect: Connect
) -> None:
    body = os.urandom(3_000_000)

    def app(_environ: object, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", str(len(body)))])
        for start in range(0, len(body), 40_000):
            yield body[start : start + 40_000]

    server = serve_in_thread(app, outbuf_overflow=OVERFLOW, spool_limit=200_000, sockets=[small_listener()])
    with Client(server.address, receive_buffer=65_536) as client:
        client.send(request())
        assert client.receive().body == body
    eventually(lambda: server.server._runtime.spool.used == 0, "no file is counted")


def test_a_chunked_body_over_its_limit_is_refused_midway(
    serve_in_thread: ServeInThread, connect: Connect
) -> None:
    called: list[object] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        called.append(environ["PATH_INFO"])
        return count(environ, start_response)

    server = serve_in_thread(app, inbuf_overflow=OVERFLOW, max_request_body_size=MIB)
    client = connect(server)
    client.send(request("/", "Transfer-Encoding: chunked\r\n", method="POST"))
    for _ in range(2):
        client.send(b"%x\r\n%b\r\n" % (500_000, bytes(500_000)))
    eventually(lambda: temporary_files() == 1, "the body is on disk")
    client.send(b"%x\r\n%b\r\n" % (500_000, bytes(500_000)))
    response = client.receive()
    assert response.status == 413
    assert b"max_request_body_size" in response.body
    eventually(lambda: temporary_files() == 0, "the file is freed")
    assert called == []


@pytest.mark.parametrize("leave", [Client.reset, Client.half_close], ids=["reset", "half-close"])
def test_a_truncated_body_reaches_no_app(
    serve_in_thread: ServeInThread, connect: Connect, leave: Callable[[Client], None]
) -> None:
    called: list[object] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        called.append(environ["PATH_INFO"])
        return count(environ, start_response)

    server = serve_in_thread(app, inbuf_overflow=OVERFLOW)
    before = held()
    client = connect(server)
    client.send(request("/", f"Content-Length: {MIB}\r\n", method="POST") + bytes(MIB - 1))
    eventually(lambda: temporary_files() == 1, "the body is on disk")
    leave(client)
    if leave is Client.half_close:
        assert client.receive().status == 400
        client.sock.close()
    eventually(lambda: held() == before, "as many sockets and files as before")
    eventually(lambda: server.server._runtime.memory.used == 0, "no memory is counted")
    eventually(lambda: server.server._runtime.spool.used == 0, "no file is counted")
    assert called == []


@on_each_loop
async def test_a_folder_that_is_not_there_is_named_at_the_start(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    server = local_server(count, tmp_dir=str(missing))
    with pytest.raises(OSError, match="missing"):
        await server.start()


# -- the loop


class Threads:
    """Notes the threads of what waits for the disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: set[str] = set()
        self.calls: set[str] = set()
        for name in ("open", "pwrite", "pread", "fstatvfs", "unlink"):
            self._watch(monkeypatch, os, name)
        self._watch(monkeypatch, spool_module, "_open_unnamed")
        self._watch(monkeypatch, spool_module.SpoolFile, "_close_file")

    def _watch(self, monkeypatch: pytest.MonkeyPatch, where: object, name: str) -> None:
        original = getattr(where, name)

        def watched(*args: object, **options: object) -> object:
            self.calls.add(name)
            self.names.add(threading.current_thread().name)
            return original(*args, **options)

        monkeypatch.setattr(where, name, watched)


def test_the_loop_waits_for_no_disk(
    serve_in_thread: ServeInThread, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = Endless()
    server = serve_in_thread(
        app, inbuf_overflow=OVERFLOW, outbuf_overflow=OVERFLOW, sockets=[small_listener()]
    )
    before = held()
    threads = Threads(monkeypatch)
    with connect(server) as client:
        assert upload(client, 2 * MIB) == b"%d" % (2 * MIB)
    with connect(server) as half:
        half.send(request("/", f"Content-Length: {2 * MIB}\r\n", method="POST") + bytes(MIB))
        eventually(lambda: temporary_files() == 1, "the body is on disk")
        half.reset()
    with Client(server.address, receive_buffer=65_536) as slow:
        slow.send(request("/stream"))
        for _ in range(50):
            assert slow.sock.recv(65_536)
        slow.reset()
    assert app.closed.wait(20)
    eventually(lambda: held() == before, "as many sockets and files as before")
    monkeypatch.undo()
    assert threads.calls >= {"pwrite", "pread", "fstatvfs", "_open_unnamed", "_close_file"}
    assert threads.names
    assert all(name.startswith("waitress_async-") for name in threads.names)


@on_each_loop
async def test_a_slow_disk_does_not_hold_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write takes 50 ms here; a heartbeat on the loop must not feel it."""
    write = os.pwrite
    slow_writes = 0

    def slow(descriptor: int, data: bytes, offset: int) -> int:
        nonlocal slow_writes
        slow_writes += 1
        time.sleep(0.05)
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", slow)
    gaps: list[float] = []

    async def beat() -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.001)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    async with local_server(count, inbuf_overflow=OVERFLOW) as server:
        address = "127.0.0.1", server.port

        def run() -> None:
            with Client(address) as client:
                assert upload(client, 8 * MIB) == b"%d" % (8 * MIB)

        heart = asyncio.create_task(beat())
        await in_thread(run)
        heart.cancel()
        await asyncio.wait([heart])
    assert slow_writes >= 10
    assert sorted(gaps)[len(gaps) * 99 // 100] < 0.04  # on the loop, nearly every gap would be 50 ms
