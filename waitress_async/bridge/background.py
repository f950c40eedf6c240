"""A thread beside the caller's, which waits for it to be ready, and then for its end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context

Ready = Callable[[], object]


class BackgroundThread:
    """Runs `function(ready)`, in a copy of the context of whoever makes it.

    A daemon, for a thread that nobody waits for must not hold the exit of the process.
    """

    def __init__(self, function: Callable[[Ready], object], *, name: str) -> None:
        """Start it. `ready()` is for the function to call, when what its caller waits for has happened."""
        self._function = function
        self._settled = threading.Event()  # ready, or over
        self._over = threading.Event()
        self._is_ready = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=copy_context().run, args=(self._run,), name=name, daemon=True)
        self._thread.start()

    def wait_ready(self) -> bool:
        """Wait until it is ready, which is True, or over."""
        self._settled.wait()
        return self._is_ready

    def join(self) -> None:
        """Wait for its end. Raises what the function has raised, the first time."""
        self._over.wait()  # first: after a join() that Ctrl-C interrupts, Python 3.11 believes in its end
        self._thread.join()
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback has this frame: no cycle is left for the collector

    def _run(self) -> None:
        try:
            self._function(self._ready)
        except BaseException as error:
            self._error = error
        finally:
            self._settled.set()
            self._over.set()

    def _ready(self) -> None:
        self._is_ready = True
        self._settled.set()
