"""The awaitable reader, one promise at a time.

What a slow, full or broken disk does to it is in `test_reader_disk.py`. `test_reader_properties.py` mixes
all of that.
"""

from __future__ import annotations

import io
import threading
import tracemalloc
from asyncio import IncompleteReadError, LimitOverrunError
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.buffers.support import PATTERN, Source, at_once, cancel, ended, fed, start, turn, until
from waitress_async.buffers import COPY_BYTES, BufferMemory, BufferReader, Spool, SpoolFile

READS: list[Callable[[BufferReader], Coroutine[Any, Any, bytes]]] = [
    lambda reader: reader.read(),
    lambda reader: reader.read(5),
    lambda reader: reader.readexactly(5),
    lambda reader: reader.readline(),
    lambda reader: reader.readuntil(b";"),
]
each_read = pytest.mark.parametrize("read", READS)


# What is there needs no waiting


def test_read_gives_what_is_held_and_no_more_than_asked() -> None:
    reader = BufferReader()
    assert at_once(reader.read(0)) == b""
    reader.feed_data(b"abc")
    reader.feed_data(b"def")
    assert at_once(reader.read(0)) == b""
    assert at_once(reader.read(4)) == b"abcd"
    assert at_once(reader.read(4)) == b"ef"
    assert len(reader) == 0


def test_read_to_the_end() -> None:
    reader = ended(b"abc", b"def")
    assert not reader.at_eof()
    assert at_once(reader.read()) == b"abcdef"
    assert reader.at_eof()
    assert at_once(reader.read()) == at_once(reader.read(5)) == at_once(reader.readline()) == b""


def test_readexactly() -> None:
    reader = ended(b"abc", b"def")
    assert at_once(reader.readexactly(0)) == b""
    assert at_once(reader.readexactly(4)) == b"abcd"
    with pytest.raises(IncompleteReadError) as caught:
        at_once(reader.readexactly(3))
    assert (caught.value.partial, caught.value.expected) == (b"ef", 3)
    assert reader.at_eof()
    with pytest.raises(ValueError, match="-1"):
        at_once(reader.readexactly(-1))


def test_lines() -> None:
    reader = ended(b"one\ntwo", b"\n\nlast")
    lines = [at_once(reader.readline()) for _ in range(5)]
    assert lines == [b"one\n", b"two\n", b"\n", b"last", b""]


async def test_iterating_gives_lines() -> None:
    assert [line async for line in ended(b"one\ntwo\n", b"last")] == [b"one\n", b"two\n", b"last"]


def test_readuntil_a_long_separator_that_comes_in_pieces() -> None:
    reader = ended(b"a-", b"-b-", b"--c", b"---", b"-rest")
    assert at_once(reader.readuntil(b"---")) == b"a--b---"
    assert at_once(reader.readuntil(b"---")) == b"c---"
    with pytest.raises(IncompleteReadError) as caught:
        at_once(reader.readuntil(b"---"))
    assert (caught.value.partial, caught.value.expected) == (b"-rest", None)
    with pytest.raises(ValueError, match="separator"):
        at_once(reader.readuntil(b""))


def test_the_limit_is_for_the_line_without_its_end() -> None:
    assert at_once(fed(b"12345\n", limit=5).readline()) == b"12345\n"
    assert at_once(fed(b"12345--", limit=5).readuntil(b"--")) == b"12345--"


async def test_a_line_of_the_limit_may_still_end() -> None:
    reader = fed(b"12345", limit=5)
    task = await start(reader.readline())
    reader.feed_data(b"\n")
    assert await task == b"12345\n"


@pytest.mark.parametrize("pieces", [[b"123456"], [b"123", b"456\n"], [b"123456789\n"]])
def test_a_line_over_the_limit_is_refused_and_stays(pieces: list[bytes]) -> None:
    reader = fed(*pieces, limit=5)
    with pytest.raises(ValueError, match="5 bytes"):
        at_once(reader.readline())
    with pytest.raises(LimitOverrunError) as caught:
        at_once(reader.readuntil())
    assert 5 < caught.value.consumed <= 9
    assert at_once(reader.read(100)) == b"".join(pieces)


def test_a_read_takes_any_bytes_and_counts_bytes() -> None:
    reader = BufferReader()
    reader.feed_data(bytearray(b"ab"))
    reader.feed_data(memoryview(b"cdef").cast("H"))
    reader.feed_data(b"")
    assert len(reader) == 6
    assert at_once(reader.readexactly(6)) == b"abcdef"


def test_an_empty_reader_is_still_a_reader() -> None:
    reader = BufferReader()
    assert reader
    assert not reader.at_eof()
    assert repr(reader) == "<BufferReader still being fed, 0 bytes>"


# Waiting


async def test_a_read_waits_for_the_first_byte() -> None:
    reader = BufferReader()
    task = await start(reader.read(10))
    reader.feed_data(b"abc")
    assert await task == b"abc"


async def test_a_read_returns_what_was_held_when_it_woke() -> None:
    reader = BufferReader(high_water=2, pause_reading=int, resume_reading=lambda: reader.feed_data(b"late"))
    task = await start(reader.read(100))
    reader.feed_data(b"soon")
    assert await task == b"soon"
    assert at_once(reader.read(100)) == b"late"


async def test_readexactly_is_not_woken_in_vain() -> None:
    reader = BufferReader()
    task = await start(reader.readexactly(5))
    reader.feed_data(b"abc")
    await turn()
    assert not task.done()
    reader.feed_data(b"def")
    assert await task == b"abcde"
    assert len(reader) == 1


async def test_readuntil_waits_for_the_separator() -> None:
    reader = BufferReader()
    task = await start(reader.readuntil(b"\r\n"))
    for piece in (b"GET /", b"\r", b"x\r"):
        reader.feed_data(piece)
        await turn()
        assert not task.done()
    reader.feed_data(b"\nHost")
    assert await task == b"GET /\rx\r\n"
    assert len(reader) == 4


@each_read
async def test_the_end_wakes_any_read(read: Callable[[BufferReader], Coroutine[Any, Any, bytes]]) -> None:
    reader = BufferReader()
    task = await start(read(reader))
    reader.feed_eof()
    reader.feed_eof()
    try:
        data = await task
    except IncompleteReadError as error:
        data = error.partial
    assert data == b""
    assert reader.at_eof()


@each_read
async def test_one_coroutine_reads_at_a_time(
    read: Callable[[BufferReader], Coroutine[Any, Any, bytes]],
) -> None:
    reader = BufferReader()
    task = await start(reader.readexactly(4))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="another coroutine"):
            at_once(read(reader))
        # Awake, but it has not run yet: the bytes are its own.
        reader.feed_data(b"ab")
    assert await task == b"abab"


@each_read
async def test_a_cancelled_read_takes_nothing(
    read: Callable[[BufferReader], Coroutine[Any, Any, bytes]],
) -> None:
    reader = BufferReader()
    await cancel(await start(read(reader)))

    task = await start(read(reader))
    reader.feed_data(b"abcdefg;\n")
    await cancel(task)

    assert len(reader) == 9
    reader.feed_eof()
    assert at_once(reader.read()) == b"abcdefg;\n"


@each_read
async def test_an_exception_reaches_the_read_that_waits_and_later_ones(
    read: Callable[[BufferReader], Coroutine[Any, Any, bytes]],
) -> None:
    reader = BufferReader()
    task = await start(read(reader))
    assert reader.exception() is None
    gone = ConnectionResetError("gone")
    reader.set_exception(gone)
    assert reader.exception() is gone
    with pytest.raises(ConnectionResetError, match="gone"):
        await task
    reader.feed_data(b"abcdefg;\n")
    with pytest.raises(ConnectionResetError, match="gone"):
        at_once(read(reader))
    assert len(reader) == 9


@each_read
async def test_closing_wakes_the_read_that_waits(
    read: Callable[[BufferReader], Coroutine[Any, Any, bytes]],
) -> None:
    reader = BufferReader()
    task = await start(read(reader))
    reader.close()
    with pytest.raises(ValueError, match="the reader is closed"):
        await task
    with pytest.raises(ValueError, match="the reader is closed"):
        at_once(read(reader))


async def test_a_read_that_was_woken_finds_the_reader_closed() -> None:
    reader = BufferReader()
    task = await start(reader.read(5))
    reader.feed_data(b"abc")
    reader.close()
    with pytest.raises(ValueError, match="the reader is closed"):
        await task


def test_feeding_stops_at_the_end_and_at_close() -> None:
    reader = ended(b"abc")
    with pytest.raises(RuntimeError, match="at its end"):
        reader.feed_data(b"d")
    reader.close()
    reader.close()
    assert len(reader) == 0
    for call in (lambda: reader.feed_data(b"d"), reader.feed_eof, reader.getfile):
        with pytest.raises(ValueError, match="the reader is closed"):
            call()


# Back-pressure


def test_the_marks() -> None:
    source = Source()
    reader = source.reader(high_water=10, low_water=4)
    states = []
    for _ in range(12):
        reader.feed_data(b"x")
        states.append(source.paused())
    assert states == [False] * 10 + [True] * 2
    assert "paused" in repr(reader)
    states = []
    for _ in range(12):
        at_once(reader.read(1))
        states.append(source.paused())
    assert states == [True] * 7 + [False] * 5
    assert source.pauses == 1


def test_the_low_mark_is_a_quarter_of_the_high_one() -> None:
    source = Source()
    reader = source.reader(high_water=8)
    reader.feed_data(b"x" * 9)
    at_once(reader.read(6))
    assert source.paused()
    at_once(reader.read(1))
    assert not source.paused()


LARGE_READS: list[Callable[[BufferReader], Coroutine[Any, Any, bytes]]] = [
    lambda reader: reader.read(),
    lambda reader: reader.readexactly(100),
    lambda reader: reader.readuntil(),
    lambda reader: reader.readline(),
]


@pytest.mark.parametrize("read", LARGE_READS)
async def test_a_read_larger_than_the_marks_gets_its_bytes(
    read: Callable[[BufferReader], Coroutine[Any, Any, bytes]],
) -> None:
    source = Source()
    reader = source.reader(high_water=10)
    reader.feed_data(b"x" * 11)
    assert source.paused()
    task = await start(read(reader))
    for _ in range(8):
        assert not source.paused()
        reader.feed_data(b"x" * 11)
        await turn()
    reader.feed_data(b"\n")
    reader.feed_eof()
    assert await task == b"x" * 99 + b"\n"
    assert not source.paused()


async def test_a_cancelled_large_read_puts_the_marks_back_in_force() -> None:
    source = Source()
    reader = source.reader(high_water=10)
    task = await start(reader.readexactly(100))
    reader.feed_data(b"x" * 50)
    assert not source.paused()
    await cancel(task)
    assert source.paused()
    assert at_once(reader.readexactly(50)) == b"x" * 50
    assert not source.paused()


async def test_nothing_is_paused_after_the_end() -> None:
    source = Source()
    reader = source.reader(high_water=10)
    task = await start(reader.readexactly(100))
    reader.feed_data(b"x" * 50)
    reader.feed_eof()
    await cancel(task)
    assert source.pauses == 0
    assert at_once(reader.read()) == b"x" * 50


def test_pausing_may_feed_once_more() -> None:
    class OneMore(Source):
        def pause(self) -> None:
            super().pause()
            reader.feed_data(b"on its way")

    source = OneMore()
    reader = source.reader(high_water=10)
    reader.feed_data(b"x" * 11)
    assert (len(reader), source.pauses) == (21, 1)


@pytest.mark.parametrize("last_call", [BufferReader.feed_eof, BufferReader.close])
def test_each_pause_is_followed_by_a_resume(last_call: Callable[[BufferReader], None]) -> None:
    source = Source()
    reader = source.reader(high_water=10)
    reader.feed_data(b"x" * 11)
    assert source.paused()
    last_call(reader)
    assert not source.paused()
    reader.close()


async def test_resuming_may_feed_at_once() -> None:
    supply = [bytes([letter]) * 6 for letter in b"abcdefgh"]

    class Eager(Source):
        def resume(self) -> None:
            super().resume()
            while supply and not self.paused():
                reader.feed_data(supply.pop(0))

    source = Eager()
    reader = source.reader(high_water=10)
    reader.feed_data(b"-" * 11)
    assert at_once(reader.read(11)) == b"-" * 11
    assert (len(reader), source.paused()) == (12, True)
    assert await reader.readexactly(30) == b"aaaaaabbbbbbccccccddddddeeeeee"
    assert source.paused()
    assert await reader.readexactly(18) == b"ffffffgggggghhhhhh"
    assert not source.paused()


@pytest.mark.parametrize(
    "options",
    [
        {"limit": 0},
        {"high_water": 10},
        {"low_water": 10},
        {"high_water": 10, "low_water": 11, "pause_reading": int, "resume_reading": int},
        {"high_water": 10, "low_water": -1, "pause_reading": int, "resume_reading": int},
        {"high_water": -1, "pause_reading": int, "resume_reading": int},
    ],
)
def test_senseless_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"limit|water"):
        BufferReader(**options)


# Memory and disk


class Files:
    """Remembers the temporary files of a spool, and what was written to them at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[SpoolFile] = []
        self.writes: list[int] = []
        opener, writer = Spool.open, SpoolFile.write

        def open_file(spool: Spool, expected: int = 0) -> SpoolFile:
            file = opener(spool, expected)
            self.opened.append(file)
            return file

        def write(file: SpoolFile, data: bytes, offset: int) -> None:
            self.writes.append(len(data))
            writer(file, data, offset)

        monkeypatch.setattr(Spool, "open", open_file)
        monkeypatch.setattr(SpoolFile, "write", write)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Files:
    return Files(monkeypatch)


async def test_small_pieces_are_written_in_batches(source: Source, spool: Spool, files: Files) -> None:
    pieces = [PATTERN[begin : begin + 7] for begin in range(0, len(PATTERN), 7)]
    reader = await source.ended(*pieces, overflow=1000, spool=spool)
    file = reader.getfile()
    assert len(files.opened) == 1
    assert len(files.writes) <= len(PATTERN) // COPY_BYTES + 1
    assert file.read() == PATTERN
    reader.close()


@pytest.mark.parametrize("overflow", [0, 1000, COPY_BYTES, COPY_BYTES + 1, 600_000])
async def test_what_is_a_batch(overflow: int, source: Source, spool: Spool, files: Files) -> None:
    """The first is as large as `overflow` allows, and none is small."""
    reader = source.reader(overflow=overflow, spool=spool)
    for batch in (max(overflow, COPY_BYTES), COPY_BYTES, COPY_BYTES):
        written = len(files.writes)
        reader.feed_data(bytes(batch - 1))
        await turn()
        assert not source.paused()
        assert len(files.writes) == written
        reader.feed_data(b"!")
        assert source.paused()
        await source.resumed()
        assert files.writes[written:] == [batch]
    assert len(files.opened) == 1
    reader.close()


@pytest.mark.parametrize("overflow", [0, 1000, 300_000])
async def test_reads_from_the_disk(overflow: int, spool: Spool, files: Files) -> None:
    reader = BufferReader(overflow=overflow, spool=spool)
    reader.feed_data(PATTERN)
    reader.feed_data(b"line\n" + PATTERN)
    assert await reader.read(100) == PATTERN[:100]
    assert files.writes
    assert await reader.readexactly(len(PATTERN) - 100) == PATTERN[100:]
    assert await reader.readline() == b"line\n"
    assert await reader.readuntil(b"\xff") == PATTERN[:256]
    reader.feed_data(b"after")
    reader.feed_eof()
    assert await reader.read() == PATTERN[256:] + b"after"
    await until(lambda: all(file.closed for file in files.opened))
    reader.close()


async def test_a_read_waits_for_what_is_on_its_way_to_the_disk(spool: Spool) -> None:
    reader = fed(PATTERN, spool=spool)
    task = await start(reader.readexactly(len(PATTERN) + 3))
    reader.feed_data(b"abcd")
    assert await task == PATTERN + b"abc"
    assert await reader.read(9) == b"d"
    reader.close()


async def test_a_line_from_the_disk_is_refused_and_stays(spool: Spool) -> None:
    reader = fed(b"x" * COPY_BYTES + b"\n", overflow=1000, limit=5, spool=spool)
    with pytest.raises(ValueError, match="5 bytes"):
        await reader.readline()
    assert await reader.readexactly(COPY_BYTES + 1) == b"x" * COPY_BYTES + b"\n"
    reader.close()


async def test_a_line_of_two_places(spool: Spool) -> None:
    """From the disk, from memory, and from who feeds after that."""
    reader = fed(b"x" * (COPY_BYTES - 2), b"\nab", b"cd", overflow=1000, limit=COPY_BYTES, spool=spool)
    assert await reader.readline() == b"x" * (COPY_BYTES - 2) + b"\n"
    task = await start(reader.readline())
    reader.feed_data(b"ef\ng")
    assert await task == b"abcdef\n"
    assert len(reader) == 1
    reader.close()


async def test_a_file_is_let_go_when_it_was_read_and_not_copied_before(spool: Spool, files: Files) -> None:
    reader = fed(PATTERN, overflow=1000, spool=spool)
    for _ in range(4):
        assert not any(file.closed for file in files.opened)
        assert await reader.read(COPY_BYTES) == PATTERN[:COPY_BYTES]
    (file,) = files.opened
    await until(lambda: file.closed)
    assert reader.file is None
    reader.feed_data(PATTERN)
    assert await reader.readexactly(len(PATTERN)) == PATTERN
    assert len(files.opened) == 2
    reader.close()


async def test_memory_stays_bounded_when_the_body_goes_to_disk(source: Source, spool: Spool) -> None:
    overflow, piece = 100_000, b"x" * 1_000
    tracemalloc.start()
    try:
        reader = source.reader(overflow=overflow, spool=spool)
        await source.feed(reader, *[piece] * 3_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(reader) == 3_000_000
    assert peak < 2 * overflow + 2 * COPY_BYTES
    reader.close()


def test_memory_stays_bounded_when_the_reader_is_always_a_little_behind() -> None:
    overflow, piece = 2_000_000, b"x" * 100_000
    tracemalloc.start()
    try:
        reader = fed(*[piece] * 15, overflow=overflow)
        for _ in range(200):
            reader.feed_data(piece)
            assert at_once(reader.readexactly(len(piece))) == piece
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * overflow
    reader.close()


async def test_closing_tells_a_read_that_waits_for_the_disk(spool: Spool) -> None:
    reader = fed(PATTERN, spool=spool)
    task = await start(reader.read(5))
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        await task


async def test_a_reader_without_a_spool_makes_its_own() -> None:
    reader = fed(PATTERN)
    assert await reader.readexactly(5) == PATTERN[:5]
    file = reader.file
    assert file is not None
    reader.close()
    await until(lambda: file.closed)


# The whole stream as a file


@pytest.mark.parametrize("size", [0, 1, 300, 9_000, 99_999, 100_000, COPY_BYTES, 600_000])
async def test_getfile_holds_everything_at_position_0(size: int, source: Source, spool: Spool) -> None:
    overflow = 100_000
    data = PATTERN[:size]
    reader = await source.ended(data[: size // 2], data[size // 2 :], overflow=overflow, spool=spool)
    file = reader.getfile()
    assert isinstance(file, io.BytesIO) is (size < overflow) is (reader.file is None)
    assert file.tell() == 0
    assert file.read() == data
    assert len(reader) == size
    assert reader.getfile() is file
    assert file.tell() == 0
    reader.close()
    await until(lambda: file.closed)


async def test_what_memory_was_too_short_for_is_on_disk_with_the_rest(source: Source, spool: Spool) -> None:
    memory = BufferMemory(COPY_BYTES)
    memory.add(COPY_BYTES)
    reader = await source.ended(PATTERN[:5_000], PATTERN[5_000:6_000], spool=spool, memory=memory)
    assert reader.getfile().read() == PATTERN[:6_000]
    assert reader.file is not None
    assert memory.used == COPY_BYTES
    reader.close()


def test_getfile_is_for_a_stream_that_is_whole() -> None:
    reader = fed(b"abc")
    with pytest.raises(RuntimeError, match="has not ended"):
        reader.getfile()
    at_once(reader.read(1))
    reader.feed_eof()
    with pytest.raises(RuntimeError, match="bytes were read"):
        reader.getfile()
    assert at_once(reader.read()) == b"bc"


async def test_getfile_is_for_a_stream_that_is_not_on_its_way_to_the_disk(spool: Spool) -> None:
    reader = ended(PATTERN, spool=spool)
    with pytest.raises(RuntimeError):
        reader.getfile()
    assert await reader.read() == PATTERN
    reader.close()


async def test_a_read_from_the_disk_is_a_read_as_well(spool: Spool) -> None:
    reader = ended(PATTERN, spool=spool)
    await reader.read(1)
    with pytest.raises(RuntimeError, match="bytes were read"):
        reader.getfile()
    reader.close()


def test_looking_into_an_empty_stream_is_not_reading() -> None:
    reader = ended()
    assert at_once(reader.readline()) == at_once(reader.read()) == b""
    assert reader.getfile().read() == b""


@each_read
def test_after_getfile_the_bytes_are_the_files(
    read: Callable[[BufferReader], Coroutine[Any, Any, bytes]],
) -> None:
    reader = ended(b"abcdefg;\n")
    reader.getfile()
    for refused in (lambda: at_once(read(reader)), lambda: reader.feed_data(b"x")):
        with pytest.raises(RuntimeError, match="given away"):
            refused()
    reader.feed_eof()
    assert reader.getfile().read() == b"abcdefg;\n"


async def test_getfile_does_not_take_bytes_from_a_read_on_its_way() -> None:
    reader = BufferReader()
    task = await start(reader.read())
    reader.feed_data(b"abc")
    reader.feed_eof()
    with pytest.raises(RuntimeError, match="another coroutine"):
        reader.getfile()
    assert await task == b"abc"


def test_getfile_raises_the_exception() -> None:
    reader = ended(b"abc")
    reader.set_exception(ConnectionResetError("gone"))
    with pytest.raises(ConnectionResetError, match="gone"):
        reader.getfile()


async def test_another_thread_may_take_the_file_and_close_the_reader(source: Source, spool: Spool) -> None:
    reader = await source.ended(PATTERN, PATTERN, overflow=1000, spool=spool)
    found = []

    def app() -> None:
        file = reader.getfile()
        found.append(file.read())
        reader.close()
        assert file.closed
        assert spool.files == 0

    thread = threading.Thread(target=app)
    thread.start()
    thread.join()
    assert found == [PATTERN * 2]
    with pytest.raises(ValueError, match="the reader is closed"):
        await reader.read()
