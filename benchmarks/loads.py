"""Comparisons of servers under a load of wrk: options, cores, columns, and one measurement."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from measure import BenchmarkError, Cores, Server, Workload, measure
from processes import MIB
from rounds import Column, Result, Table, options_of

COLUMNS = (
    Column("rate", "requests/s", more_is_better=True),
    Column("p50", "p50 ms", 2),
    Column("p99", "p99 ms", 2),
    Column("p999", "p99.9 ms", 2),
    Column("cpu", "CPU us/request", 1),
    Column("memory", "MiB", 1),
    Column("errors", "errors"),
)


def options_of_loads(description: str) -> argparse.ArgumentParser:
    """Those that every comparison has, and those of wrk."""
    parser = options_of(description, rounds=3)
    parser.add_argument(
        "--seconds", type=positive, default=4, help="of each measurement; default: %(default)s"
    )
    parser.add_argument("--warm-up", type=positive, default=1, help="seconds before it; default: %(default)s")
    parser.add_argument("--unpinned", dest="pinned", action="store_false", help="let the system choose cores")
    return parser


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def choose_cores(*, pinned: bool) -> Cores:
    if sys.platform != "linux":
        raise BenchmarkError("this benchmark reads /proc and pins with taskset: it needs Linux")
    if not shutil.which("wrk"):
        raise BenchmarkError("wrk is not installed (on Debian: apt-get install wrk)")
    if not pinned:
        return Cores(server=None, client=None)
    if not shutil.which("taskset"):
        raise BenchmarkError("taskset is not installed (it is in util-linux); --unpinned does without")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise BenchmarkError("there is one core only; --unpinned lets server and client share it")
    return Cores(server=cores[0], client=cores[-1])  # far apart: neighbours may be two threads of one core


def table_of(
    workload: Workload, servers: Iterable[Server], cores: Cores, options: argparse.Namespace
) -> Table:
    """The servers under that workload, with the options of `options_of_loads`."""
    pinned = (
        f"server on core {cores.server}, client on core {cores.client}" if options.pinned else "not pinned"
    )
    return Table(
        title=f"{workload.title}: {workload.connections} connections, {workload.threads} threads, {pinned}",
        servers=tuple(servers),
        columns=COLUMNS,
        measure=partial(
            measure_one, workload=workload, cores=cores, warm_up=options.warm_up, seconds=options.seconds
        ),
        ratios=("rate", "cpu"),
        about={
            "workload": workload.name,
            "title": workload.title,
            "connections": workload.connections,
            "threads": workload.threads,
            "pinned": options.pinned,
        },
    )


def measure_one(
    server: Server, python: Path, *, workload: Workload, cores: Cores, warm_up: int, seconds: int
) -> Result:
    environment = {"BENCHMARK_APP": workload.app, "BENCHMARK_THREADS": str(workload.threads)}
    measured = measure(
        server, workload, python, cores, warm_up=warm_up, seconds=seconds, environment=environment
    )
    load = measured.load
    return Result(
        {
            "rate": measured.requests_per_second,
            "p50": load.p50 / 1000,
            "p99": load.p99 / 1000,
            "p999": load.p999 / 1000,
            "cpu": measured.cpu_microseconds,
            "memory": measured.memory / MIB,
            "errors": measured.errors,
        },
        note=f"! {load.socket_errors} of sockets, {load.bad_statuses} of status" if measured.errors else "",
    )
