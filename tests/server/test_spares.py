"""Spare threads: a thread that waits for a slow client is lent another one in its place."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import pytest

from tests.conftest import RunningServer, ServeInThread
from tests.server.support import (
    DEADLINE,
    Client,
    StreamingApp,
    eventually,
    hello,
    request,
    server_has_read,
    server_threads,
    settled,
    small_listener,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

HIGH = 65_536
USED_UP = "there is no spare thread left"


class App:
    """`/stream` is endless, all else says hello; which thread said it is noted."""

    def __init__(self) -> None:
        self.streams: list[StreamingApp] = []
        self.threads: list[str] = []

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"].startswith("/stream/"):
            stream = StreamingApp()
            self.streams.append(stream)
            return stream(environ, start_response)
        self.threads.append(threading.current_thread().name)
        return hello(environ, start_response)


Stream = Callable[[RunningServer], Client]


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def stream(serve_in_thread: ServeInThread, app: App) -> Iterator[Stream]:
    """`stream(server)` gives a client of an endless answer that it does not read."""
    clients: list[Client] = []

    def begin(server: RunningServer) -> Client:
        client = Client(server.address, receive_buffer=65_536)
        clients.append(client)
        client.send(request(f"/stream/{len(clients)}"))  # what is known of one says nothing of another
        return client

    yield begin
    for client in clients:
        client.sock.close()


def serve(serve_in_thread: ServeInThread, app: App, **settings: object) -> RunningServer:
    return serve_in_thread(
        app, **{"threads": 1, "outbuf_high_watermark": HIGH, "sockets": [small_listener()], **settings}
    )


def waiting(server: RunningServer) -> int:
    """Threads that wait for a client."""
    return server.server._runtime.pool._waiting


def wait_for_waiting(server: RunningServer, threads: int) -> None:
    eventually(lambda: waiting(server) == threads, f"{threads} threads wait")


def of_the_app(server: RunningServer) -> list[str]:
    """The names of the threads for the app, with those that are about to end."""
    return sorted(server.server._runtime.pool.names)


def wait_for_threads(server: RunningServer, threads: int) -> None:
    eventually(lambda: len(of_the_app(server)) == threads, f"{threads} threads are there for the app")


def assert_hello(server: RunningServer) -> None:
    with Client(server.address) as client:
        assert client.get().body == b"Hello, world!"


def used_up(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in list(caplog.records) if USED_UP in record.getMessage()]


def test_a_spare_serves_while_the_one_thread_waits(
    serve_in_thread: ServeInThread, app: App, stream: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(serve_in_thread, app)
    threads = server_threads()
    slow = stream(server)
    wait_for_waiting(server, 1)
    settled(lambda: app.streams[0].written)
    for _ in range(20):
        assert_hello(server)
    assert not app.streams[0].closed.is_set()
    assert "waitress_async-1" not in app.threads
    wait_for_threads(server, 2)
    slow.reset()
    assert app.streams[0].closed.wait(DEADLINE)
    eventually(lambda: server_threads() == threads, "the spare has ended")
    app.threads.clear()
    for _ in range(5):
        assert_hello(server)
    assert set(app.threads) == {"waitress_async-1"}
    assert not used_up(caplog)


def test_without_spares_the_others_wait(serve_in_thread: ServeInThread, app: App, stream: Stream) -> None:
    server = serve(serve_in_thread, app, spare_threads=0)
    threads = server_threads()
    slow = stream(server)
    wait_for_waiting(server, 1)
    with Client(server.address) as client:
        client.send(request())
        server_has_read(server)
        client.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.receive()
        client.sock.settimeout(DEADLINE)
        assert not app.threads
        assert server_threads() == threads
        slow.reset()
        assert client.receive().body == b"Hello, world!"
    assert app.streams[0].closed.is_set()


def test_four_for_each_thread_by_default(serve_in_thread: ServeInThread, app: App, stream: Stream) -> None:
    server = serve(serve_in_thread, app, threads=2)
    threads = server_threads()
    clients = []
    for number in range(1, 9):
        clients.append(stream(server))
        wait_for_waiting(server, number)
        assert_hello(server)
    wait_for_threads(server, 2 + 8)
    for number in (9, 10):
        clients.append(stream(server))
        wait_for_waiting(server, number)
    wait_for_threads(server, 2 + 8)
    with Client(server.address) as client:
        client.send(request())
        server_has_read(server)
        client.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.receive()
        client.sock.settimeout(DEADLINE)
        for slow in clients:
            slow.reset()
        assert client.receive().body == b"Hello, world!"
    eventually(lambda: server_threads() == threads, "the spares have ended")


def test_that_they_are_used_up_is_said_once_and_names_the_setting(
    serve_in_thread: ServeInThread, app: App, stream: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(serve_in_thread, app, spare_threads=2)
    clients = [stream(server)]
    wait_for_waiting(server, 1)
    clients.append(stream(server))
    wait_for_waiting(server, 2)
    assert_hello(server)
    assert not used_up(caplog)
    clients.append(stream(server))
    wait_for_waiting(server, 3)
    eventually(lambda: used_up(caplog), "it was said")
    (record,) = used_up(caplog)
    assert record.name == "waitress_async"
    assert record.levelno == logging.WARNING
    assert "spare_threads" in record.getMessage()
    assert record.getMessage().startswith("3 threads wait")
    clients.pop().reset()  # not again soon, however often
    wait_for_waiting(server, 2)
    assert_hello(server)
    clients.append(stream(server))
    wait_for_waiting(server, 3)
    for client in clients:
        client.reset()
    wait_for_waiting(server, 0)
    assert_hello(server)
    server.stop()
    assert len(used_up(caplog)) == 1


def test_a_client_that_reads_again_gives_the_spare_back(
    serve_in_thread: ServeInThread, app: App, stream: Stream
) -> None:
    server = serve(serve_in_thread, app)
    threads = server_threads()
    for _ in range(3):
        slow = stream(server)
        wait_for_waiting(server, 1)
        assert_hello(server)
        app.streams[-1].length = 0  # its end is near
        assert len(slow.receive().body) == app.streams[-1].written
        assert slow.get().body == b"Hello, world!"
        eventually(lambda: server_threads() == threads, "the spare has ended")
        assert waiting(server) == 0


def test_a_thread_that_does_not_wait_is_lent_nothing(serve_in_thread: ServeInThread, app: App) -> None:
    server = serve(serve_in_thread, app)
    with Client(server.address) as client:
        for _ in range(50):
            assert client.get().body == b"Hello, world!"
    assert of_the_app(server) == ["waitress_async-1"]
    assert set(app.threads) == {"waitress_async-1"}


def test_many_come_and_go(serve_in_thread: ServeInThread, app: App, stream: Stream) -> None:
    server = serve(serve_in_thread, app, threads=2, spare_threads=4)
    threads = server_threads()
    for _ in range(3):
        clients = [stream(server) for _ in range(12)]
        wait_for_waiting(server, 6)
        wait_for_threads(server, 6)
        for client in clients:
            client.reset()
        eventually(lambda: waiting(server) == 0, "nobody waits")
        assert_hello(server)
    eventually(lambda: server_threads() == threads, "the spares have ended")
    eventually(lambda: all(one.closed.is_set() for one in app.streams), "each answer was closed")


# -- the stop


@pytest.mark.parametrize("timeout", [0, 0.3])
@pytest.mark.parametrize("spares", [0, 1, 5])
def test_a_stop_with_threads_that_wait(
    serve_in_thread: ServeInThread, app: App, stream: Stream, spares: int, timeout: float
) -> None:
    threads = server_threads()
    server = serve(serve_in_thread, app, spare_threads=spares)
    for _ in range(3):
        stream(server)
    wait_for_waiting(server, min(3, 1 + spares))
    server.server.request_stop(timeout)
    server.thread.join(DEADLINE)
    assert not server.thread.is_alive()
    assert server_threads() == threads
    assert all(one.closed.is_set() for one in app.streams)


def test_a_stop_waits_for_answers_by_spares(serve_in_thread: ServeInThread, app: App, stream: Stream) -> None:
    threads = server_threads()
    server = serve(serve_in_thread, app)
    clients = [stream(server) for _ in range(3)]
    with Client(server.address) as idle:
        wait_for_waiting(server, 3)
        assert idle.get().status == 200
        server.server.request_stop()
        idle.assert_ended()
    for one in app.streams:
        one.length = 0
    for client in clients:
        assert client.receive().body
        client.assert_ended()
        client.sock.close()
    server.thread.join(DEADLINE)
    assert not server.thread.is_alive()
    assert server_threads() == threads
