"""One connection, several requests: kept or closed, in order, and looked ahead of only so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import pytest

from tests.conftest import RunningServer, ServeInThread
from tests.server.support import Client, GatedApp, echo, eventually, hello, request, small_listener

Connect = Callable[[RunningServer], Client]


@pytest.mark.parametrize(
    ("version", "connection", "answer"),
    [
        ("1.1", None, None),
        ("1.1", "keep-alive", None),
        ("1.1", "close", "close"),
        ("1.1", "Close", "close"),
        ("1.1", "keep-alive, close", "close"),
        ("1.1", "x-close, TE", None),
        ("1.0", None, "close"),
        ("1.0", "close", "close"),
        ("1.0", "keep-alive", "keep-alive"),
        ("1.0", "Keep-Alive, TE", "keep-alive"),
        ("1.0", "keep-alive, close", "close"),
    ],
)
def test_kept_or_closed(
    serve_in_thread: ServeInThread, version: str, connection: str | None, answer: str | None
) -> None:
    server = serve_in_thread(hello)
    field = f"Connection: {connection}\r\n" if connection else ""
    with Client(server.address) as client:
        for _ in range(2):
            client.send(f"GET / HTTP/{version}\r\nHost: localhost\r\n{field}\r\n".encode())
            response = client.receive()
            assert response.body == b"Hello, world!"
            assert response.headers.get("connection") == answer
            if answer == "close":
                client.assert_ended()
                break


def one_two(_environ: object, start_response: Callable[..., object]) -> Iterable[bytes]:
    start_response("200 OK", [])
    yield b"one "
    yield b"two"


def test_a_stream_of_unknown_length_is_chunked_and_the_connection_kept(
    serve_in_thread: ServeInThread, connect: Connect
) -> None:
    client = connect(serve_in_thread(one_two))
    for _ in range(2):
        response = client.get()
        assert response.headers["transfer-encoding"] == "chunked"
        assert response.body == b"one two"


def test_a_stream_of_unknown_length_ends_a_1_0_connection(
    serve_in_thread: ServeInThread, connect: Connect
) -> None:
    client = connect(serve_in_thread(one_two))
    client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    response = client.receive()
    assert response.closes
    assert "transfer-encoding" not in response.headers
    assert response.body == b"one two"


@pytest.mark.parametrize("cut", [None, 1, 7, 1_000], ids=lambda cut: f"in pieces of {cut}")
def test_25_pipelined_requests_are_answered_in_order(
    serve_in_thread: ServeInThread, connect: Connect, cut: int | None
) -> None:
    client = connect(serve_in_thread(echo))
    sent = b"".join(
        request(f"/{number}", method="POST", body=b"body %d" % number if number % 3 else b"")
        for number in range(25)
    )
    for start in range(0, len(sent), cut or len(sent)):
        client.send(sent[start : start + (cut or len(sent))])
    for number in range(25):
        response = client.receive()
        assert response.status == 200
        assert response.body == b"/%d " % number + (b"body %d" % number if number % 3 else b"")


def test_a_pipelined_request_waits_for_the_answer_before_it(
    serve_in_thread: ServeInThread, gated: GatedApp, connect: Connect
) -> None:
    server = serve_in_thread(gated, threads=4)
    client = connect(server)
    client.send(request("/1") + request("/2") + request("/3"))
    gated.wait_entered(1)
    other = connect(server)
    other.send(request("/other"))
    gated.wait_entered(2)  # there was a thread to spare, and time
    assert gated.entered == ["/1", "/other"]
    gated.let_go(4)
    assert [client.receive().body for _ in range(3)] == [b"/1", b"/2", b"/3"]
    assert other.receive().body == b"/other"


def test_a_close_in_the_middle_of_a_pipeline_ends_it(
    serve_in_thread: ServeInThread, connect: Connect
) -> None:
    client = connect(serve_in_thread(echo))
    client.send(request("/1") + request("/2", "Connection: close\r\n") + request("/3"))
    assert client.receive().body == b"/1 "
    assert client.receive().body == b"/2 "
    client.assert_ended()


def test_an_error_keeps_its_place_behind_the_answers_before_it(
    serve_in_thread: ServeInThread, gated: GatedApp, connect: Connect
) -> None:
    client = connect(serve_in_thread(gated))
    client.send(request("/1") + b"nonsense\r\n\r\n" + request("/never"))
    gated.wait_entered()
    gated.let_go()
    assert client.receive().body == b"/1"
    response = client.receive()
    assert response.status == 400
    assert response.closes
    client.assert_ended()
    assert gated.entered == ["/1"]


# -- half-close


def test_a_half_closed_client_is_answered(
    serve_in_thread: ServeInThread, gated: GatedApp, connect: Connect
) -> None:
    client = connect(serve_in_thread(gated))
    client.send(request("/1") + request("/2"))
    client.half_close()
    gated.wait_entered()
    gated.let_go(2)
    assert client.receive().body == b"/1"
    assert client.receive().body == b"/2"
    client.assert_ended()


def test_a_client_that_half_closes_between_requests_is_let_go(
    serve_in_thread: ServeInThread, connect: Connect
) -> None:
    client = connect(serve_in_thread(hello))
    assert client.get().status == 200
    client.half_close()
    client.assert_ended()


@pytest.mark.parametrize(
    "part", [b"GET", b"GET / HTTP/1.1\r\nHost: x", request("/", method="POST", body=b"1234")[:-1]]
)
def test_half_a_request_and_the_end_is_a_400(
    serve_in_thread: ServeInThread, connect: Connect, part: bytes
) -> None:
    client = connect(serve_in_thread(hello))
    client.send(part)
    client.half_close()
    assert client.receive().status == 400
    client.assert_ended()


# -- look-ahead


def test_look_ahead_is_bounded_while_the_app_runs(serve_in_thread: ServeInThread, gated: GatedApp) -> None:
    server = serve_in_thread(gated, sockets=[small_listener()])
    with Client(server.address, send_buffer=65_536) as client:
        client.send(request("/first"))
        gated.wait_entered()
        sent = client.send_until_blocked(request("/more") * 1_000, 16_000_000)
        assert sent < 2_000_000


def test_look_ahead_does_not_grow_with_each_answer(serve_in_thread: ServeInThread, gated: GatedApp) -> None:
    """What is let in after an answer must not be more than what the answer has used up."""
    server = serve_in_thread(gated, sockets=[small_listener()])
    pipelined = request("/more")
    with Client(server.address, send_buffer=65_536) as client:
        client.send(request("/first"))
        gated.wait_entered()
        filled = client.send_until_blocked(pipelined * 1_000, 16_000_000)
        client.sock.setblocking(False)
        grown = 0
        for number in range(20):
            gated.let_go()
            gated.wait_entered(number + 2)
            deadline = time.monotonic() + 0.02
            while time.monotonic() < deadline:
                try:
                    grown += client.sock.send(pipelined * 1_000)
                except BlockingIOError:
                    time.sleep(0.005)
        assert grown < filled + 20 * len(pipelined) + 100_000, f"{filled} bytes grew by {grown}"


def test_reading_goes_on_after_a_pause(serve_in_thread: ServeInThread, gated: GatedApp) -> None:
    """Requests on both sides of a pause are all answered, those whose bytes straddle it too."""
    server = serve_in_thread(gated, sockets=[small_listener()])
    gated.let_go(1_000_000)
    filler = "X-Filler: " + "x" * 3_000 + "\r\n"
    with Client(server.address, send_buffer=65_536) as client:
        client.sock.setblocking(False)
        unsent = b"".join(request(f"/{number}", filler) for number in range(300))
        received = b""

        def step() -> bool:
            nonlocal unsent, received
            try:
                while unsent:
                    unsent = unsent[client.sock.send(unsent[:100_000]) :]
            except BlockingIOError:
                pass
            try:
                received += client.sock.recv(1_000_000)
            except BlockingIOError:
                pass
            return received.count(b"HTTP/1.1 200 OK") == 300

        eventually(step, "300 answers")
    assert gated.done == [f"/{number}" for number in range(300)]


def test_a_reset_is_seen_while_the_app_runs(
    serve_in_thread: ServeInThread, gated: GatedApp, connect: Connect
) -> None:
    gone: list[Callable[[], bool]] = []

    def app(environ: dict[str, Callable[[], bool]], start_response: Callable[..., object]) -> object:
        gone.append(environ["waitress.client_disconnected"])
        return gated(environ, start_response)  # type: ignore[arg-type]

    client = connect(serve_in_thread(app))  # type: ignore[arg-type]
    client.send(request("/1") + request("/2"))
    gated.wait_entered()
    assert not gone[0]()
    client.reset()
    eventually(gone[0], "the app can see that its client is gone")
    assert gated.entered == ["/1"]
