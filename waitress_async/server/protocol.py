"""asyncio's callbacks for one connection: bytes in, exchanges out. Loop's thread."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import sys
from typing import Final, cast

from waitress_async.bridge import Output, QueueFull
from waitress_async.buffers import BufferReader
from waitress_async.errors import HTTPError, InsufficientStorage, RequestError, ServiceUnavailable
from waitress_async.http import CLOSED, END_OF_MESSAGE, Connection, Data, Receiving, Request, Sending
from waitress_async.server.exchange import Exchange
from waitress_async.server.runtime import Runtime
from waitress_async.server.sender import Sender
from waitress_async.wsgi import base_environ

# Bytes of later requests that are held while one is answered, before reading is paused.
_LOOK_AHEAD: Final = 65_536

# Pieces of a body taken in one turn of the loop: chunks can be as short as a byte.
_PIECES_A_TURN: Final = 512

# RFC 9112 section 9.6: after the last answer, what the client still sends is drained for a while, so that
# the reset that unread bytes would cause does not destroy the answer it has not read.
_LINGER_SECONDS: Final = 2.0
_LINGER_BYTES: Final = 16_777_216

_RETRY_AFTER: Final = 1  # seconds

_LINGER_ZERO: Final = struct.pack("ii", 1, 0)  # on, no seconds: closing is a reset (socket(7))


# Looked up often, and an attribute of an Enum class is a slow one.
_HEAD, _BODY, _DONE, _CLOSED = Receiving.HEAD, Receiving.BODY, Receiving.DONE, Receiving.CLOSED


class HTTPProtocol(asyncio.Protocol):
    """One connection from accept to its loss, at most one exchange at a time."""

    __slots__ = (
        "_base_environ",
        "_connection",
        "_exchange",
        "_last_activity",
        "_linger_bytes",
        "_linger_until",
        "_pump",
        "_reading_paused",
        "_runtime",
        "_sender",
        "_transport",
        "_unsent",
        "_yielded",
    )

    def __init__(self, runtime: Runtime, remote: tuple[str, str], server_port: str) -> None:
        """`remote` is the peer's address and port, `server_port` the port it came to, all as text."""
        self._runtime = runtime
        self._connection = Connection(runtime.limits, runtime.memo)
        settings = runtime.settings
        self._base_environ = base_environ(
            server_name=settings.server_name,
            server_port=server_port,
            server_software=settings.ident or "waitress_async",
            url_scheme=settings.url_scheme,
            remote_addr=remote[0],
            remote_port=remote[1],
            errors=sys.stderr,
        )
        self._exchange: Exchange | None = None  # the one being received or answered
        self._yielded = False  # more was received than one turn of the loop may take
        self._reading_paused = False
        self._last_activity = 0.0
        self._linger_until: float | None = None
        self._linger_bytes = 0
        self._unsent = 0  # what the transport held when it was last looked at

    # -- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        runtime = self._runtime
        self._transport = cast(asyncio.Transport, transport)
        self._sender = Sender(
            self._transport, self._connection, runtime.default_fields, self._response_complete
        )
        self._pump = self._sender.pump
        self._last_activity = runtime.loop.time()
        runtime.connections.made(self)

    def data_received(self, data: bytes) -> None:
        self._last_activity = self._runtime.loop.time()
        connection = self._connection
        connection.receive_data(data)
        receiving = connection.receiving
        if receiving is _DONE or self._yielded:
            self._bound_look_ahead()
        elif receiving is not _CLOSED:
            self._advance()
        elif self._linger_until is not None:
            self._linger_bytes -= len(data)
            if self._linger_bytes < 0:
                self._transport.abort()

    def eof_received(self) -> bool:
        """The client has said all it will. It is still owed what it asked for."""
        self._connection.receive_eof()
        receiving = self._connection.receiving
        if receiving is _CLOSED:
            self._transport.close()
        elif receiving is not _DONE and not self._yielded:
            self._advance()
        return True

    def pause_writing(self) -> None:
        self._sender.pause()

    def resume_writing(self) -> None:
        """Go on, but not from within the transport: asyncio's, closed from here with nothing left to send,
        loses its connection twice."""
        self._sender.resume()
        self._runtime.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._transport.is_closing():
            return
        self._sender.pump()
        connection = self._connection
        if connection.receiving is _HEAD and (connection.unread or connection.eof):
            self._advance()

    def connection_lost(self, exc: Exception | None) -> None:
        exchange = self._exchange
        self._exchange = None
        self._sender.close()
        if exchange is not None and exchange.body is not None and self._connection.receiving is not _DONE:
            exchange.body.close()
        self._runtime.connections.lost(self)

    # -- requests

    def _advance(self) -> None:
        """Act on all that the bytes received so far say, up to a request that waits for its answer.

        No request is begun while the client does not take the answers to those before it.
        """
        connection = self._connection
        pieces = 0
        while not (connection.receiving is _HEAD and self._sender.paused):
            try:
                event = connection.next_event()
            except RequestError as error:
                self._refuse(error)
                return
            if isinstance(event, Request):
                self._begin(event)
            elif isinstance(event, Data):
                if not self._take_body(event.data):
                    return
                pieces += 1
                if pieces == _PIECES_A_TURN:
                    self._yielded = True
                    self._runtime.loop.call_soon(self._advance_later)
                    break
            elif event is END_OF_MESSAGE:
                assert self._exchange is not None
                self._queue(self._exchange)
            elif event is CLOSED:
                self._transport.close()
                return
            else:  # NEED_DATA
                break
            if connection.receiving is _DONE:
                break
        if connection.unread or self._reading_paused:
            self._bound_look_ahead()

    def _advance_later(self) -> None:
        self._yielded = False
        if not self._transport.is_closing():
            self._advance()

    def _bound_look_ahead(self) -> None:
        """Read no further while what was read has to wait, but for a little: an end or a reset is seen so."""
        connection = self._connection
        waits = (
            connection.receiving is _DONE
            or self._yielded
            or (connection.receiving is _HEAD and self._sender.paused)
        )
        full = waits and connection.unread > _LOOK_AHEAD
        if full is not self._reading_paused:
            self._reading_paused = full
            if full:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _begin(self, request: Request) -> None:
        runtime = self._runtime
        body = BufferReader(overflow=runtime.settings.inbuf_overflow) if request.has_body else None
        output = Output(runtime.wakeup, self._pump, runtime.settings.outbuf_high_watermark)
        self._exchange = exchange = Exchange(runtime.application, self._base_environ, request, body, output)
        if body is None:
            self._queue(exchange)
        elif request.expect_continue:
            self._sender.send_continue()

    def _take_body(self, data: bytes) -> bool:
        assert self._exchange is not None
        assert self._exchange.body is not None
        try:
            self._exchange.body.feed_data(data)
        except OSError as error:
            self._runtime.log.log(logging.ERROR, "A request body could not be stored: %s", error)
            self._refuse(InsufficientStorage("There is no room for the request body."))
            return False
        return True

    def _queue(self, exchange: Exchange) -> None:
        """The request is complete: have the app called, or say that there is no room."""
        if exchange.body is not None:
            exchange.body.feed_eof()
        try:
            self._runtime.pool.submit(exchange.run)
        except QueueFull:
            if exchange.body is not None:
                exchange.body.close()
            self._exchange = None
            self._send_error(
                ServiceUnavailable(
                    "Too many requests wait to be served.", setting="max_queue", retry_after=_RETRY_AFTER
                )
            )
        else:
            self._sender.expect(exchange.output)

    def _refuse(self, error: HTTPError) -> None:
        """Answer what cannot be served, and read no further."""
        exchange = self._exchange
        self._exchange = None
        if exchange is not None and exchange.body is not None:
            exchange.body.close()
        self._send_error(error)
        self._linger()

    def _linger(self) -> None:
        """Close, but read on for a while what the client still sends. Not while others wait for the room."""
        transport = self._transport
        if self._connection.eof or self._runtime.connections.full or not transport.can_write_eof():
            transport.close()
            return
        self._linger_until = self._runtime.loop.time() + _LINGER_SECONDS
        self._linger_bytes = _LINGER_BYTES
        try:
            transport.write_eof()
        except OSError:  # asyncio's shuts the socket down here and now, and the client has reset it
            transport.abort()
            return
        if self._reading_paused:
            self._reading_paused = False
            transport.resume_reading()

    # -- responses

    def _send_error(self, error: HTTPError) -> None:
        self._sender.send_error(error, self._runtime.application.encoder)

    def _response_complete(self, whole: bool) -> None:
        """The sender has sent all of a response (`whole`), or all that there is of one."""
        self._exchange = None
        sending = self._connection.sending
        if not whole and sending is Sending.UNTIL_CLOSE:
            self._reset()
            return
        if not whole or sending is Sending.CLOSED:
            self._connection.stop_receiving()
            self._linger()
            return
        self._last_activity = self._runtime.loop.time()
        if self._connection.unread or self._connection.eof:
            self._advance()

    def _reset(self) -> None:
        """End the connection by a reset: where a close is the end of the body, it cannot also say that the
        body is not whole."""
        sock = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self._transport.abort()

    # -- the server's wishes

    def drain(self) -> None:
        """Close now if nothing is under way, otherwise after the response."""
        self._connection.close_after_response()
        if self._exchange is None and self._linger_until is None and not self._connection.unread:
            self._transport.close()

    def abort(self) -> None:
        """Cut the connection, whatever is under way."""
        self._transport.abort()

    def sweep(self, now: float) -> None:
        """Close what has lingered long enough, and what has not moved for channel_timeout."""
        unsent = self._transport.get_write_buffer_size()
        if self._linger_until is not None:
            if not unsent:
                if now >= self._linger_until:
                    self._transport.abort()
                return
            self._linger_until = now + _LINGER_SECONDS  # from when the answer is out
        if unsent != self._unsent:
            self._unsent = unsent
            self._last_activity = now
        timeout = self._runtime.settings.channel_timeout
        if not timeout or now - self._last_activity < timeout:
            return
        if unsent:
            self._transport.abort()
        elif self._exchange is None or self._connection.receiving is not _DONE:
            self._transport.close()
