"""Readers, who feeds them, and disks that wait until they are told."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from contextlib import nullcontext
from random import Random
from typing import Any, ParamSpec, TypeVar

import pytest

from waitress_async.buffers import BufferReader, SpoolFile

P = ParamSpec("P")
T = TypeVar("T")

DEADLINE = 15.0  # seconds; far more than anything here takes

PATTERN = bytes(range(256)) * 4096  # 1 MiB


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that has nothing to wait for. There is no loop, so it can make no future."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("the coroutine waits")


async def turn() -> None:
    """Let everything run that is ready."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    loop.call_soon(done.set_result, None)
    await done


async def until(predicate: Callable[[], object]) -> None:
    """Let the loop turn until `predicate()` is true."""
    deadline = time.monotonic() + DEADLINE
    while not predicate():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.001)


async def start(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Return a task that has run up to where it waits."""
    task = asyncio.create_task(coroutine)
    await turn()
    return task


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def fed(*pieces: bytes, **options: Any) -> BufferReader:
    reader = BufferReader(**options)
    for piece in pieces:
        reader.feed_data(piece)
    return reader


def ended(*pieces: bytes, **options: Any) -> BufferReader:
    reader = fed(*pieces, **options)
    reader.feed_eof()
    return reader


def bytes_in_memory(reader: BufferReader) -> int:
    """What the reader holds and has to account for, place by place."""
    return len(reader._head) + len(reader._batch) + len(reader._tail)


class Source:
    """A transport that counts, and objects to a pause too many."""

    def __init__(self) -> None:
        self.pauses = 0
        self.resumes = 0

    def paused(self) -> bool:
        return self.pauses > self.resumes

    def pause(self) -> None:
        assert not self.paused()
        self.pauses += 1

    def resume(self) -> None:
        assert self.paused()
        self.resumes += 1

    def reader(
        self, high_water: int | None = None, low_water: int | None = None, **options: Any
    ) -> BufferReader:
        return BufferReader(
            high_water=high_water,
            low_water=low_water,
            pause_reading=self.pause,
            resume_reading=self.resume,
            **options,
        )

    async def resumed(self) -> None:
        await until(lambda: not self.paused())

    async def feed(self, reader: BufferReader, *pieces: bytes) -> None:
        """Feed as a transport does: nothing while it is paused, and the end of it is waited for."""
        for piece in pieces:
            await self.resumed()
            reader.feed_data(piece)
        await self.resumed()

    async def ended(self, *pieces: bytes, **options: Any) -> BufferReader:
        """A reader that was fed `pieces` and the end."""
        reader = self.reader(**options)
        await self.feed(reader, *pieces)
        reader.feed_eof()
        return reader


class Gate:
    """Holds every call of a method, of SpoolFile or another class, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, method: str, kind: type = SpoolFile) -> None:
        self.calls = 0
        self._entered = threading.Event()
        self._open = threading.Event()
        self._left = threading.Event()
        original = getattr(kind, method)

        def held(owner: Any, *arguments: Any) -> Any:
            self.calls += 1
            # Who is held within a file is inside: the descriptor is in use.
            with owner if isinstance(owner, SpoolFile) else nullcontext():
                self._entered.set()
                try:
                    assert self._open.wait(DEADLINE)
                    return original(owner, *arguments)
                finally:
                    self._left.set()

        monkeypatch.setattr(kind, method, held)

    async def entered(self) -> None:
        """Wait until a thread is held."""
        await until(self._entered.is_set)

    def open(self) -> None:
        self._open.set()

    def left(self) -> bool:
        """Whether a call has ended."""
        return self._left.is_set()


class SlowDisk(Executor):
    """Runs what it is given on the loop's thread, a few turns of the loop later. How many is drawn."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self.pending = 0
        self.submitted = 0

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        loop = asyncio.get_running_loop()
        future: Future[T] = Future()
        self.pending += 1
        self.submitted += 1

        def later(turns: int) -> None:
            if turns:
                loop.call_soon(later, turns - 1)
                return
            self.pending -= 1
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        later(self._random.choice([1, 1, 2, 5, 9]))
        return future

    async def idle(self) -> None:
        """Let the loop turn until nothing is done or about to be done."""
        quiet = 0
        while quiet < 6:
            submitted = self.submitted
            await turn()
            quiet = 0 if self.pending or self.submitted != submitted else quiet + 1
