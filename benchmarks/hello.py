"""Measures this server and its peers in turn: ``python benchmarks/hello.py``. README.md says what and how."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from environments import default_cache, installed_version, python_of
from machine import machine_facts
from measure import BenchmarkError, Cores, Measurement, Workload, measure
from report import Rounds, as_json, print_head, print_measurement, print_summary
from tables import SERVERS, WORKLOADS


def main() -> None:
    options = parse_options()
    workload = WORKLOADS["hello"]
    # As an exception, so that the server that runs is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        cores = choose_cores(pinned=options.pinned)
        pythons = {server.name: python_of(server, options.cache) for server in SERVERS}
        facts = machine_facts() | {
            "wrk": wrk_version(),
            "versions": {
                server.distribution: installed_version(pythons[server.name], server.distribution)
                for server in SERVERS
            },
            "pinned": asdict(cores) if options.pinned else None,
            "seconds": options.seconds,
            "warm_up": options.warm_up,
        }
        print_head(facts, workload)
        rounds = run_rounds(workload, pythons, cores, options)
    except (BenchmarkError, subprocess.SubprocessError) as error:
        sys.exit(f"hello.py: {error}")
    print_summary(rounds)
    if options.json:
        options.json.write_text(json.dumps(as_json(facts, workload, rounds), indent=2) + "\n")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare this server with its peers, over wrk.")
    parser.add_argument("--rounds", type=positive, default=3, help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=positive, default=5, help="of each measurement; default: %(default)s"
    )
    parser.add_argument("--warm-up", type=positive, default=1, help="seconds before it; default: %(default)s")
    parser.add_argument("--unpinned", dest="pinned", action="store_false", help="let the system choose cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        default=default_cache(),
        help="where environments are kept; default: %(default)s",
    )
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


def wrk_version() -> str:
    wrk = subprocess.run(["wrk", "-v"], check=False, capture_output=True, text=True)  # exits with 1
    return wrk.stdout.partition(" [")[0]


def run_rounds(
    workload: Workload, pythons: Mapping[str, Path], cores: Cores, options: argparse.Namespace
) -> Rounds:
    rounds: Rounds = []
    for number in range(1, options.rounds + 1):
        measured: dict[str, Measurement] = {}
        # Every other round goes backwards, so that a machine that slows down favours nobody.
        for server in SERVERS if number % 2 else reversed(SERVERS):
            measured[server.name] = measure(
                server,
                workload,
                pythons[server.name],
                cores,
                warm_up=options.warm_up,
                seconds=options.seconds,
            )
            print_measurement(number, server.name, measured[server.name])
        rounds.append(measured)
    return rounds


if __name__ == "__main__":
    main()
