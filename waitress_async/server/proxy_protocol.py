"""The PROXY header of a connection, read off its socket before anything else sees it. Loop's thread."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from waitress_async.errors import ProxyProtocolError
from waitress_async.http import ProxiedAddresses, ProxyHeaderReader
from waitress_async.server.listeners import Address
from waitress_async.settings import UNIX_PEER, Peers, Settings

_VERSIONS: Final = {"off": (), "v1": (1,), "v2": (2,), "auto": (1, 2)}

_PEEK_BYTES: Final = 4_096


class ProxyProtocol:
    """Who sends a PROXY header, in which version, and the reading of it.

    It is read off the socket itself, and not a byte more than it: what follows may be a TLS handshake, which
    is the transport's to read.
    """

    def __init__(self, settings: Settings) -> None:
        self._versions = _VERSIONS[settings.proxy_protocol]
        self._peers = Peers.parse(settings.proxy_protocol_from)
        self.timeout = settings.proxy_protocol_timeout  # seconds; 0 for none

    def is_expected_from(self, peer: Address) -> bool:
        """Whether a connection from there begins with a PROXY header."""
        return bool(self._versions) and (UNIX_PEER if isinstance(peer, str) else peer[0]) in self._peers

    async def read_header(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket
    ) -> ProxiedAddresses | None:
        """Consume the header at the beginning of what `sock`, which does not block, receives.

        Returns what it says, or None if the connection's own addresses stand. Raises ProxyProtocolError
        when it is wrong or missing, and OSError when the peer is gone. The caller bounds the time.
        """
        reader = ProxyHeaderReader(self._versions)
        while not reader.complete:
            try:
                data = sock.recv(_PEEK_BYTES, socket.MSG_PEEK)
            except (BlockingIOError, InterruptedError):
                await _readable(loop, sock)
                continue
            if not data:
                raise ProxyProtocolError("The connection was closed before the end of its PROXY header.")
            sock.recv(reader.take(data))
        return reader.addresses


async def _readable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    readable = asyncio.Event()
    loop.add_reader(sock.fileno(), readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sock.fileno())
