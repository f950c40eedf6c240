"""Server-sent events for async bodies (WHATWG HTML, section 9.2): format, keep alive, broadcast."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, Literal

HEADERS: Final = (("Content-Type", "text/event-stream; charset=utf-8"), ("Cache-Control", "no-store"))
"""What `start_response` is given with an event stream."""

_COMMENT: Final = b":\n\n"

_FIRST: Final = asyncio.FIRST_COMPLETED


def event(
    data: str = "", *, event: str | None = None, id: str | None = None, retry: int | None = None
) -> bytes:
    r"""One event, ready to be yielded.

    `data` may have any number of lines, ended by \n, \r\n or \r. `event` is its type, `id` what a client
    sends as Last-Event-ID when it comes back, `retry` the milliseconds after which it does. Raises ValueError
    for a line end in `event` or `id`, a NUL in `id`, and a negative `retry`.
    """
    lines = []
    for name, value in (("event", event), ("id", id)):
        if value is not None:
            if "\n" in value or "\r" in value or (name == "id" and "\0" in value):
                raise ValueError(f"{name} must be one line: {value!a}")
            lines.append(f"{name}: {value}\n")
    if retry is not None:
        if retry < 0:
            raise ValueError(f"retry must not be negative: {retry}")
        lines.append(f"retry: {retry}\n")
    text = data.replace("\r\n", "\n").replace("\r", "\n")
    lines.extend(f"data: {line}\n" for line in text.split("\n"))
    return "".join([*lines, "\n"]).encode()


def last_event_id(environ: Mapping[str, Any]) -> str | None:
    """The id of the last event that the client has seen, if it comes back."""
    value: str | None = environ.get("HTTP_LAST_EVENT_ID")
    return None if value is None else value.encode("latin-1").decode("utf-8", "replace")


async def keep_alive(events: AsyncIterator[bytes], interval: float = 15.0) -> AsyncIterator[bytes]:
    """Yield `events`, and a comment whenever `interval` seconds have passed without one.

    Proxies close what is silent for long. `events` are asked for by one task of their own, which closes them
    at its end: timeouts, task groups and context variables in them work as they do without this.
    """
    asked: asyncio.Queue[asyncio.Future[bytes] | None] = asyncio.Queue()
    asking = asyncio.ensure_future(_ask(events, asked))
    try:
        while True:
            answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            asked.put_nowait(answer)
            while not answer.done():
                done, _ = await asyncio.wait((asking, answer), timeout=interval, return_when=_FIRST)
                if not done:
                    yield _COMMENT
                elif not answer.done():
                    asking.result()  # what they have raised, a CancelledError too
                    return
            yield answer.result()
    finally:
        asked.put_nowait(None)
        asking.cancel()
        await asyncio.wait((asking,))
        if not asking.cancelled():
            asking.result()  # what they have raised when they were cancelled


async def _ask(events: AsyncIterator[bytes], asked: asyncio.Queue[asyncio.Future[bytes] | None]) -> None:
    """Answer each that is asked with the next of `events`, until they end, or None asks."""
    try:
        answer = await asked.get()
        async for item in events:
            if answer is not None:
                answer.set_result(item)
                answer = await asked.get()
            if answer is None:
                break
    finally:
        aclose = getattr(events, "aclose", None)
        if aclose is not None:
            await aclose()


class Channel:
    """Events for any number of subscribers. On one loop: from a WSGI thread, publish by way of the loop.

    Each has a queue of its own, of `size` events. `slow` says what becomes of a subscriber whose queue is
    full: "drop" leaves out its oldest events, "cut" ends its stream, so that its client comes back and says
    what it has seen last.
    """

    def __init__(self, size: int = 100, slow: Literal["drop", "cut"] = "drop") -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1: {size}")
        if slow not in ("drop", "cut"):
            raise ValueError(f'slow must be "drop" or "cut": {slow!a}')
        self._size = size
        self._slow = slow
        self._subscribers: set[_Subscriber] = set()
        self._closed = False

    def __len__(self) -> int:
        """How many subscribers there are."""
        return len(self._subscribers)

    def publish(self, event: bytes) -> None:
        """Give `event` to all who are there. Never waits."""
        for subscriber in list(self._subscribers):
            subscriber.put(event, self._size, self._slow)

    def close(self) -> None:
        """End all streams, once their queues are empty; there will be no others."""
        self._closed = True
        for subscriber in list(self._subscribers):
            subscriber.end()

    async def subscribe(self) -> AsyncIterator[bytes]:
        """The events from when the first is asked for. Ends with `close`, or when it is cut."""
        subscriber = _Subscriber()
        if self._closed:
            return
        self._subscribers.add(subscriber)
        try:
            while (event := await subscriber.get()) is not None:
                yield event
        finally:
            self._subscribers.discard(subscriber)


class _Subscriber:
    def __init__(self) -> None:
        self._queue: deque[bytes] = deque()
        self._ended = False
        self._came = asyncio.Event()

    def put(self, event: bytes, size: int, slow: str) -> None:
        if self._ended:
            return
        if len(self._queue) == size:
            if slow == "cut":
                self._queue.clear()
                self.end()
                return
            self._queue.popleft()
        self._queue.append(event)
        self._came.set()

    def end(self) -> None:
        self._ended = True
        self._came.set()

    async def get(self) -> bytes | None:
        """The next event; None at the end."""
        while not self._queue:
            if self._ended:
                return None
            self._came.clear()
            await self._came.wait()
        return self._queue.popleft()
