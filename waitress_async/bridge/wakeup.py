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
            except BaseException as error:  # of the app's (RecursionError), or Ctrl-C
                self._pending.release()  # the others' calls must still be made
                if type(error) is not RuntimeError:
                    raise
                self._calls.clear()  # the loop is closed: nobody is left to call

    def _run(self) -> None:
        try:
            self._pending.release()  # before looking: who comes from now on asks for a run of its own
        except RuntimeError:
            pass  # a call that was interrupted has released it
        calls = self._calls
        try:
            for _ in range(len(calls)):
                calls.popleft()()
        finally:
            if calls and self._pending.acquire(blocking=False):
                self._loop.call_soon(self._run, context=self._context)
