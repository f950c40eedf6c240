"""The reader under any mixture of feeding, reading and cancelling: what comes out is what went in."""

from __future__ import annotations

import asyncio
import io
import random
from asyncio import IncompleteReadError, LimitOverrunError
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waitress_async.buffers import BufferReader, reader


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
steps = st.one_of(
    st.tuples(st.just("feed"), small),
    st.tuples(st.just("start"), reads),
    st.tuples(st.just("turn")),
    st.tuples(st.just("cancel")),
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

    sent: int = 0
    got: bytes = b""
    paused: bool = False
    task: asyncio.Task[bytes] | None = None
    verb: tuple[Any, ...] = ()
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
        )

    def pause(self) -> None:
        assert not self.paused
        self.paused = True

    def resume(self) -> None:
        assert self.paused
        self.paused = False
        self.feed(self.eager)

    def feed(self, size: int) -> None:
        piece = self.data[self.sent : self.sent + size]
        if piece and not self.paused:
            self.sent += len(piece)
            self.reader.feed_data(piece)

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
        held = self.sent - len(self.got)
        if self.task is None or not self.task.done():
            assert len(self.reader) == held
        if self.marks is None:
            assert not self.paused
        elif self.task is None:
            low, high = self.marks
            assert not (self.paused and held <= low)
            assert self.paused or held <= high


async def play(world: World, script: list[tuple[Any, ...]]) -> None:
    for name, *arguments in script:
        if name == "feed":
            world.feed(*arguments)
        elif name == "start":
            world.start(*arguments)
        elif name == "turn":
            await world.turn()
        else:
            await world.cancel()
        world.check()
    # Send the rest, reading whatever is in the way: a read that waits on a paused source never ends.
    while world.sent < len(world.data):
        world.feed(7)
        if world.paused:
            world.start(("read", 5))
        await world.turn()
        await world.turn()
        assert world.task is None or not world.paused
        world.check()
    world.reader.feed_eof()
    assert not world.paused
    if world.task is not None:
        await world.turn()
    world.start(("read", -1))
    await world.turn()
    assert world.task is None
    assert world.got == world.data
    assert world.reader.at_eof()


@settings(max_examples=400, deadline=None)
@given(
    data=streams,
    script=st.lists(steps, min_size=10, max_size=60),
    limit=st.integers(1, 60),
    marks=marks,
    overflow=st.sampled_from([0, 1, 20, 1000]),
    batch=st.sampled_from([1, 5, 64]),
    eager=st.sampled_from([0, 0, 3, 50]),
)
def test_what_comes_out_is_what_went_in(
    data: bytes,
    script: list[tuple[Any, ...]],
    limit: int,
    marks: list[int] | None,
    overflow: int,
    batch: int,
    eager: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "COPY_BYTES", batch)
        world = World(data, limit, marks, overflow, eager)
        asyncio.run(play(world, script))
        world.reader.close()


@settings(max_examples=100, deadline=None)
@given(
    pieces=st.lists(st.binary(max_size=30), max_size=20),
    overflow=st.sampled_from([0, 1, 20, 1000]),
    batch=st.sampled_from([1, 5, 64]),
)
def test_the_file_holds_what_went_in(pieces: list[bytes], overflow: int, batch: int) -> None:
    data = b"".join(pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "COPY_BYTES", batch)
        whole = BufferReader(overflow=overflow)
        for piece in pieces:
            whole.feed_data(piece)
        whole.feed_eof()
        file = whole.getfile()
    assert isinstance(file, io.BytesIO) is (len(data) < overflow)
    assert file.read() == data
    assert len(whole) == len(data)
    whole.close()
