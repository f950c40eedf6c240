"""Bytes at rest: file-based buffers, a buffer that overflows to disk, and the awaitable reader over it."""

from __future__ import annotations

from .files import (
    COPY_BYTES,
    BytesIOBasedBuffer,
    FileBasedBuffer,
    ReadOnlyFileBasedBuffer,
    TempfileBasedBuffer,
)
from .overflowable import STRBUF_LIMIT, OverflowableBuffer
from .reader import BufferReader

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
