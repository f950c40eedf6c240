"""Bytes that are collected in memory until there are enough of them to go elsewhere."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# From this size on, in bytes, memory that is to be held for long is mapped. It then goes back to the system
# when it is freed, while the C library keeps what was freed between other things: a thousand uploads that
# had held 200 KiB each, and had been moved to disk, were seen to leave half of that behind.
_MAP_FROM: Final = 65_536


def _map(size: int) -> mmap.mmap:
    """Memory of our own, filled with zeros. With only a size it would be shared with child processes."""
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)  # Windows


class Collected:
    """A sequence of bytes that grows at its end and is taken as a whole. For one thread at a time."""

    __slots__ = ("_data", "_size")

    def __init__(self) -> None:
        self._data: bytearray | mmap.mmap = bytearray()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def append(self, data: ReadableBuffer, *, to_hold: bool) -> None:
        """Add a copy of `data` at the end. `to_hold` says that it may have to stay for long."""
        view = memoryview(data).cast("B")
        start, end = self._size, self._size + len(view)
        if isinstance(self._data, mmap.mmap) or (to_hold and end > _MAP_FROM):
            room = self._make_room(end)
            room[start:end] = view
        else:
            self._data += view
        self._size = end

    def _make_room(self, size: int) -> mmap.mmap:
        data = self._data
        if isinstance(data, mmap.mmap) and len(data) >= size:
            return data
        room = _map(1 << (size - 1).bit_length())
        with self.view() as collected:
            room[: self._size] = collected
        if isinstance(data, mmap.mmap):
            data.close()
        self._data = room
        return room

    def view(self) -> memoryview:
        """The bytes themselves. To be released before the next call."""
        return memoryview(self._data)[: self._size]

    def clear(self) -> None:
        """Forget the bytes and free their memory."""
        if isinstance(self._data, mmap.mmap):
            try:
                self._data.close()
            except BufferError:  # a thread still looks at it: it goes with the last view
                pass
        self._data = bytearray()
        self._size = 0
