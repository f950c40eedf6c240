"""A request body on its way from the loop to an app that reads it while it comes."""

from __future__ import annotations

import asyncio
import enum
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from io import BufferedReader, RawIOBase
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from waitress_async.bridge.request_body import RequestBody
from waitress_async.buffers import BufferMemory, BufferReader

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from waitress_async.bridge.wakeup import Wakeup

# Bytes held above which nothing more is read, and at which reading goes on.
_HIGH_WATERMARK: Final = 262_144
_LOW_WATERMARK: Final = 65_536

_READ_SIZE: Final = 65_536


class _Side(enum.Enum):
    """Where a body is read."""

    THREAD = "wsgi.input"
    LOOP = "waitress_async.body"


# Looked up often, and an attribute of an Enum class is a slow one.
_THREAD, _LOOP = _Side


class Input:
    """The body between the loop, which feeds, and the app, which reads and waits for more.

    The app reads in one thread, as a file, or on the loop, as an awaitable reader: whoever reads first has
    all of it, and the other gets a RuntimeError. From the loop's first read on, what is held is in a
    `BufferReader`, which belongs to the loop.

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
        "_reader",
        "_resume_reading",
        "_side",
        "_thread_waits",
        "_waiting",
        "_wakeup",
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
        self._on_first_read = on_first_read
        self._lock = threading.Lock()
        self._more = threading.Condition(self._lock)
        self._side: _Side | None = None  # that reads it
        self._data = bytearray()
        self._reader: BufferReader | None = None  # the loop's, from its first read on
        self._thread_waits = False
        self.paused = False
        """Whether `pause_reading` was the last of the two calls."""
        self._ended = False
        self._error: BaseException | None = None

    def __len__(self) -> int:
        """Bytes held."""
        return len(self._data) if self._reader is None else len(self._reader)

    def __bool__(self) -> bool:
        """True, also when none are."""
        return True

    # -- the loop

    def feed_data(self, data: bytes) -> None:
        """Take the next of the body."""
        if self._reader is not None:
            self._reader.feed_data(data)
            return
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
        if self._reader is not None:
            self._reader.feed_eof()

    def set_exception(self, error: BaseException) -> None:
        """Unless it is complete, no more will come: what is held is dropped, and reads raise `error`."""
        with self._lock:
            if self._error is None and not self._ended:
                self._error = error
                self._drop()
                self._more.notify_all()
        self._end_reader()

    @property
    def is_waited_for(self) -> bool:
        """Whether the app waits for more."""
        return self._thread_waits or (self._reader is not None and self._reader.awaited_by is not None)

    def is_awaited_by(self, task: asyncio.Task[None]) -> bool:
        """Whether `task` itself waits for more, so that `set_exception` tells it."""
        return self._reader is not None and self._reader.awaited_by is task

    # -- the app on the loop

    def getreader(self) -> RequestBody:
        """Return the body as an awaitable reader. Any thread; its reads are for the loop's.

        They raise what `set_exception` was given.
        """
        return RequestBody(self._claimed_reader)

    def _claimed_reader(self) -> BufferReader:
        """What is read on the loop. Raises what a read is to raise."""
        if asyncio.get_running_loop() is not self._wakeup.loop:
            raise RuntimeError(
                "waitress_async.body is read on the server's loop: in an async body, or by from_thread.run()"
            )
        if self._reader is not None:
            return self._reader
        self._claim(_LOOP)
        return self._make_reader()

    def _make_reader(self) -> BufferReader:
        reader = BufferReader(
            overflow=None,
            high_water=_HIGH_WATERMARK,
            low_water=_LOW_WATERMARK,
            pause_reading=self._reader_is_full,
            resume_reading=self._reader_has_room,
            memory=self._memory,
        )
        with self._lock:
            if self._error is not None:
                raise self._error.with_traceback(None)
            self._reader = reader
            data = bytes(self._data)
            self._drop()
        reader.feed_data(data)
        if self._ended:
            reader.feed_eof()
        self._wakeup.call(partial(self._on_first_read, self))
        return reader

    def _reader_is_full(self) -> None:
        self.paused = True
        self._pause_reading(self)

    def _reader_has_room(self) -> None:
        self.paused = False
        self._wakeup.call(partial(self._resume_reading, self))

    def _end_reader(self) -> None:
        """There is an error now, unless the body is complete."""
        if self._reader is not None and self._error is not None:
            reader, self._reader = self._reader, None
            reader.set_exception(self._error)
            reader.close()

    # -- the app's thread

    def getfile(self) -> BinaryIO:
        """Return the body as a file that cannot seek. Its reads raise what `set_exception` was given."""
        return cast(BinaryIO, BufferedReader(_InputFile(self), _READ_SIZE))

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill `buffer` with what there is, after a wait for some; return how many bytes, 0 at the end."""
        if self._side is not _THREAD:
            self._claim(_THREAD)
            self._wakeup.call(partial(self._on_first_read, self))
        view = memoryview(buffer).cast("B")
        with self._lock:
            ready = self._is_ready()
        if not ready:
            with self._waiting(), self._lock:
                self._thread_waits = True
                self._more.wait_for(self._is_ready)
                self._thread_waits = False
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

    # -- any thread

    def _claim(self, side: _Side) -> None:
        """Have the body read there. Raises RuntimeError if it is read on the other side."""
        with self._lock:
            if self._side is None:
                self._side = side
            elif self._side is not side:
                raise RuntimeError(
                    f"this request body has been read from {self._side.value}, and cannot be read from "
                    f"{side.value} as well"
                )

    @property
    def is_read_by_thread(self) -> bool:
        """Whether the app has begun to read it in its thread."""
        return self._side is _THREAD

    def close(self) -> None:
        """The app has ended: what is held is dropped, and reads raise ValueError."""
        with self._lock:
            self._error = ValueError("the app that this request body was for has ended")
            self._drop()
            self._more.notify_all()
            if self._reader is not None:
                self._wakeup.call(self._end_reader)
                return
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
