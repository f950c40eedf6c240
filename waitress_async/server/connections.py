"""The connections of one server, the listeners they come by, and the limit on their number. Loop's thread."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from waitress_async.bridge import LogThread
from waitress_async.buffers import BufferMemory
from waitress_async.errors import ProxyProtocolError
from waitress_async.http import ProxiedAddresses
from waitress_async.server.listeners import Address, Listener, ListeningSocket, format_address
from waitress_async.server.proxy_protocol import ProxyProtocol

if TYPE_CHECKING:
    from waitress_async.server.protocol import HTTPProtocol

_SWEEP_INTERVAL: Final = 1.0  # seconds

# While there is no memory, so many connections at a time may read once for a body, so often, in seconds.
_LET_THROUGH: Final = 8
_LET_THROUGH_INTERVAL: Final = 0.02

# At the limit it is reached again with every connection that closes; that is said so often, in seconds.
_TELL_INTERVAL: Final = 10.0


class Arrival:
    """An accepted socket on its way to a transport."""

    __slots__ = ("listener", "peer", "since", "sock", "task", "waits_for_header")

    task: asyncio.Task[None]  # which sees it there

    def __init__(self, since: float, sock: socket.socket, peer: Address, listener: Address) -> None:
        """`since` is the loop's time; the other two are the addresses of the two ends."""
        self.since = since
        self.sock = sock
        self.peer = peer
        self.listener = listener
        self.waits_for_header = False  # of the PROXY protocol


class Connections:
    """Accepts, counts and sweeps connections.

    At the limit nothing is accepted until a connection is lost; what comes meanwhile waits in the
    system's backlog.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        log: LogThread,
        memory: BufferMemory,
        limit: int,
        proxy_protocol: ProxyProtocol,
        make_protocol: Callable[[Address, Address, ProxiedAddresses | None], HTTPProtocol],
    ) -> None:
        """`make_protocol(peer's address, listener's address, what a PROXY header says)` makes the protocol
        of a new connection."""
        self._loop = loop
        self._log = log
        self._memory = memory
        self._limit = limit
        self._proxy_protocol = proxy_protocol
        self._make_protocol = make_protocol
        self._listeners: list[Listener] = []
        self._open: set[HTTPProtocol | Arrival] = set()  # from accept to loss: what the limit counts
        self._protocols: set[HTTPProtocol] = set()  # those of them that have a transport
        self._arrivals: set[Arrival] = set()  # on whose way to a transport the others are
        self.full = False  # at the limit
        self._told_full = False
        self._tell_full_after = -math.inf
        self._closed = False
        self._sweeper: asyncio.TimerHandle | None = None
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
            Listener(self._loop, listening, self._accept, self._accept_failed) for listening in sockets
        ]
        for listener in self._listeners:
            listener.resume()

    def close(self) -> None:
        """Accept no more, and let each connection end: at once if it is idle, or after its response."""
        self._closed = True
        for listener in self._listeners:
            listener.close()
        for arrival in self._arrivals:
            if arrival.waits_for_header:
                arrival.task.cancel()
        for protocol in list(self._protocols):
            protocol.drain()

    def _accept(self, sock: socket.socket, address: Address, listener: Listener) -> bool:
        """Take over an accepted socket. Returns whether there is room for another."""
        arrival = Arrival(self._loop.time(), sock, address, listener.address)
        self._open.add(arrival)
        self._arrivals.add(arrival)
        arrival.task = self._loop.create_task(self._arrive(arrival))
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(_SWEEP_INTERVAL, self._sweep)
        if len(self) < self._limit:
            return True
        self.full = True
        self._pause_listening()
        now = self._loop.time()
        if now >= self._tell_full_after:
            self._tell_full_after = now + _TELL_INTERVAL
            self._told_full = True
            self._log.log(
                logging.WARNING,
                "total open connections reached the connection limit, no longer accepting new connections",
            )
        return False

    async def _arrive(self, arrival: Arrival) -> None:
        """See an accepted socket to its transport."""
        counted: HTTPProtocol | Arrival = arrival
        try:
            proxied = await self._read_proxy_header(arrival)
            protocol = self._make_protocol(arrival.peer, arrival.listener, proxied)
            self._open.remove(arrival)
            self._open.add(protocol)
            counted = protocol
            await self._loop.connect_accepted_socket(lambda: protocol, arrival.sock)
        except (OSError, ProxyProtocolError, asyncio.CancelledError) as error:
            # The peer is gone already, or none that we talk to, or late, or the server stops.
            arrival.sock.close()
            self.lost(counted)
            if not isinstance(error, OSError) and (reason := str(error)):
                peer = ascii(format_address(arrival.peer))[1:-1]  # a path is whatever its owner likes
                self._log.log(logging.WARNING, "Connection from %s closed: %s", peer, reason)
        else:
            if self._closed:
                protocol.drain()
        finally:
            self._arrivals.discard(arrival)

    async def _read_proxy_header(self, arrival: Arrival) -> ProxiedAddresses | None:
        if not self._proxy_protocol.is_expected_from(arrival.peer):
            return None
        if self._closed:  # since before this task began: nobody will cancel it
            raise asyncio.CancelledError
        arrival.waits_for_header = True
        try:
            return await self._proxy_protocol.read_header(self._loop, arrival.sock)
        finally:
            arrival.waits_for_header = False

    def _accept_failed(self, error: OSError) -> None:
        """The system is out of descriptors or memory: trying again at once would spin."""
        self._log.log(logging.WARNING, "server accept() threw an exception: %s", error)
        self._pause_listening()
        self._loop.call_later(_SWEEP_INTERVAL, self._resume_listening)

    def _pause_listening(self) -> None:
        for listener in self._listeners:
            listener.pause()

    def _resume_listening(self) -> None:
        if not self._closed and not self.full:
            for listener in self._listeners:
                listener.resume()

    # -- connections

    def made(self, protocol: HTTPProtocol) -> None:
        """`protocol` has its transport."""
        self._protocols.add(protocol)

    def lost(self, counted: HTTPProtocol | Arrival) -> None:
        """This one has lost its connection, or never had one. Makes room for another."""
        self._open.discard(counted)
        if not isinstance(counted, Arrival):
            self._protocols.discard(counted)
            self._held_back.pop(counted, None)
        self._lost.set()
        if self.full and len(self) < self._limit:
            self.full = False
            self._resume_listening()
            if self._told_full:
                self._told_full = False
                self._log.log(
                    logging.INFO,
                    "total open connections dropped below the connection limit, listening again",
                )

    def abort(self) -> None:
        """Cut every connection."""
        for arrival in self._arrivals:
            arrival.task.cancel()
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
        for protocol in list(self._protocols):
            protocol.sweep(now)
        if timeout := self._proxy_protocol.timeout:
            for arrival in self._arrivals:
                if arrival.waits_for_header and now - arrival.since >= timeout:
                    arrival.task.cancel(f"The PROXY header is not complete after {timeout:g} seconds.")
        if len(self):
            self._sweeper = self._loop.call_later(_SWEEP_INTERVAL, self._sweep)

    def stop_sweeping(self) -> None:
        """Cancel the timers, where they are set."""
        for timer in (self._sweeper, self._memory_timer):
            if timer is not None:
                timer.cancel()
        self._sweeper = self._memory_timer = None
