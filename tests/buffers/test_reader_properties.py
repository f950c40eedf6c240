"""The reader under any mixture of feeding, reading, cancelling and waiting for disk and memory.

What comes out is what went in, and nothing is left behind.
"""

from __future__ import annotations

import asyncio
import io
import random
from asyncio import IncompleteReadError, LimitOverrunError
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.buffers.support import SlowDisk, Source, bytes_in_memory, until
from waitress_async.buffers import BufferMemory, BufferReader, Spool, SpoolFile, reader
from waitress_async.errors import SpoolFull


def stream(size: int, seed: int) -> bytes:
    """Few letters make separators, and beginnings of separators, frequent."""
    return bytes(random.Random(seed).choices(b"aa;--\n", k=size))


# From a seed, because hypothesis draws short byte strings, and order is lost in long streams only.
streams = st.builds(stream, st.integers(0, 600), st.integers(0, 1_000))
small = st.integers(0, 8) | st.integers(0, 60)
reads = st.one_of(
    st.tuples(st.just("read"), st.just(-1) | small),
    st.tuples(st.just("readexactly"), small | st.integers(0, 400)),
    st.tuples(st.just("readline")),
    st.tuples(st.just("readuntil"), st.sampled_from([b"\n", b";-", b"--;", b"aaaa"])),
)
feeding = [st.tuples(st.just("feed"), small), st.tuples(st.just("push"), small)]
steps = st.one_of(
    *feeding,
    st.tuples(st.just("start"), reads),
    st.tuples(st.just("turn")),
    st.tuples(st.just("settle")),
    st.tuples(st.just("cancel")),
    st.tuples(st.just("others"), st.integers(0, 120)),
    st.tuples(st.just("due")),
)
marks = st.none() | st.tuples(small, small).map(sorted)


@dataclass
class World:
    """A stream, the source that sends it while it is not paused, and the one task that reads it."""

    data: bytes
    limit: int
    marks: list[int] | None
    overflow: int
    eager: int
    """How many bytes the source sends from within `resume_reading`."""
    disk: SlowDisk
    spool: Spool
    memory: BufferMemory

    sent: int = 0
    got: bytes = b""
    paused: bool = False
    task: asyncio.Task[bytes] | None = None
    verb: tuple[Any, ...] = ()
    others_hold: int = 0
    """Bytes of `memory` that are not the reader's."""
    reader: BufferReader = field(init=False)

    def __post_init__(self) -> None:
        low, high = self.marks or (None, None)
        self.reader = BufferReader(
            overflow=self.overflow,
            limit=self.limit,
            high_water=high,
            low_water=low,
            pause_reading=self.pause,
            resume_reading=self.resume,
            spool=self.spool,
            memory=self.memory,
        )

    def pause(self) -> None:
        assert not self.paused
        self.paused = True

    def resume(self) -> None:
        assert self.paused
        self.paused = False
        self.feed(self.eager)

    def feed(self, size: int) -> None:
        if not self.paused:
            self.push(size)

    def push(self, size: int) -> None:
        """Send what was on its way when the pause came."""
        piece = self.data[self.sent : self.sent + size]
        if piece:
            self.sent += len(piece)
            self.reader.feed_data(piece)

    def others(self, size: int) -> None:
        self.memory.add(size - self.others_hold)
        self.others_hold = size

    def start(self, verb: tuple[Any, ...]) -> None:
        if self.task is None:
            name, *arguments = verb
            self.verb = verb
            self.task = asyncio.create_task(getattr(self.reader, name)(*arguments))

    async def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await self.finish()

    async def turn(self) -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        loop.call_soon(done.set_result, None)
        await done
        if self.task is not None and self.task.done():
            await self.finish()

    def due(self) -> None:
        self.reader.store_if_due()

    async def settle(self) -> None:
        """Wait until the disk has done all that it was given."""
        await self.disk.idle()
        await self.turn()

    async def finish(self) -> None:
        """Take the result of the read, and hold it against what the verb promises."""
        assert self.task is not None
        task, self.task = self.task, None
        name, *arguments = self.verb
        rest = self.data[len(self.got) :]
        separator = arguments[0] if name == "readuntil" else b"\n"
        partial = False
        try:
            result = await task
        except asyncio.CancelledError:
            return
        except (LimitOverrunError, ValueError):
            assert name in {"readuntil", "readline"}
            assert separator not in rest[: self.limit + len(separator)]
            assert len(rest) > self.limit
            return
        except IncompleteReadError as error:
            assert name in {"readuntil", "readexactly"}
            result, partial = error.partial, True
        assert result == rest[: len(result)]
        self.got += result
        last = result == rest and self.reader.at_eof()
        if name == "read":
            assert result or arguments == [0] or last
            assert len(result) <= arguments[0] if arguments[0] >= 0 else last
        elif name == "readexactly":
            assert last and len(result) < arguments[0] if partial else len(result) == arguments[0]
        elif (name == "readline" and not result.endswith(b"\n")) or partial:
            assert last
            assert separator not in result
        else:
            assert result.find(separator) == len(result) - len(separator) <= self.limit

    def check(self) -> None:
        if self.task is None or not self.task.done():
            assert len(self.reader) == self.sent - len(self.got)
        assert self.memory.used - self.others_hold == bytes_in_memory(self.reader)

    def check_settled(self) -> None:
        """What a write puts off holds when there is none."""
        held = self.sent - len(self.got)
        if self.marks is None:
            assert not self.paused
        elif self.task is None:
            low, high = self.marks
            assert not (self.paused and held <= low)
            assert self.paused or held <= high


async def play(world: World, script: list[tuple[Any, ...]]) -> None:
    calls: dict[str, Callable[..., Any]] = {
        "feed": world.feed,
        "push": world.push,
        "start": world.start,
        "turn": world.turn,
        "settle": world.settle,
        "cancel": world.cancel,
        "others": world.others,
        "due": world.due,
    }
    for name, *arguments in script:
        result = calls[name](*arguments)
        if result is not None:
            await result
        world.check()
        if name == "settle":
            world.check_settled()
    # Send the rest, reading whatever is in the way: a read that waits on a paused source never ends.
    while world.sent < len(world.data):
        world.feed(7)
        await world.settle()
        if world.paused:
            world.start(("read", 5))
            await world.settle()
        assert world.task is None or not world.paused
        world.check()
        world.check_settled()
    world.reader.feed_eof()
    assert not world.paused
    await world.settle()
    world.start(("read", -1))
    await world.settle()
    assert world.task is None
    assert world.got == world.data
    assert world.reader.at_eof()


async def close(world: World) -> None:
    """Whatever is under way."""
    world.eager = 0
    world.reader.close()
    assert not world.paused
    task, world.task = world.task, None
    if task is not None:
        await asyncio.wait([task])
        assert isinstance(task.exception(), None | ValueError | IncompleteReadError | LimitOverrunError)
    await world.settle()
    await world.spool.wait_closed()
    assert world.memory.used == world.others_hold
    assert (world.spool.files, world.spool.used) == (0, 0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@dataclass(frozen=True)
class Setting:
    """What a world is made with."""

    limit: int
    marks: list[int] | None
    overflow: int
    batch: int
    eager: int
    disk: int

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        """Thresholds that short streams reach."""
        patch.setattr(reader, "COPY_BYTES", self.batch)
        patch.setattr(reader, "_SHORT_BATCH", self.batch // 2 + 1)

    def world(self, data: bytes) -> World:
        disk = SlowDisk(self.disk)
        memory = BufferMemory(100)
        return World(
            data, self.limit, self.marks, self.overflow, self.eager, disk, Spool(executor=disk), memory
        )


world_settings = st.builds(
    Setting,
    limit=st.integers(1, 60),
    marks=marks,
    overflow=st.sampled_from([0, 1, 20, 1000]),
    batch=st.sampled_from([1, 5, 64]),
    eager=st.sampled_from([0, 0, 3, 50]),
    disk=st.integers(0, 1_000),
)


@settings(max_examples=300, deadline=None)
@given(data=streams, script=st.lists(steps, min_size=10, max_size=60), setting=world_settings)
def test_what_comes_out_is_what_went_in(data: bytes, script: list[tuple[Any, ...]], setting: Setting) -> None:
    async def live() -> None:
        world = setting.world(data)
        await play(world, script)
        await close(world)

    with pytest.MonkeyPatch.context() as patch:
        setting.patch(patch)
        asyncio.run(live())


@settings(max_examples=200, deadline=None)
@given(data=streams, script=st.lists(steps, max_size=30), setting=world_settings)
def test_closing_at_any_time_leaves_nothing(
    data: bytes, script: list[tuple[Any, ...]], setting: Setting
) -> None:
    async def live() -> None:
        world = setting.world(data)
        for name, *arguments in script:
            result = getattr(world, name)(*arguments)
            if result is not None:
                await result
        await close(world)

    with pytest.MonkeyPatch.context() as patch:
        setting.patch(patch)
        asyncio.run(live())


class Unsteady(Spool):
    """A disk that is full now and then."""

    full = False

    def open(self, expected: int = 0) -> SpoolFile:
        if self.full:
            raise SpoolFull("not now", setting="spool_limit")
        return super().open(expected)


unsteady_steps = st.one_of(
    *feeding,
    st.tuples(st.just("read"), st.integers(0, 40)),
    st.tuples(st.just("settle")),
    st.tuples(st.just("retry")),
    st.tuples(st.just("due")),
    st.tuples(st.just("full"), st.booleans()),
    st.tuples(st.just("others"), st.integers(0, 120)),
)


@settings(max_examples=300, deadline=None)
@given(
    data=streams,
    script=st.lists(unsteady_steps, max_size=25),
    batch=st.sampled_from([4, 20, 64]),
    seed=st.integers(0, 1_000),
)
def test_what_waited_for_memory_comes_out_as_well(
    data: bytes, script: list[tuple[Any, ...]], batch: int, seed: int
) -> None:
    """What has not been on disk yet and is less than `overflow` can always wait."""

    async def live() -> None:
        disk, memory = SlowDisk(seed), BufferMemory(100)
        spool = Unsteady(executor=disk)
        world = World(data, 1000, None, 1000, 0, disk, spool, memory)
        for name, *arguments in script:
            if name == "full":
                spool.full = arguments[0]
            elif name == "retry":
                world.reader.retry()
            elif name == "read":
                if len(world.reader) and world.reader.exception() is None:
                    got = await world.reader.read(*arguments)
                    assert data.startswith(world.got + got)
                    world.got += got
            else:
                result = getattr(world, name)(*arguments)
                if result is not None:
                    await result
            assert len(world.reader) == world.sent - len(world.got)
            assert memory.used - world.others_hold == bytes_in_memory(world.reader)
        world.others(0)
        spool.full = False
        while world.sent < len(data):
            await world.settle()
            world.reader.retry()
            await world.settle()
            assert not world.paused
            world.feed(50)
        world.reader.feed_eof()
        assert world.got + await world.reader.read() == data
        await close(world)

    with pytest.MonkeyPatch.context() as patch:
        Setting(1, None, 0, batch, 0, 0).patch(patch)
        asyncio.run(live())


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.binary(max_size=30), max_size=20),
    overflow=st.sampled_from([0, 1, 20, 1000]),
    batch=st.sampled_from([1, 5, 64]),
    threads=st.booleans(),
)
def test_the_file_holds_what_went_in(pieces: list[bytes], overflow: int, batch: int, threads: bool) -> None:
    data = b"".join(pieces)

    async def live(executor: Executor) -> None:
        spool, memory = Spool(executor=executor), BufferMemory(1 << 20)
        whole = await Source().ended(*pieces, overflow=overflow, spool=spool, memory=memory)
        file = await asyncio.to_thread(whole.getfile)
        assert isinstance(file, io.BytesIO) is (len(data) < overflow and whole.file is None)
        assert memory.used == (len(data) if whole.file is None else 0)
        assert file.read() == data
        assert len(whole) == len(data)
        whole.close()
        await until(lambda: not spool.files)
        assert (spool.used, memory.used) == (0, 0)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as disk:
        patch.setattr(reader, "COPY_BYTES", batch)
        asyncio.run(live(disk if threads else SlowDisk(0)))
