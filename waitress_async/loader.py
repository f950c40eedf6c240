"""From the name of a WSGI application to the application."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Any

from waitress_async.errors import AppImportError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


def load_app(name: str, *, call: bool = False) -> WSGIApplication:
    """Import and return the WSGI application called `name`.

    `name` is `package.module:object`, where the object may have dots for attributes. Without the colon, as
    many of the dotted parts as can be are taken for modules and the rest for attributes. With `call` the
    object is a factory: it is called without arguments and what it returns is the application.

    Raises AppImportError, which names `name`, if a module or an attribute is missing, if code of the
    application raises meanwhile, or if the result is not callable. Its `__cause__` is the exception that
    stopped the import, if there is one, with a traceback that begins in the application's code.
    """
    module_name, colon, attributes = name.partition(":")
    if colon:
        found = _import(name, module_name)
        rest = attributes.split(".")
    else:
        found, rest = _import_longest(name)
    for attribute in rest:
        try:
            found = getattr(found, attribute)
        except Exception as error:
            raise _failure(name, f"reading {attribute!r}", error) from error
    if not callable(found):
        raise AppImportError(f"{_cannot(name)}: {found!r} is not callable")
    if call:
        try:
            found = found()
        except Exception as error:
            raise _failure(name, "calling it", error) from error
        if not callable(found):
            raise AppImportError(f"{_cannot(name)}: it returned {found!r}, which is not callable")
    app: WSGIApplication = found
    return app


def _import(name: str, module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except Exception as error:
        raise _failure(name, f"importing {module_name!r}", error) from error


def _import_longest(name: str) -> tuple[Any, list[str]]:
    """Import `name` up to its last part that is a module; return that module and the parts left over."""
    path, *rest = name.split(".")
    found = _import(name, path)
    while rest and hasattr(found, "__path__") and find_spec(f"{path}.{rest[0]}"):
        path = f"{path}.{rest.pop(0)}"
        found = _import(name, path)
    return found, rest


def _failure(name: str, doing: str, error: Exception) -> AppImportError:
    error.__traceback__ = _from_app(error.__traceback__)
    if error.__traceback__ is None:  # no code of the application ran: a name is missing, or bad syntax
        reason = str(error)
    else:
        reason = f"{doing} raised {type(error).__name__}: {error}"
    return AppImportError(f"{_cannot(name)}: {reason}")


def _from_app(frames: TracebackType | None) -> TracebackType | None:
    """`frames` without the leading ones of this module and of the import system."""
    while frames is not None:
        module: str = frames.tb_frame.f_globals.get("__name__", "")
        if module != __name__ and module.partition(".")[0] != "importlib":
            break
        frames = frames.tb_next
    return frames


def _cannot(name: str) -> str:
    return f"Cannot import WSGI application {name!r}"
