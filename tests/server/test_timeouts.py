"""What `channel_timeout` closes, and what it leaves alone."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from tests.conftest import ServeInThread
from tests.server.support import Client, GatedApp, hello, request, small_listener

TIMEOUT = 1.0  # seconds; the sweep comes once a second


def large_answer(_environ: object, start_response: Callable[..., object]) -> list[bytes]:
    start_response("200 OK", [])
    return [bytes(5_000_000)]


def read_to_any_end(client: Client) -> bytes:
    try:
        return client.rest()
    except ConnectionResetError:
        return b""


def test_idle_connections_are_closed_and_busy_ones_are_not(
    serve_in_thread: ServeInThread, gated: GatedApp
) -> None:
    """Everything at once, because each wait is seconds: who must end is read from, who must not is used."""
    server = serve_in_thread(gated, channel_timeout=TIMEOUT, threads=2)
    large = serve_in_thread(large_answer, channel_timeout=TIMEOUT, sockets=[small_listener()])
    never = serve_in_thread(hello, channel_timeout=0)
    gated.let_go()
    began = time.monotonic()
    with contextlib.ExitStack() as stack:

        def connect(sent: bytes = b"") -> Client:
            client = stack.enter_context(Client(server.address))
            client.send(sent)
            return client

        unread = stack.enter_context(Client(large.address, receive_buffer=65_536))
        unread.send(request())
        untouched = stack.enter_context(Client(never.address))
        served = connect(request("/served"))
        assert served.receive().body == b"/served"
        idle = [
            served,
            connect(),
            connect(b"GET / HT"),
            connect(request("/", "Content-Length: 10\r\n", method="POST") + b"12345"),
        ]
        running = connect(request("/running"))
        gated.wait_entered(2)
        slow = connect(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n")
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.05):
                slow.send(b"X: y\r\n")

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            for client in idle:
                client.assert_ended()
            assert time.monotonic() - began >= TIMEOUT * 0.9
            # One that comes only now and is closed as well: the others are well over their time.
            connect().assert_ended()
        finally:
            stop.set()
            dripping.join()
        # An answer that nobody reads is given up. (What the kernel has of it may still come.)
        assert len(read_to_any_end(unread)) < 2_000_000
        slow.send(b"\r\n")
        gated.let_go(2)
        assert running.receive().body == b"/running"
        assert slow.receive().body == b"/slow"
        assert untouched.get().status == 200
