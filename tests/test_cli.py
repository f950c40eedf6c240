from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.test_settings import SAMPLES, textual_by_name
from waitress_async import __version__
from waitress_async.cli import main
from waitress_async.settings import DECLARATIONS, Declaration, Settings

resource = pytest.importorskip("resource")

APP = "wsgiref.simple_server:demo_app"


class Served:
    """What run() was called with; `error` is what it raises."""

    app: Any = None
    settings: Settings | None = None
    error: OSError | None = None

    def run(self, app: object, settings: Settings) -> None:
        self.app, self.settings = app, settings
        if self.error is not None:
            raise self.error


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """The server is replaced, and what the command changes in its process is put back."""
    served = Served()
    monkeypatch.setattr("waitress_async.cli.run", served.run)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    logger = logging.getLogger("waitress_async")
    level = logger.level
    logger.setLevel(logging.NOTSET)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield served
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    logger.setLevel(level)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="waitress-async")


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the real command with the working directory `cwd`."""
    return subprocess.run(
        [sys.executable, "-m", "waitress_async", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=False,
        text=True,
        timeout=30,
    )


@textual_by_name
def test_each_setting_has_its_flag(declaration: Declaration, served: Served) -> None:
    text, value = SAMPLES[declaration.name]
    assert declaration.flag is not None
    flag = declaration.flag.partition("/")[0]
    result = invoke(*([flag] if value is True else [flag, text]), APP)
    assert (result.exit_code, result.output) == (0, "")
    assert served.settings == Settings.from_keywords(**{declaration.name: value})


@textual_by_name
def test_help_tells_flag_and_default(declaration: Declaration) -> None:
    words = " ".join(invoke("--help").stdout.split())
    assert declaration.flag is not None
    assert declaration.flag.replace("/", " / ") in words
    assert f"{declaration.help} [default: {declaration.default_text}]" in words


def test_nothing_given_is_the_defaults(served: Served) -> None:
    assert invoke(APP).exit_code == 0
    assert served.settings == Settings()
    assert served.app.__name__ == "demo_app"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--threads=8", "--port", "0", APP],
        [APP, "--threads=8", "--port", "0"],
        ["--threads=8", APP, "--port=0"],
        ["--threads=8", "--port=0", f"--app={APP}"],
    ],
)
def test_options_stand_before_and_after_the_app(arguments: list[str], served: Served) -> None:
    assert invoke(*arguments).exit_code == 0
    assert served.settings == Settings(threads=8, port=0)
    assert served.app.__name__ == "demo_app"


def test_listen_may_be_repeated(served: Served) -> None:
    assert invoke("--listen=localhost:1 localhost:2", "--listen", "[::1]:3", APP).exit_code == 0
    assert served.settings is not None
    assert served.settings.listen == ("localhost:1", "localhost:2", "[::1]:3")


def test_a_flag_may_be_unset(served: Served) -> None:
    assert invoke("--expose-tracebacks", "--no-expose-tracebacks", APP).exit_code == 0
    assert served.settings == Settings()


def test_an_empty_ident_is_none(served: Served) -> None:
    assert invoke("--ident=", APP).exit_code == 0
    assert served.settings == Settings(ident=None)


def test_the_working_directory_is_searched_and_a_factory_called(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made_for_cli.py").write_text("def app(): pass\ndef make(): return app\n")
    monkeypatch.chdir(tmp_path)
    assert invoke("made_for_cli:make", "--call").exit_code == 0
    assert served.app is sys.modules.pop("made_for_cli").app


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "four", APP], "Invalid value for '--threads': 'four' is not a whole number"),
        (["--threads", "0", APP], "Invalid value for '--threads': 0 is less than 1"),
        ([APP, "--loop", "trio"], "Invalid value for '--loop': 'trio' is not one of auto, uvloop, asyncio"),
        (["--listen", "a:1", "--listen", "b:c", APP], "Invalid value for '--listen': Invalid host/port"),
        (["--listen", "a:1", "--port", "8080", APP], "host or port may not be set if listen is set."),
        (["--thread", "4", APP], "--thread"),
        (["--sockets", "4", APP], "--sockets"),
        ([], "Specify an application"),
        ([APP, APP], "Provide only one WSGI app"),
        ([APP, "--app", APP], "Provide only one WSGI app"),
    ],
)
def test_usage_errors(arguments: list[str], message: str, served: Served) -> None:
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout, served.settings) == (2, "", None)
    error = result.stderr.splitlines()[-1]
    assert error.startswith("Error: ")
    assert message in error


def test_version() -> None:
    result = invoke("--version")
    assert result.exit_code == 0
    assert __version__ in result.stdout


def test_an_address_that_cannot_be_bound_is_one_line(served: Served) -> None:
    served.error = OSError(errno.EADDRINUSE, "Cannot listen on 127.0.0.1:8080: Address already in use")
    result = invoke(APP)
    assert result.exit_code == 1
    assert result.stderr == "Error: Cannot listen on 127.0.0.1:8080: Address already in use\n"


def test_as_many_files_as_the_system_allows(served: Served) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    assert invoke(APP).exit_code == 0
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


def test_a_level_that_is_set_stands(served: Served) -> None:
    logger = logging.getLogger("waitress_async")
    assert invoke(APP).exit_code == 0
    assert logger.level == logging.INFO
    logger.level = logging.ERROR
    assert invoke(APP).exit_code == 0
    assert logger.level == logging.ERROR


def test_a_module_that_is_missing(tmp_path: Path) -> None:
    result = command("missing:app", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        "Cannot import WSGI application 'missing:app': No module named 'missing'",
        "ModuleNotFoundError: No module named 'missing'",
    ]


def test_a_module_that_fails_to_import_shows_its_own_traceback(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import helper\n")
    (tmp_path / "helper.py").write_text("import not_there\n")
    result = command("broken:app", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    first, second, *rest = result.stderr.splitlines()
    assert first == (
        "Cannot import WSGI application 'broken:app': "
        "importing 'broken' raised ModuleNotFoundError: No module named 'not_there'"
    )
    assert second == "Traceback (most recent call last):"
    assert [line.strip() for line in rest if not line.startswith("  File")] == [
        "import helper",
        "import not_there",
        "ModuleNotFoundError: No module named 'not_there'",
    ]
    assert "waitress_async" not in "".join(rest)


def test_python_m_names_itself(tmp_path: Path) -> None:
    result = command("--help", cwd=tmp_path)
    assert result.returncode == 0
    assert result.stdout.startswith("Usage: python -m waitress_async [OPTIONS] MODULE:OBJECT\n")
    assert all(
        declaration.help.split()[0] in result.stdout for declaration in DECLARATIONS if declaration.flag
    )
