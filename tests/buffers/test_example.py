"""The example that shows the reader alone is a program that works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_example_runs() -> None:
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / "reader_alone.py")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=False, env={"PYTHONPATH": str(ROOT)}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "40000 lines" in done.stdout
