"""A response between the app's thread and the loop: one crossing, memory, disk, a wait, and an end to it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bridge.support import DEADLINE, CountingLoop, no_async_bodies, until, wait
from waitress_async.bridge import Output, OutputStore, Piece, Wakeup
from waitress_async.buffers import BufferMemory, FileRegion, Spool, SpoolFile
from waitress_async.errors import ClientDisconnected, ResponseNotStored
from waitress_async.http import HeadEncoder

HEAD = HeadEncoder().encode("200 OK", [])

PLENTY = 1 << 40
NEAR = 1_000_000  # bytes: of a memory with this limit, as much is held from the beginning


class Writer(threading.Thread):
    """A thread that runs `write` and remembers how it ended."""

    def __init__(self, write: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._write = write
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._write()
        except BaseException as error:
            self.error = error

    def ended(self) -> bool:
        return not self.is_alive()

    def end(self) -> None:
        """Wait for the end, which is a normal one."""
        self.join(DEADLINE)
        assert self.ended(), "it still waits"
        if self.error is not None:
            raise self.error


class WatchedSpool(Spool):
    """A real spool, whose writes can be stopped at a gate, or fail, and whose closed files are counted."""

    def __init__(self, directory: Path, limit: int = 0, min_free: int = 0) -> None:
        super().__init__(str(directory), limit=limit, min_free=min_free)
        self.gate = threading.Event()
        self.gate.set()
        self.at_gate = threading.Event()
        self.fail_after = PLENTY  # writes
        self.writes = 0
        self.opened = 0
        self.closings = 0
        self.largest = 0  # file, in bytes

    def open(self, expected: int = 0) -> SpoolFile:
        self.opened += 1
        file = super().open(expected)
        file.__class__ = WatchedFile
        return file

    def _count_closed(self) -> None:
        self.closings += 1
        super()._count_closed()

    def _grow(self, descriptor: int, size: int) -> None:
        """Within a write."""
        self.at_gate.set()
        assert self.gate.wait(DEADLINE)
        super()._grow(descriptor, size)

    def count_write(self) -> None:
        self.writes += 1
        if self.writes > self.fail_after:
            raise OSError(errno.EIO, "the disk is on fire")

    def assert_empty(self) -> None:
        assert (self.files, self.used, self.closings) == (0, 0, self.opened)


class WatchedFile(SpoolFile):
    __slots__ = ()

    def write(self, data: Any, offset: int) -> None:
        spool = self._spool
        assert isinstance(spool, WatchedSpool)
        if len(data):
            spool.count_write()
        super().write(data, offset)
        with contextlib.suppress(ValueError), self as descriptor:
            spool.largest = max(spool.largest, os.fstat(descriptor).st_size)


class Side:
    """The loop's side of an output, on a loop that does not run: the test makes each step itself."""

    def __init__(
        self,
        spool: WatchedSpool,
        high: int = 100,
        overflow: int | None = None,
        memory: BufferMemory | None = None,
    ) -> None:
        self.loop = CountingLoop()
        self.spool = spool
        self.memory = memory or BufferMemory(PLENTY)
        self.held_before = self.memory.used
        self.ready = 0
        self.waiting_now = 0
        self.waits = 0
        self.promised = 0
        self.on_promise: Callable[[], object] = bool
        self.told: list[Callable[[], object]] = []  # what the app would be told
        self.closed: list[str] = []
        self.bodies = no_async_bodies(self.loop)
        self.store = OutputStore(
            overflow=high if overflow is None else overflow,
            high_watermark=high,
            memory=self.memory,
            spool=spool,
            waiting=self._waiting,
            promise=self._promise,
            tell=self.told.append,
            async_bodies=self.bodies,
        )
        self.output = Output(Wakeup(self.loop), self._on_ready, self.store)
        self.output.begin(HEAD, None)

    def _on_ready(self) -> None:
        self.ready += 1

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        self.waits += 1
        self.waiting_now += 1
        try:
            yield
        finally:
            self.waiting_now -= 1

    def _promise(self, task: Callable[[], object]) -> Callable[[], object]:
        self.promised += 1
        self.on_promise()
        return task

    def turn(self) -> None:
        """One turn of the loop: what was asked for with a wake-up happens."""
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    def write(self, *chunks: bytes) -> None:
        for chunk in chunks:
            self.output.write(chunk)

    def write_in_thread(self, *chunks: bytes) -> Writer:
        """Begin to write what will have to wait, and return when it does."""
        writer = Writer(lambda: self.write(*chunks))
        wait(lambda: self.waiting_now or writer.ended())
        assert not writer.ended()
        return writer

    def take_region(self, limit: int = 1) -> FileRegion:
        (region,), _ = self.output.take(limit)
        assert isinstance(region, FileRegion)
        return region

    def drain(self, limit: int = 1_000_000) -> tuple[bytes, bool]:
        """Take and send what is there now."""
        received = b""
        last = False
        while not last:
            pieces, last = self.output.take(limit)
            if not pieces:
                break
            received += b"".join(map(content, pieces))
            for piece in pieces:
                if isinstance(piece, FileRegion):
                    self.output.sent(piece)
        return received, last

    def drain_all(self) -> bytes:
        """Take and send all that comes, up to the last."""
        deadline = time.monotonic() + DEADLINE
        received = b""
        last = False
        while not last:
            assert time.monotonic() < deadline, f"no end after {len(received)} bytes"
            data, last = self.drain()
            received += data
        return received

    @property
    def held(self) -> int:
        """What is counted as memory."""
        return self.memory.used - self.held_before

    def assert_nothing_left(self) -> None:
        assert self.held == 0
        self.spool.assert_empty()


def content(piece: Piece) -> bytes:
    """The bytes of a piece; those of a file as they are sent, by position."""
    if not isinstance(piece, FileRegion):
        return bytes(piece)
    with piece.file as descriptor:
        data = os.pread(descriptor, piece.size, piece.offset)
    assert len(data) == piece.size
    return data


def near_memory(limit: int = NEAR) -> BufferMemory:
    """A memory that is nearly full, with what others hold."""
    memory = BufferMemory(limit)
    memory.add(limit)
    return memory


def numbered(count: int, size: int) -> list[bytes]:
    """Chunks that are all different."""
    return [(b"%d," % number * size)[:size] for number in range(count)]


MakeSide = Callable[..., Side]


@pytest.fixture
def make_side(tmp_path: Path) -> Iterator[MakeSide]:
    sides: list[Side] = []

    def make(
        high: int = 100,
        overflow: int | None = None,
        *,
        limit: int = 0,
        min_free: int = 0,
        memory: BufferMemory | None = None,
    ) -> Side:
        sides.append(Side(WatchedSpool(tmp_path, limit, min_free), high, overflow, memory))
        return sides[-1]

    yield make
    for side in sides:
        side.spool.gate.set()
        side.output.close()
        side.loop.close()


@pytest.fixture
def side(make_side: MakeSide) -> Side:
    """One that never goes to disk before it has to wait."""
    return make_side(100)


# -- crossings


def test_a_whole_response_crosses_once(side: Side) -> None:
    side.output.begin(HEAD, 5)
    side.turn()
    assert (side.ready, side.loop.wakeups) == (0, 0)
    side.output.finish((b"whole",))
    assert side.loop.wakeups == 1
    side.turn()
    assert side.ready == 1
    assert side.output.head is HEAD
    assert side.output.length == 5
    assert side.output.take(1_000) == ([b"whole"], True)


def test_an_empty_response_crosses_once(side: Side) -> None:
    side.output.begin(HEAD, 0)
    side.output.finish(())
    assert side.loop.wakeups == 1
    assert side.output.take(1_000) == ([], True)


def test_a_list_crosses_once_whatever_the_watermark(side: Side) -> None:
    chunks = numbered(50, 1_000)
    side.output.finish(chunks)
    assert side.loop.wakeups == 1
    pieces, last = side.output.take(1_000_000)
    assert last
    assert all(piece is chunk for piece, chunk in zip(pieces, chunks, strict=True))


def test_chunks_that_pile_up_share_a_crossing(side: Side) -> None:
    for chunk in (b"a", b"b", b"c"):
        side.output.write(chunk)
    side.output.finish((b"d",))
    side.turn()
    assert (side.ready, side.loop.wakeups) == (1, 1)
    assert side.drain() == (b"abcd", True)


def test_after_a_take_the_next_chunk_is_announced(side: Side) -> None:
    side.output.write(b"one")
    assert side.output.take(1_000) == ([b"one"], False)
    assert side.output.take(1_000) == ([], False)
    side.output.write(b"two")
    side.output.write(b"three")
    assert b"".join(map(content, side.output.take(1_000)[0])) == b"twothree"
    side.output.finish(())
    side.turn()
    assert side.output.take(1_000) == ([], True)
    assert side.loop.wakeups <= 3


def test_what_a_take_leaves_is_not_announced_again(make_side: MakeSide) -> None:
    """The loop knows that there is more; a second announcement would be a wasted wake-up."""
    side = make_side(100_000)
    side.write(*[bytes(10_000)] * 3)
    side.turn()
    taken, last = side.output.take(10_000)
    assert not last
    assert sum(map(len, taken)) == 10_000
    side.output.write(bytes(10_000))
    side.turn()
    assert side.ready == 1
    assert sum(map(len, side.output.take(100_000)[0])) == 30_000


def test_what_is_on_disk_is_announced_as_well(make_side: MakeSide) -> None:
    side = make_side(1_000, 100)
    side.write(bytes(100), bytes(100))
    side.turn()
    assert side.ready == 1
    assert side.output.take(1_000) == ([bytes(100)], False)
    side.write(bytes(100))
    side.turn()
    assert side.ready == 1  # it knows that there is more
    region = side.take_region()
    assert region.size == 200
    assert side.output.take(1_000) == ([], False)
    side.write(bytes(100))
    side.turn()
    assert side.ready == 2


# -- taking


@pytest.mark.parametrize("limit", [1, 999, 10_000, 10_001, 25_000, 60_000])
def test_take_never_gives_more_than_its_limit(limit: int, make_side: MakeSide) -> None:
    side = make_side(1_000_000)
    sent = numbered(6, 10_000)
    side.write(*sent)
    side.output.finish(())
    received: list[bytes] = []
    last = False
    while not last:
        pieces, last = side.output.take(limit)
        size = sum(map(len, pieces))
        assert 0 < size <= limit
        assert size > limit - 10_000 or last  # as many as fit
        received += map(content, pieces)
    assert b"".join(received) == b"".join(sent)


def test_a_large_chunk_is_cut_without_a_copy(make_side: MakeSide) -> None:
    side = make_side(1_000_000)
    chunk = bytes(range(256)) * 1_000
    side.write(b"before", chunk, b"behind")
    assert side.output.take(1_000) == ([b"before"], False)
    received = b""
    while len(received) < len(chunk):
        pieces, _ = side.output.take(100_000)
        if isinstance(pieces[0], memoryview):
            assert pieces[0].obj is chunk
        received += b"".join(map(content, pieces))
    assert received + side.drain()[0] == chunk + b"behind"


def test_small_chunks_are_joined(make_side: MakeSide) -> None:
    """A megabyte of one-byte chunks would be many times that in objects."""
    side = make_side(1_000_000)
    sent = Random(1).randbytes(10_000)
    for position in range(len(sent)):
        side.output.write(sent[position : position + 1])
    assert side.held == len(sent)
    pieces, _ = side.output.take(1_000_000)
    assert len(pieces) < 300
    assert b"".join(map(content, pieces)) == sent
    assert side.held == 0


@pytest.mark.parametrize("takes", [0, 1, 7, 60])
def test_small_chunks_among_large_ones_stay_in_order(takes: int, make_side: MakeSide) -> None:
    side = make_side(10_000_000)
    random = Random(takes)
    sent = received = b""
    for number in range(2_000):
        chunk = random.randbytes(random.choice([0, 1, 10, 1_023, 1_024, 1_025, 3_000]))
        side.output.write(chunk)
        sent += chunk
        if takes and number % takes == 0:
            received += b"".join(map(content, side.output.take(random.choice([1, 500, 5_000, PLENTY]))[0]))
    assert side.spool.opened == 0
    side.output.finish(())
    assert received + side.drain_all() == sent
    assert side.held == 0


# -- waiting


def test_the_thread_waits_at_the_high_watermark_until_the_low_one(side: Side) -> None:
    """It waits before it adds what would be too much."""
    chunks = numbered(6, 20)
    writer = side.write_in_thread(*chunks)
    received = b""
    while len(received) < 50:
        assert side.waiting_now, f"released with {100 - len(received)} bytes above the low watermark"
        pieces, last = side.output.take(1)
        assert (sum(map(len, pieces)), last) == (1, False)
        received += content(pieces[0])
    writer.end()
    assert side.waits == 1
    assert received + side.drain()[0] == b"".join(chunks)


def test_the_thread_does_not_wait_at_the_high_watermark(side: Side) -> None:
    """A chunk that is alone may be as large, and stays where it is: it is in memory already."""
    Writer(lambda: side.output.write(bytes(100))).end()
    assert (side.waits, side.spool.opened) == (0, 0)
    assert side.output.take(1_000) == ([bytes(100)], False)


@pytest.mark.parametrize("overflow", [0, 10, 99])
def test_a_chunk_alone_stays_in_memory_whatever_the_overflow(overflow: int, make_side: MakeSide) -> None:
    side = make_side(100, overflow)
    for _ in range(3):
        side.output.write(bytes(100))
        assert side.output.take(1_000) == ([bytes(100)], False)
    assert side.spool.opened == 0


@pytest.mark.parametrize("size", [101, 1_000, 12_345])
def test_a_chunk_larger_than_the_watermark_is_given_bit_by_bit(size: int, side: Side) -> None:
    chunk = Random(size).randbytes(size)
    writer = side.write_in_thread(chunk)
    received = b""
    while len(received) < size:
        data, _ = side.drain()
        assert side.output._unsent() <= 100  # `drain` may meet the writer more than once
        received += data
    writer.end()
    assert received == chunk
    assert side.spool.largest == 100


def test_finish_never_waits(side: Side) -> None:
    Writer(lambda: side.output.finish((bytes(1_000_000),))).end()
    assert side.output.take(1_000_000) == ([bytes(1_000_000)], True)
    assert side.waits == 0


def test_finish_never_waits_behind_what_does(make_side: MakeSide) -> None:
    side = make_side(1_000, 100)
    side.write(bytes(100), bytes(900))
    Writer(lambda: side.output.finish((b"the end" * 1_000,))).end()
    assert side.drain() == (bytes(1_000) + b"the end" * 1_000, True)
    side.assert_nothing_left()


def test_close_releases_a_waiting_thread(side: Side) -> None:
    writer = side.write_in_thread(bytes(1_000))
    assert not side.output.is_closed()
    side.output.close()
    writer.join(DEADLINE)
    assert isinstance(writer.error, ClientDisconnected)
    assert side.output.is_closed()


def test_after_close_there_is_nothing_in_memory_to_take(side: Side) -> None:
    side.write(b"some")
    side.output.close()
    assert side.output.take(1_000) == ([], False)


def test_write_after_close_raises_and_finish_does_not(side: Side) -> None:
    side.output.write(b"before")
    side.output.close()
    with pytest.raises(ClientDisconnected):
        side.output.write(b"after")
    side.output.finish((b"the end",))
    side.output.abort()
    side.assert_nothing_left()


def test_close_twice_is_fine(side: Side) -> None:
    side.output.close()
    side.output.close()
    assert side.output.is_closed()


def test_an_abort_gives_what_was_written(side: Side) -> None:
    side.output.write(b"so far")
    side.output.abort()
    assert side.output.take(1_000) == ([b"so far"], True)
    assert side.output.aborted


def test_an_abort_gives_what_was_stored(make_side: MakeSide) -> None:
    side = make_side(1_000, 100)
    chunks = numbered(5, 90)
    side.write(*chunks)
    side.output.abort()
    assert side.drain() == (b"".join(chunks), True)
    assert side.output.aborted
    side.assert_nothing_left()


def test_a_second_thread_of_the_app_does_not_wait_for_ever(side: Side) -> None:
    """An app may hand `write` to a thread of its own, and return before that one is done."""
    writer = side.write_in_thread(bytes(1_000))
    side.output.finish((b"the end",))
    deadline = time.monotonic() + 2
    last = False
    while not last and time.monotonic() < deadline:
        _, last = side.drain()
    assert last
    writer.join(2)
    assert writer.ended()
    side.assert_nothing_left()


def test_two_waiting_threads_are_both_released(side: Side) -> None:
    writers = [side.write_in_thread(bytes(1_000)), Writer(lambda: side.output.write(bytes(1_000)))]
    side.output.close()
    for writer in writers:
        writer.join(2)
    assert [writer.ended() for writer in writers] == [True, True]
    assert all(isinstance(writer.error, ClientDisconnected) for writer in writers)
    side.output.abort()
    side.assert_nothing_left()


def test_two_threads_that_write_lose_nothing(make_side: MakeSide) -> None:
    side = make_side(1_000, 300)

    def write(byte: bytes) -> None:
        for _ in range(200):
            side.output.write(byte * 70)

    writers = [Writer(lambda byte=byte: write(byte)) for byte in (b"a", b"b")]  # type: ignore[misc]
    deadline = time.monotonic() + DEADLINE
    received = b""
    while len(received) < 2 * 200 * 70 and time.monotonic() < deadline:
        received += side.drain()[0]
    for writer in writers:
        writer.end()
    assert sorted(received) == sorted(b"ab" * 70 * 200)
    side.output.finish(())
    assert side.drain() == (b"", True)
    side.assert_nothing_left()


# -- on disk


def test_above_the_overflow_it_goes_to_disk(make_side: MakeSide) -> None:
    side = make_side(10_000, 1_000)
    chunks = numbered(10, 500)
    side.write(*chunks)
    assert (side.held, side.spool.files, side.spool.used) == (1_000, 1, 4_000)
    assert side.output.take(100_000) == (chunks[:2], False)
    (region,), last = side.output.take(1)
    assert isinstance(region, FileRegion)
    assert (region.size, region.transient, last) == (4_000, True, False)
    assert content(region) == b"".join(chunks[2:])
    assert side.output.take(100_000) == ([], False)
    side.output.finish(())
    assert side.output.take(100_000) == ([], True)
    assert side.spool.files == 1  # it is being sent
    side.output.sent(region)
    side.assert_nothing_left()
    assert side.waits == 0


def test_the_file_has_no_name(make_side: MakeSide, tmp_path: Path) -> None:
    side = make_side(1_000, 10)
    side.write(bytes(10), bytes(10))
    assert (side.spool.files, list(tmp_path.iterdir())) == (1, [])


def test_a_region_comes_alone_behind_memory_and_before_the_end(make_side: MakeSide) -> None:
    side = make_side(1_000, 100)
    side.write(b"m" * 100, b"d" * 100)
    side.output.finish((b"e" * 50, b"f" * 50))
    assert side.output.take(1_000) == ([b"m" * 100], False)
    region = side.take_region(1_000)
    assert content(region) == b"d" * 100
    assert side.output.take(1_000) == ([b"e" * 50, b"f" * 50], True)
    side.output.sent(region)
    side.assert_nothing_left()


def test_once_on_disk_the_rest_follows_until_all_of_it_is_sent(make_side: MakeSide) -> None:
    side = make_side(10_000, 100)
    side.write(bytes(100), bytes(100))
    side.output.take(1_000)
    side.write(bytes(10))
    region = side.take_region()
    assert region.size == 110
    side.write(bytes(10))  # it was taken, and is not sent
    assert (side.held, side.spool.used) == (0, 120)
    side.output.sent(region)
    side.write(bytes(10))  # one piece is still there
    assert (side.held, side.spool.used) == (0, 130)
    assert side.drain() == (bytes(20), False)
    side.write(bytes(10))
    assert (side.held, side.spool.used) == (10, 130)
    assert side.output.take(1_000) == ([bytes(10)], False)


def test_one_file_serves_for_all(make_side: MakeSide) -> None:
    side = make_side(1_000, 100)
    for chunk in numbered(50, 100):
        side.write(chunk, chunk)
        assert side.drain() == (chunk + chunk, False)
    assert side.spool.opened == 1
    side.output.finish(())
    side.assert_nothing_left()  # at once: nothing of it is to be sent


def test_the_ring_wraps_and_never_grows(make_side: MakeSide) -> None:
    side = make_side(1_000, 50)
    sent = Random(7).randbytes(50_000)
    received = b""
    position = 0
    for size in [30, 300, 77, 501, 200] * 100:
        side.write(sent[position : position + size])
        position = min(position + size, len(sent))
        if position % 3 == 0 or side.spool.used > 400:
            received += side.drain()[0]
        assert side.spool.used <= 1_000
    side.output.finish(())
    assert received + side.drain_all() == sent
    assert side.spool.opened == 1
    assert 500 < side.spool.largest <= 1_000
    side.assert_nothing_left()


def test_no_region_passes_the_end_of_the_ring(make_side: MakeSide) -> None:
    side = make_side(1_000, 1)
    side.write(b"m", b"a" * 700)
    assert side.drain() == (b"m" + b"a" * 700, False)
    side.write(b"m", b"c" * 600)  # from 700 on; 300 fit in front of the end
    side.output.take(1)
    regions = [side.take_region(), side.take_region()]
    assert [(region.offset, region.size) for region in regions] == [(700, 300), (0, 300)]
    assert b"".join(map(content, regions)) == b"c" * 600


def test_a_region_is_no_larger_than_a_megabyte(make_side: MakeSide) -> None:
    """Room is made for the app in such steps."""
    side = make_side(4_000_000, 1)
    sent = Random(3).randbytes(3_000_000)
    side.write(b"m", sent)
    side.output.take(1)
    regions = [side.take_region() for _ in range(3)]
    assert max(region.size for region in regions) <= 1 << 20
    assert b"".join(map(content, regions)) == sent
    assert side.output.take(1) == ([], False)


def test_only_what_is_sent_makes_room(make_side: MakeSide) -> None:
    """What was taken is still read from the file."""
    side = make_side(1_000, 100)
    first, second = Random(1).randbytes(900), Random(2).randbytes(500)
    side.write(b"m" * 100, first)
    side.output.take(100)
    side.write(second[:100])
    regions: list[FileRegion] = []
    while not regions or regions[-1].offset + regions[-1].size < 1_000:
        regions.append(side.take_region())
    writer = side.write_in_thread(second[100:])
    assert b"".join(map(content, regions)) == first + second[:100]
    for region in regions:
        assert side.waiting_now
        side.output.sent(region)
    writer.end()
    assert side.drain()[0] == second[100:]


def test_a_thread_that_waits_for_a_piece_goes_on_at_the_low_watermark(make_side: MakeSide) -> None:
    side = make_side(3_000_000, 1)
    side.write(b"m", bytes(2_999_999))
    writer = side.write_in_thread(bytes(10))
    side.output.take(1)
    side.output.sent(side.take_region())
    assert side.waiting_now  # with two megabytes; the low watermark is at one and a half
    side.output.sent(side.take_region())
    writer.end()


def test_close_drops_what_is_on_disk(make_side: MakeSide) -> None:
    side = make_side(1_000, 100)
    side.write(bytes(100), bytes(100))
    side.output.close()
    side.assert_nothing_left()
    side.output.abort()


def test_close_leaves_a_region_readable_to_whoever_sends_it(make_side: MakeSide) -> None:
    """The descriptor must not name another file while a system call is made with it."""
    side = make_side(1_000, 100)
    side.write(bytes(100), b"d" * 100)
    side.output.take(100)
    region = side.take_region()
    with region.file as descriptor:
        side.output.close()
        assert os.pread(descriptor, 100, region.offset) == b"d" * 100
        assert side.spool.files == 1
    side.assert_nothing_left()
    side.output.sent(region)
    side.output.abort()
    side.assert_nothing_left()


def streaming(side: Side, size: int = 60) -> Writer:
    """A thread that writes until it is stopped."""

    def stream() -> None:
        while True:
            side.output.write(bytes(size))

    return Writer(stream)


def test_close_during_a_write_to_disk(make_side: MakeSide) -> None:
    """The file is closed once, by whoever is done with it last."""
    side = make_side(1_000, 100)
    side.spool.gate.clear()
    writer = streaming(side)
    assert side.spool.at_gate.wait(DEADLINE)
    side.output.close()
    assert (side.spool.files, side.spool.closings) == (1, 0)
    side.spool.gate.set()
    writer.join(DEADLINE)
    assert isinstance(writer.error, ClientDisconnected)
    assert side.spool.closings == 1
    side.output.abort()
    side.assert_nothing_left()


def test_close_just_before_a_write_to_disk(make_side: MakeSide, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the app it is one thing: the client is gone."""
    side = make_side(1_000, 100)
    write = WatchedFile.write

    def close_first(file: WatchedFile, data: Any, offset: int) -> None:
        side.output.close()
        write(file, data, offset)

    monkeypatch.setattr(WatchedFile, "write", close_first)
    writer = streaming(side)
    writer.join(DEADLINE)
    assert isinstance(writer.error, ClientDisconnected), repr(writer.error)
    side.output.abort()
    side.assert_nothing_left()


def test_close_while_the_file_is_made(make_side: MakeSide, monkeypatch: pytest.MonkeyPatch) -> None:
    side = make_side(1_000, 100)
    open_file = side.spool.open

    def close_first(expected: int = 0) -> SpoolFile:
        file = open_file(expected)
        side.output.close()
        return file

    monkeypatch.setattr(side.spool, "open", close_first)
    writer = streaming(side)
    writer.join(DEADLINE)
    assert isinstance(writer.error, ClientDisconnected)
    side.output.abort()
    side.assert_nothing_left()


def test_close_at_any_moment_ends_the_thread(make_side: MakeSide) -> None:
    """No moment between looking and waiting may swallow the release."""
    for attempt in range(200):
        side = make_side(10)
        writer = streaming(side, 6)
        time.sleep(attempt % 5 / 10_000)
        side.output.take(1_000)
        side.output.close()
        writer.join(DEADLINE)
        assert writer.ended()
        assert isinstance(writer.error, ClientDisconnected)
        side.output.abort()
        side.assert_nothing_left()


def test_close_at_any_moment_of_a_stream_to_disk(make_side: MakeSide) -> None:
    for attempt in range(200):
        side = make_side(1_000, 100)
        writer = streaming(side)
        for _ in range(attempt % 7):
            side.drain()
            time.sleep(attempt % 3 / 10_000)
        side.output.close()
        writer.join(DEADLINE)
        assert writer.ended()
        assert isinstance(writer.error, ClientDisconnected), repr(writer.error)
        side.output.abort()
        side.assert_nothing_left()


# -- no disk


def test_at_the_spool_limit_the_thread_waits_until_all_is_sent(make_side: MakeSide) -> None:
    side = make_side(100_000, 500, limit=2_000)
    chunks = numbered(10, 500)
    writer = side.write_in_thread(*chunks)
    assert (side.held, side.spool.used) == (500, 2_000)
    assert side.output.take(10_000)[0] == chunks[:1]
    region = side.take_region()
    assert content(region) == b"".join(chunks[1:5])
    assert side.waiting_now
    assert side.output.take(10_000) == ([], False)
    side.output.sent(region)
    wait(lambda: side.held == 500)
    # From there on it is in memory, or on disk as far as there is room.
    received = b"".join(chunks[:5])
    while len(received) < 5_000:
        received += side.drain()[0]
    writer.end()
    assert received == b"".join(chunks)
    side.output.finish(())
    assert side.drain() == (b"", True)
    side.assert_nothing_left()


def test_a_disk_that_never_has_room_makes_it_memory_alone(make_side: MakeSide) -> None:
    side = make_side(10_000, 500, min_free=PLENTY << 20)
    chunks = numbered(40, 400)

    def write() -> None:
        side.write(*chunks)
        side.output.finish((b"the end",))

    writer = Writer(write)
    received = b""
    last = False
    while not last:
        data, last = side.drain()
        assert len(data) <= 500 + 400 + 7
        received += data
    writer.end()
    assert received == b"".join(chunks) + b"the end"
    assert not side.output.aborted
    assert side.spool.writes == 0
    side.assert_nothing_left()


def test_a_thread_that_waits_for_room_is_released_by_close(make_side: MakeSide) -> None:
    side = make_side(100_000, 500, limit=1_000)
    writer = side.write_in_thread(*[bytes(500)] * 5)
    side.output.close()
    writer.join(DEADLINE)
    assert isinstance(writer.error, ClientDisconnected)
    side.output.abort()
    side.assert_nothing_left()


def test_it_has_overflowed_when_some_of_it_went_to_disk(make_side: MakeSide) -> None:
    """And not when there was no room, or no need: what is known of its path is about the disk."""
    in_memory = make_side(10_000, 500)
    in_memory.write(bytes(500))
    assert not in_memory.output.overflowed
    without_room = make_side(10_000, 500, min_free=PLENTY << 20)
    writer = without_room.write_in_thread(bytes(500), b"more")
    assert without_room.drain()[0] == bytes(500)
    writer.end()
    assert not without_room.output.overflowed
    stored = make_side(10_000, 500)
    stored.write(bytes(500), b"more")
    assert stored.output.overflowed


@pytest.mark.parametrize("limit", [1, PLENTY])
def test_near_the_limit_too_it_has_overflowed_when_some_went_to_disk(limit: int, make_side: MakeSide) -> None:
    side = make_side(1_000_000, 500_000, limit=limit, memory=near_memory())
    side.output.finish([bytes(70_000)])
    assert side.output.overflowed is (side.spool.writes > 0 and side.spool.used > 0) is (limit > 1)


def failing(side: Side, after: int = 0) -> Side:
    side.spool.fail_after = after
    return side


def test_a_disk_that_fails_ends_the_response(make_side: MakeSide) -> None:
    """What was handed over before is given, and it is not the whole."""
    side = failing(make_side(10_000, 500), after=2)
    chunks = numbered(4, 500)
    with pytest.raises(ResponseNotStored, match="on fire"):
        side.write(*chunks)
    assert side.output.aborted
    assert side.drain() == (b"".join(chunks[:3]), True)
    side.output.abort()
    side.assert_nothing_left()


def test_a_place_that_does_not_exist_ends_the_response(make_side: MakeSide, tmp_path: Path) -> None:
    side = make_side(10_000, 500)
    side.spool._directory = str(tmp_path / "nowhere")
    side.write(b"m" * 500)
    with pytest.raises(ResponseNotStored):
        side.write(bytes(500))
    assert side.output.aborted
    assert side.drain() == (b"m" * 500, True)
    side.output.abort()
    assert side.held == side.spool.used == 0


def test_a_write_after_a_failed_one_fails_too(make_side: MakeSide) -> None:
    """An app may catch what `write()` raised; nothing of what comes then is taken, or kept."""
    side = failing(make_side(10_000, 500))
    with pytest.raises(ResponseNotStored):
        side.write(b"m" * 500, bytes(500))
    assert side.drain() == (b"m" * 500, True)
    with pytest.raises(OSError, match=r"."):
        side.write(b"more")
    side.output.abort()
    side.assert_nothing_left()


def test_what_comes_after_the_end_is_not_held(side: Side) -> None:
    """Nobody will take it. An app that caught what `write()` raised may still return something."""
    side.output.abort()
    assert side.drain() == (b"", True)
    side.output.finish((bytes(10_000),))
    side.assert_nothing_left()


# -- memory


def test_what_is_held_is_counted(make_side: MakeSide) -> None:
    side = make_side(100_000, 10_000)
    side.write(bytes(5_000))
    assert side.held == 5_000
    side.write(bytes(5_000))
    assert side.held == 10_000
    side.write(bytes(5_000))  # on disk
    assert side.held == 10_000
    side.output.take(2_000)
    assert side.held == 8_000
    side.output.finish((bytes(20_000), bytes(20_000)))
    assert side.held == 48_000
    assert side.drain() == (bytes(53_000), True)
    side.assert_nothing_left()


@pytest.mark.parametrize(("size", "counted"), [(0, 0), (4_096, 0), (4_097, 4_097)])
def test_a_small_whole_response_is_not_counted(size: int, counted: int, side: Side) -> None:
    side.output.finish((bytes(size),))
    assert side.held == counted
    assert side.drain() == (bytes(size), True)
    assert side.held == 0


def to_the_end(side: Side) -> None:
    side.drain()


def to_the_end_by_bytes(side: Side) -> None:
    side.drain(1)


def closed(side: Side) -> None:
    side.output.close()


def closed_twice(side: Side) -> None:
    side.output.close()
    side.output.close()


def closed_after_some(side: Side) -> None:
    side.output.take(1)
    side.output.close()


def closed_with_some_under_way(side: Side) -> None:
    while not any(isinstance(piece, FileRegion) for piece in side.output.take(1_000)[0]):
        pass
    side.output.close()


def closed_after_the_end(side: Side) -> None:
    side.drain()
    side.output.close()


ENDS = [to_the_end, to_the_end_by_bytes, closed, closed_twice, closed_after_some, closed_after_the_end]


@pytest.mark.parametrize("chunks", [(), (5_000,), (100,) * 200, (5_000, 7_000, 9_000)], ids=len)
@pytest.mark.parametrize("last", [(), (100,), (50_000,), (3_000, 60_000)], ids=sum)
@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_nothing_is_held_on_any_way_out(
    chunks: tuple[int, ...], last: tuple[int, ...], end: Callable[[Side], None], make_side: MakeSide
) -> None:
    side = make_side(100_000, 8_000)
    for size in chunks:
        side.output.write(bytes(size))
    side.output.finish([bytes(size) for size in last])
    end(side)
    side.assert_nothing_left()


@pytest.mark.parametrize("last", [(), (100,), (50_000,), (3_000, 60_000)], ids=sum)
@pytest.mark.parametrize("end", [*ENDS, closed_with_some_under_way], ids=lambda end: end.__name__)
def test_nothing_is_held_when_the_end_comes_first(
    last: tuple[int, ...], end: Callable[[Side], None], make_side: MakeSide
) -> None:
    """The app's thread has the last word: it may not know yet."""
    side = make_side(100_000, 8_000)
    side.write(bytes(5_000), bytes(7_000), bytes(9_000))
    end(side)
    side.output.finish([bytes(size) for size in last])
    if not side.output.is_closed():
        assert side.drain() == (b"".join(bytes(size) for size in last), True)
    side.assert_nothing_left()


def test_near_the_limit_memory_ends_sooner(make_side: MakeSide) -> None:
    side = make_side(1_000_000, 500_000, memory=near_memory())
    side.write(bytes(40_000), bytes(25_536))
    assert side.spool.opened == 0
    side.write(b"d" * 100)
    assert (side.held, side.spool.used) == (65_536, 100)
    assert side.drain() == (bytes(65_536) + b"d" * 100, False)


def test_near_the_limit_a_small_overflow_stays_small(make_side: MakeSide) -> None:
    side = make_side(1_000_000, 1_000, memory=near_memory())
    side.write(bytes(1_000), bytes(1))
    assert (side.held, side.spool.used) == (1_000, 1)


def test_near_the_limit_a_chunk_alone_is_stored_too(make_side: MakeSide) -> None:
    """It is there already, in the app, but an app that generates may be about to let go of it."""
    side = make_side(1_000_000, 500_000, memory=near_memory())
    side.write(bytes(300_000))
    assert (side.held, side.spool.opened) == (0, 1)


def test_a_chunk_alone_stays_in_memory(make_side: MakeSide) -> None:
    side = make_side(1_000_000, 1_000)
    side.write(bytes(300_000))
    assert (side.held, side.spool.opened) == (300_000, 0)


def test_a_whole_response_beyond_the_ring_waits_while_memory_is_full(make_side: MakeSide) -> None:
    memory = BufferMemory(NEAR)
    memory.add(NEAR + 1)
    side = make_side(100_000, 50_000, memory=memory)
    chunks = numbered(4, 70_000)
    writer = Writer(lambda: side.output.finish(chunks))
    received = b""
    last = False
    while not last:
        data, last = side.drain()
        received += data
        assert memory.used <= NEAR + 1 + 65_536
    writer.end()
    assert received == b"".join(chunks)
    assert memory.used == NEAR + 1
    assert side.spool.files == side.spool.used == 0


def test_near_the_limit_a_whole_response_is_stored(make_side: MakeSide) -> None:
    side = make_side(1_000_000, 500_000, memory=near_memory())
    chunks = numbered(3, 70_000)
    side.output.finish(chunks)
    assert (side.held, side.spool.used) == (0, 210_000)
    assert side.drain() == (b"".join(chunks), True)
    side.assert_nothing_left()


@pytest.mark.parametrize("chunks", [[65_536], [30_000, 35_536]], ids=len)
def test_near_the_limit_a_small_whole_response_is_not(chunks: list[int], make_side: MakeSide) -> None:
    side = make_side(1_000_000, 500_000, memory=near_memory())
    side.output.finish([bytes(size) for size in chunks])
    assert (side.held, side.spool.opened) == (65_536, 0)


def test_near_the_limit_only_what_has_room_is_stored(make_side: MakeSide) -> None:
    side = make_side(100_000, memory=near_memory())
    chunks = numbered(4, 40_000)
    Writer(lambda: side.output.finish(chunks)).end()
    assert (side.held, side.spool.used) == (80_000, 80_000)
    assert side.drain() == (b"".join(chunks), True)
    side.assert_nothing_left()


@pytest.mark.parametrize("before", [(), (30_000,), (30_000, 50_000)], ids=sum)
@pytest.mark.parametrize("limit", [1, 30_000, 60_000, 90_000])
def test_near_the_limit_finish_does_not_wait_for_the_disk_to_have_room(
    before: tuple[int, ...], limit: int, make_side: MakeSide
) -> None:
    side = make_side(1_000_000, 50_000, limit=limit, memory=near_memory())
    sent = []
    for size in before:
        if size <= 30_000 or size <= limit:  # or it would wait here already
            sent.append(Random(size).randbytes(size))
            side.write(sent[-1])
    chunks = numbered(3, 40_000)
    writer = Writer(lambda: side.output.finish(chunks))
    writer.join(2)
    assert writer.ended(), "finish waits"
    writer.end()
    assert not side.output.aborted
    assert side.drain() == (b"".join([*sent, *chunks]), True)
    side.assert_nothing_left()


@pytest.mark.parametrize("after", [0, 1, 2])
def test_near_the_limit_a_disk_that_fails_leaves_it_in_memory(after: int, make_side: MakeSide) -> None:
    """It is whole all the same."""
    side = failing(make_side(1_000_000, 500_000, memory=near_memory()), after)
    chunks = numbered(3, 70_000)
    side.output.finish(chunks)
    assert side.held == (3 - after) * 70_000
    assert side.drain() == (b"".join(chunks), True)
    assert not side.output.aborted
    side.assert_nothing_left()


@pytest.mark.parametrize("after", [1, 2, 3])
def test_near_the_limit_a_disk_that_fails_in_the_middle_of_a_chunk(after: int, make_side: MakeSide) -> None:
    """At the end of the ring a chunk is two writes, of which the second may fail."""
    memory = BufferMemory(NEAR)
    side = failing(make_side(200_000, 1_000, memory=memory), after)
    side.write(b"m" * 1_000, b"d" * 150_000)
    assert side.drain() == (b"m" * 1_000 + b"d" * 150_000, False)
    memory.add(NEAR)
    chunk = Random(1).randbytes(100_000)
    side.output.finish((chunk,))
    assert side.drain() == (chunk, True)
    memory.add(-NEAR)
    side.assert_nothing_left()


def test_near_the_limit_finish_after_close(make_side: MakeSide) -> None:
    side = make_side(1_000_000, 500_000, memory=near_memory())
    side.output.close()
    side.output.finish(numbered(3, 70_000))
    side.assert_nothing_left()


def test_near_the_limit_finish_does_not_raise_when_the_client_leaves(
    make_side: MakeSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = make_side(1_000_000, 500_000, memory=near_memory())
    write = WatchedFile.write

    def close_first(file: WatchedFile, data: Any, offset: int) -> None:
        side.output.close()
        write(file, data, offset)

    monkeypatch.setattr(WatchedFile, "write", close_first)
    side.output.finish(numbered(3, 70_000))
    side.assert_nothing_left()


# -- files of the app


class AppFile:
    """A file to be sent, and how often it was closed."""

    def __init__(self, path: Path, size: int = 100_000) -> None:
        self.content = Random(size).randbytes(size)
        path.write_bytes(self.content)
        self.descriptor = os.open(path, os.O_RDONLY)
        self.closings = 0

    def close(self) -> None:
        self.closings += 1
        os.close(self.descriptor)

    def give(self, output: Output, offset: int = 0, size: int | None = None) -> None:
        size = len(self.content) - offset if size is None else size
        output.finish_file(self.descriptor, offset, size, self.close)


@pytest.fixture
def file(tmp_path: Path) -> AppFile:
    return AppFile(tmp_path / "file")


def test_a_file_comes_alone_and_is_closed_when_it_is_sent(side: Side, file: AppFile) -> None:
    file.give(side.output, 10, 5_000)
    assert (side.loop.wakeups, side.promised) == (1, 1)
    side.turn()
    assert side.ready == 1
    (region,), last = side.output.take(1)
    assert isinstance(region, FileRegion)
    assert (region.offset, region.size, region.transient, last) == (10, 5_000, False, True)
    assert content(region) == file.content[10:5_010]
    assert (file.closings, side.held) == (0, 0)
    side.output.sent(region)
    assert file.closings == 1
    side.output.close()
    assert file.closings == 1
    side.assert_nothing_left()


def test_a_take_with_nothing_there_while_a_file_is_handed_over(side: Side, file: AppFile) -> None:
    """The loop asks whenever the client takes more, which may be at any moment of `finish_file`."""
    taken: list[object] = []
    side.on_promise = lambda: taken.append(side.output.take(1_000))
    file.give(side.output)
    assert taken == [([], False)]
    assert content(side.take_region()) == file.content


def test_behind_a_file_there_is_nothing(side: Side, file: AppFile) -> None:
    file.give(side.output)
    region = side.take_region()
    assert side.output.take(1_000) == ([], True)
    side.output.sent(region)
    assert side.output.take(1_000) == ([], True)


def test_a_file_behind_the_end_is_closed(side: Side, file: AppFile) -> None:
    side.output.abort()
    file.give(side.output)
    assert file.closings == 1
    assert side.output.take(1_000) == ([], True)


def test_a_file_is_closed_when_nobody_takes_it(side: Side, file: AppFile) -> None:
    file.give(side.output)
    side.output.close()
    side.output.close()
    assert file.closings == 1
    assert side.output.take(1) == ([], True)


def test_a_file_is_closed_when_the_client_has_left_before(side: Side, file: AppFile) -> None:
    side.output.close()
    file.give(side.output)
    assert (side.promised, file.closings) == (1, 1)
    side.output.close()
    assert file.closings == 1


def test_a_file_is_not_closed_while_it_is_being_sent(side: Side, file: AppFile) -> None:
    file.give(side.output)
    region = side.take_region()
    with region.file as descriptor:
        side.output.close()
        assert file.closings == 0
        assert os.pread(descriptor, 10, 0) == file.content[:10]
    assert file.closings == 1
    with pytest.raises(ValueError, match="closed"), region.file:
        pass
    side.output.close()
    assert file.closings == 1


def test_a_file_that_was_taken_and_never_sent_is_closed_with_the_output(side: Side, file: AppFile) -> None:
    file.give(side.output)
    side.take_region()
    side.output.close()
    assert file.closings == 1


def test_near_the_limit_a_file_is_no_memory(make_side: MakeSide, file: AppFile) -> None:
    side = make_side(1_000, memory=near_memory())
    file.give(side.output)
    assert (side.held, side.spool.opened) == (0, 0)
    region = side.take_region()
    assert content(region) == file.content
    side.output.sent(region)
    assert file.closings == 1


def test_an_output_that_ended_is_garbage(make_side: MakeSide) -> None:
    """Without a cycle for the collector to find: there is one per response."""
    side = make_side(1_000, 100)
    side.write(bytes(100), bytes(100))
    side.drain()
    side.output.finish(())
    side.turn()
    gc.collect()
    gc.disable()
    try:
        side.output = Output(Wakeup(side.loop), bool, side.store)
        assert not [one for one in gc.get_objects() if type(one) is Output and one is not side.output]
    finally:
        gc.enable()


# -- bytes in, bytes out


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spool")


SIZES = st.sampled_from([0, 1, 3, 500, 1_024, 1_025, 9_000]) | st.integers(1, 40_000)


@settings(max_examples=300, deadline=None)
@given(
    chunks=st.lists(SIZES, max_size=30) | st.lists(st.integers(0, 20), min_size=60, max_size=300),
    last=st.lists(SIZES | st.just(150_000), max_size=3),
    high=st.sampled_from([1, 1_000, 30_000, 1_000_000]),
    overflow_in=st.sampled_from([1, 2, 10, 1_000_000]),
    limit=st.sampled_from([0, 0, 1, 900, 20_000]),
    near=st.booleans(),
    fail_after=st.sampled_from([PLENTY, PLENTY, 0, 1, 3, 10]),
    leave_after=st.sampled_from([None, None, 1, 3, 10]),
    seed=st.integers(0, 2**32),
)
def test_bytes_out_are_bytes_in(
    directory: Path,
    chunks: list[int],
    last: list[int],
    high: int,
    overflow_in: int,
    limit: int,
    near: bool,
    fail_after: int,
    leave_after: int | None,
    seed: int,
) -> None:
    """A real thread against a loop that takes at its own rhythm: sometimes late, sometimes a little.

    Whatever becomes of it, what the client has got is the beginning of what the app gave, all of it unless
    the client left or the disk failed; and nothing is held at the end.
    """
    if high == 1 and sum(chunks) > 5_000:
        chunks = chunks[:20]
        chunks = [size % 100 for size in chunks]  # byte by byte takes its time
    random = Random(seed)
    written = [random.randbytes(size) for size in chunks]
    at_once = [random.randbytes(size) for size in last]
    sent = b"".join(written + at_once)
    received: list[bytes] = []
    memory = near_memory() if near else BufferMemory(PLENTY)
    held_before = memory.used
    spool = WatchedSpool(directory, limit)
    spool.fail_after = fail_after

    def write(output: Output) -> None:
        """As `run_application` does."""
        output.begin(HEAD, None)
        try:
            for chunk in written:
                output.write(chunk)
        except (ClientDisconnected, ResponseNotStored):
            output.abort()
            raise
        output.finish(at_once)

    async def main() -> None:
        complete = asyncio.Event()
        busy = False
        takes = 0

        def pump() -> None:
            nonlocal busy, takes
            while not busy and not complete.is_set():
                limit = random.choice([1, 5_000, 100_000])
                if high > 1 and limit == 1 and random.random() < 0.9:
                    limit = 300_000
                pieces, is_last = output.take(limit)
                takes += 1
                if pieces and isinstance(pieces[0], FileRegion):
                    (region,) = pieces
                    assert isinstance(region, FileRegion)
                    received.append(content(region))
                    busy = True
                    if random.random() < 0.5:
                        loop.call_later(random.random() / 1_000, sent_region, region, is_last)
                    else:
                        loop.call_soon(sent_region, region, is_last)
                    return
                assert sum(map(len, pieces)) <= limit
                received.extend(map(content, pieces))
                if is_last:
                    complete.set()
                elif leave_after is not None and takes >= leave_after:
                    output.close()
                    complete.set()
                elif not pieces:
                    return
                elif random.random() < 0.2:
                    busy = True
                    loop.call_later(random.random() / 1_000, resume)

        def sent_region(region: FileRegion, is_last: bool) -> None:
            # Nobody wrote into what was not sent yet.
            assert content(region) == received[-1]
            output.sent(region)
            if is_last:
                complete.set()
            resume()

        def resume() -> None:
            nonlocal busy
            busy = False
            pump()

        loop = asyncio.get_running_loop()
        store = OutputStore(
            overflow=high // overflow_in,
            high_watermark=high,
            memory=memory,
            spool=spool,
            waiting=contextlib.nullcontext,
            promise=lambda task: task,
            tell=bool,
            async_bodies=no_async_bodies(loop),
        )
        output = Output(Wakeup(loop), pump, store)
        writer = Writer(lambda: write(output))
        await asyncio.wait_for(complete.wait(), DEADLINE)
        await until(writer.ended)
        await spool.wait_closed()
        if isinstance(writer.error, ClientDisconnected):
            assert output.is_closed()
        elif isinstance(writer.error, ResponseNotStored):
            assert spool.writes > fail_after
        elif writer.error is not None:
            raise writer.error
        whole = not output.is_closed() and not output.aborted
        assert whole or writer.error is not None or output.is_closed()
        if whole:
            assert b"".join(received) == sent
        else:
            assert sent.startswith(b"".join(received))
        if not output.is_closed():
            assert output.take(1_000) == ([], True)

    asyncio.run(main())
    assert memory.used == held_before
    assert spool.largest <= high
    spool.assert_empty()


# -- whether it is wanted at all


def test_it_is_wanted_until_it_is_closed_or_revoked(make_side: MakeSide) -> None:
    assert make_side().output.start()
    gone, revoked = make_side().output, make_side().output
    gone.close()
    assert gone.start()  # the thread has to see to what is its own
    assert gone.is_closed()
    assert revoked.revoke()
    assert not revoked.start()
    assert revoked.is_closed()


def test_what_has_begun_is_not_revoked(side: Side) -> None:
    assert side.output.start()
    assert not side.output.revoke()
    side.output.finish((b"whole",))
    assert side.drain() == (b"whole", True)


@pytest.mark.parametrize("first", ["start", "revoke"])
def test_of_a_thread_and_the_loop_one_is_first(make_side: MakeSide, first: str) -> None:
    """Each says so of itself alone, however close they are."""
    for _ in range(100):
        output = make_side().output
        ready = threading.Barrier(2, timeout=DEADLINE)
        results: dict[str, bool] = {}

        def run(name: str) -> None:
            ready.wait()  # noqa: B023
            results[name] = getattr(output, name)()  # noqa: B023

        other = {"start": "revoke", "revoke": "start"}[first]
        thread = threading.Thread(target=run, args=(other,))
        thread.start()
        run(first)
        thread.join(DEADLINE)
        assert results["start"] is not results["revoke"]


# -- who is told that the client is gone


def test_the_app_is_told_once_that_the_client_is_gone(side: Side) -> None:
    called: list[str] = []
    side.output.on_disconnect(lambda: called.append("first"))
    side.output.on_disconnect(lambda: called.append("second"))
    assert side.told == []
    side.output.close()
    side.output.close()
    for tell in side.told:
        tell()
    assert called == ["first", "second"]


def test_it_is_told_at_once_of_one_that_has_gone(side: Side) -> None:
    """On the loop, as of any other: no thread of the app's is to call its callback."""
    called: list[int] = []
    side.output.close()
    side.output.on_disconnect(lambda: called.append(1))
    assert side.told == []
    side.turn()
    for tell in side.told:
        tell()
    assert called == [1]


@pytest.mark.parametrize("end", [lambda output: output.finish(()), lambda output: output.abort()])
def test_it_is_not_told_when_the_response_has_ended_by_then(
    side: Side, end: Callable[[Output], object]
) -> None:
    side.output.on_disconnect(lambda: None)
    end(side.output)
    side.output.on_disconnect(lambda: None)
    side.output.close()
    side.turn()
    assert side.told == []


def test_it_is_told_in_a_copy_of_the_context_of_the_app(side: Side) -> None:
    number: ContextVar[int] = ContextVar("number", default=0)
    seen: list[int] = []

    def note() -> None:
        seen.append(number.get())
        number.set(7)

    def app() -> None:
        number.set(5)
        side.output.on_disconnect(note)
        number.set(6)

    copy_context().run(app)
    side.output.close()
    for tell in side.told:
        tell()
    assert seen == [5]
    assert number.get() == 0


def test_the_loop_is_told_itself_where_that_is_wanted(side: Side) -> None:
    """In the order in which they asked; whoever has been forgotten is not."""
    made: list[str] = []
    first, second, third = (partial(made.append, name) for name in ("first", "second", "third"))
    for call in (first, second, third):
        side.output.on_loss(call)
    side.output.forget(second)
    side.output.forget(second)  # twice is fine
    assert made == []
    side.output.close()
    side.output.close()
    assert made == ["first", "third"]
    side.output.forget(first)
    side.output.on_loss(second)
    assert made == ["first", "third"]
    side.turn()
    assert made == ["first", "third", "second"]
    assert side.told == []  # for a thread of the app's


@pytest.mark.parametrize("end", [lambda output: output.finish(()), lambda output: output.abort()])
def test_the_loop_is_not_told_when_the_response_has_ended_by_then(
    side: Side, end: Callable[[Output], object]
) -> None:
    made: list[str] = []
    before = partial(made.append, "before")
    side.output.on_loss(before)
    end(side.output)
    side.output.on_loss(partial(made.append, "after"))
    side.output.forget(before)
    side.output.close()
    side.turn()
    assert made == []


def test_a_callback_that_is_not_needed_is_not_kept(side: Side) -> None:
    """Nor is what hangs on it: a request and all of its environ."""

    class Held:
        pass

    held = Held()
    alive = weakref.ref(held)
    side.output.on_disconnect(partial(print, held))
    del held
    gc.collect()
    assert alive() is not None
    side.output.finish(())
    gc.collect()
    assert alive() is None


def test_hints_wait_for_the_loop_and_are_bounded(side: Side) -> None:
    side.output.head = None  # as before `begin`
    block = b"h" * 32_768
    for _ in range(2):
        side.output.hint(block)
    with pytest.raises(ValueError, match="early hints"):
        side.output.hint(block)
    assert (side.output.hints, side.output.take(100)) == (2 * block, ([], False))
    assert (side.output.take_hints(), side.output.hints) == (2 * block, b"")
    side.output.hint(block)
    side.output.close()
    side.output.hint(block)
    assert side.output.take_hints() == block


def test_a_whole_answer_crosses_once(side: Side) -> None:
    side.output.answer(HEAD, b"whole")
    assert side.output.length == len(b"whole")
    assert side.output.take(100) == ([b"whole"], True)
    with pytest.raises(ClientDisconnected, match="ended"):
        side.output.write(b"more")


def test_of_an_answer_to_a_client_that_is_gone_nothing_is_kept(side: Side) -> None:
    side.output.close()
    side.output.answer(HEAD, b"whole")
    assert side.output.take(100) == ([], True)


def test_an_answer_that_crosses_while_something_else_is_taken(side: Side) -> None:
    """The loop has seen that there is no answer, and waits for the lock that the app's thread holds."""
    lock = side.output._lock

    class HeldByTheApp:
        """Gives the lock to the loop when the thread has done what it holds it for."""

        def __enter__(self) -> None:
            side.output._lock = lock
            side.output.answer(HEAD, b"whole")
            lock.acquire()

        def __exit__(self, *_exc: object) -> None:
            lock.release()

    side.output.hint(b"hint")
    side.output._lock = HeldByTheApp()  # type: ignore[assignment]
    assert side.output.take(100) == ([b"whole"], True)
