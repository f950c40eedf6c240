"""Responses that go on from an async iterable: on the loop, in the request's context, without a thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ServeInThread
from tests.server.support import Client, eventually, hello, request, small_listener
from waitress_async.server.sender import Sender

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

Stream = Callable[["Steps"], AsyncIterator[bytes]]
VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="none")


class Steps:
    """What a test lets a stream do, from another thread, and what became of it."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event: asyncio.Event | None = None
        self._allowed = 0
        self.threads: set[str] = set()
        self.asked = 0
        self.ended: list[str] = []

    async def wait(self) -> None:
        """Wait until `go` was called once more."""
        self._loop = asyncio.get_running_loop()
        self.threads.add(threading.current_thread().name)
        self.asked += 1
        if self._event is None:
            self._event = asyncio.Event()
        while self._allowed < self.asked:
            self._event.clear()
            await self._event.wait()

    def go(self, times: int = 1) -> None:
        """Let the stream take so many more steps."""
        eventually(lambda: self._event is not None, "the stream has begun")
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._go, times)

    def _go(self, times: int) -> None:
        assert self._event is not None
        self._allowed += times
        self._event.set()


async def numbers(steps: Steps, count: int = 3) -> AsyncIterator[bytes]:
    try:
        for number in range(count):
            await steps.wait()
            yield b"%d;" % number
    except BaseException as error:
        steps.ended.append(type(error).__name__)
        raise
    else:
        steps.ended.append("end")


class App:
    """Answers with a stream: returned, or registered and behind what is returned."""

    def __init__(self, way: str, make: Callable[[], AsyncIterator[bytes]], **headers: str) -> None:
        self.way = way
        self.make = make
        self.headers = list(headers.items())
        self.closed = threading.Event()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/hello":
            return hello(environ, start_response)
        start_response("200 OK", self.headers)
        VARIABLE.set(environ["PATH_INFO"])
        if self.way == "returned":
            return self.make()  # type: ignore[return-value]
        environ["waitress_async.stream"](self.make())
        return [] if self.way == "registered" else self.before()

    def before(self) -> Iterable[bytes]:
        try:
            yield b"before;"
        finally:
            self.closed.set()


WAYS = ["returned", "registered", "behind"]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def chunk(client: Client) -> bytes:
    """The next chunk of a body, as it comes."""
    while b"\r\n" not in client._buffer:
        client._more()
    size, _, rest = client._buffer.partition(b"\r\n")
    length = int(size, 16)
    while len(rest) < length + 2:
        client._more()
        size, _, rest = client._buffer.partition(b"\r\n")
    client._buffer = rest[length + 2 :]
    return bytes(rest[:length])


def head(client: Client) -> bytes:
    while b"\r\n\r\n" not in client._buffer:
        client._more()
    head, _, client._buffer = client._buffer.partition(b"\r\n\r\n")
    return bytes(head)


# -- what is sent, and when


def test_each_item_leaves_when_it_is_there(serve_in_thread: ServeInThread, way: str) -> None:
    """And the head before the first of them."""
    steps = Steps()
    app = App(way, lambda: numbers(steps))
    server = serve_in_thread(app, threads=1)
    with Client(server.address) as client:
        client.send(request("/stream"))
        assert head(client).startswith(b"HTTP/1.1 200 OK\r\n")
        if way == "behind":
            assert chunk(client) == b"before;"
            assert app.closed.wait(10)
        for number in range(3):
            with Client(server.address) as other:  # the one thread is free
                assert other.get("/hello").status == 200
            steps.go()
            assert chunk(client) == b"%d;" % number
        assert chunk(client) == b""
        assert client.get("/hello").status == 200  # the connection is kept
    assert steps.ended == ["end"]
    assert steps.threads == {server.thread.name}


def test_nothing_is_asked_for_before_the_client_takes_what_there_is(
    serve_in_thread: ServeInThread, way: str
) -> None:
    asked = 0

    async def large() -> AsyncIterator[bytes]:
        nonlocal asked
        for _ in range(400):
            asked += 1
            yield bytes(100_000)

    server = serve_in_thread(App(way, large), threads=1, sockets=[small_listener()])
    with Client(server.address, receive_buffer=4_096) as client:
        client.send(request("/large"))
        assert head(client)
        seen = -1

        def stands() -> bool:
            nonlocal seen
            before, seen = seen, asked
            with Client(server.address) as other:
                assert other.get("/hello").status == 200
            return before == asked > 0

        eventually(stands, "it waits")
        assert asked < 50
        client._buffer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + client._buffer
        body = client.receive().body
    assert len(body) == 400 * 100_000 + len(b"before;") * (way == "behind")
    assert asked == 400


@pytest.mark.parametrize("items", [[b""], [b"", b"a", b"", b"b", b""], [b"x" * 300_000], []])
def test_every_item_is_sent_once(serve_in_thread: ServeInThread, way: str, items: list[bytes]) -> None:
    async def some() -> AsyncIterator[bytes]:
        for item in items:
            yield item

    server = serve_in_thread(App(way, some))
    with Client(server.address) as client:
        for _ in range(3):
            before = b"before;" if way == "behind" else b""
            assert client.get("/some").body == before + b"".join(items)


def test_a_content_length_is_kept_to(
    serve_in_thread: ServeInThread, caplog: pytest.LogCaptureFixture
) -> None:
    async def ten() -> AsyncIterator[bytes]:
        yield b"01234"
        yield b"56789"

    for length, whole in ((10, True), (12, False), (7, False)):
        server = serve_in_thread(App("returned", ten, **{"Content-Length": str(length)}))
        with Client(server.address) as client:
            client.send(request("/ten"))
            if whole:
                assert client.receive().body == b"0123456789"
                assert client.get("/hello").status == 200
            else:
                assert len(client.rest().partition(b"\r\n\r\n")[2]) < length
                eventually(lambda: "than its Content-Length says" in caplog.text, "it was logged")
        server.stop()
        caplog.clear()


def test_a_client_of_http_1_0_reads_to_the_end(serve_in_thread: ServeInThread, way: str) -> None:
    steps = Steps()
    server = serve_in_thread(App(way, lambda: numbers(steps)))
    with Client(server.address) as client:
        client.send(b"GET /stream HTTP/1.0\r\n\r\n")
        steps.go(3)
        assert client.rest().endswith(b"0;1;2;")


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_where_there_is_no_body_it_is_closed_unread(
    serve_in_thread: ServeInThread, way: str, method: str
) -> None:
    closed = threading.Event()

    class Unread:
        def __aiter__(self) -> Unread:
            raise AssertionError("nobody reads it")

        async def aclose(self) -> None:
            closed.set()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        start_response("200 OK" if method == "HEAD" else "204 No Content", [])
        if way == "returned":
            return Unread()
        environ["waitress_async.stream"](Unread())
        return []

    server = serve_in_thread(app)
    with Client(server.address) as client:
        client.send(request("/", method=method))
        assert head(client)
        assert closed.wait(10)


# -- the context


def test_one_that_never_waits_lets_others_have_the_loop(serve_in_thread: ServeInThread, way: str) -> None:
    sent = 0

    async def busy() -> AsyncIterator[bytes]:
        nonlocal sent
        others = asyncio.Event()
        asyncio.get_running_loop().call_soon(others.set)
        while not others.is_set() and sent < 5_000:  # too few bytes for the transport to have enough
            sent += 1
            yield b"."

    server = serve_in_thread(App(way, busy))
    with Client(server.address) as client:
        assert client.get("/").body.endswith(b"." * sent)
    assert sent < 1_000


def test_what_sends_its_items_is_not_in_its_context(
    serve_in_thread: ServeInThread, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or what the server makes meanwhile, and keeps, would keep the app's variables."""
    seen = []
    write = Sender._write

    def note(self: Sender, segments: list[bytes | memoryview]) -> None:
        seen.append(VARIABLE.get())
        write(self, segments)

    monkeypatch.setattr(Sender, "_write", note)
    server = serve_in_thread(App(way, lambda: several(5)))
    with Client(server.address) as client:
        assert client.get("/one").body.endswith(b"....")
    assert set(seen[-4:]) == {"none"}  # what threads had ready may have been sent in theirs


async def several(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        await asyncio.sleep(0)
        yield b"."


def test_it_runs_in_the_context_of_its_request(serve_in_thread: ServeInThread, way: str) -> None:
    async def which() -> AsyncIterator[bytes]:
        yield VARIABLE.get().encode()
        VARIABLE.set("changed")
        yield b" " + VARIABLE.get().encode()

    server = serve_in_thread(App(way, which))
    with Client(server.address) as client:
        for path in ("/one", "/two"):
            assert client.get(path).body.endswith(path.encode() + b" changed")


# -- its end


def test_it_is_closed_when_the_client_leaves(serve_in_thread: ServeInThread, way: str) -> None:
    steps = Steps()
    server = serve_in_thread(App(way, lambda: numbers(steps, 1_000)))
    with Client(server.address) as client:
        client.send(request("/stream"))
        steps.go()
        assert head(client)
        eventually(lambda: steps.asked == 2, "it waits for the next")
        client.reset()
    eventually(lambda: steps.ended == ["CancelledError"], "it is cancelled where it waits")
    bodies = server.server._runtime.outputs.async_bodies
    eventually(lambda: bodies._count == 0 and not bodies.tasks._tasks, "nothing is left")


def test_one_that_waits_for_its_client_is_closed_where_it_stands(serve_in_thread: ServeInThread) -> None:
    ended: list[str] = []

    async def large() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(1_000_000)
        except BaseException as error:
            ended.append(type(error).__name__)
            raise

    server = serve_in_thread(App("returned", large))
    with Client(server.address, receive_buffer=4_096) as client:
        client.send(request("/large"))
        assert head(client)
        eventually(lambda: server.server._runtime.outputs.async_bodies._count == 1, "it has begun")
        client.reset()
    eventually(lambda: ended == ["GeneratorExit"], "it is closed")


def test_aclose_is_called_once_whatever_happens(serve_in_thread: ServeInThread) -> None:
    calls: list[str] = []

    class Watched:
        def __init__(self, kind: str) -> None:
            self.kind = kind
            self.left = 3

        def __aiter__(self) -> Watched:
            return self

        async def __anext__(self) -> bytes:
            self.left -= 1
            if self.kind == "fails" and self.left == 1:
                raise LookupError("on purpose")
            if self.left < 0:
                raise StopAsyncIteration
            if self.kind == "waits":
                await asyncio.Event().wait()
            return b"item"

        async def aclose(self) -> None:
            calls.append(self.kind)
            if self.kind == "fails":
                raise ValueError("in aclose")

    kinds = iter(["ends", "fails", "waits"])
    server = serve_in_thread(App("returned", lambda: Watched(next(kinds))))
    with Client(server.address) as client:
        assert client.get("/").body == b"item" * 3
    with Client(server.address) as client:
        client.send(request("/"))
        assert not client.rest().endswith(b"0\r\n\r\n")
    with Client(server.address) as client:
        client.send(request("/"))
        assert head(client)
        client.reset()
    eventually(lambda: len(calls) == 3, "each is closed")
    assert calls == ["ends", "fails", "waits"]


@pytest.mark.parametrize("item", ["text", None, bytearray(b"x")])
def test_what_is_no_bytes_is_a_clear_error(
    serve_in_thread: ServeInThread, caplog: pytest.LogCaptureFixture, way: str, item: object
) -> None:
    async def wrong() -> AsyncIterator[Any]:
        yield b"first"
        yield item

    server = serve_in_thread(App(way, wrong))
    with Client(server.address) as client:
        client.send(request("/wrong"))
        received = client.rest()
        assert b"first" in received
        assert not received.endswith(b"0\r\n\r\n")  # cut, and the client can tell
    eventually(lambda: f"must yield bytes, not {type(item).__name__}" in caplog.text, "it is logged")
    assert "Exception in the async body of /wrong" in caplog.text


@pytest.mark.parametrize(
    "error", [LookupError, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]
)
def test_whatever_it_raises_the_loop_lives_on(
    serve_in_thread: ServeInThread, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"first"
        raise error("on purpose")

    server = serve_in_thread(App("returned", failing))
    with Client(server.address) as client:
        client.send(request("/failing"))
        assert not client.rest().endswith(b"0\r\n\r\n")
        with Client(server.address) as other:
            assert other.get("/hello").status == 200
    if error is not asyncio.CancelledError:
        eventually(lambda: f"{error.__name__}: on purpose" in caplog.text, "it is logged")


def test_what_the_app_may_not_do(serve_in_thread: ServeInThread) -> None:
    said: list[str] = []
    steps = Steps()
    kept: list[Callable[[object], object]] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        if environ["PATH_INFO"] == "/late":
            with contextlib.suppress(RuntimeError):
                kept[0](numbers(steps))
                said.append("too late, and nothing said")
            return hello(environ, start_response)
        start_response("200 OK", [])
        stream = environ["waitress_async.stream"]
        kept.append(stream)
        for wrong in (b"bytes", [b"list"], None, numbers):
            with contextlib.suppress(TypeError):
                stream(wrong)
                said.append("no error")
        stream(numbers(steps, 0))
        with contextlib.suppress(RuntimeError):
            stream(numbers(steps))
            said.append("twice")
        return [b"first;"]

    server = serve_in_thread(app)
    with Client(server.address) as client:
        assert client.get("/").body == b"first;"
        assert client.get("/late").status == 200
    assert said == []


def test_an_error_of_the_app_closes_it_unread(
    serve_in_thread: ServeInThread, caplog: pytest.LogCaptureFixture
) -> None:
    closed = threading.Event()

    async def unread() -> AsyncIterator[bytes]:
        yield b"never"

    class Watched:
        def __aiter__(self) -> AsyncIterator[bytes]:
            return unread()

        async def aclose(self) -> None:
            closed.set()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        environ["waitress_async.stream"](Watched())
        raise LookupError("on purpose")

    server = serve_in_thread(app)
    with Client(server.address) as client:
        assert client.get("/").status == 500
        assert closed.wait(10)
    assert "on purpose" in caplog.text


# -- how many, and the stop


def test_beyond_max_streams_it_is_503(serve_in_thread: ServeInThread) -> None:
    steps = Steps()
    server = serve_in_thread(App("returned", lambda: numbers(steps)), max_streams=2, graceful_timeout=0)
    with Client(server.address) as one, Client(server.address) as two, Client(server.address) as three:
        for client in (one, two):
            client.send(request("/stream"))
            assert head(client).startswith(b"HTTP/1.1 200 ")
        response = three.get("/stream")
        assert (response.status, response.headers["retry-after"]) == (503, "1")
        assert b"max_streams" in response.body
        assert three.get("/hello").status == 200
        one.reset()
        eventually(lambda: server.server._runtime.outputs.async_bodies._count == 1, "there is room again")
        three.send(request("/stream"))
        assert head(three).startswith(b"HTTP/1.1 200 ")


def test_a_stop_waits_for_it_and_then_cuts_it(serve_in_thread: ServeInThread) -> None:
    steps, other = Steps(), Steps()
    made = iter([numbers(steps, 2), numbers(other, 1_000)])

    server = serve_in_thread(App("returned", lambda: next(made)), graceful_timeout=600)
    with Client(server.address) as client, Client(server.address) as endless:
        client.send(request("/stream"))
        assert head(client)
        endless.send(request("/endless"))
        assert head(endless)
        steps.go()
        assert chunk(client) == b"0;"
        server.server.request_stop()
        steps.go()
        assert chunk(client) == b"1;"
        assert chunk(client) == b""
        client.assert_ended()
        server.server.request_stop(0)
        assert not endless.rest().endswith(b"0\r\n\r\n")
    server.thread.join(30)
    assert not server.thread.is_alive()
    assert (steps.ended, other.ended) == (["end"], ["CancelledError"])
    assert server.errors == []


def test_one_that_does_not_end_is_named_at_the_stop(
    serve_in_thread: ServeInThread, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "waitress_async")
    release: list[Callable[[], object]] = []

    async def stubborn() -> AsyncIterator[bytes]:
        event = asyncio.Event()
        loop = asyncio.get_running_loop()
        release.append(lambda: loop.call_soon(event.set))
        yield b"first"
        while not event.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await event.wait()

    server = serve_in_thread(App("returned", stubborn), graceful_timeout=0)
    with Client(server.address) as client:
        client.send(request("/stubborn"))
        assert head(client)
        eventually(lambda: release, "it has begun")
        server.server.request_stop()
        eventually(lambda: "stubborn for /stubborn" in caplog.text, "it is named")
    server.loop.call_soon_threadsafe(release[0]) if server.thread.is_alive() else None
    server.thread.join(30)
    assert not server.thread.is_alive()


def test_what_can_be_iterated_both_ways_is_iterated_by_the_thread(serve_in_thread: ServeInThread) -> None:
    """As an app of PEP 3333 is: Django's streaming responses have both."""

    class Both:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"by ", b"the thread"])

        def __aiter__(self) -> AsyncIterator[bytes]:
            raise AssertionError("not asked for")

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Both:
        start_response("200 OK", [])
        return Both()

    server = serve_in_thread(app)
    with Client(server.address) as client:
        assert client.get("/").body == b"by the thread"


def test_what_an_iterable_makes_to_be_iterated_is_closed_too(serve_in_thread: ServeInThread) -> None:
    ended: list[str] = []

    class Maker:
        async def __aiter__(self) -> AsyncIterator[bytes]:
            try:
                while True:
                    yield bytes(1_000_000)
            finally:
                ended.append("its iterator")

        async def aclose(self) -> None:
            ended.append("itself")

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        environ["waitress_async.stream"](Maker())
        return []

    server = serve_in_thread(app)
    with Client(server.address, receive_buffer=4_096) as client:
        client.send(request("/large"))
        assert head(client)
        eventually(lambda: server.server._runtime.outputs.async_bodies._count == 1, "it has begun")
        client.reset()
    eventually(lambda: ended == ["its iterator", "itself"], "both are closed, in this order")
