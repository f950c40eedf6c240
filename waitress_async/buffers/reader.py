"""An awaitable reader over an `OverflowableBuffer`, with the verbs and the manners of `asyncio.StreamReader`.

Bytes pass through three places, in this order, and one that is empty is passed over:

    feed_data() -> tail -> storage -> head -> read(), readline(), ...

The tail collects what is fed, so that storage is written in batches of `COPY_BYTES` however small the
pieces are. The storage decides between memory and disk. The head is the window in which lines are looked
for. Memory is bounded by about twice `overflow` for the storage, where bytes already read linger a while,
a batch in the tail and a batch in the head, or what one read asks for if that is more.

Everything runs on the loop's thread, with one exception: see `BufferReader.getfile`.
"""

from __future__ import annotations

import enum
import math
from asyncio import Future, IncompleteReadError, LimitOverrunError, get_running_loop
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

from waitress_async.buffers.files import COPY_BYTES
from waitress_async.buffers.overflowable import OverflowableBuffer

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _State(enum.Enum):
    FEEDING = "still being fed"
    ENDED = "at its end"
    GIVEN = "given away by getfile()"
    CLOSED = "closed"


class BufferReader:
    """The bytes of one message: fed from a protocol's callbacks, read by a coroutine.

    `overflow`: bytes kept in memory before the rest goes to a temporary file.
    `limit`: the longest line `readline` and `readuntil` return, in bytes without the separator.
    `high_water`, `low_water`: `pause_reading()` is called when more than `high_water` bytes are held,
    `resume_reading()` when no more than `low_water` are. A read that needs more than is held resumes
    before it waits, whatever the marks, and nothing is paused until it has what it needs. The end of the
    stream and `close()` resume too: each pause is followed by one resume. The callbacks may call
    `feed_data` themselves. Without `high_water` there is no back-pressure; without `low_water` it is a
    quarter of `high_water`.

    One coroutine reads at a time; while it waits, any other read raises `RuntimeError`. Every read
    raises what `set_exception` was given, `ValueError` after `close()`, and `RuntimeError` after `getfile()`.
    A cancelled read takes nothing: its bytes are there for the next one.

    Raises `ValueError` for marks or a limit that make no sense.
    """

    __slots__ = (
        "_exception",
        "_head",
        "_held",
        "_high_water",
        "_limit",
        "_low_water",
        "_pause_reading",
        "_paused",
        "_resume_reading",
        "_spent",
        "_started",
        "_state",
        "_storage",
        "_tail",
        "_waiter",
        "_wanted",
    )

    def __init__(
        self,
        *,
        overflow: int = 524288,
        limit: int = 65536,
        high_water: int | None = None,
        low_water: int | None = None,
        pause_reading: Callable[[], object] | None = None,
        resume_reading: Callable[[], object] | None = None,
    ) -> None:
        if limit <= 0:
            raise ValueError(f"limit must be positive, not {limit}")
        self._high_water: float = math.inf
        self._low_water = 0
        if high_water is not None:
            if pause_reading is None or resume_reading is None:
                raise ValueError("high_water needs pause_reading and resume_reading")
            self._pause_reading = pause_reading
            self._resume_reading = resume_reading
            self._high_water = high_water
            self._low_water = high_water // 4 if low_water is None else low_water
            if not 0 <= self._low_water <= high_water:
                raise ValueError(f"needs 0 <= low_water <= high_water, not {low_water} and {high_water}")
        elif low_water is not None:
            raise ValueError("low_water needs high_water")
        self._paused = False

        self._limit = limit
        self._storage = OverflowableBuffer(overflow)
        self._head = bytearray()
        self._tail = bytearray()
        self._held = 0  # bytes in all three places
        self._spent = 0  # bytes read from the storage that still take room there
        self._started = False  # whether a read has moved bytes from where getfile() needs them

        self._state = _State.FEEDING
        self._exception: BaseException | None = None
        self._waiter: Future[None] | None = None
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

    def feed_data(self, data: ReadableBuffer) -> None:
        """Take the next bytes of the stream.

        Raises `RuntimeError` after `feed_eof()`, `ValueError` after `close()`, and `OSError` if the disk
        does not take a batch; the stream is broken then, and the reader should be closed.
        """
        if self._state is not _State.FEEDING:
            raise self._refusal()
        before = len(self._tail)
        self._tail += data
        self._held += len(self._tail) - before
        if len(self._tail) >= COPY_BYTES:
            self._write_batch()
        if self._held >= self._wanted:
            self._wake()
            self._pause_if_full()

    def feed_eof(self) -> None:
        """Mark the end of the stream. Again is fine. Raises `ValueError` after `close()`."""
        if self._state is _State.CLOSED:
            raise self._refusal()
        if self._state is _State.FEEDING:
            self._state = _State.ENDED
            self._wake()
            self._resume_if_paused()

    def set_exception(self, exc: BaseException) -> None:
        """Make the read that waits, and every later one, raise `exc`. The bytes held stay."""
        self._exception = exc
        self._wake()

    # The reading side

    def exception(self) -> BaseException | None:
        """Return what `set_exception` was given."""
        return self._exception

    def at_eof(self) -> bool:
        """Whether the stream has ended and all its bytes were read."""
        return self._state is not _State.FEEDING and not self._held

    async def read(self, n: int = -1) -> bytes:
        """Return at most `n` bytes, of those held when there are any; `b""` at the end of the stream.

        With a negative `n`, wait for the end and return everything. That may be more than fits in
        memory: whoever feeds sets the bound.
        """
        self._check_readable()
        if n < 0:
            if self._state is _State.FEEDING:
                await self._wait_for(math.inf)
            return self._take(self._held)
        if n and not self._held and self._state is _State.FEEDING:
            await self._wait_for(1)
        return self._take(min(n, self._held))

    async def readexactly(self, n: int) -> bytes:
        """Return `n` bytes.

        Raises `IncompleteReadError`, whose `partial` is all that was left, if the stream ends before
        that, and `ValueError` for a negative `n`.
        """
        if n < 0:
            raise ValueError(f"cannot read {n} bytes")
        self._check_readable()
        if self._held < n and self._state is _State.FEEDING:
            await self._wait_for(n)
        if self._held < n:
            raise IncompleteReadError(self._take(self._held), n)
        return self._take(n)

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
        self._check_readable()
        searched = 0
        while True:
            self._pull(self._limit + length)
            found = self._head.find(separator, searched)
            if found > self._limit:
                raise LimitOverrunError(f"the separator comes after more than {self._limit} bytes", found)
            if found >= 0:
                return self._take(found + length)
            # The head may end in the beginning of a separator.
            searched = max(0, len(self._head) - length + 1)
            if searched > self._limit:
                raise LimitOverrunError(f"no separator in the first {self._limit} bytes", searched)
            if self._state is _State.ENDED:
                raise IncompleteReadError(self._take(self._held), None)
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

    def getfile(self) -> BinaryIO:
        """Return a binary file at position 0 that holds the whole stream, in memory or on disk.

        For a stream that has ended and that nothing was read from; raises `RuntimeError` otherwise, and
        like a read if there is an exception or the reader is closed.

        This call may write the last batch, so it may be made on a thread that is allowed to touch the
        disk. From then on the reader belongs to that thread, and only `close()` and `len()` are of use.
        """
        if self._state is not _State.GIVEN:
            self._check_readable()
            if self._state is _State.FEEDING:
                raise RuntimeError("getfile() gives the whole stream, and it has not ended")
            if self._started:
                raise RuntimeError("getfile() gives the whole stream, and bytes were read from it")
            self._write_batch()
            self._state = _State.GIVEN
        file = self._storage.getfile()
        file.seek(0)
        return file

    def close(self) -> None:
        """Drop the bytes and free the file, also one given away by `getfile()`. Twice is fine.

        A read that waits raises `ValueError`.
        """
        if self._state is _State.CLOSED:
            return
        self._state = _State.CLOSED
        self._held = 0
        self._head.clear()
        self._tail.clear()
        self._storage.close()
        self._wake()
        self._resume_if_paused()

    # Waiting, and back-pressure

    def _check_readable(self) -> None:
        if self._exception is not None:
            raise self._exception
        if self._waiter is not None:
            raise RuntimeError("another coroutine is reading")
        if self._state is _State.GIVEN or self._state is _State.CLOSED:
            raise self._refusal()

    def _refusal(self) -> Exception:
        kind = ValueError if self._state is _State.CLOSED else RuntimeError
        return kind(f"the reader is {self._state.value}")

    async def _wait_for(self, wanted: float) -> None:
        """Return when `wanted` bytes are held or the stream has ended."""
        self._wanted = wanted
        # The waiter comes first: resuming may feed at once.
        self._waiter = get_running_loop().create_future()
        try:
            self._resume_if_paused()
            await self._waiter
        finally:
            self._waiter = None
            self._wanted = 0
            # A cancelled read may have let in more than the marks allow.
            self._pause_if_full()
        self._check_readable()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _pause_if_full(self) -> None:
        if self._held <= self._high_water or self._paused or self._state is not _State.FEEDING:
            return
        # The flag comes before the call, here and in resuming: the callback may come back to us.
        self._paused = True
        self._pause_reading()

    def _resume_if_paused(self) -> None:
        if not self._paused:
            return
        self._paused = False
        self._resume_reading()

    # Moving bytes

    def _write_batch(self) -> None:
        """Move the tail to the storage: the only place where feeding may touch the disk."""
        if self._tail:
            self._storage.append(self._tail)
            self._tail.clear()

    def _take(self, n: int) -> bytes:
        """Remove and return the first `n` of the bytes held, and resume if that left few of them."""
        self._pull(n)
        if n == len(self._head):
            data = bytes(self._head)
            self._head.clear()
        else:
            data = bytes(self._head[:n])
            del self._head[:n]
        self._held -= n
        if self._held <= self._low_water:
            self._resume_if_paused()
        return data

    def _pull(self, n: int) -> None:
        """Bring the first `n` of the bytes held, or all if they are fewer, to the head."""
        missing = min(n, self._held) - len(self._head)
        if missing <= 0:
            return
        self._started = True
        if self._storage:
            chunk = self._storage.get(max(missing, COPY_BYTES), skip=True)
            missing -= len(chunk)
            self._head += chunk
            self._spent += len(chunk)
            self._prune_if_cheap()
        if missing <= 0:
            return
        if self._head:
            self._head += self._tail
            self._tail.clear()
        else:
            self._head, self._tail = self._tail, self._head

    def _prune_if_cheap(self) -> None:
        """Give back the room of bytes already read, at the price of one copied byte, at most, for each.

        No more than fits in memory is copied at a time: a stream that lies on disk is left there until
        the end of it is near, since copying it would hold up the loop.
        """
        left = len(self._storage)
        if not left or (left < self._storage.overflow and self._spent >= max(left, COPY_BYTES)):
            self._storage.prune()
            self._spent = 0
