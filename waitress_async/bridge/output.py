"""A response on its way from the app's thread to the loop: in memory, then on disk, then the app waits."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterable, Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from waitress_async.bridge.async_body import AsyncBodies, AsyncBody
from waitress_async.bridge.ring import Ring
from waitress_async.buffers import BufferMemory, FileRegion, SharedFile, Spool
from waitress_async.errors import ClientDisconnected, ResponseNotStored, SpoolFull

if TYPE_CHECKING:
    from waitress_async.bridge.input import Input
    from waitress_async.bridge.wakeup import Wakeup
    from waitress_async.http import ResponseHead

Piece = bytes | memoryview | FileRegion

# Small chunks that wait are joined, so many at a time, so that a megabyte of them is not many times that
# in objects. Sizes in bytes.
_SMALL_CHUNK: Final = 1_024
_JOIN_CHUNKS: Final = 64

# Of what is on disk, taken at a time: room is made for the app in such steps.
_REGION: Final = 1_048_576

# Early hints that may wait for the client, in bytes.
_HINTS: Final = 65_536

# A whole response up to this size is not worth counting, nor one up to the other worth storing when
# memory is short.
_UNCOUNTED: Final = 4_096
_SHORT_MEMORY: Final = 65_536


@dataclass(frozen=True, slots=True)
class OutputStore:
    """Where the outputs of one server may keep their bytes, and who is told that a thread has to wait."""

    overflow: int  # bytes in memory, of one output
    high_watermark: int  # bytes of one output in all; the low watermark is half of it
    memory: BufferMemory
    spool: Spool
    waiting: Callable[[], AbstractContextManager[None]]  # entered by a thread for as long as it waits
    promise: Callable[[Callable[[], object]], Callable[[], object]]  # see `Pool.promise`
    tell: Callable[[Callable[[], object]], object]  # has a callback of an app called; on the loop
    async_bodies: AsyncBodies


class Output:
    """The body between one app thread, which puts, and the loop, which takes.

    Its bytes are in up to three places, in this order: chunks in memory; a ring on disk of
    `high_watermark` bytes, which the app's thread writes and which is sent by position; and what came with
    the end.

    A response that is finished before any of it was announced crosses in one step: one wake-up tells
    of head and body. The lock guards what both sides touch, and is held for a few statements only, never
    during a wait for the disk.
    """

    __slots__ = (
        "_announced",
        "_async_body",
        "_async_rest",
        "_chunks",
        "_closed",
        "_counted",
        "_drained",
        "_finished",
        "_has_region",
        "_last",
        "_lock",
        "_on_loss",
        "_on_ready",
        "_revoked",
        "_ring",
        "_sending",
        "_size",
        "_small",
        "_started",
        "_store",
        "_wake_at",
        "_wakeup",
        "_writing",
        "aborted",
        "answer_body",
        "goes_on",
        "head",
        "hints",
        "length",
        "overflowed",
        "request_body",
    )

    def __init__(self, wakeup: Wakeup, on_ready: Callable[[], object], store: OutputStore) -> None:
        """`on_ready` is called on the loop when there is something to take."""
        self.head: ResponseHead | None = None
        self.length: int | None = None  # of the body, where it is known and the head does not say it
        self.hints = b""  # whole 103 (Early Hints) responses, which come before the head
        self.aborted = False  # what was written is all there is, and is not the whole
        self.overflowed = False  # some of it went to disk
        self.request_body: Input | None = None  # which an async body may read, and closes at its end
        self.goes_on = False  # it may be long before the next of the body comes, and the head need not wait
        self._wakeup = wakeup
        self._on_ready = on_ready
        self._store = store
        self._lock = threading.Lock()
        self._chunks: list[Piece] = []
        self._size = 0  # bytes in chunks
        self._small = 0  # chunks at their end that are small
        self._counted = 0  # bytes of ours in `store.memory`
        self._last: Sequence[Piece] = ()  # what comes after the ring
        self._has_region = False  # in the chunks or after the ring
        self._sending: FileRegion | None = None  # that one, taken and not yet reported as sent
        self._ring: Ring | None = None  # made with the first use, and so are the next two
        self._writing: threading.Lock | None = None  # held while the ring is written
        self._drained: threading.Condition | None = None
        self._wake_at = -1  # unsent bytes at which a thread that waits goes on
        self._announced = False  # the loop has been told of something that it has not taken
        self._finished = False
        self._closed = False
        self.answer_body: bytes | None = None  # the whole body, if it came in one step
        self._async_body: AsyncBody | None = None  # where the rest comes from
        self._async_rest: AsyncBody | None = None  # the same, once nothing else is left to take
        self._on_loss: list[Callable[[], object]] | None = None  # for when the client leaves
        self._started = False  # a thread is about to call the app, or has
        self._revoked = False  # none will

    # -- the app's thread

    def start(self) -> bool:
        """A thread is about to call the app for it, so it cannot be revoked. False if it was before."""
        with self._lock:
            self._started = not self._revoked
            return self._started

    def hint(self, response: bytes) -> None:
        """Hand over a 103 (Early Hints) response, for before the head. Raises ValueError for too many bytes
        that have not been taken."""
        with self._lock:
            if self._closed or self.head is not None:
                return
            if len(self.hints) + len(response) > _HINTS:
                raise ValueError(f"more than {_HINTS} bytes of early hints wait to be sent")
            self.hints += response
            self._announce()

    def begin(self, head: ResponseHead, length: int | None) -> None:
        """Set the head. It crosses with the first of the body."""
        self.head = head
        self.length = length

    def write(self, data: bytes) -> None:
        """Hand over some of the body; wait while too much is not yet sent.

        Raises ClientDisconnected, and ResponseNotStored if the disk fails; the response is aborted then.
        """
        with self._lock:
            self._check_open()
            if self._ring is None or not self._ring.unsent:
                if self._fits(len(data)):
                    self._append(data)
                    self._announce()
                    return
                self._make_ring()
        try:
            self._write_to_disk(data)
        except ClientDisconnected:
            raise
        except OSError as error:
            self.abort()
            raise ResponseNotStored(str(error)) from error

    def _make_ring(self) -> None:
        if self._ring is None:
            self._ring = Ring(self._store.spool, self._store.high_watermark)
            self._writing = threading.Lock()
            self._drained = threading.Condition(self._lock)

    def _check_open(self) -> None:
        if self._closed:
            raise ClientDisconnected("the client is gone")
        if self._finished:
            raise ClientDisconnected("the response has ended")

    def _fits(self, size: int) -> bool:
        """Whether memory is the place for `size` bytes more. A chunk alone is there already, in the app."""
        store = self._store
        if store.memory.near:
            return self._size + size <= min(store.overflow, _SHORT_MEMORY)
        return self._size + size <= store.overflow or (not self._size and size <= store.high_watermark)

    def _append(self, data: bytes) -> None:
        self._chunks.append(data)
        self._count(len(data))
        self._size += len(data)
        if len(data) > _SMALL_CHUNK:
            self._small = 0
        else:
            self._small += 1
            if self._small == _JOIN_CHUNKS:
                self._small = 0
                self._chunks[-_JOIN_CHUNKS:] = [b"".join(self._chunks[-_JOIN_CHUNKS:])]  # type: ignore[arg-type]

    def _count(self, size: int) -> None:
        self._counted += size
        self._store.memory.add(size)

    def _announce(self) -> None:
        if not self._announced:
            self._announced = True
            self._wakeup.call(self._on_ready)

    def _write_to_disk(self, data: bytes) -> None:
        """Put `data` behind all that is there, on disk, as room appears. Raises OSError."""
        assert self._ring is not None
        assert self._writing is not None
        view = memoryview(data)
        with self._writing:  # an app may have threads of its own
            while view:
                part = view[: self._wait_for_room()]
                try:
                    self._ring.write(part)
                except SpoolFull:
                    self._write_without_disk(bytes(view))
                    return
                view = view[len(part) :]
                self.overflowed = True
                with self._lock:
                    self._check_open()
                    self._ring.advance(len(part))
                    self._announce()

    def _write_without_disk(self, data: bytes) -> None:
        """There is no room on disk: keep `data` in memory, when nothing else is there."""
        self._wait_until(0)
        with self._lock:
            self._check_open()
            self._append(data)
            self._announce()

    def _wait_for_room(self) -> int:
        """How much may be added, at least one byte, after a wait if need be. Raises ClientDisconnected."""
        high = self._store.high_watermark
        with self._lock:
            self._check_open()
            room = high - self._unsent()
        if room <= 0:
            self._wait_until(high // 2)
            with self._lock:
                room = high - self._unsent()
        return room

    def _unsent(self) -> int:
        return self._size + (self._ring.unsent if self._ring is not None else 0)

    def _wait_until(self, unsent: int) -> None:
        """Wait until no more than that is left. Raises ClientDisconnected."""
        assert self._drained is not None
        with self._store.waiting(), self._lock:
            self._wake_at = unsent  # nobody else waits: whoever does has `_writing`
            self._drained.wait_for(lambda: self._closed or self._finished or self._unsent() <= unsent)
            self._wake_at = -1
            self._check_open()

    def answer(self, head: ResponseHead, body: bytes) -> None:
        """Hand over a whole response, in place of `begin` and `finish`: a body that is not worth counting."""
        self.head = head
        self.length = len(body)
        with self._lock:
            if not self._closed:
                self.answer_body = body
            self._finished = True
            self._on_loss = None
            announced, self._announced = self._announced, True
        if not announced:
            self._wakeup.call(self._on_ready)

    def finish(self, chunks: Sequence[bytes]) -> None:
        """Hand over the last of the body: it is all there is.

        Only while memory is full, and there is more of it than the disk may take, it waits as `write` does,
        and may raise ResponseNotStored.
        """
        size = len(chunks[0]) if len(chunks) == 1 else sum(map(len, chunks))
        if size > _SHORT_MEMORY and self._store.memory.near:
            if self._store.memory.full and _SHORT_MEMORY <= self._store.high_watermark < size:
                chunks = self._write_all(chunks)
            else:
                chunks = self._store_some(chunks)
            size = sum(map(len, chunks))
        self._finish(chunks, size, has_region=False)

    def finish_file(self, descriptor: int, offset: int, size: int, close: Callable[[], object]) -> None:
        """Hand over `size` bytes of a file, from `offset` on, as the last of the body.

        `close()` is called once by one of the pool's threads, when they have been sent or will not be. The
        descriptor is duplicated: what the app does with its own cannot put another file under the number.
        """
        duplicate = os.dup(descriptor)

        def close_both() -> None:
            os.close(duplicate)
            close()

        file = SharedFile(duplicate, self._store.promise(close_both))
        self._finish((FileRegion(file, offset, size),), 0, has_region=True)

    def can_go_on(self) -> bool:
        """Whether `finish_async` may be called, once."""
        return self._store.async_bodies.reserve()

    def finish_async(self, iterable: AsyncIterable[bytes], context: Context, path: str) -> None:
        """Hand over an async iterable: what it yields, in `context` on the loop, is the rest of the body.

        `path` is for the log.
        """
        body = self._store.async_bodies.make(iterable, context, path, self.request_body, self._on_ready)
        with self._lock:
            self._async_body = body
            self.goes_on = True
            closed = self._closed
            if not closed:
                self._announce()
            ring = self._ring if self._ring is not None and not self._ring.unsent else None
        if closed:
            self._wakeup.call(body.close)
        elif ring is not None:
            ring.close()

    def discard_async(self, iterable: AsyncIterable[bytes], context: Context, path: str) -> None:
        """Close an async iterable that is not wanted. `path` is for the log."""
        self._store.async_bodies.discard(iterable, context, path)

    def _finish(self, chunks: Sequence[Piece], size: int, *, has_region: bool) -> None:
        ring = None
        with self._lock:
            if self._closed or self._finished:
                unwanted = chunks
            else:
                unwanted = ()
                if size > _UNCOUNTED:
                    self._count(size)
                self._has_region = has_region
                if self._ring is None or not self._ring.untaken:
                    self._chunks.extend(chunks)
                    self._size += size
                else:
                    self._last = chunks
                if self._ring is not None and not self._ring.unsent:
                    ring = self._ring
            self._finished = True
            self._on_loss = None
            if self._drained is not None:
                self._drained.notify_all()
            self._announce()
        if unwanted:
            _close_regions(unwanted)
        if ring is not None:
            ring.close()

    def _write_all(self, chunks: Sequence[bytes]) -> Sequence[bytes]:
        """Write `chunks` as they would be if they came one by one. Returns nothing, for nothing is left."""
        try:
            for chunk in chunks:
                self.write(chunk)
        except ClientDisconnected:
            pass  # nobody wants the rest
        return ()

    def _store_some(self, chunks: Sequence[bytes]) -> Sequence[bytes]:
        """Memory is short: put on disk what can go there without a wait. Returns the rest."""
        for index, chunk in enumerate(chunks):
            if not self._store_now(chunk):
                return chunks[index:]
        return ()

    def _store_now(self, data: bytes) -> bool:
        """Put `data` behind all that is there, on disk, if it fits. Returns whether all of it is there."""
        with self._lock:
            if self._closed or self._finished:
                return False
            self._make_ring()
        assert self._ring is not None
        assert self._writing is not None
        if not self._writing.acquire(blocking=False):  # a thread of the app's own writes to it
            return False
        try:
            with self._lock:
                room = self._store.high_watermark - self._unsent()
            if len(data) > room:
                return False
            self._ring.write(memoryview(data))
            self.overflowed = True
            with self._lock:
                self._ring.advance(len(data))
        except OSError:
            return False
        finally:
            self._writing.release()
        return True

    def on_disconnect(self, callback: Callable[[], object]) -> None:
        """Have `callback()` called once if the client leaves before the response is complete.

        In a thread that is not the app's, in a copy of the caller's context; at once if the client has left
        already. Any thread.
        """
        self.on_loss(partial(self._store.tell, partial(copy_context().run, callback)))

    def on_loss(self, call: Callable[[], object]) -> None:
        """Have `call()` made once, on the loop, if the client leaves before the response is complete, or has.

        Any thread.
        """
        with self._lock:
            if self._finished:
                return
            if not self._closed:
                if self._on_loss is None:
                    self._on_loss = []
                self._on_loss.append(call)
                return
        self._wakeup.call(call)

    def forget(self, call: Callable[[], object]) -> None:
        """Have `call()` not made any more, if it has not been. Any thread."""
        with self._lock:
            if self._on_loss is not None:
                self._on_loss = [one for one in self._on_loss if one != call]

    def abort(self) -> None:
        """Nothing more will come, and what came is not the whole."""
        self.aborted = True
        self._finish((), 0, has_region=False)

    def is_closed(self) -> bool:
        """Whether the client is known to be gone. Any thread."""
        return self._closed

    # -- the loop

    @property
    def is_started(self) -> bool:
        """Whether a thread is about to call the app, or has."""
        return self._started

    def revoke(self) -> bool:
        """Have the app not called for it, if that has not begun. Returns whether that is so."""
        with self._lock:
            if self._started:
                return False
            self._revoked = self._closed = True
            return True

    def take(self, limit: int) -> tuple[list[Piece], bool]:
        """Take the next of the body, at most `limit` bytes of it, and whether it is the last.

        None at all and not the last: `on_ready` is called when there is more. A piece of a file comes
        alone, may be larger, and is reported to `sent` when it is.
        """
        body, rest = self.answer_body, self._async_rest
        if body is not None:  # no thread has anything to do with either of them any more
            self.answer_body = None
            return [body], True
        if rest is not None:
            items, last = rest.take(limit)
            if last:
                self._async_ended(rest)
            return items, last
        with self._lock:
            taken = self._chunks
            ring = self._ring
            if ring is not None and not taken:
                if ring.untaken:
                    return [ring.take(_REGION)], not ring.untaken and self._finished and not self._last
                if self._last:
                    self._chunks = taken = list(self._last)
                    self._size = _size_in_memory(taken)
                    self._last = ()
            if self._size <= limit and not self._has_region:
                self._chunks = []
                self._release(self._size)
            else:
                taken = self._first(limit)
            more = bool(self._chunks) or (ring is not None and bool(ring.untaken or self._last))
            self._announced = more
            if self._wake_at >= 0:
                self._wake_if_drained()
            if taken or more:
                return taken, self._finished and not more
            if self.answer_body is None and self._async_body is None:
                return taken, self._finished
            self._async_rest = self._async_body
        return self.take(limit)  # of what has come since it was looked for without the lock

    def _async_ended(self, body: AsyncBody) -> None:
        self.aborted = body.aborted
        with self._lock:
            self._finished = True
            self._on_loss = None

    def take_hints(self) -> bytes:
        """The hints that were not taken yet."""
        with self._lock:
            hints, self.hints = self.hints, b""
            return hints

    def _first(self, limit: int) -> list[Piece]:
        """Remove and return the first pieces, of no more than `limit` bytes, or a region alone."""
        size = count = 0
        for piece in self._chunks:
            if isinstance(piece, FileRegion) or size + len(piece) > limit:
                break
            size += len(piece)
            count += 1
        taken = self._chunks[:count]
        if count:
            del self._chunks[:count]
        elif not self._chunks:  # the region has been taken
            return taken
        elif isinstance(first := self._chunks[0], FileRegion):
            del self._chunks[0]
            self._sending = first
            return [first]
        else:  # a large chunk is taken in parts, none of which is a copy
            view = memoryview(first)
            taken = [view[:limit]]
            self._chunks[0] = view[limit:]
            size = limit
        self._small = min(self._small, len(self._chunks))
        self._release(size)
        return taken

    def _release(self, size: int) -> None:
        """`size` bytes were taken from memory."""
        self._size -= size
        if self._counted:
            counted = min(size, self._counted)
            self._counted -= counted
            self._store.memory.add(-counted)

    def _wake_if_drained(self) -> None:
        if self._unsent() <= self._wake_at:
            assert self._drained is not None
            self._drained.notify_all()

    def sent(self, region: FileRegion) -> None:
        """A piece of a file has been sent."""
        if region is self._sending:
            self._sending = None
            region.file.close()
            return
        with self._lock:
            ring = self._ring
            assert ring is not None
            ring.sent(region.size)
            if self._wake_at >= 0:
                self._wake_if_drained()
            over = (self._finished or self._async_body is not None) and not ring.unsent
        if over:
            ring.close()

    def close(self) -> None:
        """Nobody will take any more: drop what is held, let a waiting thread go, refuse what is written."""
        with self._lock:
            self._closed = True
            unwanted = [*self._chunks, *self._last]
            if self._sending is not None:
                unwanted.append(self._sending)
                self._sending = None
            self._chunks = []
            self._last = ()
            self.answer_body = None
            self._size = 0
            self._store.memory.add(-self._counted)
            self._counted = 0
            if self._drained is not None:
                self._drained.notify_all()
            ring = self._ring
            async_body = self._async_body
            self._async_body = self._async_rest = None
            calls, self._on_loss = self._on_loss, None
        _close_regions(unwanted)
        if ring is not None:
            ring.close()
        if async_body is not None:
            async_body.close()
        for call in calls or ():
            call()


def _size_in_memory(pieces: Sequence[Piece]) -> int:
    return sum(len(piece) for piece in pieces if not isinstance(piece, FileRegion))


def _close_regions(pieces: Sequence[Piece]) -> None:
    for piece in pieces:
        if isinstance(piece, FileRegion):
            piece.file.close()
