"""environ["wsgi.early_hints"]: 103 (Early Hints) before the response, in order with it (RFC 8297)."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import RunningServer, ServeInThread
from tests.server.support import DEADLINE, Client, request

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

Connect = Callable[[RunningServer], Client]

STYLE = ("Link", "</style.css>; rel=preload; as=style")
SCRIPT = ("Link", "</script.js>; rel=preload; as=script")


def interim(client: Client) -> list[tuple[str, str]]:
    """The headers of what must be early hints."""
    response = client.receive()
    assert (response.status, response.reason) == (103, "Early Hints")
    return [(name.title(), value) for name, value in response.headers.items()]


async def numbers() -> AsyncIterator[bytes]:
    yield b"one"


class App:
    """Hints, and says how: by the path."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.errors: list[BaseException] = []

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        hint = environ["wsgi.early_hints"]
        path = environ["PATH_INFO"]
        headers = [("Content-Type", "text/plain")]
        if path == "/wait":
            hint([STYLE])
            assert self.may_answer.wait(DEADLINE)
        elif path == "/late":
            start_response("200 OK", headers)
            return self.late(hint)
        elif path == "/stream":
            environ["waitress_async.stream"](numbers())
            hint([STYLE])
        elif path == "/bad":
            self.attempt(hint, [("Link", "a\nb")])
            self.attempt(hint, [("Content-Length", "1")])
            self.attempt(hint, [("Connection", "close")])
            self.attempt(hint, [("Link", 1)])
        elif path == "/fail":
            hint([STYLE])
            raise LookupError("after a hint")
        elif path != "/plain":
            hint([STYLE])
            hint(iter([SCRIPT, ("X-Two", "2")]))
        start_response("200 OK", headers)
        return [b"done"]

    def late(self, hint: Callable[[Any], object]) -> Iterable[bytes]:
        hint([STYLE])  # start_response can still be undone
        yield b"a"
        hint([SCRIPT])
        yield b"b"

    def attempt(self, hint: Callable[[Any], object], headers: object) -> None:
        try:
            hint(headers)
        except (TypeError, ValueError) as error:
            self.errors.append(error)


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def server(app: App, serve_in_thread: ServeInThread) -> RunningServer:
    return serve_in_thread(app, threads=2)


def test_they_come_before_the_response_and_in_order(server: RunningServer, connect: Connect) -> None:
    client = connect(server)
    for _ in range(2):  # the connection is kept
        client.send(request("/"))
        assert interim(client) == [STYLE]
        assert interim(client) == [SCRIPT, ("X-Two", "2")]
        response = client.receive()
        assert (response.status, response.body) == (200, b"done")
        assert "link" not in response.headers


def test_the_client_has_them_while_the_app_works(app: App, server: RunningServer, connect: Connect) -> None:
    client = connect(server)
    client.send(request("/wait"))
    assert interim(client) == [STYLE]
    app.may_answer.set()
    assert client.receive().body == b"done"


def test_pipelined_ones_are_with_their_responses(server: RunningServer, connect: Connect) -> None:
    client = connect(server)
    client.send(request("/plain") + request("/stream") + request("/plain"))
    assert client.receive().body == b"done"
    assert interim(client) == [STYLE]
    assert client.receive().body == b"doneone"
    assert client.receive().body == b"done"


def test_head_requests_have_them(server: RunningServer, connect: Connect) -> None:
    client = connect(server)
    client.send(request("/stream", method="HEAD"))
    assert interim(client) == [STYLE]
    assert client.receive(method="HEAD").body == b""


def test_before_the_app_reads_a_body_that_is_waited_for(
    app: App, serve_in_thread: ServeInThread, connect: Connect
) -> None:
    client = connect(serve_in_thread(app, stream_request_body=True))
    client.send(request("/stream", "Content-Length: 3\r\nExpect: 100-continue\r\n", method="POST"))
    assert interim(client) == [STYLE]
    assert client.receive().body == b"doneone"


def test_none_for_http_1_0(server: RunningServer, connect: Connect) -> None:
    client = connect(server)
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    assert client.receive().status == 200


def test_no_effect_when_the_response_has_begun(server: RunningServer, connect: Connect) -> None:
    client = connect(server)
    client.send(request("/late"))
    assert interim(client) == [STYLE]
    assert client.receive().body == b"ab"


def test_what_http_does_not_allow_is_refused(app: App, server: RunningServer, connect: Connect) -> None:
    client = connect(server)
    client.send(request("/bad"))
    assert client.receive().body == b"done"
    assert [type(error) for error in app.errors] == [ValueError, ValueError, ValueError, TypeError]
    assert "Content-Length" in str(app.errors[1])


def test_a_failure_after_them(server: RunningServer, connect: Connect) -> None:
    client = connect(server)
    client.send(request("/fail"))
    assert interim(client) == [STYLE]
    assert client.receive().status == 500
