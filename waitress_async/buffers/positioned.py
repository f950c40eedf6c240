"""Reading and writing at a position, which leaves the file's own where it is. Any thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_moving: Final = Lock()


def pread(descriptor: int, size: int, offset: int) -> bytes:
    """As `os.pread`, which Windows does not have."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    with _at(descriptor, offset):
        return os.read(descriptor, size)


def pwrite(descriptor: int, data: ReadableBuffer, offset: int) -> int:
    """As `os.pwrite`, which Windows does not have."""
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, offset)
    with _at(descriptor, offset):
        return os.write(descriptor, data)


@contextmanager
def _at(descriptor: int, offset: int) -> Iterator[None]:
    """The file's one position is moved there, and back."""
    with _moving:
        before = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.lseek(descriptor, offset, os.SEEK_SET)
        try:
            yield
        finally:
            os.lseek(descriptor, before, os.SEEK_SET)
