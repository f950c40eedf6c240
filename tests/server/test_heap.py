"""Memory of a burst goes back to the system: when, and how often."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.conftest import ServeInThread
from tests.server.support import Client, eventually, request, small_listener
from waitress_async.buffers import BufferMemory
from waitress_async.server import heap as heap_module
from waitress_async.server.heap import Heap

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

MIB = 1 << 20


class Watched:
    """A heap, the memory that it watches, and what it has had called."""

    def __init__(self) -> None:
        self.memory = BufferMemory(1_000 * MIB)
        self.calls: list[Callable[[], None]] = []
        self.heap = Heap(self.memory, self.calls.append)

    def trims(self, used: int, now: float) -> bool:
        """Whether it is trimmed in a sweep at that time, with so much in use."""
        self.memory.add(used - self.memory.used)
        count = len(self.calls)
        self.heap.sweep(now)
        return len(self.calls) > count


def test_once_after_each_burst() -> None:
    watched = Watched()
    assert [watched.trims(used * MIB, 1) for used in (0, 20, 0, 31, 0)] == [False] * 5
    assert not watched.heap.awaits_trim
    assert [watched.trims(used * MIB, 2) for used in (40, 100, 13, 12, 0)] == [
        False,
        False,
        False,
        True,
        False,
    ]


def test_not_often() -> None:
    watched = Watched()
    assert not watched.trims(64 * MIB, 100)
    assert watched.trims(0, 101)
    assert not watched.trims(64 * MIB, 102)
    assert not watched.trims(0, 110.9)
    assert watched.heap.awaits_trim
    assert watched.trims(0, 111)
    assert not watched.heap.awaits_trim


def test_a_burst_that_goes_on_is_left_alone() -> None:
    watched = Watched()
    assert not any(watched.trims(100 * MIB - step * MIB, step) for step in range(80))


def test_what_it_has_called_harms_nothing() -> None:
    watched = Watched()
    watched.trims(64 * MIB, 0)
    watched.trims(0, 1)
    for call in watched.calls:
        call()


def test_after_slow_downloads(serve_in_thread: ServeInThread, monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed = threading.Event()
    monkeypatch.setattr(heap_module, "_trim", trimmed.set)

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [bytes(MIB)] * 20

    server = serve_in_thread(app, sockets=[small_listener()], outbuf_overflow=20 * MIB)
    memory = server.server._runtime.memory
    with ExitStack() as clients:
        slow = [clients.enter_context(Client(server.address, receive_buffer=4_096)) for _ in range(2)]
        for client in slow:
            client.send(request("/"))
        eventually(lambda: memory.used > 33 * MIB, "a burst")
        eventually(lambda: server.server._runtime.connections._heap.awaits_trim, "it is seen")
        assert not trimmed.is_set()
    assert trimmed.wait(30)
