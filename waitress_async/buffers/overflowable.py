"""A buffer that begins as a few bytes in memory and ends, if it has to, on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

from waitress_async.buffers.files import BytesIOBasedBuffer, FileBasedBuffer, TempfileBasedBuffer

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STRBUF_LIMIT = 8192
"""Below this many bytes no file is made, not even one in memory: 8 KiB."""


class OverflowableBuffer:
    """A queue of bytes in memory that moves to a temporary file when `overflow` bytes are unread.

    Three stages, each entered when it is needed: a plain `bytes` below `STRBUF_LIMIT`, a file in memory,
    a file on disk from `overflow` bytes on. The way back is `prune`. Reading is the same in each.

    Every method but `close` and `len()` raises `ValueError` after `close()`. An `OSError` of the disk is
    passed on. One that comes while moving there leaves the buffer as it was, without the new bytes;
    after a later one, `close()` is all that is left to do. Any thread may use a buffer, one at a time.
    """

    __slots__ = ("buf", "overflow", "strbuf")

    def __init__(self, overflow: int) -> None:
        self.overflow = overflow
        self.strbuf = b""
        self.buf: FileBasedBuffer | None = None

    @property
    def overflowed(self) -> bool:
        """Whether the bytes are on disk now."""
        return isinstance(self.buf, TempfileBasedBuffer)

    def __len__(self) -> int:
        return len(self.strbuf) if self.buf is None else len(self.buf)

    def __bool__(self) -> bool:
        """Whether any bytes are left."""
        return len(self) > 0

    def append(self, data: ReadableBuffer) -> None:
        """Add bytes at the end, wherever the buffer keeps its bytes after that."""
        size = len(self) + memoryview(data).nbytes
        if self.buf is None and size < STRBUF_LIMIT and size < self.overflow:
            self.strbuf += data
        else:
            self._file_for(size).append(data)

    def get(self, numbytes: int = -1, skip: bool = False) -> bytes:
        """Return the next `numbytes` bytes, fewer if fewer are left; all of them if it is negative.

        The bytes stay in the buffer unless `skip` is true.
        """
        if self.buf is not None:
            return self.buf.get(numbytes, skip)
        data = self.strbuf if numbytes < 0 else self.strbuf[:numbytes]
        if skip:
            self.strbuf = self.strbuf[len(data) :]
        return data

    def skip(self, numbytes: int, allow_prune: bool = False) -> None:
        """Pass over `numbytes` unread bytes. `allow_prune` changes nothing and is there for waitress.

        Raises `ValueError` if `numbytes` is negative or more than is left.
        """
        if self.buf is not None:
            self.buf.skip(numbytes, allow_prune)
        elif 0 <= numbytes <= len(self.strbuf):
            self.strbuf = self.strbuf[numbytes:]
        else:
            raise ValueError(f"cannot skip {numbytes} bytes of {len(self.strbuf)}")

    def prune(self) -> None:
        """Give back the room of the bytes already read, and leave the disk if the rest fits in memory.

        A file taken with `getfile()` earlier is of no more use. Costs a copy of what is unread.
        """
        if self.buf is None:
            return
        if self.overflowed and len(self.buf) < self.overflow:
            self._move(BytesIOBasedBuffer)
        else:
            self.buf.prune()

    def getfile(self) -> BinaryIO:
        """Return the file the bytes are in, standing at the read position; make one if there is none.

        It is the buffer's storage, and no copy: the next `append` may replace it, and closes it then.
        """
        return self._file_for(len(self)).getfile()

    def close(self) -> None:
        """Drop what is unread and free the file. Once is enough, twice is fine."""
        # A closed file refuses everything, so it needs no flag here, and no check on the way to it.
        self.strbuf = b""
        self.buf = self.buf or BytesIOBasedBuffer()
        self.buf.close()

    def _file_for(self, size: int) -> FileBasedBuffer:
        """Return the file-based buffer to hold `size` bytes, with all that is unread in it."""
        buf = self.buf
        if buf is None or (size >= self.overflow and not self.overflowed):
            buf = self._move(TempfileBasedBuffer if size >= self.overflow else BytesIOBasedBuffer)
        return buf

    def _move(self, kind: type[TempfileBasedBuffer] | type[BytesIOBasedBuffer]) -> FileBasedBuffer:
        """Put what is unread, less than `overflow` bytes whichever way it goes, into a new buffer."""
        unread = self.get()
        new = kind()
        try:
            new.append(unread)
        except BaseException:
            new.close()
            raise
        if self.buf is not None:
            self.buf.close()
        self.buf = new
        self.strbuf = b""
        return new
