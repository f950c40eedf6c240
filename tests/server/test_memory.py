"""The bound on memory, for all connections together: who waits, who goes on, and that all do in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.conftest import RunningServer, ServeInThread
from tests.server.support import Client, eventually, memory_used, request, settled, small_listener

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

Connect = Callable[[RunningServer], Client]

MIB = 1 << 20


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [])
    if environ["PATH_INFO"] == "/list":
        return [bytes(MIB)] * 3
    if environ["PATH_INFO"] == "/generated":
        return (bytes(MIB) for _ in range(3))
    return [b"%d" % len(environ["wsgi.input"].read())]


@pytest.fixture
def many() -> Iterator[ExitStack]:
    with ExitStack() as clients:
        yield clients


def test_bodies_below_every_threshold_do_not_add_up(serve_in_thread: ServeInThread, many: ExitStack) -> None:
    limit = 2 * MIB
    server = serve_in_thread(app, buffer_memory=limit)
    clients = [many.enter_context(Client(server.address)) for _ in range(40)]
    for client in clients:
        client.send(request("/", "Content-Length: 200000\r\n", method="POST"))
    for client in clients:
        client.send(bytes(100_000))
    settled(lambda: memory_used(server))
    eventually(lambda: memory_used(server) <= limit, "what is too much is on disk")
    for client in clients:
        client.send(bytes(100_000))
    assert [client.receive().body for client in clients] == [b"200000"] * 40
    eventually(lambda: memory_used(server) == 0, "nothing is counted")


@pytest.mark.parametrize("path", ["/list", "/generated"])
def test_slow_downloads_do_not_stop_uploads(
    serve_in_thread: ServeInThread, many: ExitStack, connect: Connect, path: str
) -> None:
    server = serve_in_thread(app, buffer_memory=300_000, sockets=[small_listener()])
    for _ in range(6):
        many.enter_context(Client(server.address, receive_buffer=4_096)).send(request(path))
    settled(lambda: memory_used(server))
    for _ in range(3):
        with connect(server) as upload:
            upload.send(request("/", "Content-Length: 500000\r\n", method="POST"))
            upload.send(bytes(500_000))
            assert upload.receive().body == b"500000"


def test_uploads_go_on_after_neither_memory_nor_disk_had_room(
    serve_in_thread: ServeInThread, many: ExitStack, connect: Connect
) -> None:
    server = serve_in_thread(app, buffer_memory=200_000, spool_limit=100_000, inbuf_overflow=400_000)
    clients = [many.enter_context(Client(server.address)) for _ in range(6)]
    for client in clients:
        client.send(request("/", "Content-Length: 300000\r\n", method="POST") + bytes(100_000))
    settled(lambda: memory_used(server))
    many.close()  # which is not seen before there is room to read again
    eventually(lambda: memory_used(server) == 0, "nothing is counted")
    eventually(lambda: not server.server._runtime.connections.short_of_memory, "memory is there again")
    with connect(server) as client:
        client.send(request("/", "Content-Length: 40000\r\n", method="POST"))
        client.send(bytes(20_000))
        client.send(bytes(20_000))
        assert client.receive().body == b"40000"


def test_whole_responses_go_to_disk_when_memory_is_short(
    serve_in_thread: ServeInThread, many: ExitStack
) -> None:
    server = serve_in_thread(app, buffer_memory=MIB, sockets=[small_listener()])
    clients = [many.enter_context(Client(server.address, receive_buffer=4_096)) for _ in range(10)]
    for client in clients:
        client.send(request("/list"))
    settled(lambda: server.server._runtime.spool.used)
    assert server.server._runtime.spool.used > 10 * MIB
    assert memory_used(server) < 8 * MIB
    for client in clients:
        assert client.receive().body == bytes(3 * MIB)
    eventually(lambda: memory_used(server) == 0, "nothing is counted")
    eventually(lambda: server.server._runtime.spool.files == 0, "no temporary file")
