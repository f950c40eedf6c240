"""Mutated streams to `Connection` alone, one after the other, and what came of them in figures."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence

from tests.fuzz.compare import FAILURES, bounds_of, difference, is_stricter, shrunk, some_limits
from tests.fuzz.mutate import case
from tests.fuzz.reference import read
from tests.http.driver import drive
from waitress_async.http import HeadMemo, Limits


class Alone:
    """The cases of a seed. One memo goes through all of them, as it does through a server's connections."""

    def __init__(self, seed: int, sources: Sequence[bytes]) -> None:
        self.sources = sources
        self.findings: list[tuple[bytes, str]] = []
        self.stricter: list[tuple[bytes, str]] = []  # than the reference
        self._seed = seed
        self._next = 0
        self._memo = HeadMemo()
        self._figures = Counter[str]()
        self._refusals = Counter[int]()
        self._slowest = 0.0, 0, 0  # seconds of the parser, bytes, case

    def run_next(self) -> None:
        number, self._next = self._next, self._next + 1
        stream, limits = self._make(number)
        found = self._found(stream, limits, number)
        if found is not None:
            smaller = shrunk(stream, lambda shorter: self._found(shorter, limits, number) is not None)
            self.findings.append((smaller, f"case {number}, {limits}: {found}"))
            return
        self._count(stream, limits, number)

    def judge(self, number: int) -> str | None:
        """What is wrong with one case."""
        return self._found(*self._make(number), number)

    def _make(self, number: int) -> tuple[bytes, Limits]:
        stream = case(self._seed, number, self.sources)
        return stream, some_limits(random.Random(f"limits {self._seed}:{number}"))

    def _found(self, stream: bytes, limits: Limits, number: int) -> str | None:
        try:
            return difference(stream, limits, random.Random(number), self._memo)
        except FAILURES as error:
            return repr(error)

    def _count(self, stream: bytes, limits: Limits, number: int) -> None:
        since = time.thread_time()
        outcome = drive([stream], limits, eof=True)
        self._slowest = max(self._slowest, (time.thread_time() - since, len(stream), number))
        reading = read(stream, bounds_of(limits))
        self._figures["streams"] += 1
        self._figures["bytes"] += len(stream)
        self._figures["requests"] += sum(message.complete for message in outcome.messages)
        self._figures["with a body"] += sum(bool(message.body) for message in outcome.messages)
        self._figures["begun"] += sum(not message.complete for message in outcome.messages)
        if outcome.refusal is not None:
            self._refusals[outcome.refusal.status] += 1
        if is_stricter(outcome, reading):
            self.stricter.append((stream, f"case {number}, {limits}: {outcome.refusal}"))

    def summary(self) -> str:
        seconds, size, number = self._slowest
        return (
            f"{dict(self._figures)},"
            f" refused {sum(self._refusals.values())}: {dict(sorted(self._refusals.items()))},"
            f" slowest {1_000 * seconds:.1f} ms for {size} bytes (case {number}),"
            f" stricter {len(self.stricter)}, found {len(self.findings)}"
        )
