"""A program that serves, in a process of its own, and says on stderr where."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Self

from tests.frameworks.command import ROOT, TIMEOUT, environment, without_phases

_SERVING = re.compile(r"Serving on (https?://\S+:[0-9]+)$")


class Program:
    """`python *arguments` in `cwd`, killed at the end of a `with` if it still runs."""

    def __init__(self, *arguments: str, cwd: Path = ROOT) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd,
            env={**environment(), "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._watchdog = threading.Timer(
            2 * TIMEOUT, self.process.kill
        )  # so that no line is waited for in vain
        self._watchdog.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._watchdog.cancel()
        self.process.kill()
        self.process.communicate()
        self._watchdog.join()

    def serving(self) -> str:
        """Wait until a line says where it serves. Return the URL."""
        assert self.process.stderr is not None
        lines = []
        for line in self.process.stderr:
            if match := _SERVING.search(line):
                return match[1]
            lines.append(line)
        raise AssertionError(f"exit {self.process.wait(TIMEOUT)}: {''.join(lines)}")

    def end(self, number: signal.Signals) -> tuple[int, str, list[str]]:
        """Send it a signal. Return the exit status, stdout, and the rest of stderr, in lines, but for those
        that tell of the phases of the stop."""
        self.process.send_signal(number)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        lines = self.process.stderr.read().splitlines()
        out = self.process.stdout.read()
        return self.process.wait(TIMEOUT), out, without_phases(lines)
