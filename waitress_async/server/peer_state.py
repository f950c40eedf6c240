"""What the system tells of the other end of a connection, and does not tell asyncio. Loop's thread.

Where a system does not tell, nothing is known to be wrong.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import sys
from typing import Final

_TCP_CLOSE: Final = 7  # of tcp_info's state, which for a reset connection it is (linux/tcp_states.h)

_BYTES_ACKED: Final = struct.Struct("120xQ")  # of tcp_info (linux/tcp.h)

_LINGER_ZERO: Final = struct.pack("ii", 1, 0)  # on, no seconds: closing is a reset (socket(7))


def is_gone(transport: asyncio.Transport) -> bool:
    """Whether the peer is gone, and has not merely said all it will."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family == getattr(socket, "AF_UNIX", None):
        return is_broken(transport)
    info = _tcp_info(transport, 1)
    return bool(info) and info[0] == _TCP_CLOSE


def has_ended(transport: asyncio.Transport) -> bool:
    """Whether the peer has said that nothing more will come, or is gone."""
    return bool(_poll(transport.get_extra_info("socket"), getattr(select, "POLLRDHUP", 0)))


def has_input(sock: socket.socket) -> bool:
    """Whether something has come that was not read yet."""
    return bool(_poll(sock, getattr(select, "POLLIN", 0)))


def is_broken(transport: asyncio.Transport) -> bool:
    """Whether nothing can be sent to the peer any more."""
    return bool(_poll(transport.get_extra_info("socket"), 0))


def is_full(transport: asyncio.Transport) -> bool:
    """Whether the system takes no more for the peer just now."""
    return _poll(transport.get_extra_info("socket"), getattr(select, "POLLOUT", 0)) == 0


def _poll(sock: socket.socket, events: int) -> int | None:
    """Which of these events there are, or what has ended; None if it cannot be told."""
    try:
        poll = select.poll()
        poll.register(sock.fileno(), events)
    except (AttributeError, ValueError):  # not on this system; closed
        return None
    return next((found for _, found in poll.poll(0)), 0)


def acknowledged(transport: asyncio.Transport) -> int | None:
    """Bytes that the peer has acknowledged (tcp_info's tcpi_bytes_acked); None where it cannot be told."""
    info = _tcp_info(transport, _BYTES_ACKED.size)
    return int(_BYTES_ACKED.unpack(info)[0]) if len(info) == _BYTES_ACKED.size else None


def _tcp_info(transport: asyncio.Transport, size: int) -> bytes:
    """The first `size` bytes of tcp_info, or what there is of them. Others lay it out in another way."""
    if sys.platform != "linux":
        return b""
    try:
        return bytes(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size))
    except (AttributeError, OSError):  # closed; a unix socket
        return b""


def reset(transport: asyncio.Transport) -> None:
    """End the connection at once, so that the system throws away what it still holds for the peer."""
    sock = transport.get_extra_info("socket")
    if sock is not None:  # as it is of TLS whose connection is lost, when nobody has said so yet
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    transport.abort()
