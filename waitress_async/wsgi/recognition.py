"""Tell, without calling it, what is surely no WSGI application, and what to do with it instead.

Only what is sure counts. A decorator may show another signature than it has, a proxy another class, and an
object in C shows nothing: so nothing is taken from `__wrapped__`, `__signature__` or `__class__`, only from
the code of the Python function that a call runs. Who is in doubt is called, and shows it then.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_VARARGS
from sys import maxsize
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final, TypeGuard

from waitress_async.errors import NotWSGIError

_ASGI_SERVER: Final = "an ASGI server such as uvicorn or hypercorn"

_ASGI_ADVICE: Final = f"run it with {_ASGI_SERVER}, or wrap it in a2wsgi.ASGIMiddleware to serve it here"
_DJANGO_ADVICE: Final = "serve the one in the 'wsgi.py' beside its 'asgi.py' instead"

# Partials in partials and objects in objects, before giving up: what refers to itself has no end.
_DEPTH: Final = 32


def check_application(app: object, name: str = "") -> None:
    """Refuse what is surely no WSGI application (PEP 3333), in any thread and without calling it.

    That is what cannot be called, or not with two arguments, what gives a coroutine or an async generator, an
    ASGI application of either version, and a class that is not one itself because its instances cannot be
    iterated. Everything else passes. `name` is what the command was given for `app`, if that is no call.

    Raises NotWSGIError. Its message is one sentence that says what `app` is, and what to use instead.
    """
    _check_callable(app)
    if _is_class(app):
        _check_class(app)
        return
    call = _python_call(app)
    if call is not None and call.is_asgi:
        raise NotWSGIError(_asgi(app, f"{_named(app)} is an ASGI application"))
    _check_sync(call)
    if call is not None and not call.required <= 2 <= call.accepted:
        raise NotWSGIError(_other_arguments(app, call, name))


def check_factory(factory: object) -> None:
    """Refuse what surely gives no WSGI application when it is called as a factory, without calling it.

    Raises NotWSGIError, as `check_application` does, for what cannot be called or would have to be awaited.
    """
    _check_callable(factory)
    if _is_class(factory):
        return
    call = _python_call(factory)
    if call is not None and call.is_async and call.is_asgi:
        raise NotWSGIError(_asgi(factory, f"{_named(factory)} is an ASGI application and no factory"))
    _check_sync(call)


@dataclass(frozen=True, slots=True)
class _PythonCall:
    """A call of an object: the Python function it runs, and what that is given beforehand."""

    function: FunctionType
    bound: int  # positional arguments before the caller's: `self`, and those of partials
    keywords: frozenset[str]

    @property
    def code(self) -> CodeType:
        return self.function.__code__

    @property
    def is_async(self) -> bool:
        return bool(self.code.co_flags & (CO_COROUTINE | CO_ASYNC_GENERATOR))

    @property
    def is_asgi(self) -> bool:
        """Whether it is one of ASGI 3, or the first half of one of ASGI 2, by the names that the ASGI
        specification gives to the parameters. Either way two positional arguments are not what it takes."""
        if self._left_of(self._without_default) == ("scope", "receive", "send"):
            return True
        return self._left_of(self._positional) == ("scope",) and not self.code.co_flags & CO_VARARGS

    @property
    def required(self) -> int:
        """How many positional arguments the caller has to give."""
        return len(self._left_of(self._without_default))

    @property
    def accepted(self) -> int:
        """How many positional arguments the caller may give: up to a parameter that has its value already."""
        left = self._positional[self.bound :]
        for number, name in enumerate(left):
            if name in self.keywords:
                return number
        return maxsize if self.code.co_flags & CO_VARARGS else len(left)

    @property
    def _positional(self) -> tuple[str, ...]:
        return self.code.co_varnames[: self.code.co_argcount]

    @property
    def _without_default(self) -> tuple[str, ...]:
        return self._positional[: self.code.co_argcount - len(self.function.__defaults__ or ())]

    def _left_of(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names[self.bound :] if name not in self.keywords)


def _python_call(app: Any) -> _PythonCall | None:
    """What a call of `app` runs, behind partials, bound methods and `__call__`; None if it cannot be told."""
    bound = 0
    keywords: frozenset[str] = frozenset()
    for _ in range(_DEPTH):
        kind = type(app)  # a proxy's class, not that of what it stands for
        if kind is functools.partial:
            bound += len(app.args)
            keywords |= app.keywords.keys()
            app = app.func
        elif kind is MethodType:
            bound += 1
            app = app.__func__
        elif kind is FunctionType:
            return _PythonCall(app, bound, keywords)
        else:
            call = _attribute_of(kind, "__call__")
            if type(call) is FunctionType:
                app = MethodType(call, app)
            elif type(call) is staticmethod:
                app = call.__func__
            else:
                return None  # in C, or a descriptor, which would have to be run
    return None


def _check_callable(app: object) -> None:
    if not callable(app):
        raise NotWSGIError(
            f"{_named(app)} is not callable, and a WSGI application is called with environ and start_response"
        )


def _check_sync(call: _PythonCall | None) -> None:
    if call is not None and call.is_async:
        kind = "a coroutine function" if call.code.co_flags & CO_COROUTINE else "an async generator function"
        raise NotWSGIError(
            f"{_path(call.function)} is {kind}, which nobody awaits here: write it with 'def', "
            f"or run it with {_ASGI_SERVER} if it is an ASGI application"
        )


def _other_arguments(app: object, call: _PythonCall, name: str) -> str:
    number = call.required if call.required > 2 else call.accepted
    takes = f"{number or 'no'} argument{'' if number == 1 else 's'}"
    if not name:
        advice = "give what it returns"
    elif call.required:
        advice = f"write '{name}(...)' with its arguments"
    else:
        advice = f"write '{name}()' or give --call"
    return f"{_named(app)} takes {takes} and not environ and start_response: if it is a factory, {advice}"


def _check_class(cls: type) -> None:
    """A class is a WSGI application if its instances are iterables, which is how PEP 3333 puts it."""
    if _attribute_of(type(cls), "__call__") is not vars(type)["__call__"]:
        return  # the metaclass decides what a call gives
    if _attribute_of(cls, "__new__") is not vars(object)["__new__"]:
        return  # the class itself does
    if any(_attribute_of(cls, name) is not None for name in ("__iter__", "__getitem__", "__aiter__")):
        return
    call = _attribute_of(cls, "__call__")
    if type(call) is FunctionType and call.__code__.co_flags & CO_COROUTINE:
        raise NotWSGIError(_asgi(cls, f"{_named(cls)} makes ASGI applications"))
    raise NotWSGIError(
        f"{_named(cls)} is no application itself, for its instances are no iterables: give an instance of it"
    )


def _is_class(app: object) -> TypeGuard[type]:
    return issubclass(type(app), type)  # isinstance() would ask a proxy what it stands for


def _asgi(app: object, sentence: str) -> str:
    cls = app if _is_class(app) else type(app)
    django = any(base.__module__ == "django.core.handlers.asgi" for base in cls.__mro__)
    return f"{sentence}: {_DJANGO_ADVICE if django else _ASGI_ADVICE}"


def _attribute_of(cls: type, name: str) -> object:
    """The attribute of a class as it was written: no descriptor and no metaclass has a say."""
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


def _named(app: Any) -> str:
    """What `app` is, in a few words, without running code of its own as `repr()` would."""
    kind = type(app)
    if app is None:
        return "None"
    if _is_class(app):
        return f"the class {_path(app)}"
    if issubclass(kind, ModuleType):
        return f"the module {app.__name__}"
    if kind is FunctionType:
        return f"the function {_path(app)}"
    if kind is MethodType and type(app.__func__) is FunctionType:
        return f"the method {_path(app.__func__)}"
    return f"an instance of {_path(kind)}"


def _path(named: Any) -> str:
    module = named.__module__
    return named.__qualname__ if module == "builtins" else f"{module}.{named.__qualname__}"
