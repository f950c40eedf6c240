"""Request bodies as the app sees them: a real binary file at position 0, in memory or on disk."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import RunningServer, ServeInThread
from tests.server.support import Client, eventually, needs_proc, request, temporary_files

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

Connect = Callable[[RunningServer], Client]

OVERFLOW = 100_000


class App:
    """Keeps what it saw of the last request's body."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        body = environ["wsgi.input"]
        try:
            descriptor = body.fileno()
        except (OSError, io.UnsupportedOperation):
            descriptor = None
        self.seen = {
            "descriptor": descriptor,
            "position": body.tell(),
            "CONTENT_LENGTH": environ.get("CONTENT_LENGTH"),
            "terminated": environ["wsgi.input_terminated"],
            "data": body.read(),
            "after the end": body.read(),
        }
        body.seek(0)
        self.seen["again"] = body.read()
        start_response("200 OK", [])
        return [b"ok"]


def encoded(body: bytes, chunked: bool) -> bytes:
    if not chunked:
        return request("/", method="POST", body=body)
    chunks = [body[start : start + 30_000] for start in range(0, len(body), 30_000)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return request("/", "Transfer-Encoding: chunked\r\n", method="POST") + framed + b"0\r\n\r\n"


@pytest.mark.parametrize("chunked", [False, True], ids=["counted", "chunked"])
@pytest.mark.parametrize("size", [1, 8_192, OVERFLOW - 1, OVERFLOW, OVERFLOW + 1, 1_000_000])
def test_the_body_is_a_file_at_position_0(
    serve_in_thread: ServeInThread, connect: Connect, size: int, chunked: bool
) -> None:
    app = App()
    client = connect(serve_in_thread(app, inbuf_overflow=OVERFLOW))
    body = random.Random(size).randbytes(size)
    for _ in range(2):
        client.send(encoded(body, chunked))
        assert client.receive().body == b"ok"
        seen = app.seen
        assert seen["data"] == body
        assert seen["again"] == body
        assert seen["position"] == 0
        assert seen["after the end"] == b""
        assert seen["CONTENT_LENGTH"] == str(size)
        assert seen["terminated"] is True
        assert (seen["descriptor"] is not None) == (size >= OVERFLOW)


@needs_proc
def test_files_are_gone_when_the_answer_has_come(serve_in_thread: ServeInThread, connect: Connect) -> None:
    client = connect(serve_in_thread(App(), inbuf_overflow=OVERFLOW))
    for _ in range(5):
        client.send(encoded(bytes(OVERFLOW * 3), chunked=False))
        assert client.receive().body == b"ok"
    eventually(lambda: temporary_files() == 0, "no temporary file")


def test_a_request_without_a_body_has_an_empty_file(serve_in_thread: ServeInThread, connect: Connect) -> None:
    app = App()
    client = connect(serve_in_thread(app))
    assert client.get().status == 200
    assert app.seen["data"] == b""
    assert app.seen["CONTENT_LENGTH"] is None
    assert app.seen["terminated"] is True


def test_what_the_app_leaves_unread_is_not_the_next_request(
    serve_in_thread: ServeInThread, connect: Connect
) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [environ["REQUEST_METHOD"].encode()]

    client = connect(serve_in_thread(app))
    client.send(request("/", method="POST", body=request("/smuggled")) + request("/next"))
    assert client.receive().body == b"POST"
    assert client.receive().body == b"GET"


def test_an_upload_costs_no_thread_before_it_is_complete(
    serve_in_thread: ServeInThread, connect: Connect
) -> None:
    server = serve_in_thread(App(), threads=1)
    uploads = [connect(server) for _ in range(8)]
    body = bytes(50_000)
    for upload in uploads:
        upload.send(encoded(body, chunked=False)[:-1])
    assert connect(server).get().body == b"ok"
    for upload in uploads:
        upload.send(body[-1:])
        assert upload.receive().body == b"ok"
