"""The two ends of a connection, as a request's environ tells them."""

from __future__ import annotations

from typing import NamedTuple

from waitress_async.http import ProxiedAddresses
from waitress_async.server.listeners import Address
from waitress_async.settings import UNIX_PEER


class Ends(NamedTuple):
    """REMOTE_ADDR, REMOTE_PORT, SERVER_PORT and wsgi.url_scheme, before what a proxy's headers say."""

    remote_addr: str
    remote_port: str
    server_port: str
    url_scheme: str


def ends_of(peer: Address, listener: Address, proxied: ProxiedAddresses | None, url_scheme: str) -> Ends:
    """`peer` and `listener` are the socket's own addresses; what a PROXY header says goes before them.

    A unix socket has no ports: the client's is empty, and ours is the usual one of the URL scheme, for an
    app makes URLs of it.
    """
    if proxied is not None:
        return Ends(proxied.source[0], str(proxied.source[1]), str(proxied.destination[1]), url_scheme)
    server_port = {"https": "443"}.get(url_scheme, "80") if isinstance(listener, str) else str(listener[1])
    if isinstance(peer, str):
        return Ends(UNIX_PEER, "", server_port, url_scheme)
    return Ends(peer[0], str(peer[1]), server_port, url_scheme)
