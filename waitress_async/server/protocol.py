"""asyncio's callbacks for one connection: bytes in, exchanges out. Loop's thread."""

from __future__ import annotations

import asyncio
import enum
import logging
import sys
from io import BytesIO
from typing import ClassVar, Final, cast

from waitress_async.bridge import Input, Output, QueueFull
from waitress_async.buffers import BufferReader
from waitress_async.errors import (
    ClientDisconnected,
    HTTPError,
    RequestError,
    RequestTimeout,
    ServiceUnavailable,
)
from waitress_async.http import (
    CLOSED,
    END_OF_MESSAGE,
    Answer,
    Connection,
    Data,
    Receiving,
    Request,
    Sending,
    error_response,
)
from waitress_async.server.deadlines import Patience
from waitress_async.server.ends import Ends
from waitress_async.server.entrance import Entrance
from waitress_async.server.exchange import Exchange, no_room
from waitress_async.server.gates import Hearing, Verdict
from waitress_async.server.listeners import format_address
from waitress_async.server.peer_state import acknowledged, has_input, is_gone, reset
from waitress_async.server.runtime import Runtime
from waitress_async.server.sender import Sender
from waitress_async.wsgi import Environs, connection_environ

# Bytes of later requests that are held while one is answered, before reading is paused.
_LOOK_AHEAD: Final = 65_536

# Pieces of a body taken in one turn of the loop: chunks can be as short as a byte.
_PIECES_A_TURN: Final = 512

# A body up to this size, in bytes, that has come with its head is whole at once, and not worth counting.
_SMALL_BODY: Final = 4_096

# What a request counts for among them that is refused, and so answered here and now.
_REQUEST_PIECES: Final = 8

# RFC 9112 section 9.6: after the last answer, what the client still sends is drained for a while, so that
# the reset that unread bytes would cause does not destroy the answer it has not read. In bytes.
_LINGER_BYTES: Final = 16_777_216

_RETRY_AFTER: Final = 1  # seconds


class Wait(enum.Enum):
    """Why nothing more is taken from what was received."""

    NOTHING = "it is: go on"
    GATE = "whether its body is wanted is not decided"
    ANSWER = "the request is complete, and its answer is not"
    TURN = "the other connections come first"
    CLIENT = "the client does not take what it was sent"
    BODY = "there is no room for the body just now"
    END = "nothing more will be read"


# Looked up often, and an attribute of an Enum class is a slow one.
_HEAD, _BODY, _DONE, _CLOSED = Receiving.HEAD, Receiving.BODY, Receiving.DONE, Receiving.CLOSED
_GO, _FOR_GATE, _FOR_ANSWER, _FOR_TURN, _FOR_CLIENT, _FOR_BODY, _FOR_END = Wait


class HTTPProtocol(asyncio.Protocol):
    """One connection from accept to its loss, at most one exchange at a time."""

    __slots__ = (
        "_body_full",
        "_connection",
        "_continue_due",
        "_counted",
        "_end_due",
        "_entrance",
        "_environs",
        "_exchange",
        "_hearing",
        "_is_whole",
        "_linger_bytes",
        "_linger_until",
        "_patience",
        "_pump",
        "_reading_paused",
        "_received",
        "_requests",
        "_runtime",
        "_sender",
        "_transport",
        "_yielded",
    )

    _sender_class: ClassVar[type[Sender]] = Sender

    def __init__(self, runtime: Runtime, ends: Ends, redirect_port: int | None = None) -> None:
        """`redirect_port` is where https is spoken, on a connection whose requests are all sent there."""
        self._runtime = runtime
        trust = runtime.proxies.trust_in(ends.remote_addr)
        self._connection = Connection(runtime.limits, trust.memo)
        settings = runtime.settings
        self._environs = Environs(
            runtime.environ,
            connection_environ(
                server_port=ends.server_port,
                url_scheme=ends.url_scheme,
                remote_addr=ends.remote_addr,
                remote_port=ends.remote_port,
                errors=sys.stderr,
            ),
        )
        self._entrance = Entrance.of(runtime, trust, self._environs, redirect_port)
        self._hearing: Hearing | None = None  # of a request that has to wait for gates
        self._exchange: Exchange | None = None  # the one being received or answered
        self._body_full = False  # its body has no room just now
        self._continue_due = False  # its client waits for 100 (Continue)
        self._is_whole = False  # the request is received to its end
        self._yielded = False  # more was received than one turn of the loop may take
        self._reading_paused = False
        self._counted = 0  # bytes received and not understood, counted as memory
        self._requests = 0  # that have begun
        self._received = 0  # bytes
        self._patience = Patience(settings, runtime.connections.stamp)
        self._linger_until: float | None = None  # by the sweep's clock
        self._linger_bytes = 0
        self._end_due = False  # our side is to be closed when all is sent

    # -- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        runtime = self._runtime
        self._transport = cast(asyncio.Transport, transport)
        self._sender = self._sender_class(
            self._transport,
            self._connection,
            runtime.default_fields,
            runtime.outputs,
            runtime.log,
            self._response_complete,
        )
        self._pump = self._sender.pump
        self._begin_turn()
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
        """The client has said all it will. It is still owed what it asked for."""
        self._connection.receive_eof()
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
        self._count_unread(0)
        self._end_hearing()
        if exchange is not None:
            self._give_up_body(exchange, "the client is gone")
        self._runtime.connections.lost(self)

    @property
    def remote_addr(self) -> str:
        """The client's address, as far as connections tell."""
        address: str = self._environs.connection["REMOTE_ADDR"]
        return address

    @property
    def turn_since(self) -> float:
        """When the client's turn to send a request began, by the sweep's clock."""
        return self._patience.turn_since

    def _begin_turn(self) -> None:
        """From now on it is for the client to send a request."""
        self._patience.turn_since = self._runtime.connections.stamp

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
            if self._hearing is not None:
                return _FOR_GATE
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
                self._requests += 1
                if self._requests == self._runtime.settings.max_requests_per_connection:
                    connection.close_after_response()
                if self._entrance is None:
                    self._begin(event)
                else:
                    self._settle(self._entrance.meet(event, self._settle_later))
                if connection.receiving is _DONE:
                    wait = _FOR_ANSWER
                    break
                if self._exchange is None:
                    pieces += _REQUEST_PIECES
            elif isinstance(event, Data):
                self._body.feed_data(event.data)
                self._look_at_memory()
                pieces += 1
            elif event is END_OF_MESSAGE:
                assert self._exchange is not None
                self._is_whole = True
                self._body.feed_eof()
                if self._continue_due:  # it has come unasked, and a head that waits for the 100 need not
                    self._continue_due = False
                    self._runtime.loop.call_soon(self._pump)
                if not self._exchange.is_streamed:
                    self._queue(self._exchange)
            elif event is CLOSED:
                self._close()
                return
            else:  # NEED_DATA
                break
            if pieces >= _PIECES_A_TURN and not self._yielded:
                self._yielded = True
                self._runtime.loop.call_soon(self._advance_later)
        if connection.unread or self._reading_paused or self._counted or connection.receiving is _BODY:
            self._bound_look_ahead(wait)

    @property
    def _body(self) -> BufferReader | Input:
        """That of the exchange, which is still coming."""
        assert self._exchange is not None
        body = self._exchange.body
        assert body is not None
        assert not isinstance(body, BytesIO)
        return body

    def _advance_later(self) -> None:
        self._yielded = False
        if not self._transport.is_closing():
            self._advance()

    def _go_on(self) -> None:
        """Something that was waited for has come: the client takes more, or there is room for the body."""
        if self._transport.is_closing():
            return
        if self._end_due and not self._unsent():
            self._end_sending(at_once=False)
            return
        self._sender.pump()
        if self._connection.receiving is not _CLOSED:
            self._advance()

    def _bound_look_ahead(self, wait: Wait) -> None:
        """Read no further while what was read has to wait; but a little, so that a reset is seen."""
        unread = self._connection.unread
        self._count_unread(unread)
        if wait is _FOR_GATE:  # it may be a body, and nothing of it is fed to one
            self._look_at_memory()
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

    def _look_at_memory(self) -> None:
        """More is held. If that was the last of the memory, all who send bodies have to take turns."""
        if self._runtime.memory.full and not self._runtime.connections.short_of_memory:
            self._runtime.connections.memory_is_full()

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

    def _settle(self, verdict: Request | Answer | HTTPError | Hearing) -> None:
        """Do with a request what was found at the entrance."""
        if isinstance(verdict, Request):
            self._begin(verdict)
        elif isinstance(verdict, Answer):
            self._answer(verdict)
        elif isinstance(verdict, Hearing):
            self._hearing = verdict
        else:
            self._connection.stop_receiving()
            self._refuse(verdict)

    def _settle_later(self, verdict: Verdict) -> None:
        """The gates have come to an end."""
        self._hearing = None
        if not self._transport.is_closing():
            self._settle(verdict)
            self._go_on()

    def _end_hearing(self) -> None:
        """Nobody waits for the gates any more."""
        hearing, self._hearing = self._hearing, None
        if hearing is not None:
            hearing.cancel()

    def _begin(self, request: Request) -> None:
        """Have the app called for a request, when it is complete or at once."""
        runtime = self._runtime
        output = Output(runtime.wakeup, self._pump, runtime.outputs)
        body = None if self._connection.receiving is _DONE else self._make_body(request)
        self._is_whole = body is None or isinstance(body, BytesIO)
        self._exchange = exchange = Exchange(runtime.application, self._environs, request, body, output)
        if self._is_whole:
            self._queue(exchange)
            return
        self._continue_due = request.expect_continue
        if isinstance(body, Input):
            self._queue(exchange)
        elif not self._body_full:
            self._send_continue()

    def _make_body(self, request: Request) -> BufferReader | Input | BytesIO:
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
        whole = self._connection.take_whole_body(min(_SMALL_BODY, settings.inbuf_overflow))
        if whole is not None:
            return BytesIO(whole)
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
        body = None if exchange is None else exchange.body
        if body is None or isinstance(body, BytesIO) or body.paused or self._transport.is_closing():
            return
        self._body_full = False
        if isinstance(body, BufferReader) and self._connection.receiving is _BODY:
            error = body.exception()
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
            self._pump()  # a head that waits for the 100

    def _send_continue(self) -> None:
        """Ask for the body, if its client waits to be asked and can still be."""
        if self._continue_due:
            self._continue_due = False
            if self._connection.receiving is _BODY and self._connection.sending is Sending.IDLE:
                self._sender.send_continue()

    def _queue(self, exchange: Exchange) -> None:
        """Have the app called, or say that there is no room."""
        runtime = self._runtime
        try:
            if runtime.bulky and exchange.request.path in runtime.bulky:
                exchange.is_bulky = True
                runtime.pool.submit(exchange, bulky=True)
            else:
                runtime.pool.submit(exchange)
        except QueueFull:
            self._refuse_busy("Too many requests wait to be served.", setting="max_queue")
        else:
            exchange.queued_at = runtime.connections.stamp
            self._sender.expect(exchange.output)

    def _refuse_busy(self, detail: str, *, setting: str) -> None:
        error = ServiceUnavailable(detail, setting=setting, retry_after=_RETRY_AFTER)
        self._answer(error_response(error, self._runtime.application.encoder))

    def _answer(self, answer: Answer) -> None:
        """Answer a request whose app was not called, and keep the connection if it can be kept."""
        exchange, self._exchange = self._exchange, None
        self._sender.drop_source()
        if exchange is not None and exchange.body is not None:
            exchange.body.close()
        self._body_full = False
        self._sender.send_answer(answer)
        if self._connection.sending is Sending.CLOSED:
            self._linger()
        else:
            self._begin_turn()

    def _refuse(self, error: HTTPError) -> None:
        """Answer what cannot be served, and read no further. A response under way is cut."""
        exchange = self._exchange
        self._exchange = None
        self._sender.drop_source()
        if exchange is not None:
            self._give_up_body(exchange, f"the request was refused: {error.detail}")
        sending = self._connection.sending
        if sending is Sending.UNTIL_CLOSE:
            reset(self._transport)
            return
        if sending is Sending.IDLE:
            self._sender.send_answer(error_response(error, self._runtime.application.encoder))
        self._linger()

    def _give_up_body(self, exchange: Exchange, reason: str) -> None:
        """No more of it will come. One that is complete belongs to the thread that runs the exchange."""
        body = exchange.body
        if isinstance(body, Input):
            body.set_exception(ClientDisconnected(reason))
        elif isinstance(body, BufferReader) and self._connection.receiving is not _DONE:
            body.close()

    def _linger(self, *, at_once: bool = False) -> None:
        """Close, but read on for a while what the client still sends. Not while others wait for the room.

        `at_once`: the client may be waiting for the end, and has nothing to send; TLS, which has no half that
        could be closed, is ended then.
        """
        self._count_unread(0)
        runtime = self._runtime
        if self._connection.eof or runtime.connections.full or not runtime.settings.linger_timeout:
            self._close()
            return
        self._linger_for(runtime.settings.linger_timeout)
        if self._end_sending(at_once=at_once) and self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()

    def _end_sending(self, *, at_once: bool) -> bool:
        """Tell the client that nothing more will come. Returns whether there is a connection left.

        `at_once` if it waits for that.
        """
        if self._unsent():  # asyncio's would shut the socket down when that is sent, and let the error fall
            self._end_due = True
            self._transport.set_write_buffer_limits(0)  # it is told of when all is sent
            return True
        self._end_due = False
        try:
            self._transport.write_eof()
        except OSError:  # asyncio's shuts the socket down here and now, and the client has reset it
            self._transport.abort()
            return False
        return True

    # -- responses

    def _response_complete(self, whole: bool) -> None:
        """The sender has sent all of a response (`whole`), or all that there is of one."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None and isinstance(exchange.body, Input):
            exchange.body.set_exception(ClientDisconnected("the response was over before the request body"))
        self._body_full = self._continue_due = False
        sending = self._connection.sending
        if not whole and sending is Sending.UNTIL_CLOSE:
            reset(self._transport)  # a close is the end of the body, and cannot also say that it is not whole
            return
        if not whole or sending is Sending.CLOSED:
            self._runtime.responses += whole
            self._connection.stop_receiving()
            self._linger(at_once=self._is_whole or self._connection.ends_by_close)
            return
        runtime = self._runtime
        connections = runtime.connections
        runtime.responses += 1
        self._patience.turn_since = connections.stamp  # `_begin_turn`, without a call for each request
        if self._connection.unread or self._connection.eof or self._reading_paused:
            self._advance()
        elif connections.full:  # somebody else waits to be accepted
            self._close()

    def _close(self) -> None:
        """Close, once what is written is sent."""
        self._transport.close()

    def _linger_for(self, seconds: float) -> None:
        """Have a sweep end the connection so many seconds after all is sent."""
        if self._linger_until is None:
            self._linger_until = self._runtime.connections.stamp + seconds
            self._linger_bytes = _LINGER_BYTES

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
        """Whether nothing is under way, neither way, but perhaps a part of a request head."""
        return (
            self._exchange is None
            and self._linger_until is None
            and self._connection.receiving is _HEAD
            and not self._unsent()
            and not self._transport.is_closing()
        )

    @property
    def queued_at(self) -> float | None:
        """Since when a request has waited for a thread, by the sweep's clock; None if none waits."""
        exchange = self._exchange
        return None if exchange is None or exchange.output.is_started else exchange.queued_at

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way at all."""
        return self.awaits_request and not self._connection.unread

    @property
    def lingers(self) -> bool:
        """Whether all is sent, and what the client still sends is only dropped."""
        return self._linger_until is not None and not self._unsent()

    def give_way(self) -> None:
        """Close for somebody who waits, unless a request has come that was not read yet."""
        if self._linger_until is not None or not has_input(self._transport.get_extra_info("socket")):
            self.close()

    def close(self) -> None:
        """Close, once what is written is sent. For one that awaits a request, or lingers."""
        if self._linger_until is not None:
            self._end_linger()
        else:
            self._close()

    def abort(self) -> None:
        """Cut the connection, whatever is under way."""
        if self._connection.sending is Sending.UNTIL_CLOSE:
            reset(self._transport)
        else:
            self._transport.abort()

    # -- time

    def sweep(self, now: float, elapsed: float) -> bool:
        """Cut a client that is too slow, or gone. `now` is the sweep's clock, `elapsed` what it moved, in
        seconds. Returns whether the next sweep may leave it out, for it takes a stream as that comes."""
        unsent = self._unsent()
        self._sender.count_unsent(unsent)
        if not unsent and self._only_streams():
            self._patience.body_has_come()
            self._patience.response_is_taken()
            return True
        self._sweep(now, elapsed, unsent)
        return False

    def _only_streams(self) -> bool:
        """Whether nothing is waited for but the next item of an async body."""
        exchange = self._exchange
        return (
            exchange is not None
            and exchange.output.goes_on
            and self._connection.receiving is _DONE
            and not self._connection.eof
            and not self._reading_paused
            and not self._sender.waits_for_room
            and self._linger_until is None
        )

    def _sweep(self, now: float, elapsed: float, unsent: int) -> None:
        if self._body_full and int(now) > int(now - elapsed):  # once a second
            self._look_for_room()
        if self._cut_slow_reader(unsent, elapsed) or self._cut_if_gone():
            return
        if self._linger_until is None:
            self._sweep_body(elapsed)
            self._sweep_hearing(now)
            self._sweep_queued(now)
            self._sweep_head(now, unsent)
        elif unsent:  # its time begins when the answer is out
            self._linger_until = now + self._runtime.settings.linger_timeout
        elif now >= self._linger_until:
            self._end_linger()

    def _look_for_room(self) -> None:
        if self._exchange is not None and isinstance(self._exchange.body, BufferReader):
            self._exchange.body.retry()

    def _unsent(self) -> int:
        """Bytes that are written and not sent."""
        return self._transport.get_write_buffer_size()

    def _cut_if_gone(self) -> bool:
        """While nothing is read, and when the end was read already, the system has to be asked."""
        is_owed = self._exchange is not None or self._hearing is not None
        is_deaf = is_owed and (self._reading_paused or self._connection.eof)
        if is_deaf and self._is_gone():
            self._transport.abort()
            return True
        return False

    def _is_gone(self) -> bool:
        return is_gone(self._transport)

    def _end_linger(self) -> None:
        """It has lingered long enough."""
        self._transport.abort()

    def _cut_slow_reader(self, unsent: int, elapsed: float) -> bool:
        """Cut a client that does not take its response. Returns whether it was."""
        if not self._is_behind(unsent):
            self._patience.response_is_taken()
            return False
        # What the system has taken may be megabytes from having arrived, and it takes more in large steps.
        taken = acknowledged(self._transport)
        if taken is None:
            taken = self._sender.progress - unsent
        if not self._patience.is_response_late(taken, elapsed):
            return False
        self._tell_cut("response_min_rate", f"it took {taken} bytes, and more wait for it")
        reset(self._transport)  # or the system would go on to offer what it holds
        return True

    def _is_behind(self, unsent: int) -> bool:
        """Whether there is some of the response that its client has had the time to take."""
        return bool(unsent) or self._sender.waits_for_room

    def _sweep_body(self, elapsed: float) -> None:
        if self._connection.receiving is not _BODY:
            self._patience.body_has_come()
        elif self._is_body_waited_for() and self._patience.is_body_late(self._received, elapsed):
            self._refuse_late("body_min_rate", f"{self._received} bytes came, and its body is not whole")

    def _is_body_waited_for(self) -> bool:
        """Whether it is for the client alone that more of a body does not come."""
        if self._reading_paused or self._body_full or self._waits_for() is not _GO:
            return False
        exchange = self._exchange
        return exchange is None or not isinstance(exchange.body, Input) or exchange.body.is_waited_for

    def _sweep_hearing(self, now: float) -> None:
        """Answer a request of which the gates do not say whether it may go on."""
        timeout = self._runtime.settings.gate_timeout
        if timeout and self._hearing is not None and now - self._hearing.since >= timeout:
            self._end_hearing()
            self._tell_cut("gate_timeout", "no gate has decided about its request, it is answered 503")
            self._refuse_busy("It could not be decided in time.", setting="gate_timeout")
            self._go_on()

    def _sweep_queued(self, now: float) -> None:
        """Answer a request that nobody has had time for."""
        exchange = self._exchange
        timeout = self._runtime.settings.queue_timeout
        if (
            timeout
            and exchange is not None
            and exchange.queued_at is not None
            and now - exchange.queued_at >= timeout
            and exchange.output.revoke()
        ):
            self._tell_cut("queue_timeout", "no thread was free for its request, it is answered 503")
            self._refuse_busy("No thread was free in time.", setting="queue_timeout")
            self._go_on()

    def _sweep_head(self, now: float, unsent: int) -> None:
        if self._exchange is not None or self._connection.receiving is not _HEAD:
            return
        patience = self._patience
        unread = self._connection.unread
        if unsent:  # it still takes the last answer: its turn begins after that
            patience.turn_since = now
        elif not unread:
            if patience.is_idle_too_long(now, self._requests):
                if not self._requests:
                    self._tell_cut("header_timeout", "nothing came")
                self.close()
        elif patience.is_head_late(now, self._requests):
            self._refuse_late("header_timeout", f"{unread} bytes of a request head came")

    def _refuse_late(self, setting: str, how_far: str) -> None:
        self._tell_cut(setting, how_far)
        is_answered = self._exchange is None and self._connection.receiving is _BODY
        self._connection.stop_receiving()
        if is_answered:  # nobody waits for the rest of it: another answer would be that of the next request
            self._linger()
        else:
            self._refuse(RequestTimeout("The request did not come in time.", setting=setting))

    def _tell_cut(self, setting: str, how_far: str) -> None:
        runtime = self._runtime
        address, port = self._environs.connection["REMOTE_ADDR"], self._environs.connection["REMOTE_PORT"]
        peer = format_address((address, int(port))) if port else address
        runtime.cuts.tell(setting, peer, how_far, runtime.connections.clock)
