"""What a test logs must be expected by it: everything else fails the test."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_FORMATTER = logging.Formatter("%(levelname)s %(name)s: %(message)s")


class Log(logging.Handler):
    """The log records of all threads. `take` the expected ones."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._lines: list[str] = []
        self._came = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        # asyncio's debug mode tells of each callback that took long, as any does on a busy machine.
        if record.name != "asyncio" or not record.getMessage().startswith("Executing "):
            with self._came:
                self._lines.append(_FORMATTER.format(record))
                self._came.notify_all()

    def take(self, start: str) -> str:
        """Wait for a record that begins so, remove it, and return all of it, with its traceback."""

        def first() -> str | None:
            return next((line for line in self._lines if line.startswith(start)), None)

        with self._came:
            line = self._came.wait_for(first, 10)
            assert line is not None, f"no record begins with {start!r}, but there are {self._lines}"
            self._lines.remove(line)
            return line

    @property
    def lines(self) -> list[str]:
        """What nobody has taken."""
        return self._lines[:]


@contextmanager
def strict_log(level: int) -> Iterator[Log]:
    """At the end, no record from `level` on may be left over."""
    log = Log(level)
    root = logging.getLogger()
    root.addHandler(log)
    try:
        yield log
    finally:
        root.removeHandler(log)
    assert log.lines == []
