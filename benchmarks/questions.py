"""Hello asked at a steady pace, whatever the answers do: the asking side of siege.py, in its own process."""

from __future__ import annotations

import asyncio
import os
import ssl
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field

from apps import HELLO
from clients import head_of, parsed_head
from measure import HOST, BenchmarkError
from tables import BROWSER_HEADERS

EVERY = 0.05  # seconds between two questions of a series
PRIORITY = -10  # of the process; nice(2)
PATIENCE = 5.0  # seconds after which a question has failed

REQUEST = head_of("GET", "/", BROWSER_HEADERS)

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(slots=True)
class Answers:
    """What came of one series of questions. Of those that were answered: when each was asked, in seconds from
    the beginning, and how long it took."""

    moments: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    def add(self, moment: float, latency: float) -> None:
        self.moments.append(moment)
        self.latencies.append(latency)

    @property
    def median(self) -> float:
        return statistics.median(self.latencies)

    @property
    def p99(self) -> float:
        if len(self.latencies) < 2:
            return self.worst
        return statistics.quantiles(self.latencies, n=100, method="inclusive")[98]

    @property
    def worst(self) -> float:
        return max(self.latencies)

    @property
    def worst_at(self) -> float:
        return self.moments[self.latencies.index(self.worst)]


@dataclass(frozen=True, slots=True)
class Heard:
    """Three series at the same time: on a new connection for each question, on one that is kept, and on a
    new one to another server, to which nobody else talks. The last tells how the machine fared."""

    new: Answers = field(default_factory=Answers)
    kept: Answers = field(default_factory=Answers)
    beside: Answers = field(default_factory=Answers)


def ask(port: int, beside: int, seconds: float, *, encrypted: bool) -> Heard:
    """The asking process. Returns at most PATIENCE after that many seconds.

    `beside` is the port of the other server, which is never encrypted.
    """
    with suppress(OSError):  # where it is allowed: on few cores it would wait for those who besiege
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    return asyncio.run(_ask(port, beside, seconds, client_context() if encrypted else None))


def client_context() -> ssl.SSLContext:
    """For a server whose certificate was made a moment ago."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _ask(port: int, beside: int, seconds: float, context: ssl.SSLContext | None) -> Heard:
    heard = Heard()
    begin = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        # A third of the pace apart: they are not to wait for each other.
        group.create_task(_on_new_connections(port, context, begin, seconds, heard.new))
        group.create_task(_on_one_connection(port, context, begin + EVERY / 3, seconds, heard.kept))
        group.create_task(_on_new_connections(beside, None, begin + EVERY * 2 / 3, seconds, heard.beside))
    return heard


async def _due(begin: float, seconds: float) -> AsyncIterator[float]:
    """The moments at which to ask. Each comes then, or at once if it is past."""
    for number in range(round(seconds / EVERY)):
        due = begin + number * EVERY
        if (early := due - time.perf_counter()) > 0:
            await asyncio.sleep(early)
            due = time.perf_counter()  # a late timer is not the server's
        yield due


async def _on_new_connections(
    port: int, context: ssl.SSLContext | None, begin: float, seconds: float, answers: Answers
) -> None:
    async with asyncio.TaskGroup() as group:
        async for asked in _due(begin, seconds):
            group.create_task(_on_new_connection(port, context, begin, asked, answers))


async def _on_new_connection(
    port: int, context: ssl.SSLContext | None, begin: float, asked: float, answers: Answers
) -> None:
    stream = None
    try:
        async with asyncio.timeout(PATIENCE):
            stream = await asyncio.open_connection(HOST, port, ssl=context)
            await _question(stream)
    except FAILURES as error:
        answers.failures[_reason(error)] += 1
    else:
        answers.add(asked - begin, time.perf_counter() - asked)
    finally:
        _leave(stream)


async def _on_one_connection(
    port: int, context: ssl.SSLContext | None, begin: float, seconds: float, answers: Answers
) -> None:
    """One question after another. What one has to wait for the one before it is part of its latency."""
    stream: Stream | None = None
    try:
        async for asked in _due(begin, seconds):
            try:
                async with asyncio.timeout(asked + PATIENCE - time.perf_counter()):
                    if stream is None or stream[0].at_eof():
                        _leave(stream)
                        stream = await asyncio.open_connection(HOST, port, ssl=context)
                    is_kept = await _question(stream)
            except FAILURES as error:
                answers.failures[_reason(error)] += 1
                is_kept = False
            else:
                answers.add(asked - begin, time.perf_counter() - asked)
            if not is_kept:
                _leave(stream)
                stream = None
    finally:
        _leave(stream)


def _leave(stream: Stream | None) -> None:
    if stream is not None:
        stream[1].transport.abort()


async def _question(stream: Stream) -> bool:
    """Whether the server keeps the connection."""
    reader, writer = stream
    writer.write(REQUEST)
    head = await reader.readuntil(b"\r\n\r\n")
    status, fields = parsed_head(head.removesuffix(b"\r\n\r\n"))
    if status != 200:
        raise BenchmarkError(f"status {status}")
    if await reader.readexactly(len(HELLO)) != HELLO:
        raise BenchmarkError("a wrong answer")
    return fields.get("connection", "").lower() != "close"


FAILURES = (BenchmarkError, OSError, EOFError, TimeoutError, asyncio.LimitOverrunError)


def _reason(error: BaseException) -> str:
    match error:
        case TimeoutError():
            return f"no answer in {PATIENCE:g} s"
        case ConnectionRefusedError():
            return "refused"
        case EOFError() | ConnectionError():
            return "closed"
        case _:
            return str(error)
