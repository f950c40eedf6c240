"""The cost of the plain path, counted: what a request may not make on the loop."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context
from pathlib import Path
from types import FrameType
from typing import Any, TypeVarTuple, Unpack

import pytest
import uvloop

import waitress_async
from tests.server.support import Client, eventually, hello, local_server, request
from waitress_async import Server

Ts = TypeVarTuple("Ts")

REQUESTS = 200

BROWSER = (
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n"
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n"
    "Accept-Language: en-US,en;q=0.5\r\n"
    "Accept-Encoding: gzip, deflate, br, zstd\r\n"
    "Connection: keep-alive\r\n"
    "Upgrade-Insecure-Requests: 1\r\n"
    "Sec-Fetch-Mode: navigate\r\n"
)
FORM = b"x" * 300


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

    def __init__(self, app: Any, loop: asyncio.AbstractEventLoop | None = None, **settings: object) -> None:
        self.loop = loop or CountingLoop()
        self.made = self.loop.made if isinstance(self.loop, CountingLoop) else Counter()
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

    def start(app: Any, loop: asyncio.AbstractEventLoop | None = None, **settings: object) -> Counted:
        servers.append(Counted(app, loop, **settings))
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
        assert all(server.made[name] for name in ("task", "future", "sweep", "wakeup"))
        server.loop.call_soon_threadsafe(lambda: server.loop.call_later(1_000, int))
        eventually(lambda: server.made["timer"], "a timer was counted")


def test_requests_on_one_connection(serve: Callable[..., Counted]) -> None:
    server = serve(hello)
    with Client(server.address) as client:
        assert client.get().status == 200
        before = server.made.copy()
        for _ in range(REQUESTS):
            assert client.get("/", "Accept: */*\r\nCookie: a=b\r\n").body == b"Hello, world!"
        assert_plain(server.made - before, REQUESTS)


def test_pipelined_requests_on_eight_connections(serve: Callable[..., Counted]) -> None:
    server = serve(hello)
    clients = [Client(server.address) for _ in range(8)]
    try:
        for client in clients:
            assert client.get().status == 200
        before = server.made.copy()
        for client in clients:
            client.send(request() * (REQUESTS // 8))
        for client in clients:
            for _ in range(REQUESTS // 8):
                assert client.receive().body == b"Hello, world!"
        assert_plain(server.made - before, REQUESTS)
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
        before = server.made.copy()
        for _ in range(REQUESTS):
            client.send(request("/", method="POST", body=b"body"))
            assert client.receive().body == b"body"
        assert_plain(server.made - before, REQUESTS)


# -- calls

PACKAGE = Path(waitress_async.__file__).parent

# What time costs: asked in a sweep, and never in a request.
OF_TIME = {
    "server/connections",
    "server/deadlines",
    "server/protocol sweep",
    "server/protocol _check_request",
    "server/protocol _check_response",
    "server/protocol _check_head",
}


class Calls:
    """Calls of our functions on one thread, counted by module, and for the protocol by name."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.sweeps = 0

    def __call__(self, frame: FrameType, event: str, _arg: object) -> None:
        if event != "call" or not (path := Path(frame.f_code.co_filename)).is_relative_to(PACKAGE):
            return
        module = path.relative_to(PACKAGE).with_suffix("").as_posix()
        if frame.f_code.co_name == "_sweep":
            self.sweeps += 1
        elif not self._is_in_sweep(frame):
            self.counts[f"{module} {frame.f_code.co_name}" if module == "server/protocol" else module] += 1

    def _is_in_sweep(self, frame: FrameType | None) -> bool:
        while frame is not None:
            if frame.f_code.co_name == "_sweep":
                return True
            frame = frame.f_back
        return False


def test_deadlines_cost_a_request_nothing(serve: Callable[..., Counted]) -> None:
    """Whatever is on, a request neither sets a clock nor looks at one: sweeps do, four times in a timeout."""
    settings = {
        "header_timeout": 5,
        "channel_timeout": 5,
        "queue_timeout": 5,
        "body_min_rate": 1,
        "response_min_rate": 1,
        "linger_timeout": 5,
        "connection_limit": 5,
        "connection_limit_per_host": 5,
        "max_requests_per_connection": 1_000_000,
    }
    server = serve(hello, **settings)
    calls = Calls()
    with Client(server.address) as client:
        assert client.get().status == 200
        server.loop.call_soon_threadsafe(sys.setprofile, calls)
        assert client.get().status == 200
        before = calls.counts.copy()
        made = server.made.copy()
        for _ in range(REQUESTS):
            assert client.get("/", "Accept: */*\r\n").status == 200
            client.send(request("/", method="POST", body=b"body"))
            assert client.receive().status == 200
        server.loop.call_soon_threadsafe(sys.setprofile, None)
        assert client.get().status == 200
        assert_plain(server.made - made, 2 * REQUESTS + 2)
    counted = calls.counts - before
    assert counted["server/protocol data_received"] >= 2 * REQUESTS
    assert {name for name in counted if name in OF_TIME} == set()


def test_the_profile_sees_what_it_is_to_count(serve: Callable[..., Counted]) -> None:
    """Or the empty set above would say nothing."""
    server = serve(hello, linger_timeout=0.2)
    calls = Calls()
    with Client(server.address) as client:
        assert client.get().status == 200
        server.loop.call_soon_threadsafe(sys.setprofile, calls)
        eventually(lambda: calls.sweeps >= 2, "sweeps are seen")
        with Client(server.address) as other:
            assert other.get().status == 200
        server.loop.call_soon_threadsafe(sys.setprofile, None)
        assert client.get().status == 200
    assert calls.counts["server/connections"] > 0  # for the other connection, and not for its request


class Steps:
    """Calls of functions by our code, on all threads that it is set on: of Python's own, and of C's."""

    def __init__(self) -> None:
        self.python = self.c = 0
        self._ours: dict[str, bool] = {}  # by file

    def __call__(self, frame: FrameType, event: str, _arg: object) -> None:
        file = frame.f_code.co_filename
        ours = self._ours.get(file)
        if ours is None:
            ours = self._ours[file] = Path(file).is_relative_to(PACKAGE)
        if ours and event == "call":
            self.python += 1
        elif ours and event == "c_call":
            self.c += 1


def varied(number: int) -> bytes:
    return request(f"/?{number}", f"{BROWSER}Cookie: a={number}\r\n")


# A request of a browser, and how many functions may be called for it, of Python's and of C's. Whoever makes
# one of these larger says in the commit what it is worth; whoever makes a request cheaper makes it smaller.
STEPS: dict[str, tuple[Callable[[int], bytes], int, int]] = {
    "the same each time": (lambda _number: request("/", BROWSER + "Cookie: a=b\r\n"), 38, 39),
    "another query and Cookie": (varied, 53, 79),
    "a form": (lambda _number: request("/", BROWSER, "POST", FORM), 48, 48),
}


@pytest.mark.parametrize("kind", STEPS)
def test_how_many_functions_are_called_for_a_request(serve: Callable[..., Counted], kind: str) -> None:
    make, python, c = STEPS[kind]
    server = serve(hello, uvloop.new_event_loop(), threads=1)
    pool = server.server._runtime.pool
    steps = Steps()

    def profile(function: Steps | None) -> None:
        pool.submit(lambda: sys.setprofile(function))
        sys.setprofile(function)

    with Client(server.address) as client:
        for number in range(20):
            client.send(make(number))
            assert client.receive().status == 200
        server.loop.call_soon_threadsafe(profile, steps)
        for number in range(REQUESTS):
            client.send(make(number))
            assert client.receive().status == 200
        server.loop.call_soon_threadsafe(profile, None)
        assert client.get().status == 200
    # The date, which is made anew each second, and a sweep are a few more.
    assert python - 2 < steps.python / REQUESTS < python + 1
    assert c - 5 < steps.c / REQUESTS < c + 1


def test_requests_leave_nothing_behind(serve: Callable[..., Counted]) -> None:
    """What is allocated for one is free after it, however many there are."""
    server = serve(hello, uvloop.new_event_loop(), threads=1)
    blocks: list[int] = []
    counted = threading.Event()

    def count() -> None:
        gc.collect()
        blocks.append(sys.getallocatedblocks())
        counted.set()

    with Client(server.address) as client:
        for number in range(10):
            for _ in range(REQUESTS):
                client.send(varied(number))
                assert client.receive().status == 200
            counted.clear()
            server.loop.call_soon_threadsafe(count)
            assert counted.wait(10)
    assert blocks[-1] - blocks[1] < REQUESTS


# -- time


def test_one_timer_sweeps_all_connections(serve: Callable[..., Counted]) -> None:
    """However many there are, and whatever each of them waits for."""
    server = serve(hello, linger_timeout=0.2)  # a sweep in 50 ms, at the most
    clients = [Client(server.address) for _ in range(50)]
    try:
        for number, client in enumerate(clients):
            client.send(
                (b"", b"GET / HT", request() + b"GET", request("/", method="POST", body=b"x")[:-1])[
                    number % 4
                ]
            )
        connections = server.server._runtime.connections
        eventually(lambda: len(connections._protocols) == len(clients), "all are known")
        before, clock = server.made.copy(), connections.clock
        eventually(lambda: connections.clock > clock + 0.3, "several sweeps have come")
        made = server.made - before
        assert made["timer"] == made["task"] == made["future"] == 0
        assert 1 <= made["sweep"] <= 2 + (connections.clock - clock) / 0.04
    finally:
        for client in clients:
            client.sock.close()


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
        before = server.made["wakeup"]
        gate.wait(10)
        for _ in range(threads):
            assert closed.acquire(timeout=10)
        made.append(server.made["wakeup"] - before)

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
