"""`Expect: 100-continue` (RFC 9110 section 10.1.1), as a sequence of bytes on the wire."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import RunningServer, ServeInThread
from tests.server.support import Client, GatedApp, echo, request

Connect = Callable[[RunningServer], Client]

EXPECT = "Expect: 100-continue\r\n"


def head(fields: str, *, version: str = "1.1") -> bytes:
    return f"POST /it HTTP/{version}\r\nHost: localhost\r\n{fields}\r\n".encode()


@pytest.mark.parametrize(
    ("framing", "body"),
    [("Content-Length: 4\r\n", b"body"), ("Transfer-Encoding: chunked\r\n", b"4\r\nbody\r\n0\r\n\r\n")],
)
def test_100_then_the_body_then_the_answer(
    serve_in_thread: ServeInThread, connect: Connect, framing: str, body: bytes
) -> None:
    client = connect(serve_in_thread(echo))
    for _ in range(2):
        client.send(head(EXPECT + framing))
        interim = client.receive()
        assert (interim.status, interim.headers) == (100, {})
        client.send(body)
        response = client.receive()
        assert (response.status, response.body) == (200, b"/it body")


def test_no_100_when_the_body_comes_without_being_asked(
    serve_in_thread: ServeInThread, connect: Connect
) -> None:
    client = connect(serve_in_thread(echo))
    client.send(head(EXPECT + "Content-Length: 4\r\n") + b"body")
    assert client.receive().body == b"/it body"


@pytest.mark.parametrize("framing", ["", "Content-Length: 0\r\n"])
def test_no_100_without_a_body(serve_in_thread: ServeInThread, connect: Connect, framing: str) -> None:
    client = connect(serve_in_thread(echo))
    for _ in range(2):
        client.send(head(EXPECT + framing))
        response = client.receive()
        assert (response.status, response.body) == (200, b"/it ")


def test_no_100_for_1_0(serve_in_thread: ServeInThread, connect: Connect) -> None:
    client = connect(serve_in_thread(echo))
    client.send(head(EXPECT + "Content-Length: 4\r\n", version="1.0"))
    client.send(b"body")
    assert client.receive().body == b"/it body"


def test_413_instead_of_100(serve_in_thread: ServeInThread, connect: Connect) -> None:
    client = connect(serve_in_thread(echo, max_request_body_size=3))
    client.send(head(EXPECT + "Content-Length: 4\r\n"))
    response = client.receive()
    assert response.status == 413
    assert response.closes
    assert b"max_request_body_size" in response.body
    client.assert_ended()


def test_a_chunked_body_that_grows_too_large_after_the_100_is_a_413(
    serve_in_thread: ServeInThread, connect: Connect
) -> None:
    client = connect(serve_in_thread(echo, max_request_body_size=3))
    client.send(head(EXPECT + "Transfer-Encoding: chunked\r\n"))
    assert client.receive().status == 100
    client.send(b"4\r\nbody\r\n0\r\n\r\n")
    assert client.receive().status == 413
    client.assert_ended()


@pytest.mark.parametrize("expectation", ["something", "100-continue, more", "100"])
def test_another_expectation_is_a_417(
    serve_in_thread: ServeInThread, connect: Connect, expectation: str
) -> None:
    client = connect(serve_in_thread(echo))
    client.send(head(f"Expect: {expectation}\r\nContent-Length: 4\r\n"))
    response = client.receive()
    assert response.status == 417
    assert response.closes
    client.assert_ended()


def test_the_100_of_a_pipelined_request_comes_after_the_answer_before_it(
    serve_in_thread: ServeInThread, gated: GatedApp, connect: Connect
) -> None:
    client = connect(serve_in_thread(gated))
    client.send(request("/1") + head(EXPECT + "Content-Length: 4\r\n"))
    gated.wait_entered()
    gated.let_go(2)
    assert client.receive().body == b"/1"
    assert client.receive().status == 100
    client.send(b"body")
    assert client.receive().body == b"/it"
