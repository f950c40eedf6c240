"""What a request costs as load grows: ``python benchmarks/growth.py``. README.md says what and how."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

from clients import raise_descriptor_limit
from loads import choose_cores, options_of_loads, positive, table_of
from measure import BenchmarkError, Workload
from rounds import run
from tables import BJOERN, GRANIAN, GUNICORN, OURS, WAITRESS
from workloads import HELLO_LOAD

CONNECTIONS = (1, 16, 64, 256, 2048)
THREADS = (1, 4, 16, 64, 128)

# Their defaults would keep some of the connections waiting until others have ended, or let none in (select).
SERVERS = (
    OURS,
    WAITRESS.using("--connection-limit=10000", "--asyncore-use-poll"),
    GUNICORN.using("--worker-connections=10000"),
    GRANIAN.using("--backpressure=10000"),
    BJOERN,
)


def main() -> None:
    options = parse_options()
    raise_descriptor_limit()
    try:
        cores = choose_cores(pinned=options.pinned)
        run(
            [
                table_of(
                    load,
                    [server for server in SERVERS if takes_part(server.name, load)],
                    cores,
                    options,
                )
                for load in loads(options.connections, options.threads)
            ],
            options,
        )
    except BenchmarkError as error:
        sys.exit(f"growth.py: {error}")


def parse_options() -> argparse.Namespace:
    parser = options_of_loads("Compare what a request costs as connections and threads grow.")
    for name, numbers in ("connections", CONNECTIONS), ("threads", THREADS):
        parser.add_argument(
            f"--{name}",
            type=positive,
            nargs="+",
            metavar="N",
            help=f"default: {' '.join(map(str, numbers))}; of the other series nothing, if only one is given",
        )
    options = parser.parse_args()
    if options.connections is None and options.threads is None:
        options.connections, options.threads = CONNECTIONS, THREADS
    return options


def loads(connections: Sequence[int] | None, threads: Sequence[int] | None) -> Iterator[Workload]:
    """Hello at each number of connections, and at each number of threads; where both meet, once."""
    points = [(number, HELLO_LOAD.threads) for number in connections or ()]
    points += [(HELLO_LOAD.connections, number) for number in threads or ()]
    for number, threads_then in dict.fromkeys(points):
        yield replace(HELLO_LOAD, connections=number, threads=threads_then)


def takes_part(name: str, load: Workload) -> bool:
    return name != BJOERN.name or load.threads == HELLO_LOAD.threads  # it has one thread


if __name__ == "__main__":
    main()
