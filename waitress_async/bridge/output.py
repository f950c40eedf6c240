"""A response on its way from the app's thread to the loop, with a high and a low watermark."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from waitress_async.errors import ClientDisconnected

if TYPE_CHECKING:
    from waitress_async.bridge.wakeup import Wakeup
    from waitress_async.http import ResponseHead

# Small chunks that wait are joined up to this size, in bytes, so that a watermark's worth of them is
# not many times that in objects.
_JOIN_CHUNKS: Final = 8_192


class Output:
    """The body's chunks between one pool thread, which puts, and the loop, which takes.

    A response that is finished before any of it was announced crosses in one step: one wake-up tells
    of head and body. The lock guards what both sides touch, and is held for a few statements only.
    The thread waits in `write` above the high watermark, until the loop has taken the output down to
    the low one or has closed it.
    """

    __slots__ = (
        "_announced",
        "_chunks",
        "_closed",
        "_drained",
        "_finished",
        "_high",
        "_lock",
        "_on_ready",
        "_size",
        "_wakeup",
        "aborted",
        "head",
        "length",
    )

    def __init__(self, wakeup: Wakeup, on_ready: Callable[[], object], high_watermark: int) -> None:
        """`on_ready` is called on the loop when there is something to take. `high_watermark` is in
        bytes; the low one is half of it."""
        self.head: ResponseHead | None = None
        self.length: int | None = None  # of the body, where it is known and the head does not say it
        self.aborted = False  # what was written is all there is, and is not the whole
        self._wakeup = wakeup
        self._on_ready = on_ready
        self._high = high_watermark
        self._lock = threading.Lock()
        self._drained: threading.Condition | None = None  # made when a thread has to wait
        self._chunks: list[bytes] = []
        self._size = 0
        self._announced = False  # the loop has been told of something that it has not taken
        self._finished = False
        self._closed = False

    # -- the app's thread

    def begin(self, head: ResponseHead, length: int | None) -> None:
        """Set the head. It crosses with the first of the body."""
        self.head = head
        self.length = length

    def write(self, data: bytes) -> None:
        """Hand over some of the body; wait while too much is not yet taken. Raises ClientDisconnected."""
        with self._lock:
            if self._closed:
                raise ClientDisconnected("the client is gone")
            chunks = self._chunks
            if chunks and len(chunks[-1]) + len(data) <= _JOIN_CHUNKS:
                chunks[-1] += data
            else:
                chunks.append(data)
            self._size += len(data)
            self._announce()
            if self._size > self._high:
                self._wait_drained()

    def _announce(self) -> None:
        if not self._announced:
            self._announced = True
            self._wakeup.call(self._on_ready)

    def _wait_drained(self) -> None:
        if self._drained is None:
            self._drained = threading.Condition(self._lock)
        self._drained.wait_for(lambda: self._closed or self._size <= self._high // 2)
        if self._closed:
            raise ClientDisconnected("the client is gone")

    def finish(self, data: bytes) -> None:
        """Hand over the last of the body. Never waits and never raises: it is all there is."""
        with self._lock:
            if data:
                self._chunks.append(data)
                self._size += len(data)
            self._finished = True
            self._announce()

    def abort(self) -> None:
        """Nothing more will come, and what came is not the whole."""
        self.aborted = True
        self.finish(b"")

    def is_closed(self) -> bool:
        """Whether the client is known to be gone. Any thread."""
        return self._closed

    # -- the loop

    def take(self, limit: int) -> tuple[list[bytes], bool]:
        """Take chunks of about `limit` bytes, whole ones, and whether they are the last.

        None at all and not the last: `on_ready` is called when there is more.
        """
        with self._lock:
            taken = self._chunks
            if self._size <= limit:
                self._chunks = []
                self._size = 0
            else:
                taken = self._first(limit)
            if not self._chunks:
                self._announced = False
            if self._drained is not None and self._size <= self._high // 2:
                self._drained.notify_all()
            return taken, self._finished and not self._chunks

    def _first(self, limit: int) -> list[bytes]:
        """Remove and return the first chunks, of `limit` bytes or a little more."""
        size = count = 0
        while size < limit:
            size += len(self._chunks[count])
            count += 1
        taken = self._chunks[:count]
        del self._chunks[:count]
        self._size -= size
        return taken

    def close(self) -> None:
        """Nobody will take any more: drop what is held, let a waiting thread go, refuse what is written."""
        with self._lock:
            self._closed = True
            self._chunks.clear()
            self._size = 0
            if self._drained is not None:
                self._drained.notify_all()
