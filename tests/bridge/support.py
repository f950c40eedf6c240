"""Loops that count, and waiting that is bounded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import Context
from typing import TypeVarTuple, Unpack, cast

from waitress_async.bridge import AsyncBodies, LogThread, Tasks, Wakeup
from waitress_async.buffers import BufferMemory

Ts = TypeVarTuple("Ts")

DEADLINE = 15.0  # seconds; far more than anything here takes


class CountingLoop(asyncio.SelectorEventLoop):
    """The stdlib's loop, which counts how often it was woken from other threads."""

    def __init__(self) -> None:
        super().__init__()
        self.wakeups = 0

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        self.wakeups += 1
        return super().call_soon_threadsafe(callback, *args, context=context)


async def until(predicate: Callable[[], object]) -> None:
    """Let the loop turn until `predicate()` is true."""
    deadline = time.monotonic() + DEADLINE
    while not predicate():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.001)


def wait(predicate: Callable[[], object]) -> None:
    """Hold the thread until `predicate()` is true."""
    deadline = time.monotonic() + DEADLINE
    while not predicate():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)


def no_async_bodies(loop: asyncio.AbstractEventLoop) -> AsyncBodies:
    """For outputs that have none."""
    return AsyncBodies(Wakeup(loop), cast(LogThread, None), cast(BufferMemory, None), 0, Tasks())
