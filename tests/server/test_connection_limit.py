"""The connection limit, kept to exactly, and a system that has no descriptors left."""

from __future__ import annotations

import contextlib
import errno
import logging
import resource
import select
import socket
import threading
from collections.abc import Callable

import pytest

from tests.conftest import ServeInThread
from tests.server.support import (
    DEADLINE,
    Client,
    GatedApp,
    StreamingApp,
    eventually,
    hello,
    request,
    server_threads,
)
from waitress_async.server.listeners import Address, Listener
from waitress_async.server.protocol import HTTPProtocol

REACHED = "total open connections reached the connection limit"
DROPPED = "total open connections dropped below the connection limit"


def is_silent(client: Client) -> bool:
    """Whether the client has been told nothing, not even after a while."""
    return not select.select([client.sock], [], [], 0.1)[0]


def test_at_the_limit_accepting_pauses_and_then_resumes(
    serve_in_thread: ServeInThread, gated: GatedApp, caplog: pytest.LogCaptureFixture
) -> None:
    """Where all are busy. Of those that are idle see test_load."""
    caplog.set_level(logging.INFO, "waitress_async")
    server = serve_in_thread(gated, connection_limit=2)

    def logged(text: str) -> int:
        return sum(text in record.getMessage() for record in list(caplog.records))

    with Client(server.address) as first, Client(server.address) as second:
        first.send(request("/first"))
        second.send(request("/second"))
        gated.wait_entered(2)
        assert logged(REACHED) == 0
        with Client(server.address) as third:  # the system's backlog takes it
            third.send(request("/third"))
            eventually(lambda: logged(REACHED) == 1, "it was said that the limit is reached")
            assert is_silent(third)
            assert sorted(gated.entered) == ["/first", "/second"]
            assert logged(DROPPED) == 0
            first.reset()
            eventually(lambda: logged(DROPPED) == 1, "it was said that there is room again")
            gated.wait_entered(3)
            with Client(server.address) as fourth:
                fourth.send(request("/fourth"))
                assert is_silent(fourth)
                second.reset()
                gated.wait_entered(4)
                gated.let_go(4)
                for client, path in ((third, b"/third"), (fourth, b"/fourth")):
                    assert client.receive().body == path
    levels = {record.levelno for record in caplog.records if REACHED in record.getMessage()}
    assert levels == {logging.WARNING}


class OneAtATime(socket.socket):
    """A listening socket that gives one connection in each turn of the loop."""

    given = False

    def accept(self) -> tuple[socket.socket, object]:
        self.given = not self.given
        if not self.given:
            raise BlockingIOError
        return super().accept()


@pytest.mark.parametrize("kind", [socket.socket, OneAtATime], ids=["in bursts", "one at a time"])
@pytest.mark.parametrize("limit", [1, 3, 20])
def test_every_connection_up_to_the_limit_is_served(
    serve_in_thread: ServeInThread, gated: GatedApp, limit: int, kind: Callable[[], socket.socket]
) -> None:
    """None is counted twice while it is on its way, or room would be taken by nobody until one is lost."""
    sock = kind()
    sock.bind(("127.0.0.1", 0))
    server = serve_in_thread(gated, connection_limit=limit, sockets=[sock], threads=limit)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(server.address)) for _ in range(limit)]
        for client in clients:
            client.sock.settimeout(5)
            client.send(request())
        gated.wait_entered(limit)
        late = stack.enter_context(Client(server.address))
        late.send(request("/late"))
        assert is_silent(late)
        gated.let_go(limit + 1)
        for client in (*clients, late):
            assert client.receive().status == 200


def test_a_burst_is_served_in_the_end(serve_in_thread: ServeInThread) -> None:
    server = serve_in_thread(hello, connection_limit=5)
    clients = [Client(server.address) for _ in range(40)]
    try:
        for client in clients:
            client.send(request("/", "Connection: close\r\n"))
        for client in clients:
            assert client.receive().status == 200
    finally:
        for client in clients:
            client.sock.close()


class Exhausted(socket.socket):
    """A listening socket on a system that has no descriptor left, until it is told otherwise."""

    attempts = 0
    exhausted = True

    def accept(self) -> tuple[socket.socket, object]:
        self.attempts += 1
        if self.exhausted:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_without_descriptors_accepting_does_not_spin(
    serve_in_thread: ServeInThread, caplog: pytest.LogCaptureFixture
) -> None:
    sock = Exhausted()
    sock.bind(("127.0.0.1", 0))
    server = serve_in_thread(hello, sockets=[sock])
    with Client(server.address) as client:
        client.send(request())
        eventually(lambda: sock.attempts, "the server tried")
        assert is_silent(client)
        assert sock.attempts <= 2
        sock.exhausted = False
        assert client.receive().status == 200
    assert sock.attempts < 10
    assert "Too many open files" in caplog.text


def test_a_server_stops_while_it_cannot_accept(serve_in_thread: ServeInThread) -> None:
    sock = Exhausted()
    sock.bind(("127.0.0.1", 0))
    server = serve_in_thread(hello, sockets=[sock])
    with Client(server.address):
        eventually(lambda: sock.attempts, "the server tried")
        server.stop()
    assert server_threads() == []


def test_the_limit_keeps_below_the_descriptors(
    serve_in_thread: ServeInThread,
    gated: GatedApp,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (106, 106))
    server = serve_in_thread(gated, connection_limit=500)
    eventually(lambda: "connection_limit 500 lowered to 2 " in caplog.text, "it was said")
    with Client(server.address) as first, Client(server.address) as second, Client(server.address) as third:
        for client in (first, second, third):
            client.send(request())
        gated.wait_entered(2)
        assert is_silent(third)
        assert len(gated.entered) == 2
        second.reset()
        gated.wait_entered(3)
        gated.let_go(3)
        assert first.receive().status == third.receive().status == 200


@pytest.mark.parametrize("end", [None, HTTPProtocol.abort], ids=["to make room", "by an abort"])
@pytest.mark.parametrize("turns", range(5))
def test_an_arrival_that_is_cut_while_its_transport_opens_leaves_nothing(
    serve_in_thread: ServeInThread,
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[[HTTPProtocol], object] | None,
    turns: int,
) -> None:
    """After however many turns of the loop; its request is there already, or is not."""
    app = StreamingApp()
    server = serve_in_thread(app)
    connections = server.server._runtime.connections
    accept = connections._accept
    accepted = threading.Event()

    def cut(turns: int) -> None:
        if turns:
            server.loop.call_soon(cut, turns - 1)
            return
        for arrival in connections._on_their_way():
            arrival.cancel(end)
        accepted.set()

    def accept_and_cut(sock: socket.socket, address: Address, listener: Listener) -> bool:
        assert select.select([sock], [], [], DEADLINE)[0]  # the request
        room = accept(sock, address, listener)
        cut(turns)
        return room

    monkeypatch.setattr(connections._listeners[0], "_on_accept", accept_and_cut)
    with Client(server.address) as client:
        client.send(request())
        assert accepted.wait(DEADLINE)
        client.sock.settimeout(0.1)
        with contextlib.suppress(OSError):
            client.sock.recv(1)
    eventually(lambda: not len(connections), "nothing is left")
    eventually(lambda: app.closed.is_set() or not app.written, "the app is told")
    assert not connections._protocols
