"""The layout and its rules, as ARCHITECTURE.md tells them, held over the source's syntax trees."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "waitress_async"

# What each package or module may import from us. A package may always import from itself, and imports
# under TYPE_CHECKING count like all others. `__init__` is the top of the package: the public names.
BELOW_SERVER = {"errors", "http", "buffers", "wsgi", "bridge", "settings"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "http": {"errors"},
    "buffers": {"errors"},
    "wsgi": {"errors", "http", "buffers"},
    "bridge": {"errors", "http", "buffers"},
    "settings": {"errors"},
    "loader": {"errors", "wsgi"},
    "sse": set(),
    "from_thread": {"bridge"},
    "types": {"buffers", "from_thread"},
    "server": BELOW_SERVER,
    "cli": {*BELOW_SERVER, "loader", "server", "__init__"},
    "__init__": {"errors", "settings", "server"},
    "__main__": {"cli"},
}

# A module of somebody else's -> the places that may import it.
MODULES: dict[str, set[str]] = {
    # Threads: whatever could make one, or hand something to one. What is at rest is shared with them, under
    # locks: that is all that `buffers` takes from here.
    "threading": {"bridge"},
    "threading.Lock": {"bridge", "buffers", "server/tls"},  # the last, for any thread may ask for a reload
    "_thread": {"bridge"},
    "queue": {"bridge"},
    "concurrent": {"bridge/executor"},
    "concurrent.futures.CancelledError": {"bridge/portal"},
    "concurrent.futures.Executor": {"bridge/executor", "buffers/spool"},  # a type, for it is given one
    "aiofiles": {"buffers/spool"},
    "multiprocessing": set(),
    # Sans-I/O is without a loop, without sockets and without a clock; an app's call is without a loop.
    "asyncio": {"bridge", "buffers", "server", "sse"},
    "uvloop": {"server"},
    "socket": {"server", "settings"},
    "select": {"server/peer_state"},
    "selectors": set(),
    "ssl": {"server/tls", "server/connections", "settings"},
    "time": {"bridge", "server"},
    "ipaddress": {"http", "settings"},
    "tomllib": {"settings/sources", "cli"},
    # The process is the command's.
    "signal": {"server/run"},
    "logging.config": {"cli"},
}

# A name, as an attribute, a variable, an import or a string for getattr() -> the places that may use it.
NAMES: dict[str, set[str]] = {
    "call_soon_threadsafe": {"bridge"},
    "run_coroutine_threadsafe": {"bridge"},
    "run_in_executor": {"buffers/spool"},  # the server's own, never the default one
    "set_default_executor": set(),
    "to_thread": set(),
    "add_signal_handler": {"server/run"},
    "set_event_loop": set(),
    "set_event_loop_policy": set(),
    # A log handler may block, and would block the loop.
    "getLogger": {
        "bridge",
        "wsgi",
        "cli",
        "server/exchange",
        "server/blocking",
    },  # the last two run in threads
    "basicConfig": {"cli"},
    "dictConfig": {"cli"},
    "addHandler": {"cli"},
    "setLevel": {"cli"},
    "setrlimit": {"cli"},
    "SystemExit": {"cli"},
    "_exit": {"cli"},
}

# A name of a module, used through it -> the places that may use it.
MEMBERS: dict[str, set[str]] = {
    "os.environ": {"cli", "settings/settings", "server/listeners"},  # the last for systemd:// alone
    "sys.exit": {"cli"},
    "os.abort": set(),
    "os.kill": set(),
}


def places_of(module: str) -> set[str]:
    """`server/run` is in the places `server/run` and `server`."""
    return {module, module.partition("/")[0]}


def imports_of(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """The line and the absolute dotted name of all that is imported, `from x import y` as `x.y`."""
    depth = module.count("/")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = ["waitress_async", *module.split("/")[:-1]]
                assert node.level - 1 <= depth, f"{module}: {ast.unparse(node)} leaves the package"
                base = ".".join([*parents[: len(parents) - node.level + 1], base]).rstrip(".")
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def names_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The line and the text of each name, attribute, imported name and one-word string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
            if isinstance(node.value, ast.Name):
                yield node.lineno, f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.lineno, alias.name
                yield node.lineno, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def unit_of(dotted: str) -> str | None:
    """Which of our packages an imported name is from; None if it is from none of them."""
    parts = dotted.split(".")
    if parts[0] != "waitress_async":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ALLOWED else "__init__"


def allowed_places(dotted: str) -> set[str] | None:
    """Who may import a name: what is said of it or else of the module it is in. None is everybody."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        if (where := MODULES.get(".".join(parts[:length]))) is not None:
            return where
    return None


def offences(source: str, module: str) -> list[str]:
    """What a module's source does that its place does not allow. `module` is like `server/run`."""
    tree = ast.parse(source)
    found = []
    places = places_of(module)
    own = module.partition("/")[0]
    for line, dotted in imports_of(tree, module):
        unit = unit_of(dotted)
        if unit is not None and unit != own and unit not in ALLOWED[own]:
            found.append(f"{module}:{line}: {own} may not import {dotted}")
        if (where := allowed_places(dotted)) is not None and not places & where:
            found.append(f"{module}:{line}: {dotted} is imported outside {sorted(where)}")
    for line, name in names_of(tree):
        where = {**NAMES, **MEMBERS}.get(name, places)
        if not places & where:
            found.append(f"{module}:{line}: {name} is used outside {sorted(where)}")
    return found


def modules() -> list[str]:
    return sorted(path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("module", modules())
def test_a_module_keeps_to_its_place(module: str) -> None:
    assert offences((PACKAGE / f"{module}.py").read_text(), module) == []


def test_every_package_is_in_the_table() -> None:
    assert {module.partition("/")[0] for module in modules()} == set(ALLOWED)


def test_the_table_goes_one_way() -> None:
    """No two packages may import each other, not even through others."""
    order: list[str] = []
    while len(order) < len(ALLOWED):
        ready = [name for name, needs in ALLOWED.items() if name not in order and needs <= set(order)]
        if not ready:  # cli takes the version from the top, which takes nothing from cli
            pytest.fail(f"a cycle among {set(ALLOWED) - set(order)}")
        order += ready


def test_the_table_is_the_one_in_the_documentation() -> None:
    section = (ROOT / "ARCHITECTURE.md").read_text().partition("\n## Imports\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)/?` \|[^|]*\|([^|]*)\|$", section, re.MULTILINE)
    assert rows, "no table of imports"
    told: dict[str, set[str]] = {}
    for name, text in rows:
        named = set(re.findall(r"`(\w+)`", text))
        if "all above" in text:
            told[name] = set(told) - named
        else:
            assert named or text.strip() == "nothing"
            told[name] = named
    assert told == {
        name: needs - {"__init__"} for name, needs in ALLOWED.items() if name not in {"__init__", "__main__"}
    }


@pytest.mark.parametrize(
    ("module", "source"),
    [
        # The order of the packages, in all the ways to write an import.
        ("http/head", "from waitress_async.buffers import BufferReader"),
        ("http/head", "import waitress_async.settings"),
        ("http/head", "from waitress_async import settings"),
        ("http/head", "from ..server import Server"),
        ("http/head", "from .. import bridge"),
        ("http/head", "def f():\n    from waitress_async.wsgi import Environ"),
        ("wsgi/environ", "if TYPE_CHECKING:\n    from waitress_async.bridge import Output"),
        ("bridge/pool", "from waitress_async.settings import Settings"),
        ("server/server", "from waitress_async.loader import load_app"),
        ("server/server", "from waitress_async import __version__"),
        ("loader", "from waitress_async.settings import Settings"),
        ("errors", "from waitress_async.http import grammar"),
        ("__init__", "from waitress_async.cli import main"),
        # Threads meet the loop in one place.
        ("server/protocol", "import threading"),
        ("server/protocol", "from queue import SimpleQueue"),
        ("buffers/reader", "from concurrent.futures import ThreadPoolExecutor"),
        ("bridge/pool", "import concurrent.futures"),
        ("buffers/spool", "import threading"),
        ("buffers/spool", "from threading import Thread"),
        ("buffers/spool", "from concurrent.futures import ThreadPoolExecutor"),
        ("server/sender", "import aiofiles.os"),
        ("server/protocol", "loop.call_soon_threadsafe(f)"),
        ("server/protocol", "getattr(loop, 'call_soon_threadsafe')(f)"),
        ("server/protocol", "from asyncio import run_coroutine_threadsafe"),
        ("server/server", "await loop.run_in_executor(None, f)"),
        ("server/server", "await asyncio.to_thread(f)"),
        ("cli", "asyncio.run_coroutine_threadsafe(f(), loop)"),
        # Sans-I/O, and an app's call, are without a loop.
        ("http/connection", "import asyncio"),
        ("wsgi/application", "from asyncio import Future"),
        ("http/connection", "from time import monotonic"),
        ("http/connection", "import socket"),
        # The process belongs to the command line.
        ("server/server", "import signal"),
        ("server/server", "loop.add_signal_handler(2, f)"),
        ("server/run", "logging.basicConfig()"),
        ("server/run", "from logging import basicConfig"),
        ("server/run", "sys.exit(1)"),
        ("server/run", "from sys import exit"),
        ("server/run", "raise SystemExit(1)"),
        ("server/run", "asyncio.set_event_loop_policy(policy)"),
        ("server/server", "logger = logging.getLogger('waitress_async')"),
        ("server/server", "import logging.config"),
    ],
)
def test_an_offender_is_found(module: str, source: str) -> None:
    assert offences(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("http/head", "from waitress_async.errors import BadRequest\nfrom .grammar import TOKEN"),
        ("server/run", "import signal\nfrom waitress_async.server.server import Server"),
        ("bridge/wakeup", "import threading\nloop.call_soon_threadsafe(f)"),
        ("cli", "import sys\nfrom waitress_async import __version__\nsys.exit(1)"),
        ("wsgi/application", "import logging\nlogger = logging.getLogger('waitress_async')\nexit"),
    ],
)
def test_what_is_allowed_is_not_an_offence(module: str, source: str) -> None:
    assert offences(source, module) == []
