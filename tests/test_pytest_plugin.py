"""The pytest plugin: its fixtures used as anybody would, and pytest run on tests that use them."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests

from pytest_waitress_async import ServeInThread, ServeOnLoop
from tests.server.support import fetch, hello, server_threads
from waitress_async import SettingsError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

ROOT = Path(__file__).parent.parent
TIMEOUT = 30  # seconds, for whatever is waited for


def run(*arguments: str, cwd: Path, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Python, with `path` in front of what it imports."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(path)!r}, {str(ROOT)!r}]\n{arguments[0]}"],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


# -- the fixtures, in these tests


def test_an_app_behind_a_real_port(waitress_async_server: ServeInThread) -> None:
    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        return [threading.current_thread().name.encode()]

    server = waitress_async_server(app, threads=1)
    assert server.url == f"http://127.0.0.1:{server.port}"
    assert requests.get(server.url, timeout=TIMEOUT).text == "waitress_async-1"


def test_several_of_them(waitress_async_server: ServeInThread) -> None:
    one, other = waitress_async_server(hello), waitress_async_server(hello)
    assert one.port != other.port
    for server in (one, other):
        assert requests.get(server.url, timeout=TIMEOUT).text == "Hello, world!"


def test_another_place(waitress_async_server: ServeInThread, tmp_path: Path) -> None:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    assert waitress_async_server(hello, sockets=[sock]).port == port
    assert waitress_async_server(hello, listen="127.0.0.1:0").addresses[0][0] == "127.0.0.1"
    assert waitress_async_server(hello, unix_socket=str(tmp_path / "s")).url == f"unix:{tmp_path / 's'}"


def test_what_is_wrong_is_raised_here(waitress_async_server: ServeInThread) -> None:
    with pytest.raises(SettingsError, match="threads"):
        waitress_async_server(hello, threads=0)
    taken = waitress_async_server(hello).port
    with pytest.raises(OSError, match="Cannot listen"):
        waitress_async_server(hello, port=taken)


async def test_on_the_loop_of_the_test(waitress_async_server_on_loop: ServeOnLoop) -> None:
    loops = []

    class Lifespan:
        async def __aenter__(self) -> None:
            loops.append(asyncio.get_running_loop())

        async def __aexit__(self, *_error: object) -> None:
            pass

    async with waitress_async_server_on_loop(hello, lifespan=Lifespan) as server:
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert await fetch(server.port) == b"Hello, world!"
    assert loops == [asyncio.get_running_loop()]
    assert server_threads() == []


# -- the plugin, in pytest of its own

SUITE = """
import threading
import urllib.request

import pytest
from waitress_async import Server

servers = []

def app(environ, start_response):
    start_response("200 OK", [])
    return [b"served"]

@pytest.fixture
def shop(waitress_async_server):
    return waitress_async_server(app)

def test_a_fixture_of_ones_own(shop):
    assert urllib.request.urlopen(shop.url).read() == b"served"
    servers.append(shop)

def test_it_is_stopped_afterwards():
    with pytest.raises(OSError):
        urllib.request.urlopen(servers[0].url)
    assert threading.active_count() == 1

def test_a_failure(waitress_async_server):
    assert waitress_async_server(app).port == 0

class Lifespan:
    async def __aenter__(self):
        pass
    async def __aexit__(self, *error):
        raise LookupError("gone")

def test_what_goes_wrong_at_the_end(waitress_async_server):
    waitress_async_server(app, lifespan=Lifespan)

def test_nothing_is_left():
    assert threading.active_count() == 1

{mark}async def test_on_the_loop(waitress_async_server_on_loop):
    async with waitress_async_server_on_loop(app) as server:
        assert isinstance(server, Server)
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder in which the project is installed, as far as pytest looks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    folder = tmp_path / "site" / "waitress_async_of_a_test-0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: waitress_async_of_a_test\nVersion: 0\n")
    lines = [f"{name} = {value}" for name, value in project["entry-points"]["pytest11"].items()]
    (folder / "entry_points.txt").write_text("\n".join(["[pytest11]", *lines]))
    return folder.parent


@pytest.mark.parametrize(
    ("more", "mark"),
    [
        ("", "@pytest.mark.asyncio\n"),  # pytest-asyncio's strict mode
        ("-oasyncio_mode=auto", ""),
        ("-ppytest_waitress_async", "@pytest.mark.asyncio\n"),  # named, beside its entry point
    ],
)
def test_tests_that_use_it(tmp_path: Path, installed: Path, more: str, mark: str) -> None:
    (tmp_path / "test_shop.py").write_text(SUITE.format(mark=mark))
    options = ["-q", "-rA", "-pno:cacheprovider", "-Werror", "-oasyncio_default_fixture_loop_scope=function"]
    arguments = [*options, *([more] if more else []), "test_shop.py"]
    result = run(f"import pytest; sys.exit(pytest.main({arguments}))", cwd=tmp_path, path=installed)
    assert result.stderr == ""
    outcomes = re.findall(r"^[A-Z]+ test_shop.py::\w+", result.stdout, re.MULTILINE)
    assert sorted(outcomes) == [
        "ERROR test_shop.py::test_what_goes_wrong_at_the_end",
        "FAILED test_shop.py::test_a_failure",
        "PASSED test_shop.py::test_a_fixture_of_ones_own",
        "PASSED test_shop.py::test_it_is_stopped_afterwards",
        "PASSED test_shop.py::test_nothing_is_left",
        "PASSED test_shop.py::test_on_the_loop",
        "PASSED test_shop.py::test_what_goes_wrong_at_the_end",
    ]
    assert "LifespanError: The lifespan failed: LookupError: gone" in result.stdout


def test_each_fixture_is_told_of(tmp_path: Path, installed: Path) -> None:
    result = run("import pytest; pytest.main(['--fixtures', '-q'])", cwd=tmp_path, path=installed)
    for name in ("waitress_async_server", "waitress_async_server_on_loop"):
        assert f"{name} -- " in result.stdout


@pytest.mark.parametrize(
    ("imported", "not_imported"),
    [("pytest_waitress_async", {"waitress_async", "asyncio", "uvloop"}), ("waitress_async.cli", {"pytest"})],
)
def test_neither_imports_the_other(imported: str, not_imported: set[str], tmp_path: Path) -> None:
    """Each run of pytest imports the plugin, wherever this is installed."""
    before = "import pytest; known = set(sys.modules)" if imported.startswith("pytest") else "known = set()"
    result = run(f"{before}\nimport {imported}\nprint(*set(sys.modules) - known)", cwd=tmp_path)
    assert result.stderr == ""
    found = set(result.stdout.split())
    assert imported in found
    assert found.isdisjoint(not_imported)
