"""Async bodies on the ways out that are seldom taken: each is closed once, and nothing is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import LOOPS, RunningServer, ServeInThread
from tests.server.support import (
    DEADLINE,
    Client,
    eventually,
    fetch,
    hello,
    local_server,
    request,
    small_listener,
    temporary_files,
)
from tests.server.test_async_bodies import VARIABLE, Steps, chunk, head, numbers
from waitress_async import Server
from waitress_async.bridge.async_body import AsyncBodies

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

WAYS = ["returned", "registered"]


def bodies_of(server: RunningServer) -> AsyncBodies:
    return server.server._runtime.outputs.async_bodies


def wait_none_left(server: RunningServer) -> None:
    bodies = bodies_of(server)
    eventually(lambda: bodies._count == 0 and not bodies.tasks._tasks, "nothing is left")


class Watched:
    """An async iterable that counts how often it is closed, and waits for ever after its first item."""

    def __init__(self) -> None:
        self.closed = 0
        self.begun = threading.Event()

    def __aiter__(self) -> Watched:
        return self

    async def __anext__(self) -> bytes:
        if self.begun.is_set():
            await asyncio.Event().wait()
        self.begun.set()
        return b"first"

    async def aclose(self) -> None:
        self.closed += 1


class Held:
    """Holds the loop for as long as a block lasts."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._held, self._go = threading.Event(), threading.Event()

    def __enter__(self) -> None:
        self._server.loop.call_soon_threadsafe(self._hold)
        assert self._held.wait(20)

    def _hold(self) -> None:
        self._held.set()
        assert self._go.wait(20)

    def __exit__(self, *_exc: object) -> None:
        self._go.set()


@pytest.mark.parametrize("way", WAYS)
def test_cancelled_before_its_first_step(serve_in_thread: ServeInThread, way: str) -> None:
    """It is handed over and given up in one turn of the loop: its task does not even begin."""
    stream = Watched()
    called, let_go, gone = threading.Event(), threading.Event(), threading.Event()

    class Returned:
        def __iter__(self) -> Iterator[bytes]:
            return iter(())

        def close(self) -> None:
            gone.set()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        called.set()
        assert let_go.wait(20)
        start_response("200 OK", [])
        if way == "returned":
            gone.set()
            return stream
        environ["waitress_async.stream"](stream)
        return Returned()

    server = serve_in_thread(app, stream_request_body=True, threads=1)
    with Client(server.address) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert called.wait(20)
        pool = server.server._runtime.pool
        with Held(server):
            let_go.set()
            assert gone.wait(20)
            eventually(lambda: all(thread.task is None for thread in pool._threads), "the thread is free")
            client.send(b"nonsense\r\n")
        client.rest()
    eventually(lambda: stream.closed, "it is closed")
    wait_none_left(server)
    assert stream.closed == 1


def test_one_that_goes_on_though_it_was_cancelled(serve_in_thread: ServeInThread) -> None:
    """Nobody asks it for more."""
    ended: list[str] = []
    waits = threading.Event()

    async def stubborn() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            while True:
                waits.set()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
                yield b"more"
        except BaseException as error:
            ended.append(type(error).__name__)
            raise

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        start_response("200 OK", [])
        return stubborn()

    server = serve_in_thread(app)
    with Client(server.address) as client:
        client.send(request("/"))
        assert head(client)
        assert waits.wait(20)
        client.reset()
    wait_none_left(server)
    assert ended == ["GeneratorExit"]


@pytest.mark.parametrize("way", WAYS)
def test_without_start_response(
    serve_in_thread: ServeInThread, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    made: list[Watched] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        made.append(Watched())
        if way == "returned":
            return made[-1]
        environ["waitress_async.stream"](made[-1])
        return []

    server = serve_in_thread(app, max_streams=2)
    with Client(server.address) as client:
        for _ in range(4):
            assert client.get("/").status == 500
    eventually(lambda: [one.closed for one in made] == [1] * 4, "each is closed")
    wait_none_left(server)
    assert "start_response was not called" in caplog.text


def test_an_aclose_that_has_begun_is_not_cancelled(serve_in_thread: ServeInThread) -> None:
    """When the client leaves meanwhile: what it cleans up would be left half clean."""
    steps, gone = Steps(), threading.Event()
    ended: list[str] = []

    class Slow(Watched):
        async def __anext__(self) -> bytes:
            raise StopAsyncIteration

        async def aclose(self) -> None:
            try:
                await steps.wait()
            except BaseException as error:
                ended.append(type(error).__name__)
                raise
            ended.append("end")

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        environ["waitress_async.on_disconnect"](gone.set)
        start_response("200 OK", [])
        return Slow()

    server = serve_in_thread(app)
    with Client(server.address) as client:
        client.send(request("/"))
        assert head(client)
        eventually(lambda: steps.asked, "it is being closed")
        client.reset()
    assert gone.wait(20)
    steps.go()
    wait_none_left(server)
    assert ended == ["end"]


@pytest.mark.parametrize("kind", ["beside another", "after the end", "the same"])
def test_one_that_cannot_be_sent_is_closed(
    serve_in_thread: ServeInThread, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    registered, returned = Watched(), Watched()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        if kind == "after the end":
            start_response("200 OK", [("Content-Length", "5")])(b"12345")
        else:
            start_response("200 OK", [])
            environ["waitress_async.stream"](registered if kind == "beside another" else returned)
        return returned

    server = serve_in_thread(app)
    with Client(server.address) as client:
        assert client.get("/").status == (200 if kind == "after the end" else 500)
    eventually(lambda: returned.closed == 1, "it is closed")
    eventually(lambda: registered.closed == (kind == "beside another"), "and so is the other")
    wait_none_left(server)
    assert returned.closed == 1


@pytest.mark.parametrize("error", [LookupError, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_an_error_in_aclose_of_what_is_not_wanted(
    serve_in_thread: ServeInThread,
    caplog: pytest.LogCaptureFixture,
    error: type[BaseException],
    method: str,
) -> None:
    class Unwanted(Watched):
        async def aclose(self) -> None:
            self.closed += 1
            raise error("in aclose")

    stream = Unwanted()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        if environ["PATH_INFO"] == "/hello":
            return hello(environ, start_response)
        start_response("200 OK", [])
        environ["waitress_async.stream"](stream)
        if method == "GET":
            raise ValueError("on purpose")
        return []

    server = serve_in_thread(app)
    with Client(server.address) as client:
        client.send(request("/", method=method))
        assert head(client)
        eventually(lambda: stream.closed, "it is closed")
    wait_none_left(server)
    with Client(server.address) as client:
        assert client.get("/hello").status == 200
    eventually(lambda: f"{error.__name__}: in aclose" in caplog.text, "it is logged")
    gc.collect()
    assert server.errors == []


@pytest.mark.parametrize("error", [LookupError, asyncio.CancelledError])
def test_both_are_closed_though_the_first_fails(
    serve_in_thread: ServeInThread, error: type[BaseException]
) -> None:
    """What an iterable makes to be iterated, and the iterable."""
    closed: list[str] = []

    class Iterator(Watched):
        async def __anext__(self) -> bytes:
            raise StopAsyncIteration

        async def aclose(self) -> None:
            closed.append("iterator")
            raise error("in aclose")

    class Iterable(Watched):
        def __aiter__(self) -> Watched:
            return Iterator()

        async def aclose(self) -> None:
            closed.append("iterable")

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        start_response("200 OK", [])
        return Iterable()

    server = serve_in_thread(app)
    with Client(server.address) as client:
        assert client.get("/").body == b""
    wait_none_left(server)
    assert closed == ["iterator", "iterable"]


def test_what_came_before_it_leaves_no_file(serve_in_thread: ServeInThread) -> None:
    """Not even while it goes on."""
    steps = Steps()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        environ["waitress_async.stream"](numbers(steps, 1))
        for _ in range(200):
            yield bytes(50_000)

    server = serve_in_thread(app, outbuf_overflow=10_000, outbuf_high_watermark=1_000_000)
    before = temporary_files()
    with Client(server.address) as client:
        for _ in range(2):
            client.send(request("/"))
            assert head(client)
            size = 0
            while size < 10_000_000:
                size += len(chunk(client))
            eventually(lambda: temporary_files() == before, "the file is closed")
            steps.go()
            assert chunk(client) == b"0;"
            assert chunk(client) == b""


def test_a_thread_that_ends_after_the_loop_warns_of_nothing() -> None:
    entered, let_go = threading.Event(), threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        entered.set()
        assert let_go.wait(20)
        start_response("200 OK", [])
        return Watched()

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with Server(app, host="127.0.0.1", port=0, graceful_timeout=0, threads=1).in_thread() as server:
            worker = server._runtime.pool._threads[0]
            with Client(("127.0.0.1", server.port)) as client:
                client.send(request("/", method="HEAD"))
                assert entered.wait(20)
        let_go.set()
        worker.join(20)
        assert not worker.is_alive()
        gc.collect()
    assert [str(one.message) for one in said] == []


def test_an_aclose_that_does_not_end_is_cancelled_at_the_stop(
    serve_in_thread: ServeInThread, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "waitress_async")
    ended: list[str] = []
    begun = threading.Event()

    class Endless(Watched):
        async def aclose(self) -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            except BaseException as error:
                ended.append(type(error).__name__)
                raise

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        start_response("204 No Content", [])
        return Endless()

    server = serve_in_thread(app, graceful_timeout=0)
    stopped: list[list[str]] = []

    async def stop() -> None:
        await server.server.stop()
        stopped.append(ended[:])  # before the end of asyncio.run() cancels what is left

    with Client(server.address) as client:
        client.send(request("/"))
        assert head(client)
        assert begun.wait(20)
        asyncio.run_coroutine_threadsafe(stop(), server.loop)
        server.thread.join(20)
    assert stopped == [["CancelledError"]]
    assert "goes on though it was cancelled" not in caplog.text


STUBBORN = """
import asyncio, contextlib, socket, sys, threading
from waitress_async import Server, from_thread

loop, kind = sys.argv[1:]
entered = threading.Event()

async def stubborn():
    entered.set()
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

async def body():
    await stubborn()
    yield b""

def app(environ, start_response):
    if kind == "call":
        from_thread.run(stubborn)
    start_response("200 OK", [])
    return body()

server = Server(app, host="127.0.0.1", port=0, graceful_timeout=0, loop=loop)
with server.in_thread(), socket.create_connection(("127.0.0.1", server.port)) as client:
    client.sendall(b"GET / HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    assert entered.wait(20)
print("over")
"""


@pytest.mark.parametrize("kind", ["body", "call"])
@pytest.mark.parametrize("loop", LOOPS)
def test_what_goes_on_though_it_was_cancelled_does_not_hold_the_exit(loop: str, kind: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", STUBBORN, loop, kind],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "over\n")


def test_what_a_content_length_leaves_no_room_for_is_told_of(
    serve_in_thread: ServeInThread, caplog: pytest.LogCaptureFixture
) -> None:
    """As it is of an iterable that is no async one."""
    stream = Watched()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "5")])
        environ["waitress_async.stream"](stream)
        return [b"12345"]

    server = serve_in_thread(app)
    with Client(server.address) as client:
        assert client.get("/").body == b"12345"
    eventually(lambda: stream.closed == 1, "it is closed")
    assert "exceeded the number of bytes specified by Content-Length" in caplog.text


def test_a_response_that_is_cut_for_max_streams_is_told_of(
    serve_in_thread: ServeInThread, caplog: pytest.LogCaptureFixture
) -> None:
    """It has begun, and cannot be 503 any more."""
    made = [Watched(), Watched()]
    streams = iter(made)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        environ["waitress_async.stream"](next(streams))
        yield b"before;"

    server = serve_in_thread(app, max_streams=1)
    with Client(server.address) as one, Client(server.address) as two:
        one.send(request("/"))
        assert made[0].begun.wait(20)
        two.send(request("/cut"))
        assert not two.rest().endswith(b"0\r\n\r\n")
        assert "The response to /cut is cut" in caplog.text
        assert "max_streams" in caplog.text
        eventually(lambda: made[1].closed == 1, "it is closed")


def test_a_large_item_is_sent_in_turns_and_counted(serve_in_thread: ServeInThread) -> None:
    """What waits for a slow client is the item, and little of it twice."""
    size = 30_000_000

    async def large() -> AsyncIterator[bytes]:
        yield bytes(size)

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        start_response("200 OK", [])
        return large()

    server = serve_in_thread(app, sockets=[small_listener()])
    memory = server.server._runtime.memory
    with Client(server.address, receive_buffer=4_096) as client:
        client.send(request("/"))
        assert head(client)
        eventually(lambda: memory.used > size // 2, "it is counted")
        (protocol,) = server.server._runtime.connections._protocols
        assert protocol._transport.get_write_buffer_size() < 2_000_000
        body = 0
        while part := chunk(client):
            body += len(part)
        assert body == size
    eventually(lambda: memory.used == 0, "nothing is left")


@pytest.mark.parametrize("error", [RuntimeError, AttributeError])
def test_one_whose_name_cannot_be_had(serve_in_thread: ServeInThread, error: type[Exception]) -> None:
    class Nameless(Watched):
        def __getattr__(self, name: str) -> object:
            raise error(name)

        async def __anext__(self) -> bytes:
            if self.begun.is_set():
                raise StopAsyncIteration
            self.begun.set()
            return b"first"

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        start_response("200 OK", [])
        return Nameless()

    server = serve_in_thread(app)
    with Client(server.address) as client:
        assert client.get("/").body == b"first"
    wait_none_left(server)


async def test_a_task_factory_of_the_programs_own() -> None:
    """Written before create_task() took a context, which asyncio's loop minds only where one is given."""

    async def items() -> AsyncIterator[bytes]:
        yield VARIABLE.get().encode()

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        start_response("200 OK", [])
        VARIABLE.set("of the app")
        return items()

    def factory(loop: asyncio.AbstractEventLoop, work: Any) -> asyncio.Task[Any]:
        return asyncio.Task(work, loop=loop)

    asyncio.get_running_loop().set_task_factory(factory)
    async with local_server(app) as server:
        assert b"of the app" in await fetch(server.port)


def test_empty_items_hold_nobody_up(serve_in_thread: ServeInThread) -> None:
    enough = threading.Event()

    async def empty() -> AsyncIterator[bytes]:
        while not enough.is_set():
            yield b""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        if environ["PATH_INFO"] == "/hello":
            return hello(environ, start_response)
        start_response("200 OK", [])
        return empty()

    server = serve_in_thread(app)
    try:
        with Client(server.address) as client, Client(server.address) as other:
            client.send(request("/"))
            assert head(client)
            other.sock.settimeout(5)
            assert other.get("/hello").status == 200
            enough.set()
            assert chunk(client) == b""
    finally:
        enough.set()
