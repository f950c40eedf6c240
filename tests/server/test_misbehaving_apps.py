"""Apps that do what they should not: it costs their own request, and nobody and nothing else."""

from __future__ import annotations

import asyncio
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import pytest

from tests.conftest import RunningServer, ServeInThread
from tests.server.support import DEADLINE, Client, eventually, needs_proc, request, small_listener
from waitress_async.errors import ClientDisconnected

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

Connect = Callable[[RunningServer], Client]

pytestmark = needs_proc


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
