"""The connections of one server, the listeners they come by, and the limit on their number. Loop's thread."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import math
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from waitress_async.bridge import LogThread
from waitress_async.buffers import BufferMemory
from waitress_async.http import ProxiedAddresses
from waitress_async.server.deadlines import CutLog, sweep_interval
from waitress_async.server.descriptors import connection_limit
from waitress_async.server.heap import Heap
from waitress_async.server.listeners import Address, Listener, ListeningSocket, format_address
from waitress_async.server.peer_state import has_input
from waitress_async.server.proxy_protocol import ProxyProtocol
from waitress_async.server.tls import TLS
from waitress_async.settings import UNIX_PEER, Settings

if TYPE_CHECKING:
    from waitress_async.server.protocol import HTTPProtocol

# While there is no memory, so many connections at a time may read once for a body, so often, in seconds.
_LET_THROUGH: Final = 8
_LET_THROUGH_INTERVAL: Final = 0.02

# When no descriptor is left, accepting is tried again after so many seconds.
_RETRY_ACCEPT: Final = 1.0

# What asyncio takes for a timeout that is none, in seconds.
_NEVER: Final = 86_400.0

# At the limit, this part of it is closed at once: looking for the longest idle ones takes its time.
_EVICTED: Final = 20

# Of those that wait at the end, so many are accepted of each listener. Linux's default is as many.
_WAITING: Final = 4_096

# At the limit it is reached again with every connection that closes; that is said so often, in seconds.
_TELL_INTERVAL: Final = 10.0


# What is said of arrivals that took longer than a setting allows.
_LATE: Final = {
    # A warning, for it is likely that a proxy is set up wrong.
    "proxy_protocol_timeout": (logging.WARNING, "its PROXY header is not complete"),
    "tls_handshake_timeout": (logging.INFO, "its TLS handshake is not complete"),
}


class _TooManyOfHost(Exception):
    """An address has as many connections as it may."""


class Arrival:
    """An accepted socket on its way to a transport."""

    __slots__ = ("late", "listener", "peer", "protocol", "since", "sock", "task", "then", "waits_for")

    def __init__(self, since: float, sock: socket.socket, peer: Address, listener: Listener) -> None:
        """`since` is by the sweep's clock."""
        self.since = since
        self.sock = sock
        self.peer = peer
        self.listener = listener
        self.protocol: HTTPProtocol | None = None  # once that is made
        self.task: asyncio.Task[object] | None = None  # which sees it there
        self.waits_for = ""  # the setting that says how long that may take, since `since`
        self.late = ""  # what it was cut for
        self.then: Callable[[HTTPProtocol], object] | None = None  # what to do to the protocol at the end

    def give_way(self) -> None:
        """See it no further, for somebody waits; unless something has come that was not read yet."""
        if not has_input(self.sock):
            self.cancel()

    def cancel(self, then: Callable[[HTTPProtocol], object] | None = None) -> None:
        """See it no further.

        If nothing is missing but the transport, which comes in a turn of the loop, it is let come, and then
        `then` is done to its protocol, or that is closed if it is idle: cancelled now, uvloop would let the
        protocol receive, and not tell it that its connection is lost.
        """
        if self.is_opening:
            self.then = then or _close_idle
        elif self.task is not None:
            self.task.cancel()

    @property
    def is_opening(self) -> bool:
        """Whether all is done but the transport's opening."""
        return self.protocol is not None and self.waits_for != "tls_handshake_timeout"


def _close_idle(protocol: HTTPProtocol) -> None:
    if protocol.is_idle:
        protocol.close()


class Connections:
    """Accepts, counts and sweeps connections.

    At the limit, idle connections are closed for those that wait in the system's backlog. If there are none,
    nothing is accepted until a connection is lost.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        log: LogThread,
        cuts: CutLog,
        memory: BufferMemory,
        heap: Heap,
        tls: TLS | None,
        make_protocol: Callable[[Address, Listener, ProxiedAddresses | None], HTTPProtocol],
    ) -> None:
        """`make_protocol(peer's address, listener, what a PROXY header says)` makes the protocol
        of a new connection."""
        self._loop = loop
        self._settings = settings
        self._log = log
        self._cuts = cuts
        self._memory = memory
        self._heap = heap
        self._limit = connection_limit(settings, log)
        self._limit_per_host = settings.connection_limit_per_host
        self._hosts: Counter[str] = Counter()  # connections by address of the client, if they are limited
        self._proxy_protocol = ProxyProtocol(settings)
        self._tls = tls
        self._make_protocol = make_protocol
        self._listeners: list[Listener] = []
        self._open: set[HTTPProtocol | Arrival] = set()  # from accept to loss: what the limit counts
        self._protocols: set[HTTPProtocol] = set()  # those of them that have a transport
        self._arrivals: set[Arrival] = set()  # on whose way to a transport the others are
        self.full = False
        """At the limit, with somebody waiting to be accepted."""
        self._told_full = False
        self._tell_full_after = -math.inf
        self._found_none_at = -math.inf  # when nobody could make room, by `clock`
        self._draining = False
        self._closes_idle = False
        self._sweeper: asyncio.TimerHandle | None = None
        self._sweep_interval = sweep_interval(settings)
        self._swept_at = 0.0  # in the loop's time
        self._left_out: set[HTTPProtocol] = set()  # of the next sweep
        self.clock = 0.0
        """Seconds that sweeps have counted, up to the last one. Deadlines are measured by it."""
        self.stamp = self._sweep_interval
        """What `clock` will be at the next sweep, for what begins now: no deadline comes early."""
        self._queue_age = -math.inf, 0.0  # when it was looked for, by `clock`, and what it was
        self._memory_timer: asyncio.TimerHandle | None = None
        self._held_back: dict[HTTPProtocol, None] = {}  # which wait for their turn to read, in order
        self.short_of_memory = False
        self._lost = asyncio.Event()

    def __len__(self) -> int:
        return len(self._open)

    # -- accepting

    def listen(self, sockets: list[ListeningSocket]) -> None:
        """Accept from these, which are ours from now on."""
        self._listeners = [
            Listener(self._loop, listening, self._make_room, self._accept, self._accept_failed)
            for listening in sockets
        ]
        for listener in self._listeners:
            listener.resume()

    def stop_listening(self) -> int:
        """Accept what waits already, whatever the limit, and then no more. Returns how many that were."""
        accepted = 0
        for listener in self._listeners:
            accepted += listener.accept_waiting(_WAITING)
            listener.close()
        self._listeners = []
        return accepted

    def is_draining(self) -> bool:
        """Whether every response is to be the last of its connection. Any thread."""
        return self._draining

    def drain(self) -> None:
        """From now on, let every response be the last of its connection."""
        self._draining = True
        for protocol in self._protocols:
            protocol.close_after_response()

    def close_idle(self) -> int:
        """Close the connections on which nothing is under way, and from now on all that come to that. Returns
        how many that were at once."""
        self._closes_idle = True
        idle = [protocol for protocol in self._protocols if protocol.is_idle]
        arriving = self._on_their_way()
        for protocol in idle:
            protocol.close()
        for arrival in arriving:
            arrival.cancel()
        return len(idle) + len(arriving)

    def _on_their_way(self) -> list[Arrival]:
        """Those that have no transport yet. One that has is its protocol's to close, or is lost already."""
        return [
            arrival
            for arrival in self._arrivals
            if (counted := arrival.protocol or arrival) in self._open and counted not in self._protocols
        ]

    def _make_room(self) -> bool:
        """Whether somebody who waits may be accepted. At the limit, the longest idle ones make room."""
        if len(self) < self._limit:
            return True
        self.full = True
        self._pause_listening()
        self._evict()
        return False

    def _evict(self) -> bool:
        """Close some of the connections that are idle, or else have but begun to send a request head, or to
        say what comes before requests: a PROXY header, or a TLS handshake.

        Those whose turn it has been for the longest go first, and nobody who has only just come. Returns
        whether there were any. If not, nobody is looked for again before the next sweep.
        """
        if self._found_none_at == self.clock:
            return False
        awaiting = [
            (not protocol.is_idle, protocol.turn_since, protocol.give_way)
            for protocol in self._protocols
            if protocol.turn_since <= self.clock and (protocol.awaits_request or protocol.lingers)
        ]
        awaiting += [
            (True, arrival.since, arrival.give_way)
            for arrival in self._on_their_way()
            if arrival.since <= self.clock
        ]
        if not awaiting:
            self._found_none_at = self.clock
            return False
        count = max(1, self._limit // _EVICTED)
        for _, _, give_way in heapq.nsmallest(count, awaiting, key=lambda one: one[:2]):
            give_way()
        return True

    def _tell_full(self) -> None:
        now = self._loop.time()
        if now >= self._tell_full_after:
            self._tell_full_after = now + _TELL_INTERVAL
            self._told_full = True
            self._log.log(
                logging.WARNING,
                "total open connections reached the connection limit, no longer accepting new connections",
            )

    def _accept(self, sock: socket.socket, address: Address, listener: Listener) -> bool:
        """Take over an accepted socket. Returns whether there is room for another."""
        arrival = Arrival(self.stamp, sock, address, listener)
        self._open.add(arrival)
        self._arrivals.add(arrival)
        has_header = self._proxy_protocol.is_expected_from(address)
        arriving = self._arrive(arrival) if has_header else self._connect(arrival, None)
        arrival.task = self._loop.create_task(arriving)
        arrival.task.add_done_callback(partial(self._arrived, arrival))
        if self._sweeper is None:
            self._swept_at = self._loop.time()
            self._sweeper = self._loop.call_later(self._sweep_interval, self._sweep)
        return len(self) < self._limit

    async def _arrive(self, arrival: Arrival) -> object:
        """See an accepted socket to its transport, by way of its PROXY header."""
        self._begin_wait(arrival, "proxy_protocol_timeout")
        return await self._connect(arrival, await self._proxy_protocol.read_header(self._loop, arrival.sock))

    def _connect(self, arrival: Arrival, proxied: ProxiedAddresses | None) -> Coroutine[Any, Any, object]:
        """Give an accepted socket its transport, by way of a TLS handshake if there is one."""
        make_protocol = partial(self._make_counted, arrival, proxied)
        if self._tls is None or arrival.listener.redirects:
            return self._loop.connect_accepted_socket(make_protocol, arrival.sock)
        return self._loop.connect_accepted_socket(
            make_protocol,
            arrival.sock,
            ssl=self._tls.context,
            ssl_handshake_timeout=_NEVER,  # these would go on while the server stands still, and cut
            ssl_shutdown_timeout=_NEVER,  # those that are slow; ours are cut by sweeps
        )

    def _make_counted(self, arrival: Arrival, proxied: ProxiedAddresses | None) -> HTTPProtocol:
        """Make the protocol of a connection, which counts from now on in place of its arrival."""
        protocol = self._make_protocol(arrival.peer, arrival.listener, proxied)
        arrival.protocol = protocol
        self._open.remove(arrival)
        self._open.add(protocol)
        if self._limit_per_host:
            self._count_host(protocol)
        if self._tls is not None and not arrival.listener.redirects:
            self._begin_wait(arrival, "tls_handshake_timeout")
        return protocol

    def _arrived(self, arrival: Arrival, task: asyncio.Task[object]) -> None:
        """Its task is over. If it has failed, nothing is left of the connection."""
        self._arrivals.discard(arrival)
        error = None if task.cancelled() else task.exception()
        if error is None and not task.cancelled():
            if arrival.then is not None and arrival.protocol in self._protocols:
                arrival.then(arrival.protocol)
            return
        arrival.sock.close()
        self.lost(arrival.protocol or arrival)
        peer = ascii(format_address(arrival.peer))[1:-1]  # a path is whatever its owner likes
        if isinstance(error, _TooManyOfHost):
            self._cuts.tell("connection_limit_per_host", peer, str(error), self.clock)
        elif arrival.late:
            level, how_far = _LATE[arrival.late]
            self._cuts.tell(arrival.late, peer, how_far, self.clock, level)
        elif isinstance(error, ssl.SSLError):
            self._cuts.tell("TLS handshake", peer, str(error), self.clock)
        elif error is not None and not isinstance(error, OSError):  # that says that the peer has gone
            self._cuts.tell("PROXY header", peer, str(error), self.clock, logging.WARNING)

    def _count_host(self, protocol: HTTPProtocol) -> None:
        host = protocol.remote_addr
        limit = self._limit_per_host
        self._hosts[host] += 1
        if self._hosts[host] > limit and host != UNIX_PEER:
            raise _TooManyOfHost(f"{host} has {limit} connections open already")

    def _discount_host(self, protocol: HTTPProtocol) -> None:
        host = protocol.remote_addr
        self._hosts[host] -= 1
        if not self._hosts[host]:
            del self._hosts[host]

    def _begin_wait(self, arrival: Arrival, setting: str) -> None:
        arrival.waits_for = setting
        arrival.since = self.stamp

    def _accept_failed(self, error: OSError) -> None:
        """The system is out of descriptors or memory: trying again at once would spin."""
        self._log.log(logging.WARNING, "server accept() threw an exception: %s", error)
        self._pause_listening()
        self._loop.call_later(_RETRY_ACCEPT, self._resume_listening)

    def _pause_listening(self) -> None:
        for listener in self._listeners:
            listener.pause()

    def _resume_listening(self) -> None:
        if not self.full:
            for listener in self._listeners:
                listener.resume()

    # -- connections

    def made(self, protocol: HTTPProtocol) -> None:
        """`protocol` has its transport."""
        self._protocols.add(protocol)
        if self._draining:
            protocol.close_after_response()

    def lost(self, counted: HTTPProtocol | Arrival) -> None:
        """This one has lost its connection, or never had one. Makes room for another."""
        if counted not in self._open:
            return
        self._open.remove(counted)
        if not isinstance(counted, Arrival):
            self._protocols.discard(counted)
            self._left_out.discard(counted)
            self._held_back.pop(counted, None)
            if self._limit_per_host:
                self._discount_host(counted)
        self._lost.set()
        if len(self) == self._limit - 1:
            self.full = False
            self._resume_listening()
            if self._told_full:
                self._told_full = False
                self._log.log(
                    logging.INFO,
                    "total open connections dropped below the connection limit, listening again",
                )

    def abort(self) -> None:
        """Cut every connection, and accept no more."""
        for listener in self._listeners:
            listener.close()
        self._listeners = []
        for arrival in self._on_their_way():
            arrival.cancel(lambda protocol: protocol.abort())
        for protocol in list(self._protocols):
            protocol.abort()

    async def wait_empty(self) -> None:
        """Wait until no connection is left."""
        while len(self):
            self._lost.clear()
            await self._lost.wait()

    # -- memory

    def memory_is_full(self) -> None:
        """Have connections take turns in reading bodies, until there is memory again."""
        self.short_of_memory = True
        for protocol in list(self._protocols):
            protocol.reconsider()
        self._memory_timer = self._loop.call_later(_LET_THROUGH_INTERVAL, self._let_through)

    def hold_back(self, protocol: HTTPProtocol) -> None:
        """Have `protocol` wait for its turn."""
        self._held_back.setdefault(protocol)

    def _let_through(self) -> None:
        self._memory_timer = None
        if self._memory.near:
            turn = list(itertools.islice(self._held_back, _LET_THROUGH))
            self._memory_timer = self._loop.call_later(_LET_THROUGH_INTERVAL, self._let_through)
        else:
            turn = list(self._held_back)
            self.short_of_memory = False
        for protocol in turn:
            del self._held_back[protocol]
            protocol.let_through()

    # -- time

    def _sweep(self) -> None:
        """The server's one timer. It runs only while there are connections."""
        self._sweeper = None
        now = self._loop.time()
        elapsed = min(now - self._swept_at, 2 * self._sweep_interval)
        self._swept_at = now
        self.clock += elapsed
        self.stamp = self.clock + self._sweep_interval
        try:
            left_out, self._left_out = self._left_out, set()
            for protocol in self._protocols - left_out:
                if protocol.sweep(self.clock, elapsed):
                    self._left_out.add(protocol)
            self._cut_late_arrivals()
            self._cuts.flush(self.clock)
            self._heap.sweep(self.clock)
            if self._closes_idle:
                self.close_idle()
            if self.full and not self._evict():
                self._tell_full()
        finally:
            if len(self) or self._cuts.owes_lines or self._heap.awaits_trim:
                self._sweeper = self._loop.call_later(self._sweep_interval, self._sweep)

    def _cut_late_arrivals(self) -> None:
        for arrival in self._on_their_way():
            timeout = getattr(self._settings, arrival.waits_for) if arrival.waits_for else 0
            if timeout and self.clock - arrival.since >= timeout:
                arrival.late = arrival.waits_for
                arrival.cancel()

    def queue_age(self) -> float:
        """For how many seconds the first of those has waited that wait for a thread; 0 if there are none.

        By `clock`, and looked for once a sweep: who asks often must not keep the loop busy.
        """
        looked_at, age = self._queue_age
        if looked_at != self.clock:
            waiting = [protocol.queued_at for protocol in self._protocols if protocol.queued_at is not None]
            age = max(self.clock - min(waiting), 0.0) if waiting else 0.0
            self._queue_age = self.clock, age
        return age

    def stop_sweeping(self) -> None:
        """Cancel the timers, where they are set."""
        for timer in (self._sweeper, self._memory_timer):
            if timer is not None:
                timer.cancel()
        self._sweeper = self._memory_timer = None
