"""What a connection made of a stream, held against what the reference reads in it.

One side only counts: no request may be seen that the reference does not see, nor one byte of it differ. What
the reference takes and the connection refuses is no fault of this kind, and is told apart (`stricter`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Final

import pytest

from tests.fuzz.reference import Bounds, Ending, Reading, Seen, read
from tests.http.driver import ANSWER, LIMITS, TIGHT, Message, Outcome, by_byte, by_line, drive
from waitress_async.errors import RequestError
from waitress_async.http import (
    CLOSED,
    NEED_DATA,
    PAUSED,
    Connection,
    HeadMemo,
    Limits,
    Request,
)

# What a driver, an assertion or the parser itself may end in.
FAILURES: Final = (Exception, pytest.fail.Exception)

Parse = Callable[[bytes], Outcome]

# What a request line may hold beyond its target.
AROUND_TARGET: Final = 64


def some_limits(chance: random.Random) -> Limits:
    """The defaults, tight ones, or any."""
    kind = chance.random()
    if kind < 0.6:
        return LIMITS
    if kind < 0.75:
        return TIGHT
    return Limits(
        header_size=chance.randint(30, 400),
        header_fields=chance.randint(1, 8),
        target_size=chance.randint(1, 60),
        body_size=chance.randint(0, 100),
        chunk_line_size=chance.randint(3, 30),
        chunk_extensions_size=chance.randint(0, 20),
        trailer_size=chance.randint(2, 40),
        empty_lines=chance.randint(0, 3),
    )


def bounds_of(limits: Limits) -> Bounds:
    """The same numbers, for a reader that must not know of our `Limits`."""
    return Bounds(**asdict(limits), request_line_size=limits.target_size + AROUND_TARGET)


def message_of(seen: Seen) -> Message:
    """What the connection must make of a request that the reference sees."""
    request = Request(
        method=seen.method.decode("ascii"),
        target=seen.target.decode("ascii"),
        path=seen.path.decode("latin-1"),
        query=seen.query.decode("ascii"),
        http_11=seen.version == b"HTTP/1.1",
        fields=cgi_fields(seen),
        keep_alive=seen.keep_alive,
        content_length=seen.content_length,
        chunked=seen.chunked,
        expect_continue=seen.expect_continue,
    )
    return Message(request, seen.body, seen.complete)


def cgi_fields(seen: Seen) -> dict[str, str]:
    """The fields as CGI names them (RFC 3875 section 4.1.18), without those that are dropped on purpose."""
    fields: dict[str, str] = {}
    for raw_name, raw_value in seen.fields:
        name, value = raw_name.decode("ascii").upper(), raw_value.decode("latin-1")
        if "_" in name or name in {"PROXY", "TRANSFER-ENCODING"}:
            continue
        if name == "HOST" and seen.authority is not None:  # RFC 9112 section 3.2.2
            value = seen.authority.decode("ascii")
        key = name.replace("-", "_")
        if key not in {"CONTENT_LENGTH", "CONTENT_TYPE"}:
            key = f"HTTP_{key}"
        joint = "; " if name == "COOKIE" else ", "
        fields[key] = f"{fields[key]}{joint}{value}" if key in fields else value
    if seen.authority is not None:
        fields["HTTP_HOST"] = seen.authority.decode("ascii")
    return fields


def fault(outcome: Outcome, reading: Reading) -> str | None:
    """What the connection saw that is not there; None if nothing."""
    for number, message in enumerate(outcome.messages):
        if number == len(reading.requests):
            return f"request {number} is none: {message}; {reading.ending.name}: {reading.why}"
        expected = message_of(reading.requests[number])
        if message.request != expected.request:
            return f"request {number} is {message.request}, not {expected.request}"
        if message.complete and not expected.complete:
            return f"the body of request {number} does not end: {reading.why}"
        if message.complete and message.body != expected.body:
            return f"the body of request {number} is {message.body!r}, not {expected.body!r}"
        if not message.complete and number != len(outcome.messages) - 1:
            return f"request {number} was not complete when the next one was seen"
        if not expected.body.startswith(message.body):
            return f"the body of request {number} begins with {message.body!r}, not {expected.body!r}"
    return None


def is_stricter(outcome: Outcome, reading: Reading) -> bool:
    """Whether less was taken than the reference takes, or a stream of good requests was refused."""
    whole = sum(message.complete for message in outcome.messages)
    if whole < sum(seen.complete for seen in reading.requests):
        return True
    return outcome.refusal is not None and reading.ending in {Ending.CLEAN, Ending.CLOSED}


def difference(
    stream: bytes, limits: Limits, chance: random.Random, memo: HeadMemo, parse: Parse | None = None
) -> str | None:
    """What is wrong with the connection for this stream; None if nothing. Raises what the parser raises.

    `memo` is one that other streams have been through. `parse` stands for the whole parser in a test of this.
    """
    reading = read(stream, bounds_of(limits))
    if parse is not None:
        return fault(parse(stream), reading)
    expected = drive([stream], limits, eof=True)
    if (found := fault(expected, reading)) is not None:
        return found
    for pieces in (at_random(stream, chance), *by_line(stream), *by_byte(stream)):
        outcome = drive(pieces, limits, memo, eof=True)
        if outcome != expected:
            return f"cut into {pieces}: {outcome}, and whole: {expected}"
    return early_fault(at_random(stream, chance), limits, chance, reading)


def at_random(stream: bytes, chance: random.Random) -> list[bytes]:
    pieces = []
    largest = chance.choice((2, 10, 60, 1_000) if len(stream) < 20_000 else (1_000, 20_000, 200_000))
    while stream:
        size = chance.randint(1, largest)
        pieces.append(stream[:size])
        stream = stream[size:]
    return pieces


def early_fault(pieces: list[bytes], limits: Limits, chance: random.Random, reading: Reading) -> str | None:
    """The same where requests are answered before their bodies are complete, which are then thrown away."""
    connection = Connection(limits, HeadMemo())
    seen: list[Request] = []
    try:
        for request in early_requests(connection, pieces, chance):
            seen.append(request)
    except RequestError:
        pass
    expected = [message_of(one).request for one in reading.requests]
    if seen != expected[: len(seen)]:
        return f"answered early: {seen}, not {expected}"
    return None


def early_requests(connection: Connection, pieces: list[bytes], chance: random.Random) -> Iterator[Request]:
    """The requests, each of which is answered when it is complete, or after any event before that."""
    due = False
    for piece in [*pieces, None]:
        if piece is None:
            connection.receive_eof()
        else:
            connection.receive_data(piece)
        while (event := connection.next_event()) is not NEED_DATA and event is not CLOSED:
            if isinstance(event, Request):
                assert not due, "a request before the answer to the one before it"
                yield event
                due = True
            if event is PAUSED or (due and chance.random() < 0.3):
                assert due, "an answer is due twice"
                due = False
                connection.send_response(ANSWER, b"", 0)
                connection.end_response()


def shrunk(stream: bytes, fails: Callable[[bytes], bool]) -> bytes:
    """A shorter stream that fails too: without each span that is not needed for it."""
    size = len(stream) // 2
    while size:
        position = 0
        while position < len(stream):
            shorter = stream[:position] + stream[position + size :]
            if fails(shorter):
                stream = shorter
            else:
                position += size
        size //= 2
    return stream
