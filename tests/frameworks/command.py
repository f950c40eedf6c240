"""The real command in a process of its own."""

from __future__ import annotations

import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final, Protocol

import requests

ROOT: Final = Path(__file__).parents[2]
TIMEOUT: Final = 30  # seconds, for whatever a process is waited for

_SERVING = re.compile(r"^\S+ \S+ INFO waitress_async: Serving on (http://127\.0\.0\.1:([0-9]+))$")

_PHASE = re.compile(
    r"\b(Stopping: \d+ connection|Listening no more: \d+ waiting|Closed \d+ idle .*: \d+ under way"
    r"|Stopped: \d+ response.*, \d+ connection)"
)


def without_phases(lines: list[str]) -> list[str]:
    """What was said beside the phases of a stop, of which the first and the last must be there."""
    phases = [line for line in lines if _PHASE.search(line)]
    if phases:
        assert "Stopping: " in phases[0]
        assert phases[-1] == lines[-1]
        assert "Stopped: " in lines[-1]
    return [line for line in lines if line not in phases]


class Start(Protocol):
    def __call__(self, *arguments: str, cwd: Path = ..., port: int = ...) -> Command: ...


class Command:
    """`python -m waitress_async` with these arguments; `lines` are those of its stderr, as they come."""

    def __init__(self, *arguments: str, cwd: Path = ROOT, port: int = 0) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "waitress_async",
                "--host=127.0.0.1",
                f"--port={port}",
                *arguments,
            ],
            cwd=cwd,
            env={**environment(), "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            for line in stderr:
                self._lines.put(line.removesuffix("\n"))
        self._lines.put(None)

    def line(self) -> str | None:
        """Wait for the next line; None at the end."""
        return self._lines.get(timeout=TIMEOUT)

    def serving(self) -> str:
        """Wait until it serves. Return its URL."""
        lines = []
        while (line := self.line()) is not None:
            match = _SERVING.match(line)
            if match:
                self.port = int(match[2])
                return match[1]
            lines.append(line)
        raise AssertionError(f"exit {self.process.wait(TIMEOUT)}: {lines}")

    def ready(self) -> str:
        """Wait until it serves and has taken a connection: from then on it handles signals."""
        url = self.serving()
        requests.get(url, timeout=TIMEOUT).close()
        return url

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ended(self) -> tuple[int, list[str]]:
        """Wait for the end. Return the exit status and the lines that were not read yet, but for those that
        tell of the phases of a stop."""
        status = self.process.wait(TIMEOUT)
        lines = []
        while (line := self.line()) is not None:
            lines.append(line)
        return status, without_phases(lines)

    def until_it_refuses(self) -> None:
        """Wait until nobody listens any more: the stop has begun."""
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), TIMEOUT).close()
            except (ConnectionRefusedError, ConnectionResetError):
                return

    def kill(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)


def environment() -> dict[str, str]:
    """Ours, without what would change how a child behaves."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "DJANGO_", "FLASK_", "COVERAGE_"))
    }
