"""A client that reads slowly costs memory up to the watermark; beyond it the app's thread waits."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator

import pytest

from tests.conftest import RunningServer, ServeInThread
from tests.server.support import Client, StreamingApp, eventually, request, settled, small_listener

Connect = Callable[[RunningServer], Client]

HIGH = 65_536

# What may be on the way besides the output up to its watermark: one piece taken by the sender, the
# transport's own buffer, and four kernel buffers, each of which the kernel doubles.
ON_THE_WAY = 262_144 + 65_536 + 4 * 131_072


@pytest.fixture
def slow(serve_in_thread: ServeInThread) -> Iterator[tuple[RunningServer, StreamingApp, Client]]:
    """A server with one thread, an endless app, and a client that has asked for it and reads nothing."""
    app = StreamingApp()
    server = serve_in_thread(app, threads=1, outbuf_high_watermark=HIGH, sockets=[small_listener()])
    with Client(server.address, receive_buffer=65_536) as client:
        client.send(request("/stream"))
        yield server, app, client


Slow = tuple[RunningServer, StreamingApp, Client]


def test_the_thread_waits_at_the_watermark_and_goes_on_when_the_client_reads(slow: Slow) -> None:
    _, app, client = slow
    written = settled(lambda: app.written)
    assert HIGH <= written < HIGH + ON_THE_WAY
    read = 0
    for _ in range(3):
        while read < written + HIGH:
            read += len(client.sock.recv(65_536))
        written = settled(lambda: app.written)
        assert read < written < read + HIGH + ON_THE_WAY
    client.reset()
    assert app.closed.wait(10)


@pytest.mark.parametrize("leave", [Client.reset, lambda client: client.sock.close()], ids=["reset", "close"])
def test_the_thread_is_released_when_the_client_goes(slow: Slow, leave: Callable[[Client], None]) -> None:
    server, app, client = slow
    settled(lambda: app.written)
    assert not app.closed.is_set()
    leave(client)
    assert app.closed.wait(10)
    app.length = 0
    with Client(server.address) as other:
        assert other.get().status == 200  # by the one thread


def test_a_thread_that_waits_holds_up_nobody_else(serve_in_thread: ServeInThread) -> None:
    app = StreamingApp()
    server = serve_in_thread(app, threads=2, outbuf_high_watermark=HIGH, sockets=[small_listener()])
    with Client(server.address, receive_buffer=65_536) as slow, Client(server.address) as quick:
        slow.send(request())
        settled(lambda: app.written)
        app.length = 0
        for _ in range(20):
            assert quick.get().status == 200
        slow.reset()


@pytest.mark.parametrize("framing", ["chunked", "counted"])
def test_a_slow_client_gets_every_byte(serve_in_thread: ServeInThread, framing: str) -> None:
    body = random.Random(1).randbytes(3_000_000)
    pieces = [body[start : start + 9_999] for start in range(0, len(body), 9_999)]

    def app(_environ: object, start_response: Callable[..., object]) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", str(len(body)))] if framing == "counted" else [])
        yield from pieces

    server = serve_in_thread(app, outbuf_high_watermark=10_000, sockets=[small_listener()])
    with Client(server.address, receive_buffer=32_768) as client:
        client.send(request("/1") + request("/2"))
        assert client.receive().body == body
        assert client.receive().body == body


def test_a_large_list_is_bounded_too(serve_in_thread: ServeInThread) -> None:
    """Its bytes are in memory already, but not a second time."""
    chunk = bytes(100_000)
    done: list[bool] = []

    class App:
        def __call__(self, _environ: object, start_response: Callable[..., object]) -> list[bytes]:
            start_response("200 OK", [])
            return [chunk] * 100

    server = serve_in_thread(App(), outbuf_high_watermark=HIGH, sockets=[small_listener()])
    with Client(server.address, receive_buffer=65_536) as client:
        client.send(request())
        response = client.receive()
        done.append(True)
        assert len(response.body) == 10_000_000
        assert response.headers["content-length"] == "10000000"
    assert done


def test_what_a_1_0_client_reads_slowly_is_whole(serve_in_thread: ServeInThread, connect: Connect) -> None:
    app = StreamingApp(chunk=bytes(10_000), length=2_000_000)
    server = serve_in_thread(app, outbuf_high_watermark=HIGH, sockets=[small_listener()])
    client = connect(server)
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    settled(lambda: app.written)
    assert not app.closed.is_set()
    assert len(client.receive().body) == 2_000_000
    eventually(app.closed.is_set, "the app ended")
