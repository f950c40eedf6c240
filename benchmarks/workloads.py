"""This server and its peers under one kind of load after the other: ``python benchmarks/workloads.py hello``.

README.md says what and how.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

from apps import HELLO
from measure import BenchmarkError, Cores, Server, Workload, measure
from processes import MIB
from rounds import Column, Result, Table, options_of, run
from tables import (
    BJOERN,
    BROWSER_HEADERS,
    CEILING,
    CHEROOT,
    GRANIAN,
    GUNICORN,
    HYPERCORN,
    OURS,
    UVICORN,
    UWSGI,
    WAITRESS,
)
from work_apps import MEBIBYTE

# By a bridge that has as many threads as the others.
BRIDGED = replace(UVICORN, arguments=(*UVICORN.arguments[:-1], "asgi_named:app"))
PEERS = (WAITRESS, GUNICORN, GRANIAN, BJOERN, UWSGI, CHEROOT, BRIDGED, HYPERCORN)
COLUMNS = (
    Column("rate", "requests/s"),
    Column("p50", "p50 ms", 2),
    Column("p99", "p99 ms", 2),
    Column("p999", "p99.9 ms", 2),
    Column("cpu", "CPU us/request", 1),
    Column("memory", "MiB", 1),
    Column("errors", "errors"),
)
FORM = urlencode({f"field{number}": "value of a field" for number in range(12)})[:300].encode()

HELLO_LOAD = Workload(
    name="hello",
    title="hello, as a browser asks",
    app="apps:hello",
    answer=HELLO,
    headers=BROWSER_HEADERS,
)
WORKLOADS = {
    workload.name: workload
    for workload in (
        HELLO_LOAD,
        replace(
            HELLO_LOAD, name="varied", title="hello, with another query and Cookie each time", varied=True
        ),
        replace(
            HELLO_LOAD,
            name="close",
            title="a connection for each request",
            headers=BROWSER_HEADERS | {"Connection": "close"},
        ),
        replace(HELLO_LOAD, name="compute", title="1 ms of computation", app="work_apps:compute"),
        replace(HELLO_LOAD, name="sleep", title="10 ms of sleep", app="work_apps:sleep", threads=64),
        replace(
            HELLO_LOAD,
            name="form",
            title="a form of 300 bytes",
            app="work_apps:form",
            method="POST",
            body=FORM,
            answer=b"%d" % len(FORM),
            headers=BROWSER_HEADERS | {"Content-Type": "application/x-www-form-urlencoded"},
        ),
        replace(
            HELLO_LOAD, name="mebibyte", title="an answer of 1 MiB", app="work_apps:mebibyte", answer=MEBIBYTE
        ),
        replace(HELLO_LOAD, name="flask", title="Flask's hello", app="flask_apps:hello"),
        replace(HELLO_LOAD, name="django", title="Django's hello", app="django_apps:hello"),
        replace(HELLO_LOAD, name="tls", title="hello under TLS", tls=True),
    )
}

# Flags that name a certificate and its key; who has none does not take part.
TLS_FLAGS = {
    OURS.name: ("--certfile={cert}", "--keyfile={key}"),
    GUNICORN.name: ("--certfile={cert}", "--keyfile={key}"),
    GRANIAN.name: ("--ssl-certificate={cert}", "--ssl-keyfile={key}"),
    UVICORN.name: ("--ssl-certfile={cert}", "--ssl-keyfile={key}"),
    HYPERCORN.name: ("--certfile={cert}", "--keyfile={key}"),
}


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        try:
            cores = choose_cores(pinned=options.pinned)
            wanted = [WORKLOADS[name] for name in options.workload or WORKLOADS]
            run([table_of(workload, cores, Path(folder), options) for workload in wanted], options)
        except (BenchmarkError, subprocess.SubprocessError) as error:
            sys.exit(f"workloads.py: {error}")


def parse_options() -> argparse.Namespace:
    parser = options_of("Compare this server with its peers, over wrk.", rounds=3)
    parser.add_argument("workload", nargs="*", choices=[*WORKLOADS, []], help="default: all of them")
    parser.add_argument(
        "--seconds", type=positive, default=4, help="of each measurement; default: %(default)s"
    )
    parser.add_argument("--warm-up", type=positive, default=1, help="seconds before it; default: %(default)s")
    parser.add_argument("--connections", type=positive, help="default: 64")
    parser.add_argument("--threads", type=positive, help="default: 4, and 64 for those that sleep")
    parser.add_argument("--unpinned", dest="pinned", action="store_false", help="let the system choose cores")
    return parser.parse_args()


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


def table_of(workload: Workload, cores: Cores, folder: Path, options: argparse.Namespace) -> Table:
    workload = replace(
        workload,
        connections=options.connections or workload.connections,
        threads=options.threads or workload.threads,
    )
    pinned = (
        f"server on core {cores.server}, client on core {cores.client}" if options.pinned else "not pinned"
    )
    return Table(
        title=f"{workload.title}: {workload.connections} connections, {workload.threads} threads, {pinned}",
        servers=tuple(taking_part(workload, folder)),
        columns=COLUMNS,
        measure=partial(
            measure_one, workload=workload, cores=cores, warm_up=options.warm_up, seconds=options.seconds
        ),
        ratios=("rate", "cpu"),
    )


def taking_part(workload: Workload, folder: Path) -> Sequence[Server]:
    servers = [OURS, *PEERS]
    if workload.name in ("flask", "django"):
        servers = [replace(server, needs=(*server.needs, workload.name)) for server in servers]
    if workload.name == "sleep":
        servers.remove(BJOERN)  # it has one thread
    if workload.name == "hello":
        servers.append(CEILING)
    if workload.tls:
        make_certificate(folder)
        names = {"cert": folder / "cert.pem", "key": folder / "key.pem"}
        servers = [
            server.using(*(flag.format_map(names) for flag in TLS_FLAGS[server.name]))
            for server in servers
            if server.name in TLS_FLAGS
        ]
    return servers


def make_certificate(folder: Path) -> None:
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=localhost"]
    files = ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    command = ["openssl", "req", "-x509", *kind, "-nodes", "-days", "1", *files]
    subprocess.run(command, check=True, capture_output=True)


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


if __name__ == "__main__":
    main()
