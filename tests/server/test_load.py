"""More clients than there is room for: who makes room, who waits, and what is left of it afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.bridge.support import until
from tests.conftest import RunningServer, ServeInThread
from tests.server.peers import Peer, linux_only, proxy_v1, unix_place
from tests.server.support import Client, GatedApp, eventually, hello, request, server_has_read, small_listener
from tests.server.test_connection_limit import REACHED, is_silent
from tests.server.test_listeners import needs_ipv6
from waitress_async import Server
from waitress_async.server.connections import Arrival
from waitress_async.server.protocol import HTTPProtocol

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

# No deadline is to be what makes room.
PATIENT: dict[str, object] = {
    "header_timeout": 0,
    "body_min_rate": 0,
    "response_min_rate": 0,
    "channel_timeout": 0,
    "queue_timeout": 0,
    "linger_timeout": 0.2,  # sweeps come often
}


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class Crowd:
    """Clients of one server, each of which comes when the server's clock has moved on since the last."""

    def __init__(self, server: RunningServer, stack: ExitStack) -> None:
        self._server = server
        self._stack = stack

    def __call__(self, sent: bytes = b"", *, receive_buffer: int | None = None) -> Client:
        connections = self._server.server._runtime.connections
        known = len(connections._protocols)
        client = self._stack.enter_context(Client(self._server.address, receive_buffer=receive_buffer))
        client.send(sent)
        eventually(lambda: len(connections._protocols) == known + 1, "it is known")
        self.wait()
        return client

    def wait(self) -> None:
        """Wait until whoever's turn it is now has not only just come."""
        connections = self._server.server._runtime.connections
        stamp = connections.stamp
        eventually(lambda: connections.clock > stamp, "the clock moves on")

    def newcomer(self) -> Client:
        return self._stack.enter_context(Client(self._server.address))


# -- at the limit


def test_the_longest_idle_make_room_for_new_ones(serve_in_thread: ServeInThread, clients: ExitStack) -> None:
    """Those between two requests, or before the first, in the order of their waiting; then half heads."""
    server = serve_in_thread(hello, **PATIENT, connection_limit=4)
    connections = server.server._runtime.connections
    crowd = Crowd(server, clients)
    half = crowd(b"GET / HTTP/1.1\r\n")
    silent = crowd()
    kept = crowd(request())
    assert kept.receive().status == 200
    last = crowd(request())
    assert last.receive().status == 200
    assert kept.get().status == 200  # which is now the one that has waited the shortest
    crowd.wait()
    for gone in (silent, last, kept, half):
        newcomer = crowd.newcomer()
        newcomer.send(b"GET / HTTP/1.1\r\nConnection: close\r\nHo")  # it stays, and is not idle
        gone.assert_ended()
        eventually(lambda: len(connections) == 4, "and no other went")


@pytest.mark.parametrize("others", ["silent", "idle", "half a head"])
def test_who_comes_is_served_at_once_whoever_holds_the_room(
    serve_in_thread: ServeInThread, clients: ExitStack, others: str
) -> None:
    """Idle clients cannot lock others out, however many they are, and however soon they come back."""
    server = serve_in_thread(hello, **PATIENT, connection_limit=20)
    sent = {"silent": b"", "idle": request(), "half a head": b"GET / HTTP/1.1\r\n"}[others]
    holders = []
    for _ in range(60):  # each of the first ones is gone by the end
        holders.append(clients.enter_context(Client(server.address)))
        holders[-1].send(sent)
    for _ in range(20):
        with Client(server.address) as client:
            assert client.get("/", "Connection: close\r\n").status == 200
        holders.append(clients.enter_context(Client(server.address)))
        holders[-1].send(sent)


def test_who_is_busy_makes_no_room(
    serve_in_thread: ServeInThread, gated: GatedApp, clients: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    """Not while a body comes, nor while the app runs, nor while the answer is taken. Who comes waits, and is
    served when one of them has ended."""
    server = serve_in_thread(gated, **PATIENT, connection_limit=4, threads=2)
    crowd = Crowd(server, clients)
    body = crowd(request("/body", "Content-Length: 8\r\n", method="POST") + b"some")
    running = crowd(request("/running"))
    behind = crowd(request("/before") + b"GET /half HTTP/1.1\r\n")  # its turn has not come
    queued = crowd(request("/queued"))
    gated.wait_entered(2)
    newcomer = crowd.newcomer()
    newcomer.send(request("/new"))
    eventually(lambda: REACHED in caplog.text, "it is said")
    assert is_silent(newcomer)
    for client in (body, running, behind, queued):
        assert is_silent(client)
    body.send(b"more")
    gated.let_go(5)
    for client in (body, running, behind, queued, newcomer):
        assert client.receive().status == 200
    assert sorted(gated.entered) == ["/before", "/body", "/new", "/queued", "/running"]


SIZE = 250_000  # of an answer that the transport takes whole, and the system does not


def test_an_answer_that_is_taken_is_not_idle(serve_in_thread: ServeInThread, clients: ExitStack) -> None:
    """Though the app has ended. To close it would make no room before the answer is taken."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        return [bytes(SIZE if environ["PATH_INFO"] == "/large" else 10)]

    server = serve_in_thread(app, **PATIENT, connection_limit=2, sockets=[small_listener()])
    crowd = Crowd(server, clients)
    slow = crowd(request("/large"), receive_buffer=4_096)
    assert slow.sock.recv(1) == b"H"
    idle = crowd(request())
    assert idle.receive().status == idle.get().status == 200  # its turn began later than any other
    with Client(server.address) as newcomer:
        assert newcomer.get().status == 200
    idle.assert_ended()
    slow._buffer = b"H"
    assert len(slow.receive().body) == SIZE
    assert slow.get().status == 200


def test_who_has_only_just_come_makes_no_room(serve_in_thread: ServeInThread, clients: ExitStack) -> None:
    """Its request is on the way, and would be answered by a reset."""
    server = serve_in_thread(
        hello, connection_limit=1, linger_timeout=0, channel_timeout=4
    )  # a sweep a second
    connections = server.server._runtime.connections
    for _ in range(6):
        first = clients.enter_context(Client(server.address))
        eventually(lambda: len(connections) == 1, "it is accepted")
        second = clients.enter_context(Client(server.address))
        eventually(lambda: connections.full, "somebody waits")
        assert first.get().status == 200
        first.assert_ended()  # for that one waits
        assert second.get("/", "Connection: close\r\n").status == 200
        second.assert_ended()
        eventually(lambda: not len(connections), "there is room for the next")
    assert connections.clock < 5  # none of them had to wait for a sweep


def test_who_has_arrived_is_not_turned_away_on_its_way(
    serve_in_thread: ServeInThread, clients: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its transport, and the task that has seen it there has not ended: room is made just then."""
    found: list[object] = []

    def made(protocol: HTTPProtocol, transport: asyncio.BaseTransport) -> None:
        connections = protocol._runtime.connections
        connections.clock = connections.stamp  # it came before the last sweep, and has its turn since
        connections.stamp += 0.05
        real(protocol, transport)
        found.append([arrival.protocol for arrival in connections._arrivals])
        found.append(connections._evict())

    real = HTTPProtocol.connection_made
    monkeypatch.setattr(HTTPProtocol, "connection_made", made)
    server = serve_in_thread(hello, **PATIENT, connection_limit=1)
    client = clients.enter_context(Client(server.address))
    for _ in range(2):
        assert client.get().status == 200
    (protocol,) = server.server._runtime.connections._protocols
    assert found == [[protocol], False]


def test_nobody_is_looked_for_twice_in_a_sweep(
    serve_in_thread: ServeInThread, gated: GatedApp, clients: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or those who come while all are busy would each cost a look at all."""
    looks: list[HTTPProtocol] = []
    awaits = HTTPProtocol.__dict__["awaits_request"].fget

    def look(protocol: HTTPProtocol) -> object:
        looks.append(protocol)
        return awaits(protocol)

    monkeypatch.setattr(HTTPProtocol, "awaits_request", property(look))

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return (gated if environ["PATH_INFO"] == "/busy" else hello)(environ, start_response)

    busy, visits = 20, 60
    server = serve_in_thread(app, **PATIENT, connection_limit=busy + 1, threads=busy + 1)
    crowd = Crowd(server, clients)
    for _ in range(busy):
        clients.enter_context(Client(server.address)).send(request("/busy"))
    gated.wait_entered(busy)
    crowd.wait()
    connections = server.server._runtime.connections
    clock = connections.clock
    looks.clear()
    visitors = [clients.enter_context(Client(server.address)) for _ in range(visits)]
    for visitor in visitors:
        visitor.send(request("/", "Connection: close\r\n"))
    for visitor in visitors:
        assert visitor.receive().status == 200
    sweeps = round((connections.clock - clock) / 0.05)
    assert len(looks) <= (busy + 1) * 2 * (sweeps + 1)
    gated.let_go(busy)


def test_as_many_as_there_is_room_for_keep_their_connections(
    serve_in_thread: ServeInThread, clients: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits, so nobody makes room. It takes several sweeps to be sure."""
    caplog.set_level(logging.INFO, "waitress_async")
    server = serve_in_thread(hello, **PATIENT, connection_limit=8)
    steady = [clients.enter_context(Client(server.address)) for _ in range(8)]
    connections = server.server._runtime.connections
    end = connections.clock + 0.3
    while connections.clock < end:
        for client in steady:
            assert client.get().status == 200
    assert not connections.full
    assert "limit" not in caplog.text


def test_after_a_crowd_connections_are_kept_again(serve_in_thread: ServeInThread, clients: ExitStack) -> None:
    server = serve_in_thread(hello, **PATIENT, connection_limit=4)
    for _ in range(40):
        clients.enter_context(Client(server.address)).send(request())
    clients.close()
    server_has_read(server)
    eventually(lambda: not len(server.server._runtime.connections), "those have gone")
    steady = [clients.enter_context(Client(server.address)) for _ in range(4)]
    for _ in range(20):
        for client in steady:
            assert client.get().status == 200


# -- of one host


def hosts_of(server: RunningServer) -> dict[str, int]:
    return dict(server.server._runtime.connections._hosts)


def admitted(peers: list[Peer], sent: bytes = b"") -> int:
    """How many of these, which begin with `sent`, are served. The others are closed without a word."""
    served = 0
    for peer in peers:
        answer = b""
        with contextlib.suppress(ConnectionError):
            peer.send(sent + request())
            answer = peer.sock.recv(65_536)
        assert not answer or answer.startswith(b"HTTP/1.1 200 ")
        served += bool(answer)
    return served


@linux_only
@needs_ipv6
def test_one_address_has_so_many_connections_and_no_more(
    serve_in_thread: ServeInThread, clients: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever family it is of. Of unix sockets there is one address, or none: they are not counted."""
    caplog.set_level(logging.INFO, "waitress_async")
    settings: dict[str, object] = {**PATIENT, "connection_limit_per_host": 3}
    ipv4 = serve_in_thread(hello, **settings)
    ipv6 = serve_in_thread(hello, **settings, listen="[::1]:0")
    local = serve_in_thread(hello, **settings, listen=unix_place())
    proxied = serve_in_thread(hello, **settings, proxy_protocol="v1")
    for server, source, sent, limit in (
        (ipv4, "127.0.0.1", b"", 3),
        (ipv4, "127.0.0.9", b"", 3),
        (ipv6, "", b"", 3),
        (local, "", b"", 6),
        (proxied, "127.0.0.1", proxy_v1("192.0.2.1"), 3),
        (proxied, "127.0.0.1", proxy_v1("192.0.2.2"), 3),
    ):
        peers = [clients.enter_context(Peer(server, source)) for _ in range(6)]
        assert admitted(peers, sent) == limit
    for server, counts in (
        (ipv4, {"127.0.0.1": 3, "127.0.0.9": 3}),
        (ipv6, {"::1": 3}),
        (proxied, {"192.0.2.1": 3, "192.0.2.2": 3}),
    ):
        eventually(lambda: hosts_of(server) == counts, "those are counted who were let in")  # noqa: B023

    def told() -> list[str]:
        return [line for line in list(caplog.messages) if line.startswith("connection_limit_per_host: ")]

    eventually(lambda: len(told()) == 15, "a line for each of the others")
    lines = told()
    for host in ("127.0.0.1", "127.0.0.9", "::1", "192.0.2.1", "192.0.2.2"):
        assert sum(line.endswith(f": {host} has 3 connections open already") for line in lines) == 3
    clients.close()
    for server in (ipv4, ipv6, local, proxied):
        eventually(lambda: not hosts_of(server), "nobody is counted any more")  # noqa: B023
        assert not len(server.server._runtime.connections)
    assert admitted([clients.enter_context(Peer(ipv4, "127.0.0.1")) for _ in range(4)]) == 3


def test_when_one_of_a_host_ends_another_may_come(serve_in_thread: ServeInThread, clients: ExitStack) -> None:
    server = serve_in_thread(hello, **PATIENT, connection_limit_per_host=2)
    kept = clients.enter_context(Client(server.address))
    for number in range(20):
        assert kept.get().status == 200
        with Client(server.address) as client:
            assert client.get().status == 200
            if number % 2:
                client.reset()
        eventually(lambda: hosts_of(server) == {"127.0.0.1": 1}, "it is not counted any more")


# -- on one connection


@pytest.mark.parametrize("limit", [1, 3])
def test_a_connection_has_so_many_requests_and_says_which_is_the_last(
    serve_in_thread: ServeInThread, clients: ExitStack, limit: int
) -> None:
    """What is behind that one is for another connection."""
    app_calls: list[object] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        app_calls.append(environ["PATH_INFO"])
        return hello(environ, start_response)

    server = serve_in_thread(app, max_requests_per_connection=limit, threads=1)
    paths = [f"/{number}" for number in range(limit + 2)]
    one_by_one, pipelined = (clients.enter_context(Client(server.address)) for _ in range(2))
    for last, path in enumerate(paths[:limit], 1 - limit):
        response = one_by_one.get(path)
        assert (response.status, response.closes) == (200, last == 0)
    one_by_one.assert_ended()
    pipelined.send(b"".join(request(path) for path in paths))
    for last in range(1 - limit, 1):
        response = pipelined.receive()
        assert (response.status, response.closes) == (200, last == 0)
    pipelined.assert_ended()
    assert app_calls == paths[:limit] * 2


def test_without_that_limit_it_has_any_number(serve_in_thread: ServeInThread) -> None:
    server = serve_in_thread(hello, max_requests_per_connection=0)
    with Client(server.address) as client:
        client.send(request() * 300)
        assert not any(client.receive().closes for _ in range(300))


# -- after a burst


def test_after_ten_times_the_capacity_the_next_request_is_the_next(
    serve_in_thread: ServeInThread, gated: GatedApp, clients: ExitStack
) -> None:
    """What there is no room for is told so at once, and who has gone is not waited for by who comes."""
    threads, queue = 2, 8
    server = serve_in_thread(gated, **PATIENT, threads=threads, spare_threads=0, max_queue=queue)
    burst = [clients.enter_context(Client(server.address)) for _ in range(10 * (threads + queue))]
    for number, client in enumerate(burst):
        client.send(request(f"/{number}"))
        if number == threads - 1:
            gated.wait_entered(threads)
    waiting = burst[: threads + queue]
    for client in burst[len(waiting) :]:
        response = client.receive()
        assert (response.status, response.headers["retry-after"]) == (503, "1")
    for client in waiting[threads:]:
        client.reset()
    connections = server.server._runtime.connections
    eventually(lambda: len(connections) == len(burst) - queue, "those are known to be gone")
    gated.let_go(threads)
    for client in waiting[:threads]:
        assert client.receive().status == 200
    burst[-1].send(request("/next"))
    gated.let_go()
    assert burst[-1].receive().body == b"/next"
    assert sorted(gated.entered[:2]) == ["/0", "/1"]
    assert gated.entered[2:] == ["/next"]


def test_a_crowd_leaves_nothing_behind(serve_in_thread: ServeInThread) -> None:
    """Hundreds at once, most of whom leave in the middle of something."""
    server = serve_in_thread(hello, connection_limit=30)
    before = threading.active_count()

    def visit(number: int) -> None:
        with Client(server.address) as client:
            if number % 4 == 0:
                client.send(request("/", "Connection: close\r\n"))
                assert client.receive().status == 200
            elif number % 4 == 1:
                client.send(b"GET / HT")
                client.reset()
            elif number % 4 == 2:
                client.send(request())

    visitors = [threading.Thread(target=visit, args=(number,), daemon=True) for number in range(200)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join(20)
        assert not visitor.is_alive()
    runtime = server.server._runtime
    server_has_read(server)
    eventually(lambda: not len(runtime.connections), "all have gone")
    assert not runtime.connections.full
    assert not hosts_of(server)
    eventually(lambda: runtime.memory.used == 0, "no memory is counted")
    eventually(lambda: threading.active_count() == before, "no thread is left")
    with Client(server.address) as client:
        for _ in range(3):
            assert client.get().status == 200


def test_who_lingers_makes_room(serve_in_thread: ServeInThread, clients: ExitStack) -> None:
    """Those were answered when nobody waited, and do not close."""
    server = serve_in_thread(
        hello, **{**PATIENT, "linger_timeout": 1_000, "channel_timeout": 0.2}, connection_limit=4
    )
    lingering = [clients.enter_context(Client(server.address)) for _ in range(4)]
    for client in lingering:
        client.send(b"no request\r\n\r\n")
        assert client.receive().status == 400
    with Client(server.address) as newcomer:
        assert newcomer.get().status == 200


def test_who_is_given_up_on_its_way_is_forgotten(
    serve_in_thread: ServeInThread, clients: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio tells a protocol of its transport though nobody waits for that any more."""
    given_up: list[Arrival] = []
    server = serve_in_thread(hello)
    connections = server.server._runtime.connections
    make = connections._make_protocol

    def make_and_give_up(*arguments: Any) -> HTTPProtocol:
        protocol = make(*arguments)
        (arrival,) = connections._arrivals
        given_up.append(arrival)
        server.loop.call_soon(arrival.cancel)  # before the transport is made
        return protocol

    monkeypatch.setattr(connections, "_make_protocol", make_and_give_up)
    for number in range(20):
        client = clients.enter_context(Client(server.address))
        eventually(lambda: len(given_up) == number + 1, "it has come")  # noqa: B023
        client.assert_ended()
    eventually(lambda: not connections._arrivals and not len(connections), "none is counted")
    monkeypatch.undo()
    assert not connections._protocols
    with Client(server.address) as client:
        assert client.get().status == 200


async def test_who_has_come_and_gone_is_not_on_its_way() -> None:
    """It may be lost before the task that saw it there goes on."""
    async with Server(hello, host="127.0.0.1", port=0) as server:
        connections = server._runtime.connections
        counts: list[tuple[int, int]] = []
        lost = connections.lost

        def count_too(counted: HTTPProtocol | Arrival) -> None:
            lost(counted)
            counts.append((len(connections._on_their_way()), len(connections)))

        connections.lost = count_too  # type: ignore[method-assign]
        for _ in range(50):
            Client(("127.0.0.1", server.port)).sock.close()
        await until(lambda: len(counts) == 50)
    assert all(on_their_way <= open_ for on_their_way, open_ in counts)
