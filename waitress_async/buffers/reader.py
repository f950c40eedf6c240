"""Incoming bytes as an awaitable reader: in memory while they are few, on disk when they are many.

The bytes are in up to four places, in this order:

    head <- disk <- batch <- tail  <- feed_data()
      |
      +---> read(), readline(), ...

The tail collects what is fed. When that is too much to be kept in memory it becomes a batch, which a
thread writes to a temporary file while feeding is paused: the loop never waits for the disk. The head is
what was read back: the window in which lines are looked for.

Everything runs on the loop's thread, with one exception: see `BufferReader.getfile`.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import math
from asyncio import Future, IncompleteReadError, LimitOverrunError, get_running_loop
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO, Final

from waitress_async.buffers.collected import Collected
from waitress_async.buffers.files import COPY_BYTES
from waitress_async.buffers.memory import BufferMemory
from waitress_async.buffers.spool import Spool, SpoolFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import ReadableBuffer

# When memory is short, a reader goes to disk with so many bytes; when there is none left, with any.
_SHORT_BATCH: Final = 65_536

# Times that `retry` finds neither memory nor disk before the reader gives up.
_TRIES: Final = 30


class _State(enum.Enum):
    FEEDING = "still being fed"
    ENDED = "at its end"
    FAILED = "broken: its bytes could not be stored"
    GIVEN = "given away by getfile()"
    CLOSED = "closed"


# Looked up often, and an attribute of an Enum class is a slow one.
_FEEDING, _ENDED, _FAILED, _GIVEN, _CLOSED = _State


def _append(file: SpoolFile, batch: Collected) -> None:
    with batch.view() as view:
        file.append(view)


class BufferReader:
    """The bytes of one message: fed from a protocol's callbacks, read by a coroutine.

    `overflow`: bytes kept in memory before the rest goes to a temporary file. None: all stay in memory.
    `limit`: the longest line `readline` and `readuntil` return, in bytes without the separator.
    `high_water`, `low_water`: `pause_reading()` is called when more than `high_water` bytes are held,
    `resume_reading()` when no more than `low_water` are. A read that needs more than is held resumes
    before it waits, whatever the marks. Without `high_water` nothing is paused for the reader's sake; without
    `low_water` it is a quarter of `high_water`.
    `pause_reading`, `resume_reading` are called around each write to disk too. What is fed all the same is
    kept in memory. The end of the stream and `close()` resume: each pause is followed by one resume.
    The callbacks may call `feed_data` themselves.
    `spool`: where temporary files come from; by default a `Spool()` of its own.
    `memory`: where the bytes in memory are counted. When that is short they go to disk sooner; where the
    disk has no room either, feeding is paused until `retry` finds some.

    One coroutine reads at a time; while it waits, any other read raises `RuntimeError`. Every read
    raises what `set_exception` was given, `ValueError` after `close()`, and `RuntimeError` after `getfile()`.
    A cancelled read takes nothing: its bytes are there for the next one.

    If the disk fails, the reader is broken: `exception()` is the OSError, which reads and `feed_data` raise.

    Raises `ValueError` for marks or a limit that make no sense.
    """

    __slots__ = (
        "_batch",
        "_counted",
        "_exception",
        "_file",
        "_full",
        "_given",
        "_head",
        "_held",
        "_high_water",
        "_limit",
        "_low_water",
        "_memory",
        "_overflow",
        "_pause_reading",
        "_paused",
        "_read",
        "_reading",
        "_resume_reading",
        "_spool",
        "_started",
        "_starved",
        "_state",
        "_stored",
        "_storing",
        "_tail",
        "_waiter",
        "_waiting_task",
        "_wanted",
    )

    def __init__(
        self,
        *,
        overflow: int | None = 524288,
        limit: int = 65536,
        high_water: int | None = None,
        low_water: int | None = None,
        pause_reading: Callable[[], object] | None = None,
        resume_reading: Callable[[], object] | None = None,
        spool: Spool | None = None,
        memory: BufferMemory | None = None,
    ) -> None:
        if limit <= 0:
            raise ValueError(f"limit must be positive, not {limit}")
        if (pause_reading is None) is not (resume_reading is None):
            raise ValueError("pause_reading and resume_reading go together")
        self._high_water: float = math.inf
        self._low_water = 0
        if high_water is not None:
            if pause_reading is None:
                raise ValueError("high_water needs pause_reading and resume_reading")
            self._high_water = high_water
            self._low_water = high_water // 4 if low_water is None else low_water
            if not 0 <= self._low_water <= high_water:
                raise ValueError(f"needs 0 <= low_water <= high_water, not {low_water} and {high_water}")
        elif low_water is not None:
            raise ValueError("low_water needs high_water")
        self._pause_reading = pause_reading
        self._resume_reading = resume_reading
        self._full = False  # above the high mark, and not yet down at the low one
        self._starved = 0  # tries to find room for the tail that have failed
        self._paused = False  # the callbacks' last word

        self._limit = limit
        self._overflow: float = math.inf if overflow is None else overflow
        self._spool = spool
        self._memory = memory
        self._counted = 0  # bytes of ours in `memory`
        self._held = 0  # bytes in all four places
        self._head = bytearray()
        self._given: BytesIO | None = None  # what getfile() made, if all of it was in memory
        self._file: SpoolFile | None = None
        self._read = 0  # how far the file was read back
        self._stored = 0  # how far it was written
        self._batch = Collected()
        self._storing: asyncio.Task[None] | None = None
        self._tail = Collected()
        self._started = False  # whether a read has moved bytes from where getfile() needs them

        self._state = _FEEDING
        self._exception: BaseException | None = None
        self._reading = False
        self._waiter: Future[None] | None = None
        self._waiting_task: asyncio.Task[object] | None = None  # whose read made the waiter
        self._wanted: float = 0  # bytes to be held before the waiter is worth waking

    def __repr__(self) -> str:
        paused = ", paused" if self._paused else ""
        return f"<{type(self).__name__} {self._state.value}, {self._held} bytes{paused}>"

    def __len__(self) -> int:
        """Bytes fed and not read. `getfile()` leaves the number as it is; `close()` makes it 0."""
        return self._held

    def __bool__(self) -> bool:
        """True, also when no bytes are held."""
        return True

    # The feeding side

    @property
    def paused(self) -> bool:
        """Whether `pause_reading()` was the last of the two calls."""
        return self._paused

    def expect(self, size: int) -> None:
        """Say, before anything is fed, that `size` bytes will be.

        If they belong on disk, that is asked for room now, and feeding is paused until it has answered.
        """
        if size >= self._overflow:
            self._store(size)

    def feed_data(self, data: ReadableBuffer) -> None:
        """Take the next bytes of the stream.

        Raises `RuntimeError` after `feed_eof()`, `ValueError` after `close()`, and the disk's `OSError` if an
        earlier part could not be stored; the reader should be closed then.
        """
        if self._state is not _FEEDING:
            raise self._refusal()
        before = len(self._tail)
        self._tail.append(data, to_hold=self._file is None and self._overflow < math.inf)
        size = len(self._tail) - before
        self._held += size
        self._count(size)
        self.store_if_due()
        if self._held >= self._wanted:
            self._wake()
            if self._held > self._high_water:
                self._full = True
        self._update_pause()

    def feed_eof(self) -> None:
        """Mark the end of the stream. Again is fine. Raises as `feed_data` does."""
        if self._state is _CLOSED or self._state is _FAILED:
            raise self._refusal()
        if self._state is _FEEDING:
            self._state = _ENDED
            self._wake()
            self._update_pause()

    def set_exception(self, exc: BaseException) -> None:
        """Make the read that waits, and every later one, raise `exc`. The bytes held stay."""
        self._exception = exc
        self._wake()

    def store_if_due(self) -> None:
        """Have what is held written to disk, if it is much or memory is short."""
        if self._state is _FEEDING and self._storing is None and not self._starved and self._is_due():
            self._store()

    def retry(self) -> None:
        """Look for room again, if there was neither memory nor disk. To be called once in a while.

        After 30 times in vain the reader is broken.
        """
        if self._starved and self._state is _FEEDING and self._storing is None:
            if self._is_due():
                self._store()
            else:
                self._starved = 0
            self._update_pause()

    # The reading side

    def exception(self) -> BaseException | None:
        """Return what `set_exception` was given, or what the disk said."""
        return self._exception

    @property
    def awaited_by(self) -> asyncio.Task[object] | None:
        """The task whose read waits for more to be fed, and has not been woken."""
        return None if self._waiter is None or self._waiter.done() else self._waiting_task

    def at_eof(self) -> bool:
        """Whether the stream has ended and all its bytes were read."""
        return self._state is not _FEEDING and not self._held

    async def read(self, n: int = -1) -> bytes:
        """Return at most `n` bytes, of those held when there are any; `b""` at the end of the stream.

        With a negative `n`, wait for the end and return everything. That may be more than fits in
        memory: whoever feeds sets the bound.
        """
        with self._reader():
            if n < 0:
                if self._state is _FEEDING:
                    await self._wait_for(math.inf)
                return await self._take(self._held)
            if n and not self._held and self._state is _FEEDING:
                await self._wait_for(1)
            return await self._take(min(n, self._held))

    async def readexactly(self, n: int) -> bytes:
        """Return `n` bytes.

        Raises `IncompleteReadError`, whose `partial` is all that was left, if the stream ends before
        that, and `ValueError` for a negative `n`.
        """
        if n < 0:
            raise ValueError(f"cannot read {n} bytes")
        with self._reader():
            if self._held < n and self._state is _FEEDING:
                await self._wait_for(n)
            if self._held < n:
                raise IncompleteReadError(await self._take(self._held), n)
            return await self._take(n)

    async def readline(self) -> bytes:
        r"""Return the bytes up to and with the next `\n`, or what is left at the end of the stream.

        Raises `ValueError` for a line longer than `limit`. Unlike asyncio's, this reader takes nothing
        then: `read` still gives every byte.
        """
        try:
            return await self.readuntil()
        except IncompleteReadError as error:
            return error.partial
        except LimitOverrunError as error:
            raise ValueError(str(error)) from error

    async def readuntil(self, separator: bytes = b"\n") -> bytes:
        """Return the bytes up to and with `separator`.

        Raises `IncompleteReadError`, whose `partial` is all that was left, if the stream ends before
        the separator; `LimitOverrunError` if more than `limit` bytes come before it, and takes nothing;
        `ValueError` for an empty separator.
        """
        length = len(separator)
        if not length:
            raise ValueError("the separator must be at least one byte")
        with self._reader():
            searched = 0
            while True:
                await self._pull(self._limit + length)
                found = self._head.find(separator, searched)
                if found > self._limit:
                    raise LimitOverrunError(f"the separator comes after more than {self._limit} bytes", found)
                if found >= 0:
                    return await self._take(found + length)
                # The head may end in the beginning of a separator.
                searched = max(0, len(self._head) - length + 1)
                if searched > self._limit:
                    raise LimitOverrunError(f"no separator in the first {self._limit} bytes", searched)
                if len(self._head) < self._held:
                    continue  # more was fed while the disk was waited for
                if self._state is _ENDED:
                    raise IncompleteReadError(await self._take(self._held), None)
                await self._wait_for(self._held + 1)

    def __aiter__(self) -> BufferReader:
        """Iterate over lines, as `readline` returns them, to the end of the stream."""
        return self

    async def __anext__(self) -> bytes:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    # The whole of it at once

    @property
    def file(self) -> SpoolFile | None:
        """The temporary file, if there is one."""
        return self._file

    def getfile(self) -> BinaryIO:
        """Return a binary file at position 0 that holds the whole stream, in memory or on disk.

        For a stream that has ended and that nothing was read from; raises `RuntimeError` otherwise, and
        like a read if there is an exception or the reader is closed.

        This call may write the last of the stream to disk, so it is for a thread that may wait for that.
        From then on the reader belongs to that thread, and only `close()` and `len()` are of use. Raises
        OSError, and is broken then.
        """
        if self._state is not _GIVEN:
            self._check_readable()
            if self._state is _FEEDING or self._storing is not None:
                raise RuntimeError("getfile() gives the whole stream, and it has not ended")
            if self._started:
                raise RuntimeError("getfile() gives the whole stream, and bytes were read from it")
            if self._file is None and self._held < self._overflow:
                with self._tail.view() as view:
                    self._given = BytesIO(view)
                self._tail.clear()
            else:
                self._store_here()
            self._state = _GIVEN
        if self._given is None:
            assert self._file is not None
            return self._file.getfile()
        self._given.seek(0)
        return self._given

    def _store_here(self) -> None:
        """Write the tail, on this thread."""
        try:
            if self._file is None:
                self._file = self._our_spool().open()
            with self._tail.view() as view:
                self._file.append(view)
        except OSError as error:
            self._state = _FAILED
            self._exception = error
            raise
        self._count(-len(self._tail))
        self._tail.clear()

    def close(self) -> None:
        """Drop the bytes and free the file, also one given away by `getfile()`. Twice is fine.

        A read that waits raises `ValueError`. On a thread that runs a loop the file is closed off the loop.
        """
        if self._state is _CLOSED:
            return
        self._state = _CLOSED
        self._held = 0
        self._head = bytearray()
        self._tail.clear()
        if self._given is not None:
            self._given.close()
        if self._storing is None:
            self._free()
        else:  # its end sees to the file and to the batch
            self._count(len(self._batch) - self._counted)
        self._wake()
        self._update_pause()

    # Waiting, and back-pressure

    @contextmanager
    def _reader(self) -> Iterator[None]:
        """Around a read: there is one at a time."""
        self._check_readable()
        self._reading = True
        try:
            yield
        finally:
            self._reading = False

    def _check_readable(self) -> None:
        if self._exception is not None:
            raise self._exception.with_traceback(None)  # or it would collect those of all reads
        if self._reading:
            raise RuntimeError("another coroutine is reading")
        if self._state is _GIVEN or self._state is _CLOSED:
            raise self._refusal()

    def _check_still_readable(self) -> None:
        """The same, after the read under way has waited."""
        if self._exception is not None:
            raise self._exception.with_traceback(None)
        if self._state is _CLOSED:
            raise self._refusal()

    def _refusal(self) -> BaseException:
        if self._state is _FAILED and self._exception is not None:
            return self._exception
        kind = ValueError if self._state is _CLOSED else RuntimeError
        return kind(f"the reader is {self._state.value}")

    async def _wait_for(self, wanted: float) -> None:
        """Return when `wanted` bytes are held or the stream has ended."""
        self._wanted = wanted
        # The waiter comes first: resuming may feed at once.
        self._waiter = get_running_loop().create_future()
        self._waiting_task = asyncio.current_task()
        try:
            self._full = False
            self._update_pause()
            await self._waiter
        finally:
            self._waiter = self._waiting_task = None
            self._wanted = 0
            # A cancelled read may have let in more than the marks allow.
            self._full = self._full or self._held > self._high_water
            self._update_pause()
        self._check_still_readable()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _update_pause(self) -> None:
        """Tell who feeds whether to go on, if that has changed."""
        pause = self._state is _FEEDING and (self._full or self._storing is not None or self._starved > 0)
        if pause is self._paused or self._pause_reading is None or self._resume_reading is None:
            return
        # The flag comes before the call: the callback may come back to us.
        self._paused = pause
        if pause:
            self._pause_reading()
        else:
            self._resume_reading()

    def _count(self, size: int) -> None:
        """Count `size` bytes more in memory, or less."""
        if self._memory is not None and size:
            self._counted += size
            self._memory.add(size)

    # To the disk

    def _our_spool(self) -> Spool:
        if self._spool is None:
            self._spool = Spool()
        return self._spool

    def _is_due(self) -> bool:
        """Whether the tail is too much to be kept in memory."""
        size = len(self._tail)
        if size >= (COPY_BYTES if self._file is not None else max(self._overflow, COPY_BYTES)):
            return True
        memory = self._memory if self._overflow < math.inf else None
        return memory is not None and memory.near and size >= (1 if memory.full else _SHORT_BATCH)

    def _store(self, expected: int = 0) -> None:
        """Have the tail written by a thread, and pause feeding meanwhile."""
        loop = get_running_loop()
        self._batch, self._tail = self._tail, self._batch
        self._storing = loop.create_task(self._write_batch(expected))
        self._update_pause()

    async def _write_batch(self, expected: int) -> None:
        spool = self._our_spool()
        try:
            if self._file is None:
                self._file = await spool.run(lambda: spool.open(expected))
            if self._batch:
                file, batch = self._file, self._batch
                await spool.run(partial(_append, file, batch))
        except OSError as error:
            self._batch_failed(error)
        except BaseException as error:  # most likely the end of the loop
            self._storing = None
            if self._state is _CLOSED:
                self._free()
            else:
                self._fail(OSError(errno.ECANCELED, f"a write was given up: {error!r}"))
            raise
        else:
            self._starved = 0
            self._stored += len(self._batch)
            self._count(-len(self._batch))
            self._batch.clear()
        self._storing = None
        if self._state is _CLOSED:
            self._free()
            return
        self.store_if_due()
        self._update_pause()

    def _batch_failed(self, error: OSError) -> None:
        """There was no room on the disk for the batch, or it failed."""
        if self._state is _CLOSED:
            return
        self._starved += 1
        size = len(self._batch) + len(self._tail)
        if self._stored or size > self._overflow or not self._batch or self._starved > _TRIES:
            self._fail(error)
            return
        # It was to go there only because memory is short. It waits in memory, and nothing is added to it.
        self._drop_file()
        # To a new place: the traceback of the error still has views of the batch.
        kept = Collected()
        for part in (self._batch, self._tail):
            with part.view() as view:
                kept.append(view, to_hold=True)
            part.clear()
        self._tail = kept

    def _fail(self, error: OSError) -> None:
        self._state = _FAILED
        self._exception = error
        self._wake()
        self._update_pause()

    def _free(self) -> None:
        """Give back what a closed reader still has."""
        self._batch.clear()
        self._count(-self._counted)
        self._drop_file()

    def _drop_file(self) -> None:
        if self._file is not None:
            self._our_spool().discard(self._file)
            self._file = None
            self._read = self._stored = 0

    # And back

    async def _take(self, n: int) -> bytes:
        """Remove and return the first `n` of the bytes held, and resume if that left few of them."""
        await self._pull(n)
        if n == len(self._head):
            data = bytes(self._head)
            self._head = bytearray()
        else:
            data = bytes(self._head[:n])
            del self._head[:n]
        self._held -= n
        self._count(-n)
        if self._held <= self._low_water:
            self._full = False
        self._update_pause()
        return data

    async def _pull(self, n: int) -> None:
        """Bring the first `n` of the bytes held, or all if they are fewer, to the head."""
        while (missing := min(n, self._held) - len(self._head)) > 0:
            self._check_still_readable()
            self._started = True
            if self._read < self._stored:
                await self._read_back(max(missing, COPY_BYTES))
            elif self._storing is not None:
                await asyncio.wait([self._storing])
                self._check_still_readable()
            else:
                with self._tail.view() as view:
                    self._head += view
                self._tail.clear()

    async def _read_back(self, size: int) -> None:
        file, offset = self._file, self._read
        assert file is not None
        size = min(size, self._stored - offset)
        try:
            data = await self._our_spool().run(lambda: file.read(size, offset))
            if not data:
                raise OSError(errno.EIO, "a temporary file is shorter than what was written to it")
        except OSError as error:
            self._check_still_readable()
            self._fail(error)
            raise
        self._check_still_readable()
        self._read += len(data)
        self._head += data
        self._count(len(data))
        if self._read == self._stored and self._storing is None:
            self._drop_file()
