"""Buffers that keep their bytes in one binary file: in memory, on disk, or somebody else's.

The file's own position is the read position. `append` writes at the end and leaves that position
alone, so one file serves a writer and a reader in turn. Any thread may use a buffer, one at a time.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from io import SEEK_CUR, SEEK_END, BufferedRandom, BufferedReader, BytesIO, FileIO
from tempfile import TemporaryFile, _TemporaryFileWrapper
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, SupportsRead

COPY_BYTES = 1 << 18
"""Bytes moved at a time from file to file, and from memory to disk: 256 KiB."""


class HasFile(Protocol):
    """What a buffer can be copied from: anything that can show the file it keeps its bytes in."""

    def getfile(self) -> BinaryIO: ...


class FileBasedBuffer:
    """A queue of bytes in a seekable, buffered binary file.

    `file` is the storage and belongs to the buffer from now on. It is taken as empty: bytes that are
    in it already can be read, but are not counted.

    `from_buffer` is another buffer whose whole file, with the bytes already read, is copied into
    `file`. Both then stand at the same read position and have no more to do with each other.

    Every method but `close` and `len()` raises `ValueError` after `close()`. An `OSError` of the file
    (a full disk) is passed on; after one from `append`, `close()` is all that is left to do.
    """

    remain: int = 0
    """Unread bytes, never negative."""

    closed: bool = False
    """Whether `close()` was called."""

    def __init__(self, file: BinaryIO, from_buffer: HasFile | None = None) -> None:
        self.file = file
        if from_buffer is not None:
            source = from_buffer.getfile()
            position = source.tell()
            source.seek(0)
            try:
                shutil.copyfileobj(source, file, COPY_BYTES)
            finally:
                source.seek(position)
            self.remain = max(file.tell() - position, 0)
            file.seek(position)

    def __len__(self) -> int:
        return self.remain

    def __bool__(self) -> bool:
        """True, also when no bytes are left: a buffer is a thing, not its content."""
        return True

    def append(self, data: ReadableBuffer) -> None:
        """Add bytes at the end. The read position stays where it is."""
        file = self.getfile()
        position = file.tell()
        file.seek(0, SEEK_END)
        try:
            file.write(data)
        finally:
            file.seek(position)
        self.remain += memoryview(data).nbytes

    def get(self, numbytes: int = -1, skip: bool = False) -> bytes:
        """Return the next `numbytes` bytes, fewer if fewer are left; all of them if it is negative.

        The bytes stay in the buffer unless `skip` is true.
        """
        file = self.getfile()
        size = max(numbytes, -1)
        if skip:
            data = file.read(size)
            self.remain = max(self.remain - len(data), 0)
            return data
        position = file.tell()
        try:
            return file.read(size)
        finally:
            file.seek(position)

    def skip(self, numbytes: int, allow_prune: bool = False) -> None:
        """Pass over `numbytes` unread bytes. `allow_prune` changes nothing and is there for waitress.

        Raises `ValueError` if `numbytes` is negative or more than is left.
        """
        file = self.getfile()
        if not 0 <= numbytes <= self.remain:
            raise ValueError(f"cannot skip {numbytes} bytes of {self.remain}")
        file.seek(numbytes, SEEK_CUR)
        self.remain -= numbytes

    def newfile(self) -> BinaryIO:
        """Return an empty file of the kind this class keeps its bytes in; it belongs to the caller."""
        raise NotImplementedError

    def prune(self) -> None:
        """Give back the room of the bytes already read: move the unread ones to a new file.

        The old file is closed, so a file taken with `getfile()` earlier is of no more use.
        Costs a copy of what is unread.
        """
        old = self.getfile()
        position = old.tell()
        if old.seek(0, SEEK_END) == 0:
            return
        old.seek(position)
        new = self.newfile()
        try:
            shutil.copyfileobj(old, new, COPY_BYTES)
            new.seek(0)
        except BaseException:
            old.seek(position)
            new.close()
            raise
        self.file = new
        old.close()

    def getfile(self) -> BinaryIO:
        """Return the file itself, standing at the read position. Reading from it is not counted."""
        if self.closed:
            raise ValueError("the buffer is closed")
        return self.file

    def close(self) -> None:
        """Close the file, if it can be closed, and drop what is unread. Once is enough, twice is fine."""
        if self.closed:
            return
        self.closed = True
        self.remain = 0
        if hasattr(self.file, "close"):
            self.file.close()


class BytesIOBasedBuffer(FileBasedBuffer):
    """A buffer in memory. `from_buffer` as for `FileBasedBuffer`."""

    def __init__(self, from_buffer: HasFile | None = None) -> None:
        super().__init__(self.newfile(), from_buffer)

    def newfile(self) -> BinaryIO:
        return BytesIO()


class TempfileBasedBuffer(FileBasedBuffer):
    """A buffer on disk, in a temporary file that has no name and is gone when it is closed.

    `from_buffer` as for `FileBasedBuffer`.
    """

    def __init__(self, from_buffer: HasFile | None = None) -> None:
        file = self.newfile()
        try:
            super().__init__(file, from_buffer)
        except BaseException:
            file.close()
            raise

    def newfile(self) -> BinaryIO:
        return cast(BinaryIO, TemporaryFile("w+b"))

    def close(self) -> None:
        try:
            super().close()
        except OSError:
            pass  # a full disk kept the last bytes back; they were to be thrown away with the rest


class ReadOnlyFileBasedBuffer(FileBasedBuffer):
    """A file to be sent: what `wsgi.file_wrapper` makes of an app's file (PEP 3333).

    `file` needs `read(size)` and nothing else; with `close`, `seek` and `tell` it can do more.
    `block_size` is the most bytes an iteration yields at a time, at least 1.

    Iterating yields the file from its position to its end, or, once `prepare` was called, the `remain`
    bytes that were agreed on. If the file ends before that, so does the iteration, and `remain` is what
    is missing. If the file is seekable, `seek` and `tell` are the file's own, so that middleware can
    serve ranges; `seekable` is there if the file has that method.

    Raises `ValueError` for a `block_size` below 1.
    """

    seek: Callable[..., int]
    tell: Callable[[], int]
    seekable: Callable[[], bool]

    def __init__(self, file: SupportsRead[bytes], block_size: int = 32768) -> None:
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1, not {block_size}")
        super().__init__(cast(BinaryIO, file))
        self.block_size = block_size
        self._prepared = False
        if _is_seekable(self.file):
            self.seek = self.file.seek
            self.tell = self.file.tell
            if hasattr(file, "seekable"):
                self.seekable = file.seekable

    def prepare(self, size: int | None = None) -> int:
        """Settle how many bytes to send: from the position to the end, and at most `size`. Return it.

        The position stays where it is. A file that cannot seek to its end cannot be measured: the answer is
        0, and iterating still yields all of it. Raises `ValueError` for a negative `size`.
        """
        file = self.getfile()
        if size is not None and size < 0:
            raise ValueError(f"size must not be negative, not {size}")
        if _is_seekable(file):
            position = file.tell()
            try:
                file.seek(0, SEEK_END)
            except OSError:  # as in /proc
                return 0
            unread = max(file.tell() - position, 0)
            file.seek(position)
            self.remain = unread if size is None else min(unread, size)
            self._prepared = True
        return self.remain

    def descriptor(self) -> int | None:
        """The descriptor of a file on disk whose bytes are those that `read` gives; None for all else.

        A file object of Python's own, that is: what decrypts or unpacks may well show the descriptor of
        what it reads from.
        """
        file: object = self.getfile()
        if isinstance(file, _TemporaryFileWrapper):
            file = file.file
        raw = file.raw if type(file) in (BufferedReader, BufferedRandom) else file  # type: ignore[attr-defined]
        if type(raw) is not FileIO or not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
            return None
        return raw.fileno()

    def get(self, numbytes: int = -1, skip: bool = False) -> bytes:
        """As `FileBasedBuffer.get`, and never more than `remain`; so nothing before `prepare`."""
        if not 0 <= numbytes <= self.remain:
            numbytes = self.remain
        return super().get(numbytes, skip)

    def append(self, data: ReadableBuffer) -> None:
        """Raises `NotImplementedError`: the file is the app's."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._prepared:
            data = self.get(self.block_size, skip=True)
        else:
            data = self.getfile().read(self.block_size)
        if not data:
            raise StopIteration
        return data


def _is_seekable(file: BinaryIO) -> bool:
    """Whether `file` says so or, if it has nothing to say, looks it."""
    if hasattr(file, "seekable"):
        return file.seekable()
    return hasattr(file, "seek") and hasattr(file, "tell")
