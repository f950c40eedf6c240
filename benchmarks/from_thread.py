"""What a view pays for a call to the loop: ``python benchmarks/from_thread.py``.

Many clients ask at once for a view that waits: in its thread by `time.sleep`, or on the loop by
`from_thread.run`. Then one view makes calls that do nothing. The server is in this process, its clients in
another.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import uvloop
from clients import check, client_process, head_of
from machine import machine_facts
from measure import HOST, BenchmarkError

from waitress_async import Server, from_thread

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

T = TypeVar("T")

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
ANSWER = b"waited"


class App:
    """`/sleep` and `/await` wait; `/calls` says what calls cost that do nothing, in seconds each."""

    def __init__(self, wait: float, calls: int) -> None:
        self._wait = wait
        self._calls = calls

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        body = ANSWER
        match environ["PATH_INFO"]:
            case "/sleep":
                time.sleep(self._wait)
            case "/await":
                from_thread.run(asyncio.sleep, self._wait)
            case "/calls":
                body = json.dumps(self._timed()).encode()
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]

    def _timed(self) -> dict[str, list[float]]:
        loop = from_thread.run_sync(asyncio.get_running_loop)
        ways: dict[str, Callable[[], object]] = {
            "from_thread.run": partial(from_thread.run, nothing),
            "from_thread.run with a timeout": partial(from_thread.run, nothing, timeout=60),
            "from_thread.run, cancel_on_disconnect": partial(
                from_thread.run, nothing, cancel_on_disconnect=True
            ),
            "from_thread.run_sync": partial(from_thread.run_sync, int),
            "asyncio.run_coroutine_threadsafe": lambda: asyncio.run_coroutine_threadsafe(
                nothing(), loop
            ).result(),
        }
        return {name: timed(call, self._calls) for name, call in ways.items()}


async def nothing() -> None:
    pass


def timed(call: Callable[[], object], calls: int) -> list[float]:
    """How long each of so many calls took, after a tenth as many that do not count."""
    seconds = []
    for _ in range(calls // 10):
        call()
    for _ in range(calls):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return seconds


def main() -> None:
    options = parse_options()
    for name, value in machine_facts().items():
        print(f"{name}: {value}")
    most = options.threads / options.wait
    print(
        f"\n{options.clients} clients, {options.threads} threads, {options.wait * 1000:g} ms of waiting: "
        f"at most {most:,.0f} answers/s\n"
    )
    columns = "".join(f"{name:>14}" for name in ("answers/s", "CPU ms each", "p50 ms", "p99 ms"))
    print(f"{'loop':8} {'round':>5} {'':8}{columns}")
    report = [run(name, options) for name in options.loop or LOOPS]
    for name, ratios in report:
        median = statistics.median(ratios)
        print(f"{name}: await/sleep {median:.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def run(loop: str, options: argparse.Namespace) -> tuple[str, list[float]]:
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        return loop, runner.run(measure(loop, options))


async def measure(loop: str, options: argparse.Namespace) -> list[float]:
    """Returns the ratio of each round."""
    app = App(options.wait, options.calls)
    ratios = []
    with client_process() as process:
        async with Server(app, host=HOST, port=0, threads=options.threads) as server:

            async def elsewhere(function: Callable[..., T], *arguments: object) -> T:
                return await asyncio.wrap_future(process.submit(function, server.port, *arguments))

            for path in ("/sleep", "/await"):
                await elsewhere(check, path, ANSWER)
            for number in range(1, options.rounds + 1):
                rates = {}
                for path in ("/sleep", "/await") if number % 2 else ("/await", "/sleep"):
                    await elsewhere(ask, path, options.clients, options.warm_up)
                    cpu = time.process_time()
                    latencies = await elsewhere(ask, path, options.clients, options.seconds)
                    cpu = time.process_time() - cpu
                    rates[path] = len(latencies) / options.seconds
                    times = cpu / len(latencies), *percentiles(latencies, 50, 99)
                    figures = "".join(f"{seconds * 1e3:14.2f}" for seconds in times)
                    print(f"{loop:8} {number:5} {path:8}{rates[path]:14,.0f}{figures}")
                ratios.append(rates["/await"] / rates["/sleep"])
            print_calls(loop, json.loads(await elsewhere(fetch, "/calls")))
    return ratios


def print_calls(loop: str, measured: dict[str, list[float]]) -> None:
    head = f"{loop}: microseconds of a call that does nothing"
    print(f"\n{head:46}{'median':>9}{'mean':>9}{'p99':>9}")
    for name, seconds in measured.items():
        figures = statistics.median(seconds), statistics.fmean(seconds), *percentiles(seconds, 99)
        print(f"  {name:44}" + "".join(f"{figure * 1e6:9.1f}" for figure in figures))
    print()


def percentiles(values: Sequence[float], *wanted: int) -> list[float]:
    ordered = sorted(values)
    return [ordered[len(ordered) * percent // 100] for percent in wanted]


# -- the clients' process


def ask(port: int, path: str, clients: int, seconds: float) -> list[float]:
    """So many connections, each with one request at a time. Returns the latency in seconds of each answer."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_ask(port, path, clients, seconds))


async def _ask(port: int, path: str, clients: int, seconds: float) -> list[float]:
    latencies: list[float] = []
    connections = await asyncio.gather(*(asyncio.open_connection(HOST, port) for _ in range(clients)))
    end = time.perf_counter() + seconds

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (began := time.perf_counter()) < end:
            writer.write(head_of("GET", path))
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200 ") or await reader.readexactly(len(ANSWER)) != ANSWER:
                raise BenchmarkError(f"it answered {head[:200]!r}")
            if time.perf_counter() < end:
                latencies.append(time.perf_counter() - began)
        writer.close()

    await asyncio.gather(*(client(*connection) for connection in connections))
    return latencies


def fetch(port: int, path: str) -> bytes:
    """One answer."""

    async def whole() -> bytes:
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(head_of("GET", path, {"Connection": "close"}))
        answer = await reader.read()
        writer.close()
        return answer.partition(b"\r\n\r\n")[2]

    return asyncio.run(whole())


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, kind, default, what in (
        ("clients", int, 200, "that ask at once"),
        ("threads", int, 64, "of the server"),
        ("wait", float, 0.05, "seconds in each view"),
        ("rounds", int, 3, "of which the median counts"),
        ("seconds", float, 5.0, "of each measurement"),
        ("warm-up", float, 1.0, "seconds of the same load before it"),
        ("calls", int, 20_000, "that do nothing"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{what}; default: %(default)s")
    parser.add_argument("--loop", action="append", choices=LOOPS, help="default: both, in turn")
    return parser.parse_args()


if __name__ == "__main__":
    main()
