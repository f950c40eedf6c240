"""Hello while an app's threads are busy: ``python benchmarks/latency.py``. README.md says what and how."""

import contextlib
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from apps import HELLO
from clients import check, whole_answer
from loads import choose_cores
from measure import HOST, BenchmarkError, Cores, Server, on_core, running
from questions import REQUEST
from rounds import Column, Result, Table, options_of, run
from tables import BJOERN, GRANIAN, GUNICORN, OURS, WAITRESS
from workloads import BRIDGED

EVERY = 0.01  # seconds between two questions
PATIENCE = 5.0  # seconds after which a question has failed

# With Python's own interval between threads, which the command makes shorter.
UNHURRIED = OURS.using("--switch-interval=0", name=f"{OURS.name}, 5 ms")

COLUMNS = (
    Column("answers", "answers"),
    Column("median", "median ms", 2),
    Column("p99", "p99 ms", 2),
    Column("worst", "worst ms", 2),
    Column("load", "busy requests/s", 1),
)


@dataclass(frozen=True, slots=True)
class Busy:
    """What keeps the threads busy: so many connections, each with one request at a time."""

    title: str
    path: str = ""
    connections: int = 0
    threads: int = 4


LOADS = (
    Busy("nobody else asks"),
    Busy("one thread computes without pause", "/compute", 1),
    Busy("four threads of 64 compute without pause", "/compute", 4, 64),
    Busy("64 threads wait for 10 ms each, again and again", "/wait", 64, 64),
)


def main() -> None:
    parser = options_of("Compare how long hello takes beside threads that are busy.", rounds=3)
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement; default: %(default)s")
    parser.add_argument("--unpinned", dest="pinned", action="store_false", help="let the system choose cores")
    options = parser.parse_args()
    try:
        cores = choose_cores(pinned=options.pinned)
        run([table_of(load, cores, options.seconds) for load in LOADS], options)
    except (BenchmarkError, subprocess.SubprocessError) as error:
        sys.exit(f"latency.py: {error}")


def table_of(load: Busy, cores: Cores, seconds: float) -> Table:
    return Table(
        f"hello beside: {load.title}; {load.threads} threads",
        (OURS, UNHURRIED, WAITRESS, GUNICORN, GRANIAN, BJOERN, BRIDGED),
        COLUMNS,
        partial(measure, load=load, cores=cores, seconds=seconds),
        ratios=("median", "p99"),
        about={"title": f"Hello beside: {load.title}"},
    )


def measure(server: Server, python: Path, *, load: Busy, cores: Cores, seconds: float) -> Result:
    environment = {"BENCHMARK_APP": "busy_apps:busy", "BENCHMARK_THREADS": str(load.threads)}
    with running(server, "busy_apps:busy", load.threads, python, cores.server, environment) as (_, port):
        check(port, "/", HELLO)
        with kept_busy(load, port, cores, seconds) as busy:
            latencies = ask(port, seconds)
        if not latencies:
            return Result({"answers": 0, **busy}, note=f"! no answer in {PATIENCE:g} s")
        return Result(
            {
                "answers": len(latencies),
                "median": statistics.median(latencies) * 1000,
                "p99": statistics.quantiles(latencies, n=100, method="inclusive")[98] * 1000,
                "worst": max(latencies) * 1000,
                **busy,
            }
        )


@contextlib.contextmanager
def kept_busy(load: Busy, port: int, cores: Cores, seconds: float) -> Iterator[dict[str, float]]:
    """The load, from a second before until it is over. What it is given holds its rate then."""
    found: dict[str, float] = {}
    if not load.connections:
        yield found
        return
    command = [
        *on_core(cores.client),
        "wrk",
        "--threads=1",
        f"--connections={load.connections}",
        f"--duration={seconds + 2:.0f}s",
        f"--timeout={PATIENCE + seconds:.0f}s",
        f"http://{HOST}:{port}{load.path}",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        time.sleep(1)
        yield found
        said, _ = process.communicate(timeout=seconds + 30)
    rates = [line.split()[1] for line in said.splitlines() if line.startswith("Requests/sec:")]
    found["load"] = float(rates[0]) if rates else 0.0


def ask(port: int, seconds: float) -> list[float]:
    """Latencies of hello on one connection, in seconds.

    Each is asked EVERY seconds after the one before it, or once that is answered: behind a server that is not
    fast enough for the pace, no queue of questions grows.
    """
    latencies = []
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), PATIENCE) as sock:
        end = time.perf_counter() + seconds
        while (asked := time.perf_counter()) < end:
            sock.sendall(REQUEST)
            if whole_answer(sock) != HELLO:
                raise BenchmarkError("a wrong answer")
            answered = time.perf_counter()
            latencies.append(answered - asked)
            time.sleep(max(0.0, asked + EVERY - answered))
    return latencies


if __name__ == "__main__":
    main()
