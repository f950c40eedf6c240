"""A server that is started and stopped again and again in one process: what is left of it is nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.server.support import (
    DEADLINE,
    bounded,
    eventually_async,
    local_server,
    needs_proc,
    on_each_loop,
    request,
    server_threads,
    temporary_files,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

pytestmark = needs_proc

STOPS = 50
AT_ONCE = 10
UPLOAD = bytes(20_000)


class App:
    """`/held` and `/stuck` wait for their gates; `/stream` never ends by itself; `/upload` is read whole."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.freed = threading.Event()
        self.closed = threading.Event()  # the stream
        self._entered: list[str] = []

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        self._entered.append(path)
        start_response("200 OK", [])
        if path == "/stream":
            return self._stream()
        if path == "/held":
            assert self.released.wait(DEADLINE)
        elif path == "/stuck":
            environ["waitress_async.on_disconnect"](lambda: None)  # in a thread of ours, which is not stuck
            assert self.freed.wait(DEADLINE)
        return [path.encode("latin-1"), environ["wsgi.input"].read()]

    def _stream(self) -> Iterator[bytes]:
        try:
            while True:
                yield bytes(20_000)
        finally:
            self.closed.set()

    def has_entered(self, *paths: str) -> bool:
        return set(paths) <= set(self._entered)


@dataclass(frozen=True)
class Held:
    """What this process has that a server may have had made."""

    threads: list[str]
    tasks: set[asyncio.Task[object]]
    descriptors: dict[str, str]  # by number: what it is
    named_files: list[str]

    @classmethod
    def now(cls, folder: Path) -> Held:
        return cls(
            sorted(thread.name for thread in threading.enumerate()),
            asyncio.all_tasks(),
            descriptors(),
            sorted(os.listdir(folder)),
        )


def descriptors() -> dict[str, str]:
    found = {}
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that listed them
            found[number] = os.readlink(f"/proc/self/fd/{number}")
    return found


async def said(port: int, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which this has been sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    return reader, writer


async def ended(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """All that comes until the end or a reset."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            received += data
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return received


async def start_and_stop(folder: Path, *, stuck: bool) -> None:
    """One life, with clients in every state at its end. With a thread that is stuck it ends by a cut."""
    app = App()
    server = local_server(
        app,
        threads=4,
        graceful_timeout=DEADLINE,
        tmp_dir=folder,
        inbuf_overflow=1_000,
        outbuf_overflow=1_000,
        outbuf_high_watermark=65_536,
    )
    await server.start()
    upload = request("/upload", method="POST", body=UPLOAD)
    clients = {
        "idle": await said(server.port, request("/idle")),
        "silent": await said(server.port, b""),
        "held": await said(server.port, request("/held")),
        "uploads": await said(server.port, upload[:-5_000]),
        "streams": await said(server.port, request("/stream")),
    }
    if stuck:
        clients["stuck"] = await said(server.port, request("/stuck"))
    await eventually_async(lambda: app.has_entered("/idle", "/held", "/stream"), "all are under way")
    await eventually_async(temporary_files, "the upload is on disk")
    await clients["idle"][0].readuntil(b"/idle")
    if stuck:
        await eventually_async(lambda: app.has_entered("/stuck"), "the thread is stuck")
    readers = {
        name: asyncio.create_task(ended(*client)) for name, client in clients.items() if name != "streams"
    }
    stopping = asyncio.create_task(server.stop())
    assert await readers["idle"] == b""
    assert await readers["silent"] == b""
    clients["uploads"][1].write(upload[-5_000:])
    app.released.set()
    for name, answer in (("held", b"/held"), ("uploads", b"/upload" + UPLOAD)):
        answered = await readers[name]
        assert answered.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answered.endswith(answer)
        assert b"\r\nConnection: close\r\n" in answered
    await server.stop(0)  # what is left would not end: the stream
    await stopping
    if stuck:
        assert await readers["stuck"] == b""
        assert "waitress_async-" in " ".join(server_threads())
        app.freed.set()
    assert app.closed.is_set()
    await ended(*clients["streams"])


@on_each_loop
async def test_fifty_stops_leave_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ten servers at a time. What a loop or the interpreter makes once is there after the first."""
    ticks: list[int] = []
    ticker = asyncio.create_task(tick(ticks))
    await bounded(start_and_stop(tmp_path, stuck=False))
    assert server_threads() == []  # at once
    before = Held.now(tmp_path)
    for number in range(STOPS // AT_ONCE):
        lives = (start_and_stop(tmp_path, stuck=stuck) for stuck in [True] + [False] * (AT_ONCE - 1))
        await bounded(asyncio.gather(*lives))
        await eventually_async(lambda: not server_threads(), "the stuck thread, which is free now, has ended")
        assert Held.now(tmp_path) == before, f"after {AT_ONCE * (number + 1)} stops"
        ticks.clear()
        await eventually_async(lambda: ticks, "the loop lives on")
    ticker.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await ticker
    named = [text for text in caplog.messages if "still running" in text]
    assert len(named) == STOPS // AT_ONCE  # one thread of each server that had one, and nothing else
    assert all(text.startswith("1 thread(s) still running: waitress_async-") for text in named)


async def tick(ticks: list[int]) -> None:
    """The program's own task."""
    while True:
        ticks.append(1)
        await asyncio.sleep(0.001)
