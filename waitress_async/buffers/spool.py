"""Temporary files: where they are, what they may take together, and the threads that wait for the disk."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable
from io import BufferedRandom, FileIO
from threading import Lock
from typing import TYPE_CHECKING, BinaryIO, Final, TypeVar, cast

import aiofiles.os

from waitress_async.buffers.files import COPY_BYTES
from waitress_async.buffers.positioned import pread, pwrite
from waitress_async.buffers.regions import SharedFile
from waitress_async.errors import SpoolFull

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from _typeshed import ReadableBuffer, StrPath

T = TypeVar("T")

# What open() says of a directory on a file system without files that never had a name.
_NO_UNNAMED_FILES: Final = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}

_PRIVATE: Final = 0o600


def _call(function: Callable[[], T]) -> T:
    return function()


class Spool:
    """The temporary files of one server.

    `directory` is where they are, by default the system's place for such files. `limit` bounds the bytes
    in all of them together, and `min_free` is what they leave free on their file system; 0 is no bound.
    `executor` runs what waits for the disk; None is the running loop's default one. `loop` is the loop that
    must not wait, for apps may have loops of their own; None is any.
    """

    def __init__(
        self,
        directory: str | None = None,
        *,
        limit: int = 0,
        min_free: int = 0,
        executor: Executor | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._loop = loop
        self._directory = directory
        self._limit = limit
        self._min_free = min_free
        self._run = aiofiles.os.wrap(_call)
        self._executor = executor
        self._lock = Lock()
        self.writing = Lock()
        """For threads that write much: one at a time, or they would keep every core busy with copying."""
        self._closing: set[asyncio.Future[None]] = set()
        self.used = 0
        """Bytes in all files."""
        self.files = 0
        """Files that are open."""

    def open(self, expected: int = 0) -> SpoolFile:
        """Return an empty file. On a thread that may wait for the disk.

        `expected` is the number of bytes that will be put into it, if that is known; they are not set
        aside. Raises SpoolFull if they do not fit now, and OSError.
        """
        raw = FileIO(_open_unnamed(self._directory or tempfile.gettempdir()), "r+b")
        file = SpoolFile(self, raw)
        with self._lock:
            self.files += 1
        try:
            self._check_free(raw.fileno(), expected)
            with self._lock:
                self._check_limit(expected)
        except BaseException:
            file.close()
            raise
        return file

    def _grow(self, descriptor: int, size: int) -> None:
        """Count `size` bytes more, on the file system of `descriptor`. Raises SpoolFull."""
        self._check_free(descriptor, size)
        with self._lock:
            self._check_limit(size)
            self.used += size

    def _check_limit(self, size: int) -> None:
        if self._limit and self.used + size > self._limit:
            raise SpoolFull(f"temporary files may take {self._limit} bytes", setting="spool_limit")

    def _check_free(self, descriptor: int, size: int) -> None:
        if not self._min_free:
            return
        if _free(descriptor, self._directory) - size < self._min_free:
            raise SpoolFull(
                f"temporary files must leave {self._min_free} bytes free", setting="spool_min_free"
            )

    def _shrink(self, size: int) -> None:
        """Count `size` bytes less."""
        with self._lock:
            self.used -= size

    def _count_closed(self) -> None:
        """Count one file less."""
        with self._lock:
            self.files -= 1

    async def run(self, function: Callable[[], T]) -> T:
        """Return `function()`, called on a thread that may wait for the disk."""
        return cast(T, await self._run(function, executor=self._executor))

    def discard(self, file: SpoolFile) -> None:
        """Close a file: off the loop if this thread runs it, otherwise here and now."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            file.close()
            return
        if self._loop is not None and loop is not self._loop:
            file.close()
            return
        # No task, which the end of the loop would cancel.
        closing = loop.run_in_executor(self._executor, file.close)
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def wait_closed(self) -> None:
        """Wait until the files discarded so far are closed."""
        while self._closing:
            await asyncio.wait(self._closing)


def check_directory(directory: str | None) -> None:
    """Try whether temporary files can be made there at all; a full disk is no reason why not.

    `directory` as for `Spool`. Raises OSError, which names it. On a thread that may wait for the disk.
    """
    directory = directory or tempfile.gettempdir()
    try:
        os.close(_open_unnamed(directory))
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            text = f"{error.strerror}: temporary files cannot be made in {directory!r} (setting: tmp_dir)"
            raise OSError(error.errno, text) from error


class SpoolFile(SharedFile):
    """A temporary file without a name, written and read by position. It is gone when it is closed.

    Each call may wait for the disk, and is for threads that are allowed to.
    """

    __slots__ = ("_counted", "_file", "_kept", "_raw", "_spool", "size")

    def __init__(self, spool: Spool, raw: FileIO) -> None:
        """See `Spool.open`."""
        super().__init__(raw.fileno(), self._close_file)
        self._spool = spool
        self._raw = raw
        self._file: BufferedRandom | None = None
        self._counted = 0
        self._kept = False  # somebody has given it a name
        self.size = 0
        """Bytes in it."""

    def write(self, data: ReadableBuffer, offset: int) -> None:
        """Write all of `data` at `offset`. Raises SpoolFull, and OSError; some may be written then."""
        view = memoryview(data).cast("B")
        with self as descriptor:
            more = max(0, offset + len(view) - self._counted)
            if more and not self._kept:
                self._spool._grow(descriptor, more)
                self._counted += more
            while view:
                written = pwrite(descriptor, view, offset)
                offset += written
                view = view[written:]
            self.size = max(self.size, offset)

    def append(self, data: ReadableBuffer) -> None:
        """Write `data` at the end. Raises as `write` does."""
        self.write(data, self.size)

    def read(self, size: int, offset: int) -> bytes:
        """Return at most `size` bytes from `offset` on; `b""` at the end."""
        with self as descriptor:
            return pread(descriptor, size, offset)

    def getfile(self) -> BinaryIO:
        """Return a file object of it at position 0; the same one each time, closed with this.

        What is written by way of it is not counted, and bounded by the disk alone.
        """
        if self.closed:
            raise ValueError("the file is closed")
        if self._file is None:
            self._file = BufferedRandom(self._raw)
        self._file.seek(0)
        return cast(BinaryIO, self._file)

    def link(self, path: StrPath) -> None:
        """Give the file a name, without copying it if `path` is on the same file system (linkat(2)).

        From then on its bytes are not counted as temporary. Its mode is 0600. Raises FileExistsError, and
        OSError.
        """
        with self as descriptor:
            if self._file is not None:
                self._file.flush()
            try:
                # With a descriptor of a directory, any, Python calls linkat() rather than link(), which
                # would not follow the symbolic link that Linux shows there.
                os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor, follow_symlinks=True)
            except FileExistsError:
                raise
            except (OSError, NotImplementedError):
                _copy_to(path, lambda offset: pread(descriptor, COPY_BYTES, offset))
            else:
                self._kept = True
                self._spool._shrink(self._counted)
                self._counted = 0

    def _close_file(self) -> None:
        try:
            # What the app wrote into it may not fit, and is thrown away. It may also have detached it.
            with contextlib.suppress(OSError, ValueError):
                if self._file is not None:
                    self._file.close()
            with contextlib.suppress(OSError):
                self._raw.close()
        finally:
            self._spool._shrink(self._counted)
            self._spool._count_closed()


class SpooledBody:
    """A request's body, for an app that wants to keep it: `environ["waitress_async.spool"]`.

    For the thread that runs the app, until the app has ended.
    """

    __slots__ = ("_file", "_spooled", "size")

    def __init__(self, file: BinaryIO, spooled: SpoolFile | None, size: int) -> None:
        """`file` holds the body, in `spooled` if that is on disk. `size` is in bytes."""
        self._file = file
        self._spooled = spooled
        self.size = size
        """Bytes of the body."""

    @property
    def on_disk(self) -> bool:
        """Whether the body is in a temporary file, which `link` can keep."""
        return self._spooled is not None

    def link(self, path: StrPath) -> None:
        """Keep the body as a file named `path`, with mode 0600.

        A body on disk gets the name and is not copied, if the system can do that (Linux can) and `path` is
        on the file system of `tmp_dir`; otherwise it is copied. `wsgi.input` stays as it is. Raises
        FileExistsError, ValueError when the app has ended, and OSError.
        """
        if self._spooled is not None:
            self._spooled.link(path)
            return
        file = self._file
        position = file.tell()

        def read(offset: int) -> bytes:
            file.seek(offset)
            return file.read(COPY_BYTES)

        try:
            _copy_to(path, read)
        finally:
            file.seek(position)


def _copy_to(path: StrPath, read: Callable[[int], bytes]) -> None:
    """Make a new file of what `read(offset)` gives, up to nothing. Nothing is left of one that fails."""

    def private(name: str, flags: int) -> int:
        return os.open(name, flags, _PRIVATE)

    with open(path, "xb", opener=private) as target:
        try:
            while data := read(target.tell()):
                target.write(data)
            target.flush()
        except BaseException:
            os.unlink(path)
            raise


def _free(descriptor: int, directory: str | None) -> int:
    """Bytes that are free for us on the file system of `descriptor`, which is a file in `directory`."""
    if hasattr(os, "fstatvfs"):
        status = os.fstatvfs(descriptor)
        return status.f_bavail * status.f_frsize
    return shutil.disk_usage(directory or tempfile.gettempdir()).free  # Windows


def _open_unnamed(directory: str) -> int:
    """Open a new file that has no name, for reading and writing."""
    if hasattr(os, "O_TMPFILE"):
        # Not by `tempfile`, whose files can never be given a name: it adds O_EXCL (open(2)).
        try:
            return os.open(directory, os.O_RDWR | os.O_CLOEXEC | os.O_TMPFILE, _PRIVATE)
        except OSError as error:
            if error.errno not in _NO_UNNAMED_FILES:
                raise
    if sys.platform == "win32":  # an open file keeps its name there, and goes with it
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_TEMPORARY | os.O_BINARY | os.O_NOINHERIT
        return os.open(os.path.join(directory, f"waitress_async-{secrets.token_hex(16)}"), flags, _PRIVATE)
    descriptor, name = tempfile.mkstemp(dir=directory)
    os.unlink(name)
    return descriptor
