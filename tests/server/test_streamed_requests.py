"""Request bodies that the app reads while they come: `stream_request_body` and `stream_request_prefix`."""

from __future__ import annotations

import contextlib
import hashlib
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, BinaryIO

import pytest

from tests.conftest import RunningServer
from tests.server.conftest import ServeStreaming
from tests.server.support import (
    DEADLINE,
    Client,
    eventually,
    held,
    hello,
    memory_used,
    needs_proc,
    request,
    server_has_read,
    server_threads,
    settled,
    small_listener,
    visit_at_random,
)
from waitress_async import ClientDisconnected

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

Connect = Callable[[RunningServer], Client]

# What an app may leave unread of a body, in bytes, without the loss of its connection.
SMALL_REST = 65_536

# What the server holds of a body that nobody reads; what it has received at once, and four kernel buffers,
# each of which the kernel doubles.
HELD = 262_144
ON_THE_WAY = 2 * 262_144 + 4 * 131_072

CHUNKED = "Transfer-Encoding: chunked\r\n"
FRAMINGS = ["counted", "chunked"]


def head(framing: str, length: int, *, path: str = "/it", fields: str = "") -> bytes:
    fields += CHUNKED if framing == "chunked" else f"Content-Length: {length}\r\n"
    return request(path, fields, method="POST")


def framed(framing: str, data: bytes) -> bytes:
    """Some of a body on the wire."""
    return b"%x\r\n%b\r\n" % (len(data), data) if framing == "chunked" else data


def last(framing: str) -> bytes:
    return b"0\r\n\r\n" if framing == "chunked" else b""


class SteppedApp:
    """An app that does with its input what the test says, one step after the other; then it answers "done".

    `/hello` and GET are answered at once.
    """

    def __init__(self) -> None:
        self.environ: dict[str, Any] = {}
        self.entered = threading.Semaphore(0)
        self._steps: SimpleQueue[Callable[[Any, Any], object] | None] = SimpleQueue()
        self._results: SimpleQueue[object] = SimpleQueue()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "GET":
            return hello(environ, start_response)
        self.environ = environ
        self.entered.release()
        answer: list[bytes] | None = None

        def begin(chunk: bytes) -> None:
            nonlocal answer
            answer = []
            start_response("200 OK", [])(chunk)

        while (step := self._steps.get(timeout=DEADLINE)) is not None:
            try:
                result = step(environ["wsgi.input"], begin)
            except BaseException as error:
                result = error
            self._results.put(result)
        if answer is not None:
            return answer
        start_response("200 OK", [])
        return [b"done"]

    def wait_entered(self) -> None:
        assert self.entered.acquire(timeout=DEADLINE), "the app was not called"

    def begin(self, step: Callable[[BinaryIO], object]) -> None:
        """Have the app begin with a step."""
        self._steps.put(lambda file, _begin: step(file))

    def answer(self, chunk: bytes) -> None:
        """Have the app send some of its answer."""
        self._steps.put(lambda _file, begin: begin(chunk))
        assert self.result() is None

    def waits(self) -> bool:
        """Whether the step has not come to its end."""
        return self._results.empty()

    def result(self) -> object:
        """What the step returned, or raised."""
        try:
            return self._results.get(timeout=DEADLINE)
        except Empty:
            raise AssertionError("the step does not end") from None

    def do(self, step: Callable[[BinaryIO], object]) -> object:
        self.begin(step)
        return self.result()

    def finish(self) -> None:
        self._steps.put(None)


@pytest.fixture
def stepped(serve_streaming: ServeStreaming) -> Iterator[SteppedApp]:
    """An app to be told what to do, and told to end at the end."""
    app = SteppedApp()
    yield app
    for _ in range(100):
        app.finish()


@pytest.fixture
def client(serve_streaming: ServeStreaming, stepped: SteppedApp) -> Iterator[Client]:
    """A client of a server that has a stepped app and one thread."""
    server = serve_streaming(stepped, threads=1, spare_threads=0)
    with Client(server.address) as client:
        yield client


# -- what the app sees


@pytest.mark.parametrize("framing", FRAMINGS)
def test_the_app_begins_at_the_head_and_reads_as_it_comes(
    client: Client, stepped: SteppedApp, framing: str
) -> None:
    for _ in range(2):  # the connection is kept
        client.send(head(framing, 10))
        stepped.wait_entered()
        environ = stepped.environ
        assert environ.get("CONTENT_LENGTH") == (None if framing == "chunked" else "10")
        assert environ["wsgi.input_terminated"] is True
        assert environ["waitress_async.spool"] is None
        assert not environ["wsgi.input"].seekable()
        stepped.begin(lambda file: file.read(4))
        client.send(framed(framing, b"01"))
        client.send(framed(framing, b"23"))
        assert stepped.result() == b"0123"
        stepped.begin(lambda file: file.read1())  # type: ignore[attr-defined]
        client.send(framed(framing, b"456"))
        assert stepped.result() in (b"4", b"45", b"456")
        stepped.begin(lambda file: file.read())
        client.send(framed(framing, b"789") + last(framing))
        rest = stepped.result()
        assert isinstance(rest, bytes)
        assert b"456789".endswith(rest)
        assert rest.endswith(b"789")
        assert stepped.do(lambda file: file.read()) == b""
        assert stepped.do(lambda file: file.read(1)) == b""
        assert stepped.do(lambda file: file.readline()) == b""
        stepped.finish()
        response = client.receive()
        assert (response.status, response.body, response.closes) == (200, b"done", False)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_read_waits_for_what_it_asks_for(client: Client, stepped: SteppedApp, framing: str) -> None:
    client.send(head(framing, 6))
    stepped.wait_entered()
    for first, second in ((b"a", b"b"), (b"c", b"d"), (b"e", b"f")):
        stepped.begin(lambda file: file.read(2))
        client.send(framed(framing, first))
        assert settled(stepped.waits)
        client.send(framed(framing, second))
        assert stepped.result() == first + second
    client.send(last(framing))
    stepped.finish()
    assert client.receive().body == b"done"


@pytest.mark.parametrize("framing", FRAMINGS)
def test_lines(client: Client, stepped: SteppedApp, framing: str) -> None:
    body = b"one\ntwo\nthree\nfour\n\nlast"
    client.send(head(framing, len(body)))
    stepped.wait_entered()
    stepped.begin(lambda file: file.readline())
    client.send(framed(framing, body[:2]))
    client.send(framed(framing, body[2:10]))
    assert stepped.result() == b"one\n"
    assert stepped.do(lambda file: file.readline(2)) == b"tw"
    stepped.begin(lambda file: [next(file), next(file)])
    client.send(framed(framing, body[10:]) + last(framing))
    assert stepped.result() == [b"o\n", b"three\n"]
    assert stepped.do(list) == [b"four\n", b"\n", b"last"]
    stepped.finish()
    assert client.receive().body == b"done"


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("size", [1, 65_536, 262_144, 262_145, 3_000_000])
def test_a_body_that_comes_with_its_head_and_the_next_request_behind_it(
    serve_streaming: ServeStreaming, connect: Connect, framing: str, size: int
) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        body = environ["wsgi.input"].read()
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode(), b" ", hashlib.sha256(body).hexdigest().encode()]

    client = connect(serve_streaming(app))
    body = random.Random(size).randbytes(size)
    expected = hashlib.sha256(body).hexdigest().encode()
    wire = head(framing, size) + framed(framing, body) + last(framing)
    client.send(wire + request("/get") + wire + head(framing, size, path="/end")[:-4])
    assert client.receive().body == b"/it " + expected
    assert client.receive().body == b"/get " + hashlib.sha256().hexdigest().encode()
    assert client.receive().body == b"/it " + expected
    client.send(head(framing, size, path="/end")[-4:] + framed(framing, body) + last(framing))
    response = client.receive()
    assert response.body == b"/end " + expected
    assert not response.closes


def test_chunks_of_one_byte(serve_streaming: ServeStreaming, connect: Connect) -> None:
    body = random.Random(5).randbytes(5_000)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [environ["wsgi.input"].read()]

    client = connect(serve_streaming(app))
    wire = b"".join(framed("chunked", body[at : at + 1]) for at in range(len(body)))
    client.send((head("chunked", 0) + wire + last("chunked")) * 2)
    assert client.receive().body == body
    assert client.receive().body == body


@pytest.mark.parametrize("fields", ["", "Content-Length: 0\r\n"])
def test_a_request_without_a_body(client: Client, stepped: SteppedApp, fields: str) -> None:
    for _ in range(2):
        client.send(request("/", fields, method="POST"))
        stepped.wait_entered()
        assert stepped.environ["waitress_async.spool"].size == 0
        assert stepped.do(lambda file: file.read()) == b""
        stepped.finish()
        assert client.receive().body == b"done"


def test_an_empty_chunked_body(client: Client, stepped: SteppedApp) -> None:
    for _ in range(2):
        client.send(head("chunked", 0))
        stepped.wait_entered()
        stepped.begin(lambda file: file.read(1))
        client.send(last("chunked"))
        assert stepped.result() == b""
        stepped.finish()
        response = client.receive()
        assert (response.body, response.closes) == (b"done", False)


def test_the_input_is_of_no_use_when_the_app_has_ended(client: Client, stepped: SteppedApp) -> None:
    client.send(head("counted", 4) + b"body")
    stepped.wait_entered()
    file = stepped.environ["wsgi.input"]
    stepped.finish()
    assert client.receive().body == b"done"
    eventually(lambda: isinstance(raised_by(file), ValueError), "the app has ended")


def raised_by(file: BinaryIO) -> BaseException | None:
    try:
        file.read()
    except BaseException as error:
        return error
    return None


def test_a_thread_of_the_apps_own_that_reads_is_released_when_the_app_has_ended(
    serve_streaming: ServeStreaming, connect: Connect
) -> None:
    raised: list[BaseException | None] = []
    threads: list[threading.Thread] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        file = environ["wsgi.input"]
        assert file.read(2) == b"01"
        reading = threading.Event()

        def read() -> None:
            reading.set()
            raised.append(raised_by(file))

        threads.append(threading.Thread(target=read, daemon=True))
        threads[0].start()
        assert reading.wait(DEADLINE)
        start_response("200 OK", [])
        return [b"ended"]

    client = connect(serve_streaming(app))
    client.send(head("counted", 10) + b"01")
    assert client.receive().body == b"ended"
    threads[0].join(DEADLINE)
    # The response may be over, which the loop tells, before the app is, which its thread tells.
    assert isinstance(raised[0], ValueError | ClientDisconnected)


# -- which requests


@pytest.mark.parametrize(
    ("prefixes", "streamed", "whole"),
    [
        (
            ["/up"],
            ["/up", "/up/", "/up/x", "/up/x/y", "/up?q=/other", "/%75p"],
            ["/", "/upper", "/u", "/x/up"],
        ),
        (["/up/"], ["/up/", "/up/x"], ["/upper", "/u"]),
        (["/one", "/two"], ["/one", "/two/x"], ["/three", "/"]),
        (["/"], ["/", "/x", "/x/y"], []),
        ([], [], ["/", "/up"]),
    ],
)
def test_prefixes(
    serve_streaming: ServeStreaming,
    connect: Connect,
    prefixes: list[str],
    streamed: list[str],
    whole: list[str],
) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        is_streamed = environ["waitress_async.spool"] is None
        start_response("200 OK", [("X-Streamed", "yes" if is_streamed else "no")])
        return [environ["wsgi.input"].read()]

    server = serve_streaming(app, stream_request_body=False, stream_request_prefix=prefixes)
    client = connect(server)
    for path in streamed + whole:
        client.send(request(path, method="POST", body=b"body"))
        response = client.receive()
        assert response.body == b"body"
        assert response.headers["x-streamed"] == ("yes" if path in streamed else "no"), path


# -- 100 (Continue)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_100_comes_with_the_first_read(client: Client, stepped: SteppedApp, framing: str) -> None:
    for _ in range(2):
        client.send(head(framing, 4, fields="Expect: 100-continue\r\n"))
        stepped.wait_entered()
        client.sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.receive()
        client.sock.settimeout(DEADLINE)
        stepped.begin(lambda file: file.read(2))
        assert client.receive().status == 100
        client.send(framed(framing, b"bo"))
        assert stepped.result() == b"bo"
        stepped.begin(lambda file: file.read())
        client.send(framed(framing, b"dy") + last(framing))
        assert stepped.result() == b"dy"
        stepped.finish()
        response = client.receive()  # and no second 100
        assert (response.status, response.body, response.closes) == (200, b"done", False)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_no_100_without_a_read(client: Client, stepped: SteppedApp, framing: str) -> None:
    client.send(head(framing, 4, fields="Expect: 100-continue\r\n"))
    stepped.wait_entered()
    stepped.finish()
    response = client.receive()
    assert (response.status, response.body) == (200, b"done")
    assert response.closes  # whether the body will come now, nobody knows
    client.assert_ended()


def test_no_100_after_the_answer_has_begun(client: Client, stepped: SteppedApp) -> None:
    client.send(head("counted", 4, fields="Expect: 100-continue\r\n"))
    stepped.wait_entered()
    stepped.answer(b"begun")
    stepped.begin(lambda file: file.read(4))
    client.send(b"body")
    assert stepped.result() == b"body"
    stepped.finish()
    response = client.receive()
    assert (response.status, response.body) == (200, b"begun")


# -- clients that go, and bodies that are refused


def assert_disconnected(error: object) -> None:
    assert isinstance(error, ClientDisconnected)
    assert isinstance(error, OSError)


@needs_proc
@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("leave", [Client.reset, lambda client: client.sock.close()], ids=["reset", "close"])
@pytest.mark.parametrize("waits", [True, False], ids=["waits", "between reads"])
def test_a_client_that_goes_in_the_middle(
    serve_streaming: ServeStreaming,
    stepped: SteppedApp,
    framing: str,
    leave: Callable[[Client], None],
    waits: bool,
) -> None:
    server = serve_streaming(stepped, threads=1, spare_threads=0)
    before = held()
    with Client(server.address) as client:
        client.send(head(framing, 100) + framed(framing, b"some"))
        stepped.wait_entered()
        assert stepped.do(lambda file: file.read(2)) == b"so"
        if waits:
            stepped.begin(lambda file: file.read())
            assert settled(stepped.waits)
        leave(client)
        eventually(lambda: held() == before, "the connection is gone")
        assert stepped.environ["waitress.client_disconnected"]()
        if not waits:
            stepped.begin(lambda file: file.read())
        assert_disconnected(stepped.result())
        assert_disconnected(stepped.do(lambda file: file.read(1)))
        assert_disconnected(stepped.do(lambda file: file.readline()))
    stepped.finish()
    with Client(server.address) as other:
        assert other.get().body == b"Hello, world!"  # by the one thread


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_client_that_ends_its_side_in_the_middle(client: Client, stepped: SteppedApp, framing: str) -> None:
    client.send(head(framing, 100) + framed(framing, b"some"))
    stepped.wait_entered()
    stepped.begin(lambda file: file.read())
    client.half_close()
    assert_disconnected(stepped.result())
    response = client.receive()
    assert response.status == 400
    assert response.closes
    client.assert_ended()
    stepped.finish()


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_client_that_ends_its_side_behind_the_body(
    client: Client, stepped: SteppedApp, framing: str
) -> None:
    client.send(head(framing, 4) + framed(framing, b"body") + last(framing))
    client.half_close()
    stepped.wait_entered()
    assert stepped.do(lambda file: file.read()) == b"body"
    stepped.finish()
    assert client.receive().body == b"done"
    client.assert_ended()


@pytest.mark.parametrize(
    ("bad", "status"),
    [(b"ffff\r\n", 413), (b"nonsense\r\n", 400), (b"3\r\nlonger\r\n", 400)],
    ids=["too large", "malformed size", "longer than its size"],
)
@pytest.mark.parametrize("begun", [False, True], ids=["not answered", "being answered"])
def test_a_chunk_that_is_refused_midway(
    serve_streaming: ServeStreaming,
    stepped: SteppedApp,
    connect: Connect,
    bad: bytes,
    status: int,
    begun: bool,
) -> None:
    server = serve_streaming(stepped, threads=1, spare_threads=0, max_request_body_size=10_000)
    client = connect(server)
    client.send(head("chunked", 0) + framed("chunked", bytes(5_000)))
    stepped.wait_entered()
    assert stepped.do(lambda file: file.read(5_000)) == bytes(5_000)
    if begun:
        stepped.answer(b"begun")
        assert client.sock.recv(65_536).endswith(b"5\r\nbegun\r\n")
    stepped.begin(lambda file: file.read(5_000))
    client.send(bad)
    assert_disconnected(stepped.result())
    if begun:
        client.assert_ended()  # without a last chunk
    else:
        response = client.receive()
        assert response.status == status
        assert response.closes
        client.assert_ended()
    assert_disconnected(stepped.do(lambda file: file.read(1)))
    stepped.finish()
    assert connect(server).get().body == b"Hello, world!"


def test_a_length_that_is_too_large_is_refused_without_the_app(
    serve_streaming: ServeStreaming, stepped: SteppedApp, connect: Connect
) -> None:
    client = connect(serve_streaming(stepped, max_request_body_size=10))
    client.send(head("counted", 11))
    response = client.receive()
    assert response.status == 413
    assert not stepped.environ


def test_what_the_app_does_not_catch_is_no_error_of_the_app(
    serve_streaming: ServeStreaming, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    entered, ended = threading.Event(), threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        entered.set()
        try:
            environ["wsgi.input"].read()
        finally:
            ended.set()
        return []

    server = serve_streaming(app, threads=1)
    client = connect(server)
    client.send(head("chunked", 0) + framed("chunked", b"some"))
    assert entered.wait(DEADLINE)
    client.reset()
    assert ended.wait(DEADLINE)
    server.stop()
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")], caplog.text


def test_a_full_queue_is_a_503(
    serve_streaming: ServeStreaming, stepped: SteppedApp, connect: Connect
) -> None:
    server = serve_streaming(stepped, threads=1, spare_threads=0, max_queue=1)
    first, second, third = connect(server), connect(server), connect(server)
    first.send(head("chunked", 0) + framed("chunked", b"first"))
    stepped.wait_entered()
    second.send(head("chunked", 0) + framed("chunked", b"second"))
    server_has_read(server)
    for _ in range(2):  # little of it is missing: the connection is kept
        third.send(head("counted", 5) + b"third")
        assert third.receive().status == 503
    third.send(head("chunked", 0))
    response = third.receive()
    assert response.status == 503
    assert response.closes
    for client, body in ((first, b"first"), (second, b"second")):
        stepped.begin(lambda file: file.read())
        client.send(last("chunked"))
        assert stepped.result() == body
        stepped.finish()
        assert client.receive().body == b"done"


# -- back-pressure


@pytest.mark.parametrize("framing", FRAMINGS)
def test_an_app_that_does_not_read_holds_its_client_up(
    serve_streaming: ServeStreaming, stepped: SteppedApp, framing: str
) -> None:
    total = 8_000_000
    piece = random.Random(3).randbytes(10_000)
    server = serve_streaming(stepped, threads=1, spare_threads=0, sockets=[small_listener()])
    with Client(server.address, send_buffer=65_536) as client:
        client.send(head(framing, total))
        if framing == "chunked":
            client.send(b"%x\r\n" % total)
        stepped.wait_entered()
        sent = client.send_until_blocked(piece, total)
        assert HELD < sent < HELD + ON_THE_WAY
        assert HELD <= memory_used(server) < HELD + ON_THE_WAY
        read = 0
        for _ in range(3):  # it goes on as the app reads, and stops again
            size = memory_used(server)
            assert stepped.do(lambda file: file.read(size)) == (piece * 60)[read % 10_000 :][:size]  # noqa: B023
            read += size
            more = client.send_until_blocked(piece[sent % 10_000 :] + piece[: sent % 10_000], total - sent)
            assert more > 0
            sent += more
            assert read < sent < read + HELD + ON_THE_WAY
        stepped.begin(lambda file: len(file.read()))
        client.send((piece * 801)[sent % 10_000 :][: total - sent])
        client.send((b"\r\n" if framing == "chunked" else b"") + last(framing))
        assert stepped.result() == total - read
        stepped.finish()
        response = client.receive()
        assert (response.body, response.closes) == (b"done", False)


def test_a_reset_is_seen_while_the_client_is_held_up(
    serve_streaming: ServeStreaming, stepped: SteppedApp
) -> None:
    """Once the app reads on: a reset cannot be seen by who does not read."""
    server = serve_streaming(stepped, threads=1, spare_threads=0, sockets=[small_listener()])
    with Client(server.address, send_buffer=65_536) as client:
        client.send(head("counted", 8_000_000))
        stepped.wait_entered()
        client.send_until_blocked(bytes(10_000), 8_000_000)
        client.reset()
        assert_disconnected(stepped.do(lambda file: file.read()))
    stepped.finish()


# -- what the app leaves unread


@pytest.mark.parametrize("here", [0, 100])
@pytest.mark.parametrize("left", [1, 50_000, SMALL_REST])
def test_a_small_rest_keeps_the_connection(client: Client, stepped: SteppedApp, left: int, here: int) -> None:
    """`here` bytes of it have come, and none of them was read."""
    for _ in range(2):
        client.send(head("counted", here + left) + bytes(here))
        stepped.wait_entered()
        stepped.finish()
        response = client.receive()
        assert (response.body, response.closes) == (b"done", False)
        client.send(bytes(left))
        assert client.get().body == b"Hello, world!"


def test_a_whole_body_that_nobody_reads_keeps_the_connection(
    serve_streaming: ServeStreaming, connect: Connect
) -> None:
    server = serve_streaming(hello)
    client = connect(server)
    for framing in FRAMINGS * 2:
        wire = head(framing, 200_000) + framed(framing, bytes(200_000)) + last(framing)
        client.send(wire)
        response = client.receive()
        assert response.body == b"Hello, world!"
        if response.closes:  # the app was quicker than the body
            client = connect(server)


def test_a_body_above_what_is_held_that_nobody_reads(
    serve_streaming: ServeStreaming, stepped: SteppedApp, connect: Connect
) -> None:
    """Reading was paused for it, and goes on for the next request."""
    size = HELD + 30_000
    server = serve_streaming(stepped, threads=1, spare_threads=0)
    client = connect(server)
    for _ in range(3):
        client.send(head("counted", size) + bytes(size))
        stepped.wait_entered()
        eventually(lambda: memory_used(server) > HELD, "reading is paused, and little is missing")
        stepped.finish()
        response = client.receive()
        assert response.body == b"done"
        assert not response.closes
        assert client.get().body == b"Hello, world!"


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("reads", [0, 100_000])
def test_a_large_rest_costs_the_connection_but_not_the_answer(
    client: Client, stepped: SteppedApp, framing: str, reads: int
) -> None:
    half = 2_000_000
    failed: list[BaseException] = []
    answered = threading.Event()
    client.send(head(framing, 2 * half) + (b"%x\r\n" % (2 * half) if framing == "chunked" else b""))
    stepped.wait_entered()

    def send() -> None:
        try:
            client.send(bytes(half))
            assert answered.wait(DEADLINE)
            client.send(bytes(half))
        except BaseException as error:
            failed.append(error)

    sending = threading.Thread(target=send, daemon=True)
    sending.start()
    assert stepped.do(lambda file: len(file.read(reads))) == reads
    stepped.finish()
    response = client.receive()
    assert (response.status, response.body, response.closes) == (200, b"done", True)
    answered.set()
    client.assert_ended()
    sending.join(DEADLINE)
    assert not sending.is_alive()
    assert failed == []


def test_a_client_that_reads_only_after_it_has_sent_all_gets_the_answer(
    client: Client, stepped: SteppedApp
) -> None:
    stepped.finish()
    client.send(head("counted", 4_000_000) + bytes(4_000_000))
    response = client.receive()
    assert (response.status, response.body) == (200, b"done")
    if response.closes:  # most of it was missing when the app had ended
        client.assert_ended()
    else:
        assert client.get().body == b"Hello, world!"


def test_a_client_that_reads_only_after_it_has_sent_all_gets_a_large_answer(
    serve_streaming: ServeStreaming,
) -> None:
    """The app has ended, so its input is not held for anybody: it is read and dropped."""
    begin = threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        assert begin.wait(DEADLINE)
        start_response("200 OK", [])
        return [bytes(4_000_000)]

    server = serve_streaming(app, sockets=[small_listener()])
    with Client(server.address, receive_buffer=65_536, send_buffer=65_536) as client:
        client.send(head("counted", 4_000_000))
        sent = client.send_until_blocked(bytes(10_000), 4_000_000)
        begin.set()
        client.sock.settimeout(3)
        client.send(bytes(4_000_000 - sent))
        assert len(client.receive().body) == 4_000_000


# -- both ways at once


@pytest.mark.parametrize("framing", FRAMINGS)
def test_an_echo_of_twenty_megabytes(serve_streaming: ServeStreaming, connect: Connect, framing: str) -> None:
    block = random.Random(4).randbytes(100_000)
    count = 200

    def echo(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        file = environ["wsgi.input"]
        while data := file.read(65_536):
            yield data

    server = serve_streaming(echo, threads=1, spare_threads=0, outbuf_high_watermark=1_000_000)
    client = connect(server)
    failed: list[BaseException] = []

    def send() -> None:
        try:
            client.send(head(framing, count * len(block)))
            for _ in range(count):
                client.send(framed(framing, block))
            client.send(last(framing))
        except BaseException as error:
            failed.append(error)

    sending = threading.Thread(target=send, daemon=True)
    sending.start()
    received = bytearray()
    while not received.endswith(b"\r\n0\r\n\r\n"):
        data = client.sock.recv(1_000_000)
        assert data
        received += data
    sending.join(DEADLINE)
    assert failed == []
    _, _, rest = bytes(received).partition(b"\r\n\r\n")
    digest = hashlib.sha256()
    at = 0
    while size := int(rest[at : (end := rest.index(b"\r\n", at))], 16):
        digest.update(memoryview(rest)[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    assert digest.digest() == hashlib.sha256(block * count).digest()


@needs_proc
def test_an_echo_to_a_client_that_goes(serve_streaming: ServeStreaming) -> None:
    closed = threading.Event()

    def echo(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "GET":
            yield from hello(environ, start_response)
            return
        start_response("200 OK", [])
        try:
            while data := environ["wsgi.input"].read(10_000):
                yield data
        finally:
            closed.set()

    server = serve_streaming(
        echo, threads=1, spare_threads=0, outbuf_high_watermark=65_536, sockets=[small_listener()]
    )
    before = held()
    with Client(server.address, receive_buffer=65_536, send_buffer=65_536) as client:
        client.send(head("counted", 8_000_000))
        client.send_until_blocked(bytes(10_000), 8_000_000)
        assert not closed.is_set()
        client.reset()
        assert closed.wait(DEADLINE)
    eventually(lambda: held() == before, "as many sockets and files as before")
    with Client(server.address) as other:
        assert other.get().body == b"Hello, world!"


# -- threads


def test_slow_uploads_hold_threads_and_spares_serve_the_others(
    serve_streaming: ServeStreaming, stepped: SteppedApp, connect: Connect
) -> None:
    server = serve_streaming(stepped, threads=1, spare_threads=2)
    threads = server_threads()
    uploads = [connect(server), connect(server)]
    for upload in uploads:
        upload.send(head("counted", 4) + b"bo")
        stepped.wait_entered()
        stepped.begin(lambda file: file.read())
        assert connect(server).get().body == b"Hello, world!"
    eventually(lambda: len(server_threads()) == len(threads) + 2, "there are two spares")
    for upload in uploads:
        upload.send(b"dy")
        assert stepped.result() == b"body"
        stepped.finish()
        assert upload.receive().body == b"done"
    eventually(lambda: server_threads() == threads, "the spares have ended")


def test_without_spares_the_others_wait(
    serve_streaming: ServeStreaming, stepped: SteppedApp, connect: Connect
) -> None:
    server = serve_streaming(stepped, threads=1, spare_threads=0)
    upload, other = connect(server), connect(server)
    upload.send(head("counted", 4) + b"bo")
    stepped.wait_entered()
    stepped.begin(lambda file: file.read())
    other.send(request("/hello"))
    server_has_read(server)
    other.sock.settimeout(0.2)
    with pytest.raises(TimeoutError):
        other.receive()
    other.sock.settimeout(DEADLINE)
    upload.send(b"dy")
    assert stepped.result() == b"body"
    stepped.finish()
    assert other.receive().body == b"Hello, world!"
    assert upload.receive().body == b"done"


# -- the end


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("timeout", [0, 0.3])
def test_a_stop_releases_an_app_that_waits_at_its_deadline(
    serve_streaming: ServeStreaming, connect: Connect, framing: str, timeout: float
) -> None:
    entered = threading.Event()
    raised: list[BaseException] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        entered.set()
        try:
            environ["wsgi.input"].read()
        except BaseException as error:
            raised.append(error)
            raise
        raise AssertionError("the body never came")

    threads = server_threads()
    server = serve_streaming(app, threads=1)
    client = connect(server)
    client.send(head(framing, 100) + framed(framing, b"some"))
    assert entered.wait(DEADLINE)
    server.server.request_stop(timeout)
    server.thread.join(DEADLINE)
    assert not server.thread.is_alive()
    assert_disconnected(raised[0])
    assert server_threads() == threads
    with contextlib.suppress(ConnectionResetError):
        assert client.rest() == b""


def test_a_stop_waits_for_a_body_under_way(
    serve_streaming: ServeStreaming, stepped: SteppedApp, connect: Connect
) -> None:
    server = serve_streaming(stepped)
    client, idle = connect(server), connect(server)
    assert idle.get().status == 200
    client.send(head("counted", 4) + b"bo")
    stepped.wait_entered()
    stepped.begin(lambda file: file.read())
    server.server.request_stop()
    idle.assert_ended()
    client.send(b"dy")
    assert stepped.result() == b"body"
    stepped.finish()
    response = client.receive()
    assert (response.body, response.closes) == (b"done", True)
    client.assert_ended()


def test_a_client_that_sends_no_more_is_closed_after_the_channel_timeout(
    serve_streaming: ServeStreaming, stepped: SteppedApp, connect: Connect
) -> None:
    server = serve_streaming(stepped, channel_timeout=1)
    client = connect(server)
    client.send(head("counted", 4) + b"bo")
    stepped.wait_entered()
    assert_disconnected(stepped.do(lambda file: file.read()))
    stepped.finish()


# -- many


@needs_proc
def test_many_clients_with_random_sizes_and_resets(serve_streaming: ServeStreaming) -> None:
    app = EveryWay()
    server = serve_streaming(app, threads=2, spare_threads=3, outbuf_high_watermark=100_000)
    before, threads = held(), server_threads()

    def visit(chance: random.Random) -> None:
        body = chance.randbytes(chance.choice([1, 1_000, 70_000, 700_000]))
        framing = chance.choice(FRAMINGS)
        way = chance.choice(["/read", "/some", "/nothing", "/lines"])
        wire = head(framing, len(body), path=way)
        step = chance.choice([1_000, 50_000, 500_000])
        pieces = [body[at : at + step] for at in range(0, len(body), step)]
        wire += b"".join(framed(framing, piece) for piece in pieces) + last(framing)
        with Client(server.address) as client:
            if chance.random() < 0.4:
                with contextlib.suppress(ConnectionError):
                    client.send(wire[: chance.randrange(len(wire))])
                if chance.random() < 0.7:
                    client.reset()
                return
            with contextlib.suppress(ConnectionError):  # the answer may be there already
                client.send(wire)
            response = client.receive()
            assert response.status == 200
            if way == "/read":
                assert response.body == hashlib.sha256(body).hexdigest().encode()
            if not response.closes:
                assert client.get().body == b"Hello, world!"

    visit_at_random(visit, clients=6, visits=15)
    eventually(lambda: held() == before, "as many sockets and files as before")
    eventually(lambda: server_threads() == threads, "the spares have ended")
    eventually(lambda: app.running == 0, "each call of the app has ended")


class EveryWay:
    """Reads all, some or nothing of its input, or in lines; to GET it says hello."""

    def __init__(self) -> None:
        self.running = 0
        self._lock = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with self._lock:
            self.running += 1
        try:
            if environ["REQUEST_METHOD"] == "GET":
                return hello(environ, start_response)
            file = environ["wsgi.input"]
            path = environ["PATH_INFO"]
            answer = b"answer"
            if path == "/read":
                answer = hashlib.sha256(file.read()).hexdigest().encode()
            elif path == "/some":
                file.read(10_000)
            elif path == "/lines":
                answer = b"%d" % sum(1 for _ in file)
            start_response("200 OK", [])
            return [answer]
        finally:
            with self._lock:
                self.running -= 1
