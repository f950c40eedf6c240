"""The reader over a disk that is slow, full or broken, and with memory that is short."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from tests.buffers.support import (
    DEADLINE,
    PATTERN,
    Gate,
    Source,
    at_once,
    bytes_in_memory,
    cancel,
    ended,
    fed,
    start,
    turn,
    until,
)
from waitress_async.buffers import COPY_BYTES, BufferMemory, BufferReader, Spool
from waitress_async.buffers import spool as spool_module
from waitress_async.errors import SpoolFull

KIB = 1024


# Whose thread waits for the disk


class DiskCalls:
    """Notes the thread of every call that may wait for the disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.threads: dict[str, set[threading.Thread]] = {}
        for name in ("open", "pwrite", "pread", "fstatvfs", "unlink", "link"):
            monkeypatch.setattr(os, name, self._noting(f"os.{name}", getattr(os, name)))
        monkeypatch.setattr(tempfile, "mkstemp", self._noting("mkstemp", tempfile.mkstemp))
        note = self.note

        class NotingFileIO(FileIO):
            def close(self) -> None:
                note("FileIO.close")
                super().close()

        monkeypatch.setattr(spool_module, "FileIO", NotingFileIO)

    def note(self, name: str) -> None:
        self.threads.setdefault(name, set()).add(threading.current_thread())

    def _noting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **options: Any) -> Any:
            self.note(name)
            return function(*arguments, **options)

        return noted


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> DiskCalls:
    return DiskCalls(monkeypatch)


async def store_and_read_back(reader: BufferReader, gate: Gate) -> None:
    gate.open()
    reader.feed_data(PATTERN)
    reader.feed_data(PATTERN)
    assert await reader.readexactly(len(PATTERN) + 1) == PATTERN + PATTERN[:1]
    assert await reader.readuntil(b"\xff") == PATTERN[1:256]
    reader.feed_eof()
    assert await reader.read() == PATTERN[256:]
    reader.close()


async def cancel_a_read(reader: BufferReader, gate: Gate) -> None:
    gate.open()
    reader.feed_data(PATTERN)
    await cancel(await start(reader.read(1)))
    assert await reader.readexactly(len(PATTERN)) == PATTERN
    reader.close()


async def close_before_a_store(reader: BufferReader, gate: Gate) -> None:
    gate.open()
    reader.feed_data(PATTERN)
    reader.close()
    await until(lambda: gate.calls)


async def close_while_a_store(reader: BufferReader, gate: Gate) -> None:
    reader.feed_data(PATTERN)
    await gate.entered()
    reader.close()
    gate.open()


async def close_after_a_store(reader: BufferReader, gate: Gate) -> None:
    gate.open()
    reader.feed_data(PATTERN)
    assert await reader.read(1) == PATTERN[:1]
    reader.close()


async def expect_and_be_refused(reader: BufferReader, gate: Gate) -> None:
    gate.open()
    reader.expect(1 << 62)
    await until(reader.exception)
    reader.close()


LIVES = [
    store_and_read_back,
    cancel_a_read,
    close_before_a_store,
    close_while_a_store,
    close_after_a_store,
    expect_and_be_refused,
]


@pytest.mark.parametrize("unnamed", [True, False])
@pytest.mark.parametrize("life", LIVES)
async def test_the_loops_thread_never_waits_for_the_disk(
    life: Callable[[BufferReader, Gate], Any],
    unnamed: bool,
    calls: DiskCalls,
    disk: Executor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not unnamed:
        monkeypatch.delattr(os, "O_TMPFILE")
    spool = Spool(str(tmp_path), min_free=1, executor=disk)
    gate = Gate(monkeypatch, "write")
    source = Source()
    reader = source.reader(overflow=1000, spool=spool, memory=BufferMemory(1 << 30))
    calls.threads.clear()
    await life(reader, gate)
    await until(lambda: spool.files == 0)
    await spool.wait_closed()
    assert spool.used == 0
    assert not source.paused()
    expected = {"os.open", "os.fstatvfs", "FileIO.close"} | (set() if unnamed else {"mkstemp", "os.unlink"})
    assert expected <= set(calls.threads)
    for name, threads in calls.threads.items():
        assert all(thread.name.startswith("disk") for thread in threads), name


# Back-pressure


@pytest.mark.parametrize("high_water", [None, 1 << 30])
async def test_feeding_is_paused_while_the_disk_is_written(
    high_water: int | None, source: Source, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, "write")
    memory = BufferMemory(1 << 30)
    reader = source.reader(high_water, overflow=1000, spool=spool, memory=memory)
    reader.feed_data(PATTERN)
    assert source.paused()
    await gate.entered()
    reader.feed_data(b"all")
    reader.feed_data(b" the same")
    assert (source.pauses, source.resumes) == (1, 0)
    assert len(reader) == memory.used == len(PATTERN) + 12
    gate.open()
    await source.resumed()
    assert len(reader) == len(PATTERN) + 12
    assert memory.used == 12
    reader.feed_eof()
    assert await reader.read() == PATTERN + b"all the same"
    assert (source.pauses, source.resumes) == (1, 1)
    assert memory.used == 0
    reader.close()


async def test_a_batch_that_came_during_a_write_is_the_next_one(
    source: Source, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And there is no resume between the two."""
    gate = Gate(monkeypatch, "write")
    reader = source.reader(overflow=1000, spool=spool)
    reader.feed_data(PATTERN)
    reader.feed_data(PATTERN)
    await gate.entered()
    gate.open()
    await source.resumed()
    assert (gate.calls, source.pauses, source.resumes) == (2, 1, 1)
    assert reader.file is not None
    assert reader.file.size == 2 * len(PATTERN)
    assert await reader.readexactly(2 * len(PATTERN)) == PATTERN * 2
    reader.close()


async def test_a_write_does_not_resume_what_the_marks_have_paused(source: Source, spool: Spool) -> None:
    reader = source.reader(high_water=COPY_BYTES, overflow=1000, spool=spool)
    reader.feed_data(PATTERN)
    await until(lambda: reader.file is not None and reader.file.size == len(PATTERN))
    await turn()
    assert source.paused()
    assert await reader.readexactly(len(PATTERN)) == PATTERN
    assert not source.paused()
    reader.close()


async def test_the_end_of_the_stream_resumes_though_the_disk_is_written(
    source: Source, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, "write")
    reader = source.reader(spool=spool)
    reader.feed_data(PATTERN)
    await gate.entered()
    reader.feed_eof()
    assert not source.paused()
    gate.open()
    assert await reader.read() == PATTERN
    assert (source.pauses, source.resumes) == (1, 1)
    reader.close()


async def test_pausing_for_the_disk_may_feed_once_more(spool: Spool) -> None:
    class OneMore(Source):
        def pause(self) -> None:
            super().pause()
            reader.feed_data(b"on its way")

    source = OneMore()
    reader = source.reader(overflow=1000, spool=spool)
    reader.feed_data(PATTERN)
    assert len(reader) == len(PATTERN) + 10
    await source.resumed()
    reader.feed_eof()
    assert await reader.read() == PATTERN + b"on its way"
    reader.close()


async def test_closing_while_the_disk_is_written(
    source: Source, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, "write")
    memory = BufferMemory(1 << 30)
    memory.add(5)  # somebody else's
    closed: list[Spool] = []
    tell = Spool._count_closed

    def told(spool: Spool) -> None:
        closed.append(spool)
        tell(spool)

    monkeypatch.setattr(Spool, "_count_closed", told)
    reader = source.reader(spool=spool, memory=memory)
    reader.feed_data(PATTERN)
    reader.feed_data(b"tail")
    await gate.entered()
    reader.close()
    assert not source.paused()
    assert spool.files == 1
    assert memory.used == 5 + len(PATTERN), "what is being written is still there"
    reader.close()
    gate.open()
    await until(lambda: spool.files == 0)
    await spool.wait_closed()
    assert closed == [spool]
    assert (spool.used, memory.used, len(reader)) == (0, 5, 0)


async def test_closing_while_the_disk_is_read(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, "read")
    memory = BufferMemory(1 << 30)
    reader = fed(PATTERN, spool=spool, memory=memory)
    task = await start(reader.readexactly(10))
    await gate.entered()
    reader.close()
    gate.open()
    with pytest.raises(ValueError, match="closed"):
        await task
    await until(lambda: spool.files == 0)
    assert memory.used == 0


async def test_a_read_cancelled_while_the_disk_is_read_takes_nothing(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, "read")
    memory = BufferMemory(1 << 30)
    reader = ended(PATTERN, spool=spool, memory=memory)
    task = await start(reader.read())
    await gate.entered()
    await cancel(task)
    gate.open()
    assert len(reader) == len(PATTERN)
    assert await reader.read() == PATTERN
    assert memory.used == 0
    reader.close()


async def test_one_coroutine_reads_at_a_time_from_the_disk(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, "read")
    reader = fed(PATTERN, spool=spool)
    task = await start(reader.read(5))
    await gate.entered()
    with pytest.raises(RuntimeError, match="another coroutine"):
        at_once(reader.read(1))
    gate.open()
    assert await task == PATTERN[:5]
    reader.close()


@pytest.mark.parametrize("last_call", [BufferReader.close, BufferReader.feed_eof, None])
def test_the_end_of_the_loop_leaves_no_file(
    last_call: Callable[[BufferReader], None] | None, disk: Executor, tmp_path: Path
) -> None:
    """`asyncio.run` cancels what is under way, whether the reader was closed in time or is closed after."""
    spool = Spool(str(tmp_path), executor=disk)
    memory = BufferMemory(1 << 30)
    source = Source()
    busy = threading.Event()

    async def main() -> BufferReader:
        reader = source.reader(spool=spool, memory=memory)
        await source.feed(reader, PATTERN)
        assert spool.files == 1
        for _ in range(2):
            disk.submit(busy.wait, DEADLINE)
        if last_call is not None:
            last_call(reader)
        return reader

    reader = asyncio.run(main())
    busy.set()
    reader.close()
    disk.shutdown()  # what was asked of it is done
    assert (spool.files, spool.used, memory.used) == (0, 0, 0)


def test_the_end_of_the_loop_during_a_write_leaves_no_file(
    disk: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, "write")
    spool = Spool(str(tmp_path), executor=disk)
    memory = BufferMemory(1 << 30)

    async def main() -> None:
        reader = fed(PATTERN, spool=spool, memory=memory)
        await gate.entered()
        reader.close()

    asyncio.run(main())
    gate.open()
    disk.shutdown()
    assert (spool.files, spool.used, memory.used) == (0, 0, 0)


# Errors of the disk


def failing(code: int) -> Callable[..., Any]:
    def fail(*_arguments: Any, **_options: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("method", ["open", "pwrite"])
async def test_a_disk_that_cannot_be_written_breaks_the_reader(
    method: str, source: Source, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = BufferMemory(1 << 30)
    reader = source.reader(overflow=1000, spool=spool, memory=memory)
    task = await start(reader.readexactly(2 * len(PATTERN)))
    monkeypatch.setattr(os, method, failing(errno.EIO))
    reader.feed_data(PATTERN)
    await source.resumed()
    with pytest.raises(OSError, match=os.strerror(errno.EIO)) as caught:
        await task
    assert reader.exception() is caught.value
    calls: list[Callable[[], object]] = [
        lambda: reader.feed_data(b"x"),
        reader.feed_eof,
        reader.getfile,
        lambda: at_once(reader.read(1)),
    ]
    for call in calls:
        with pytest.raises(OSError, match=os.strerror(errno.EIO)) as again:
            call()
        assert again.value is caught.value
    reader.retry()
    assert (source.pauses, source.resumes) == (1, 1)
    assert memory.used == bytes_in_memory(reader) == len(PATTERN)
    monkeypatch.undo()
    reader.close()
    await until(lambda: spool.files == 0)
    assert (spool.used, memory.used) == (0, 0)
    assert bytes_in_memory(reader) == 0


async def test_a_second_batch_may_fail_as_well(
    source: Source, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = await source_with_a_batch(source, spool)
    monkeypatch.setattr(os, "pwrite", failing(errno.ENOSPC))
    reader.feed_data(PATTERN)
    await source.resumed()
    error = reader.exception()
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOSPC
    reader.close()


async def source_with_a_batch(source: Source, spool: Spool) -> BufferReader:
    reader = source.reader(overflow=1000, spool=spool)
    await source.feed(reader, PATTERN)
    return reader


async def test_a_disk_that_cannot_be_read_breaks_the_reader(
    source: Source, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class says so of a disk that fails, whichever way."""
    reader = await source_with_a_batch(source, spool)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", failing(errno.EIO))
            with pytest.raises(OSError, match=os.strerror(errno.EIO)) as caught:
                await reader.read(1)
        assert reader.exception() is caught.value
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            reader.feed_data(b"x")
    finally:
        reader.close()


async def test_a_file_that_was_cut_short_is_an_error_and_no_endless_read(
    source: Source, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = await source_with_a_batch(source, spool)
    monkeypatch.setattr(os, "pread", lambda *_arguments: b"")
    with pytest.raises(OSError, match="shorter"):
        await reader.read(1)
    reader.close()


async def test_a_disk_that_fails_on_the_thread_of_the_app(
    source: Source, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = await source.ended(bytes(2_000), overflow=1000, spool=spool)
    monkeypatch.setattr(os, "pwrite", failing(errno.ENOSPC))
    for _ in range(2):
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            await asyncio.to_thread(reader.getfile)
    await asyncio.to_thread(reader.close)
    assert (spool.files, spool.used) == (0, 0)


# What is expected


async def test_what_will_not_fit_is_refused_before_anything_is_written(
    source: Source, disk: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(str(tmp_path), limit=100_000, executor=disk)
    monkeypatch.setattr(os, "pwrite", failing(errno.EIO))
    reader = source.reader(overflow=1000, spool=spool)
    reader.expect(100_001)
    assert source.paused()
    await source.resumed()
    error = reader.exception()
    assert isinstance(error, SpoolFull)
    assert error.setting == "spool_limit"
    with pytest.raises(SpoolFull):
        reader.feed_data(b"x")
    reader.close()
    assert (spool.files, spool.used) == (0, 0)


async def test_what_fits_is_let_in_when_the_disk_has_answered(
    source: Source, disk: Executor, tmp_path: Path
) -> None:
    spool = Spool(str(tmp_path), limit=len(PATTERN), executor=disk)
    reader = source.reader(overflow=1000, spool=spool)
    reader.expect(len(PATTERN))
    assert source.paused()
    reader.feed_data(PATTERN[:10])  # it came with the head
    await source.resumed()
    assert reader.exception() is None
    assert reader.file is not None
    reader.feed_data(PATTERN[10:])
    await source.resumed()
    reader.feed_eof()
    assert reader.getfile().read() == PATTERN
    assert spool.used == len(PATTERN)
    reader.close()
    await spool.wait_closed()


async def test_what_is_refused_is_refused_though_some_of_it_has_come(
    source: Source, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing(errno.ENOSPC))
        gate = Gate(patch, "open", Spool)
        reader = source.reader(overflow=1000, spool=spool)
        reader.expect(1_000)
        await gate.entered()
        reader.feed_data(b"it came with the head")
        gate.open()
        await until(gate.left)
        await turn()
        await turn()
        reader.retry()
    await source.resumed()
    assert isinstance(reader.exception(), OSError)
    reader.close()


async def test_what_is_small_asks_for_nothing(source: Source, spool: Spool) -> None:
    reader = source.reader(overflow=1000, spool=spool)
    reader.expect(999)
    await turn()
    assert (source.pauses, spool.files) == (0, 0)
    reader.close()


async def test_less_than_was_expected_is_on_disk_all_the_same(source: Source, spool: Spool) -> None:
    reader = source.reader(overflow=1000, spool=spool)
    reader.expect(1000)
    await source.resumed()
    reader.feed_data(b"short")
    reader.feed_eof()
    assert reader.getfile().read() == b"short"
    reader.close()


# Memory


async def test_each_byte_in_memory_is_counted(source: Source, spool: Spool) -> None:
    memory = BufferMemory(1 << 30)
    reader = source.reader(overflow=1000, spool=spool, memory=memory)

    def check(in_memory: int) -> None:
        assert memory.used == bytes_in_memory(reader) == in_memory

    reader.feed_data(b"abcdef")
    check(6)
    assert await reader.read(2) == b"ab"
    check(4)
    reader.feed_data(memoryview(PATTERN).cast("Q"))
    check(len(PATTERN) + 4)
    await source.resumed()
    check(0 + 4)  # a read has moved these to the head
    reader.feed_data(b"xyz")
    check(4 + 3)
    assert await reader.read(5) == b"cdef" + PATTERN[:1]
    check(COPY_BYTES - 1 + 3)
    await cancel(await start(reader.readexactly(len(PATTERN) + 10)))
    assert memory.used == bytes_in_memory(reader)
    reader.feed_eof()
    assert await reader.read() == PATTERN[1:] + b"xyz"
    check(0)
    reader.close()


@pytest.mark.parametrize("on_disk", [False, True])
async def test_what_was_given_away_is_counted_until_it_is_closed(
    on_disk: bool, source: Source, spool: Spool
) -> None:
    memory = BufferMemory(1 << 30)
    reader = await source.ended(
        bytes(2_000), overflow=1_000 if on_disk else 5_000, spool=spool, memory=memory
    )
    reader.getfile()
    reader.getfile()
    assert memory.used == (0 if on_disk else 2_000)
    reader.close()
    reader.close()
    assert memory.used == 0


SHORT = [(3 / 4, 64 * KIB), (1, 1)]


@pytest.mark.parametrize(("share", "batch"), SHORT)
async def test_when_memory_is_short_the_disk_comes_sooner(
    share: float, batch: int, source: Source, spool: Spool
) -> None:
    limit = 8 << 20
    memory = BufferMemory(limit)
    reader = source.reader(overflow=1 << 20, spool=spool, memory=memory)
    memory.add(int(limit * share))
    for _ in range(2):
        reader.feed_data(bytes(batch - 1))
        assert not source.paused()
        reader.feed_data(b"!")
        assert source.paused()
        await source.resumed()
        assert memory.used == limit * share
    memory.add(-limit // 2)
    reader.feed_data(bytes(batch))
    assert not source.paused()
    reader.feed_eof()
    assert await reader.read() == (bytes(batch - 1) + b"!") * 2 + bytes(batch)
    reader.close()


async def test_memory_may_become_short_while_nothing_is_fed(source: Source, spool: Spool) -> None:
    memory = BufferMemory(8 << 20)
    reader = source.reader(overflow=1 << 20, spool=spool, memory=memory)
    reader.feed_data(bytes(64 * KIB))
    reader.store_if_due()
    assert not source.paused()
    memory.add(7 << 20)
    reader.store_if_due()
    assert source.paused()
    reader.store_if_due()
    await source.resumed()
    assert memory.used == 7 << 20
    reader.store_if_due()
    assert not source.paused()
    reader.feed_data(bytes(4 * KIB - 1))
    reader.feed_eof()
    reader.store_if_due()
    assert await reader.read() == bytes(68 * KIB - 1)
    reader.close()
    reader.store_if_due()
    assert (source.pauses, source.resumes) == (1, 1)


class Shortage:
    """Memory that somebody else has taken, and a disk that takes nothing."""

    def __init__(self, spool: Spool, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
        self.memory = BufferMemory(1 << 20)
        self.memory.add(1 << 20)
        self.full = True
        self.method = method
        original = getattr(os, method)

        def refuse(*arguments: Any, **options: Any) -> Any:
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*arguments, **options)

        monkeypatch.setattr(os, method, refuse)
        self.attempts = 0
        failed = BufferReader._batch_failed

        def note(reader: BufferReader, error: OSError) -> None:
            failed(reader, error)
            self.attempts += 1

        monkeypatch.setattr(BufferReader, "_batch_failed", note)

    async def attempted(self, times: int) -> None:
        """Wait until the disk has refused so many times."""
        await until(lambda: self.attempts == times)
        await turn()


@pytest.fixture(params=["open", "pwrite"])
def shortage(request: pytest.FixtureRequest, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> Shortage:
    return Shortage(spool, monkeypatch, request.param)


async def test_without_memory_and_disk_feeding_waits_for_memory(
    shortage: Shortage, source: Source, spool: Spool
) -> None:
    data = PATTERN[: 4 * KIB]
    memory = shortage.memory
    reader = source.reader(spool=spool, memory=memory)
    reader.feed_data(data)
    await shortage.attempted(1)
    reader.feed_data(b"all the same")
    assert source.paused()
    for tries in range(2, 5):
        reader.retry()
        await shortage.attempted(tries)
        assert source.paused()
        assert reader.exception() is None
    assert len(reader) == bytes_in_memory(reader) == len(data) + 12
    memory.add(-(1 << 19))
    reader.retry()
    assert not source.paused()
    reader.retry()
    reader.feed_eof()
    assert await reader.read() == data + b"all the same"
    assert (source.pauses, memory.used) == (1, 1 << 19)
    reader.close()


async def test_what_comes_while_the_disk_refuses_is_kept_in_its_place(
    shortage: Shortage, source: Source, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, "open", Spool)
    if shortage.method == "pwrite":
        gate.open()
        gate = Gate(monkeypatch, "write")
    reader = source.reader(spool=spool, memory=shortage.memory)
    reader.feed_data(PATTERN[: 4 * KIB])
    await gate.entered()
    reader.feed_data(PATTERN[4 * KIB : 5 * KIB])
    gate.open()
    await shortage.attempted(1)
    assert bytes_in_memory(reader) == 5 * KIB
    shortage.memory.add(-(1 << 19))
    reader.retry()
    assert not source.paused()
    reader.feed_eof()
    assert await reader.read() == PATTERN[: 5 * KIB]
    assert shortage.memory.used == 1 << 19
    reader.close()


async def test_without_memory_and_disk_feeding_waits_for_the_disk(
    shortage: Shortage, source: Source, spool: Spool
) -> None:
    data = PATTERN[: 4 * KIB]
    reader = source.reader(spool=spool, memory=shortage.memory)
    reader.feed_data(data)
    await shortage.attempted(1)
    shortage.full = False
    reader.retry()
    assert source.paused()
    await source.resumed()
    assert reader.file is not None
    assert shortage.memory.used == 1 << 20
    reader.feed_eof()
    assert await reader.read() == data
    reader.close()


async def test_who_waits_too_long_for_memory_and_disk_is_told(
    shortage: Shortage, source: Source, spool: Spool
) -> None:
    reader = source.reader(spool=spool, memory=shortage.memory)
    reader.feed_data(bytes(4 * KIB))
    for tries in range(1, 31):
        await shortage.attempted(tries)
        assert reader.exception() is None
        assert source.paused()
        reader.retry()
    await source.resumed()
    error = reader.exception()
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOSPC
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        reader.feed_data(b"x")
    reader.close()
    assert shortage.memory.used == 1 << 20


async def test_a_wait_that_ended_well_is_forgotten(shortage: Shortage, source: Source, spool: Spool) -> None:
    """The tries are those in a row."""
    reader = source.reader(spool=spool, memory=shortage.memory)
    reader.feed_data(bytes(4 * KIB))
    for _ in range(2):
        for _ in range(25):
            await until(lambda: not spool.files)
            await shortage.attempted(shortage.attempts)
            reader.retry()
            attempts = shortage.attempts
            await shortage.attempted(attempts + 1)
        shortage.memory.add(-(1 << 19))
        reader.retry()
        assert not source.paused()
        shortage.memory.add(1 << 19)
        attempts = shortage.attempts
        reader.feed_data(b"x")
        await shortage.attempted(attempts + 1)
    assert reader.exception() is None
    reader.close()


async def test_what_no_memory_is_meant_for_does_not_wait_for_the_disk(
    shortage: Shortage, source: Source, spool: Spool
) -> None:
    """More than `overflow`: there is no use in waiting for memory."""
    reader = source.reader(overflow=4 * KIB, spool=spool, memory=shortage.memory)
    reader.feed_data(bytes(4 * KIB + 1))
    await source.resumed()
    assert isinstance(reader.exception(), OSError)
    reader.close()


async def test_what_waits_for_memory_can_be_read(shortage: Shortage, source: Source, spool: Spool) -> None:
    reader = source.reader(spool=spool, memory=shortage.memory)
    reader.feed_data(bytes(4 * KIB))
    await shortage.attempted(1)
    task = await start(reader.readexactly(4 * KIB + 3))
    reader.retry()
    await shortage.attempted(2)
    shortage.memory.add(-(1 << 19))
    reader.retry()
    assert not source.paused()
    reader.feed_data(b"rest")
    assert await task == bytes(4 * KIB) + b"res"
    assert shortage.memory.used == (1 << 19) + 1
    reader.close()


@pytest.mark.parametrize("last_call", [BufferReader.close, BufferReader.feed_eof])
async def test_a_stream_may_end_while_it_waits_for_memory(
    last_call: Callable[[BufferReader], None], shortage: Shortage, source: Source, spool: Spool
) -> None:
    reader = source.reader(spool=spool, memory=shortage.memory)
    reader.feed_data(bytes(4 * KIB))
    await shortage.attempted(1)
    last_call(reader)
    assert not source.paused()
    reader.retry()
    await turn()
    assert shortage.attempts == 1
    if last_call is BufferReader.feed_eof:
        assert reader.getfile().read() == bytes(4 * KIB)
        reader.close()
    assert shortage.memory.used == 1 << 20


async def test_retry_has_nothing_to_do_when_nothing_is_wrong(source: Source, spool: Spool) -> None:
    reader = source.reader(spool=spool)
    reader.retry()
    reader.feed_data(PATTERN)
    reader.retry()
    await source.resumed()
    reader.retry()
    assert source.pauses == 1
    assert await reader.readexactly(len(PATTERN)) == PATTERN
    reader.close()
