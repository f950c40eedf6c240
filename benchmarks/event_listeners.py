"""The clients of streams.py: one process that holds many event streams and notes when each event comes."""

from __future__ import annotations

import asyncio
import os
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import cast

from clients import head_of, parsed_head
from event_apps import PATH, PERIOD
from measure import HOST, BenchmarkError
from tables import BROWSER_HEADERS


def pin(core: int | None) -> None:
    """Keep this process to one core."""
    if core is not None:
        os.sched_setaffinity(0, {core})


@dataclass(slots=True)
class Listened:
    """What the client process reports. Of each event: when it came (time.monotonic()), and how late, in
    seconds."""

    came: array[float] = field(default_factory=lambda: array("d"))
    late: array[float] = field(default_factory=lambda: array("d"))
    served: int = 0  # streams that have had an event
    problems: Counter[str] = field(default_factory=Counter)


class Listener(asyncio.Protocol):
    """One stream. Its events must be all there, in order."""

    def __init__(self, phase: float, listened: Listened) -> None:
        self._phase = phase
        self._listened = listened
        self._number = 0  # of the next event
        self._rest = b""
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(head_of("GET", f"{PATH}?{self._phase:.6f}", BROWSER_HEADERS))

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        # What frames the chunks lies between the events, and is not looked at.
        *events, self._rest = (self._rest + data).split(b"\n\n")
        try:
            for event in events:
                self._take(event, now)
        except (ValueError, BenchmarkError) as error:
            self._listened.problems[str(error)] += 1
            self.close()

    def _take(self, event: bytes, now: float) -> None:
        if not self._number:
            head, _, event = event.partition(b"\r\n\r\n")
            status, _ = parsed_head(head)
            if status != 200:
                raise BenchmarkError(f"status {status}")
            self._listened.served += 1
        number, due = event.partition(b"data: ")[2].split()
        if int(number) != self._number:
            raise BenchmarkError("an event is missing")
        self._number += 1
        self._listened.came.append(now)
        self._listened.late.append(now - float(due))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ended:
            self._listened.problems["closed by the server"] += 1

    def close(self) -> None:
        self._ended = True
        self._transport.abort()


def listen(port: int, streams: int, begin: float, arrival: float, end: float, core: int | None) -> Listened:
    """The client process: that many streams, which come one after the other in the `arrival` seconds from
    `begin` on, and leave at `end`, both by time.monotonic(). Their events are spread over each PERIOD."""
    pin(core)
    return asyncio.run(_listen(port, streams, begin, arrival, end))


async def _listen(port: int, streams: int, begin: float, arrival: float, end: float) -> Listened:
    loop = asyncio.get_running_loop()
    listened = Listened()
    listeners: list[Listener] = []

    async def connect(phase: float) -> None:
        try:
            _, listener = await loop.create_connection(lambda: Listener(phase, listened), HOST, port)
        except OSError as error:
            listened.problems[type(error).__name__] += 1
        else:
            listeners.append(listener)

    connecting = []
    for number in range(streams):
        if (early := begin + arrival * number / streams - time.monotonic()) > 0:
            await asyncio.sleep(early)
        connecting.append(asyncio.create_task(connect(PERIOD * number / streams)))
    await asyncio.sleep(end - time.monotonic())
    for task in connecting:
        task.cancel()
    await asyncio.wait(connecting)
    for listener in listeners:
        listener.close()
    await asyncio.sleep(0)  # what is aborted is closed by the loop
    return listened
