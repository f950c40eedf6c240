"""What the C library keeps of a burst goes back to the system. Loop's thread, but where it says otherwise."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from waitress_async.buffers import BufferMemory

# A burst: so many bytes of bodies in memory at once, of which an eighth is left.
_BURST: Final = 33_554_432
_LEFT_OF_BURST: Final = 8

# Seconds between two times.
_INTERVAL: Final = 10.0


class Heap:
    """Watches the bytes of bodies that are held in memory, and has the heap trimmed when a burst is over.

    The chunks of responses are allocated by the app's threads. Each has an arena of glibc's, which gives back
    little of what is freed there: after some hundred slow downloads, tens of megabytes stay.
    """

    def __init__(self, memory: BufferMemory, submit: Callable[[Callable[[], None]], object]) -> None:
        """`submit(call)` has it made in a thread that may take milliseconds over it."""
        self._memory = memory
        self._submit = submit
        self._most = 0  # bytes, since the last time
        self._not_before = 0.0

    @property
    def awaits_trim(self) -> bool:
        """Whether a burst has been."""
        return self._most >= _BURST

    def sweep(self, now: float) -> None:
        """`now` is the sweep's clock, in seconds."""
        used = self._memory.used
        self._most = max(self._most, used)
        if self.awaits_trim and used * _LEFT_OF_BURST <= self._most and now >= self._not_before:
            self._most = used
            self._not_before = now + _INTERVAL
            self._submit(_trim)


def _trim() -> None:
    """Have the C library give back what it can. Any thread; without effect where it is not glibc."""
    if sys.platform == "linux":
        with suppress(ImportError, AttributeError, OSError):
            import ctypes  # here, for it takes milliseconds, and few need it

            ctypes.CDLL(None).malloc_trim(0)
