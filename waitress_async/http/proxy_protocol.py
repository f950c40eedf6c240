"""The PROXY header, by which a load balancer says whose connection it relays: versions 1 and 2.

The specification is HAProxy's, doc/proxy-protocol.txt; a section named here is one of its own. Nearly always
a header comes whole. One that does not is parsed from its start again when more has come: nothing but its
bytes is kept in between, and no cut can change what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import Final

from waitress_async.errors import ProxyProtocolError

# Section 2 has headers fit a TCP segment that every host takes, 536 bytes, but a length of version 2 may say
# 64 KiB. This has room for all that proxies add in practice, and is little enough to hold for a connection.
MAX_HEADER_SIZE: Final = 4096

# Of a line, with its CR LF (section 2.1).
_MAX_LINE_SIZE: Final = 107

_NO_LINE: Final = f"The line of the PROXY header is malformed, or longer than {_MAX_LINE_SIZE} bytes."

_SIGNATURES: Final = {1: b"PROXY ", 2: b"\r\n\r\n\0\r\nQUIT\n"}


@dataclass(frozen=True, slots=True)
class ProxiedAddresses:
    """Both ends of the connection that the proxy relays, each an address as text and a port.

    An IPv6 address is in its canonical form (RFC 5952) whatever its spelling was, an IPv4-mapped one as
    `::ffff:192.0.2.1`, which is how the system writes that of a peer on a dual-stack socket.
    """

    source: tuple[str, int]
    """The client."""

    destination: tuple[str, int]
    """What the client connected to."""


@dataclass(frozen=True, slots=True)
class _Header:
    """A whole header: how long it is, in bytes, and what it says."""

    size: int
    addresses: ProxiedAddresses | None


class ProxyHeaderReader:
    """Reads the PROXY header at the start of one connection, and not a byte beyond it.

    `versions` are those that are accepted, of 1 and 2. One thread at a time may use a reader.
    """

    __slots__ = ("_held", "_kinds", "_versions", "addresses", "complete")

    def __init__(self, versions: Collection[int]) -> None:
        self._versions = sorted(versions)
        self._kinds = [kind for version in self._versions for kind in _KINDS[version].items()]
        self._held = b""
        self.complete = False
        """Whether the header has come whole."""

        self.addresses: ProxiedAddresses | None = None
        """What it says. None until it is complete, and then if the connection's own addresses stand."""

    def take(self, data: bytes) -> int:
        """Look at the next bytes of the stream, and return how many of them belong to the header.

        The caller consumes just these and never offers them again. All are taken while the header is
        incomplete, none once it is complete; there is no need to offer more than MAX_HEADER_SIZE bytes.

        Raises ProxyProtocolError for what is no header of an accepted version: at the first byte by which it
        begins like none, and for a line when that is whole, or longer than one may be. No cut changes which
        error it is. The connection is to be closed then, and the reader not used again.
        """
        if self.complete:
            return 0
        held = len(self._held)
        start = self._held + data
        header = self._parse(start)
        if header is None:
            self._held = start
            return len(start) - held
        self._held = b""
        self.complete = True
        self.addresses = header.addresses
        return header.size - held

    def _parse(self, start: bytes) -> _Header | None:
        """The header that `start` begins with; None while more of it is needed."""
        for opening, parse in self._kinds:
            if start.startswith(opening):
                return parse(start)
            if opening.startswith(start):
                return None
        for version in self._versions:
            if start.startswith(_SIGNATURES[version]):
                raise ProxyProtocolError(f"The PROXY header of version {version} is of no accepted kind.")
        wanted = " or ".join(map(str, self._versions))
        raise ProxyProtocolError(f"The connection does not begin with a PROXY header of version {wanted}.")


# -- version 1: a line of text (section 2.1)


def _parse_line(start: bytes, read: Callable[[bytes], ProxiedAddresses | None]) -> _Header | None:
    """A line that `read` understands, given all of it but its CR LF. It is looked at when it is whole."""
    end = start.find(b"\r", 0, _MAX_LINE_SIZE - 1)
    if end < 0 and len(start) >= _MAX_LINE_SIZE - 1:
        raise ProxyProtocolError(_NO_LINE)
    if end < 0 or end + 1 == len(start):
        return None
    if start[end + 1 : end + 2] != b"\n":
        raise ProxyProtocolError("The line of the PROXY header must end in CR LF; a bare CR was found.")
    return _Header(end + 2, read(start[:end]))


def _read_tcp(address: Callable[[str], str], line: bytes) -> ProxiedAddresses:
    readers: Mapping[str, Callable[[str], str]] = {
        "source address": address,
        "destination address": address,
        "source port": _port,
        "destination port": _port,
    }
    texts = line.split(b" ")[2:]
    values = []
    for (name, read), text in zip(readers.items(), texts, strict=False):
        try:
            values.append(read(text.decode("ascii")))
        except ValueError:
            raise ProxyProtocolError(f"The {name} in the PROXY header is malformed.") from None
    if len(texts) != len(readers):
        raise ProxyProtocolError("The PROXY header must hold two addresses and two ports, and nothing else.")
    source, destination, source_port, destination_port = values
    return ProxiedAddresses((source, int(source_port)), (destination, int(destination_port)))


def _read_unknown(line: bytes) -> None:
    """What follows UNKNOWN must be ignored (section 2.1), but a line is a line."""
    rest = line.removeprefix(b"PROXY UNKNOWN")
    if b"\n" in rest or rest[:1] not in (b"", b" "):
        raise ProxyProtocolError(_NO_LINE)


def _ipv4(address: str | bytes) -> str:
    return str(IPv4Address(address))


def _ipv6(address: str | bytes) -> str:
    parsed = IPv6Address(address)
    if parsed.scope_id is not None:
        raise ValueError("a zone means nothing on another machine")
    mapped = parsed.ipv4_mapped  # which Python writes in two ways, before 3.13 and since
    return str(parsed) if mapped is None else f"::ffff:{mapped}"


def _ipv6_text(address: str) -> str:
    if len(address) > 39:  # eight groups of four digits: what section 2.1 makes room for
        raise ValueError("too long")
    return _ipv6(address)


def _port(text: str) -> str:
    port = int(text)
    if str(port) != text or not 0 <= port <= 65535:
        raise ValueError("no port, or spelt in another way")
    return text


# -- version 2: sixteen bytes, a block of addresses, and TLVs (section 2.2)


def _parse_binary(start: bytes, block: Struct, text: Callable[[bytes], str]) -> _Header | None:
    """A header with a block of addresses, which may be empty. What follows the block is skipped unread."""
    length = int.from_bytes(start[14:16].ljust(2, b"\0"), "big")  # or the least that it can still be
    size = 16 + length
    if size > MAX_HEADER_SIZE:
        raise ProxyProtocolError(f"The PROXY header is longer than {MAX_HEADER_SIZE} bytes.")
    if len(start) < 16:
        return None
    if length < block.size:
        raise ProxyProtocolError("The PROXY header is too short for its addresses.")
    if len(start) < size:
        return None
    values = block.unpack_from(start, 16)
    if not values:
        return _Header(size, None)
    source, destination, source_port, destination_port = values
    return _Header(size, ProxiedAddresses((text(source), source_port), (text(destination), destination_port)))


_Parse = Callable[[bytes], _Header | None]


def _line(read: Callable[[bytes], ProxiedAddresses | None]) -> _Parse:
    return partial(_parse_line, read=read)


def _binary(block: str, text: Callable[[bytes], str] = _ipv4) -> _Parse:
    return partial(_parse_binary, block=Struct(block), text=text)


# What a header of each accepted kind begins with, and how it is parsed. None begins with another.
_KINDS: Final[Mapping[int, Mapping[bytes, _Parse]]] = {
    1: {
        b"PROXY TCP4 ": _line(partial(_read_tcp, _ipv4)),
        b"PROXY TCP6 ": _line(partial(_read_tcp, _ipv6_text)),
        b"PROXY UNKNOWN": _line(_read_unknown),
    },
    2: {
        _SIGNATURES[2] + b"\x20": _binary("!"),  # LOCAL, of any family: the proxy's own connection
        _SIGNATURES[2] + b"\x21\x00": _binary("!"),  # UNSPEC
        _SIGNATURES[2] + b"\x21\x11": _binary("!4s4sHH", _ipv4),  # TCP over IPv4
        _SIGNATURES[2] + b"\x21\x21": _binary("!16s16sHH", _ipv6),  # TCP over IPv6
        _SIGNATURES[2] + b"\x21\x31": _binary("!216x"),  # a unix stream: two paths that mean nothing here
    },
}
