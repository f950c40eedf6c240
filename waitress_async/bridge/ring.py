"""A temporary file of bounded size, through which any number of bytes may pass."""

from __future__ import annotations

from waitress_async.buffers import FileRegion, Spool, SpoolFile
from waitress_async.errors import ClientDisconnected


class Ring:
    """`capacity` bytes of disk. Positions count on for ever; the file has their remainders.

    `write` is for one thread at a time, and waits for the disk. What it wrote counts from `advance` on. All
    other methods are quick, and under the caller's lock.
    """

    __slots__ = ("_capacity", "_closed", "_file", "_sent", "_spool", "_taken", "_written")

    def __init__(self, spool: Spool, capacity: int) -> None:
        self._spool = spool
        self._capacity = capacity
        self._file: SpoolFile | None = None
        self._written = self._taken = self._sent = 0
        self._closed = False

    @property
    def unsent(self) -> int:
        """Bytes that have not been sent."""
        return self._written - self._sent

    @property
    def untaken(self) -> int:
        """Bytes that have not been taken."""
        return self._written - self._taken

    def write(self, view: memoryview) -> None:
        """Write behind what is there, no more than there is room for.

        Raises SpoolFull, OSError, and ClientDisconnected if it is closed meanwhile.
        """
        if self._file is None:
            self._file = self._spool.open()
        if self._closed:
            self._file.close()
        offset = self._written % self._capacity
        end = self._capacity - offset
        try:
            with self._spool.writing:
                self._file.write(view[:end], offset)
                if len(view) > end:
                    self._file.write(view[end:], 0)
        except ValueError:
            raise ClientDisconnected("the client is gone") from None

    def advance(self, size: int) -> None:
        """`size` bytes were written."""
        self._written += size

    def take(self, limit: int) -> FileRegion:
        """Take the next bytes, at most `limit`. There are some."""
        assert self._file is not None
        offset = self._taken % self._capacity
        size = min(self.untaken, limit, self._capacity - offset)
        self._taken += size
        return FileRegion(self._file, offset, size, transient=True)

    def sent(self, size: int) -> None:
        """`size` of the bytes taken were sent. Others may come in their place."""
        self._sent += size

    def close(self) -> None:
        """Free the file: off the loop, if this thread runs one. Twice is fine."""
        self._closed = True  # before looking: who opens a file looks after it has done so
        if self._file is not None:
            self._spool.discard(self._file)
