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
from waitress_async.server.listeners import Address, Listener

if TYPE_CHECKING:
    from waitress_async.server.protocol import HTTPProtocol

_SWEEP_INTERVAL: Final = 1.0  # seconds

# While there is no memory, so many connections at a time may read once for a body, so often, in seconds.
_LET_THROUGH: Final = 8
_LET_THROUGH_INTERVAL: Final = 0.02

# At the limit it is reached again with every connection that closes; that is said so often, in seconds.
_TELL_INTERVAL: Final = 10.0


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
        make_protocol: Callable[[Address, Address], HTTPProtocol],
    ) -> None:
        """`make_protocol(peer's address, listener's address)` makes the protocol of a new connection."""
        self._loop = loop
        self._log = log
        self._memory = memory
        self._limit = limit
        self._make_protocol = make_protocol
        self._listeners: list[Listener] = []
        self._open: set[HTTPProtocol] = set()  # from accept to loss: what the limit counts
        self._protocols: set[HTTPProtocol] = set()  # those of them that have a transport
        self._arriving: set[asyncio.Task[None]] = set()  # on whose way to a transport the others are
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

    def listen(self, sockets: list[socket.socket]) -> list[Address]:
        """Accept from these listening sockets, which are ours from now on. Returns their addresses."""
        self._listeners = [Listener(self._loop, sock, self._accept, self._accept_failed) for sock in sockets]
        for listener in self._listeners:
            listener.resume()
        return [listener.address for listener in self._listeners]

    def close(self) -> None:
        """Accept no more, and let each connection end: at once if it is idle, or after its response."""
        self._closed = True
        for listener in self._listeners:
            listener.close()
        for protocol in list(self._protocols):
            protocol.drain()

    def _accept(self, sock: socket.socket, address: Address, listener: Listener) -> bool:
        """Take over an accepted socket. Returns whether there is room for another."""
        protocol = self._make_protocol(address, listener.address)
        self._open.add(protocol)
        task = self._loop.create_task(self._connect(sock, protocol))
        self._arriving.add(task)
        task.add_done_callback(self._arriving.discard)
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

    async def _connect(self, sock: socket.socket, protocol: HTTPProtocol) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, sock)
        except (OSError, asyncio.CancelledError):  # the peer is gone already, or the server stops
            sock.close()
            self.lost(protocol)
        else:
            if self._closed:
                protocol.drain()

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

    def lost(self, protocol: HTTPProtocol) -> None:
        """`protocol` has lost its connection, or never had one. Makes room for another."""
        self._open.discard(protocol)
        self._protocols.discard(protocol)
        self._held_back.pop(protocol, None)
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
        for task in self._arriving:
            task.cancel()
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
        if len(self):
            self._sweeper = self._loop.call_later(_SWEEP_INTERVAL, self._sweep)

    def stop_sweeping(self) -> None:
        """Cancel the timers, where they are set."""
        for timer in (self._sweeper, self._memory_timer):
            if timer is not None:
                timer.cancel()
        self._sweeper = self._memory_timer = None
