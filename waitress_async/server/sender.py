"""The only writer of a transport. Loop's thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import time
from typing import Final, Protocol

from waitress_async.errors import HTTPError
from waitress_async.http import Connection, DefaultFields, HeadEncoder, ResponseHead, error_response

_TAKE: Final = 262_144  # bytes asked of a source at a time
_TAKES_A_TURN: Final = 4  # of the loop

# The most that is joined into one piece before it is written, in bytes.
_JOIN_WRITE: Final = 65_536


class Source(Protocol):
    """Where the bytes of a response come from. Loop's thread."""

    head: ResponseHead | None  # None only if it is aborted before it began
    length: int | None  # of the body, where it is known and the head does not say it
    aborted: bool  # what it gave is all there is, and is not the whole

    def take(self, limit: int) -> tuple[list[bytes], bool]:
        """The next of the body, of about `limit` bytes, and whether it is the last. Nothing at all, and
        not the last: `Sender.pump` will be called when there is more."""

    def close(self) -> None:
        """Nobody will take any more."""


class Sender:
    """Sends the responses of one connection: asks a source for its next bytes, frames them, writes them.

    It stops asking between `pause` and `resume`, so that what a slow client has not taken stays in the
    source, where the app's thread feels it.
    """

    __slots__ = (
        "_connection",
        "_default_fields",
        "_head_sent",
        "_on_complete",
        "_source",
        "_transport",
        "paused",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        connection: Connection,
        default_fields: DefaultFields,
        on_complete: Callable[[bool], object],
    ) -> None:
        """`on_complete(whole)` is called when a source is sent, or, with False, when it was aborted."""
        self._transport = transport
        self._connection = connection
        self._default_fields = default_fields
        self._on_complete = on_complete
        self._source: Source | None = None
        self._head_sent = False
        self.paused = False  # the transport has enough

    def expect(self, source: Source) -> None:
        """The next response will come through `source`, which calls `pump` when it has something."""
        self._source = source
        self._head_sent = False

    def pump(self) -> None:
        """Send what the source has, as long as the transport takes it."""
        source = self._source
        if source is None:  # it was closed, and its thread did not know yet
            return
        connection = self._connection
        for _ in range(_TAKES_A_TURN):
            if self.paused:
                return
            chunks, last = source.take(_TAKE)
            if not chunks and not last:
                return
            segments = []
            if not self._head_sent and source.head is not None:
                self._head_sent = True
                head = source.head
                segments.append(
                    connection.send_response(head, self._default_fields.lines(head, time()), source.length)
                )
            for chunk in chunks:
                segments.append(connection.send_data(chunk))
            if last and not source.aborted:
                segments.append(connection.end_response())
            self._write(segments)
            if last:
                self._source = None
                self._on_complete(not source.aborted)
                return
        asyncio.get_running_loop().call_soon(self.pump)  # let it see to other connections first

    def send_error(self, error: HTTPError, encoder: HeadEncoder) -> None:
        """Answer in the server's own name, whole."""
        head, body = error_response(error, encoder)
        connection = self._connection
        self._write(
            [
                connection.send_response(head, self._default_fields.lines(head, time())),
                connection.send_data(body),
                connection.end_response(),
            ]
        )

    def send_continue(self) -> None:
        """Send 100 (Continue), if the client may be waiting for it."""
        interim = self._connection.send_continue()
        if interim:
            self._transport.write(interim)

    def _write(self, segments: list[bytes]) -> None:
        if sum(map(len, segments)) <= _JOIN_WRITE:
            self._transport.write(b"".join(segments))
        else:
            # Not writelines(): asyncio's, in 3.12 and 3.13, does not pause its protocol (cpython#127656)
            # and never gets rid of an empty segment.
            for segment in segments:
                if segment:
                    self._transport.write(segment)

    def pause(self) -> None:
        """The transport has enough: see asyncio.BaseProtocol.pause_writing. May come from within a write."""
        self.paused = True

    def resume(self) -> None:
        """The transport takes more. `pump` sends it."""
        self.paused = False

    def close(self) -> None:
        """The connection is lost: nothing is sent any more, and the app's thread is told."""
        if self._source is not None:
            self._source.close()
            self._source = None
        del self._on_complete  # the protocol's: no cycle is left for the collector to find
