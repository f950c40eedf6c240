"""The command in this process, where nothing but the test's own files and variables is in its way."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from waitress_async.cli import main

# Variables that the command reads, beside those that begin with WAITRESS_ASYNC_.
_READ = {
    "PORT",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
}


def isolate(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Work in `folder`, with none of the variables that the command reads."""
    monkeypatch.chdir(folder)
    for name in os.environ:
        if name in _READ or name.startswith("WAITRESS_ASYNC_"):
            monkeypatch.delenv(name)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="waitress-async")


def printed_config(*arguments: str) -> dict[str, tuple[object, str]]:
    """What `--print-config` says is given: each with its value in TOML and who gave it."""
    result = invoke("--print-config", *arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    given = {}
    for line in result.stdout.removesuffix("\n").split("\n"):
        (pair,) = tomllib.loads(line).items() or [(None, None)]
        if pair[0] is not None:
            given[pair[0]] = (pair[1], line.rpartition(" # ")[2])
    return given
