from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from waitress_async.errors import AppImportError
from waitress_async.loader import load_app

Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a module into a folder on sys.path. What was imported is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(path: str, source: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(source))

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def failure(name: str, *, call: bool = False) -> AppImportError:
    with pytest.raises(AppImportError) as raised:
        load_app(name, call=call)
    return raised.value


def frames(error: AppImportError) -> list[str]:
    """The source lines of the traceback that stopped the import."""
    assert error.__cause__ is not None
    return [frame.line or "" for frame in traceback.extract_tb(error.__cause__.__traceback__)]


APP = """
    def app(environ, start_response):
        return []

    class Holder:
        class Inner:
            app = app

    def factory():
        return app

    number = 3
"""


@pytest.mark.parametrize("path", ["app", "Holder.Inner.app"])
@pytest.mark.parametrize("separator", [":", "."])
@pytest.mark.parametrize("module", ["shop", "pkg.sub.web"])
def test_names(write: Write, module: str, separator: str, path: str) -> None:
    write("shop.py", APP)
    write("pkg/__init__.py", "")
    write("pkg/sub/web.py", APP)  # a namespace package
    assert load_app(f"{module}{separator}{path}") is sys.modules[module].app


def test_a_module_is_preferred_to_an_attribute_in_the_dotted_form(write: Write) -> None:
    write("pkg/__init__.py", "class web: app = None")
    write("pkg/web.py", APP)
    assert load_app("pkg.web.app").__module__ == "pkg.web"


def test_a_factory_is_called(write: Write) -> None:
    write("shop.py", APP)
    assert load_app("shop:factory", call=True) is load_app("shop:app")
    assert load_app("shop:factory") is not load_app("shop:app")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing:app", "No module named 'missing'"),
        ("missing.app", "No module named 'missing'"),
        ("missing", "No module named 'missing'"),
        ("pkg.missing:app", "No module named 'pkg.missing'"),
        ("shop.missing:app", "No module named 'shop.missing'; 'shop' is not a package"),
        ("shop:missing", "module 'shop' has no attribute 'missing'"),
        ("shop:app.missing", "'function' object has no attribute 'missing'"),
        ("pkg.missing.app", "module 'pkg' has no attribute 'missing'"),
        ("shop:", "module 'shop' has no attribute ''"),
        ("", "Empty module name"),
        (":app", "Empty module name"),
        ("shop:number", "3 is not callable"),
    ],
)
def test_what_is_missing_is_named(write: Write, name: str, reason: str) -> None:
    write("shop.py", APP)
    write("pkg/__init__.py", "")
    error = failure(name)
    assert str(error) == f"Cannot import WSGI application {name!r}: {reason}"
    assert error.__cause__ is None or frames(error) == []


def test_a_module_is_not_an_application(write: Write) -> None:
    write("shop.py", APP)
    message = str(failure("shop"))
    assert message.startswith("Cannot import WSGI application 'shop': <module 'shop' from ")
    assert message.endswith("> is not callable")


@pytest.mark.parametrize("name", ["broken:app", "broken.app"])
def test_an_import_that_fails_inside_the_module(write: Write, name: str) -> None:
    write("broken.py", "import helper\n")
    write("helper.py", "def load():\n    import not_there\nload()\n")
    error = failure(name)
    assert str(error) == (
        f"Cannot import WSGI application {name!r}: "
        "importing 'broken' raised ModuleNotFoundError: No module named 'not_there'"
    )
    assert isinstance(error.__cause__, ModuleNotFoundError)
    assert frames(error) == ["import helper", "load()", "import not_there"]


def test_an_import_error_in_a_submodule_is_not_taken_for_a_missing_attribute(write: Write) -> None:
    write("pkg/__init__.py", "")
    write("pkg/web.py", "from pkg import not_there\n")
    error = failure("pkg.web.app")
    assert "importing 'pkg.web' raised ImportError: cannot import name 'not_there'" in str(error)
    assert frames(error) == ["from pkg import not_there"]


def test_a_module_that_imports_its_own_missing_name(write: Write) -> None:
    write("pkg/__init__.py", "import pkg.web\n")
    error = failure("pkg.web:app")
    assert "importing 'pkg.web' raised ModuleNotFoundError: No module named 'pkg.web'" in str(error)
    assert frames(error) == ["import pkg.web"]


def test_any_exception_of_the_module_is_reported(write: Write) -> None:
    write("broken.py", "settings = {}\nsettings['KEY']\n")
    error = failure("broken:app")
    assert str(error).endswith("importing 'broken' raised KeyError: 'KEY'")
    assert isinstance(error.__cause__, KeyError)
    assert frames(error) == ["settings['KEY']"]


def test_a_syntax_error_tells_its_place(write: Write) -> None:
    write("broken.py", "def\n")
    error = failure("broken:app")
    assert str(error).endswith("invalid syntax (broken.py, line 1)")
    assert isinstance(error.__cause__, SyntaxError)


def test_an_attribute_that_fails(write: Write) -> None:
    write("lazy.py", "def __getattr__(name):\n    raise RuntimeError('no ' + name)\n")
    error = failure("lazy:app")
    assert str(error).endswith("reading 'app' raised RuntimeError: no app")
    assert frames(error) == ["raise RuntimeError('no ' + name)"]


def test_factories_that_fail(write: Write) -> None:
    write(
        "factories.py",
        """
        def broken():
            raise RuntimeError("no database")

        def greedy(config):
            return None

        def empty():
            return None
        """,
    )
    broken = failure("factories:broken", call=True)
    assert str(broken).endswith("calling it raised RuntimeError: no database")
    assert frames(broken) == ['raise RuntimeError("no database")']
    greedy = failure("factories:greedy", call=True)
    assert str(greedy).endswith("greedy() missing 1 required positional argument: 'config'")
    empty = failure("factories:empty", call=True)
    assert str(empty).endswith("it returned None, which is not callable")


def test_an_app_that_wants_to_exit_may(write: Write) -> None:
    write("leaving.py", "raise SystemExit(7)\n")
    with pytest.raises(SystemExit, match="7"):
        load_app("leaving:app")
