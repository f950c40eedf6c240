"""The only writer of a transport. Loop's thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import time
from typing import Final, Protocol

from waitress_async.bridge import LogThread, OutputStore, Piece
from waitress_async.buffers import FileRegion
from waitress_async.errors import LocalProtocolError
from waitress_async.http import NO_FRAME, Answer, Connection, DefaultFields, ResponseHead
from waitress_async.server.file_sender import FileSender

_TAKE: Final = 262_144  # bytes asked of a source at a time
_TAKE_SHORT: Final = 16_384  # the same when memory is short
_TAKES_A_TURN: Final = 4  # of the loop

# The most that is joined into one piece before it is written, in bytes.
_JOIN_WRITE: Final = 65_536


class Source(Protocol):
    """Where the bytes of a response come from. Loop's thread."""

    head: ResponseHead | None  # None only if it is aborted before it began
    length: int | None  # of the body, where it is known and the head does not say it
    aborted: bool  # what it gave is all there is, and is not the whole
    hints: bytes  # whole 103 (Early Hints) responses, for before the head
    goes_on: bool  # it may be long before the next of the body comes, and the head need not wait
    answer_body: bytes | None  # all of the body, if it has come in one step; then `length` is its length

    def take(self, limit: int) -> tuple[list[Piece], bool]:
        """The next of the body, of about `limit` bytes, and whether it is the last. Nothing at all, and
        not the last: `Sender.pump` will be called when there is more. A piece of a file comes alone."""

    def take_hints(self) -> bytes:
        """The hints that were not taken yet."""

    def sent(self, region: FileRegion) -> None:
        """A piece of a file has been sent."""

    def close(self) -> None:
        """Nobody will take any more."""


class Sender:
    """Sends the responses of one connection: asks a source for its next bytes, frames them, writes them.

    It stops asking between `pause` and `resume`, and while it sends a piece of a file, so that what a slow
    client has not taken stays in the source, where the app's thread feels it.
    """

    __slots__ = (
        "_connection",
        "_counted",
        "_default_fields",
        "_file",
        "_file_task",
        "_head_sent",
        "_log",
        "_on_complete",
        "_resumed",
        "_source",
        "_store",
        "_transport",
        "paused",
        "progress",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        connection: Connection,
        default_fields: DefaultFields,
        store: OutputStore,
        log: LogThread,
        on_complete: Callable[[bool], object],
    ) -> None:
        """`store` is the one of the sources.

        `on_complete(whole)` is called when a source is sent, or, with False, when it was aborted.
        """
        self._transport = transport
        self._connection = connection
        self._default_fields = default_fields
        self._store = store
        self._log = log
        self._on_complete = on_complete
        self._source: Source | None = None
        self._head_sent = False
        self._counted = 0  # bytes that the transport holds, counted as memory
        self._file: FileSender | None = None
        self._file_task: asyncio.Task[None] | None = None
        self._resumed: asyncio.Future[None] | None = None  # what sends a file waits for
        self.paused = False  # the transport has enough
        self.progress = 0  # bytes given to the transport, or sent of a file

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
            # asyncio warns of writes to a connection that it knows to be lost, while we do not yet.
            if self.paused or self._file_task is not None or self._transport.is_closing():
                return
            if source.answer_body is not None and not self._head_sent and not source.hints:
                self._send_whole(source, source.answer_body)
                return
            pieces, last = source.take(_TAKE_SHORT if self._store.memory.near else _TAKE)
            segments: list[bytes | memoryview] = []
            if not self._head_sent and source.hints:
                segments.append(connection.send_hints(source.take_hints()))
            if not pieces and not last and not self._is_head_due(source):
                self._write(segments)
                return
            if not self._head_sent and source.head is not None:
                self._head_sent = True
                head = source.head
                segments.append(
                    connection.send_response(head, self._default_fields.lines(head, time()), source.length)
                )
            try:
                for piece in pieces:
                    if isinstance(piece, FileRegion):
                        self._send_file(source, piece, segments, last)
                        return
                    frame = connection.frame_data(len(piece))
                    if frame is NO_FRAME:
                        segments.append(piece)
                    elif frame is not None:
                        segments += (frame[0], piece, frame[1])
                if last and not source.aborted:
                    segments.append(connection.end_response())
            except LocalProtocolError as error:  # threads of the app have written at the same time
                self._cut(source, error)
                return
            self._write(segments)
            if last:
                self._complete(source)
                return
        asyncio.get_running_loop().call_soon(self.pump)  # let it see to other connections first

    def _send_whole(self, source: Source, body: bytes) -> None:
        head = source.head
        assert head is not None
        try:
            data = self._connection.send_whole(head, self._default_fields.lines(head, time()), body)
        except LocalProtocolError as error:
            self._cut(source, error)
            return
        self.progress += len(data)
        self._transport.write(data)
        self._source = None
        self._on_complete(True)

    def _is_head_due(self, source: Source) -> bool:
        """Whether the head is to go before any of the body is there. No 100 (Continue) can follow it."""
        return source.goes_on and not self._head_sent and not self._connection.owes_continue

    def _cut(self, source: Source, error: Exception, message: str = "A response is cut: %s") -> None:
        self._log.log(logging.ERROR, message, error)
        source.close()
        self._source = None
        self._on_complete(False)

    def _complete(self, source: Source) -> None:
        self._source = None
        self._on_complete(not source.aborted)

    # -- files

    @property
    def waits_for_room(self) -> bool:
        """Whether what sends a file waits for the client to take some of it."""
        return self._file is not None and self._file.waits_for_room

    def _send_file(
        self, source: Source, region: FileRegion, segments: list[bytes | memoryview], last: bool
    ) -> None:
        """Write `segments`, and send the region behind them."""
        frame = self._connection.frame_data(region.size)
        assert frame is not None  # responses without a body have no regions
        before, after = frame
        self._write([*segments, before])
        self._file_task = asyncio.get_running_loop().create_task(self._run_file(source, region, after, last))

    async def _run_file(self, source: Source, region: FileRegion, after: bytes, last: bool) -> None:
        self._file = FileSender(
            self._transport,
            self._store.spool,
            self._store.memory,
            self._until_resumed,
            self._count_progress,
        )
        segments: list[bytes | memoryview] = [after]
        try:
            await self._file.send(region)
            if last and not source.aborted:
                segments.append(self._connection.end_response())
        except ConnectionError:
            self._forget_file()
            self._transport.abort()
            return
        except Exception as error:
            self._forget_file()
            self._cut(source, error, "A response is cut, for its file cannot be sent: %s")
            return
        self._forget_file()
        source.sent(region)
        self._write(segments)
        if last:
            self._complete(source)
        else:
            self.pump()

    def _forget_file(self) -> None:
        self._file = self._file_task = None

    def _until_resumed(self) -> asyncio.Future[None] | None:
        if not self.paused:
            return None
        if self._resumed is None:
            self._resumed = asyncio.get_running_loop().create_future()
        return self._resumed

    def _count_progress(self, size: int) -> None:
        self.progress += size

    # -- the server's own answers

    def send_answer(self, answer: Answer) -> None:
        """Send a response that is all there."""
        head, body = answer
        data = self._connection.send_whole(head, self._default_fields.lines(head, time()), body)
        if not self._is_lost():
            self._write([data])

    def _is_lost(self) -> bool:
        """Whether the connection is at its end: of many answers at once, the first may have found it so."""
        return self._transport.is_closing()

    def send_continue(self) -> None:
        """Send 100 (Continue), if the client may be waiting for it."""
        interim = self._connection.send_continue()
        if interim and not self._transport.is_closing():
            self._transport.write(interim)

    def _write(self, segments: list[bytes | memoryview]) -> None:
        total = sum(map(len, segments))
        self.progress += total
        if total <= _JOIN_WRITE:
            if data := b"".join(segments):
                self._transport.write(data)
            return
        # Not writelines(): asyncio's, in 3.12 and 3.13, does not pause its protocol (cpython#127656)
        # and never gets rid of an empty segment. What is small is joined, and nothing is copied twice.
        small: list[bytes | memoryview] = []
        size = 0
        for segment in segments:
            if self._transport.is_closing():
                return
            if size + len(segment) > _JOIN_WRITE:
                if small:
                    self._transport.write(b"".join(small))
                    small = []
                    size = 0
                if len(segment) > _JOIN_WRITE:
                    self._transport.write(segment)
                    continue
            small.append(segment)
            size += len(segment)
        if size:
            self._transport.write(b"".join(small))

    # -- the transport's wishes, and its end

    def pause(self) -> None:
        """The transport has enough: see asyncio.BaseProtocol.pause_writing. May come from within a write."""
        self.paused = True
        self.count_unsent(self._transport.get_write_buffer_size())

    def resume(self) -> None:
        """The transport takes more. `pump` sends it."""
        self.paused = False
        self.count_unsent(0)
        if self._resumed is not None:
            if not self._resumed.done():
                self._resumed.set_result(None)
            self._resumed = None

    def count_unsent(self, size: int) -> None:
        """Count what the transport holds, in bytes, as memory."""
        if size != self._counted:
            self._store.memory.add(size - self._counted)
            self._counted = size

    def drop_source(self) -> None:
        """Nothing of the response under way is sent any more, and the app's thread is told."""
        if self._file_task is not None:
            self._file_task.cancel()
            self._forget_file()
        if self._source is not None:
            self._source.close()
            self._source = None

    def close(self) -> None:
        """The connection is lost: nothing is sent any more, and the app's thread is told."""
        self.count_unsent(0)
        self.drop_source()
        del self._on_complete  # the protocol's: no cycle is left for the collector to find
