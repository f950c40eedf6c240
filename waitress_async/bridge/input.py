"""A request body on its way from the loop to an app that reads it while it comes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from io import BufferedReader, RawIOBase
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from waitress_async.buffers import BufferMemory

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from waitress_async.bridge.wakeup import Wakeup

# Bytes held above which nothing more is read, and at which reading goes on.
_HIGH_WATERMARK: Final = 262_144
_LOW_WATERMARK: Final = 65_536

_READ_SIZE: Final = 65_536


class Input:
    """The body between the loop, which feeds, and one app thread, which reads and waits for more.

    `pause_reading(self)` and `resume_reading(self)` are called on the loop when too much is held, and when
    it is not any more; `on_first_read(self)` there, too, when the app begins to read. What comes when the
    app has ended is dropped.
    """

    __slots__ = (
        "_data",
        "_ended",
        "_error",
        "_lock",
        "_memory",
        "_more",
        "_on_first_read",
        "_pause_reading",
        "_resume_reading",
        "_waiting",
        "_wakeup",
        "is_waited_for",
        "paused",
    )

    def __init__(
        self,
        wakeup: Wakeup,
        memory: BufferMemory,
        waiting: Callable[[], AbstractContextManager[None]],
        pause_reading: Callable[[Input], object],
        resume_reading: Callable[[Input], object],
        on_first_read: Callable[[Input], object],
    ) -> None:
        """`waiting()` is entered by the thread for as long as it waits."""
        self._wakeup = wakeup
        self._memory = memory
        self._waiting = waiting
        self._pause_reading = pause_reading
        self._resume_reading = resume_reading
        self._on_first_read: Callable[[Input], object] | None = on_first_read
        self._lock = threading.Lock()
        self._more = threading.Condition(self._lock)
        self._data = bytearray()
        self.paused = False
        """Whether `pause_reading` was the last of the two calls."""
        self.is_waited_for = False
        """Whether the app waits for more."""
        self._ended = False
        self._error: BaseException | None = None

    def __len__(self) -> int:
        """Bytes held."""
        return len(self._data)

    def __bool__(self) -> bool:
        """True, also when none are."""
        return True

    # -- the loop

    def feed_data(self, data: bytes) -> None:
        """Take the next of the body."""
        with self._lock:
            if self._error is not None:
                return
            self._data += data
            self._memory.add(len(data))
            self._more.notify_all()
            pause = not self.paused and len(self._data) > _HIGH_WATERMARK
            self.paused = self.paused or pause
        if pause:
            self._pause_reading(self)

    def feed_eof(self) -> None:
        """That was all of it."""
        with self._lock:
            self._ended = True
            self._more.notify_all()

    def set_exception(self, error: BaseException) -> None:
        """Unless it is complete, no more will come: what is held is dropped, and reads raise `error`."""
        with self._lock:
            if self._error is None and not self._ended:
                self._error = error
                self._drop()
                self._more.notify_all()

    # -- the app's thread

    def getfile(self) -> BinaryIO:
        """Return the body as a file that cannot seek. Its reads raise what `set_exception` was given."""
        return cast(BinaryIO, BufferedReader(_InputFile(self), _READ_SIZE))

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill `buffer` with what there is, after a wait for some; return how many bytes, 0 at the end."""
        if (on_first_read := self._on_first_read) is not None:
            self._on_first_read = None
            self._wakeup.call(partial(on_first_read, self))
        view = memoryview(buffer).cast("B")
        with self._lock:
            ready = self._is_ready()
        if not ready:
            with self._waiting(), self._lock:
                self.is_waited_for = True
                self._more.wait_for(self._is_ready)
                self.is_waited_for = False
        with self._lock:
            if self._error is not None:
                raise self._error.with_traceback(None)  # or it would collect those of all reads
            size = min(len(view), len(self._data))
            view[:size] = self._data[:size]
            del self._data[:size]
            self._memory.add(-size)
            resume = self.paused and len(self._data) <= _LOW_WATERMARK
            if resume:
                self.paused = False
        if resume:
            self._wakeup.call(partial(self._resume_reading, self))
        return size

    def _is_ready(self) -> bool:
        return bool(self._data) or self._ended or self._error is not None

    def close(self) -> None:
        """The app has ended: what is held is dropped, and reads raise ValueError."""
        with self._lock:
            self._error = ValueError("the app that this request body was for has ended")
            self._drop()
            self._more.notify_all()
            resume, self.paused = self.paused, False
        if resume:
            self._wakeup.call(partial(self._resume_reading, self))

    def _drop(self) -> None:
        self._memory.add(-len(self._data))
        self._data.clear()


class _InputFile(RawIOBase):
    def __init__(self, source: Input) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        return self._source.readinto(buffer)
