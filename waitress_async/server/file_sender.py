"""Files to sockets, by position, with no disk call and no unbounded work on the loop. Loop's thread."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from functools import partial
from typing import Final

from waitress_async.buffers import BufferMemory, FileRegion, SharedFile, Spool, pread

# What one call of a thread sends at most, in bytes, before it looks whether others wait for the thread.
_SLICE: Final = 4_194_304

# What is read and written at a time where that has to be done, in bytes, and when memory is short.
_BLOCK: Final = 65_536
_BLOCK_SHORT: Final = 16_384

# What sendfile() says of a file, or of a socket, that it cannot serve (sendfile(2)).
_NO_SENDFILE: Final = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSOCK}


class FileTruncated(OSError):
    """The file ended before what was promised of it."""


class FileSender:
    """Sends regions of files over one transport.

    A thread calls sendfile(), because that waits for the disk when the page cache does not hold the file; the
    loop says when the socket takes more. The thread has a duplicate of the socket's descriptor, so that the
    loss of the connection cannot put another file under its number. Under TLS, where there is no sendfile(),
    and for transient bytes, a thread reads and the loop writes, one block ahead.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        spool: Spool,
        memory: BufferMemory,
        drained: Callable[[], asyncio.Future[None] | None],
        on_progress: Callable[[int], object],
    ) -> None:
        """`drained()` is what to await until the transport takes more, None if it does.

        `on_progress(size)` is called with what has been sent.
        """
        self._transport = transport
        self._spool = spool
        self._memory = memory
        self._drained = drained
        self._on_progress = on_progress
        self.waits_for_room = False
        """Whether the socket is full, and nothing else is waited for."""

    async def send(self, region: FileRegion) -> None:
        """Send all of the region, behind what was written to the transport.

        Raises FileTruncated, ConnectionError, and the file's OSError.
        """
        encrypted = self._transport.get_extra_info("sslcontext") is not None
        if hasattr(os, "sendfile") and not encrypted and not region.transient:
            region = await self._send_by_system(region)
        if region.size:
            await self._copy(region)

    async def _send_by_system(self, region: FileRegion) -> FileRegion:
        """Returns what is left because sendfile() cannot send it."""
        transport = self._transport
        file, offset, left, _ = region
        _check_open(transport)
        transport.set_write_buffer_limits(0)  # what is written already goes first
        while (drained := self._drained()) is not None:
            await drained
        _check_open(transport)
        transport.set_write_buffer_limits()
        try:
            descriptor = os.dup(transport.get_extra_info("socket").fileno())
        except OSError:  # no descriptor is left: the other way needs none
            return region
        out = SharedFile(descriptor, lambda: os.close(descriptor))
        try:
            while left:
                region = FileRegion(file, offset, left)
                try:
                    sent, blocked = await self._spool.run(partial(_send_slice, out, region))
                except OSError as error:
                    if error.errno in _NO_SENDFILE:
                        return region
                    raise
                offset += sent
                left -= sent
                self._on_progress(sent)
                if blocked:
                    self.waits_for_room = True
                    await _writable(descriptor)
                    self.waits_for_room = False
        finally:
            out.close()
        return FileRegion(file, offset, left)

    async def _copy(self, region: FileRegion) -> None:
        file, offset, left, _ = region
        while left:
            size = min(left, _BLOCK_SHORT if self._memory.near else _BLOCK)
            data = await self._spool.run(partial(_read, file, offset, size))
            if not data:
                raise FileTruncated(f"the file ends {left} bytes early")
            self._memory.add(len(data))
            try:
                while (drained := self._drained()) is not None:
                    await drained
            finally:
                self._memory.add(-len(data))
            self._transport.write(data)
            offset += len(data)
            left -= len(data)
            self._on_progress(len(data))


def _check_open(transport: asyncio.Transport) -> None:
    if transport.is_closing():
        raise ConnectionAbortedError("the connection is closed")


def _send_slice(out: SharedFile, region: FileRegion) -> tuple[int, bool]:
    """Send as much as the socket takes, within bounds. Returns how much, and whether the socket is full.

    On a thread that may wait for the disk.
    """
    sent = 0
    limit = min(region.size, _SLICE)
    with out as target, region.file as source:
        while sent < limit:
            try:
                size = os.sendfile(target, source, region.offset + sent, limit - sent)
            except BlockingIOError:
                return sent, True
            except OSError:
                if sent:
                    break  # it will come again
                raise
            if not size:
                raise FileTruncated(f"the file ends {region.size - sent} bytes early")
            sent += size
    return sent, False


def _read(file: SharedFile, offset: int, size: int) -> bytes:
    with file as descriptor:
        return pread(descriptor, size, offset)


async def _writable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    writable: asyncio.Future[None] = loop.create_future()

    def set_writable() -> None:
        if not writable.done():
            writable.set_result(None)

    loop.add_writer(descriptor, set_writable)
    try:
        await writable
    finally:
        loop.remove_writer(descriptor)
