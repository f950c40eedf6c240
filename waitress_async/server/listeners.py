"""Listening sockets: made from settings, accepted from by the loop. Loop's thread."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Final

from waitress_async.bridge import Wakeup, in_thread
from waitress_async.settings import Settings

# Connections taken from one socket before the loop sees to other things.
_BATCH: Final = 64


async def open_sockets(settings: Settings, wakeup: Wakeup) -> list[socket.socket]:
    """Listening, non-blocking sockets for all addresses of the settings.

    Raises OSError, whose `strerror` names the address, for one that cannot be resolved or bound;
    nothing is left open then. Sockets given in the settings are taken over, and closed with the server.
    """
    sockets: list[socket.socket] = []
    try:
        if settings.sockets:
            sockets.extend(settings.sockets)
        else:
            for host, port in settings.addresses:
                for family, address in await _resolve(host, port, wakeup):
                    sockets.append(_bind(family, address))
        for sock in sockets:
            try:
                sock.listen(settings.backlog)
            except OSError as error:
                raise _named(error, sock.getsockname()) from error
            sock.setblocking(False)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


Address = tuple[str, int] | tuple[str, int, int, int]


async def _resolve(host: str, port: int, wakeup: Wakeup) -> list[tuple[socket.AddressFamily, Address]]:
    """What a host means, each address once. A number is not asked of the network, nor of another thread."""
    name = None if host in ("", "*") else host
    look_up = partial(socket.getaddrinfo, name, port, type=socket.SOCK_STREAM)
    try:
        try:
            found = look_up(flags=socket.AI_PASSIVE | socket.AI_NUMERICHOST)
        except socket.gaierror:
            found = await in_thread(
                wakeup, "waitress_async-lookup", partial(look_up, flags=socket.AI_PASSIVE)
            )
    except OSError as error:
        raise _named(error, (host, port)) from error
    families = (socket.AF_INET, socket.AF_INET6) if socket.has_dualstack_ipv6() else (socket.AF_INET,)
    addresses = {
        (family, address): None for family, _, _, _, address in found if family in families
    }  # a dict keeps their order
    return list(addresses)  # type: ignore[arg-type]


def _bind(family: socket.AddressFamily, address: Address) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere it would let others bind the same port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise _named(error, address) from error
    return sock


def _named(error: OSError, address: Address) -> OSError:
    return OSError(error.errno, f"Cannot listen on {format_address(address)}: {error.strerror}")


def format_address(address: Address) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Listener:
    """One listening socket, accepted from while it is resumed.

    The accepting is ours rather than `loop.create_server`'s: that can neither pause without closing
    the socket, nor keep to a connection limit exactly.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_accept: Callable[[socket.socket, Address, Listener], bool],
        on_error: Callable[[OSError], object],
    ) -> None:
        """`on_accept(sock, address, listener)` takes over an accepted socket and says whether there is
        room for another; `on_error` is told why none could be accepted."""
        self._loop = loop
        self._sock = sock
        self._on_accept = on_accept
        self._on_error = on_error
        self._accepting = False
        self.address: Address = sock.getsockname()

    def resume(self) -> None:
        """Accept what comes."""
        if not self._accepting:
            self._accepting = True
            self._loop.add_reader(self._sock.fileno(), self._accept)

    def pause(self) -> None:
        """Leave new connections to the system's backlog."""
        if self._accepting:
            self._accepting = False
            self._loop.remove_reader(self._sock.fileno())

    def close(self) -> None:
        """Accept no more, and close the socket."""
        self.pause()
        self._sock.close()

    def _accept(self) -> None:
        for _ in range(_BATCH):
            try:
                sock, address = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._on_error(error)
                return
            sock.setblocking(False)
            if not self._on_accept(sock, address, self):
                return
