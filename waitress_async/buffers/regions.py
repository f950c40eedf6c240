"""Files that several threads use by position, and pieces of them that are to be sent."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import NamedTuple


class SharedFile:
    """A descriptor that is closed when it was asked for and nobody uses it any more.

    A descriptor that is closed while another thread is in a system call with it may name another file by
    the time of the call. So whoever makes one does it within `with file as descriptor:`, and `close()`
    during that is put off to its end. Any thread.
    """

    __slots__ = ("_close", "_closed", "_descriptor", "_lock", "_users")

    def __init__(self, descriptor: int, close: Callable[[], object]) -> None:
        """`close()` is called once, by the thread that closes or by the last that used the descriptor."""
        self._descriptor = descriptor
        self._close: Callable[[], object] | None = close
        self._closed = False
        self._users = 0
        self._lock = Lock()

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return self._closed

    def __enter__(self) -> int:
        """Return the descriptor, good until the exit. Raises ValueError after `close()`."""
        with self._lock:
            if self._closed:
                raise ValueError("the file is closed")
            self._users += 1
            return self._descriptor

    def __exit__(self, *_exc: object) -> None:
        with self._lock:
            self._users -= 1
            close = self._take_close()
        if close is not None:
            close()

    def close(self) -> None:
        """Close when nobody uses it, which may be now. Twice is fine."""
        with self._lock:
            self._closed = True
            close = self._take_close()
        if close is not None:
            close()

    def _take_close(self) -> Callable[[], object] | None:
        if not self._closed or self._users:
            return None
        close, self._close = self._close, None
        return close


class FileRegion(NamedTuple):
    """`size` bytes of a file from `offset` on, to be sent without moving the file's position.

    `transient` bytes will be overwritten once they are sent. They have to be copied: sendfile() gives the
    network the very pages of the file, which it may still read when the call has long returned.
    """

    file: SharedFile
    offset: int
    size: int
    transient: bool = False
