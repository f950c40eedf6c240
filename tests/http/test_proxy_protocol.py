"""PROXY headers: what they say, where they end, and at which byte something is none, whatever the cuts."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterable
from copy import copy
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waitress_async.errors import ProxyProtocolError
from waitress_async.http.proxy_protocol import MAX_HEADER_SIZE, ProxiedAddresses, ProxyHeaderReader

HTTP = b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"
SIGNATURE = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"
BOTH = (1, 2)
LONGEST_LINE = 107

# -- what a stream comes to


class Outcome(NamedTuple):
    """What a reader made of a stream, in which nothing may depend on how it was cut."""

    complete: bool
    addresses: ProxiedAddresses | None
    taken: int | None
    error: str | None


def read(pieces: Iterable[bytes], versions: Iterable[int] = BOTH) -> Outcome:
    """Offer a reader what is readable after each piece has come, as a caller that peeks at a socket."""
    reader = ProxyHeaderReader(list(versions))
    readable = b""
    taken = 0
    try:
        for piece in pieces:
            readable += piece
            if reader.complete or not readable:
                continue
            size = reader.take(readable)
            assert 0 < size <= len(readable)
            assert reader.complete or size == len(readable), (
                "something is left, and the socket stays readable"
            )
            taken += size
            readable = readable[size:]
    except ProxyProtocolError as error:
        assert not reader.complete
        assert reader.addresses is None
        assert taken < MAX_HEADER_SIZE
        return Outcome(False, None, None, str(error))
    return Outcome(reader.complete, reader.addresses, taken, None)


def by_byte(stream: bytes) -> list[bytes]:
    return [stream[at : at + 1] for at in range(len(stream))]


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    """The pieces of a stream that is cut at some places."""
    edges = [0, *sorted({place % (len(stream) + 1) for place in places}), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


cuts = st.lists(st.integers(0, 2 * MAX_HEADER_SIZE), max_size=8)


def followers(start: bytes, versions: Iterable[int] = BOTH) -> bytes:
    """All bytes that a reader which has taken `start` accepts next."""
    reader = ProxyHeaderReader(list(versions))
    assert reader.take(start) == len(start)
    assert not reader.complete
    return bytes(byte for byte in range(256) if accepts(reader, bytes([byte])))


def accepts(reader: ProxyHeaderReader, byte: bytes) -> bool:
    try:
        copy(reader).take(byte)
    except ProxyProtocolError:
        return False
    return True


# -- headers, written by other means than they are read


def binary(command: int, family: int, rest: bytes, *, length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest) if length is None else length) + rest


def block(source: str, destination: str, source_port: int, destination_port: int) -> bytes:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    ends = socket.inet_pton(family, source) + socket.inet_pton(family, destination)
    return ends + struct.pack("!HH", source_port, destination_port)


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


V4 = ProxiedAddresses(("192.0.2.1", 56324), ("198.51.100.2", 443))
V4_BLOCK = block("192.0.2.1", "198.51.100.2", 56324, 443)
V6 = ProxiedAddresses(("2001:db8::1", 0), ("::1", 65535))
V6_BLOCK = block("2001:db8::1", "::1", 0, 65535)
FULL_V6 = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"

LINES: list[tuple[bytes, ProxiedAddresses | None]] = [
    (b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n", V4),
    (
        b"PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n",
        ProxiedAddresses(("0.0.0.0", 0), ("255.255.255.255", 65535)),
    ),
    (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",  # the longest for IPv4
        ProxiedAddresses(("255.255.255.255", 65535), ("255.255.255.255", 65535)),
    ),
    (b"PROXY TCP6 2001:db8::1 ::1 0 65535\r\n", V6),
    (b"PROXY TCP6 2001:0DB8:0:0:0:0:0:1 0:0::0001 0 65535\r\n", V6),
    (
        f"PROXY TCP6 {FULL_V6} {FULL_V6} 65535 65535\r\n".encode(),  # the longest for IPv6
        ProxiedAddresses((FULL_V6, 65535), (FULL_V6, 65535)),
    ),
    (b"PROXY TCP6 :: 1:: 1 2\r\n", ProxiedAddresses(("::", 1), ("1::", 2))),
    (
        b"PROXY TCP6 1:2:3:4:5:6:7:: ::2:3:4:5:6:7:8 1 2\r\n",
        ProxiedAddresses(("1:2:3:4:5:6:7:0", 1), ("0:2:3:4:5:6:7:8", 2)),
    ),
    (
        b"PROXY TCP6 ::ffff:192.0.2.1 0:0:0:0:0:FFFF:C000:0202 1 2\r\n",
        ProxiedAddresses(("::ffff:192.0.2.1", 1), ("::ffff:192.0.2.2", 2)),
    ),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN \r\n", None),
    (b"PROXY UNKNOWN 192.0.2.1 whatever\0\xff  -1\r\n", None),
    (b"PROXY UNKNOWN" + b" ".ljust(92, b"x") + b"\r\n", None),  # 107 bytes
]

BINARIES: list[tuple[bytes, ProxiedAddresses | None]] = [
    (binary(0x21, 0x11, V4_BLOCK), V4),
    (binary(0x21, 0x21, V6_BLOCK), V6),
    (binary(0x21, 0x11, V4_BLOCK + tlv(4, b"") + tlv(5, b"an id")), V4),
    (binary(0x21, 0x11, V4_BLOCK + b"no TLVs at all"), V4),
    (binary(0x21, 0x21, V6_BLOCK + tlv(0x20, bytes(5) + tlv(0x21, b"TLSv1.3"))), V6),
    (
        binary(0x21, 0x21, block("::ffff:192.0.2.1", "::ffff:0:1", 1, 2)),
        ProxiedAddresses(("::ffff:192.0.2.1", 1), ("::ffff:0.0.0.1", 2)),
    ),
    (binary(0x21, 0x11, V4_BLOCK.ljust(MAX_HEADER_SIZE - 16, b"\0")), V4),
    (binary(0x21, 0x00, b""), None),
    (binary(0x21, 0x00, V4_BLOCK), None),
    (binary(0x21, 0x31, b"/run/client".ljust(108, b"\0") + b"/run/server".ljust(108, b"\0")), None),
    (binary(0x21, 0x31, bytes(216) + tlv(4, b"xyz")), None),
    (binary(0x20, 0x00, b""), None),
    (binary(0x20, 0x11, V4_BLOCK), None),
    (binary(0x20, 0x11, b"short"), None),
    (binary(0x20, 0xFF, b"of no family"), None),
    (binary(0x20, 0x00, bytes(MAX_HEADER_SIZE - 16)), None),
]

GOOD = [(1, *row) for row in LINES] + [(2, *row) for row in BINARIES]
HEADERS = [header for _, header, _ in GOOD]


@pytest.mark.parametrize(("version", "header", "addresses"), GOOD)
def test_a_header_is_read_and_nothing_beyond_it(
    version: int, header: bytes, addresses: ProxiedAddresses | None
) -> None:
    expected = Outcome(True, addresses, len(header), None)
    for versions in [(version,), (1, 2), (2, 1)]:
        assert read([header], versions) == expected
        assert read([header + HTTP], versions) == expected
        assert read([header + header], versions) == expected
        assert read(by_byte(header + HTTP), versions) == expected


@given(st.sampled_from(GOOD), cuts)
def test_no_cut_changes_what_a_header_says(
    row: tuple[int, bytes, ProxiedAddresses | None], places: list[int]
) -> None:
    _, header, addresses = row
    assert read(cut(header + HTTP, places)) == Outcome(True, addresses, len(header), None)


@pytest.mark.parametrize(("version", "header", "addresses"), GOOD)
def test_a_header_of_another_version_is_refused_at_its_first_byte(
    version: int, header: bytes, addresses: ProxiedAddresses | None
) -> None:
    other = 3 - version
    reader = ProxyHeaderReader({other})
    with pytest.raises(ProxyProtocolError, match=f"does not begin with a PROXY header of version {other}"):
        reader.take(header[:1])


@pytest.mark.parametrize("header", HEADERS)
def test_addresses_are_told_once_the_header_is_whole(header: bytes) -> None:
    reader = ProxyHeaderReader(BOTH)
    states = []
    for data in [b"", header[:-1], b"", header[-1:] + HTTP, HTTP]:
        states.append((reader.take(data), reader.complete, reader.addresses is not None))
    told = read([header]).addresses is not None
    before, whole = len(header) - 1, (True, told)
    assert states == [(0, False, False), (before, False, False), (0, False, False), (1, *whole), (0, *whole)]


# -- what is none

NO_HEADER = "The connection does not begin with a PROXY header of version 1 or 2."
NO_LINE = "The PROXY header of version 1 is of no accepted kind."
NO_BINARY = "The PROXY header of version 2 is of no accepted kind."
SOURCE = "The source address in the PROXY header is malformed."
DESTINATION = "The destination address in the PROXY header is malformed."
SOURCE_PORT = "The source port in the PROXY header is malformed."
DESTINATION_PORT = "The destination port in the PROXY header is malformed."
FIELDS = "The PROXY header must hold two addresses and two ports, and nothing else."
BARE_CR = "The line of the PROXY header must end in CR LF; a bare CR was found."
LINE = "The line of the PROXY header is malformed, or longer than 107 bytes."
TOO_LONG = "The PROXY header is longer than 4096 bytes."
TOO_SHORT = "The PROXY header is too short for its addresses."

# What is taken without complaint, and then the byte that decides that it is no header.
BAD: list[tuple[bytes, bytes, str]] = [
    # Something else.
    (b"", b"G", NO_HEADER),
    (b"", b"\x16", NO_HEADER),  # TLS
    (b"", b" ", NO_HEADER),
    (b"", b"\n", NO_HEADER),
    (b"", b"p", NO_HEADER),
    (b"P", b"O", NO_HEADER),  # POST
    (b"PROX", b"y", NO_HEADER),
    (b"PROXY", b"\t", NO_HEADER),
    (b"PROXY", b"\r", NO_HEADER),
    (b"\r\n", b"G", NO_HEADER),
    (SIGNATURE[:11], b"\r", NO_HEADER),
    # Lines of another kind.
    (b"PROXY ", b" ", NO_LINE),
    (b"PROXY ", b"t", NO_LINE),
    (b"PROXY ", b"\r", NO_LINE),
    (b"PROXY TCP", b"5", NO_LINE),
    (b"PROXY TCP", b" ", NO_LINE),
    (b"PROXY TCP4", b"\t", NO_LINE),
    (b"PROXY TCP4", b"\r", NO_LINE),
    (b"PROXY U", b"D", NO_LINE),  # UDP4
    (b"PROXY UNKNOW", b"n", NO_LINE),
    # The end of a line.
    (b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2\r", b"G", BARE_CR),
    (b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2\r", b"\r", BARE_CR),
    (b"PROXY TCP4 \r", b"G", BARE_CR),
    (b"PROXY UNKNOWN\r", b"x", BARE_CR),
    (b"PROXY UNKNOWN x\r", b"\0", BARE_CR),
    (b"PROXY UNKNOWN".ljust(LONGEST_LINE - 2), b"x", LINE),
    (b"PROXY UNKNOWN".ljust(LONGEST_LINE - 2) + b"\r", b"x", BARE_CR),
    (b"PROXY TCP6 ".ljust(LONGEST_LINE - 2), b"1", LINE),
    (b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2\nGET / HTTP/1.1\n".ljust(LONGEST_LINE - 2), b"\n", LINE),
    # The binary header.
    (SIGNATURE, b"\x00", NO_BINARY),
    (SIGNATURE, b"\x01", NO_BINARY),
    (SIGNATURE, b"\x11", NO_BINARY),  # version 1
    (SIGNATURE, b"\x22", NO_BINARY),  # an unknown command
    (SIGNATURE, b"\x31", NO_BINARY),  # version 3
    (SIGNATURE + b"\x21", b"\x01", NO_BINARY),
    (SIGNATURE + b"\x21", b"\x10", NO_BINARY),
    (SIGNATURE + b"\x21", b"\x12", NO_BINARY),  # UDP
    (SIGNATURE + b"\x21", b"\x22", NO_BINARY),
    (SIGNATURE + b"\x21", b"\x32", NO_BINARY),
    (SIGNATURE + b"\x21", b"\x41", NO_BINARY),
    (SIGNATURE + b"\x21\x11\x00", b"\x0b", TOO_SHORT),
    (SIGNATURE + b"\x21\x21\x00", b"\x23", TOO_SHORT),
    (SIGNATURE + b"\x21\x31\x00", b"\xd7", TOO_SHORT),
    (SIGNATURE + b"\x21\x11\x0f", b"\xf1", TOO_LONG),
    (SIGNATURE + b"\x21\x11", b"\x10", TOO_LONG),
    (SIGNATURE + b"\x21\x00", b"\xff", TOO_LONG),
    (SIGNATURE + b"\x20\x00\x0f", b"\xf1", TOO_LONG),
]


@pytest.mark.parametrize(("start", "byte", "message"), BAD)
def test_what_is_none_is_refused_at_the_byte_that_decides_it(start: bytes, byte: bytes, message: str) -> None:
    """The messages are known word for word, so that none holds what came from the peer."""
    refused = Outcome(False, None, None, message)
    assert read([start]) == read(by_byte(start)) == Outcome(False, None, len(start), None)
    assert read([start, byte]) == refused
    assert read([start + byte]) == refused
    assert read(by_byte(start + byte)) == refused
    for rest in [HTTP, b"\r\n" + HTTP, b"1\r\n", b" 1.2.3.4 1.2.3.4 70000 \r\n", bytes(2 * MAX_HEADER_SIZE)]:
        assert read([start + byte + rest]) == refused


@given(st.sampled_from(BAD), cuts)
def test_no_cut_changes_a_refusal(row: tuple[bytes, bytes, str], places: list[int]) -> None:
    start, byte, message = row
    assert read(cut(start + byte + HTTP, places)) == Outcome(False, None, None, message)


# What can be no address of a line, for any of the two ends.
NO_IPV4 = [
    "", ":", "\xb2", "00.0.0.0", "192.0.2.01", "256.0.0.1", "+1.0.0.1", "192", "192.0.2", "192.0.2.",
    "192..2.1", "192.0.2.1.", "192.0.2.1/32", "192.0.2.1\t", "192.0.2.1\n", "192.0.2.1\0", "::1", "localhost",
]  # fmt: skip
NO_IPV6 = [
    "", "[::1]", "1.2.3.4", "12345::", "g::", ":1", ":::", "1::2::", "1:2", "1::2:", "1:2:3:4:5:6:7:8:",
    "1:2:3:4:5:6::7:8:9", "fe80::1%eth0", "::1/128", "::1.2.3", "::25g", "::1.2.3.256",
    "1:2:3:4:5:6:7:1.2.3.4", "::1\n",
    "ffff:ffff:ffff:ffff:ffff:ffff:111.111.0.0",  # an address, of more bytes than there is room for
]  # fmt: skip
NO_PORT = [
    "", "-1", "+1", "http", "01", "00", "1_0", "1\t", "1\n", "65536", "100000", "1.0", "\xb2", "9" * 20
]  # fmt: skip

# Whole lines, without their CR LF.
BAD_LINES: list[tuple[str, str]] = [
    *((f"PROXY TCP4 {text} 192.0.2.1 1 2", SOURCE) for text in NO_IPV4),
    *((f"PROXY TCP4 192.0.2.1 {text} 1 2", DESTINATION) for text in NO_IPV4),
    *((f"PROXY TCP6 {text} ::1 1 2", SOURCE) for text in NO_IPV6),
    *((f"PROXY TCP6 ::1 {text} 1 2", DESTINATION) for text in NO_IPV6),
    *((f"PROXY TCP4 192.0.2.1 192.0.2.1 {text} 2", SOURCE_PORT) for text in NO_PORT),
    *((f"PROXY TCP6 ::1 ::1 1 {text}", DESTINATION_PORT) for text in NO_PORT),
    ("PROXY TCP4 ", SOURCE),
    ("PROXY TCP4 192.0.2.1", FIELDS),
    ("PROXY TCP4 192.0.2.1 192.0.2.1", FIELDS),
    ("PROXY TCP4 192.0.2.1 192.0.2.1 1", FIELDS),
    ("PROXY TCP4 192.0.2.1 192.0.2.1 1 ", DESTINATION_PORT),
    ("PROXY TCP4 192.0.2.1 192.0.2.1 1 2 ", FIELDS),
    ("PROXY TCP4 192.0.2.1 192.0.2.1 1 2 3", FIELDS),
    ("PROXY TCP4 192.0.2.1 192.0.2.1 1 2\nGET /", DESTINATION_PORT),
    ("PROXY UNKNOWNS", LINE),
    ("PROXY UNKNOWN\t", LINE),
    ("PROXY UNKNOWN\n", LINE),
    ("PROXY UNKNOWN x\n", LINE),
]


@pytest.mark.parametrize(("text", "message"), BAD_LINES)
def test_a_line_that_is_none_is_refused_when_it_is_whole(text: str, message: str) -> None:
    """As what begins like none it is told word for word, and in the same words whatever the cuts."""
    line = text.encode("latin-1") + b"\r"
    assert read([line]) == read(by_byte(line)) == Outcome(False, None, len(line), None)
    refused = Outcome(False, None, None, message)
    for rest in [b"", HTTP, b"\r\n", bytes(2 * MAX_HEADER_SIZE)]:
        assert read([line + b"\n" + rest]) == refused
    assert read(by_byte(line + b"\n" + HTTP)) == refused


@given(st.sampled_from(BAD_LINES), cuts)
def test_no_cut_changes_how_a_line_is_refused(row: tuple[str, str], places: list[int]) -> None:
    text, message = row
    stream = text.encode("latin-1") + b"\r\n" + HTTP
    assert read(cut(stream, places)) == Outcome(False, None, None, message)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (b"", b"\rP"),
        (b"PROXY ", b"TU"),
        (b"PROXY TCP", b"46"),
        (b"PROXY TCP4", b" "),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65535\r", b"\n"),
        (b"PROXY UNKNOWN".ljust(LONGEST_LINE - 2), b"\r"),
        (SIGNATURE, b"\x20\x21"),
        (SIGNATURE + b"\x20", bytes(range(256))),
        (SIGNATURE + b"\x21", b"\x00\x11\x21\x31"),
        (SIGNATURE + b"\x21\x11", bytes(range(16))),
        (SIGNATURE + b"\x21\x11\x00", bytes(range(12, 256))),
        (SIGNATURE + b"\x21\x21\x00", bytes(range(36, 256))),
        (SIGNATURE + b"\x21\x31\x00", bytes(range(216, 256))),
        (SIGNATURE + b"\x21\x00\x00", bytes(range(256))),
        (SIGNATURE + b"\x20\x11\x00", bytes(range(256))),
        (SIGNATURE + b"\x21\x11\x0f", bytes(range(241))),
    ],
)
def test_which_bytes_may_follow(start: bytes, expected: bytes) -> None:
    assert sorted(followers(start)) == sorted(expected)


# -- round trips

ports = st.integers(0, 65535)
v4_addresses = st.ip_addresses(v=4)
v6_addresses = st.ip_addresses(v=6) | st.builds(
    # Runs of zeros, which are what the text is about.
    lambda groups: IPv6Address(":".join(f"{group:x}" for group in groups)),
    st.lists(st.sampled_from([0, 0, 1, 0xFFFF]), min_size=8, max_size=8),
)
tlvs = st.lists(st.builds(tlv, st.integers(0, 255), st.binary(max_size=40)), max_size=4).map(b"".join)
Address = IPv4Address | IPv6Address
ends = st.tuples(v4_addresses, v4_addresses, ports, ports) | st.tuples(
    v6_addresses, v6_addresses, ports, ports
)


def spellings(address: Address) -> list[str]:
    """Ways to write an address that a proxy may choose among."""
    if isinstance(address, IPv4Address):
        return [str(address)]
    groups = ":".join(f"{group:04x}" for group in struct.unpack("!8H", address.packed))
    return [
        groups,  # and not `exploded`, which Python 3.13 makes longer than an address may be
        groups.upper(),
        address.compressed,
        socket.inet_ntop(socket.AF_INET6, address.packed),
    ]


@given(ends, tlvs, st.randoms(), cuts)
def test_what_is_written_is_read(
    ends: tuple[Address, Address, int, int], rest: bytes, choose: random.Random, places: list[int]
) -> None:
    source, destination, source_port, destination_port = ends
    version = source.version
    texts = (choose.choice(spellings(source)), choose.choice(spellings(destination)))
    line = f"PROXY TCP{version} {' '.join(texts)} {source_port} {destination_port}\r\n".encode()
    family = {4: 0x11, 6: 0x21}[version]
    header = binary(0x21, family, block(*texts, source_port, destination_port) + rest)

    text_outcome = read(cut(line + HTTP, places))
    outcome = read(cut(header + HTTP, places))
    assert text_outcome.taken == len(line)
    assert outcome.taken == len(header)
    assert outcome.addresses == text_outcome.addresses is not None
    assert outcome.addresses is not None
    assert outcome.addresses.source == (canonical(source), source_port)
    assert outcome.addresses.destination == (canonical(destination), destination_port)


def canonical(address: Address) -> str:
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return f"::ffff:{address.ipv4_mapped}"
    return str(address)


# -- anything at all


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A header in which some bytes are replaced, put in or left out."""
    header = bytearray(draw(st.sampled_from(HEADERS)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, min(len(header), 120)))
        instead = draw(
            st.binary(max_size=2) | st.sampled_from([b" ", b"\r\n", b"\n", b"0", b":", b"::", b"."])
        )
        header[at : at + draw(st.integers(0, 2))] = instead
    return bytes(header)


openings = st.sampled_from(
    [b"", b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ::", b"PROXY UNKNOWN", SIGNATURE, SIGNATURE + b"\x21"]
)
streams = st.builds(lambda opening, rest: opening + rest, openings, st.binary(max_size=200)) | damaged()
filters = st.sampled_from([(1,), (2,), BOTH])


@given(streams, filters, cuts)
def test_anything_is_a_header_or_none_whatever_the_cuts(
    stream: bytes, versions: tuple[int, ...], places: list[int]
) -> None:
    stream += HTTP
    outcome = read([stream], versions)
    assert read(cut(stream, places), versions) == outcome
    assert read(by_byte(stream[:300]), versions) == read([stream[:300]], versions)
    if outcome.taken is not None:
        assert outcome.taken <= (LONGEST_LINE if stream[:1] == b"P" else MAX_HEADER_SIZE)
        assert outcome.complete or outcome.taken == len(stream)


@given(st.binary(max_size=40))
def test_no_more_than_the_bound_is_ever_taken(noise: bytes) -> None:
    """A reader is never left waiting with as much as it may hold."""
    for opening, most in [(b"PROXY UNKNOWN ", LONGEST_LINE), (SIGNATURE + b"\x20\x00", MAX_HEADER_SIZE)]:
        outcome = read([opening + noise.ljust(2 * MAX_HEADER_SIZE, b"\1")])
        assert outcome.error is not None or (outcome.complete and outcome.taken is not None)
        assert outcome.taken is None or outcome.taken <= most
