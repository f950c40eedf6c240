"""asyncio's callbacks for one connection: bytes in, exchanges out. Loop's thread."""

from __future__ import annotations

import asyncio
import enum
import logging
import select
import socket
import struct
import sys
from typing import Final, cast

from waitress_async.bridge import Input, Output, QueueFull
from waitress_async.buffers import BufferReader
from waitress_async.errors import (
    ClientDisconnected,
    HTTPError,
    MalformedProxyHeader,
    PermanentRedirect,
    RequestError,
    RequestTimeout,
    ServiceUnavailable,
)
from waitress_async.http import CLOSED, END_OF_MESSAGE, Connection, Data, Receiving, Request, Sending
from waitress_async.server.deadlines import Deadline, Pace
from waitress_async.server.ends import Ends
from waitress_async.server.exchange import Exchange, no_room
from waitress_async.server.listeners import format_address
from waitress_async.server.runtime import Runtime
from waitress_async.server.sender import Sender
from waitress_async.server.tls import environ_of
from waitress_async.wsgi import base_environ

# Bytes of later requests that are held while one is answered, before reading is paused.
_LOOK_AHEAD: Final = 65_536

# Pieces of a body taken in one turn of the loop: chunks can be as short as a byte.
_PIECES_A_TURN: Final = 512

# RFC 9112 section 9.6: after the last answer, what the client still sends is drained for a while, so that
# the reset that unread bytes would cause does not destroy the answer it has not read. In bytes.
_LINGER_BYTES: Final = 16_777_216

_RETRY_AFTER: Final = 1  # seconds

_TCP_CLOSE: Final = 7  # of tcp_info's state, which for a reset connection it is (linux/tcp_states.h)

_HTTPS_PORT: Final = 443

_BYTES_ACKED: Final = struct.Struct("120xQ")  # of tcp_info (linux/tcp.h)

_LINGER_ZERO: Final = struct.pack("ii", 1, 0)  # on, no seconds: closing is a reset (socket(7))


class Wait(enum.Enum):
    """Why nothing more is taken from what was received."""

    NOTHING = "it is: go on"
    ANSWER = "the request is complete, and its answer is not"
    TURN = "the other connections come first"
    CLIENT = "the client does not take what it was sent"
    BODY = "there is no room for the body just now"
    END = "nothing more will be read"


# Looked up often, and an attribute of an Enum class is a slow one.
_HEAD, _BODY, _DONE, _CLOSED = Receiving.HEAD, Receiving.BODY, Receiving.DONE, Receiving.CLOSED
_GO, _FOR_ANSWER, _FOR_TURN, _FOR_CLIENT, _FOR_BODY, _FOR_END = Wait


class HTTPProtocol(asyncio.Protocol):
    """One connection from accept to its loss, at most one exchange at a time."""

    __slots__ = (
        "_base_environ",
        "_body_full",
        "_body_pace",
        "_connection",
        "_continue_due",
        "_counted",
        "_encrypted",
        "_exchange",
        "_head_since",
        "_is_whole",
        "_linger_bytes",
        "_linger_until",
        "_pump",
        "_reading_paused",
        "_received",
        "_redirect_port",
        "_requests",
        "_response_pace",
        "_runtime",
        "_sender",
        "_told_sent",
        "_transport",
        "_trust",
        "_yielded",
        "turn_since",
    )

    def __init__(self, runtime: Runtime, ends: Ends, redirect_port: int | None = None) -> None:
        """`redirect_port` is where https is spoken, on a connection whose requests are all sent there."""
        self._runtime = runtime
        trust = runtime.proxies.trust_in(ends.remote_addr)
        self._trust = trust if trust.rewrites else None
        self._connection = Connection(runtime.limits, trust.memo)
        self._redirect_port = redirect_port
        self._encrypted = False
        settings = runtime.settings
        self._base_environ = base_environ(
            server_name=settings.server_name,
            server_port=ends.server_port,
            script_name=settings.url_prefix,
            server_software=settings.ident or "waitress_async",
            url_scheme=ends.url_scheme,
            remote_addr=ends.remote_addr,
            remote_port=ends.remote_port,
            errors=sys.stderr,
            shutting_down=runtime.connections.is_draining,
        )
        self._exchange: Exchange | None = None  # the one being received or answered
        self._body_full = False  # its body has no room just now
        self._continue_due = False  # its client waits for 100 (Continue)
        self._is_whole = False  # the request is received to its end
        self._yielded = False  # more was received than one turn of the loop may take
        self._reading_paused = False
        self._counted = 0  # bytes received and not understood, counted as memory
        self._requests = 0  # that have begun
        self._received = 0  # bytes
        self.turn_since = 0.0
        """When the client's turn to send a request began, by the sweep's clock."""
        self._head_since: tuple[int, float] | None = None  # requests before it, and when it was first seen
        self._body_pace: Pace | None = None
        self._response_pace: Pace | None = None
        self._linger_until: float | None = None
        self._linger_bytes = 0
        self._told_sent = 0  # of the sender's progress, what the system has for sure, under TLS

    # -- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        runtime = self._runtime
        self._transport = cast(asyncio.Transport, transport)
        self._sender = Sender(
            self._transport,
            self._connection,
            runtime.default_fields,
            runtime.outputs,
            runtime.log,
            self._response_complete,
        )
        self._pump = self._sender.pump
        if (encryption := transport.get_extra_info("ssl_object")) is not None:
            self._encrypted = True
            self._pump = self._pump_encrypted
            self._base_environ.update(environ_of(encryption))
        self.turn_since = runtime.connections.stamp
        runtime.connections.made(self)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        connection = self._connection
        connection.receive_data(data)
        if connection.receiving is not _CLOSED:
            self._advance()
        elif self._linger_until is not None:
            self._linger_bytes -= len(data)
            if self._linger_bytes < 0:
                self._transport.abort()

    def eof_received(self) -> bool:
        """The client has said all it will. It is still owed what it asked for.

        Not under TLS, of which asyncio leaves no half open: what is written is sent, and nothing more.
        """
        self._connection.receive_eof()
        if self._encrypted:
            self._sender.drop_source()
            self._close_by(self._runtime.settings.linger_timeout)
            return False
        if self._connection.receiving is _CLOSED:
            self._close()
        else:
            self._advance()
        return True

    def pause_writing(self) -> None:
        self._sender.pause()

    def resume_writing(self) -> None:
        """Go on, but not from within the transport: asyncio's, closed from here with nothing left to send,
        loses its connection twice."""
        self._sender.resume()
        self._runtime.loop.call_soon(self._go_on)

    def connection_lost(self, exc: Exception | None) -> None:
        exchange = self._exchange
        self._exchange = None
        self._sender.close()
        self._pump = self._sender.pump  # not our own: no cycle is left for the collector to find
        self._count_unread(0)
        if exchange is not None:
            self._give_up_body(exchange, "the client is gone")
        self._runtime.connections.lost(self)

    @property
    def remote_addr(self) -> str:
        """The client's address, as far as connections tell."""
        address: str = self._base_environ["REMOTE_ADDR"]
        return address

    # -- requests

    def _waits_for(self) -> Wait:
        """The one place that knows whether the next event may be asked for.

        No request is begun while the client does not take the answers to those before it.
        """
        receiving = self._connection.receiving
        if receiving is _DONE:
            return _FOR_ANSWER
        if self._yielded:
            return _FOR_TURN
        if receiving is _HEAD:
            return _FOR_CLIENT if self._sender.paused else _GO
        if receiving is _BODY:
            return _FOR_BODY if self._body_full else _GO
        return _FOR_END

    def _advance(self) -> None:
        """Act on all that the bytes received so far say, up to a request that waits for its answer."""
        connection = self._connection
        pieces = 0
        while (wait := self._waits_for()) is _GO:
            try:
                event = connection.next_event()
            except RequestError as error:
                self._refuse(error)
                return
            if isinstance(event, Request):
                self._begin(event)
            elif isinstance(event, Data):
                self._body.feed_data(event.data)
                if self._runtime.memory.full and not self._runtime.connections.short_of_memory:
                    self._runtime.connections.memory_is_full()
                pieces += 1
                if pieces == _PIECES_A_TURN:
                    self._yielded = True
                    self._runtime.loop.call_soon(self._advance_later)
            elif event is END_OF_MESSAGE:
                assert self._exchange is not None
                self._is_whole = True
                self._body.feed_eof()
                if not self._exchange.is_streamed:
                    self._queue(self._exchange)
            elif event is CLOSED:
                self._close()
                return
            else:  # NEED_DATA
                break
        if connection.unread or self._reading_paused or self._counted or connection.receiving is _BODY:
            self._bound_look_ahead(wait)

    @property
    def _body(self) -> BufferReader | Input:
        assert self._exchange is not None
        assert self._exchange.body is not None
        return self._exchange.body

    def _advance_later(self) -> None:
        self._yielded = False
        if not self._transport.is_closing():
            self._advance()

    def _go_on(self) -> None:
        """Something that was waited for has come: the client takes more, or there is room for the body."""
        if self._transport.is_closing():
            return
        self._sender.pump()
        if self._connection.receiving is not _CLOSED:
            self._advance()

    def _bound_look_ahead(self, wait: Wait) -> None:
        """Read no further while what was read has to wait; but a little, so that a reset is seen."""
        unread = self._connection.unread
        self._count_unread(unread)
        full = wait is _FOR_BODY or (wait is not _GO and unread > _LOOK_AHEAD)
        if not full and self._has_to_wait_for_memory():
            full = True
            self._runtime.connections.hold_back(self)
        if full is not self._reading_paused:
            self._reading_paused = full
            if full:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _has_to_wait_for_memory(self) -> bool:
        """Whether a body waits because memory is short. Not if an app waits for it, which may free some."""
        if not self._runtime.connections.short_of_memory or self._connection.receiving is not _BODY:
            return False
        exchange = self._exchange
        return exchange is None or not isinstance(exchange.body, Input) or len(exchange.body) > 0

    def _count_unread(self, size: int) -> None:
        if size != self._counted:
            self._runtime.memory.add(size - self._counted)
            self._counted = size

    def _begin(self, request: Request) -> None:
        runtime = self._runtime
        self._requests += 1
        if self._requests == runtime.settings.max_requests_per_connection:
            self._connection.close_after_response()
        if self._redirect_port is not None:
            self._connection.stop_receiving()
            self._refuse(PermanentRedirect(self._https_url(request)))
            return
        if self._trust is not None:
            try:
                request = self._trust.apply(
                    request, self._base_environ["REMOTE_ADDR"], self._base_environ["wsgi.url_scheme"]
                )
            except MalformedProxyHeader as error:
                self._connection.stop_receiving()
                self._refuse(error)
                return
        output = Output(runtime.wakeup, self._pump, runtime.outputs)
        body = self._make_body(request) if request.has_body else None
        self._is_whole = body is None
        self._exchange = exchange = Exchange(runtime.application, self._base_environ, request, body, output)
        if body is None:
            self._queue(exchange)
            return
        self._continue_due = request.expect_continue
        if isinstance(body, Input):
            self._queue(exchange)
        elif not self._body_full:
            self._send_continue()

    def _https_url(self, request: Request) -> str:
        """What is asked for, by https. A target in absolute form has become the Host field already."""
        host = request.fields.get("HTTP_HOST") or self._runtime.settings.server_name
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        port = "" if self._redirect_port == _HTTPS_PORT else f":{self._redirect_port}"
        _, scheme, rest = request.target.partition("://")
        if not request.target.startswith("/") and scheme:
            target = rest[len(request.fields["HTTP_HOST"]) :]
        else:
            target = request.target.lstrip("*")
        return f"https://{name}{port}{target if target.startswith('/') else '/' + target}"

    def _make_body(self, request: Request) -> BufferReader | Input:
        runtime = self._runtime
        settings = runtime.settings
        if settings.streams(request.path):
            return Input(
                runtime.wakeup,
                runtime.memory,
                runtime.outputs.waiting,
                self._pause_input,
                self._resume_input,
                self._app_reads,
            )
        body = BufferReader(
            overflow=settings.inbuf_overflow,
            pause_reading=self._pause_body,
            resume_reading=self._resume_body,
            spool=runtime.spool,
            memory=runtime.memory,
        )
        if request.content_length is not None:
            body.expect(request.content_length)
        return body

    def _pause_body(self) -> None:
        self._body_full = True

    def _resume_body(self) -> None:
        """Go on, but not from within the body."""
        if self._body_full:
            self._runtime.loop.call_soon(self._body_resumed)

    def _pause_input(self, body: Input) -> None:
        self._pause_body()

    def _resume_input(self, body: Input) -> None:
        if self._exchange is not None and self._exchange.body is body:  # and not an earlier one
            self._resume_body()

    def _body_resumed(self) -> None:
        exchange = self._exchange
        if exchange is None or exchange.body is None or exchange.body.paused or self._transport.is_closing():
            return
        self._body_full = False
        if isinstance(exchange.body, BufferReader) and self._connection.receiving is _BODY:
            error = exchange.body.exception()
            if isinstance(error, OSError):
                self._runtime.log.log(logging.ERROR, "A request body could not be stored: %s", error)
                self._connection.stop_receiving()
                self._refuse(no_room(error))
                return
            self._send_continue()
        self._go_on()

    def _app_reads(self, body: Input) -> None:
        """The app has begun to read a streamed body."""
        if self._exchange is not None and self._exchange.body is body:
            self._send_continue()

    def _send_continue(self) -> None:
        """Ask for the body, if its client waits to be asked and can still be."""
        if self._continue_due:
            self._continue_due = False
            if self._connection.receiving is _BODY and self._connection.sending is Sending.IDLE:
                self._sender.send_continue()

    def _queue(self, exchange: Exchange) -> None:
        """Have the app called, or say that there is no room."""
        try:
            self._runtime.pool.submit(exchange.run)
        except QueueFull:
            self._refuse_busy("Too many requests wait to be served.", setting="max_queue")
        else:
            exchange.queued_at = self._runtime.connections.stamp
            self._sender.expect(exchange.output)

    def _refuse_busy(self, detail: str, *, setting: str) -> None:
        """Answer a request whose app was not called, and keep the connection if it can be kept."""
        exchange, self._exchange = self._exchange, None
        self._sender.drop_source()
        if exchange is not None and exchange.body is not None:
            exchange.body.close()
        self._body_full = False
        self._send_error(ServiceUnavailable(detail, setting=setting, retry_after=_RETRY_AFTER))
        if self._connection.sending is Sending.CLOSED:
            self._linger()
        else:
            self.turn_since = self._runtime.connections.stamp

    def _refuse(self, error: HTTPError) -> None:
        """Answer what cannot be served, and read no further. A response under way is cut."""
        exchange = self._exchange
        self._exchange = None
        self._sender.drop_source()
        if exchange is not None:
            self._give_up_body(exchange, f"the request was refused: {error.detail}")
        sending = self._connection.sending
        if sending is Sending.UNTIL_CLOSE:
            self._reset()
            return
        if sending is Sending.IDLE:
            self._send_error(error)
        self._linger()

    def _give_up_body(self, exchange: Exchange, reason: str) -> None:
        """No more of it will come. One that is complete belongs to the thread that runs the exchange."""
        body = exchange.body
        if isinstance(body, Input):
            body.set_exception(ClientDisconnected(reason))
        elif body is not None and self._connection.receiving is not _DONE:
            body.close()

    def _linger(self, *, at_once: bool = False) -> None:
        """Close, but read on for a while what the client still sends. Not while others wait for the room.

        `at_once`: the client may be waiting for the end, and has nothing to send.
        """
        self._count_unread(0)
        transport = self._transport
        runtime = self._runtime
        if (
            self._connection.eof
            or runtime.connections.full
            or not runtime.settings.linger_timeout
            or (self._encrypted and at_once)  # asyncio's TLS has no half that could be closed
        ):
            self._close()
            return
        self._close_by(runtime.settings.linger_timeout)
        try:
            if not self._encrypted:
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
        exchange, self._exchange = self._exchange, None
        if exchange is not None and isinstance(exchange.body, Input):
            exchange.body.set_exception(ClientDisconnected("the response was over before the request body"))
        self._body_full = self._continue_due = False
        sending = self._connection.sending
        if not whole and sending is Sending.UNTIL_CLOSE:
            self._reset()
            return
        if not whole or sending is Sending.CLOSED:
            self._runtime.responses += whole
            self._connection.stop_receiving()
            self._linger(at_once=self._is_whole or self._connection.ends_by_close)
            return
        self._runtime.responses += 1
        self.turn_since = self._runtime.connections.stamp
        if self._connection.unread or self._connection.eof or self._reading_paused:
            self._advance()
        elif self._runtime.connections.full:  # somebody else waits to be accepted
            self._close()

    def _close(self) -> None:
        """Close, once what is written is sent. Twice is fine, which with asyncio's TLS it is not."""
        if not self._transport.is_closing():
            self._transport.close()
            if self._encrypted:  # and wait for the client's word, but not for long
                full = self._runtime.connections.full
                self._close_by(0 if full else self._runtime.settings.linger_timeout)

    def _close_by(self, seconds: float) -> None:
        """Have a sweep end the connection so many seconds after all is sent."""
        if self._linger_until is None:
            self._linger_until = self._runtime.connections.stamp + seconds
            self._linger_bytes = _LINGER_BYTES

    def _pump_encrypted(self) -> None:
        """As the sender's, but not into the void: what asyncio's TLS takes when the client is gone, or has
        ended the connection while reading is paused, it tells nobody but the log of."""
        has_ended = _has_ended if self._reading_paused else _is_broken
        if has_ended(self._transport):
            self._transport.abort()
        else:
            self._sender.pump()

    def _reset(self) -> None:
        """End the connection by a reset: where a close is the end of the body, it cannot also say that the
        body is not whole."""
        sock = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self._transport.abort()

    # -- the server's wishes

    def reconsider(self) -> None:
        """Memory is short: put on disk what belongs there now, and wait for a turn to read."""
        if self._connection.receiving is _BODY and not self._transport.is_closing():
            if self._exchange is not None and isinstance(self._exchange.body, BufferReader):
                self._exchange.body.store_if_due()
            self._bound_look_ahead(self._waits_for())

    def let_through(self) -> None:
        """Read once for the body, though memory may be short."""
        if not self._transport.is_closing() and self._waits_for() is _GO:
            self._reading_paused = False
            self._transport.resume_reading()

    def close_after_response(self) -> None:
        """Let the next response be the last."""
        self._connection.close_after_response()

    @property
    def awaits_request(self) -> bool:
        """Whether nothing is under way, but perhaps a part of a request head."""
        return (
            self._exchange is None
            and self._linger_until is None
            and self._connection.receiving is _HEAD
            and not self._transport.is_closing()
        )

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way at all."""
        return self.awaits_request and not self._connection.unread

    def close(self) -> None:
        """Close, once what is written is sent. For one that awaits a request."""
        self._close()
        if self._encrypted and not self._unsent:  # the client's word need not be waited for
            self._transport.abort()

    def abort(self) -> None:
        """Cut the connection, whatever is under way."""
        if self._connection.sending is Sending.UNTIL_CLOSE:
            self._reset()
        else:
            self._transport.abort()

    # -- time

    def sweep(self, now: float, elapsed: float) -> None:
        """Cut a client that is too slow. `now` is the sweep's clock, `elapsed` what it moved, in seconds."""
        unsent = self._unsent
        self._sender.count_unsent(unsent)
        if self._body_full and int(now) > int(now - elapsed):  # once a second
            self._look_for_room()
        if self._check_response(unsent, elapsed):
            return
        # What is not read, and what has ended already, tells of nothing more: the system has to be asked.
        is_deaf = self._exchange is not None and (self._reading_paused or self._connection.eof)
        if is_deaf and (_has_ended if self._encrypted else _is_gone)(self._transport):
            self._transport.abort()
            return
        if self._linger_until is not None:
            if unsent:
                self._linger_until = (
                    now + self._runtime.settings.linger_timeout
                )  # from when the answer is out
            elif now >= self._linger_until:
                self._end()
            return
        self._check_request(now, elapsed, unsent)

    def _look_for_room(self) -> None:
        if self._exchange is not None and isinstance(self._exchange.body, BufferReader):
            self._exchange.body.retry()

    def _end(self) -> None:
        """It has lingered long enough."""
        if self._encrypted and not self._transport.is_closing():
            self._transport.close()  # which says to the client that this is the end
        self._transport.abort()

    @property
    def _unsent(self) -> int:
        """Bytes that are written and not sent. Of what asyncio holds below TLS, one if there are any: it does
        not tell, but there are none if the system takes more."""
        size = self._transport.get_write_buffer_size()
        if size or not self._encrypted:
            return size
        if self._told_sent == self._sender.progress and self._linger_until is None:
            return 0
        if _is_full(self._transport):
            return 1
        self._told_sent = self._sender.progress
        return 0

    def _check_response(self, unsent: int, elapsed: float) -> bool:
        """Cut a client that does not take its response. Returns whether it was."""
        settings = self._runtime.settings
        if not settings.response_min_rate or not (unsent or self._sender.waits_for_room):
            self._response_pace = None
            return False
        # What the system has taken may be megabytes from having arrived, and it takes more in large steps.
        taken = _acknowledged(self._transport)
        if taken is None:
            taken = self._sender.progress - unsent
        if self._response_pace is None:
            self._response_pace = Pace(0, settings.min_rate_grace)  # what it took before is to its credit
        elif self._response_pace.is_too_slow(taken, elapsed, settings.response_min_rate):
            self._tell_cut(Deadline.RESPONSE, f"it took {taken} bytes, and more wait for it")
            self._reset()  # or the system would go on to offer what it holds
            return True
        return False

    def _check_request(self, now: float, elapsed: float, unsent: int) -> None:
        """Cut a client that does not send what it is asked for, or answer one that nobody has time for."""
        settings = self._runtime.settings
        exchange = self._exchange
        receiving = self._connection.receiving
        if receiving is not _BODY:
            self._body_pace = None
        elif settings.body_min_rate and self._is_body_waited_for():
            if self._body_pace is None:
                self._body_pace = Pace(0, settings.min_rate_grace)  # what it sent before is to its credit
            elif self._body_pace.is_too_slow(self._received, elapsed, settings.body_min_rate):
                self._refuse_late(Deadline.BODY, f"{self._received} bytes came, and its body is not whole")
                return
        if exchange is None:
            if receiving is _HEAD:
                self._check_head(now, unsent)
        elif (
            settings.queue_timeout
            and exchange.queued_at is not None
            and now - exchange.queued_at >= settings.queue_timeout
            and exchange.output.revoke()
        ):
            self._tell_cut(Deadline.QUEUE, "no thread was free for its request, it is answered 503")
            self._refuse_busy("No thread was free in time.", setting="queue_timeout")
            self._go_on()

    def _check_head(self, now: float, unsent: int) -> None:
        settings = self._runtime.settings
        unread = self._connection.unread
        if unsent:  # it still takes the last answer: its turn begins after that
            self.turn_since = now
            self._head_since = None
            return
        if not unread:
            self._head_since = None
            timeout = settings.channel_timeout if self._requests else settings.header_timeout
            if timeout and now - self.turn_since >= timeout:
                if not self._requests:
                    self._tell_cut(Deadline.HEAD, "nothing came")
                self.close()
            return
        if self._head_since is None or self._head_since[0] != self._requests:
            self._head_since = self._requests, now
        if settings.header_timeout and now - self._head_since[1] >= settings.header_timeout:
            self._refuse_late(Deadline.HEAD, f"{unread} bytes of a request head came")

    def _is_body_waited_for(self) -> bool:
        """Whether it is for the client alone that more of a body does not come."""
        if self._reading_paused or self._body_full or self._waits_for() is not _GO:
            return False
        exchange = self._exchange
        return exchange is None or not isinstance(exchange.body, Input) or exchange.body.is_waited_for

    def _refuse_late(self, deadline: Deadline, how_far: str) -> None:
        self._tell_cut(deadline, how_far)
        is_answered = self._exchange is None and self._connection.receiving is _BODY
        self._connection.stop_receiving()
        if is_answered:  # nobody waits for the rest of it: another answer would be that of the next request
            self._linger()
        else:
            self._refuse(RequestTimeout("The request did not come in time.", setting=deadline.value))

    def _tell_cut(self, deadline: Deadline, how_far: str) -> None:
        runtime = self._runtime
        address, port = self._base_environ["REMOTE_ADDR"], self._base_environ["REMOTE_PORT"]
        peer = format_address((address, int(port))) if port else address
        runtime.cuts.tell(deadline.value, peer, how_far, runtime.connections.clock)


def _is_gone(transport: asyncio.Transport) -> bool:
    """Whether the peer is gone, and has not merely said all it will; as far as the system tells (Linux)."""
    sock = transport.get_extra_info("socket")
    try:
        if sock.family == getattr(socket, "AF_UNIX", None):
            poll = select.poll()
            poll.register(sock.fileno(), 0)
            return any(events & select.POLLHUP for _, events in poll.poll(0))
        state: int = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    except (AttributeError, OSError):  # not on this system
        return False
    return state == _TCP_CLOSE


def _has_ended(transport: asyncio.Transport) -> bool:
    """Whether the peer has said that nothing more will come, or is gone; as far as the system tells."""
    return bool(_poll(transport, getattr(select, "POLLRDHUP", 0)))


def _is_broken(transport: asyncio.Transport) -> bool:
    """Whether nothing can be sent to the peer any more, as far as the system tells."""
    return bool(_poll(transport, 0))


def _is_full(transport: asyncio.Transport) -> bool:
    """Whether the system takes no more for the peer just now; as far as it tells."""
    return _poll(transport, getattr(select, "POLLOUT", 0)) == 0


def _poll(transport: asyncio.Transport, events: int) -> int | None:
    """Which of these events there are, or what has ended; None if it cannot be told."""
    try:
        poll = select.poll()
        poll.register(transport.get_extra_info("socket").fileno(), events)
    except (AttributeError, ValueError):  # not on this system; closed
        return None
    return next((found for _, found in poll.poll(0)), 0)


def _acknowledged(transport: asyncio.Transport) -> int | None:
    """Bytes that the peer has acknowledged (tcp_info's tcpi_bytes_acked), where the system tells."""
    try:
        sock = transport.get_extra_info("socket")
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
        acknowledged: int = _BYTES_ACKED.unpack(info)[0]
    except (AttributeError, OSError, struct.error):
        return None
    return acknowledged
