from __future__ import annotations

import functools
import re
import types
from abc import ABC
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar
from unittest.mock import AsyncMock, MagicMock, Mock, create_autospec
from wsgiref.simple_server import demo_app
from wsgiref.validate import validator

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from asgiref.wsgi import WsgiToAsgi
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.local import LocalProxy
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.wrappers import Request, Response

from waitress_async.errors import NotWSGIError
from waitress_async.wsgi.recognition import check_application, check_factory

T = TypeVar("T")

SERVER = "an ASGI server such as uvicorn or hypercorn"
WRAP = f"run it with {SERVER}, or wrap it in a2wsgi.ASGIMiddleware to serve it here"
PLAIN = f"which nobody awaits here: write it with 'def', or run it with {SERVER} if it is an ASGI application"
OTHERS = "and not environ and start_response: if it is a factory, give what it returns"
HERE = __name__


class Called(BaseException):
    """Nothing here may be called."""


def wsgi(environ: Any, start_response: Any) -> Any:
    raise Called


def other_names(a: Any, /, b: Any, *, c: Any = None) -> Any:
    raise Called


def misleading(scope: Any, receive: Any) -> Any:
    raise Called


def one_and_more(scope: Any, *rest: Any) -> Any:
    raise Called


def takes_defaults(a: Any = None, b: Any = None, c: Any = None) -> Any:
    raise Called


def takes_three(a: Any, b: Any, c: Any) -> Any:
    raise Called


def mounted(app: Any, scope: Any, receive: Any, send: Any) -> Any:
    raise Called


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    raise Called


def asgi_behind_def(scope: Any, receive: Any, send: Any, log: Any = None) -> Awaitable[None]:
    raise Called


def asgi_2(scope: Any) -> Any:
    raise Called


async def coroutine(environ: Any, start_response: Any) -> Any:
    raise Called


async def async_generator(environ: Any, start_response: Any) -> AsyncIterator[bytes]:
    if environ is not None:
        raise Called
    yield b""


@functools.wraps(asgi)
def synchronous(*args: Any) -> Any:
    raise Called


def with_a_signature(*args: Any) -> Any:
    raise Called


with_a_signature.__signature__ = create_autospec(asgi).__signature__  # type: ignore[attr-defined]


class App:
    def __call__(self, environ: Any, start_response: Any) -> Any:
        raise Called

    def method(self, environ: Any, start_response: Any) -> Any:
        raise Called

    async def coroutine(self, environ: Any, start_response: Any) -> Any:
        raise Called

    async def asgi(self, scope: Any, receive: Any, send: Any) -> None:
        raise Called

    @classmethod
    async def from_class(cls, environ: Any, start_response: Any) -> Any:
        raise Called


class Mounted:
    def __call__(self, app: Any, environ: Any, start_response: Any) -> Any:
        raise Called


class Static:
    __call__ = staticmethod(wsgi)


class AsyncStatic:
    __call__ = staticmethod(asgi)


class ASGI(Generic[T]):
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raise Called


class ASGIMiddleware(ASGI[int]):
    pass


class ASGI2:
    def __init__(self, scope: Any) -> None:
        raise Called

    async def __call__(self, receive: Any, send: Any) -> None:
        raise Called


class AsyncCall:
    async def __call__(self, *args: Any) -> Any:
        raise Called


class Response1:
    """As PEP 3333 has it: the class is the application, its instances are the responses."""

    def __init__(self, environ: Any, start_response: Any) -> None:
        raise Called

    def __iter__(self) -> Iterator[bytes]:
        raise Called


class Response2(Response1, ABC):
    pass


class ByIndex:
    def __getitem__(self, index: int) -> bytes:
        raise Called


class AsyncResponse:
    def __aiter__(self) -> AsyncIterator[bytes]:
        raise Called


class New:
    def __new__(cls, environ: Any, start_response: Any) -> Any:
        raise Called


class Meta(type):
    def __call__(cls, environ: Any, start_response: Any) -> Any:
        raise Called


class OfMeta(metaclass=Meta):
    pass


class Partial(functools.partial[Any]):
    def __call__(self, environ: Any, start_response: Any) -> Any:
        raise Called


class Descriptor:
    def __get__(self, instance: object, owner: type) -> Any:
        raise Called


class Described:
    __call__ = Descriptor()


class Circular:
    __call__: Any


circular: Any = Circular()
Circular.__call__ = staticmethod(circular)  # type: ignore[method-assign]


class Liar:
    """Says that it is something else, as proxies do."""

    def __init__(self, kind: type) -> None:
        self.kind = kind

    @property
    def __class__(self) -> type:
        return self.kind

    @__class__.setter
    def __class__(self, _: type) -> None: ...

    def __call__(self, environ: Any, start_response: Any) -> Any:
        raise Called


def unbound() -> Any:
    raise Called


APPS: Mapping[str, Any] = {
    "function": wsgi,
    "lambda": lambda *args: None,
    "names of its own": other_names,
    "two of ASGI's names": misleading,
    "scope and more": one_and_more,
    "method": App().method,
    "instance": App(),
    "static": Static(),
    "partial": functools.partial(mounted, None, None),
    "partial that leaves two": functools.partial(mounted, None, send=None),
    "partial of a partial": functools.partial(functools.partial(wsgi)),
    "a partial with a call of its own": Partial(asgi),
    "partial of an instance": functools.partial(App()),
    "partial of an instance that takes three": functools.partial(Mounted(), None),
    "method of an instance": types.MethodType(Mounted(), "self"),
    "method of a partial": types.MethodType(functools.partial(mounted, None), "self"),
    "defaults": takes_defaults,
    "one of three is given": functools.partial(takes_three, c=None),
    "wraps what is async": synchronous,
    "shows the signature of what is async": with_a_signature,
    "class that is an app": Response1,
    "class that inherits": Response2,
    "class of a sequence": ByIndex,
    "class of an async iterable": AsyncResponse,
    "class with __new__": New,
    "class with a metaclass": OfMeta,
    "descriptor": Described(),
    "circular": circular,
    "liar": Liar(types.FunctionType),
    "liar, a class": Liar(type),
    "built-in": len,
    "built-in class": dict,
    "built-in method": {}.get,
    "built-in method of a class": dict.get,
    "generic alias": list[int],
    "mock": Mock(),
    "magic mock": MagicMock(),
    "mock of a function": Mock(spec=wsgi),
    "mock of a partial": Mock(spec=functools.partial),
    "autospec": create_autospec(wsgi),
    "mock's class": Mock,
    "wsgiref": demo_app,
    "wsgiref validator": validator(wsgi),
    "Flask": Flask(__name__),
    "Flask's method": Flask(__name__).wsgi_app,
    "Django": WSGIHandler.__new__(WSGIHandler),
    "middleware": ProxyFix(wsgi),
    "Werkzeug's function": Request.application(lambda request: Response()),
    "a response": Response(),
    "made synchronous": async_to_sync(asgi),
}

WSGI_TO_ASGI = WsgiToAsgi(wsgi)  # type: ignore[no-untyped-call]
DJANGO_ASGI = ASGIHandler.__new__(ASGIHandler)

REFUSED: Mapping[str, tuple[Any, str]] = {
    "None": (None, "None is not callable, and a WSGI application is called with environ and start_response"),
    "str": ("shop:app", "an instance of str is not callable, "),
    "object": (Response1.__new__(Response1), f"an instance of {HERE}.Response1 is not callable, "),
    "module": (types, "the module types is not callable, "),
    "coroutine function": (coroutine, f"{HERE}.coroutine is a coroutine function, {PLAIN}"),
    "async generator": (
        async_generator,
        f"{HERE}.async_generator is an async generator function, {PLAIN}",
    ),
    "partial": (functools.partial(coroutine), f"{HERE}.coroutine is a coroutine function, {PLAIN}"),
    "method": (App().coroutine, f"{HERE}.App.coroutine is a coroutine function, {PLAIN}"),
    "class method": (App.from_class, f"{HERE}.App.from_class is a coroutine function, {PLAIN}"),
    "partial of a method": (
        functools.partial(App().coroutine),
        f"{HERE}.App.coroutine is a coroutine function, {PLAIN}",
    ),
    "instance": (AsyncCall(), f"{HERE}.AsyncCall.__call__ is a coroutine function, {PLAIN}"),
    "partial of an instance": (
        functools.partial(AsyncCall(), None),
        f"{HERE}.AsyncCall.__call__ is a coroutine function, {PLAIN}",
    ),
    "made async": (
        sync_to_async(wsgi),
        f"asgiref.sync.SyncToAsync.__call__ is a coroutine function, {PLAIN}",
    ),
    "ASGI function": (asgi, f"the function {HERE}.asgi is an ASGI application: {WRAP}"),
    "ASGI method": (App().asgi, f"the method {HERE}.App.asgi is an ASGI application: {WRAP}"),
    "ASGI instance": (ASGI(), f"an instance of {HERE}.ASGI is an ASGI application: {WRAP}"),
    "ASGI subclass": (
        ASGIMiddleware(),
        f"an instance of {HERE}.ASGIMiddleware is an ASGI application: {WRAP}",
    ),
    "ASGI static": (AsyncStatic(), f"an instance of {HERE}.AsyncStatic is an ASGI application: {WRAP}"),
    "ASGI partial": (
        functools.partial(mounted, None),
        f"an instance of functools.partial is an ASGI application: {WRAP}",
    ),
    "ASGI partial with a keyword": (
        functools.partial(asgi_behind_def, log=None),
        f"an instance of functools.partial is an ASGI application: {WRAP}",
    ),
    "ASGI method of a partial": (
        types.MethodType(functools.partial(mounted), "self"),
        f"an instance of method is an ASGI application: {WRAP}",
    ),
    "ASGI without async": (
        asgi_behind_def,
        f"the function {HERE}.asgi_behind_def is an ASGI application: {WRAP}",
    ),
    "ASGI 2": (asgi_2, f"the function {HERE}.asgi_2 is an ASGI application: {WRAP}"),
    "ASGI 2 class": (ASGI2, f"the class {HERE}.ASGI2 makes ASGI applications: {WRAP}"),
    "ASGI class": (ASGIMiddleware, f"the class {HERE}.ASGIMiddleware makes ASGI applications: {WRAP}"),
    "asgiref": (WSGI_TO_ASGI, f"an instance of asgiref.wsgi.WsgiToAsgi is an ASGI application: {WRAP}"),
    "Django": (
        DJANGO_ASGI,
        "an instance of django.core.handlers.asgi.ASGIHandler is an ASGI application: "
        "serve the one in the 'wsgi.py' beside its 'asgi.py' instead",
    ),
    "factory": (unbound, f"the function {HERE}.unbound takes no arguments {OTHERS}"),
    "one argument": (lambda a: None, f"the function {HERE}.<lambda> takes 1 argument {OTHERS}"),
    "one of ASGI's names, and a default": (
        lambda scope=None: None,
        f"the function {HERE}.<lambda> is an ASGI application: {WRAP}",
    ),
    "three arguments": (takes_three, f"the function {HERE}.takes_three takes 3 arguments {OTHERS}"),
    "three arguments and more": (
        lambda a, b, c, *more: None,
        f"the function {HERE}.<lambda> takes 3 arguments {OTHERS}",
    ),
    "partial that leaves one": (
        functools.partial(wsgi, None),
        f"an instance of functools.partial takes 1 argument {OTHERS}",
    ),
    "partial that has both": (
        functools.partial(wsgi, None, None),
        f"an instance of functools.partial takes no arguments {OTHERS}",
    ),
    "partial that has the first": (
        functools.partial(one_and_more, scope=None),
        f"an instance of functools.partial takes no arguments {OTHERS}",
    ),
    "instance of three arguments": (Mounted(), f"an instance of {HERE}.Mounted takes 3 arguments {OTHERS}"),
    "method with one left": (
        types.MethodType(functools.partial(wsgi), "self"),
        f"an instance of method takes 1 argument {OTHERS}",
    ),
    "class": (
        App,
        f"the class {HERE}.App is no application itself, for its instances are no iterables: "
        "give an instance of it",
    ),
    "Flask's class": (Flask, "the class flask.app.Flask is no application itself, "),
}


@pytest.mark.parametrize("app", APPS.values(), ids=APPS)
@pytest.mark.parametrize("check", [check_application, check_factory])
def test_what_may_be_an_application_passes(check: Callable[[object], None], app: object) -> None:
    check(app)


@pytest.mark.parametrize(("app", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_surely_none_is_refused(app: object, message: str) -> None:
    with pytest.raises(NotWSGIError) as raised:
        check_application(app)
    text = str(raised.value)
    assert text.startswith(message)
    assert "\n" not in text
    assert raised.value.__cause__ is None


@pytest.mark.parametrize(
    ("factory", "advice"),
    [
        (unbound, "write 'shop:make()' or give --call"),
        (lambda debug=False: None, "write 'shop:make()' or give --call"),
        (lambda name: None, "write 'shop:make(...)' with its arguments"),
        (takes_three, "write 'shop:make(...)' with its arguments"),
    ],
)
def test_the_command_is_told_how_to_call_a_factory(factory: object, advice: str) -> None:
    with pytest.raises(NotWSGIError, match=rf": if it is a factory, {re.escape(advice)}$"):
        check_application(factory, "shop:make")


@given(
    parameters=st.lists(st.sampled_from(["", " = None"]), max_size=5).map(sorted),
    more=st.sampled_from(["", "*more"]),
    given_before=st.integers(0, 3),
    named=st.sets(st.sampled_from(["p0", "p1", "p2", "p3"])),
)
def test_it_is_refused_if_and_only_if_the_call_fails(
    parameters: list[str], more: str, given_before: int, named: set[str]
) -> None:
    """Python itself is asked, by calling what this test has made."""
    texts = [f"p{n}{default}" for n, default in enumerate(parameters)]
    made: Any = eval(f"lambda {', '.join([*texts, more] if more else texts)}: 'called'")
    known = named & {f"p{n}" for n in range(given_before, len(parameters))}
    app = functools.partial(made, *range(given_before), **dict.fromkeys(known))
    try:
        works = app({}, None) == "called"
    except TypeError:
        works = False
    if works:
        check_application(app)
    else:
        with pytest.raises(NotWSGIError, match=r"takes (no|[0-9]+) arguments? and not environ"):
            check_application(app)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (None, "None is not callable, "),
        (coroutine, f"{HERE}.coroutine is a coroutine function, {PLAIN}"),
        (async_generator, f"{HERE}.async_generator is an async generator function, {PLAIN}"),
        (asgi, f"the function {HERE}.asgi is an ASGI application and no factory: {WRAP}"),
        (ASGI(), f"an instance of {HERE}.ASGI is an ASGI application and no factory: {WRAP}"),
        (DJANGO_ASGI, "an instance of django.core.handlers.asgi.ASGIHandler is an ASGI application and no "),
    ],
)
def test_what_is_surely_no_factory_is_refused(factory: object, message: str) -> None:
    with pytest.raises(NotWSGIError) as raised:
        check_factory(factory)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("factory", [App, Flask, ASGI, asgi_2, asgi_behind_def, Response1, unbound])
def test_a_factory_may_be_a_class_and_take_what_it_likes(factory: object) -> None:
    check_factory(factory)


def wrapped(app: Any, wraps: Iterable[str]) -> Any:
    for wrap in wraps:
        if wrap == "partial":
            app = functools.partial(app)
        else:
            app = type("Static", (), {"__call__": staticmethod(app)})()
    return app


@given(st.lists(st.sampled_from(["partial", "static"]), max_size=12))
def test_however_it_is_wrapped(wraps: list[str]) -> None:
    check_application(wrapped(wsgi, wraps))
    for app in (coroutine, asgi):
        with pytest.raises(NotWSGIError):
            check_application(wrapped(app, wraps))


def test_who_is_in_doubt_passes() -> None:
    check_application(LocalProxy(unbound))
    check_application(AsyncMock())
    check_application(wrapped(asgi, ["static"] * 40))
