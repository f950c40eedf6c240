"""Bytes at rest: file-based buffers, a buffer that overflows to disk, and the awaitable reader over it."""

from __future__ import annotations

from waitress_async.buffers.files import (
    COPY_BYTES,
    BytesIOBasedBuffer,
    FileBasedBuffer,
    ReadOnlyFileBasedBuffer,
    TempfileBasedBuffer,
)
from waitress_async.buffers.overflowable import STRBUF_LIMIT, OverflowableBuffer
from waitress_async.buffers.reader import BufferReader

__all__ = [
    "COPY_BYTES",
    "STRBUF_LIMIT",
    "BufferReader",
    "BytesIOBasedBuffer",
    "FileBasedBuffer",
    "OverflowableBuffer",
    "ReadOnlyFileBasedBuffer",
    "TempfileBasedBuffer",
]
