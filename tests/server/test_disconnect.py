"""A client that goes away, in every state of its connection: no thread waits, and no file stays open."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import pytest

from tests.conftest import ServeInThread
from tests.server.support import (
    DEADLINE,
    Client,
    GatedApp,
    StreamingApp,
    eventually,
    held,
    needs_proc,
    request,
    settled,
    temporary_files,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

pytestmark = needs_proc

OVERFLOW = 10_000
BODY = bytes(600_000)  # more than a batch: some of it is on disk before the end has come


class App:
    """One app for all states, chosen by the path."""

    def __init__(self) -> None:
        self.gate = GatedApp()
        self.stream = StreamingApp()
        self.plain: list[str] = []

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith("/gate"):
            return self.gate(environ, start_response)
        if path == "/stream":
            return self.stream(environ, start_response)
        self.plain.append(path)
        start_response("200 OK", [])
        return [bytes(20_000_000) if path == "/large" else b"plain"]


Enter = Callable[[Client, App], None]


def nothing_sent(client: Client, app: App) -> None:
    pass


def half_a_head(client: Client, app: App) -> None:
    client.send(b"GET / HTTP/1.1\r\nHost: loc")


def half_a_body(client: Client, app: App) -> None:
    client.send(request("/", "Content-Length: 5000\r\n", method="POST") + bytes(2_500))


def body_on_disk(client: Client, app: App) -> None:
    client.send(request("/", f"Content-Length: {2 * len(BODY)}\r\n", method="POST") + BODY)
    eventually(lambda: temporary_files() == 1, "the body is on disk")


def body_refused(client: Client, app: App) -> None:
    client.send(request("/", "Transfer-Encoding: chunked\r\n", method="POST"))
    client.send(b"%x\r\n%b\r\n" % (len(BODY), BODY))
    eventually(lambda: temporary_files() == 1, "the body is on disk")
    client.send(b"nonsense\r\n")
    eventually(lambda: temporary_files() == 0, "the body was dropped")


def lingering(client: Client, app: App) -> None:
    client.send(b"nonsense\r\n\r\n")
    assert client.receive().status == 400


def running(client: Client, app: App) -> None:
    client.send(request("/gate", method="POST", body=BODY))
    app.gate.wait_entered()
    assert temporary_files() == 1


def running_with_more_behind(client: Client, app: App) -> None:
    client.send(request("/gate") + request("/behind") + request("/behind")[:-3])
    app.gate.wait_entered()


def streaming(client: Client, app: App) -> None:
    client.send(request("/stream"))
    settled(lambda: app.stream.written)
    assert app.stream.written


def whole_answer_unread(client: Client, app: App) -> None:
    client.send(request("/large"))
    eventually(lambda: "/large" in app.plain, "the app was called")
    assert client.sock.recv(1)


def between_requests(client: Client, app: App) -> None:
    assert client.get("/").body == b"plain"


STATES = [
    nothing_sent,
    half_a_head,
    half_a_body,
    body_on_disk,
    body_refused,
    lingering,
    running,
    running_with_more_behind,
    streaming,
    whole_answer_unread,
    between_requests,
]


@pytest.mark.parametrize("leave", [Client.reset, lambda client: client.sock.close()], ids=["reset", "close"])
@pytest.mark.parametrize("enter", STATES, ids=lambda state: state.__name__)
def test_a_client_goes(serve_in_thread: ServeInThread, enter: Enter, leave: Callable[[Client], None]) -> None:
    app = App()
    server = serve_in_thread(app, threads=1, inbuf_overflow=OVERFLOW, outbuf_high_watermark=65_536)
    before = held()
    with Client(server.address) as client:
        enter(client, app)
        leave(client)
        app.gate.let_go(1)
        eventually(lambda: held() == before, f"{before} sockets and files, as before")
        assert temporary_files() == 0
        if enter is streaming:
            assert app.stream.closed.wait(10)
        with Client(server.address) as other:
            assert other.get("/other").body == b"plain"  # by the one thread


def test_a_client_that_goes_while_its_request_is_queued_is_not_served(serve_in_thread: ServeInThread) -> None:
    app = App()
    server = serve_in_thread(app, threads=1, inbuf_overflow=OVERFLOW)
    before = held()
    with Client(server.address) as first, Client(server.address) as second:
        first.send(request("/gate"))
        app.gate.wait_entered()
        second.send(request("/queued", method="POST", body=BODY))
        eventually(lambda: temporary_files() == 1, "the body is on disk")
        second.reset()
        eventually(lambda: held() < before + 4, "the second connection is gone")
        app.gate.let_go()
        assert first.receive().body == b"/gate"
        eventually(lambda: temporary_files() == 0, "the file of the second is gone")
        assert first.get("/after").body == b"plain"
    assert app.plain == ["/after"]
    eventually(lambda: held() == before, "as many sockets and files as before")


@pytest.mark.parametrize("leave", [Client.reset, lambda client: client.sock.close()], ids=["reset", "close"])
def test_many_clients_go_at_once(serve_in_thread: ServeInThread, leave: Callable[[Client], None]) -> None:
    app = App()
    server = serve_in_thread(app, threads=4, inbuf_overflow=OVERFLOW, outbuf_high_watermark=65_536)
    before = held()
    clients = [Client(server.address) for _ in range(40)]
    for number, client in enumerate(clients):
        client.send(
            [b"GET", request("/"), request("/stream"), request("/", method="POST", body=BODY)][number % 4]
        )
    eventually(lambda: app.stream.written, "one of them is streamed to")
    for client in clients:
        leave(client)
    eventually(lambda: held() == before, "as many sockets and files as before")
    with Client(server.address) as other:
        assert other.get("/other").body == b"plain"


def test_asyncio_has_nothing_to_say_of_clients_that_leave_a_stream(
    serve_in_thread: ServeInThread, caplog: pytest.LogCaptureFixture
) -> None:
    """It warns of writes to a connection that it knows to be lost, once for each after the fifth."""
    app = StreamingApp(chunk=b"x" * 100)  # small ones: hundreds of them are in a turn of the loop
    server = serve_in_thread(app)
    for _ in range(20):
        app.closed.clear()
        with Client(server.address) as client:
            client.send(request("/stream"))
            client.sock.recv(65_536)
            client.reset()
        assert app.closed.wait(DEADLINE)
    server.stop()
    # In debug mode it also tells of a slow machine.
    assert [text for text in caplog.messages if "raised exception" in text or "closed" in text] == []


def test_a_last_answer_that_is_abandoned_is_no_error(
    serve_in_thread: ServeInThread, caplog: pytest.LogCaptureFixture
) -> None:
    """Its end is due when all is sent, and by then there is nobody."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        return [bytes(3_000_000)]

    server = serve_in_thread(app)
    for _ in range(20):
        with Client(server.address, receive_buffer=65_536) as client:
            client.send(request("/", "Connection: close\r\n"))
            for _ in range(5):
                assert client.sock.recv(65_536)
    eventually(lambda: not len(server.server._runtime.connections), "all are gone")
    assert server.errors == []
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize(
    "head", ["GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", "GET / HTTP/1.0\r\n\r\n"]
)
def test_a_last_answer_that_is_read_slowly_is_whole(serve_in_thread: ServeInThread, head: str) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        return [bytes(3_000_000)]

    server = serve_in_thread(app)
    with Client(server.address, receive_buffer=4_096) as client:
        client.send(head.encode())
        received = 0
        while data := client.sock.recv(65_536):
            received += len(data)
    assert received > 3_000_000
