"""What the server answers by itself: how it is said, that it arrives, and what becomes of the connection."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest

from tests.conftest import RunningServer, ServeInThread
from tests.server.support import (
    Client,
    GatedApp,
    echo,
    eventually,
    hello,
    request,
    server_has_read,
    small_listener,
)
from waitress_async.buffers import spool
from waitress_async.server.protocol import HTTPProtocol

Connect = Callable[[RunningServer], Client]


@pytest.mark.parametrize(
    ("sent", "settings", "status", "named"),
    [
        (b"nonsense\r\n\r\n", {}, 400, None),
        (request("/", "no colon\r\n"), {}, 400, None),
        (b"GET / HTTP/2.0\r\n\r\n", {}, 505, None),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", {}, 501, None),
        (request("/", "Transfer-Encoding: gzip\r\n"), {}, 501, None),
        (request("/" + "x" * 50), {"max_request_target_size": 40}, 414, "max_request_target_size"),
        (request("/", f"X: {99 * 'x'}\r\n"), {"max_request_header_size": 99}, 431, "max_request_header_size"),
        (request("/", "X: 1\r\n" * 5), {"max_request_header_fields": 5}, 431, "max_request_header_fields"),
        (request("/", body=b"12345"), {"max_request_body_size": 4}, 413, "max_request_body_size"),
    ],
)  # fmt: skip
def test_an_error_is_plain_text_names_the_setting_and_ends_the_connection(
    serve_in_thread: ServeInThread,
    connect: Connect,
    sent: bytes,
    settings: dict[str, object],
    status: int,
    named: str | None,
) -> None:
    client = connect(serve_in_thread(hello, **settings))
    client.send(sent)
    response = client.receive()
    assert response.status == status
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert "date" in response.headers
    assert response.headers["server"] == "waitress_async"
    assert response.body.startswith(f"{status} {response.reason}\n".encode())
    assert (b"(setting: " in response.body) == (named is not None)
    assert (named or "").encode() in response.body
    assert response.closes
    client.assert_ended()


def test_an_error_does_not_echo_what_came(serve_in_thread: ServeInThread, connect: Connect) -> None:
    client = connect(serve_in_thread(hello))
    client.send(request("/", "<script>\x01: 1\r\n"))
    response = client.receive()
    assert response.status == 400
    assert b"script" not in response.body


def test_an_error_for_head_has_no_body(serve_in_thread: ServeInThread, connect: Connect) -> None:
    client = connect(serve_in_thread(hello))
    client.send(request("/", "Transfer-Encoding: gzip\r\n", method="HEAD"))
    response = client.receive("HEAD")
    assert response.status == 501
    assert int(response.headers["content-length"]) > 0
    client.assert_ended()


def test_head_has_the_length_and_no_body(serve_in_thread: ServeInThread, connect: Connect) -> None:
    client = connect(serve_in_thread(hello))
    for _ in range(2):
        client.send(request("/", method="HEAD"))
        response = client.receive("HEAD")
        assert response.status == 200
        assert response.headers["content-length"] == "13"
    assert client.get().body == b"Hello, world!"


def test_nothing_behind_a_refusal_is_parsed(serve_in_thread: ServeInThread, connect: Connect) -> None:
    called: list[str] = []

    def app(environ: dict[str, str], start_response: Callable[..., object]) -> Iterable[bytes]:
        called.append(environ["PATH_INFO"])
        start_response("200 OK", [])
        return [b""]

    client = connect(serve_in_thread(app))
    client.send(b"nonsense\r\n\r\n" + request("/smuggled"))
    assert client.receive().status == 400
    client.send(request("/smuggled"))
    client.assert_ended()
    assert called == []


@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_still_sends_a_large_body_reads_the_413(
    serve_in_thread: ServeInThread, connect: Connect, chunked: bool
) -> None:
    """The answer must survive what is sent after it: a server that just closes resets the connection."""
    client = connect(serve_in_thread(echo, max_request_body_size=1_000))
    size = 4_000_000
    if chunked:
        client.send(request("/", "Transfer-Encoding: chunked\r\n", method="POST") + b"%x\r\n" % size)
    else:
        client.send(request("/", f"Content-Length: {size}\r\n", method="POST"))
    for _ in range(size // 100_000):
        client.send(bytes(100_000))
    response = client.receive()
    assert response.status == 413
    client.assert_ended()


def test_the_linger_is_bounded_in_bytes(serve_in_thread: ServeInThread, connect: Connect) -> None:
    client = connect(serve_in_thread(echo, max_request_body_size=1_000))
    client.send(request("/", "Content-Length: 1000000000\r\n", method="POST"))
    with pytest.raises(ConnectionError):
        client.send_until_blocked(bytes(1_000_000), 1_000_000_000)


def test_the_linger_is_bounded_in_time(serve_in_thread: ServeInThread, connect: Connect) -> None:
    client = connect(serve_in_thread(echo, max_request_body_size=1_000))
    client.send(request("/", "Content-Length: 1000000000\r\n", method="POST"))
    assert client.receive().status == 413
    client.assert_ended()  # one way; the other is open until the linger ends

    def refused() -> bool:
        try:
            client.send(b"x")
        except ConnectionError:
            return True
        return False

    eventually(refused, "the linger ended")


@pytest.mark.parametrize("behind", [b"nonsense\r\n\r\n", b""], ids=["a refusal", "a close"])
def test_what_was_held_back_is_drained_too(
    serve_in_thread: ServeInThread, gated: GatedApp, connect: Connect, behind: bytes
) -> None:
    """Reading is paused by a full look-ahead when the last answer is given: what is still to be read must
    not reset the connection, which would cost the client that answer."""
    server = serve_in_thread(gated)
    client = connect(server)
    client.send(request("/slow", "" if behind else "Connection: close\r\n"))
    gated.wait_entered()
    sent = client.send_until_blocked(behind + bytes(1_000_000), 8_000_000)
    assert sent < 8_000_000, "the look-ahead is not full"
    gated.let_go()
    assert client.receive().body == b"/slow"
    if behind:
        assert client.receive().status == 400
    client.assert_ended()


# -- a full queue


def test_a_full_queue_is_a_503_and_the_connection_is_kept(
    serve_in_thread: ServeInThread, gated: GatedApp, connect: Connect
) -> None:
    server = serve_in_thread(gated, threads=1, max_queue=2)
    running, *waiting = [connect(server) for _ in range(3)]
    running.send(request("/running"))
    gated.wait_entered()
    refused = connect(server)
    for number, client in enumerate(waiting):
        client.send(request(f"/waiting/{number}"))
        server_has_read(server)
    response = refused.get("/refused")
    assert response.status == 503
    assert response.headers["retry-after"] == "1"
    assert "connection" not in response.headers
    assert b"max_queue" in response.body
    refused.send(request("/refused", method="POST", body=bytes(100)))
    assert refused.receive().status == 503
    gated.let_go(4)
    assert running.receive().body == b"/running"
    assert [client.receive().body for client in waiting] == [b"/waiting/0", b"/waiting/1"]
    assert refused.get("/at-last").body == b"/at-last"
    assert gated.entered == ["/running", "/waiting/0", "/waiting/1", "/at-last"]


def test_a_client_that_does_not_read_its_503s_is_not_read_from(
    serve_in_thread: ServeInThread, gated: GatedApp, connect: Connect
) -> None:
    """Each refusal is longer than the request for it: unread, they would fill the memory."""
    server = serve_in_thread(gated, threads=1, max_queue=1, sockets=[small_listener()])
    for number in range(2):
        connect(server).send(request(f"/{number}"))
        gated.wait_entered()
    with Client(server.address, receive_buffer=65_536, send_buffer=65_536) as client:
        assert client.get().status == 503
        sent = client.send_until_blocked(request("/x") * 1_000, 12_000_000)
        assert sent < 3_000_000


# -- the disk


def test_a_full_disk_is_an_answer_and_no_error_of_the_loop(
    serve_in_thread: ServeInThread, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_directory: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spool, "_open_unnamed", full)
    client = connect(serve_in_thread(echo, inbuf_overflow=1_000))
    client.send(request("/", method="POST", body=bytes(1_000_000)))
    assert client.receive().status == 507


@pytest.mark.parametrize("chunked", [False, True])
def test_an_app_that_fails_half_way_does_not_end_its_answer_cleanly(
    serve_in_thread: ServeInThread, connect: Connect, chunked: bool
) -> None:
    def app(_environ: object, start_response: Callable[..., object]) -> Iterable[bytes]:
        start_response("200 OK", [] if chunked else [("Content-Length", "100")])
        yield b"half"
        raise RuntimeError("the other half")

    client = connect(serve_in_thread(app))
    client.send(request())
    answer = client.rest()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n4\r\nhalf\r\n" if chunked else b"\r\n\r\nhalf")


def test_an_app_that_fails_half_way_is_noticed_by_a_1_0_client(
    serve_in_thread: ServeInThread, connect: Connect
) -> None:
    """Its body ends with the connection, so that a clean end would say that it was whole."""

    def app(_environ: object, start_response: Callable[..., object]) -> Iterable[bytes]:
        start_response("200 OK", [])
        yield b"half"
        raise RuntimeError("the other half")

    client = connect(serve_in_thread(app))
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    with pytest.raises(ConnectionResetError):
        client.rest()


def test_requests_that_are_refused_take_turns(
    serve_in_thread: ServeInThread, gated: GatedApp, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is answered here and now costs the loop much more than a piece of a body."""
    turns: list[int] = []
    advance = HTTPProtocol._advance_later

    def count(protocol: HTTPProtocol) -> None:
        turns.append(protocol._requests)
        advance(protocol)

    monkeypatch.setattr(HTTPProtocol, "_advance_later", count)
    server = serve_in_thread(gated, threads=1, max_queue=1)
    running, waiting, refused = [connect(server) for _ in range(3)]
    running.send(request("/running"))
    gated.wait_entered()
    waiting.send(request("/waiting"))
    server_has_read(server)
    refused.send(request("/refused") * 600)
    for _ in range(600):
        assert refused.receive().status == 503
    assert len(turns) >= 600 // 64 - 1
    assert max(later - sooner for sooner, later in pairwise([0, *turns, 600])) <= 64
    gated.let_go(2)
    assert running.receive().status == waiting.receive().status == 200


def test_who_leaves_after_many_refused_requests_is_not_told_of(
    serve_in_thread: ServeInThread, gated: GatedApp, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio warns of each write to a connection that is lost."""
    server = serve_in_thread(gated, threads=1, max_queue=1)
    running, waiting = [connect(server) for _ in range(2)]
    running.send(request("/running"))
    gated.wait_entered()
    waiting.send(request("/waiting"))
    server_has_read(server)
    for _ in range(3):
        refused = connect(server)
        refused.send(request("/refused") * 3_000)
        refused.sock.close()
    eventually(lambda: len(server.server._runtime.connections) == 2, "they are gone")
    assert "socket.send() raised exception" not in caplog.text
    assert server.errors == []
    gated.let_go(2)
    assert running.receive().status == waiting.receive().status == 200
