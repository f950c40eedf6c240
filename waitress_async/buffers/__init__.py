"""Bytes at rest: file-based buffers, a buffer that overflows to disk, and the awaitable reader over it."""

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
from waitress_async.buffers.reader import BufferReader
from waitress_async.buffers.regions import FileRegion, SharedFile
from waitress_async.buffers.spool import Spool, SpooledBody, SpoolFile

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
]
