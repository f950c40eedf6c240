from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from keyword import iskeyword
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from waitress_async.errors import AppImportError
from waitress_async.loader import AppName, Arguments, load_app, load_object

Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a module into the working directory. What was imported is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    importlib.invalidate_caches()
    before = set(sys.modules)

    def write(path: str, source: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(source))

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def failure(name: str, *, call: bool = False, directory: str | None = None) -> AppImportError:
    with pytest.raises(AppImportError) as raised:
        load_app(name, call=call, directory=directory)
    return raised.value


def reason(name: str, *, call: bool = False, directory: str | None = None) -> str:
    """What the error says after the name."""
    start, text = (
        f"Cannot import WSGI application {name!r}: ",
        str(failure(name, call=call, directory=directory)),
    )
    assert text.startswith(start)
    return text.removeprefix(start)


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


@pytest.mark.parametrize("name", ["shop:factory", "shop.factory"])
def test_a_factory_that_is_not_called_is_told_of(write: Write, name: str) -> None:
    """What uvicorn's --factory and gunicorn's `()` have in common is that they are forgotten."""
    write("shop.py", APP)
    assert reason(name) == (
        "the function shop.factory takes no arguments and not environ and start_response: "
        f"if it is a factory, write '{name}()' or give --call"
    )


def test_a_factory_of_factories(write: Write) -> None:
    write("shop.py", "def make(): return make\n")
    assert reason("shop:make()") == (
        "it returned no application: the function shop.make takes no arguments and not environ and "
        "start_response: if it is a factory, give what it returns"
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("missing:app", "No module named 'missing'"),
        ("missing.app", "No module named 'missing'"),
        ("missing", "No module named 'missing'"),
        ("pkg.missing:app", "No module named 'pkg.missing'"),
        ("shop.missing:app", "No module named 'shop.missing'; 'shop' is not a package"),
        ("shop:missing", "module 'shop' has no attribute 'missing'"),
        ("shop:app.missing", "'function' object has no attribute 'missing'"),
        ("pkg.missing.app", "module 'pkg' has no attribute 'missing'"),
        ("shop:ap", "module 'shop' has no attribute 'ap' (did you mean 'app'?)"),
        ("shop.facory", "module 'shop' has no attribute 'facory' (did you mean 'factory'?)"),
        ("shop:Holder.Iner.app", "type object 'Holder' has no attribute 'Iner' (did you mean 'Inner'?)"),
        ("", "'' is not the name of a module"),
        (":app", "'' is not the name of a module"),
        (".shop:app", "'.shop' is not the name of a module"),
        ("shop..app", "'shop..app' is not the name of a module"),
        ("shop:app.", "'' is not the name of an attribute"),
        ("shop:app[0]", "'app[0]' is not the name of an attribute"),
        ("shop:app:app", "'app:app' is not the name of an attribute"),
        ("shop:()", "'' is not the name of an attribute"),
        ("sh\0p:app", r"No module named 'sh\x00p'"),
    ],
)
def test_what_is_missing_is_named(write: Write, name: str, text: str) -> None:
    write("shop.py", APP)
    write("pkg/__init__.py", "")
    error = failure(name)
    assert str(error) == f"Cannot import WSGI application {name!r}: {text}"
    assert error.__cause__ is None or frames(error) == []


def test_a_hint_is_not_worth_an_error(write: Write) -> None:
    write("shop.py", "class Odd:\n    def __dir__(self):\n        raise RuntimeError\nodd = Odd()\n")
    assert reason("shop:odd.app") == "'Odd' object has no attribute 'app'"


@pytest.mark.parametrize("name", ["shop", "shop:", "pkg:shop"])
@pytest.mark.parametrize(
    ("source", "advice"),
    [
        ("number = 3\n", "after a colon"),
        ("app = 3\n", "after a colon"),
        ("def application(): pass\n", "perhaps 'shop:application'"),
        ("def create_app(): pass\n", "perhaps 'shop:create_app()'"),
        (
            "def make_app(): pass\nwsgi = app = make_app\n",
            "perhaps 'shop:app' or 'shop:wsgi' or 'shop:make_app()'",
        ),
    ],
)
def test_a_module_is_not_an_application(write: Write, name: str, source: str, advice: str) -> None:
    write("shop.py", source)
    write("pkg.py", "import shop\n")
    for call in (False, True):
        assert reason(name, call=call) == f"it is a module: name the application in it, {advice}"


def test_a_module_may_be_an_application(write: Write) -> None:
    write(
        "shop.py",
        """
        import sys, types
        class Shop(types.ModuleType):
            def __call__(self, environ, start_response):
                return []
        sys.modules[__name__].__class__ = Shop
        """,
    )
    found: object = load_app("shop")
    assert found is sys.modules["shop"]


@pytest.mark.parametrize(
    ("source", "call", "text"),
    [
        ("app = 3\n", False, "an instance of int is not callable"),
        (
            "async def app(scope, receive, send): pass\n",
            False,
            "the function shop.app is an ASGI application",
        ),
        ("async def app(): pass\n", True, "shop.app is a coroutine function"),
        ("def app(): pass\n", True, "it returned no application: None is not callable"),
        (
            "class App:\n    async def __call__(self, scope, receive, send): pass\ndef app(): return App()\n",
            True,
            "it returned no application: an instance of shop.App is an ASGI application",
        ),
    ],
)
def test_what_is_no_wsgi_application_is_refused(write: Write, source: str, call: bool, text: str) -> None:
    write("shop.py", source)
    assert reason("shop:app", call=call).startswith(text)
    assert failure("shop:app", call=call).__cause__ is None


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
    assert "it returned no application: None is not callable" in str(empty)


@pytest.mark.parametrize(
    ("source", "doing"),
    [
        ("raise SystemExit(7)\n", "importing 'leaving'"),
        ("def __getattr__(name):\n    raise SystemExit(7)\n", "reading 'app'"),
        ("def app():\n    raise SystemExit(7)\n", "calling it"),
    ],
)
def test_an_app_that_exits_does_not_end_the_server_without_a_word(
    write: Write, source: str, doing: str
) -> None:
    write("leaving.py", source)
    error = failure("leaving:app", call=True)
    assert str(error).endswith(f": {doing} raised SystemExit: 7")
    assert isinstance(error.__cause__, SystemExit)
    assert frames(error) == ["raise SystemExit(7)"]


def test_an_exit_without_a_status(write: Write) -> None:
    write("leaving.py", "import sys\nsys.exit()\n")
    assert reason("leaving:app") == "importing 'leaving' raised SystemExit"
    assert reason("sys:exit(4)") == "calling it raised SystemExit: 4"


def test_an_interrupt_goes_through(write: Write) -> None:
    write("interrupted.py", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_app("interrupted:app")


def test_a_lazy_module_that_fails_in_the_dotted_form(write: Write) -> None:
    write("lazy.py", "def __getattr__(name):\n    raise RuntimeError('no ' + name)\n")
    assert reason("lazy.app") == "looking for 'lazy.app' raised RuntimeError: no __path__"


# Factories with arguments.

FACTORY = """
    def create_app(*args, **kwargs):
        def app(environ, start_response):
            return []
        app.given = args, kwargs
        return app

    class site:
        create_app = create_app
"""


@pytest.mark.parametrize("name", ["shop:create_app", "shop.create_app", "shop:site.create_app"])
@pytest.mark.parametrize(
    ("arguments", "positional", "keywords"),
    [
        ("()", (), {}),
        ("( )", (), {}),
        ('("prod", debug=False)', ("prod",), {"debug": False}),
        ("(1, -2.5, 1+2j, None, ...)", (1, -2.5, 1 + 2j, None, ...), {}),
        ("([1, (2,)], {'a': {3}}, b'x',)", ([1, (2,)], {"a": {3}}, b"x"), {}),
        ("('a:b', path='/srv/shop.py')", ("a:b",), {"path": "/srv/shop.py"}),
        ("(')', '(', class_='x')", (")", "("), {"class_": "x"}),
    ],
)
def test_a_factory_is_called_with_literals(
    write: Write, name: str, arguments: str, positional: tuple[object, ...], keywords: dict[str, object]
) -> None:
    write("shop.py", FACTORY)
    app: Any = load_app(name + arguments)
    assert app.given == (positional, keywords)


@pytest.mark.parametrize(
    "arguments",
    [
        "(name)",
        "(os.environ)",
        "(debug=DEBUG)",
        "(*['x'])",
        "(**{'a': 1})",
        "(f'{1}')",
        "(str())",
        "(create_app())",
        "(x for x in [])",
        "([x for x in []])",
        "(lambda: 1)",
        "(x := 1)",
        "(1 if 1 else 2)",
        "(2 ** 9)",
        "({[]})",
        "({**{}})",
        "(a=1, a=2)",
        "(a=1, 2)",
        "()()",
        "().app",
        "() + ()",
        "(",
        "())",
        "('x'",
        "(\0)",
        "('\ud800)",
        f"({'(' * 1000}",
        f"({'-' * 4000}1)",
    ],
)
def test_only_literals_are_arguments(write: Write, arguments: str) -> None:
    write("shop.py", "raise RuntimeError('imported')\n")
    assert reason(f"shop:create_app{arguments}").startswith("only literals can be arguments")


def test_a_call_is_asked_for_once(write: Write) -> None:
    write("shop.py", FACTORY)
    assert reason("shop:create_app()", call=True) == "it is a call already: either write that or give --call"


def test_a_name_has_a_length() -> None:
    AppName.parse("s" * 4096)
    error = failure("s" * 4097)
    assert str(error).endswith("sss...': the name is longer than 4096 characters")
    assert len(str(error)) < 200


# Paths, in place of names.


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("shop.py", "shop:app"),
        ("shop.py:site", "shop:site"),
        ("./shop.py", "shop:app"),
        ("shop/web.py:site.app", "shop.web:site.app"),
        ("shop/web:site", "shop.web:site"),
        ("shop//web/", "shop.web:app"),
        (r".\shop\web.py:site", "shop.web:site"),
        ("shop/web.py:make(1)", "shop.web:make(1)"),
        (".py", "MODULE:app"),
    ],
)
def test_a_path_from_here(write: Write, name: str, target: str) -> None:
    write("shop.py", "raise RuntimeError('imported')\n")
    assert reason(name) == f"it is a path: write {target!r} and --app-dir if that is in another folder"


@pytest.mark.parametrize(
    ("name", "target", "folder"),
    [
        ("/nowhere/site/shop.py:site", "shop:site", "/nowhere/site"),
        ("../shop.py", "shop:app", ".."),
        ("../site/shop.py", "shop:app", "../site"),
        (r"C:\site\shop.py:site", "shop:site", r"C:\site"),
        ("c:/site/shop.py", "shop:app", r"c:\site"),
        ("/", "MODULE:app", "/"),
        ("../..", "MODULE:app", ".."),
    ],
)
def test_a_path_from_elsewhere(name: str, target: str, folder: str) -> None:
    assert reason(name) == f"it is a path: write {target!r} and --app-dir {folder!r}"


def test_a_path_into_a_package(write: Write, tmp_path: Path) -> None:
    write("site/shop/__init__.py", "")
    write("site/shop/web/__init__.py", "")
    write("site/shop/web/wsgi.py", "")
    assert reason(f"{tmp_path}/site/shop/web/wsgi.py") == (
        f"it is a path: write 'shop.web.wsgi:app' and --app-dir '{tmp_path}/site'"
    )


def test_a_path_from_within_a_package(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("shop/__init__.py", "")
    write("shop/static/logo.svg", "")
    monkeypatch.chdir("shop/static")
    assert reason("../web.py") == "it is a path: write 'web:app' and --app-dir '..'"  # `..` is no module


def test_a_module_called_py_has_its_dotted_name(write: Write) -> None:
    write("shop/py.py", APP)
    assert reason("shop.py").startswith("it is a path")
    assert load_app("shop.py.app").__module__ == "shop.py"


# Where modules are looked for.


def test_the_working_directory_is_searched_first(write: Write, tmp_path: Path) -> None:
    write("elsewhere/shop.py", "")
    write("shop.py", APP)
    sys.path.insert(0, str(tmp_path / "elsewhere"))
    load_app("shop:app")
    assert sys.path[0] == str(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1


def test_a_directory_is_searched_instead(write: Write, tmp_path: Path) -> None:
    write("site/shop.py", APP)
    write("shop.py", "")
    for _ in range(2):  # once on the path
        assert load_app("shop:app", directory="site").__module__ == "shop"
    assert sys.path[0] == str(tmp_path / "site")
    assert sys.path.count(str(tmp_path / "site")) == 1
    assert str(tmp_path) not in sys.path


def test_what_is_on_the_path_already_goes_first(write: Write, tmp_path: Path) -> None:
    """As where PYTHONPATH names it behind another folder that has such a module."""
    write("elsewhere/shop.py", "")
    write("shop.py", APP)
    sys.path[:0] = [str(tmp_path / "elsewhere"), str(tmp_path)]
    assert load_app("shop:app").__module__ == "shop"
    assert sys.path[:3] == [str(tmp_path), str(tmp_path / "elsewhere"), str(tmp_path)]


@pytest.mark.parametrize("directory", ["missing", "shop.py", "a\0b"])
def test_a_directory_that_is_none(write: Write, directory: str) -> None:
    write("shop.py", APP)
    before = sys.path.copy()
    assert reason("shop:app", directory=directory) == f"there is no directory {directory!r}"
    assert sys.path == before


def test_a_working_directory_that_was_removed(write: Write, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert reason("shop:app") == "there is no directory '.'"


# The parser, given anything.

NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True)
LITERALS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10)
    | st.binary(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
SHAPED = st.lists(
    st.sampled_from(
        [
            "shop",
            "web",
            ".",
            ":",
            "(",
            ")",
            ",",
            "=",
            "'",
            '"',
            "/",
            "\\",
            ".py",
            "*",
            "\0",
            " ",
            "1",
            "-",
            "{",
            "f'",
        ]
    ),
    max_size=12,
).map("".join)


@given(st.text() | SHAPED)
@example("shop:create_app('\\d')")
@example("shop:create_app(1if 1else 2)")
def test_any_text_is_a_name_or_an_error(text: str) -> None:
    try:
        parsed = AppName.parse(text)
    except AppImportError:
        return
    assert parsed.text == text
    assert text.startswith(parsed.module)
    assert (parsed.attributes is None) == (":" not in text.partition("(")[0])
    assert (parsed.arguments is None) == ("(" not in text)


@given(
    st.lists(NAMES, min_size=1, max_size=3).map(".".join).filter(lambda module: not module.endswith(".py")),
    st.lists(NAMES, min_size=1, max_size=3).map(tuple),
    st.lists(LITERALS, max_size=3).map(tuple),
    st.dictionaries(NAMES.filter(lambda name: not iskeyword(name)), LITERALS, max_size=3),
)
def test_what_is_written_is_what_is_read(
    module: str, attributes: tuple[str, ...], positional: tuple[object, ...], keywords: dict[str, object]
) -> None:
    written = [repr(value) for value in positional] + [
        f"{name}={value!r}" for name, value in keywords.items()
    ]
    text = f"{module}:{'.'.join(attributes)}"
    assert AppName.parse(text) == AppName(text, module, attributes, None)
    text += f"({', '.join(written)})"
    assert AppName.parse(text) == AppName(text, module, attributes, Arguments(positional, keywords))


# -- other objects


def test_any_object_is_found_as_the_app_is(write: Write) -> None:
    write("shop.py", "number = 3\ndef make(name, *, size=1): return name * size\n")
    assert load_object("shop:number", kind="thing") == 3
    assert load_object("shop.number", kind="thing") == 3
    assert load_object("shop:make('a', size=2)", kind="thing") == "aa"
    assert load_object("shop", kind="thing") is sys.modules["shop"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("missing:f", "No module named 'missing'"),
        ("shop:mak", "module 'shop' has no attribute 'mak' (did you mean 'make'?)"),
        ("shop:make()", "calling it raised ZeroDivisionError: division by zero"),
        ("shop/web.py", "it is a path: write 'shop.web:app' and --app-dir if that is in another folder"),
    ],
)
def test_its_errors_say_what_it_is_for(write: Write, name: str, text: str) -> None:
    write("shop.py", "def make(): 1 / 0\n")
    with pytest.raises(AppImportError) as raised:
        load_object(name, kind="thing")
    assert str(raised.value) == f"Cannot import thing {name!r}: {text}"
