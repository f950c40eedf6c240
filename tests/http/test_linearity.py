"""Parsing costs time in proportion to its input, however it is cut (the fault of CVE-2020-5236 and its kin).

Twice the input must cost about twice the time. The margin is wide, and one good try of several is
enough: what is quadratic costs four times as much on every try.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from waitress_async.errors import RequestError
from waitress_async.http import NEED_DATA, Connection, HeadMemo, Limits

HUGE = 1 << 40
UNLIMITED = Limits(
    header_size=HUGE,
    header_fields=HUGE,
    target_size=HUGE,
    body_size=HUGE,
    chunk_line_size=HUGE,
    chunk_extensions_size=HUGE,
    trailer_size=HUGE,
    empty_lines=HUGE,
)
TRIES = 8
RATIO = 2.6

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

# Each of about the asked size, and each unfinished: what it ends in is still to come.
STREAMS: dict[str, Callable[[int], bytes]] = {
    "target": lambda size: b"GET /" + b"x" * size,
    "field": lambda size: HEAD + b"X: " + b"y" * size,
    "field of CR": lambda size: HEAD + b"X: " + b"\r" * size,
    "fields": lambda size: HEAD + b"X: 1\r\n" * (size // 6),
    "empty lines": lambda size: b"\r\n" * (size // 2),
    "extension": lambda size: CHUNKED + b"1;a=" + b"b" * size,
    "trailer": lambda size: CHUNKED + b"0\r\nX: " + b"y" * size,
    "trailers": lambda size: CHUNKED + b"0\r\n" + b"X: 1\r\n" * (size // 6),
    "chunks": lambda size: CHUNKED + b"1\r\nx\r\n" * (size // 6),
    "body": lambda size: HEAD + b"Content-Length: %d\r\n\r\n" % (size + 1) + b"x" * size,
}

# Each a line that is whole, and made to be tried in many ways by a careless pattern.
LINES: dict[str, Callable[[int], bytes]] = {
    "request line": lambda size: b"G" * size + b"\r\n",
    "target": lambda size: b"GET http://" + b"a" * size + b"\\/ HTTP/1.1\r\n",
    "name": lambda size: HEAD + b"X" * size + b"\r\n",
    "white space in value": lambda size: HEAD + b"X:" + b" " * size + b"\0\r\n",
    "host": lambda size: b"GET / HTTP/1.1\r\nHost: " + b"%41" * (size // 3) + b"/\r\n",
    "connection": lambda size: HEAD + b"Connection:" + b" ," * (size // 2) + b"\r\nX\r\n\r\n",
    "coding": lambda size: HEAD + b"Transfer-Encoding:" + b" ," * (size // 2) + b"\r\n\r\n",
    "chunk size": lambda size: CHUNKED + b"1" + b" " * size + b"\r\n",
    "extensions": lambda size: CHUNKED + b"1" + b" ;a = b" * (size // 7) + b"(\r\n",
    "quoted": lambda size: CHUNKED + b'1;a="' + b'\\"' * (size // 2) + b"\r\n",
    "trailer": lambda size: CHUNKED + b"0\r\nX:" + b"\t " * (size // 2) + b"\0\r\n",
}


def cost_by_byte(stream: bytes) -> float:
    """Seconds of this thread's own time, looking for events after every byte as a server does."""
    connection = Connection(UNLIMITED, HeadMemo())
    pieces = [stream[i : i + 1] for i in range(len(stream))]
    start = time.thread_time()
    for piece in pieces:
        connection.receive_data(piece)
        while connection.next_event() is not NEED_DATA:
            pass
    return time.thread_time() - start


def cost_refused(stream: bytes) -> float:
    connection = Connection(UNLIMITED, HeadMemo())
    start = time.thread_time()
    connection.receive_data(stream)
    try:
        while connection.next_event() is not NEED_DATA:
            pass
    except RequestError:
        return time.thread_time() - start
    pytest.fail("not refused")


def cost_trickling(stream: bytes) -> float:
    """Much arrived at once, and a little more before each of its events is taken."""
    connection = Connection(UNLIMITED, HeadMemo())
    start = time.thread_time()
    connection.receive_data(stream)
    while connection.unread > len(stream) // 4:
        connection.receive_data(b"1")
        assert connection.next_event() is not NEED_DATA
    return time.thread_time() - start


def is_linear(cost: Callable[[bytes], float], make: Callable[[int], bytes], size: int) -> bool:
    return any(cost(make(2 * size)) < RATIO * cost(make(size)) for _ in range(TRIES))


@pytest.mark.parametrize("name", STREAMS)
def test_byte_by_byte(name: str) -> None:
    assert is_linear(cost_by_byte, STREAMS[name], 40_000)


@pytest.mark.parametrize("name", ["field", "trailer"])
def test_byte_by_byte_at_length(name: str) -> None:
    """A search for one byte is so fast that only a long line shows whether it begins again each time."""
    assert is_linear(cost_by_byte, STREAMS[name], 200_000)


@pytest.mark.parametrize("name", LINES)
def test_no_pattern_tries_again(name: str) -> None:
    assert is_linear(cost_refused, LINES[name], 50_000)


def test_a_full_buffer_is_not_moved_for_each_event() -> None:
    assert is_linear(cost_trickling, STREAMS["chunks"], 100_000)
