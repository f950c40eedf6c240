"""How many bytes of bodies a server holds in memory, all connections together."""

from __future__ import annotations

from threading import Lock
from typing import Final

# Near the limit: from here on bodies go to disk sooner than they otherwise would.
_NEAR: Final = 3 / 4


class BufferMemory:
    """A count with a limit. Nothing is refused here: who holds bytes asks `near` and `full`, and acts.

    Both are plain attributes, cheap to ask and true a moment ago. Any thread.
    """

    __slots__ = ("_limit", "_lock", "_near", "full", "near", "used")

    def __init__(self, limit: int) -> None:
        """`limit` in bytes. `full` is beyond it, `near` beyond three quarters of it."""
        self._limit = limit
        self._near = int(limit * _NEAR)
        self._lock = Lock()
        self.used = 0
        self.near = False
        self.full = False

    def add(self, size: int) -> None:
        """`size` bytes more are held, or fewer if it is negative."""
        with self._lock:
            self.used = used = self.used + size
            self.near = used > self._near
            self.full = used > self._limit
