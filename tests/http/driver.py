"""Feeds pieces of a stream to a connection, answers each request, and tells what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import pytest

from waitress_async.errors import RequestError
from waitress_async.http import (
    CLOSED,
    END_OF_MESSAGE,
    NEED_DATA,
    PAUSED,
    Connection,
    Data,
    HeadEncoder,
    HeadMemo,
    Limits,
    Request,
)

LIMITS = Limits()

# The corpus is met at the end of limits too.
TIGHT = Limits(
    header_size=200,
    header_fields=8,
    target_size=40,
    body_size=40,
    chunk_line_size=24,
    chunk_extensions_size=30,
    trailer_size=60,
    empty_lines=2,
)
ANSWER = HeadEncoder().encode("200 OK", [])


@dataclass
class Message:
    """A request as far as it came."""

    request: Request
    body: bytes = b""
    complete: bool = False


@dataclass
class Refusal:
    kind: type[RequestError]
    status: int
    detail: str
    setting: str | None


@dataclass
class Outcome:
    """What a stream says, in which nothing may depend on how it was cut."""

    messages: list[Message] = field(default_factory=list)
    refusal: Refusal | None = None
    closed: bool = False
    """Whether nothing more is read: a refusal, the end, or an answer that closes."""

    sent: bytes = b""
    """The answers, each without body."""


class Driver:
    """One connection whose every request is answered as soon as it is complete."""

    def __init__(self, limits: Limits = LIMITS, memo: HeadMemo | None = None) -> None:
        self.connection = Connection(limits, HeadMemo() if memo is None else memo)
        self.outcome = Outcome()
        # What may wait for the rest of itself: a head, a chunk line, a trailer line.
        self._most_unread = max(limits.header_size, limits.chunk_line_size, limits.trailer_size)

    def feed(self, data: bytes) -> None:
        """Give the connection some bytes, then take all events that follow from them."""
        self.connection.receive_data(data)
        # Every event but the last takes a byte at least, or follows one that did.
        self._take_events(3 * (len(data) + self._most_unread) + 10)
        assert self.connection.unread <= self._most_unread

    def end(self) -> None:
        self.connection.receive_eof()
        self._take_events(10)
        assert self.outcome.closed

    def _take_events(self, most: int) -> None:
        outcome = self.outcome
        for _ in range(most):
            try:
                event = self.connection.next_event()
            except RequestError as error:
                assert not outcome.closed, "refused after the end"
                outcome.closed = True
                outcome.refusal = Refusal(type(error), error.status, error.detail, error.setting)
                continue
            if event is NEED_DATA:
                assert not outcome.closed
                return
            if event is CLOSED:
                outcome.closed = True
                assert self.connection.unread == 0
                return
            assert not outcome.closed, "an event after the end"
            if isinstance(event, Request):
                outcome.messages.append(Message(event))
            elif isinstance(event, Data):
                assert type(event.data) is bytes
                assert event.data
                outcome.messages[-1].body += event.data
            elif event is END_OF_MESSAGE:
                assert outcome.messages[-1].request.has_body
            else:
                assert event is PAUSED
                outcome.messages[-1].complete = True
                outcome.sent += self.connection.send_response(ANSWER, b"", 0)
                outcome.sent += self.connection.end_response()
        pytest.fail("the events do not end")


def drive(
    pieces: Iterable[bytes], limits: Limits = LIMITS, memo: HeadMemo | None = None, *, eof: bool = False
) -> Outcome:
    """What comes of a stream that arrives in these pieces, and ends after them if `eof`."""
    driver = Driver(limits, memo)
    for piece in pieces:
        driver.feed(piece)
    if eof:
        driver.end()
    return driver.outcome


def whole(stream: bytes) -> Iterator[list[bytes]]:
    yield [stream]


def by_line(stream: bytes) -> Iterator[list[bytes]]:
    yield stream.splitlines(keepends=True)


def by_byte(stream: bytes) -> Iterator[list[bytes]]:
    yield [stream[i : i + 1] for i in range(len(stream))]


def in_two(stream: bytes) -> Iterator[list[bytes]]:
    """Cut once, at every position."""
    for i in range(1, len(stream)):
        yield [stream[:i], stream[i:]]


Cutting = Callable[[bytes], Iterator[list[bytes]]]
CUTTINGS: tuple[Cutting, ...] = (whole, by_line, by_byte, in_two)
