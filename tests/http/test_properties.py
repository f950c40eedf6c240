"""Any request, any damage, any cut: one meaning or one refusal, whatever the pieces it arrives in."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from urllib.parse import quote_from_bytes

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.http.driver import ANSWER, LIMITS, TIGHT, Message, Outcome, by_byte, by_line, drive
from waitress_async.http import (
    CLOSED,
    NEED_DATA,
    PAUSED,
    Connection,
    Data,
    HeadMemo,
    Limits,
    Receiving,
    Request,
)

WIRE = Path(__file__).parent / "wire"
CORPUS = [path.read_bytes() for path in sorted(WIRE.glob("*/*.request"))]

TOKEN_CHARACTERS = "!#$%&'*+-.^`|~" + string.digits + string.ascii_letters
LINE_BYTES = bytes([9, *range(0x20, 0x7F), *range(0x80, 0x100)]).decode("latin-1")

# -- requests, from what they mean to their bytes


@dataclass(frozen=True)
class Written:
    """A request as bytes, and what it was written to mean."""

    stream: bytes
    message: Message


tokens = st.text(TOKEN_CHARACTERS, min_size=1, max_size=12)
values = st.text(LINE_BYTES, max_size=20).map(lambda value: value.strip(" \t"))
white_space = st.text(" \t", max_size=2)
methods = st.sampled_from(["GET", "HEAD", "POST", "PUT", "OPTIONS", "X-ANY"]) | tokens.filter(
    lambda method: method != "CONNECT"
)
paths = st.binary(max_size=20).map(lambda path: b"/" + path)
queries = st.text(string.ascii_letters + string.digits + "&=%?/;+", max_size=20)
bodies = st.binary(max_size=60)

# Of these names the server has an opinion; they are written by other means.
SPOKEN_FOR = {"host", "content-length", "content-type", "transfer-encoding", "connection", "expect", "proxy"}
field_names = tokens.filter(lambda name: name.lower() not in SPOKEN_FOR)
fields = st.lists(st.tuples(field_names, white_space, values, white_space), max_size=6)

quoted = st.text(LINE_BYTES, max_size=8).map(
    lambda value: '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
)
extensions = st.lists(
    st.builds(
        lambda before, after, name, value: before + ";" + after + name + value,
        white_space,
        white_space,
        tokens,
        st.just("") | st.builds("{}={}{}".format, white_space, white_space, tokens | quoted),
    ),
    max_size=3,
).map("".join)


def chunk_size(size: int, zeros: int, upper: bool) -> bytes:
    digits = f"{'0' * zeros}{size:x}"
    return (digits.upper() if upper else digits).encode("ascii")


@st.composite
def chunked(draw: st.DrawFn, body: bytes) -> bytes:
    """A chunked body: cut anywhere, sizes in any spelling, any extensions, any trailers."""
    zeros = st.integers(0, 8)
    pieces = []
    start = 0
    while start < len(body):
        end = draw(st.integers(start + 1, len(body)))
        data = body[start:end]
        extension = draw(extensions).encode("latin-1")
        pieces += [
            chunk_size(len(data), draw(zeros), draw(st.booleans())),
            extension,
            b"\r\n",
            data,
            b"\r\n",
        ]
        start = end
    pieces += [b"0" * (1 + draw(zeros)), draw(extensions).encode("latin-1"), b"\r\n"]
    for name, before, value, after in draw(fields):
        pieces.append(f"{name}:{before}{value}{after}\r\n".encode("latin-1"))
    pieces.append(b"\r\n")
    return b"".join(pieces)


@st.composite
def requests(draw: st.DrawFn) -> Written:
    """Any request that must be accepted, and keeps its connection."""
    method = draw(methods)
    path = draw(paths)
    query = draw(queries)
    authority = draw(st.sampled_from(["", "b", "[::1]:8080"]))
    target = quote_from_bytes(path, safe=draw(st.sampled_from(["/", "/:@!$&'()*+,;="])))
    if query:
        target += "?" + query
    if authority:
        target = f"http://{authority}{target}"
    http_11 = draw(st.booleans())
    has_host = http_11 or draw(st.booleans())

    lines = [("Host", draw(white_space), "a", draw(white_space))] if has_host else []
    lines += draw(fields)
    body = draw(bodies)
    framing = draw(st.sampled_from(["length", "chunked", "none"] if http_11 else ["length", "none"]))
    content_length = None
    if framing == "length":
        content_length = len(body)
        lines.append(("content-LENGTH", " ", str(len(body)), ""))
        encoded = body
    elif framing == "chunked":
        lines.append(("Transfer-Encoding", "", draw(st.sampled_from(["chunked", "Chunked"])), ""))
        encoded = draw(chunked(body))
    else:
        body = encoded = b""
    if not http_11:
        lines.append(("Connection", " ", "keep-alive", ""))
    lines = draw(st.permutations(lines))

    expected: dict[str, str] = {}
    for name, _, value, _ in lines:
        key = name.upper().replace("-", "_")
        if key == "TRANSFER_ENCODING":
            continue
        if key != "CONTENT_LENGTH":
            key = "HTTP_" + key
        if key in expected:
            expected[key] += ("; " if key == "HTTP_COOKIE" else ", ") + value
        else:
            expected[key] = value
    if authority:
        expected["HTTP_HOST"] = authority

    head = f"{method} {target} HTTP/1.{int(http_11)}\r\n"
    head += "".join(f"{name}:{before}{value}{after}\r\n" for name, before, value, after in lines)
    request = Request(
        method=method,
        target=target,
        path=path.decode("latin-1"),
        query=query,
        http_11=http_11,
        fields=expected,
        keep_alive=True,
        content_length=content_length,
        chunked=framing == "chunked",
        expect_continue=False,
    )
    stream = draw(st.sampled_from([b"", b"\r\n"])) + head.encode("latin-1") + b"\r\n" + encoded
    return Written(stream, Message(request, body, complete=True))


# -- cuts and damage

CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

cuts = st.lists(st.integers(1, 60), min_size=1, max_size=12)


def cut(stream: bytes, sizes: list[int]) -> Iterator[bytes]:
    """The stream in pieces of these sizes, over and over."""
    start = 0
    for size in cycle(sizes):
        if start >= len(stream):
            return
        yield stream[start : start + size]
        start += size


# What parsers have taken for something else.
DAMAGE = [
    *(bytes([byte]) for byte in b'\0\t\n\x0b\x0c\r\x1b "#%+,-/0159:;=?@AXf\\_\x7f\x80\x85\xa0\xb2\xff'),
    b"\r\n",
    b"\n\n",
    b"\r\r",
    b"\r\n\r\n",
    b"\r\n ",
    b"0x",
    b"0\r\n\r\n",
    b" HTTP/1.1",
    b"Host: a\r\n",
    b"Content-Length: 1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Expect: 100-continue\r\n",
    b"Expect: x\r\n",
    b"ffffffffffffffff",
    b"X" * 300,
    b"X: 1\r\n" * 12,
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Streams that were once requests: some bytes inserted, replaced, removed, repeated."""
    sources = st.sampled_from(CORPUS) | requests().map(lambda written: written.stream)
    stream = b"".join(draw(st.lists(sources, min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 4))):
        position = draw(st.integers(0, len(stream)))
        size = draw(st.integers(0, 8))
        insert = draw(st.sampled_from(DAMAGE) | st.just(stream[position : position + size]))
        removed = draw(st.sampled_from([0, 0, 1, size]))
        stream = stream[:position] + insert + stream[position + removed :]
    return stream


# -- what holds

SLOW = [HealthCheck.too_slow]  # a busy machine is no failure


@settings(max_examples=120, deadline=None, suppress_health_check=SLOW)
@given(st.lists(requests(), min_size=1, max_size=3), cuts)
def test_a_request_comes_out_as_it_was_put_in(written: list[Written], sizes: list[int]) -> None:
    """Method, target, path, query, fields and body, each request in its turn, whatever the pieces."""
    stream = b"".join(one.stream for one in written)
    outcome = drive(cut(stream, sizes), eof=True)
    assert outcome.refusal is None
    assert outcome.messages == [one.message for one in written]


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
@given(requests(), requests())
def test_the_same_again(one: Written, other: Written) -> None:
    """A request means the same when its connection has seen it before."""
    outcome = drive([one.stream, one.stream, other.stream, one.stream, one.stream], eof=True)
    assert outcome.refusal is None
    assert outcome.messages == [each.message for each in (one, one, other, one, one)]


@settings(max_examples=120, deadline=None, suppress_health_check=SLOW)
@given(st.lists(requests(), min_size=1, max_size=3), cuts, st.integers(0, 64))
def test_a_body_taken_whole_is_the_same_body(written: list[Written], sizes: list[int], limit: int) -> None:
    """Or it is told of as ever; and what follows it is the next request."""
    connection = Connection(LIMITS, HeadMemo())
    messages: list[Message] = []
    for piece in cut(b"".join(one.stream for one in written), sizes):
        connection.receive_data(piece)
        while (event := connection.next_event()) is not NEED_DATA and event is not CLOSED:
            if isinstance(event, Request):
                messages.append(Message(event, complete=not event.has_body))
                if (whole := connection.take_whole_body(limit)) is not None:
                    assert event.content_length == len(whole) <= limit
                    messages[-1] = Message(event, whole, complete=True)
            elif isinstance(event, Data):
                messages[-1].body += event.data
            else:
                messages[-1].complete = True
            if messages[-1].complete and connection.receiving is Receiving.DONE:
                connection.send_response(ANSWER, b"", 0)
                connection.end_response()
    assert messages == [one.message for one in written]


@settings(max_examples=250, deadline=None, suppress_health_check=SLOW)
@given(damaged(), cuts, st.sampled_from([LIMITS, TIGHT]), st.booleans())
@example(b"M" * 54 + b" /" + b"x" * 39 + b" HTTP/1.1\r\nHost: a\r\n\r\n", [1], TIGHT, False)
@example(b"M" * 54 + b" /" + b"x" * 39 + b" HTTP/1.1\rXHost: a\r\n\r\n", [1], TIGHT, False)
@example(b"M" * 54 + b" /" + b"x" * 39 + b" HTTP/1.1\nHost: a\r\n\r\n", [1], TIGHT, False)
@example(b"M" * 54 + b" /" + b"x" * 40 + b" HTTP/1.1\r\nHost: a\r\n\r\n", [1], TIGHT, False)
@example(b"M" * 54 + b" /" + b"x" * 40 + b" HTTP/1.1\nHost: a\r\n\r\n", [1], TIGHT, False)
@example(CHUNKED + b"\n5\r", [len(CHUNKED), 3], LIMITS, False)
def test_every_cut_says_the_same(stream: bytes, sizes: list[int], limits: Limits, eof: bool) -> None:
    """Whole, by line, by byte, in any pieces: the same events, or the same refusal in the same place.

    `drive` itself holds that nothing but RequestError comes out, that it ends, and that what is
    unread stays bounded by the limits.
    """
    expected = drive([stream], limits, eof=eof)
    memo = HeadMemo()
    for pieces in (cut(stream, sizes), *by_line(stream), *by_byte(stream)):
        assert drive(pieces, limits, memo, eof=eof) == expected


@settings(max_examples=80, deadline=None, suppress_health_check=SLOW)
@given(damaged(), st.sampled_from([LIMITS, TIGHT]))
def test_what_was_said_stays_said(stream: bytes, limits: Limits) -> None:
    """More bytes never change an event that was given, nor take a refusal back."""
    expected = drive([stream], limits)
    positions = random.Random(stream).sample(range(len(stream) + 1), min(20, len(stream) + 1))
    for position in positions:
        assert is_beginning(drive([stream[:position]], limits), expected)


def is_beginning(outcome: Outcome, expected: Outcome) -> bool:
    if outcome.refusal is not None and outcome.refusal != expected.refusal:
        return False
    count = len(outcome.messages)
    later = expected.messages[:count]
    if outcome.messages and not outcome.messages[-1].complete:
        size = len(outcome.messages[-1].body)
        later[-1] = replace(later[-1], body=later[-1].body[:size], complete=False)
    return outcome.messages == later


@settings(max_examples=100, deadline=None, suppress_health_check=SLOW)
@given(st.binary(max_size=200), cuts)
def test_line_noise(stream: bytes, sizes: list[int]) -> None:
    """Bytes that never were a request: refused, unfinished, or ended, and the same for every cut."""
    assert drive(cut(stream, sizes), eof=True) == drive([stream], eof=True)


# -- requests that are answered before they are complete


@settings(max_examples=200, deadline=None)
@given(
    early=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 4)), min_size=1, max_size=6),
    seed=st.integers(0, 2**32),
)
def test_an_early_answer_leaves_the_next_request_alone(early: list[tuple[int, int]], seed: int) -> None:
    """Each request, with a body of some size, is answered some events after its head, or when complete."""
    chance = random.Random(seed)
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
    stream = b"".join(
        b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b"
        % (number, size, (smuggled * 10)[:size])
        for number, (size, _) in enumerate(early)
    )
    connection = Connection(LIMITS, HeadMemo())
    seen: list[str] = []
    wait = -1  # events until the answer
    while stream:
        size = chance.choice([1, 7, 50, 1_000])
        connection.receive_data(stream[:size])
        stream = stream[size:]
        while (event := connection.next_event()) is not NEED_DATA:
            if isinstance(event, Request):
                seen.append(event.path)
                wait = early[len(seen) - 1][1]
            if wait == 0 or event is PAUSED:
                assert b"Connection" not in connection.send_response(ANSWER, b"", 0)
                connection.end_response()
            wait -= 1
    assert seen == [f"/{number}" for number in range(len(early))]
    assert connection.unread == 0
    connection.receive_eof()
    assert connection.next_event() is CLOSED
