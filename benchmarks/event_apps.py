"""An event a second, due at a known moment, for as long as the client stays: as WSGI apps give it."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING

from apps import hello

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

PERIOD = 1.0  # seconds
PATH = "/events"
HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store"}


def first_due(query: str) -> float:
    """When the first event is due, within a PERIOD from now. The query says where in each PERIOD that is, so
    that the events of many streams lie alike for every server, however it came to begin them."""
    now = time.monotonic()
    return now + (float(query) - now) % PERIOD


def data_of(number: int, due: float) -> str:
    """What an event says: which it is, and when it was due, by the clock that all processes share."""
    return f"{number} {due:.6f}"


async def ticks(query: str) -> AsyncIterator[bytes]:
    """An event each PERIOD. The same for every server that can run it."""
    begin = first_due(query)
    number = 0
    while True:
        due = begin + number * PERIOD
        await asyncio.sleep(due - time.monotonic())
        yield f"data: {data_of(number, due)}\n\n".encode()
        number += 1


def ticks_of_a_thread(query: str) -> Iterator[bytes]:
    """The same for a server that has nothing but threads."""
    begin = first_due(query)
    number = 0
    while True:
        due = begin + number * PERIOD
        time.sleep(max(0.0, due - time.monotonic()))
        yield f"data: {data_of(number, due)}\n\n".encode()
        number += 1


def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """Events for PATH, on the server's loop where it has one; hello for everything else."""
    if environ["PATH_INFO"] != PATH:
        return hello(environ, start_response)
    start_response("200 OK", list(HEADERS.items()))
    if "waitress_async.stream" in environ:
        return ticks(environ["QUERY_STRING"])  # type: ignore[return-value]
    return ticks_of_a_thread(environ["QUERY_STRING"])
