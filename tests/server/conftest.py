"""Apps and clients that are cleaned up before the server that they belong to is stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.conftest import RunningServer, ServeInThread
from tests.server.support import Client, GatedApp


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
