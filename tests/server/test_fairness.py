"""One connection's work is done in pieces, between which the loop sees to the others."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import nullcontext
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from tests.conftest import ServeInThread
from tests.server.support import Client, echo, request
from waitress_async.bridge import AsyncBodies, LogThread, OutputStore, Piece, Tasks, Wakeup
from waitress_async.buffers import BufferMemory, FileRegion, Spool
from waitress_async.http import Connection, DefaultFields, HeadEncoder, HeadMemo, Limits, ResponseHead
from waitress_async.server.sender import Sender

CHUNKED = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_chunks_of_one_byte_do_not_stop_the_others(serve_in_thread: ServeInThread) -> None:
    """A read of 256 KiB holds tens of thousands of them."""
    server = serve_in_thread(echo)
    done = threading.Event()
    chunks = b"1\r\nx\r\n" * 100_000

    def flood() -> None:
        with Client(server.address) as client:
            client.send(CHUNKED)
            client.sock.settimeout(0.5)
            sent = 0
            while not done.is_set():
                try:
                    sent += client.sock.send(chunks[sent % 6 :])
                except TimeoutError:
                    continue
            client.reset()  # or all that the system holds would still be read

    floods = [threading.Thread(target=flood) for _ in range(6)]
    for thread in floods:
        thread.start()
    try:
        with Client(server.address) as client:
            began = time.monotonic()
            for _ in range(20):
                assert client.get("/").status == 200
            assert time.monotonic() - began < 20  # it took several seconds for each
    finally:
        done.set()
        for thread in floods:
            thread.join(10)


class Endless:
    """A source that is never empty."""

    def __init__(self) -> None:
        self.head: ResponseHead | None = HeadEncoder().encode("200 OK", [])
        self.length: int | None = None
        self.aborted = False
        self.goes_on = False
        self.answer_body: bytes | None = None
        self.hints = b""
        self.asked = 0

    def take(self, limit: int) -> tuple[list[Piece], bool]:
        self.asked += 1
        return [bytes(1_000)], False

    def take_hints(self) -> bytes:
        return b""

    def sent(self, region: FileRegion) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class Greedy(asyncio.Transport):
    """A transport that takes all there is, as one does whose client reads as fast as the app writes."""

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass


async def test_an_app_that_is_never_behind_does_not_hold_the_loop() -> None:
    connection = Connection(Limits(), HeadMemo())
    connection.receive_data(request())
    connection.next_event()
    wakeup = Wakeup(asyncio.get_running_loop())
    log = LogThread(wakeup)
    memory = BufferMemory(1_000_000)
    store = OutputStore(
        1,
        1,
        memory,
        Spool(),
        nullcontext,
        lambda task: task,
        bool,
        AsyncBodies(wakeup, log, memory, 0, Tasks()),
    )
    sender = Sender(Greedy(), connection, DefaultFields(None), store, log, lambda _whole: None)
    source = Endless()
    sender.expect(source)
    sender.pump()
    once = source.asked
    assert 0 < once < 20
    await asyncio.sleep(0)
    assert once < source.asked <= 2 * once
    sender.close()
    await asyncio.sleep(0)
    assert source.asked <= 2 * once
    log.close()
    await log.wait_closed(10)


def answer_with(body: bytes) -> WSGIApplication:
    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return [body]

    return app


def slow(client: Client) -> bytes:
    """Read all that comes, a little at a time, for some seconds."""
    received = b""
    pause = threading.Event()
    while data := client.sock.recv(2_048):
        received += data
        pause.wait(0.1)
    return received


def test_a_refusal_does_not_cut_the_answer_before_it(serve_in_thread: ServeInThread) -> None:
    """The linger begins when the last answer has left, however long that takes."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_608)
    listener.bind(("127.0.0.1", 0))
    body = bytes(90_000)

    server = serve_in_thread(answer_with(body), sockets=[listener])
    with Client(server.address, receive_buffer=4_096) as client:
        client.send(request() + b"BAD\n")
        received = slow(client)
    assert received.count(b"\0") == len(body)
    assert b"HTTP/1.1 400 " in received


def test_what_a_client_sends_behind_its_last_request_does_not_cost_it_the_answer(
    serve_in_thread: ServeInThread,
) -> None:
    """Bytes that nobody read would turn the close into a reset (RFC 9112 section 9.6)."""
    body = bytes(1_500_000)
    server = serve_in_thread(answer_with(body))
    with Client(server.address, receive_buffer=65_536) as client:
        client.send(request("/", "Connection: close\r\n"))
        assert client.sock.recv(1) == b"H"  # so the whole of it is with the transport
        client.send(b"\r\n")
        received = bytearray()
        while data := client.sock.recv(65_536):
            received += data
    assert received.count(b"\0") == len(body)


def test_nor_does_it_cost_it_the_answers_before(serve_in_thread: ServeInThread) -> None:
    """The last answer is short, and the one before it is still on its way."""
    body = bytes(300_000)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        return [body if environ["PATH_INFO"] == "/large" else b""]

    server = serve_in_thread(app)
    with Client(server.address, receive_buffer=16_384) as client:
        client.send(request("/large") + request("/", "Connection: close\r\n"))
        assert client.sock.recv(1) == b"H"
        client.send(b"\r\n")
        received = client.rest()
    assert received.count(b"\0") == len(body)
    assert received.count(b"HTTP/1.1 200 OK") == 1  # and the first, but for its H
