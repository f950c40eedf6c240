"""Apps and clients that are cleaned up before the server that they belong to is stopped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from tests.conftest import RunningServer, ServeInThread
from tests.server.support import Client, GatedApp, eventually, memory_used, temporary_files

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

ServeStreaming = Callable[..., RunningServer]


@pytest.fixture
def gated(serve_in_thread: ServeInThread) -> Iterator[GatedApp]:
    """An app behind a gate, which is opened at the end."""
    app = GatedApp()
    yield app
    app.let_go(10_000)


@pytest.fixture
def connect(serve_in_thread: ServeInThread) -> Iterator[Callable[[RunningServer], Client]]:
    """`connect(server)` gives a client, which is closed at the end."""
    clients: list[Client] = []

    def make(server: RunningServer) -> Client:
        clients.append(Client(server.address))
        return clients[-1]

    yield make
    for client in clients:
        client.sock.close()


@pytest.fixture
def serve_streaming(serve_in_thread: ServeInThread) -> Iterator[ServeStreaming]:
    """As `serve_in_thread`, but requests are streamed, and at the end nothing must be left of any."""
    servers: list[RunningServer] = []

    def start(app: WSGIApplication, **settings: object) -> RunningServer:
        servers.append(serve_in_thread(app, **{"stream_request_body": True, **settings}))
        return servers[-1]

    yield start
    for server in servers:
        bodies = server.server._runtime.outputs.async_bodies
        eventually(lambda: bodies._count == 0 and not bodies.tasks._tasks, "no async body is left")  # noqa: B023
        eventually(lambda: memory_used(server) == 0, "no memory is counted")  # noqa: B023
    if sys.platform == "linux":
        assert temporary_files() == 0
