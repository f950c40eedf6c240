"""The cost of the plain path, counted: what a request may not make on the loop."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context
from typing import Any, TypeVarTuple, Unpack

import pytest

from tests.server.support import Client, eventually, hello, local_server, request
from waitress_async import Server

Ts = TypeVarTuple("Ts")

REQUESTS = 200


class CountingLoop(asyncio.SelectorEventLoop):
    """The stdlib's loop, which counts what is made by it."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Counter[str] = Counter()

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        self.made["task"] += 1
        return super().create_task(coro, **options)

    def create_future(self) -> asyncio.Future[Any]:
        self.made["future"] += 1
        return super().create_future()

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        name = getattr(callback, "__name__", repr(callback))
        self.made["sweep" if name == "_sweep" else "timer"] += 1
        return super().call_at(when, callback, *args, context=context)

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        self.made["wakeup"] += 1
        return super().call_soon_threadsafe(callback, *args, context=context)


class Counted:
    """A server on a counting loop, in a thread."""

    def __init__(self, app: Any, **settings: object) -> None:
        self.loop = CountingLoop()
        self.server: Server = local_server(app, **settings)
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._started.wait(10)

    def _run(self) -> None:
        async def main() -> None:
            await self.server.start()
            self._started.set()
            await self.server.serve_forever()

        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(main())

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.server.port

    def stop(self) -> None:
        self.server.request_stop()
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def serve() -> Iterator[Callable[..., Counted]]:
    servers: list[Counted] = []

    def start(app: Any, **settings: object) -> Counted:
        servers.append(Counted(app, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def assert_plain(made: Counter[str], requests: int) -> None:
    assert made["task"] == 0
    assert made["future"] == 0
    assert made["timer"] == 0
    assert made["sweep"] <= 20  # one a second, on a slow machine
    assert 1 <= made["wakeup"] <= requests


def test_the_counters_count(serve: Callable[..., Counted]) -> None:
    """Or the zeros below would say nothing. Starting and accepting do make tasks and futures."""
    server = serve(hello)
    with Client(server.address) as client:
        assert client.get().status == 200
        assert all(server.loop.made[name] for name in ("task", "future", "sweep", "wakeup"))
        server.loop.call_soon_threadsafe(lambda: server.loop.call_later(1_000, int))
        eventually(lambda: server.loop.made["timer"], "a timer was counted")


def test_requests_on_one_connection(serve: Callable[..., Counted]) -> None:
    server = serve(hello)
    with Client(server.address) as client:
        assert client.get().status == 200
        before = server.loop.made.copy()
        for _ in range(REQUESTS):
            assert client.get("/", "Accept: */*\r\nCookie: a=b\r\n").body == b"Hello, world!"
        assert_plain(server.loop.made - before, REQUESTS)


def test_pipelined_requests_on_eight_connections(serve: Callable[..., Counted]) -> None:
    server = serve(hello)
    clients = [Client(server.address) for _ in range(8)]
    try:
        for client in clients:
            assert client.get().status == 200
        before = server.loop.made.copy()
        for client in clients:
            client.send(request() * (REQUESTS // 8))
        for client in clients:
            for _ in range(REQUESTS // 8):
                assert client.receive().body == b"Hello, world!"
        assert_plain(server.loop.made - before, REQUESTS)
    finally:
        for client in clients:
            client.sock.close()


def test_a_small_upload_is_plain_too(serve: Callable[..., Counted]) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", "4")])
        return iter([environ["wsgi.input"].read()])

    server = serve(app)
    with Client(server.address) as client:
        client.send(request("/", method="POST", body=b"body"))
        assert client.receive().body == b"body"
        before = server.loop.made.copy()
        for _ in range(REQUESTS):
            client.send(request("/", method="POST", body=b"body"))
            assert client.receive().body == b"body"
        assert_plain(server.loop.made - before, REQUESTS)


def test_answers_that_are_ready_together_wake_the_loop_once(serve: Callable[..., Counted]) -> None:
    """Eight threads finish while the loop is busy with something else."""
    threads = 8
    gate = threading.Barrier(threads + 1)
    closed = threading.Semaphore(0)

    class Answer:
        """One chunk, and says so, which makes the response whole; `close` comes after it was handed over."""

        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Iterator[bytes]:
            yield b"together"

        def close(self) -> None:
            closed.release()

    def app(_environ: object, start_response: Callable[..., object]) -> Answer:
        gate.wait(10)
        start_response("200 OK", [])
        return Answer()

    made: list[int] = []

    def hold_the_loop() -> None:
        before = server.loop.made["wakeup"]
        gate.wait(10)
        for _ in range(threads):
            assert closed.acquire(timeout=10)
        made.append(server.loop.made["wakeup"] - before)

    server = serve(app, threads=threads)
    clients = [Client(server.address) for _ in range(threads)]
    try:
        for client in clients:
            client.send(request())
        eventually(lambda: gate.n_waiting == threads, "all threads are in the app")
        server.loop.call_soon_threadsafe(hold_the_loop)
        for client in clients:
            assert client.receive().body == b"together"
    finally:
        for client in clients:
            client.sock.close()
    assert made == [1]
