"""From the name of a WSGI application, or of another object, to the object."""

from __future__ import annotations

import ast
import difflib
import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from waitress_async.errors import AppImportError, NotWSGIError
from waitress_async.wsgi import check_application, check_factory

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

# The longest name, in characters. Python's parser, which reads arguments, recurses as deep as they nest.
_LONGEST: Final = 4096

# What applications and their factories are usually called.
_APPS: Final = ("app", "application", "wsgi")
_FACTORIES: Final = ("create_app", "make_app")

_LITERALS: Final = (
    "only literals can be arguments, and their closing parenthesis ends the name, "
    "as in 'shop:create_app(\"prod\", debug=False)'"
)

# A file's name up to the colon, which is not that of a drive, and what follows.
_FILE: Final = re.compile(r"((?:[A-Za-z]:(?=[/\\]))?[^:]*):?(.*)", re.DOTALL)


def load_app(name: str, *, call: bool = False, directory: str | None = None) -> WSGIApplication:
    """Import and return the WSGI application called `name`.

    `name` is `package.module:object`, where the object may have dots for attributes. Without the colon, as
    many of the dotted parts as can be are taken for modules and the rest for attributes. Either form may end
    in a call with literal arguments, `shop.web:create_app("prod", debug=False)`: the object is a factory, and
    what it returns is the application. `call` means the same as `()` at the end.

    `directory`, or else the working directory, is put at the front of `sys.path`, wherever else it stands
    there already, and stays.

    Raises AppImportError, which names `name`, if that cannot be understood, if the directory, a module or an
    attribute is missing, if code of the application raises meanwhile or wants to exit, or if the result is
    surely no WSGI application. Its `__cause__` is the exception that stopped the import, if there is one,
    with a traceback that begins in the application's code. KeyboardInterrupt goes through.
    """
    with _naming("WSGI application", name):
        parsed = AppName.parse(name)
        arguments = parsed.arguments
        if call:
            if arguments is not None:
                raise AppImportError("it is a call already: either write that or give --call")
            arguments = Arguments()
        found = _find(parsed, directory)
        if isinstance(found, ModuleType) and not callable(found):
            raise AppImportError(_advice_for_module(found))
        if arguments is None:
            with _refusing():
                check_application(found, name)
        else:
            with _refusing():
                check_factory(found)
            found = _call(found, arguments)
            with _refusing("it returned no application: "):
                check_application(found)
        app: WSGIApplication = found
        return app


def load_object(name: str, *, kind: str, directory: str | None = None) -> Any:
    """Import and return the object called `name`, written as for `load_app`; a call gives what it returns.

    `kind` is what errors call it. What it is good for is not looked at. Raises AppImportError, as `load_app`.
    """
    with _naming(kind, name):
        parsed = AppName.parse(name)
        found = _find(parsed, directory)
        return found if parsed.arguments is None else _call(found, parsed.arguments)


# The name: text -> what it says. Nothing is imported, nothing in it is run.


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a factory is called with."""

    positional: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `text`, which follows an opening parenthesis, up to the closing one that must end it.

        Raises ValueError for anything but literals (as `ast.literal_eval` knows them) separated by commas.
        """
        try:
            call = ast.parse(f"f({text}", mode="eval").body
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
                raise ValueError("more than one call")
            positional = tuple(ast.literal_eval(argument) for argument in call.args)
            keywords = {item.arg: ast.literal_eval(item.value) for item in call.keywords if item.arg}
        except (SyntaxError, TypeError, MemoryError, RecursionError) as error:  # and ValueError, as it is
            raise ValueError("no literals") from error
        if len(keywords) != len(call.keywords):
            raise ValueError("the same keyword twice, or **")
        return cls(positional, keywords)


@dataclass(frozen=True, slots=True)
class AppName:
    """The name of an application, taken apart."""

    text: str
    module: str
    attributes: tuple[str, ...] | None  # None without a colon: the last parts of `module` may be attributes
    arguments: Arguments | None  # None if the object is the application, not a factory of it

    @classmethod
    def parse(cls, text: str) -> Self:
        """Take `text` apart, as `load_app` describes it.

        Raises AppImportError, whose text is the reason alone, if it is something else.
        """
        if len(text) > _LONGEST:
            raise AppImportError(f"the name is longer than {_LONGEST} characters")
        path, parenthesis, rest = text.partition("(")
        if (advice := _advice_for_path(path, parenthesis + rest)) is not None:
            raise AppImportError(advice)
        module, colon, dotted = path.partition(":")
        if not all(module.split(".")):
            raise AppImportError(f"{module!r} is not the name of a module")
        attributes = tuple(dotted.split(".")) if dotted or (colon and parenthesis) else ()
        for attribute in attributes:
            if not attribute.isidentifier():
                raise AppImportError(f"{attribute!r} is not the name of an attribute")
        try:
            arguments = Arguments.parse(rest) if parenthesis else None
        except ValueError:
            raise AppImportError(_LITERALS) from None
        return cls(text, module, attributes if colon else None, arguments)


def _advice_for_path(name: str, call: str) -> str | None:
    """What to write instead of `name`, if that is the path of a file; `call` is what followed it."""
    path, attributes = _FILE.fullmatch(name).groups()  # type: ignore[union-attr]  # it matches any text
    if not path.endswith(".py") and not {"/", "\\"} & set(path):
        return None
    file: PurePath = (PureWindowsPath if {":", "\\"} & set(path) else PurePosixPath)(path.removesuffix(".py"))
    below = not file.anchor and ".." not in file.parts  # then the working directory is the place to look
    folder, modules = file.parent, [file.name.strip(".") or "MODULE"]
    while folder.name not in {"", ".."} and (below or os.path.isfile(folder / "__init__.py")):
        folder, modules = folder.parent, [folder.name, *modules]
    target = f"{'.'.join(modules)}:{attributes or 'app'}{call}"
    where = "and --app-dir if that is in another folder" if below else f"and --app-dir {str(folder)!r}"
    return f"it is a path: write {target!r} {where}"


# The object: what the name says -> what it stands for.


def _search(directory: str | None) -> None:
    """Have modules looked for in `directory` first, as Python does for a script's, or else where we are."""
    try:
        path = os.path.abspath(directory or os.curdir)
        exists = os.path.isdir(path)
    except OSError:  # the working directory itself was removed
        exists = False
    if not exists:
        raise AppImportError(f"there is no directory {directory or os.curdir!r}")
    if sys.path[:1] != [path]:
        sys.path.insert(0, path)


def _find(name: AppName, directory: str | None) -> Any:
    _search(directory)
    if name.attributes is None:
        found, rest = _import_longest(name.module)
    else:
        found, rest = _import(name.module), name.attributes
    for attribute in rest:
        with _reporting(f"reading {attribute!r}"):
            found = getattr(found, attribute)
    return found


def _call(found: Any, arguments: Arguments) -> Any:
    with _reporting("calling it"):
        return found(*arguments.positional, **arguments.keywords)


def _import(module: str) -> Any:
    with _reporting(f"importing {module!r}"):
        return importlib.import_module(module)


def _import_longest(dotted: str) -> tuple[Any, tuple[str, ...]]:
    """Import `dotted` up to its last part that is a module; return that module and the parts left over."""
    path, *rest = dotted.split(".")
    found = _import(path)
    while rest:
        below = f"{path}.{rest[0]}"
        with _reporting(f"looking for {below!r}"):
            is_module = hasattr(found, "__path__") and find_spec(below) is not None
        if not is_module:
            break
        path = below
        found = _import(path)
        del rest[0]
    return found, tuple(rest)


def _advice_for_module(module: ModuleType) -> str:
    usual = [*_APPS, *(f"{factory}()" for factory in _FACTORIES)]
    there = [name for name in usual if callable(vars(module).get(name.removesuffix("()")))]
    names = " or ".join(repr(f"{module.__name__}:{name}") for name in there)
    return f"it is a module: name the application in it, {f'perhaps {names}' if there else 'after a colon'}"


# What goes wrong.


@contextmanager
def _naming(kind: str, name: str) -> Iterator[None]:
    """Have an AppImportError whose text is the reason alone say what cannot be imported."""
    try:
        yield
    except AppImportError as error:
        shown = name if len(name) <= _LONGEST else f"{name[:64]}..."
        raise AppImportError(f"Cannot import {kind} {shown!r}: {error}") from error.__cause__


@contextmanager
def _refusing(prefix: str = "") -> Iterator[None]:
    """Raise AppImportError for what is found to be no application in the block."""
    try:
        yield
    except NotWSGIError as error:
        raise AppImportError(f"{prefix}{error}") from None


@contextmanager
def _reporting(doing: str) -> Iterator[None]:
    """Raise AppImportError for whatever code of the application raises in the block."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an exit too: the server would be gone without a word
        raise _failure(doing, error) from error


def _failure(doing: str, error: BaseException) -> AppImportError:
    error.__traceback__ = _from_app(error.__traceback__)
    if error.__traceback__ is None and isinstance(error, Exception):
        # No code of the application ran: a name is missing, or bad syntax.
        return AppImportError(f"{error}{_nearest(error)}")
    return AppImportError(f"{doing} raised {type(error).__name__}: {error}".rstrip(": "))


def _nearest(error: Exception) -> str:
    """A hint at the attribute that may have been meant, if one was missing."""
    if not isinstance(error, AttributeError):
        return ""
    try:
        names = difflib.get_close_matches(str(error.name), dir(error.obj), 1)
    except Exception:  # a `__dir__` of the application's; a hint is not worth more trouble
        return ""
    return f" (did you mean {names[0]!r}?)" if names else ""


def _from_app(frames: TracebackType | None) -> TracebackType | None:
    """`frames` without the leading ones of this module and of the import system."""
    while frames is not None:
        module: str = frames.tb_frame.f_globals.get("__name__", "")
        if module != __name__ and module.partition(".")[0] != "importlib":
            break
        frames = frames.tb_next
    return frames
