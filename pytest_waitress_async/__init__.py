"""A pytest plugin: WSGI apps behind real sockets for as long as a test lasts. See docs/async-embedding.md.

A package beside `waitress_async`: pytest imports it wherever it is installed, and the server only where a
test asks for one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from waitress_async import Server

__all__ = ["ServeInThread", "ServeOnLoop"]


class ServeInThread(Protocol):
    """The type of the fixture `waitress_async_server`."""

    def __call__(self, app: WSGIApplication, **settings: object) -> Server:
        """Serve `app` until the end of the test. Raises what `Server` and its `start()` raise."""


class ServeOnLoop(Protocol):
    """The type of the fixture `waitress_async_server_on_loop`."""

    def __call__(self, app: WSGIApplication, **settings: object) -> AbstractAsyncContextManager[Server]:
        """A server of `app`, for `async with`. Raises what `Server` raises."""


@pytest.fixture
def waitress_async_server() -> Iterator[ServeInThread]:
    """`waitress_async_server(app, **settings)` serves a WSGI app, and returns a server with `url` and `port`.

    It is on a free port of 127.0.0.1 if the settings name no other place, on a loop of its own in a thread of
    its own, and is stopped at the end of the test.
    """
    with contextlib.ExitStack() as servers:
        yield lambda app, **settings: servers.enter_context(_server(app, settings).in_thread())


@pytest.fixture
def waitress_async_server_on_loop() -> ServeOnLoop:
    """`async with waitress_async_server_on_loop(app, **settings) as server` serves on the loop of the test.

    It needs no plugin for async fixtures. Otherwise it is as `waitress_async_server`.
    """
    return lambda app, **settings: _server(app, settings)


def _server(app: WSGIApplication, settings: dict[str, object]) -> Server:
    from waitress_async import Server

    # A test that has failed with a request in flight is not to wait for long.
    defaults: dict[str, object] = {"graceful_timeout": 5}
    if not settings.keys() & {"listen", "sockets", "unix_socket"}:
        defaults |= {"host": "127.0.0.1", "port": 0}
    return Server(app, **{**defaults, **settings})
