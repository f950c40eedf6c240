"""What comparisons have written, read again: tables of medians and ratios."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rounds import Column
from tables import CEILING, OURS


@dataclass(frozen=True, slots=True)
class Ratio:
    """This server's figure divided by another's, in each round that has both."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def __str__(self) -> str:
        least, most = min(self.rounds), max(self.rounds)
        return (
            f"{self.median:.2f} ({least:.2f} to {most:.2f})" if len(self.rounds) > 1 else f"{self.median:.2f}"
        )


@dataclass(frozen=True, slots=True)
class FoundTable:
    """A Table of rounds.py, as it was measured."""

    title: str
    about: dict[str, Any]
    columns: dict[str, Column]
    medians: dict[str, dict[str, float]]  # by server
    ratios: dict[str, dict[str, Ratio]]  # by column, and then by the other server
    notes: tuple[str, ...]
    failing: frozenset[str]  # servers with errors in any round

    @property
    def first(self) -> str:
        """The server by whose figures the others' were divided."""
        return next(iter(self.medians), OURS.name)


@dataclass(frozen=True, slots=True)
class Lost:
    """A figure in which another server is better than this one, by the median of the ratios."""

    title: str
    column: Column
    other: str
    ours: float
    its: float
    ratio: Ratio

    @property
    def factor(self) -> float:
        """How many times worse, above 1."""
        return times_worse(self.column, self.ratio.median)

    @property
    def rounds(self) -> int:
        """In how many rounds it was so."""
        return sum(times_worse(self.column, each) > 1 for each in self.ratio.rounds)


@dataclass(frozen=True, slots=True)
class Found:
    """One file: what one script has measured."""

    name: str
    facts: dict[str, Any]
    skipped: dict[str, str]
    tables: tuple[FoundTable, ...]

    @property
    def machine(self) -> str:
        return "{python}, {system}, {cores} cores of {cpu}".format_map(self.facts)

    @property
    def date(self) -> str:
        return str(self.facts["date"]).partition("T")[0]


def read_all(folder: Path) -> dict[str, Found]:
    """By the names of the files. Raises OSError, and ValueError or LookupError for a file of another kind."""
    return {file.stem: _read(file) for file in sorted(folder.glob("*.json"))}


def lost(tables: Iterator[tuple[str, FoundTable]]) -> list[Lost]:
    """Of titled tables all in which another server is better, the worst first."""
    found = [
        Lost(
            title,
            table.columns[key],
            other,
            table.medians[table.first][key],
            table.medians[other][key],
            ratio,
        )
        for title, table in tables
        for key, by_server in table.ratios.items()
        for other, ratio in by_server.items()
        if other != CEILING.name  # it parses nothing, and runs no app
    ]
    return sorted((one for one in found if one.factor > 1), key=lambda one: -one.factor)


def times_worse(column: Column, ratio: float) -> float:
    return 1 / ratio if column.more_is_better else ratio


def _read(file: Path) -> Found:
    found = json.loads(file.read_text())
    return Found(
        file.stem,
        found["facts"],
        {what: _told(reason) for what, reason in found["skipped"].items()},
        tuple(_table(table) for table in found["tables"]),
    )


def _table(table: dict[str, Any]) -> FoundTable:
    noted = [
        (server, number, result["note"])
        for number, measured in enumerate(table["rounds"], 1)
        for server, result in measured.items()
        if result["note"]
    ]
    return FoundTable(
        title=table["title"],
        about=table["about"],
        columns={column["key"]: Column(**column) for column in table["columns"]},
        medians={server: figures for server, figures in table["medians"].items() if figures},
        ratios={
            key: {server: Ratio(tuple(each["rounds"])) for server, each in by_server.items()}
            for key, by_server in table["ratios"].items()
        },
        notes=tuple(f"{server}, round {number}: {_told(note)}" for server, number, note in noted),
        failing=frozenset(server for server, _, note in noted if note.startswith("!")),
    )


def _told(reason: str) -> str:
    """The beginning of a reason: behind it are logs and commands, with paths of the machine."""
    return reason.partition("\n")[0].partition(": Command ")[0]
