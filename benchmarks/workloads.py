"""This server and its peers under one kind of load after the other: ``python benchmarks/workloads.py hello``.

README.md says what and how.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlencode

from apps import HELLO
from loads import choose_cores, options_of_loads, positive, table_of
from measure import BenchmarkError, Server, Workload
from rounds import run
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
            tables = []
            for name in options.workload or WORKLOADS:
                workload = adjusted(WORKLOADS[name], options)
                tables.append(table_of(workload, taking_part(workload, Path(folder)), cores, options))
            run(tables, options)
        except (BenchmarkError, subprocess.SubprocessError) as error:
            sys.exit(f"workloads.py: {error}")


def parse_options() -> argparse.Namespace:
    parser = options_of_loads("Compare this server with its peers, over wrk.")
    parser.add_argument("workload", nargs="*", choices=[*WORKLOADS, []], help="default: all of them")
    parser.add_argument("--connections", type=positive, help="default: 64")
    parser.add_argument("--threads", type=positive, help="default: 4, and 64 for those that sleep")
    return parser.parse_args()


def adjusted(workload: Workload, options: argparse.Namespace) -> Workload:
    return replace(
        workload,
        connections=options.connections or workload.connections,
        threads=options.threads or workload.threads,
    )


def taking_part(workload: Workload, folder: Path) -> Sequence[Server]:
    servers = [OURS, *PEERS]
    if workload.name in ("flask", "django"):
        servers = [replace(server, needs=(*server.needs, workload.name)) for server in servers]
    if workload.name == "sleep":
        servers.remove(BJOERN)  # it has one thread
    if workload.name == "close":
        servers.remove(UWSGI)  # its http11-socket keeps a connection open that a client asks it to close
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


if __name__ == "__main__":
    main()
