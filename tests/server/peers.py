"""Clients from addresses of one's choosing, apps that note what they are told, and what proxies send."""

from __future__ import annotations

import itertools
import os
import re
import socket
import struct
import sys
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import RunningServer
from tests.server.support import DEADLINE, Client

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

Environ = dict[str, Any]

# Linux alone answers on all of 127.0.0.0/8, and has abstract unix sockets.
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="clients come from 127.0.0.2 and the like")

_IP_BIND_ADDRESS_NO_PORT = 24  # ip(7); the socket module has it since 3.12

X_FORWARDED = "x-forwarded-for x-forwarded-host x-forwarded-proto x-forwarded-port x-forwarded-by"

# Objects of the server's own, of which only the presence can be compared.
_OBJECTS = (
    "wsgi.input",
    "wsgi.errors",
    "waitress.client_disconnected",
    "waitress_async.on_disconnect",
    "wsgi.early_hints",
    "waitress_async.stream",
    "waitress_async.shutting_down",
    "waitress_async.from_thread",
    "waitress_async.spool",
    "waitress_async.body",
)


class Recorder:
    """An app that answers each request with "recorded", and keeps the environs, with `body` added."""

    def __init__(self) -> None:
        self.environs: list[Environ] = []
        self._lock = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        seen: Environ = {**environ, "body": environ["wsgi.input"].read()}
        for name in _OBJECTS:
            seen[name] = type(seen[name]).__name__
        with self._lock:
            self.environs.append(seen)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"recorded"]

    def take(self) -> list[Environ]:
        """What was kept since the last time."""
        with self._lock:
            taken, self.environs = self.environs, []
        return taken

    def last(self) -> Environ:
        """The environ of the one request since the last time."""
        (environ,) = self.take()
        return environ


# -- places to listen, and to come from

_names = itertools.count()


def unix_place() -> str:
    """A `listen` that nobody else has."""
    return f"unix:@waitress-async-tests-{os.getpid()}-{next(_names)}"


def ipv4_over_ipv6() -> socket.socket:
    """A bound socket to which clients of IPv4 seem to come from `::ffff:` and their address."""
    sock = socket.socket(socket.AF_INET6)
    try:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::ffff:127.0.0.1", 0))
    except OSError:
        sock.close()
        pytest.skip("this machine has no IPv6")
    return sock


class Peer(Client):
    """A client of the server's first address. `source` is the address that it comes from, if not any."""

    def __init__(self, server: RunningServer, source: str = "") -> None:
        address = server.server.addresses[0]
        self._buffer = b""
        if isinstance(address, str):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(DEADLINE)
            self.sock.connect("\0" + address[1:])
            self.address, self.port = "", ""
            return
        host = address[0].removeprefix("::ffff:")
        self.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.sock.settimeout(DEADLINE)
        if source:
            # Ports of connections that have ended are still good for others: there are many in these tests.
            self.sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            self.sock.bind((source, 0))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.connect((host, address[1]))
        name = self.sock.getsockname()
        self.address, self.port = name[0], str(name[1])  # ours; the port as REMOTE_PORT has it

    def say_all(self, *parts: bytes) -> list[int]:
        """Send these, and nothing after them. Returns the statuses of all answers."""
        for part in parts:
            self.send(part)
        self.half_close()
        return statuses(self.rest())

    def say_until_refused(self, *parts: bytes) -> list[int]:
        """Send these, wait for the server to end the connection, and leave no trace of it in the system."""
        for part in parts:
            self.send(part)
        found = statuses(self.rest())
        self.reset()
        return found


def statuses(answers: bytes) -> list[int]:
    """Those of some answers, none of which has a status line in its body."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", answers)]


# -- PROXY headers

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def proxy_v1(source: str, destination: str = "198.51.100.2", ports: tuple[int, int] = (56324, 443)) -> bytes:
    family = "TCP6" if ":" in source else "TCP4"
    return f"PROXY {family} {source} {destination} {ports[0]} {ports[1]}\r\n".encode()


def proxy_v2(
    source: str,
    destination: str = "198.51.100.2",
    ports: tuple[int, int] = (56324, 443),
    tlvs: Sequence[tuple[int, bytes]] = (),
) -> bytes:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    ends = socket.inet_pton(family, source) + socket.inet_pton(family, destination)
    rest = ends + struct.pack("!HH", *ports)
    rest += b"".join(struct.pack("!BH", kind, len(value)) + value for kind, value in tlvs)
    return proxy_v2_raw(0x21, 0x11 if family is socket.AF_INET else 0x21, rest)


def proxy_v2_raw(command: int, family: int, rest: bytes = b"") -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest)) + rest


LOCAL = proxy_v2_raw(0x20, 0x00)
UNKNOWN = b"PROXY UNKNOWN\r\n"
