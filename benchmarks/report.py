"""What a run of rounds says: rows while it goes on, then medians and ratios, and the same as JSON."""

import statistics
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from measure import Measurement, Workload
from tables import OURS, SERVERS

# For each round, what was measured of each server, by name.
Rounds = list[dict[str, Measurement]]


def print_head(facts: Mapping[str, Any], workload: Workload) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    print(f"{versions}; {facts['python']}, {facts['system']}, {facts['cores']} cores of {facts['cpu']}")
    pinned = facts["pinned"]
    where = (
        f"server on core {pinned['server']}, client on core {pinned['client']}" if pinned else "not pinned"
    )
    print(
        f"{workload.name}: {workload.connections} connections, {workload.threads} threads, "
        f"{len(workload.headers) + 1} header fields; measured for {facts['seconds']} s each; {where}\n"
    )
    print(f"{'round':<8}{'server':<16}{'requests/s':>12}{'CPU us/request':>18}  errors")


def print_measurement(number: int, server: str, measurement: Measurement) -> None:
    errors = "0"
    if measurement.errors:
        errors = f"! {measurement.socket_errors} of sockets, {measurement.bad_statuses} of status"
    print_row(str(number), server, measurement.requests_per_second, measurement.cpu_microseconds, errors)


def print_row(title: str, server: str, rate: float, cpu: float, errors: str = "") -> None:
    # Flushed: a row takes seconds to come, and is to be seen then, in a pipe too.
    print(f"{title:<8}{server:<16}{rate:>12,.0f}{cpu:>18.1f}  {errors}".rstrip(), flush=True)


def print_summary(rounds: Rounds) -> None:
    print()
    for name, (rate, cpu) in medians(rounds).items():
        print_row("median", name, rate, cpu)
    print()
    for name, each in ratios(rounds).items():
        middle = statistics.median(each)
        listed = "  ".join(f"{ratio:.2f}" for ratio in each)
        print(f"{OURS.name} / {name}: {listed}  median {middle:.2f}, from {min(each):.2f} to {max(each):.2f}")
    if any(measurement.errors for measured in rounds for measurement in measured.values()):
        print("\nSome measurements had errors (!): do not trust them, nor the ratios made of them.")


def as_json(facts: Mapping[str, Any], workload: Workload, rounds: Rounds) -> dict[str, Any]:
    return {
        "facts": facts,
        "workload": asdict(workload) | {"body": workload.body.decode()},
        "rounds": [
            {
                name: asdict(measurement)
                | {
                    "requests_per_second": measurement.requests_per_second,
                    "cpu_microseconds": measurement.cpu_microseconds,
                }
                for name, measurement in measured.items()
            }
            for measured in rounds
        ],
        "medians": {
            name: {"requests_per_second": rate, "cpu_microseconds": cpu}
            for name, (rate, cpu) in medians(rounds).items()
        },
        "ratios": {
            name: {"rounds": each, "median": statistics.median(each)} for name, each in ratios(rounds).items()
        },
    }


def medians(rounds: Rounds) -> dict[str, tuple[float, float]]:
    """For each server the medians of requests a second and of CPU microseconds for a request."""
    return {
        server.name: (
            statistics.median(measured[server.name].requests_per_second for measured in rounds),
            statistics.median(measured[server.name].cpu_microseconds for measured in rounds),
        )
        for server in SERVERS
    }


def ratios(rounds: Rounds) -> dict[str, list[float]]:
    """For each other server, how many times its requests a second ours were, round by round."""
    return {
        server.name: [
            measured[OURS.name].requests_per_second / measured[server.name].requests_per_second
            for measured in rounds
        ]
        for server in SERVERS
        if server is not OURS
    }
