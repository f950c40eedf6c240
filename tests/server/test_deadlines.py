"""Deadlines: each cuts whom it should, and nobody else.

All clients of a test share its time: who must be cut is read from, who must not be is used afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tests.bridge.support import no_async_bodies
from tests.conftest import RunningServer, ServeInThread
from tests.server.peers import Peer, proxy_v1, unix_place
from tests.server.support import (
    DEADLINE,
    Client,
    GatedApp,
    Response,
    eventually,
    hello,
    needs_proc,
    request,
    settled,
    small_listener,
    temporary_files,
)
from waitress_async.bridge import Output, OutputStore, Wakeup
from waitress_async.buffers import BufferMemory, BufferReader, Spool, spool
from waitress_async.errors import ClientDisconnected
from waitress_async.http import Connection, HeadEncoder, HeadMemo, Limits, Request
from waitress_async.server.exchange import Exchange
from waitress_async.server.peer_state import acknowledged, has_ended, is_gone, reset
from waitress_async.server.protocol import HTTPProtocol
from waitress_async.server.runtime import Application
from waitress_async.wsgi import Environs

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

# Each test turns on what it is about. The sweep comes four times in the shortest of them.
OFF: dict[str, object] = {
    "header_timeout": 0,
    "body_min_rate": 0,
    "response_min_rate": 0,
    "channel_timeout": 0,
    "queue_timeout": 0,
}

GRACE = 0.1  # seconds
DRIP = 0.02  # seconds between what a slow client sends, or takes


class Cuts:
    """What was said of clients that were cut."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "waitress_async")
        self._caplog = caplog

    def lines(self, setting: str) -> list[str]:
        """Those of one setting, in order, without its name."""
        start = f"{setting}: "
        messages = [record.getMessage() for record in list(self._caplog.records)]
        return [message[len(start) :] for message in messages if message.startswith(start)]

    def take(self, setting: str, *clients: Client) -> list[str]:
        """Wait for a line for each of these, and assert that there is no other. How far each one got."""
        eventually(lambda: len(self.lines(setting)) >= len(clients), f"{len(clients)} lines for {setting}")
        lines = self.lines(setting)
        told = dict(line.split(": ", 1) for line in lines)
        assert len(told) == len(lines) == len(clients), lines
        return [told[name_of(client)] for client in clients]


@pytest.fixture
def cuts(caplog: pytest.LogCaptureFixture) -> Cuts:
    return Cuts(caplog)


def name_of(client: Client) -> str:
    host, port = client.sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@dataclass
class Connect:
    """Makes clients of a server, which are closed in the end."""

    server: RunningServer
    stack: ExitStack

    def __call__(self, sent: bytes = b"", **buffers: int) -> Client:
        client = self.stack.enter_context(Client(self.server.address, **buffers))
        client.send(sent)
        return client


class Drip(Protocol):
    def __call__(self, client: Client, data: bytes, size: int = 1) -> None: ...


@pytest.fixture
def dripping() -> Iterator[Drip]:
    """`dripping(client, data, size)` has `data` sent again and again, so many bytes of it at a time."""
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def start(client: Client, data: bytes, size: int = 1) -> None:
        pieces = itertools.cycle(data[at : at + size] for at in range(0, len(data), size))

        def run() -> None:
            with contextlib.suppress(OSError):  # it is cut
                while not stop.wait(DRIP):
                    client.send(next(pieces))

        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()

    yield start
    stop.set()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()


def assert_late(client: Client, setting: str) -> None:
    """The next answer is 408, which says why, and is the last."""
    response = client.receive()
    assert (response.status, response.reason) == (408, "Request Timeout")
    assert setting.encode() in response.body
    assert response.closes
    client.assert_ended()


def read_to_any_end(client: Client) -> int:
    """How many bytes came, to the end or to a reset."""
    came = 0
    with contextlib.suppress(ConnectionResetError):
        while data := client.sock.recv(65_536):
            came += len(data)
    return came


class Clock:
    """Another server, whose clock is its own, and which closes idle connections after so many seconds."""

    def __init__(self, serve_in_thread: ServeInThread, seconds: float) -> None:
        self._server = serve_in_thread(hello, **{**OFF, "channel_timeout": seconds})

    def wait(self) -> None:
        """Wait for that long."""
        with Client(self._server.address) as client:
            assert client.get().status == 200
            client.assert_ended()


def sweep(server: RunningServer, *seconds: float) -> None:
    """Have so much time pass for all connections, as sweeps count it: in one for each of `seconds`."""
    connections = server.server._runtime.connections
    done = threading.Event()

    def run() -> None:
        for elapsed in seconds:
            connections.clock += elapsed
            for protocol in list(connections._protocols):
                protocol.sweep(connections.clock, elapsed)
        done.set()

    server.loop.call_soon_threadsafe(run)
    assert done.wait(DEADLINE)


def let_pass(server: RunningServer, seconds: float) -> None:
    """The same, in one; and what comes after it, comes after it by the server's clock too."""
    sweep(server, seconds)
    connections = server.server._runtime.connections
    eventually(lambda: connections.stamp > connections.clock, "the server has swept by itself")


def eventually_some(found: Callable[[], Iterable[Any]]) -> list[Any]:
    """Wait until there are any, and return them."""
    eventually(lambda: list(found()), "there are some")
    return list(found())


def open_connections(server: RunningServer) -> int:
    return len(server.server._runtime.connections)


# -- heads


def test_a_head_has_its_time_and_so_has_the_pause_before_it(
    serve_in_thread: ServeInThread,
    gated: GatedApp,
    clients: ExitStack,
    dripping: Drip,
    cuts: Cuts,
) -> None:
    server = serve_in_thread(
        gated, **{**OFF, "header_timeout": 0.25, "channel_timeout": 0.35}, threads=3, spare_threads=0
    )
    connect = Connect(server, clients)
    gated.let_go(3)
    silent, blank = connect(), connect(b"\r\n")
    idle, second, pipelined = connect(request("/idle")), connect(request("/2")), connect(request("/3"))
    for client in (idle, second, pipelined):
        assert client.receive().status == 200
    running = connect(request("/running") + b"GET /half HTTP/1.1\r\n")
    gated.wait_entered(4)
    half = connect(b"GET / HT")
    second.send(b"GET /later HTTP/1.1\r\nHost: localhost\r\n")
    pipelined.send(request("/4") + b"GET /5 HTTP/1.1\r\nHo")
    gated.let_go()  # whichever of the two that run it is, the other one waits
    by_bytes, by_lines = connect(), connect(b"GET / HTTP/1.1\r\n")
    dripping(by_bytes, b"GET /" + b"long" * 1_000)
    dripping(by_lines, b"X: y\r\n")
    for client in (half, second, by_bytes, by_lines):
        assert_late(client, "header_timeout")
    for client in (silent, blank, idle):
        client.assert_ended()
    assert cuts.lines("channel_timeout") == []  # as it should be, every day
    # One that comes only now is cut as well: those who are answered are well over their time.
    fresh = connect()
    fresh.assert_ended()
    gated.let_go(10)
    for client, path in ((pipelined, b"/4"), (running, b"/running")):
        assert client.receive().body == path
        assert_late(client, "header_timeout")  # of what came behind, since its turn
    late = [silent, blank, half, second, by_bytes, by_lines, pipelined, running, fresh]
    told = cuts.take("header_timeout", *late)
    assert told[:3] == ["nothing came", "nothing came", "8 bytes of a request head came"]


def test_a_head_in_time_is_served(serve_in_thread: ServeInThread, clients: ExitStack, dripping: Drip) -> None:
    """Each has its own time, however many came before it on the connection."""
    server = serve_in_thread(hello, **{**OFF, "header_timeout": 0.5})
    client = Connect(server, clients)()
    dripping(client, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 4)  # a fifth of a second for each
    for _ in range(4):
        assert client.receive().status == 200


def test_a_request_that_waits_for_its_turn_is_not_late(
    serve_in_thread: ServeInThread, clients: ExitStack, cuts: Cuts
) -> None:
    """It is complete; but the client still takes the answer before it, and no other is begun meanwhile."""
    size = 250_000  # the transport takes it whole, and the system does not

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        return [bytes(size)]

    server = serve_in_thread(
        app, **{**OFF, "header_timeout": 0.2, "channel_timeout": 0.2}, sockets=[small_listener()]
    )
    connect = Connect(server, clients)
    client = connect(request("/1") + request("/2"), receive_buffer=4_096)
    quiet = connect(request("/1"), receive_buffer=4_096)
    assert client.sock.recv(1) == quiet.sock.recv(1) == b"H"
    Clock(serve_in_thread, 0.6).wait()
    client._buffer = quiet._buffer = b"H"
    for _ in range(2):
        assert len(client.receive().body) == size
    # Its pause begins when it has the answer, and not when that is on its way.
    assert len(quiet.receive().body) == size
    assert len(quiet.get("/2").body) == size
    assert cuts.lines("header_timeout") == []


# -- bodies

BODY = {**OFF, "body_min_rate": 2_000, "min_rate_grace": GRACE}


def post(path: str = "/", length: int | None = 1_000_000) -> bytes:
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return request(path, f"{framing}\r\n", method="POST")


class Uploads:
    """Answers how many bytes came, and notes what reading raised. `/unread` is not read before `go_on`."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.errors: dict[str, BaseException] = {}
        self.go_on = threading.Event()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path: str = environ["PATH_INFO"]
        self.entered.append(path)
        if path.endswith("/unread"):
            assert self.go_on.wait(DEADLINE)
        if path.endswith("/begun"):
            start_response("200 OK", [])(b"begun")
        try:
            size = len(environ["wsgi.input"].read())
        except BaseException as error:
            self.errors[path] = error
            raise
        if not path.endswith("/begun"):
            start_response("200 OK", [])
        return [b"%d" % size]


@pytest.fixture
def uploads() -> Iterator[Uploads]:
    app = Uploads()
    yield app
    app.go_on.set()


def test_a_body_must_come_at_its_rate(
    serve_in_thread: ServeInThread,
    uploads: Uploads,
    clients: ExitStack,
    dripping: Drip,
    cuts: Cuts,
) -> None:
    server = serve_in_thread(uploads, **BODY, max_request_body_size=10_000_000)
    connect = Connect(server, clients)
    stalled = connect(post(length=8_000_000) + bytes(4_000_000))
    nothing, slow, chunked, second = connect(post()), connect(post()), connect(post(length=None)), connect()
    assert second.get().body == b"0"
    second.send(post() + b"begun")
    dripping(slow, b"x")
    dripping(chunked, b"1\r\nx\r\n")
    # Ten times as fast as it must be.
    stop = threading.Event()
    fast = connect(post(length=None) + b"fa0\r\n%b\r\n" % bytes(4_000))

    def send_fast_enough() -> None:
        while not stop.wait(DRIP):
            fast.send(b"190\r\n%b\r\n" % bytes(400))
        fast.send(b"0\r\n\r\n")

    sender = threading.Thread(target=send_fast_enough)
    sender.start()
    try:
        for client in (nothing, slow, chunked, second, stalled):
            assert_late(client, "body_min_rate")
    finally:
        stop.set()
        sender.join(DEADLINE)
    assert int(fast.receive().body) > 0
    assert fast.get().status == 200
    cuts.take("body_min_rate", nothing, slow, chunked, second, stalled)
    # What it had saved was six graces, though half an hour by its bytes; but the others had one.
    assert cuts.lines("body_min_rate")[-1].startswith(name_of(stalled))
    assert uploads.entered == ["/"] * 3  # none whose body was cut


def test_a_streamed_body_must_come_at_its_rate_while_the_app_waits_for_it(
    serve_in_thread: ServeInThread,
    uploads: Uploads,
    clients: ExitStack,
    dripping: Drip,
    cuts: Cuts,
) -> None:
    server = serve_in_thread(uploads, **BODY, stream_request_prefix="/streamed", threads=4)
    connect = Connect(server, clients)
    unread = connect(post("/streamed/unread", 8))
    slow, begun = connect(post("/streamed/slow")), connect(post("/streamed/begun"))
    dripping(slow, b"x")
    assert_late(slow, "body_min_rate")
    assert b"begun" in begun.rest()  # and not the chunk that would end it
    eventually(lambda: len(uploads.errors) == 2, "the app was told")
    assert {type(error) for error in uploads.errors.values()} == {ClientDisconnected}
    cuts.take("body_min_rate", slow, begun)
    # The app has not even begun to read the body of this one.
    uploads.go_on.set()
    unread.send(bytes(8))
    assert unread.receive().body == b"8"


def test_each_body_has_a_grace_of_its_own(
    serve_in_thread: ServeInThread, gated: GatedApp, clients: ExitStack, cuts: Cuts
) -> None:
    settings = {**OFF, "body_min_rate": 1e9, "min_rate_grace": 1_000.0}
    server = serve_in_thread(gated, **settings)
    client = Connect(server, clients)()
    (protocol,) = eventually_some(lambda: server.server._runtime.connections._protocols)
    received = 0
    for calls in (1, 2, 3):
        sent = post(length=8) + b"some"
        client.send(sent)
        received += len(sent) + 4
        eventually(lambda: protocol._received == received - 4, "it is there")  # noqa: B023
        sweep(server, 0, 900)
        client.send(b"rest")
        gated.wait_entered(calls)
        sweep(server, 900)  # of the app
        gated.let_go()
        assert client.receive().status == 200
    assert cuts.lines("body_min_rate") == []


def test_who_has_its_answer_is_given_no_other(
    serve_in_thread: ServeInThread, clients: ExitStack, cuts: Cuts
) -> None:
    """Of its body a few bytes are still awaited, which nobody wants. They do not come: it is closed."""
    server = serve_in_thread(hello, **BODY, stream_request_body=True)
    client = Connect(server, clients)(post(length=1_000) + b"begun")
    response = client.receive()
    assert response.status == 200
    assert not response.closes
    client.assert_ended()
    cuts.take("body_min_rate", client)


class Gate:
    """Holds functions up while it is shut."""

    def __init__(self) -> None:
        self.reached = threading.Semaphore(0)
        self._open = threading.Event()
        self.open = self._open.set
        self.shut = self._open.clear

    def around(self, function: Callable[..., object]) -> Callable[..., object]:
        def held(*args: object, **options: object) -> object:
            self.reached.release()
            assert self._open.wait(DEADLINE)
            return function(*args, **options)

        return held


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A disk on which, while the gate is shut, no file is opened or written to."""
    gate = Gate()
    gate.open()
    monkeypatch.setattr(os, "pwrite", gate.around(os.pwrite))
    monkeypatch.setattr(spool, "_open_unnamed", gate.around(spool._open_unnamed))
    yield gate
    gate.open()


def test_who_cannot_go_on_because_of_us_is_not_late(
    serve_in_thread: ServeInThread, uploads: Uploads, clients: ExitStack, disk: Gate, cuts: Cuts
) -> None:
    """The disk is slow; the app does not read; a client was not told to go on."""
    server = serve_in_thread(uploads, **BODY, stream_request_prefix="/streamed", inbuf_overflow=100_000)
    connect = Connect(server, clients)
    body = bytes(900_000)
    clock = Clock(serve_in_thread, 6 * GRACE)
    disk.reached = threading.Semaphore(0)  # those have tried it
    disk.shut()
    stored = connect(post(length=None) + b"%x\r\n" % len(body) + body[:600_000])
    assert disk.reached.acquire(timeout=DEADLINE)
    expecting = connect(
        request("/", f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n", method="POST")
    )
    assert disk.reached.acquire(timeout=DEADLINE)
    unread = connect(post("/streamed/unread", 8) + b"some")
    late = connect(post(length=8))  # is waited for
    assert_late(late, "body_min_rate")
    clock.wait()
    cuts.take("body_min_rate", late)
    disk.open()
    uploads.go_on.set()
    for client, rest in ((unread, b"more"), (stored, body[600_000:] + b"\r\n0\r\n\r\n")):
        client.send(rest)
    assert unread.receive().body == b"8"
    assert stored.receive().body == b"900000"
    assert expecting.receive().status == 100
    expecting.send(body)
    assert expecting.receive().body == b"900000"


def test_who_waits_for_memory_is_not_late(
    serve_in_thread: ServeInThread,
    uploads: Uploads,
    clients: ExitStack,
    cuts: Cuts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is none, and no disk either. That is looked for once a second, and given up after a while: not
    more often because sweeps are."""
    retry, retries = BufferReader.retry, []

    def noted(body: BufferReader) -> None:
        retries.append(body)
        retry(body)

    monkeypatch.setattr(BufferReader, "retry", noted)
    server = serve_in_thread(uploads, **BODY, buffer_memory=1_000_000, spool_limit=1)
    connect = Connect(server, clients)
    memory = server.server._runtime.memory
    server.loop.call_soon_threadsafe(memory.add, 1_000_000)  # of bodies that others have sent
    client = connect(post(length=200_000) + bytes(100_000))
    (protocol,) = eventually_some(lambda: server.server._runtime.connections._protocols)
    eventually(lambda: protocol._body_full, "it has to wait")
    Clock(serve_in_thread, 6 * GRACE).wait()
    assert cuts.lines("body_min_rate") == []
    assert len(retries) <= 2
    server.loop.call_soon_threadsafe(memory.add, -1_000_000)
    client.send(bytes(100_000))
    assert client.receive().body == b"200000"


# -- responses

RESPONSE = {
    **OFF,
    "response_min_rate": 2_000,
    "min_rate_grace": GRACE,
    "outbuf_overflow": 100_000,
    "outbuf_high_watermark": 1_000_000,
    "threads": 8,
}

WAYS = ("/memory", "/disk", "/file", "/generated")

SIZE = 3_000_000


class Downloads:
    """Gives three megabytes in one of four ways, or events when it is told to; counts what has ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.ended: list[str] = []
        self._events = threading.Semaphore(0)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path: str = environ["PATH_INFO"]
        size = 900_000 if path == "/disk" else SIZE  # that is below the high watermark: the thread is free
        start_response("200 OK", [("Content-Length", str(size))] if path != "/events" else [])
        if path == "/memory":
            return _Answer([bytes(size)], lambda: self.ended.append(path))
        if path == "/file":
            wrapper: Any = environ["wsgi.file_wrapper"](self._path.open("rb"))
            close = wrapper.close

            def noted_close() -> None:
                close()
                self.ended.append(path)

            wrapper.close = noted_close
            return wrapper  # type: ignore[no-any-return]
        if path == "/events":
            return self._all_events()
        return _Answer((bytes(50_000) for _ in range(size // 50_000)), lambda: self.ended.append(path))

    def _all_events(self) -> Iterator[bytes]:
        yield b"first"
        assert self._events.acquire(timeout=DEADLINE)
        yield b" second"

    def tell_event(self) -> None:
        self._events.release()


class _Answer:
    def __init__(self, chunks: Iterable[bytes], close: Callable[[], object]) -> None:
        self._chunks = iter(chunks)
        self.close = close

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks


@pytest.fixture
def downloads(tmp_path: Path) -> Iterator[Downloads]:
    path = tmp_path / "file"
    path.write_bytes(bytes(SIZE))
    app = Downloads(path)
    yield app
    app.tell_event()


class SlowReader:
    """Takes a little at a time, until it is told to make haste."""

    def __init__(self, client: Client) -> None:
        self.came = b""
        self._client = client
        self._haste = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while not self._haste.wait(DRIP) and (data := self._client.sock.recv(4_096)):
                self.came += data

    def response(self) -> Response:
        """The rest of it, at once."""
        self._haste.set()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        self._client._buffer = self.came
        return self._client.receive()


@needs_proc
def test_a_response_must_be_taken_at_its_rate(
    serve_in_thread: ServeInThread, downloads: Downloads, clients: ExitStack, cuts: Cuts
) -> None:
    """In whatever way it is sent. Who takes a hundred times as much as it must is not cut, however much the
    system holds for it, nor is one that there is nothing to send to."""
    server = serve_in_thread(downloads, **RESPONSE, sockets=[small_listener()])
    connect = Connect(server, clients)
    generous = Connect(serve_in_thread(downloads, **RESPONSE), clients)
    events = connect(request("/events"))
    assert events.sock.recv(1) == b"H"
    quick = [connect(request(way), receive_buffer=65_536) for way in WAYS]
    for client, way in zip(quick, WAYS, strict=True):
        assert len(client.receive().body) == (900_000 if way == "/disk" else SIZE)
    eventually(lambda: len(downloads.ended) == 4, "all of those have ended")
    # Their systems make room in small steps, or a tenth of a second would not do to see that they take any.
    slow = [SlowReader(connect(request(way), receive_buffer=16_384)) for way in WAYS]
    slow += [SlowReader(generous(request(way), receive_buffer=16_384)) for way in ("/memory", "/file")]
    deaf = [connect(request(way), receive_buffer=65_536) for way in WAYS]
    took = cuts.take("response_min_rate", *deaf)
    for client in deaf:
        with pytest.raises(ConnectionResetError):  # and the system holds nothing for it any more
            client.rest()
    assert all(line.startswith("it took ") for line in took)
    eventually(lambda: len(downloads.ended) >= 8, "the app was told")
    cuts.take("response_min_rate", *deaf)
    for reader, way in zip(slow, (*WAYS, "/memory", "/file"), strict=True):
        assert len(reader.response().body) == (900_000 if way == "/disk" else SIZE)
    downloads.tell_event()
    events._buffer = b"H"
    assert events.receive().body == b"first second"


@needs_proc
def test_who_stops_taking_a_stream_is_cut(
    serve_in_thread: ServeInThread, clients: ExitStack, cuts: Cuts
) -> None:
    """Though sweeps leave it out while it takes what comes."""
    go_on: list[Callable[[], object]] = []

    async def stream() -> AsyncIterator[bytes]:
        event = asyncio.Event()
        loop = asyncio.get_running_loop()
        go_on.append(lambda: loop.call_soon_threadsafe(event.set))
        yield b"first"
        await event.wait()
        while True:
            yield bytes(100_000)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return stream()  # type: ignore[return-value]

    server = serve_in_thread(app, **RESPONSE, sockets=[small_listener()])
    client = Connect(server, clients)(request("/"), receive_buffer=16_384)
    while b"first" not in client._buffer:
        client._more()
    connections = server.server._runtime.connections
    eventually(lambda: len(connections._left_out) == 1, "it is left out")
    go_on[0]()
    cuts.take("response_min_rate", client)
    eventually(lambda: not len(connections), "it is gone")
    assert not connections._left_out


def test_time_is_saved_by_what_was_taken(
    serve_in_thread: ServeInThread, downloads: Downloads, clients: ExitStack, cuts: Cuts
) -> None:
    """Also before it had to be waited for; but six graces at the most."""
    settings = {**RESPONSE, "response_min_rate": 100, "min_rate_grace": 1_000.0}
    server = serve_in_thread(downloads, **settings, sockets=[small_listener()])
    connect = Connect(server, clients)
    deaf, taking = (connect(request("/memory"), receive_buffer=4_096) for _ in range(2))
    came = 0
    while came < 1_000_000:
        came += len(taking.sock.recv(65_536))
    protocols = list(server.server._runtime.connections._protocols)
    settled(lambda: sum(one._transport.get_write_buffer_size() for one in protocols))  # both wait again
    sweep(server, 0, 1_500)  # some kilobytes are with either's system
    cuts.take("response_min_rate", deaf)
    sweep(server, 4_000)
    cuts.take("response_min_rate", deaf)
    sweep(server, 1_000)
    cuts.take("response_min_rate", deaf, taking)


# -- the queue


def test_a_request_that_no_thread_was_free_for_is_answered_503(
    serve_in_thread: ServeInThread, gated: GatedApp, clients: ExitStack, cuts: Cuts
) -> None:
    """Its connection is kept, and the app is not called for it, whenever a thread is free."""
    server = serve_in_thread(
        gated,
        **{**OFF, "queue_timeout": 0.3},
        threads=1,
        spare_threads=0,
        inbuf_overflow=10_000,
        stream_request_prefix="/streamed",
    )
    connect = Connect(server, clients)
    before = temporary_files()
    first = connect(request("/first"))
    gated.wait_entered()
    plain = connect(request("/plain"))
    pipelined = connect(request("/pipelined/1") + request("/pipelined/2"))
    stored = connect(request("/stored", method="POST", body=bytes(50_000)))
    streamed = connect(request("/streamed", method="POST", body=b"body"))
    half = connect(post("/streamed/half", 8) + b"some")
    expecting = connect(
        request("/streamed/expecting", "Content-Length: 8\r\nExpect: 100-continue\r\n", method="POST")
    )
    late = [plain, pipelined, stored, streamed, half, expecting]
    for client in late:
        response = client.receive()
        assert (response.status, response.headers["retry-after"]) == (503, "1")
        assert b"queue_timeout" in response.body
        assert response.closes is (client is expecting)  # nobody knows whether its body will come
    assert pipelined.receive().status == 503  # the second one had a time of its own
    eventually(lambda: len(cuts.lines("queue_timeout")) > len(late), "a line for each")
    told = cuts.lines("queue_timeout")
    assert len(told) == len(late) + 1
    assert all(any(line.startswith(f"{name_of(client)}: ") for line in told) for client in late)
    half.send(b"rest")
    again = [plain, pipelined, stored, streamed, half]
    for client in again:
        client.send(request("/again"))
    gated.let_go(1 + len(again))
    for client in (first, *again):
        assert client.receive().status == 200
    assert gated.entered == ["/first"] + ["/again"] * len(again)
    if sys.platform == "linux":
        eventually(lambda: temporary_files() == before, "nothing is stored")
    eventually(lambda: server.server._runtime.memory.used == 0, "no memory is counted")


def test_a_request_given_up_in_the_queue_belongs_to_the_loop_again() -> None:
    """With its body, which the thread that comes to it leaves alone: the loop may be closing it just then."""
    loop = asyncio.new_event_loop()
    wakeup = Wakeup(loop)
    bodies = no_async_bodies(loop)
    store = OutputStore(
        1, 1, BufferMemory(1), Spool(), contextlib.nullcontext, lambda task: task, bool, bodies
    )
    application = Application(
        hello, copy_context(), HeadEncoder(), expose_tracebacks=False, tell_bulky=lambda *_: None
    )
    connection = Connection(Limits(), HeadMemo())
    connection.receive_data(request("/", method="POST", body=b"body"))
    asked = connection.next_event()
    assert isinstance(asked, Request)
    for is_revoked in (True, False):
        body = BufferReader()
        body.feed_data(b"body")
        body.feed_eof()
        output = Output(wakeup, bool, store)
        if is_revoked:
            assert output.revoke()
        else:
            output.close()  # the client is gone: the body is the thread's, as ever
        Exchange(application, Environs({}, {}), asked, body, output)()
        assert len(body) == (4 if is_revoked else 0)
        body.close()
    loop.close()


def test_a_request_that_has_its_thread_may_take_its_time(
    serve_in_thread: ServeInThread, gated: GatedApp, clients: ExitStack, cuts: Cuts
) -> None:
    """None of the deadlines is for the app."""
    short = {"header_timeout": 0.2, "channel_timeout": 0.2, "queue_timeout": 0.2, "linger_timeout": 0.2}
    rates = {"body_min_rate": 1_000, "response_min_rate": 1_000, "min_rate_grace": GRACE}
    server = serve_in_thread(gated, **short, **rates, threads=2, stream_request_prefix="/streamed")
    connect = Connect(server, clients)
    running = connect(request("/running"))
    streamed = connect(request("/streamed", method="POST", body=b"body"))
    gated.wait_entered(2)
    Clock(serve_in_thread, 0.6).wait()
    gated.let_go(2)
    assert running.receive().status == streamed.receive().status == 200
    assert [cuts.lines(setting) for setting in (*short, *rates)] == [[]] * 7


# -- the end of a connection


@pytest.mark.parametrize("seconds", [0.2, 0])
def test_a_connection_that_is_over_is_read_on_for_a_while(
    serve_in_thread: ServeInThread, clients: ExitStack, seconds: float
) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        return [bytes(250_000 if environ["PATH_INFO"] == "/large" else 1)]

    server = serve_in_thread(app, **{**OFF, "linger_timeout": seconds}, sockets=[small_listener()])
    connect = Connect(server, clients)
    refused, last = connect(b"nonsense\r\n\r\n"), connect(request("/", "Connection: close\r\n"))
    slow = connect(request("/large", "Connection: close\r\n"), receive_buffer=4_096)
    assert refused.receive().status == 400
    assert last.receive().status == 200
    Clock(serve_in_thread, 0.4).wait()
    assert len(slow.receive().body) == 250_000  # its time begins when that has left
    for client in (refused, last, slow):
        client.assert_ended()
    eventually(lambda: not open_connections(server), "nobody lingers any more")


# -- all of them


SWITCHED_OFF = {**OFF, "linger_timeout": 0.2}  # but for this one: sweeps come often


def test_each_can_be_switched_off(
    serve_in_thread: ServeInThread, gated: GatedApp, uploads: Uploads, clients: ExitStack, cuts: Cuts
) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/large":
            start_response("200 OK", [])
            return [bytes(SIZE)]
        return (uploads if environ["REQUEST_METHOD"] == "POST" else gated)(environ, start_response)

    server = serve_in_thread(
        app, **SWITCHED_OFF, min_rate_grace=0.1, threads=1, spare_threads=0, sockets=[small_listener()]
    )
    connect = Connect(server, clients)
    deaf = connect(request("/large"), receive_buffer=65_536)
    assert deaf.sock.recv(1) == b"H"
    silent, half = connect(), connect(b"GET /half HTTP/1.1\r\nHost: ")
    body = connect(post(length=8) + b"some")
    idle = connect(request("/idle"))
    gated.let_go()
    assert idle.receive().status == 200
    running, queued = connect(request("/running")), connect(request("/queued"))
    Clock(serve_in_thread, 0.8).wait()
    gated.let_go(5)
    assert running.receive().status == queued.receive().status == 200
    body.send(b"more")
    assert body.receive().body == b"8"
    half.send(b"localhost\r\n\r\n")
    assert half.receive().body == b"/half"
    for client in (silent, idle):
        assert client.get("/more").status == 200
    deaf._buffer = b"H"
    assert deaf.receive().body == bytes(SIZE)
    assert [cuts.lines(setting) for setting in OFF] == [[]] * len(OFF)


def test_the_clocks_stand_still_while_the_server_does(
    serve_in_thread: ServeInThread, uploads: Uploads, clients: ExitStack, cuts: Cuts
) -> None:
    """Its loop is stuck, for longer than any of them may take; what they send meanwhile is in time."""
    short = {"header_timeout": 0.4, "channel_timeout": 0.4, "queue_timeout": 0.4}
    rates = {"body_min_rate": 1_000, "response_min_rate": 1_000, "min_rate_grace": 0.4}
    server = serve_in_thread(uploads, **short, **rates, threads=2)
    connect = Connect(server, clients)
    gate = Gate()
    stuck = gate.around(bool)
    late = connect(b"GET / HT")  # is not done when the server is, and not after that
    idle = connect(request())
    assert idle.receive().status == 200
    silent, half, body = connect(), connect(b"GET / HTTP/1.1\r\nHost: "), connect(post(length=8) + b"some")
    eventually(lambda: len(server.server._runtime.connections._protocols) == 5, "all are known")
    server.loop.call_soon_threadsafe(stuck)
    assert gate.reached.acquire(timeout=DEADLINE)
    Clock(serve_in_thread, 0.6).wait()
    for client, rest in (
        (idle, request()),
        (silent, request()),
        (half, b"localhost\r\n\r\n"),
        (body, b"more"),
    ):
        client.send(rest)
    gate.open()
    for client in (idle, silent, half, body):
        assert client.receive().status == 200
    assert_late(late, "header_timeout")
    cuts.take("header_timeout", late)


def test_a_sweep_that_fails_is_not_the_last(
    serve_in_thread: ServeInThread, clients: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or from then on nobody would be cut, and nothing would say so."""
    error = ValueError("it fails")
    failed: list[object] = []

    def fail_once(protocol: HTTPProtocol, now: float, elapsed: float) -> None:
        if not failed:
            failed.append(protocol)
            raise error
        real(protocol, now, elapsed)

    real = HTTPProtocol.sweep
    monkeypatch.setattr(HTTPProtocol, "sweep", fail_once)
    server = serve_in_thread(hello, **{**OFF, "header_timeout": 0.2})
    late = Connect(server, clients)(b"GET / HT")
    assert_late(late, "header_timeout")
    assert [context["exception"] for context in server.errors] == [error]
    server.errors.clear()


def test_who_is_cut_when_the_transport_has_no_socket_any_more() -> None:
    """As that of TLS has none once its connection is lost, of which the protocol is told later."""

    class Lost(asyncio.Transport):
        aborted = False

        def abort(self) -> None:
            self.aborted = True

    transport = Lost()
    assert (is_gone(transport), has_ended(transport), acknowledged(transport)) == (False, False, None)
    reset(transport)
    assert transport.aborted


# -- what is said


def test_one_line_each_but_no_more_than_ten_at_once(
    serve_in_thread: ServeInThread, clients: ExitStack, cuts: Cuts
) -> None:
    server = serve_in_thread(hello, **{**OFF, "header_timeout": 0.2, "linger_timeout": 0})
    connect = Connect(server, clients)
    late = [connect(b"GET / HT") for _ in range(25)]
    for client in late:
        assert_late(client, "header_timeout")
    server.stop()
    lines = cuts.lines("header_timeout")
    assert lines[10:] == ["and 15 more"]  # at the latest when the server stops
    names = {line.partition(": ")[0] for line in lines[:10]}
    assert len(names) == 10
    assert names < {name_of(client) for client in late}


def test_how_many_more_is_said_though_nobody_is_there_any_more(
    serve_in_thread: ServeInThread, clients: ExitStack, cuts: Cuts
) -> None:
    """Ten seconds later, by the clock of sweeps that go on for that alone."""
    server = serve_in_thread(hello, **{**OFF, "header_timeout": 0.2, "linger_timeout": 0})
    connect = Connect(server, clients)
    late = [connect(b"GET / HT") for _ in range(12)]
    for client in late:
        assert_late(client, "header_timeout")
    eventually(lambda: not open_connections(server), "all are gone")
    connections = server.server._runtime.connections
    clock = connections.clock
    eventually(lambda: connections.clock > clock, "a sweep comes")
    assert len(cuts.lines("header_timeout")) <= 10
    sweep(server, 10)
    eventually(lambda: cuts.lines("header_timeout")[10:] == ["and 2 more"], "it is said")
    eventually(lambda: connections._sweeper is None, "that was the last sweep")


def test_where_from_is_said_of_every_kind_of_client(
    serve_in_thread: ServeInThread, clients: ExitStack, cuts: Cuts
) -> None:
    kinds: list[tuple[dict[str, str], bytes, str]] = [
        ({"listen": "[::1]:0"}, b"", "[::1]:"),
        ({"proxy_protocol": "v1"}, proxy_v1("2001:db8::1", "2001:db8::2"), "[2001:db8::1]:56324: "),
        ({"proxy_protocol": "v1"}, proxy_v1("192.0.2.1"), "192.0.2.1:56324: "),
        ({"listen": unix_place()}, b"", "localhost: "),
    ]
    late = []
    for settings, sent, _ in kinds:
        server = serve_in_thread(hello, **{**OFF, "header_timeout": 0.2}, **settings)
        late.append(clients.enter_context(Peer(server)))
        late[-1].send(sent + b"GET / \x1b")  # what it sent is not repeated
    for client in late:
        assert_late(client, "header_timeout")
    eventually(lambda: len(cuts.lines("header_timeout")) == len(kinds), "it is said")
    for line, (_, _, name) in zip(
        sorted(cuts.lines("header_timeout")), sorted(kinds, key=lambda kind: kind[2]), strict=True
    ):
        assert line.startswith(name)
        assert line.endswith(": 7 bytes of a request head came")
