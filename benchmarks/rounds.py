"""Interleaved rounds of any measurement: who takes part, rows as they come, medians, ranges and ratios."""

import argparse
import json
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from environments import default_cache, installed_version, python_of
from machine import machine_facts
from measure import BenchmarkError, NotStartedError, Server
from tables import OURS


@dataclass(frozen=True, slots=True)
class Column:
    """A figure: its key in a Result, and how it is printed."""

    key: str
    title: str
    digits: int = 0
    more_is_better: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured of one server in one round; a note says what the figures cannot."""

    figures: dict[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """One comparison. `ratios` are the keys of columns to divide, the first server's by each other's.

    `about` goes into the file as it is: what a program that reads it knows this comparison by.
    """

    title: str
    servers: tuple[Server, ...]
    columns: tuple[Column, ...]
    measure: Callable[[Server, Path], Result]
    ratios: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)


Rounds = list[dict[str, Result]]
Pythons = dict[tuple[str, ...], Path]  # by what an environment has


def options_of(description: str, *, rounds: int) -> argparse.ArgumentParser:
    """The options that every comparison has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help="default: %(default)s")
    parser.add_argument("--only", action="append", metavar="NAME", help="this server; repeat it for more")
    parser.add_argument(
        "--setting",
        action="append",
        default=[],
        metavar="FLAG",
        help="for this server's command, as in --setting=--inbuf-overflow=65536; repeat it for more",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        default=default_cache(),
        help="where environments are kept; default: %(default)s",
    )
    return parser


def run(tables: Sequence[Table], options: argparse.Namespace) -> list[Rounds]:
    """Measures every table with the options of `options_of`, prints it, and writes the file if asked.

    Returns what was measured, by table.
    """
    if sys.platform != "linux":
        sys.exit("This benchmark reads /proc: it needs Linux.")
    # As an exception, so that the server that runs is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    pythons, versions, skipped = _install([server for table in tables for server in table.servers], options)
    facts = machine_facts() | {
        "versions": versions,
        "options": {name: str(value) for name, value in vars(options).items()},
    }
    print(", ".join(f"{name} {version}" for name, version in versions.items()), end="; ")
    print(f"{facts['python']}, {facts['system']}, {facts['cores']} cores of {facts['cpu']}")
    measured = [(table, _compare(table, pythons, skipped, options)) for table in tables]
    for name, reason in skipped.items():
        print(f"\nskipped: {name}: {reason.partition(chr(10))[0]}")
    if options.json:
        found = {
            "facts": facts,
            "skipped": skipped,
            "tables": [_as_json(table, rounds) for table, rounds in measured],
        }
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return [rounds for _, rounds in measured]


def _install(
    servers: Sequence[Server], options: argparse.Namespace
) -> tuple[Pythons, dict[str, str], dict[str, str]]:
    """Interpreters by environment, versions by distribution, and why a server has none of them."""
    pythons: Pythons = {}
    versions: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for server in servers:
        if (options.only and server.name not in options.only) or _environment_of(server) in pythons:
            continue
        try:
            python = python_of(server, options.cache)
            versions[server.distribution] = installed_version(python, server.distribution)
        except subprocess.SubprocessError as error:
            skipped[server.name] = f"it could not be installed: {error}"
        else:
            pythons[_environment_of(server)] = python
    return pythons, versions, skipped


def _environment_of(server: Server) -> tuple[str, ...]:
    return (server.environment, server.distribution, *server.needs)


def _compare(table: Table, pythons: Pythons, skipped: dict[str, str], options: argparse.Namespace) -> Rounds:
    print(f"\n{table.title}\n")
    _print_row("round", "server", [column.title for column in table.columns])
    rounds: Rounds = []
    for number in range(1, options.rounds + 1):
        measured: dict[str, Result] = {}
        # Every other round goes backwards, so that a machine that slows down favours nobody.
        for server in table.servers if number % 2 else reversed(table.servers):
            python = pythons.get(_environment_of(server))
            title = f"{server.name}, {table.title}"
            if title in skipped or python is None or (options.only and server.name not in options.only):
                continue
            ours = server.distribution == OURS.distribution
            try:
                result = table.measure(server.using(*options.setting) if ours else server, python)
            except NotStartedError as error:
                skipped[title] = str(error)
                continue
            except BenchmarkError as error:
                result = Result(note=f"! {error}")
            measured[server.name] = result
            _print_figures(str(number), server.name, table.columns, result.figures, result.note)
        rounds.append(measured)
    _print_summary(table, rounds)
    return rounds


def _print_summary(table: Table, rounds: Rounds) -> None:
    if len(rounds) > 1:
        print()
        for word, reduce in ("median", statistics.median), ("least", min), ("most", max):
            for server in table.servers:
                if figures := _reduced(table, rounds, server.name, reduce):
                    _print_figures(word, server.name, table.columns, figures)
    for key in table.ratios:
        if not (ratios := ratios_of(table, rounds, key)):
            continue
        title = next(column.title for column in table.columns if column.key == key)
        print(f"\nratio of {title}")
        for name, each in ratios.items():
            listed = "  ".join(f"{ratio:.2f}" for ratio in each)
            middle = statistics.median(each)
            print(
                f"{table.servers[0].name} / {name}: {listed}  "
                f"median {middle:.2f}, from {min(each):.2f} to {max(each):.2f}"
            )


def _print_figures(
    word: str, name: str, columns: Sequence[Column], figures: dict[str, float], note: str = ""
) -> None:
    cells = [
        f"{figures[column.key]:,.{column.digits}f}" if column.key in figures else "-" for column in columns
    ]
    _print_row(word, name, cells, note)


def _print_row(word: str, name: str, cells: Sequence[str], note: str = "") -> None:
    # Flushed: a row takes seconds to come, and is to be seen then, in a pipe too.
    print(
        f"{word:<8}{name:<24}{''.join(f'{cell:>16}' for cell in cells)}  {note}".rstrip(),
        flush=True,
    )


def _reduced(
    table: Table, rounds: Rounds, name: str, reduce: Callable[[list[float]], float]
) -> dict[str, float]:
    reduced = {}
    for column in table.columns:
        values = [
            measured[name].figures[column.key]
            for measured in rounds
            if name in measured and column.key in measured[name].figures
        ]
        if values:
            reduced[column.key] = reduce(values)
    return reduced


def ratios_of(table: Table, rounds: Rounds, key: str) -> dict[str, list[float]]:
    """For each other server, the first one's figure divided by its, for the rounds in which both have one."""
    first, *others = (server.name for server in table.servers)
    ratios: dict[str, list[float]] = {}
    for measured in rounds:
        for name in others:
            both = [measured[one].figures.get(key, 0) for one in (first, name) if one in measured]
            if len(both) == 2 and all(both):
                ratios.setdefault(name, []).append(both[0] / both[1])
    return ratios


def _as_json(table: Table, rounds: Rounds) -> dict[str, Any]:
    names = [server.name for server in table.servers]
    return {
        "title": table.title,
        "about": dict(table.about),
        "columns": [asdict(column) for column in table.columns],
        "rounds": [{name: asdict(result) for name, result in measured.items()} for measured in rounds],
        **{
            word: {name: _reduced(table, rounds, name, reduce) for name in names}
            for word, reduce in (("medians", statistics.median), ("least", min), ("most", max))
        },
        "ratios": {
            key: {
                name: {"rounds": each, "median": statistics.median(each)}
                for name, each in ratios_of(table, rounds, key).items()
            }
            for key in table.ratios
        },
    }
