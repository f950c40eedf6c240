"""Any thread -> loop: any number of calls from any number of threads cost one wake-up of the loop."""

from __future__ import annotations

import threading
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable
from contextvars import Context

Call = Callable[[], object]


class Wakeup:
    """Calls to be made on the loop, in the order in which they were asked for.

    `call_soon_threadsafe` is called only when no run is pending. The lock is the flag for that: it is
    held from the call until the loop runs, and only ever tried, never waited for.
    """

    __slots__ = ("_calls", "_context", "_loop", "_pending")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[Call] = deque()
        # Nobody's: of the thread that wakes, an app's variables would go with what is made on the loop.
        self._context = Context()
        self._pending = threading.Lock()

    @property
    def loop(self) -> AbstractEventLoop:
        """The one that is woken."""
        return self._loop

    def call(self, call: Call) -> None:
        """Have `call()` made on the loop, in nobody's context. Any thread, or a signal handler.

        A no-op on a closed loop.
        """
        self._calls.append(call)
        if self._pending.acquire(blocking=False):
            try:
                self._loop.call_soon_threadsafe(self._run, context=self._context)
            except RecursionError:  # a RuntimeError too. The app's: the others' calls must still be made
                self._pending.release()
                raise
            except RuntimeError:  # the loop is closed: nobody is left to call
                self._calls.clear()
                self._pending.release()

    def _run(self) -> None:
        self._pending.release()  # before looking: who comes from now on asks for a run of its own
        calls = self._calls
        try:
            for _ in range(len(calls)):
                calls.popleft()()
        finally:
            if calls and self._pending.acquire(blocking=False):
                self._loop.call_soon(self._run, context=self._context)
