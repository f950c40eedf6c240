"""Each buffer beside a plain `bytes`: whatever is done to both, they hold the same."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from waitress_async.buffers import (
    STRBUF_LIMIT,
    BytesIOBasedBuffer,
    OverflowableBuffer,
    ReadOnlyFileBasedBuffer,
    TempfileBasedBuffer,
)

pieces = st.one_of(
    st.binary(max_size=20),
    st.builds(lambda unit, times: unit * times, st.binary(min_size=1, max_size=3), st.integers(0, 6_000)),
)
counts = st.one_of(st.integers(-2, 30), st.integers(0, 30_000))


class Buffer(RuleBasedStateMachine):
    """`unread` is the model. `read` is what the file may still hold before it."""

    buffer: BytesIOBasedBuffer | TempfileBasedBuffer | OverflowableBuffer

    def __init__(self) -> None:
        super().__init__()
        self.unread = b""

    @rule(data=pieces)
    def append(self, data: bytes) -> None:
        self.buffer.append(data)
        self.unread += data

    @rule(count=counts)
    def peek(self, count: int) -> None:
        assert self.buffer.get(count) == (self.unread if count < 0 else self.unread[:count])

    @rule(count=counts)
    def consume(self, count: int) -> None:
        data = self.buffer.get(count, skip=True)
        assert data == (self.unread if count < 0 else self.unread[:count])
        self.unread = self.unread[len(data) :]

    @rule(count=counts, allow_prune=st.booleans())
    def skip(self, count: int, allow_prune: bool) -> None:
        if 0 <= count <= len(self.unread):
            self.buffer.skip(count, allow_prune)
            self.unread = self.unread[count:]
        else:
            with pytest.raises(ValueError, match="cannot skip"):
                self.buffer.skip(count, allow_prune)

    @rule()
    def prune(self) -> None:
        self.buffer.prune()

    @rule()
    def read_the_file(self) -> None:
        file = self.buffer.getfile()
        position = file.tell()
        assert file.read() == self.unread
        file.seek(position)

    @rule(kind=st.sampled_from([BytesIOBasedBuffer, TempfileBasedBuffer]), data=st.binary(max_size=5))
    def copy(self, kind: type[BytesIOBasedBuffer] | type[TempfileBasedBuffer], data: bytes) -> None:
        copy = kind(from_buffer=self.buffer)
        copy.append(data)
        assert copy.get(skip=True) == self.unread + data
        assert len(copy) == 0
        copy.close()

    @invariant()
    def length(self) -> None:
        assert len(self.buffer) == len(self.unread)

    def teardown(self) -> None:
        self.buffer.close()
        assert len(self.buffer) == 0
        with pytest.raises(ValueError, match="closed"):
            self.buffer.append(b"x")


class InMemory(Buffer):
    def __init__(self) -> None:
        super().__init__()
        self.buffer = BytesIOBasedBuffer()


class OnDisk(Buffer):
    def __init__(self) -> None:
        super().__init__()
        self.buffer = TempfileBasedBuffer()


class Overflowable(Buffer):
    def __init__(self) -> None:
        super().__init__()
        self.buffer: OverflowableBuffer = OverflowableBuffer(0)

    @initialize(overflow=st.sampled_from([0, 1, 10, 100, 5_000, STRBUF_LIMIT, STRBUF_LIMIT + 1, 20_000]))
    def set_overflow(self, overflow: int) -> None:
        self.buffer = OverflowableBuffer(overflow)

    @invariant()
    def memory_is_bounded(self) -> None:
        assert self.buffer.overflowed or not self.unread or len(self.unread) < self.buffer.overflow

    @precondition(lambda self: 0 < len(self.unread) < self.buffer.overflow)
    @rule()
    def prune_to_memory(self) -> None:
        self.buffer.prune()
        assert not self.buffer.overflowed

    @invariant()
    def truth(self) -> None:
        assert bool(self.buffer) is bool(self.unread)


quick = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestInMemory = InMemory.TestCase
TestOnDisk = OnDisk.TestCase
TestOverflowable = Overflowable.TestCase
TestInMemory.settings = TestOnDisk.settings = TestOverflowable.settings = quick


class ReadOnly(RuleBasedStateMachine):
    """A file that belongs to an app; `rest` is what may still be sent of it."""

    def __init__(self) -> None:
        super().__init__()
        self.file = io.BytesIO()
        self.buffer = ReadOnlyFileBasedBuffer(self.file)
        self.rest = b""

    @initialize(
        content=st.binary(max_size=100),
        position=st.integers(0, 110),
        size=st.none() | st.integers(0, 110),
        block_size=st.integers(1, 40),
    )
    def prepare(self, content: bytes, position: int, size: int | None, block_size: int) -> None:
        self.file = io.BytesIO(content)
        self.file.seek(position)
        self.buffer = ReadOnlyFileBasedBuffer(self.file, block_size)
        self.rest = content[position:][:size]
        assert self.buffer.prepare(size) == len(self.rest)
        assert self.file.tell() == position

    @rule(count=st.integers(-2, 110), skip=st.booleans())
    def get(self, count: int, skip: bool) -> None:
        data = self.buffer.get(count, skip)
        assert data == (self.rest if count < 0 else self.rest[:count])
        if skip:
            self.rest = self.rest[len(data) :]

    @rule()
    def next_block(self) -> None:
        block = next(self.buffer, b"")
        assert block == self.rest[: self.buffer.block_size]
        self.rest = self.rest[len(block) :]

    @rule(count=st.integers(0, 110))
    def skip(self, count: int) -> None:
        if count <= len(self.rest):
            self.buffer.skip(count)
            self.rest = self.rest[count:]

    @rule(size=st.none() | st.integers(0, 50))
    def prepare_again(self, size: int | None) -> None:
        self.rest = self.file.getvalue()[self.file.tell() :][:size]
        assert self.buffer.prepare(size) == len(self.rest)

    @invariant()
    def length(self) -> None:
        assert len(self.buffer) == self.buffer.remain == len(self.rest)


TestReadOnly = ReadOnly.TestCase
TestReadOnly.settings = quick


@given(content=st.binary(max_size=200), block_size=st.integers(1, 50), size=st.none() | st.integers(0, 220))
def test_iterating_gives_what_was_agreed_on(content: bytes, block_size: int, size: int | None) -> None:
    agreed = ReadOnlyFileBasedBuffer(io.BytesIO(content), block_size)
    agreed.prepare(size)
    assert b"".join(agreed) == content[:size]
    assert b"".join(ReadOnlyFileBasedBuffer(io.BytesIO(content), block_size)) == content
