"""Bytes at rest: buffers, the awaitable reader, temporary files, and the bounds on all of them."""

from __future__ import annotations

from waitress_async.buffers.files import (
    COPY_BYTES,
    BytesIOBasedBuffer,
    FileBasedBuffer,
    ReadOnlyFileBasedBuffer,
    TempfileBasedBuffer,
)
from waitress_async.buffers.memory import BufferMemory
from waitress_async.buffers.overflowable import STRBUF_LIMIT, OverflowableBuffer
from waitress_async.buffers.positioned import pread
from waitress_async.buffers.reader import BufferReader
from waitress_async.buffers.regions import FileRegion, SharedFile
from waitress_async.buffers.spool import Spool, SpooledBody, SpoolFile, check_directory

__all__ = [
    "COPY_BYTES",
    "STRBUF_LIMIT",
    "BufferMemory",
    "BufferReader",
    "BytesIOBasedBuffer",
    "FileBasedBuffer",
    "FileRegion",
    "OverflowableBuffer",
    "ReadOnlyFileBasedBuffer",
    "SharedFile",
    "Spool",
    "SpoolFile",
    "SpooledBody",
    "TempfileBasedBuffer",
    "check_directory",
    "pread",
]
