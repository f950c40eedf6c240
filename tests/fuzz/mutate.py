"""Streams that were once requests: files of our corpora, damaged in the ways that parsers have fallen for.

Over one corpus a seed and a number always give the same stream.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tests.server.wire.exchange import parse_turns

TESTS: Final = Path(__file__).parent.parent

# What a mutation may grow a stream to, in bytes. A few streams are larger, as some files are.
MAX_SIZE: Final = 16_384

NEXT: Final = b"GET /next HTTP/1.1\r\nHost: b\r\n\r\n"

BYTES: Final = b"\r\n\0 \t\x0b\x0c\x1c\x7f\x85\xa0\xb2\xff:;,\"'0159aAfFxX+-_.=*/\\%#?@[]()~"

LINES: Final = (
    b"Content-Length: 5",
    b"Content-Length: 0",
    b"Content-Length: 33",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding:",
    b"Host: a",
    b"Host:",
    b"Connection: close",
    b"Connection: keep-alive",
    b"Expect: 100-continue",
    b"Cookie: a=1",
    b"Upgrade: h2c",
    b"X-Forwarded-For: 192.0.2.1",
    b"X-Forwarded-Proto: https",
    b"Forwarded: for=192.0.2.1;host=c",
    b" folded",
    b"",
    b"0",
    b"5",
    b"GET /inner HTTP/1.1",
    b"POST / HTTP/1.0",
)

SPANS: Final = (
    b"\r\n\r\n",
    b"\n\n",
    b"\r\r",
    b"\n\r",
    b"\r\n ",
    b"0\r\n\r\n",
    b"0\r\nX: y\r\n\r\n",
    b"5\r\nhello\r\n",
    b"\r\nContent-Length: 5\r\n",
    b"\r\nTransfer-Encoding: chunked\r\n",
    b"\r\nConnection: close\r\n",
    b"chunked",
    b", chunked",
    b"identity",
    b";a=b",
    b';a="',
    b'\\"',
    b"0x",
    b"%0d%0a",
    b"%00",
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"HTTP/2.0",
    b"http://b",
    b"xn--\xc2\xa0",
    b"\xef\xbc\x91",  # a full-width digit
    NEXT,
)

EXTENSIONS: Final = (
    b"",
    b";a",
    b";a=b",
    b' ;\ta = "b"',
    b";a;b;c",
    b';a="b;\\"\\\\\xe9\t"',
    b';a="' + b"b" * 20 + b'"',
    b';a="\\\x7f"',
    b";a=",
)

LINE_ENDS: Final = (b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n\r\n", b" \r\n", b"\r \n", b"\0\r\n", b"")

_NUMBER: Final = re.compile(rb"[0-9]+")
_LENGTH: Final = re.compile(rb"(?i)(?<=\ncontent-length: )[0-9]+")
_CHUNK_SIZE: Final = re.compile(rb"(?<=\n)[0-9a-fA-F]+(?=[\r;])")
_NAME: Final = re.compile(rb"(?<=\n)[A-Za-z-]+(?=:)")

Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]


# What is accepted has the most to lose.
_KINDS: Final = ("accepted", "accepted", "accepted", "served", "served", "refused")


def corpus(*kinds: str) -> list[bytes]:
    """What the wire files for the parser send (`accepted`, `refused`), and those for servers (`served`)."""
    return [stream for kind in kinds or _KINDS for stream in _streams(kind)]


def _streams(kind: str) -> list[bytes]:
    if kind == "served":
        files = sorted((TESTS / "server/wire/exchanges").glob("*.exchange"))
        return [b"".join(turn.sent for turn in parse_turns(path.read_bytes())) for path in files]
    return [path.read_bytes() for path in sorted((TESTS / "http/wire" / kind).glob("*.request"))]


def case(seed: int, number: int, sources: Sequence[bytes]) -> bytes:
    """The stream of this number."""
    chance = random.Random(f"{seed}:{number}")
    stream = chance.choice(sources)
    for _ in range(chance.choice((0, 1, 1, 1, 1, 2, 2, 3, 5, 10))):
        damaged = chance.choice(MUTATIONS)(chance, stream, sources)
        if len(damaged) <= max(MAX_SIZE, len(stream)):
            stream = damaged
    return stream + NEXT if chance.random() < 0.5 else stream


def behind_large_body(chance: random.Random, stream: bytes) -> bytes:
    """The stream behind a request that fits neither into a socket's buffer nor into a look-ahead."""
    size = chance.randint(60_000, 300_000)
    body = (NEXT * (size // len(NEXT) + 1))[:size]
    if chance.random() < 0.5:
        return b"POST /large HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (size, body) + stream
    parts = [b"POST /large HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"]
    largest = chance.choice((200, 5_000, 200_000))
    while body:
        data = body[: chance.randint(1, largest)]
        parts.append(b"%x\r\n%b\r\n" % (len(data), data))
        body = body[len(data) :]
    return b"".join([*parts, b"0\r\n\r\n", stream])


# -- bits, bytes, spans


def flip_bit(chance: random.Random, stream: bytes, _sources: Sequence[bytes]) -> bytes:
    if not stream:
        return stream
    at = chance.randrange(len(stream))
    return _replaced(stream, at, at + 1, bytes([stream[at] ^ 1 << chance.randrange(8)]))


def insert_byte(chance: random.Random, stream: bytes, _sources: Sequence[bytes]) -> bytes:
    at = chance.randint(0, len(stream))
    return _replaced(stream, at, at, _byte(chance))


def replace_byte(chance: random.Random, stream: bytes, _sources: Sequence[bytes]) -> bytes:
    at = chance.randint(0, len(stream))
    return _replaced(stream, at, at + 1, _byte(chance))


def insert_beside_mark(chance: random.Random, stream: bytes, _sources: Sequence[bytes]) -> bytes:
    """A byte or two beside what a parser looks for, where most of what it may confuse is."""
    marks = _marks(stream)
    if not marks:
        return stream
    at = chance.choice(marks) + chance.randint(0, 1)
    return _replaced(stream, at, at, _byte(chance) * chance.choice((1, 1, 1, 2)))


def change_mark(chance: random.Random, stream: bytes, _sources: Sequence[bytes]) -> bytes:
    """It stands twice, or not at all, or another in its place."""
    marks = _marks(stream)
    if not marks:
        return stream
    at = chance.choice(marks)
    return _replaced(stream, at, at + 1, chance.choice((stream[at : at + 1] * 2, b"", _byte(chance))))


def insert_span(chance: random.Random, stream: bytes, _sources: Sequence[bytes]) -> bytes:
    at = chance.randint(0, len(stream))
    return _replaced(stream, at, at, chance.choice(SPANS))


def delete_span(chance: random.Random, stream: bytes, _sources: Sequence[bytes]) -> bytes:
    return _replaced(stream, *_span(chance, stream), b"")


def repeat_span(chance: random.Random, stream: bytes, _sources: Sequence[bytes]) -> bytes:
    start, end = _span(chance, stream)
    return _replaced(stream, end, end, stream[start:end] * chance.choice((1, 1, 1, 2, 5, 50, 300)))


def swap_spans(chance: random.Random, stream: bytes, _sources: Sequence[bytes]) -> bytes:
    a, b, c, d = sorted(chance.randint(0, len(stream)) for _ in range(4))
    return stream[:a] + stream[c:d] + stream[b:c] + stream[a:b] + stream[d:]


def truncate(chance: random.Random, stream: bytes, _sources: Sequence[bytes]) -> bytes:
    return stream[: chance.randint(0, len(stream))]


# -- lines


def delete_line(chance: random.Random, stream: bytes, _sources: Sequence[bytes]) -> bytes:
    return _with_lines(chance, stream, lambda lines, at: lines[:at] + lines[at + 1 :])


def duplicate_line(chance: random.Random, stream: bytes, _sources: Sequence[bytes]) -> bytes:
    count = chance.choice((2, 2, 2, 3, 120))
    return _with_lines(chance, stream, lambda lines, at: lines[:at] + [lines[at]] * count + lines[at + 1 :])


def move_line(chance: random.Random, stream: bytes, _sources: Sequence[bytes]) -> bytes:
    lines = stream.splitlines(keepends=True)
    if lines:
        line = lines.pop(chance.randrange(len(lines)))
        lines.insert(chance.randint(0, len(lines)), line)
    return b"".join(lines)


def insert_line(chance: random.Random, stream: bytes, sources: Sequence[bytes]) -> bytes:
    """One that frames, or one of another file."""
    line = chance.choice(LINES) + b"\r\n"
    if chance.random() < 0.3:
        line = chance.choice(chance.choice(sources).splitlines(keepends=True) or [line])
    return _with_lines(chance, stream, lambda lines, at: [*lines[:at], line, *lines[at:]])


def change_line_end(chance: random.Random, stream: bytes, _sources: Sequence[bytes]) -> bytes:
    end = chance.choice(LINE_ENDS)
    if chance.random() < 0.2:
        return stream.replace(b"\r\n", end)
    return _with_match(chance, stream, re.compile(rb"\r?\n"), lambda _: end)


# -- numbers and names


def change_number(chance: random.Random, stream: bytes, _sources: Sequence[bytes]) -> bytes:
    return _with_match(
        chance, stream, _NUMBER, lambda digits: _other_number(chance, int(digits[:40]), digits)
    )


def change_length(chance: random.Random, stream: bytes, _sources: Sequence[bytes]) -> bytes:
    return _with_match(
        chance, stream, _LENGTH, lambda digits: _other_number(chance, int(digits[:40]), digits)
    )


def change_chunk_size(chance: random.Random, stream: bytes, _sources: Sequence[bytes]) -> bytes:
    def other(digits: bytes) -> bytes:
        size = int(digits[:40], 16)
        shape = chance.choice(
            (b"%X", b"0x%x", b"%016x", b"%017x", b"1%016x", b"%x ", b"%x\t", b" %x", b"%x;", b"%xh")
        )
        return chance.choice((b"%x" % (size + 1), b"%x" % abs(size - 1), shape % size))

    return _with_match(chance, stream, _CHUNK_SIZE, other)


def add_extensions(chance: random.Random, stream: bytes, _sources: Sequence[bytes]) -> bytes:
    return _CHUNK_SIZE.sub(lambda size: size[0] + chance.choice(EXTENSIONS), stream)


def add_trailers(chance: random.Random, stream: bytes, _sources: Sequence[bytes]) -> bytes:
    lines = b"".join(chance.choice((b"X: 1\r\n", b"Y:\r\n")) for _ in range(chance.randint(1, 12)))
    return stream.replace(b"\n0\r\n", b"\n0\r\n" + lines)


def _other_number(chance: random.Random, number: int, digits: bytes) -> bytes:
    return chance.choice(
        (
            b"%d" % (number + 1),
            b"%d" % (number - 1),
            b"0" * chance.choice((1, 3, 18, 40)) + digits,
            b"%#x" % number,
            b"%x" % number,
            b"+" + digits,
            b"-" + digits,
            digits + b"_0",
            digits + b".0",
            digits + b"e0",
            digits + b", " + digits,
            b'"' + digits + b'"',
            b"%d" % (number + 2 ** chance.choice((31, 32, 63, 64))),
            b"9" * chance.choice((10, 19, 20, 5_000)),
            b"",
            "".join(chr(0xFF10 + int(d)) for d in digits.decode() if d.isdecimal()).encode(),  # full-width
        )
    )


def change_case(chance: random.Random, stream: bytes, _sources: Sequence[bytes]) -> bytes:
    return _with_match(
        chance,
        stream,
        re.compile(rb"[A-Za-z]{2,}"),
        chance.choice((bytes.upper, bytes.lower, bytes.swapcase)),
    )


def change_name(chance: random.Random, stream: bytes, _sources: Sequence[bytes]) -> bytes:
    """A name that some parser takes for the one that it was."""

    def other(name: bytes) -> bytes:
        at = chance.randint(0, len(name))
        return chance.choice(
            (
                name.replace(b"-", b"_"),
                name.replace(b"-", b""),
                name.replace(b"-", b" "),
                name[:at] + name[at + 1 :],
                name[:at] + _byte(chance) + name[at:],
                name + chance.choice((b" ", b"\t", b"\0", b"\x0b", b"\xa0", b":", b"\r", b"\n")),
                chance.choice((b" ", b"\t", b"\0", b"\r")) + name,
                b"X-" + name,
                chance.choice(LINES).partition(b":")[0],
            )
        )

    return _with_match(chance, stream, _NAME, other)


# -- several files


def splice(chance: random.Random, stream: bytes, sources: Sequence[bytes]) -> bytes:
    """The beginning of one and the end of another."""
    other = chance.choice(sources)
    return stream[: chance.randint(0, len(stream))] + other[chance.randint(0, len(other)) :]


def pipeline(chance: random.Random, stream: bytes, sources: Sequence[bytes]) -> bytes:
    other = chance.choice(sources)
    between = b"\r\n" * chance.choice((0, 0, 0, 1, 2, 3, 4, 5))
    return chance.choice(
        (stream + between + other, other + between + stream, (between + stream) * 3, stream * 10)
    )


def ask_again(chance: random.Random, stream: bytes, _sources: Sequence[bytes]) -> bytes:
    """The same fields once more, where a parser may remember them, behind another request line."""
    line, end, rest = stream.partition(b"\r\n")
    parts = line.split(b" ")
    other = chance.choice(
        (
            line.replace(b"/1.1", b"/1.0"),
            line.replace(b"/1.0", b"/1.1"),
            b" ".join([b"HEAD", *parts[1:]]),
            b" ".join(
                [*parts[:1], chance.choice((b"http://c/", b"/other?q", b"http://[::1]:80")), *parts[2:]]
            ),
        )
    )
    return chance.choice((stream + other + end + rest, other + end + rest + stream))


def put_into_body(chance: random.Random, stream: bytes, _sources: Sequence[bytes]) -> bytes:
    """The stream as the body of a request, whose length is about right."""
    size = max(0, len(stream) + chance.choice((0, 0, 0, -1, 1, -2, 2)))
    return b"POST /outer HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + stream


def put_into_chunks(chance: random.Random, stream: bytes, _sources: Sequence[bytes]) -> bytes:
    parts = [b"POST /outer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"]
    rest = stream
    while rest and len(parts) < 40:
        size = chance.randint(1, max(1, len(rest)))
        parts.append(b"%x\r\n%b\r\n" % (size, rest[:size]))
        rest = rest[size:]
    return b"".join(parts) + b"0\r\n\r\n"


MUTATIONS: Final[tuple[Mutation, ...]] = (
    flip_bit,
    insert_byte,
    replace_byte,
    insert_beside_mark,
    insert_beside_mark,
    change_mark,
    insert_span,
    delete_span,
    repeat_span,
    swap_spans,
    truncate,
    delete_line,
    duplicate_line,
    move_line,
    insert_line,
    insert_line,
    change_line_end,
    change_number,
    change_length,
    change_chunk_size,
    add_extensions,
    add_trailers,
    change_case,
    change_name,
    splice,
    pipeline,
    ask_again,
    put_into_body,
    put_into_chunks,
)


# -- parts of a stream


def _byte(chance: random.Random) -> bytes:
    return bytes([chance.choice(BYTES) if chance.random() < 0.9 else chance.randrange(256)])


def _marks(stream: bytes) -> list[int]:
    return [at for at, byte in enumerate(stream) if byte in b"\r\n:;=, "]


def _span(chance: random.Random, stream: bytes) -> tuple[int, int]:
    start = chance.randint(0, len(stream))
    return start, min(len(stream), start + chance.choice((1, 2, 3, 8, 30, 200)))


def _replaced(stream: bytes, start: int, end: int, other: bytes) -> bytes:
    return stream[:start] + other + stream[end:]


def _with_lines(
    chance: random.Random, stream: bytes, change: Callable[[list[bytes], int], list[bytes]]
) -> bytes:
    lines = stream.splitlines(keepends=True)
    return b"".join(change(lines, chance.randrange(len(lines)))) if lines else stream


def _with_match(
    chance: random.Random, stream: bytes, pattern: re.Pattern[bytes], change: Callable[[bytes], bytes]
) -> bytes:
    matches = list(pattern.finditer(stream))
    if not matches:
        return stream
    match = chance.choice(matches)
    return _replaced(stream, match.start(), match.end(), change(match[0]))
