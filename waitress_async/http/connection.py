"""The state machine of one HTTP/1.1 connection, server side: bytes in, events out; answers in, bytes out.

No sockets, no clock, no settings object. One exchange at a time: the next request is not parsed
before this one is answered, which is what keeps pipelined answers in order and an error's place in
the stream. Requests behind the current one stay in the buffer as bytes; the owner bounds them by
not reading (`unread`).
"""

from __future__ import annotations

import enum

from waitress_async.errors import BadRequest, LocalProtocolError, RequestError
from waitress_async.http.body import ChunkedReader, LengthReader
from waitress_async.http.events import CLOSED, END_OF_MESSAGE, NEED_DATA, PAUSED, Data, Event, Request
from waitress_async.http.head import HeadReader
from waitress_async.http.limits import Limits
from waitress_async.http.memo import HeadMemo
from waitress_async.http.receive_buffer import ReceiveBuffer
from waitress_async.http.response import ResponseHead


class Receiving(enum.Enum):
    HEAD = "a request head is awaited"
    BODY = "a request body is awaited"
    DONE = "the request is complete"
    CLOSED = "nothing more is read: the end came, or a refusal"


class Sending(enum.Enum):
    IDLE = "no response is under way"
    SIZED = "body bytes go out as they are, up to a known length"
    UNTIL_CLOSE = "body bytes go out as they are, and the close ends them"
    CHUNKED = "body bytes go out in chunks"
    BODILESS = "the response has no body; its bytes are dropped"
    CLOSED = "nothing more is sent"


# Looked up often, and an attribute of an Enum class is a slow one.
_AWAITING_HEAD, _AWAITING_BODY = Receiving.HEAD, Receiving.BODY
_RECEIVED, _NOT_RECEIVING = Receiving.DONE, Receiving.CLOSED
_IDLE, _SIZED, _UNTIL_CLOSE = Sending.IDLE, Sending.SIZED, Sending.UNTIL_CLOSE
_CHUNKED, _BODILESS, _NOT_SENDING = Sending.CHUNKED, Sending.BODILESS, Sending.CLOSED


# How a body is framed whose bytes go out as they are.
NO_FRAME = (b"", b"")

# What is left of a request that was answered before it was complete, in bytes, for the connection to be
# worth keeping.
_DISCARD_LIMIT = 65_536


class Connection:
    """One connection. All methods are for one thread.

    Receive with `receive_data`, `receive_eof`, `next_event`; answer with `send_continue`, `send_response`,
    `send_data`, `end_response`, or `send_whole`, each of which returns bytes to be written in order.
    `receiving`, `sending` and `eof` (the peer will send nothing more) are for reading only.
    """

    __slots__ = (
        "_body",
        "_buffer",
        "_closing",
        "_continue_owed",
        "_discarding",
        "_head",
        "_limits",
        "_request",
        "_unsent",
        "ends_by_close",
        "eof",
        "receiving",
        "sending",
    )

    def __init__(self, limits: Limits, memo: HeadMemo) -> None:
        self._limits = limits
        self._buffer = ReceiveBuffer()
        self._head = HeadReader(limits, memo)
        self._body: LengthReader | ChunkedReader | None = None
        self._request: Request | None = None
        self.receiving = _AWAITING_HEAD
        self.sending = _IDLE
        self.eof = False
        self._closing = False
        self._continue_owed = False  # the client may be waiting for 100 (Continue)
        self._discarding = False  # the request whose body is awaited has been answered
        self._unsent = 0  # bytes of a body with a Content-Length that are still due
        self.ends_by_close = False  # the last response has no end but that of the connection

    # -- receiving

    @property
    def unread(self) -> int:
        """Bytes received that no event has told of yet."""
        buffer = self._buffer
        return len(buffer.data) - buffer.pos

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the peer. After a refusal or the end they are thrown away."""
        if self.receiving is not _NOT_RECEIVING:
            self._buffer.feed(data)

    def receive_eof(self) -> None:
        """The peer will send nothing more. It may still be reading (RFC 9112 section 9.6)."""
        self.eof = True

    def next_event(self) -> Event:
        """What the bytes received so far say next.

        A `Request` without a body is complete; one with a body is followed by `Data` and
        `END_OF_MESSAGE`. `PAUSED` while a complete request waits for its answer. Raises RequestError
        once for what must be refused; after it, and after the end, the answer is `CLOSED`.
        """
        try:
            if self.receiving is _AWAITING_HEAD:
                request = self._head.read(self._buffer)
                if request is not None:
                    return self._begin(request)
            elif self.receiving is _AWAITING_BODY:
                assert self._body is not None
                event = self._body.read(self._buffer)
                if self._discarding:
                    while isinstance(event, Data):
                        event = self._body.read(self._buffer)
                    if event is END_OF_MESSAGE:
                        self._discarding = False
                        self.receiving = _AWAITING_HEAD
                        return self.next_event()
                elif event is END_OF_MESSAGE:
                    self.receiving = _RECEIVED
                if event is not None:
                    return event
            elif self.receiving is _RECEIVED:
                return PAUSED
            else:
                return CLOSED
            if not self.eof:
                return NEED_DATA
            if not self._discarding and (self.receiving is _AWAITING_BODY or len(self._buffer)):
                raise BadRequest("The request ended before it was complete.")
        except RequestError:
            self.stop_receiving()
            raise
        self.stop_receiving()
        return CLOSED

    def _begin(self, request: Request) -> Request:
        self._request = request
        self._continue_owed = request.expect_continue
        if request.chunked:
            self._body = ChunkedReader(self._limits)
            self.receiving = _AWAITING_BODY
        elif request.content_length:
            self._body = LengthReader(request.content_length)
            self.receiving = _AWAITING_BODY
        else:
            self.receiving = _RECEIVED
        return request

    def take_whole_body(self, limit: int) -> bytes | None:
        """The body of the request that was just told of, if its length is known, no more than `limit` bytes,
        and all of it is here. No event tells of it then: the request is complete."""
        request = self._request
        if self.receiving is not _AWAITING_BODY or request is None or request.content_length is None:
            return None
        if request.content_length > min(limit, self.unread):
            return None
        self._body = None
        self.receiving = _RECEIVED
        return self._buffer.take(request.content_length)

    def stop_receiving(self) -> None:
        """Throw away what was received and not told of, and what still comes."""
        self.receiving = _NOT_RECEIVING
        self._body = None
        self._buffer.clear()

    # -- sending

    def close_after_response(self) -> None:
        """Answer the exchange under way, say `Connection: close` in it if that can still be said, and end."""
        self._closing = True

    @property
    def owes_continue(self) -> bool:
        """Whether the client may be waiting for 100 (Continue), which no answer has made needless."""
        return self._continue_owed and self.receiving is _AWAITING_BODY

    def send_continue(self) -> bytes:
        """100 (Continue), unless some of the body is there already (RFC 9110 section 10.1.1)."""
        if self.receiving is not _AWAITING_BODY or self.sending is not _IDLE or self._discarding:
            raise LocalProtocolError("100 (Continue) is for a request whose body is still to come")
        self._continue_owed = False
        return b"" if len(self._buffer) else b"HTTP/1.1 100 Continue\r\n\r\n"

    def send_hints(self, response: bytes) -> bytes:
        """A whole 103 (Early Hints) response, or nothing for a client of HTTP/1.0 (RFC 9110 section 15.2)."""
        if self.sending is not _IDLE:
            raise LocalProtocolError("early hints come before the response")
        return response if self._request is not None and self._request.http_11 else b""

    def send_response(self, head: ResponseHead, default_fields: bytes, length: int | None = None) -> bytes:
        """Begin the response, and decide its framing (RFC 9112 sections 6.3 and 9.3).

        `length` is the size of the body where it is known and the head does not say it. A response that
        answers a refused request ends the connection, and so does one that begins before its request is
        complete, unless little is missing.
        """
        if self.sending is not _IDLE:
            raise LocalProtocolError("a response is under way already, or none is due")
        request = self._request
        framing = b""
        method = request.method if request is not None else self._head.method
        if not head.allows_body or method == "HEAD":
            self.sending = _BODILESS
            if length is not None and head.content_length is None and head.allows_body:
                framing = b"Content-Length: %d\r\n" % length
        elif head.content_length is not None:
            self.sending = _SIZED
            self._unsent = head.content_length
        elif length is not None:
            self.sending = _SIZED
            self._unsent = length
            framing = b"Content-Length: %d\r\n" % length
        elif request is not None and request.http_11:
            self.sending = _CHUNKED
            framing = b"Transfer-Encoding: chunked\r\n"
        else:
            self.sending = _UNTIL_CLOSE
            self._closing = True
        is_received = self.receiving is _RECEIVED
        if (
            self._closing
            or request is None
            or not request.keep_alive
            or not (is_received or self._ends_soon())
        ):
            self._closing = True
            framing += b"Connection: close\r\n"
        elif not request.http_11:
            framing += b"Connection: keep-alive\r\n"
        return b"".join((head.status_line, head.fields, default_fields, framing, b"\r\n"))

    def _ends_soon(self) -> bool:
        """Whether the request will be complete after a few bytes that are sure to come."""
        if self.receiving is not _AWAITING_BODY or self._continue_owed or self.eof:
            return False
        return isinstance(self._body, LengthReader) and self._body.remaining <= _DISCARD_LIMIT

    def frame_data(self, size: int) -> tuple[bytes, bytes] | None:
        """What goes before and after `size` bytes of the body. None: they are not to be sent.

        Raises LocalProtocolError for more than the Content-Length says: it would be the next response.
        """
        if self.sending is _SIZED:
            self._unsent -= size
            if self._unsent < 0:
                raise LocalProtocolError("there is more of the body than its Content-Length says")
            return NO_FRAME
        if self.sending is _UNTIL_CLOSE:
            return NO_FRAME
        if self.sending is _CHUNKED:
            return (b"%x\r\n" % size, b"\r\n") if size else None
        if self.sending is _BODILESS:
            return None
        raise LocalProtocolError("no response is under way")

    def send_data(self, data: bytes) -> bytes:
        """Frame some of the body: `data` itself, or a chunk of it, or nothing."""
        frame = self.frame_data(len(data))
        return b"" if frame is None else data if frame is NO_FRAME else data.join(frame)

    def send_whole(self, head: ResponseHead, default_fields: bytes, body: bytes) -> bytes:
        """A whole response: what `send_response`, `send_data` and `end_response` return for this body and its
        length, in one step where nothing is unusual."""
        request = self._request
        if (
            request is None
            or self.sending is not _IDLE
            or self.receiving is not _RECEIVED
            or not (request.http_11 and head.allows_body)
            or request.method == "HEAD"
            or head.content_length not in (None, len(body))
        ):
            beginning = self.send_response(head, default_fields, len(body))
            return b"".join((beginning, self.send_data(body), self.end_response()))
        framing = b"" if head.content_length is not None else b"Content-Length: %d\r\n" % len(body)
        if self._closing or not request.keep_alive:
            self._closing = True
            framing += b"Connection: close\r\n"
            self._end()
        else:  # the same, where nothing is left to be seen to
            self._request = self._body = None
            self.receiving = _AWAITING_HEAD
        return b"".join((head.status_line, head.fields, default_fields, framing, b"\r\n", body))

    def end_response(self) -> bytes:
        """End the response. The connection is then ready for the next request, or `CLOSED`."""
        if self.sending in (_IDLE, _NOT_SENDING):
            raise LocalProtocolError("no response is under way")
        if self.sending is _SIZED and self._unsent:
            raise LocalProtocolError("there is less of the body than its Content-Length says")
        last = b"0\r\n\r\n" if self.sending is _CHUNKED else b""
        self._end()
        return last

    def _end(self) -> None:
        """The response is over."""
        self._request = None
        if self._closing:
            self.ends_by_close = self.sending is _UNTIL_CLOSE
            self.sending = _NOT_SENDING
            self.stop_receiving()
            return
        self.sending = _IDLE
        if self.receiving is _AWAITING_BODY:
            self._discarding = True  # what the app did not wait for
        else:
            self._body = None
            self.receiving = _AWAITING_HEAD
