"""`environ["waitress_async.body"]`: request bodies that an async body reads on the loop, without a thread."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ServeInThread
from tests.server.conftest import ServeStreaming
from tests.server.support import (
    DEADLINE,
    Client,
    Response,
    eventually,
    held,
    hello,
    memory_used,
    needs_proc,
    request,
    server_threads,
    small_listener,
    visit_at_random,
)
from tests.server.test_streamed_requests import FRAMINGS, HELD, ON_THE_WAY, framed, head, last
from tests.server.test_tls import NAME, TLSClient
from tests.server.test_tls_contexts import Client as TrustingClient
from tests.server.test_tls_contexts import Files
from waitress_async import ClientDisconnected
from waitress_async.bridge import Input, RequestBody

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

Make = Callable[[RequestBody], AsyncIterator[bytes]]

EXPECT = "Expect: 100-continue\r\n"


async def blocks(body: RequestBody) -> AsyncIterator[bytes]:
    """The body, as it comes."""
    while data := await body.read(65_536):
        yield data


class App:
    """Answers POST with an async body, which `make` makes of the request's; anything else with hello."""

    def __init__(self, make: Make = blocks, *, registers: bool = False, length: int | None = None) -> None:
        self.make = make
        self.registers = registers
        self.headers = [] if length is None else [("Content-Length", str(length))]
        self.threads: set[str] = set()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        if environ["REQUEST_METHOD"] == "GET":
            return hello(environ, start_response)
        self.threads.add(threading.current_thread().name)
        start_response("200 OK", self.headers)
        iterable = self.make(environ["waitress_async.body"])
        if not self.registers:
            return iterable
        environ["waitress_async.stream"](iterable)
        return []


def waits(body: RequestBody) -> bool:
    """Whether a read of it waits for the client."""
    source: Input = body._reader.__self__  # type: ignore[attr-defined]
    return source.is_waited_for


class Stepped:
    """An async body that does with the request's what the test says; what a step returns is sent."""

    def __init__(self) -> None:
        self._steps: SimpleQueue[Callable[[RequestBody], Any] | None] = SimpleQueue()
        self._results: SimpleQueue[object] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._more: asyncio.Event | None = None
        self._body: RequestBody | None = None
        self.ended: list[str] = []

    async def __call__(self, body: RequestBody) -> AsyncIterator[bytes]:
        self._body = body
        self._loop = asyncio.get_running_loop()
        self._more = asyncio.Event()
        try:
            while True:
                while self._steps.empty():
                    self._more.clear()
                    await self._more.wait()
                if (step := self._steps.get()) is None:
                    break
                try:
                    result = await step(body)
                except Exception as error:
                    result = error
                self._results.put(result)
                if isinstance(result, bytes):
                    yield result
        except BaseException as error:
            self.ended.append(type(error).__name__)
            raise
        else:
            self.ended.append("end")

    def begin(self, step: Callable[[RequestBody], Any] | None) -> None:
        """Have it begin with a step; None is its end."""
        self._steps.put(step)
        eventually(lambda: self._more is not None, "the async body has begun")
        assert self._loop is not None
        assert self._more is not None
        self._loop.call_soon_threadsafe(self._more.set)

    @property
    def has_begun(self) -> bool:
        return self._body is not None

    def begin_to_wait(self, step: Callable[[RequestBody], Any]) -> None:
        """Have it begin with a step that waits for more of the request's body, and wait until it does."""
        self.begin(step)
        eventually(lambda: self._body is not None and waits(self._body), "it waits")

    def result(self) -> object:
        try:
            return self._results.get(timeout=DEADLINE)
        except Empty:
            raise AssertionError("the step does not end") from None

    def do(self, step: Callable[[RequestBody], Any]) -> object:
        self.begin(step)
        return self.result()


@pytest.fixture
def stepped() -> Stepped:
    return Stepped()


@pytest.fixture
def client(serve_streaming: ServeStreaming, stepped: Stepped) -> Iterator[Client]:
    """A client of a server with a stepped async body, and one thread."""
    server = serve_streaming(App(stepped), threads=1, spare_threads=0)
    with Client(server.address) as client:
        yield client


def exchange(client: Client, wire: Iterable[bytes]) -> Response:
    """Send and receive at the same time."""
    failed: list[BaseException] = []

    def send() -> None:
        try:
            for data in wire:
                client.send(data)
        except BaseException as error:
            failed.append(error)

    sending = threading.Thread(target=send, daemon=True)
    sending.start()
    response = client.receive()
    sending.join(DEADLINE)
    assert not sending.is_alive()
    assert failed == []
    return response


def wire_of(framing: str, body: bytes, *, step: int = 100_000, fields: str = "") -> Iterator[bytes]:
    yield head(framing, len(body), fields=fields)
    for start in range(0, len(body), step):
        yield framed(framing, body[start : start + step])
    yield last(framing)


# -- both ways at once


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("registers", [False, True])
@pytest.mark.parametrize("size", [1, 65_536, 5_000_000])
def test_an_echo(serve_streaming: ServeStreaming, framing: str, registers: bool, size: int) -> None:
    body = random.Random(size).randbytes(size)
    app = App(registers=registers, length=size if not registers and framing == "counted" else None)
    server = serve_streaming(app, threads=1, spare_threads=0)
    with Client(server.address) as client:
        response = exchange(client, wire_of(framing, body))
    assert response.body == body
    assert len(app.threads) == 1


def test_it_is_read_while_it_comes_and_no_thread_is_held(
    serve_streaming: ServeStreaming, stepped: Stepped
) -> None:
    server = serve_streaming(App(stepped), threads=1, spare_threads=0)
    with Client(server.address) as client:
        client.send(head("chunked", 0))
        for number in range(3):
            stepped.begin(lambda body: body.readline())
            with Client(server.address) as other:
                assert other.get().body == b"Hello, world!"
            client.send(framed("chunked", b"li") + framed("chunked", b"ne %d\nand" % number))
            assert isinstance(line := stepped.result(), bytes)
            assert line.endswith(b"line %d\n" % number)
        client.send(last("chunked"))
        assert stepped.do(lambda body: body.read()) == b"and"
        stepped.begin(None)
        assert client.receive().body == b"line 0\nandline 1\nandline 2\nand"
    assert stepped.ended == ["end"]


def test_a_client_of_http_1_0(serve_streaming: ServeStreaming) -> None:
    server = serve_streaming(App())
    with Client(server.address) as client:
        client.send(b"POST / HTTP/1.0\r\nContent-Length: 200000\r\n\r\n" + bytes(200_000))
        assert client.rest().partition(b"\r\n\r\n")[2] == bytes(200_000)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_over_tls(serve_streaming: ServeStreaming, tmp_path: Path, framing: str) -> None:
    server = serve_streaming(App(), threads=1, **Files(tmp_path).settings)
    body = random.Random(1).randbytes(400_000)
    with TLSClient(server.address, TrustingClient(tmp_path).context, NAME) as client:
        for data in wire_of(framing, body):
            client.send(data)
        assert client.receive().body == body


def test_memory_that_is_short(serve_streaming: ServeStreaming) -> None:
    """Bodies take turns, and all come to their end."""
    server = serve_streaming(App(), buffer_memory=1)
    body = random.Random(2).randbytes(300_000)

    def visit(_chance: random.Random) -> None:
        with Client(server.address) as client:
            assert exchange(client, wire_of("counted", body)).body == body

    visit_at_random(visit, clients=4, visits=2)


def test_from_a_thread_by_way_of_the_loop(serve_streaming: ServeStreaming) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        body = environ["waitress_async.body"]
        read = asyncio.run_coroutine_threadsafe(body.read(), server.loop)
        start_response("200 OK", [])
        return [read.result(DEADLINE)]

    server = serve_streaming(app)
    with Client(server.address) as client:
        for framing in FRAMINGS:
            for data in wire_of(framing, b"some of it" * 10_000, step=30_000):
                client.send(data)
            response = client.receive()
            assert (response.body, response.closes) == (b"some of it" * 10_000, False)


# -- what is there without a stream


def test_without_a_body_there_is_nothing_to_read(serve_streaming: ServeStreaming) -> None:
    server = serve_streaming(App())
    with Client(server.address) as client:
        for fields in ("", "Content-Length: 0\r\n"):
            client.send(request("/", fields, method="POST"))
            response = client.receive()
            assert (response.body, response.closes) == (b"", False)


def test_a_body_that_is_whole_is_in_wsgi_input(serve_in_thread: ServeInThread) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        return [repr(environ["waitress_async.body"]).encode(), environ["wsgi.input"].read()]

    server = serve_in_thread(app, stream_request_prefix="/streamed")
    with Client(server.address) as client:
        client.send(request("/", method="POST", body=b" whole"))
        assert client.receive().body == b"None whole"


# -- 100 (Continue)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_100_comes_with_the_first_read_and_the_head_behind_it(
    client: Client, stepped: Stepped, framing: str
) -> None:
    client.send(head(framing, 4, fields=EXPECT))
    client.sock.settimeout(0.1)
    with pytest.raises(TimeoutError):
        client.receive()
    client.sock.settimeout(DEADLINE)
    stepped.begin(lambda body: body.read())
    assert client.receive().status == 100
    while b"\r\n\r\n" not in client._buffer:  # the head does not wait for the body
        client._more()
    client.send(framed(framing, b"body") + last(framing))
    assert stepped.result() == b"body"
    stepped.begin(None)
    assert client.receive().body == b"body"


@pytest.mark.parametrize("framing", FRAMINGS)
def test_no_100_once_the_answer_has_begun(client: Client, stepped: Stepped, framing: str) -> None:
    async def speak(_body: RequestBody) -> bytes:
        return b"first;"

    client.send(head(framing, 4, fields=EXPECT))
    assert stepped.do(speak) == b"first;"
    while b"first;" not in client._buffer:
        client._more()
    stepped.begin(lambda body: body.read())
    client.send(framed(framing, b"body") + last(framing))
    assert stepped.result() == b"body"
    stepped.begin(None)
    response = client.receive()
    assert (response.status, response.body) == (200, b"first;body")


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_body_that_comes_unasked_lets_the_head_go(client: Client, stepped: Stepped, framing: str) -> None:
    client.send(head(framing, 4, fields=EXPECT))
    eventually(lambda: stepped.has_begun, "the head waits")
    client.send(framed(framing, b"body") + last(framing))
    while b"\r\n\r\n" not in client._buffer:
        client._more()
    assert client._buffer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert stepped.do(lambda body: body.read()) == b"body"
    stepped.begin(None)
    assert client.receive().body == b"body"


# -- one reader


def test_what_a_thread_has_begun_cannot_be_read_here(
    serve_streaming: ServeStreaming, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        if environ["REQUEST_METHOD"] == "GET":
            return hello(environ, start_response)
        assert environ["wsgi.input"].read(1) == b"b"
        start_response("200 OK", [])
        return blocks(environ["waitress_async.body"])

    server = serve_streaming(app)
    with Client(server.address) as client:
        client.send(request("/it", method="POST", body=b"body"))
        assert not client.rest().endswith(b"0\r\n\r\n")
    eventually(lambda: "has been read from wsgi.input" in caplog.text, "it is logged")
    assert "Exception in the async body of /it" in caplog.text


def test_what_is_begun_here_cannot_be_read_by_a_thread(serve_streaming: ServeStreaming) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        read = environ["waitress_async.body"].read(1)
        assert asyncio.run_coroutine_threadsafe(read, server.loop).result(DEADLINE) == b"b"
        start_response("200 OK", [])
        try:
            environ["wsgi.input"].read()
        except RuntimeError as error:
            return [str(error).encode()]
        raise AssertionError("it could be read")

    server = serve_streaming(app)
    with Client(server.address) as client:
        client.send(request("/it", method="POST", body=b"body"))
        assert b"has been read from waitress_async.body" in client.receive().body


def test_what_a_thread_has_begun_is_dropped_when_it_has_ended(serve_streaming: ServeStreaming) -> None:
    """As it ever was: an async body has no use for it, and its client can go on to send."""
    begin = threading.Event()

    async def slow(sent: asyncio.Event) -> AsyncIterator[bytes]:
        yield b"first;"
        await sent.wait()
        yield b"last"

    all_sent = asyncio.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        environ["wsgi.input"].read(1)
        assert begin.wait(DEADLINE)
        start_response("200 OK", [])
        return slow(all_sent)

    server = serve_streaming(app, sockets=[small_listener()])
    with Client(server.address, send_buffer=65_536) as client:
        client.send(head("counted", 4_000_000))
        sent = client.send_until_blocked(bytes(10_000), 4_000_000)
        begin.set()
        client.send(bytes(4_000_000 - sent))
        server.loop.call_soon_threadsafe(all_sent.set)
        assert client.receive().body == b"first;last"


# -- the end before the end


def ends_by_reset(client: Client, _framing: str) -> None:
    client.reset()


def ends_its_side(client: Client, _framing: str) -> None:
    client.half_close()


def ends_with_nonsense(client: Client, framing: str) -> None:
    if framing == "counted":
        client.reset()
    else:
        client.send(b"nonsense\r\n")


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("end", [ends_by_reset, ends_its_side, ends_with_nonsense])
def test_a_read_that_waits_raises_when_no_more_will_come(
    client: Client,
    stepped: Stepped,
    caplog: pytest.LogCaptureFixture,
    framing: str,
    end: Callable[[Client, str], None],
) -> None:
    client.send(head(framing, 10) + framed(framing, b"some"))
    assert stepped.do(lambda body: body.read(4)) == b"some"
    stepped.begin_to_wait(lambda body: body.read(4))
    end(client, framing)
    assert isinstance(stepped.result(), ClientDisconnected)
    # It was told, so it is not cancelled; what it does next is the end of it, or is cancelled by nobody.
    stepped.begin(lambda body: body.read(4))
    assert isinstance(stepped.result(), ClientDisconnected)
    stepped.begin(None)
    eventually(lambda: stepped.ended == ["end"], "it has ended")
    assert "Exception" not in caplog.text


@pytest.mark.parametrize("grouped", [False, True])
def test_a_client_that_leaves_is_no_error_of_the_app(
    serve_streaming: ServeStreaming, caplog: pytest.LogCaptureFixture, grouped: bool
) -> None:
    read: list[RequestBody] = []
    ended: list[BaseException] = []

    async def reads(body: RequestBody) -> AsyncIterator[bytes]:
        read.append(body)
        try:
            yield await body.read(4)
            if grouped:
                async with asyncio.TaskGroup() as group:
                    group.create_task(body.read(4))
            else:
                await body.read(4)
        except BaseException as error:
            ended.append(error)
            raise

    server = serve_streaming(App(reads))
    with Client(server.address) as client:
        client.send(head("counted", 10) + b"some")
        while b"some" not in client._buffer:
            client._more()
        eventually(lambda: waits(read[0]), "it waits")
        client.reset()
    eventually(lambda: ended, "it is told")
    assert isinstance(ended[0], asyncio.CancelledError if grouped else ClientDisconnected)
    server.stop()
    assert "Exception" not in caplog.text


def test_one_that_waits_for_something_else_is_cancelled(client: Client, stepped: Stepped) -> None:
    client.send(head("counted", 10) + b"some")
    assert stepped.do(lambda body: body.read(4)) == b"some"
    client.reset()
    eventually(lambda: stepped.ended in (["CancelledError"], ["GeneratorExit"]), "it is cancelled")


def test_one_that_goes_on_after_it_was_told_is_ended_by_what_it_yields(
    serve_streaming: ServeStreaming,
) -> None:
    read: list[RequestBody] = []
    ended: list[str] = []

    async def stubborn(body: RequestBody) -> AsyncIterator[bytes]:
        read.append(body)
        try:
            yield b"first;"
            with contextlib.suppress(ClientDisconnected):
                await body.read()
            await asyncio.sleep(0)  # there is time to clean up
            ended.append("cleaned up")
            while True:
                yield b"and more"
        except BaseException as error:
            ended.append(type(error).__name__)
            raise

    server = serve_streaming(App(stubborn))
    with Client(server.address) as client:
        client.send(head("counted", 10) + b"some")
        eventually(lambda: read and waits(read[0]), "it waits")
        client.reset()
    eventually(lambda: ended == ["cleaned up", "GeneratorExit"], "it is closed")


@pytest.mark.parametrize("timeout", [0, 0.3])
def test_a_stop_cuts_it(serve_streaming: ServeStreaming, stepped: Stepped, timeout: float) -> None:
    server = serve_streaming(App(stepped), threads=1)
    threads = server_threads()
    with Client(server.address) as client:
        client.send(head("counted", 10) + b"some")
        assert stepped.do(lambda body: body.read(4)) == b"some"
        stepped.begin_to_wait(lambda body: body.read(4))
        stepped.begin(None)
        server.server.request_stop(timeout)
        server.thread.join(DEADLINE)
        assert not server.thread.is_alive()
    assert isinstance(stepped.result(), ClientDisconnected)
    assert stepped.ended == ["end"]
    assert server_threads() <= threads


def test_a_stop_waits_for_one_under_way(serve_streaming: ServeStreaming, stepped: Stepped) -> None:
    server = serve_streaming(App(stepped), threads=1)
    with Client(server.address) as client, Client(server.address) as idle:
        assert idle.get().status == 200
        client.send(head("counted", 8) + b"some")
        assert stepped.do(lambda body: body.read(4)) == b"some"
        server.server.request_stop()
        idle.assert_ended()
        client.send(b"more")
        assert stepped.do(lambda body: body.read()) == b"more"
        stepped.begin(None)
        assert client.receive().body == b"somemore"


@pytest.mark.parametrize("waits", [False, True])
def test_a_slow_client_is_cut_only_while_it_is_waited_for(
    serve_streaming: ServeStreaming, stepped: Stepped, waits: bool
) -> None:
    server = serve_streaming(App(stepped), body_min_rate=2_000, min_rate_grace=0.3)
    connections = server.server._runtime.connections
    with Client(server.address) as client:
        client.send(head("counted", 10) + b"some")
        assert stepped.do(lambda body: body.read(4)) == b"some"
        if waits:
            stepped.begin_to_wait(lambda body: body.read())
            assert isinstance(stepped.result(), ClientDisconnected)
            stepped.begin(None)
        else:
            until = connections.clock + 0.7
            eventually(lambda: connections.clock >= until, "sweeps go on")
            client.send(b"some more")
            stepped.begin(lambda body: body.readexactly(6))
            assert stepped.result() == b"some m"
            stepped.begin(None)
            assert client.receive().body == b"somesome m"


# -- back-pressure, and what is left unread


@pytest.mark.parametrize("framing", FRAMINGS)
def test_one_that_does_not_read_holds_its_client_up(
    serve_streaming: ServeStreaming, stepped: Stepped, framing: str
) -> None:
    total = 4_000_000
    server = serve_streaming(App(stepped), threads=1, sockets=[small_listener()])
    with Client(server.address, send_buffer=65_536) as client:
        client.send(head(framing, total) + (b"%x\r\n" % total if framing == "chunked" else b""))
        sent = client.send_until_blocked(bytes(10_000), total)
        assert HELD < sent < HELD + ON_THE_WAY
        read = memory_used(server)
        assert HELD <= read < HELD + ON_THE_WAY
        assert stepped.do(lambda body: count(body, read)) == read
        more = client.send_until_blocked(bytes(10_000), total - sent)  # it goes on, and stops again
        assert more > 0
        sent += more
        assert read < sent < read + HELD + ON_THE_WAY
        stepped.begin(lambda body: count(body, total - read))
        client.send(bytes(total - sent) + (b"\r\n" if framing == "chunked" else b"") + last(framing))
        assert stepped.result() == total - read
        stepped.begin(None)
        assert client.receive().body == b""


async def count(body: RequestBody, size: int) -> int:
    return len(await body.readexactly(size))


async def answers(_body: RequestBody) -> AsyncIterator[bytes]:
    yield b"done"


@pytest.mark.parametrize("reads", [False, True])
def test_a_small_rest_keeps_the_connection(serve_streaming: ServeStreaming, reads: bool) -> None:
    """And the next request behind it is answered."""
    server = serve_streaming(App(blocks if reads else answers))
    with Client(server.address) as client:
        for _ in range(3):
            client.send(request("/", method="POST", body=bytes(60_000)) + request("/hello"))
            response = client.receive()
            assert response.body == (bytes(60_000) if reads else b"done")
            assert not response.closes
            assert client.receive().body == b"Hello, world!"


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_large_rest_costs_the_connection_but_not_the_answer(
    serve_streaming: ServeStreaming, framing: str
) -> None:
    server = serve_streaming(App(answers))
    with Client(server.address) as client:
        response = exchange(client, wire_of(framing, bytes(2_000_000)))
        assert (response.body, response.closes) == (b"done", True)
        client.assert_ended()


@pytest.mark.parametrize("method", ["HEAD", "PUT"])
def test_where_there_is_no_async_body_nothing_is_held(serve_streaming: ServeStreaming, method: str) -> None:
    """The answer to HEAD has no body, and one beyond `max_streams` is 503."""
    server = serve_streaming(App(answers), max_streams=1)
    bodies = server.server._runtime.outputs.async_bodies
    assert bodies.reserve()
    with Client(server.address) as client:
        for _ in range(2):
            client.send(request("/", method=method, body=b"body"))
            response = client.receive(method)
            assert response.status == (200 if method == "HEAD" else 503)
        eventually(lambda: memory_used(server) == 0, "the body is dropped")
    bodies.ended()


# -- many


@needs_proc
def test_many_clients_with_random_sizes_and_resets(serve_streaming: ServeStreaming) -> None:
    server = serve_streaming(App(), threads=2)
    before, threads = held(), server_threads()

    def visit(chance: random.Random) -> None:
        body = chance.randbytes(chance.choice([1, 1_000, 70_000, 700_000]))
        framing = chance.choice(FRAMINGS)
        wire = list(wire_of(framing, body, step=chance.choice([1_000, 50_000, 500_000])))
        with Client(server.address) as client:
            if chance.random() < 0.4:
                with contextlib.suppress(ConnectionError):
                    client.send(b"".join(wire[: chance.randrange(len(wire))]) + b"1")
                if chance.random() < 0.7:
                    client.reset()
                return
            response = exchange(client, wire)
            assert response.body == body
            if not response.closes:
                assert client.get().body == b"Hello, world!"

    visit_at_random(visit, clients=6, visits=10)
    eventually(lambda: held() == before, "as many sockets and files as before")
    assert server_threads() == threads
