"""What goes to disk because nobody takes it does not keep all threads from what does not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tests.conftest import ServeInThread
from tests.server.support import Client, GatedApp, eventually, request, server_has_read
from waitress_async.server.bulky import BulkyPaths

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

SIZE = 8_000_000


class Downloads:
    """`/download` is large, and its chunks come in steps that `steps` lets through; all else is short."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.steps = threading.Semaphore(0)
        self.paced = False

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [])
        path = environ["PATH_INFO"]
        self.begun.append(path)
        if path != "/download":
            yield b"short"
            return
        if self.paced:
            assert self.steps.acquire(timeout=20)
        for _ in range(8):
            yield bytes(SIZE // 8)


def test_what_went_to_disk_once_leaves_a_thread_to_the_others(serve_in_thread: ServeInThread) -> None:
    app = Downloads()
    server = serve_in_thread(app, threads=4, spare_threads=0)
    bulky = server.server._runtime.bulky
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(server.address, receive_buffer=4_096)) for _ in range(6)]
        clients[0].send(request("/download"))
        eventually(lambda: "/download" in bulky, "it is known that it goes to disk")
        app.paced = True
        for client in clients[1:]:
            client.send(request("/download"))
        eventually(lambda: len(app.begun) == 3, "two of them hold a thread")
        with Client(server.address) as other:
            for _ in range(5):
                assert other.get("/").body == b"short"
        assert app.begun.count("/download") == 3
        app.steps.release(5)
        eventually(lambda: app.begun.count("/download") == 6, "each has its turn")
        for client in clients:
            assert len(client.receive().body) == SIZE


def test_what_is_taken_as_it_comes_is_not_held_back(serve_in_thread: ServeInThread) -> None:
    """Nor what is, having once not been."""
    app = Downloads()
    server = serve_in_thread(app, threads=2, spare_threads=0)
    bulky = server.server._runtime.bulky
    with Client(server.address, receive_buffer=4_096) as slow:
        slow.send(request("/download"))
        eventually(lambda: "/download" in bulky, "it is known that it goes to disk")
    with Client(server.address) as short:
        bulky.note("/", True)
        assert short.get("/").body == b"short"
        eventually(lambda: "/" not in bulky, "it is known that it does not")


def test_one_that_nobody_was_called_for_says_nothing(serve_in_thread: ServeInThread, gated: GatedApp) -> None:
    """Its client left while it was in the queue."""
    server = serve_in_thread(gated, threads=1, spare_threads=0)
    runtime = server.server._runtime
    server.loop.call_soon_threadsafe(runtime.bulky.note, "/download", True)
    with Client(server.address) as first, Client(server.address) as last:
        first.send(request("/first"))
        gated.wait_entered()
        with Client(server.address) as leaving:
            leaving.send(request("/download"))
            server_has_read(server)
            leaving.reset()
        eventually(lambda: len(runtime.connections) == 2, "it is known to be gone")
        last.send(request("/last"))
        gated.let_go(2)
        assert first.receive().status == last.receive().status == 200
    assert gated.entered == ["/first", "/last"]
    assert "/download" in runtime.bulky


def test_the_paths_added_last_are_remembered() -> None:
    paths = BulkyPaths()
    for number in range(3_000):
        paths.note(f"/{number}", True)
        paths.note("/kept", True)
    assert "/kept" in paths
    assert sum(f"/{number}" in paths for number in range(3_000)) == 999
    paths.note("/kept", False)
    paths.note("/never", False)
    assert "/kept" not in paths
