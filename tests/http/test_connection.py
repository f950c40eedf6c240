"""The order of things on one connection: requests, bodies, answers, the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from waitress_async.errors import BadRequest, LocalProtocolError, RequestError
from waitress_async.http import (
    CLOSED,
    END_OF_MESSAGE,
    NEED_DATA,
    PAUSED,
    Connection,
    Data,
    Event,
    HeadEncoder,
    HeadMemo,
    Limits,
    Receiving,
    Request,
    Sending,
)

OK = HeadEncoder().encode("200 OK", [])
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

GET = b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n"
SECOND = b"GET /second HTTP/1.1\r\nHost: a\r\n\r\n"
LENGTH = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
EXPECT = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
LENGTH_65536 = LENGTH.replace(b"5", b"65536")
# More than is worth waiting for once it is answered.
MUCH = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 65541\r\n\r\n"


def connect(data: bytes = b"") -> Connection:
    connection = Connection(Limits(), HeadMemo())
    if data:
        connection.receive_data(data)
    return connection


def request(connection: Connection) -> Request:
    event = connection.next_event()
    assert isinstance(event, Request)
    return event


def respond(connection: Connection, body: bytes = b"") -> bytes:
    head = connection.send_response(OK, b"", len(body))
    return head + connection.send_data(body) + connection.end_response()


def respond_whole(connection: Connection, body: bytes = b"") -> bytes:
    return connection.send_whole(OK, b"", body)


def events(connection: Connection) -> list[Event]:
    """All events up to the one that stays."""
    found = [connection.next_event()]
    while (event := connection.next_event()) is not found[-1]:
        found.append(event)
    return found


def receiving(connection: Connection) -> Receiving:
    """Asked for by a call, for a type checker takes an attribute to stay what it was."""
    return connection.receiving


class TestEvents:
    def test_nothing_received(self) -> None:
        connection = connect()
        assert events(connection) == [NEED_DATA]
        assert connection.receiving is Receiving.HEAD
        assert connection.sending is Sending.IDLE
        assert not connection.eof

    def test_a_request_without_body_is_complete(self) -> None:
        connection = connect(GET)
        first = request(connection)
        assert not first.has_body
        assert connection.receiving is Receiving.DONE
        assert events(connection) == [PAUSED]

    @pytest.mark.parametrize(("stream", "rest"), [(LENGTH, b"hello"), (CHUNKED, b"5\r\nhello\r\n0\r\n\r\n")])
    def test_a_request_with_body(self, stream: bytes, rest: bytes) -> None:
        """The head at once, the body as it comes, and its end as soon as it is known."""
        connection = connect(stream)
        assert request(connection).has_body
        assert receiving(connection) is Receiving.BODY
        assert events(connection) == [NEED_DATA]
        connection.receive_data(rest[:5])
        assert isinstance(connection.next_event(), Data)
        connection.receive_data(rest[5:])
        assert events(connection)[-2:] == [END_OF_MESSAGE, PAUSED]
        assert receiving(connection) is Receiving.DONE

    def test_body_bytes_are_not_kept_back(self) -> None:
        """What has come of a body is told at once: a slow body needs no buffer here."""
        for stream in (LENGTH, CHUNKED + b"5\r\n"):
            connection = connect(stream)
            request(connection)
            for byte in (b"h", b"e"):
                connection.receive_data(byte)
                assert events(connection) == [Data(byte), NEED_DATA]
                assert connection.unread == 0

    def test_an_empty_piece_says_nothing(self) -> None:
        connection = connect(GET[:10])
        connection.receive_data(b"")
        assert events(connection) == [NEED_DATA]

    @pytest.mark.parametrize("cut", range(1, len(GET)))
    def test_unread(self, cut: int) -> None:
        """Bytes count as unread until an event has told of them."""
        connection = connect(GET[:cut])
        assert connection.next_event() is NEED_DATA
        assert connection.unread == cut
        connection.receive_data(GET[cut:] + SECOND)
        assert connection.unread == len(GET + SECOND)
        request(connection)
        assert connection.unread == len(SECOND)

    def test_a_request_is_told_of_with_its_last_byte(self) -> None:
        """Not before, and not after."""
        connection = connect(GET[:-1])
        assert connection.next_event() is NEED_DATA
        connection.receive_data(GET[-1:])
        request(connection)


class TestOrder:
    """RFC 9112 section 9.3.2: pipelined requests are answered in their order."""

    def test_the_next_request_waits_for_the_answer(self) -> None:
        connection = connect(GET + SECOND)
        assert request(connection).target == "/first"
        assert events(connection) == [PAUSED]
        connection.send_response(OK, b"", 5)
        assert events(connection) == [PAUSED]
        connection.send_data(b"hello")
        assert events(connection) == [PAUSED]
        connection.end_response()
        assert connection.sending is Sending.IDLE
        assert request(connection).target == "/second"
        respond(connection)
        assert events(connection) == [NEED_DATA]

    def test_what_is_behind_is_not_judged(self) -> None:
        """A sound request is answered although nonsense follows; then the nonsense is refused."""
        connection = connect(GET + b"\0\0\n\n")
        request(connection)
        assert events(connection) == [PAUSED]
        assert b"Connection" not in respond(connection)
        with pytest.raises(BadRequest):
            connection.next_event()

    def test_what_is_behind_waits_as_bytes(self) -> None:
        """The owner bounds the look-ahead, by `unread`."""
        connection = connect(GET)
        request(connection)
        for _ in range(100):
            connection.receive_data(SECOND)
        assert events(connection) == [PAUSED]
        assert connection.unread == 100 * len(SECOND)
        for _ in range(100):
            respond(connection)
            request(connection)
        assert connection.unread == 0

    def test_fields_of_one_request_are_not_in_the_next(self) -> None:
        connection = connect(b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nCookie: c\r\n\r\n" + GET)
        assert "HTTP_X" in request(connection).fields
        respond(connection)
        assert request(connection).fields == {"HTTP_HOST": "a"}

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.0\r\nHost: a\r\n\r\n"),
            (
                b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
                b"GET / HTTP/1.1\r\nConnection: Keep-Alive\r\n\r\n",
            ),
            (b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n"),
            (
                b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
                b"POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
            ),
            (
                b"GET / HTTP/1.0\r\nConnection: keep-alive\r\nExpect: x\r\n\r\n",
                b"GET / HTTP/1.1\r\nConnection: keep-alive\r\nExpect: x\r\n\r\n",
            ),
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"),
            (GET, LENGTH + b"hello"),
            (LENGTH + b"hello", LENGTH + b"world"),
            (CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", CHUNKED + b"1\r\nx\r\n0\r\n\r\n"),
            (
                b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
                b"PUT / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\ny",
            ),
            (
                b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                b"PUT / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            ),
        ],
    )
    def test_each_request_stands_alone(self, first: bytes, second: bytes) -> None:
        """Equal field lines mean what they mean for their own request line, not for the one before."""

        def said(connection: Connection) -> list[Event] | str:
            try:
                found = events(connection)
            except RequestError as error:
                return error.detail
            respond(connection)
            return found

        alone = said(connect(second))
        connection = connect(first + second + second)
        said(connection)
        assert said(connection) == alone
        if connection.receiving is not Receiving.CLOSED:
            assert said(connection) == alone


class TestEnd:
    """RFC 9112 section 9.6: a client may close its side and still read."""

    def test_between_requests(self) -> None:
        connection = connect()
        connection.receive_eof()
        assert connection.eof
        assert events(connection) == [CLOSED]
        assert connection.receiving is Receiving.CLOSED

    @pytest.mark.parametrize("stream", [b"\r\n", b"\r\n\r\n"])
    def test_after_empty_lines(self, stream: bytes) -> None:
        connection = connect(stream)
        connection.receive_eof()
        assert events(connection) == [CLOSED]

    @pytest.mark.parametrize(
        "stream",
        [
            b"G",
            b"GET / HTTP/1.1\r\n",
            GET[:-1],
            LENGTH,
            LENGTH + b"hell",
            CHUNKED,
            CHUNKED + b"5\r\nhell",
            CHUNKED + b"5\r\nhello",
            CHUNKED + b"5\r\nhello\r\n",
            CHUNKED + b"5\r\nhello\r\n0",
            CHUNKED + b"5\r\nhello\r\n0\r\n",
            CHUNKED + b"5\r\nhello\r\n0\r\nX: 1\r\n",
        ],
    )
    @pytest.mark.parametrize("looked", [False, True])
    def test_inside_a_request(self, stream: bytes, looked: bool) -> None:
        """RFC 9112 section 8: never taken for complete, whether or not it was looked at before."""
        connection = connect(stream)
        if looked:
            assert events(connection)[-1] is NEED_DATA
        connection.receive_eof()
        with pytest.raises(BadRequest, match="ended before it was complete"):
            events(connection)
        assert events(connection) == [CLOSED]
        assert connection.unread == 0

    @pytest.mark.parametrize("stream", [GET, LENGTH + b"hello", CHUNKED + b"0\r\n\r\n"])
    def test_after_a_request(self, stream: bytes) -> None:
        """A half-closed client is answered, and told nothing of a close that it asked for itself."""
        connection = connect(stream)
        connection.receive_eof()
        assert events(connection)[-1] is PAUSED
        assert connection.receiving is Receiving.DONE
        assert respond(connection, b"hello").endswith(b"hello")
        assert events(connection) == [CLOSED]

    def test_after_several_requests(self) -> None:
        """All that came before the end is answered."""
        connection = connect(GET + SECOND)
        connection.receive_eof()
        for target in ("/first", "/second"):
            assert request(connection).target == target
            respond(connection)
        assert events(connection) == [CLOSED]

    def test_behind_a_request(self) -> None:
        """Half a request behind a whole one spoils only itself."""
        connection = connect(GET + SECOND[:-1])
        request(connection)
        connection.receive_eof()
        respond(connection)
        with pytest.raises(BadRequest, match="ended before it was complete"):
            connection.next_event()

    def test_while_the_answer_is_under_way(self) -> None:
        connection = connect(GET)
        request(connection)
        connection.send_response(OK, b"")
        connection.receive_eof()
        assert events(connection) == [PAUSED]
        assert connection.send_data(b"hello") + connection.end_response() == b"5\r\nhello\r\n0\r\n\r\n"
        assert events(connection) == [CLOSED]

    def test_after_a_refusal(self) -> None:
        connection = connect(b"\0")
        with pytest.raises(BadRequest):
            connection.next_event()
        connection.receive_eof()
        assert events(connection) == [CLOSED]


class TestClose:
    """RFC 9112 section 9.6: what ends the connection is said in the answer, and nothing is read after it."""

    @pytest.mark.parametrize(
        "stream", [GET, LENGTH + b"hello", b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"]
    )
    def test_close_after_response(self, stream: bytes) -> None:
        connection = connect(stream + SECOND)
        assert events(connection)[-1] is PAUSED
        connection.close_after_response()
        assert b"\r\nConnection: close\r\n" in respond(connection)
        assert_ended(connection)

    def test_close_after_response_between_requests(self) -> None:
        """It holds for the next exchange when none is under way."""
        connection = connect()
        connection.close_after_response()
        connection.receive_data(GET + SECOND)
        request(connection)
        assert b"\r\nConnection: close\r\n" in respond(connection)
        assert_ended(connection)

    def test_close_while_the_answer_is_under_way(self) -> None:
        """Too late to say it; the connection still ends with the answer, which is whole."""
        connection = connect(GET + SECOND)
        request(connection)
        assert b"Connection" not in connection.send_response(OK, b"")
        connection.close_after_response()
        assert connection.send_data(b"hello") == b"5\r\nhello\r\n"
        assert connection.end_response() == b"0\r\n\r\n"
        assert_ended(connection)

    @pytest.mark.parametrize(
        "stream",
        [
            MUCH,
            MUCH + b"hell",
            CHUNKED,
            CHUNKED + b"5\r\nhello\r\n",
            EXPECT,
        ],
    )
    def test_answered_before_the_body_has_come(self, stream: bytes) -> None:
        """The rest of the body must not be taken for a request, so the connection ends."""
        connection = connect(stream)
        assert events(connection)[-1] is NEED_DATA
        assert b"\r\nConnection: close\r\n" in respond(connection)
        assert_ended(connection)

    def test_the_body_may_come_during_the_answer(self) -> None:
        """What was said is not taken back when the body turns out to come whole."""
        connection = connect(CHUNKED)
        request(connection)
        assert b"\r\nConnection: close\r\n" in connection.send_response(OK, b"", 0)
        connection.receive_data(b"5\r\nhello\r\n0\r\n\r\n" + SECOND)
        assert events(connection) == [Data(b"hello"), END_OF_MESSAGE, PAUSED]
        connection.end_response()
        assert_ended(connection)

    @pytest.mark.parametrize("stream", [b"\0", b"GET / HTTP/1.1\r\n\r\n", CHUNKED + b"x\r\n"])
    def test_a_refused_request_is_answered_and_ends(self, stream: bytes) -> None:
        connection = connect(stream + SECOND)
        with pytest.raises(RequestError):
            events(connection)
        assert connection.receiving is Receiving.CLOSED
        assert respond(connection, b"why") == (
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nwhy"
        )
        assert_ended(connection)

    def test_a_body_refused_during_the_answer(self) -> None:
        """The answer goes on to its end; there is no second one."""
        connection = connect(CHUNKED)
        request(connection)
        connection.send_response(OK, b"")
        connection.receive_data(b"x\r\n")
        with pytest.raises(BadRequest):
            connection.next_event()
        with pytest.raises(LocalProtocolError):
            connection.send_response(OK, b"", 0)
        assert connection.send_data(b"hello") + connection.end_response() == b"5\r\nhello\r\n0\r\n\r\n"
        assert_ended(connection)

    def test_answered_before_any_request(self) -> None:
        """A server that is too busy, or has waited too long, may answer what never came whole."""
        for stream in (b"", GET[:10]):
            connection = connect(stream)
            assert connection.next_event() is NEED_DATA
            assert respond(connection) == (
                b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            assert_ended(connection)


class TestDiscard:
    """A request that was answered early, of which little is missing: the rest is dropped, and the
    connection kept."""

    @pytest.mark.parametrize(
        ("stream", "rest"),
        [
            (LENGTH, b"hello"),
            (LENGTH + b"hell", b"o"),
            (LENGTH_65536, bytes(65_536)),
            (MUCH + b"hello", bytes(65_536)),
            (EXPECT.replace(b"Expect", b"X-Expect"), b"hello"),
        ],
    )
    @pytest.mark.parametrize("cut", [1, 3, 4_096, 100_000])
    def test_the_connection_goes_on(self, stream: bytes, rest: bytes, cut: int) -> None:
        connection = connect(stream)
        assert events(connection)[-1] is NEED_DATA
        assert respond(connection) == b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        stream = rest + SECOND
        found: list[Event] = []
        for position in range(0, len(stream), cut):
            connection.receive_data(stream[position : position + cut])
            found += [event for event in events(connection) if event is not NEED_DATA]
        assert [type(event) for event in found[:1]] == [Request]
        assert found[1:] == [PAUSED]
        assert connection.unread == 0
        assert b"Connection" not in respond(connection)
        assert events(connection) == [NEED_DATA]

    def test_nothing_of_it_stays_in_the_buffer(self) -> None:
        connection = connect(LENGTH_65536)
        request(connection)
        respond(connection)
        connection.receive_data(bytes(65_000))
        assert events(connection) == [NEED_DATA]
        assert connection.unread == 0

    @pytest.mark.parametrize("during", [b"", b"he", b"hello", b"hello" + SECOND])
    def test_what_comes_during_the_answer_is_the_apps(self, during: bytes) -> None:
        """It may go on reading while it answers; only what is missing at the end is dropped."""
        connection = connect(LENGTH)
        request(connection)
        assert b"Connection" not in connection.send_response(OK, b"", 3)
        connection.receive_data(during)
        given = b"".join(event.data for event in events(connection) if isinstance(event, Data))
        assert given == during[:5]
        assert connection.send_data(b"why") + connection.end_response() == b"why"
        connection.receive_data((b"hello" + SECOND)[len(during) :])
        assert request(connection).target == "/second"

    def test_to_a_client_that_was_told_to_continue(self) -> None:
        connection = connect(EXPECT)
        request(connection)
        assert connection.send_continue() == CONTINUE
        assert b"Connection" not in respond(connection)
        connection.receive_data(b"hello" + SECOND)
        assert request(connection).target == "/second"

    def test_to_a_1_0_client(self) -> None:
        connection = connect(b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\n")
        request(connection)
        assert b"Connection: keep-alive\r\n" in respond(connection)
        connection.receive_data(b"hello" + SECOND)
        assert request(connection).target == "/second"

    @pytest.mark.parametrize(
        "stream",
        [
            MUCH,
            CHUNKED + b"0\r\n",
            EXPECT,
            LENGTH.replace(b"Host", b"Connection: close\r\nHost"),
            b"POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\n",
        ],
    )
    def test_not_worth_it_or_not_wanted(self, stream: bytes) -> None:
        connection = connect(stream)
        request(connection)
        assert b"\r\nConnection: close\r\n" in respond(connection)
        assert_ended(connection)

    def test_not_when_the_rest_will_not_come(self) -> None:
        connection = connect(LENGTH)
        request(connection)
        connection.receive_eof()
        assert b"\r\nConnection: close\r\n" in respond(connection)
        assert_ended(connection)

    def test_not_when_the_answer_has_no_other_end(self) -> None:
        connection = connect(b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\n")
        request(connection)
        assert b"\r\nConnection: close\r\n" in connection.send_response(OK, b"")
        connection.end_response()
        assert_ended(connection)

    def test_close_after_response(self) -> None:
        connection = connect(LENGTH)
        request(connection)
        connection.close_after_response()
        assert b"\r\nConnection: close\r\n" in respond(connection)
        assert_ended(connection)

    @pytest.mark.parametrize("rest", [b"", b"hell"])
    def test_the_end_instead_of_the_rest(self, rest: bytes) -> None:
        """The request has had its answer, so there is nobody to blame for its end."""
        connection = connect(LENGTH)
        request(connection)
        respond(connection)
        connection.receive_data(rest)
        connection.receive_eof()
        assert events(connection) == [CLOSED]
        assert connection.receiving is Receiving.CLOSED

    def test_the_end_behind_the_rest(self) -> None:
        connection = connect(LENGTH)
        request(connection)
        respond(connection)
        connection.receive_data(b"hello")
        connection.receive_eof()
        assert events(connection) == [CLOSED]

    def test_a_refusal_behind_the_rest(self) -> None:
        connection = connect(LENGTH)
        request(connection)
        respond(connection)
        connection.receive_data(b"hello\0")
        with pytest.raises(BadRequest):
            connection.next_event()
        assert b"\r\nConnection: close\r\n" in respond(connection)
        assert_ended(connection)

    def test_answered_while_the_rest_is_awaited(self) -> None:
        """A server that has waited too long for it says so and ends; nothing of the rest is a request."""
        connection = connect(LENGTH)
        request(connection)
        respond(connection)
        assert respond(connection) == b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        assert_ended(connection)

    def test_one_after_the_other(self) -> None:
        connection = connect()
        for _ in range(5):
            connection.receive_data(LENGTH)
            request(connection)
            respond(connection)
            connection.receive_data(b"hello")
            assert events(connection) == [NEED_DATA]
        connection.receive_data(LENGTH + b"hello")
        assert [type(event) for event in events(connection)] == [Request, Data, type(PAUSED), type(PAUSED)]

    def test_many_that_are_in_the_buffer_already(self) -> None:
        """However many: one event each, and no stack that grows with them."""
        connection = connect((LENGTH + b"hello") * 3_000)
        for _ in range(3_000):
            request(connection)
            respond(connection)
        assert events(connection) == [NEED_DATA]


class TestFrames:
    """The framing of a response's body."""

    @staticmethod
    def responding(stream: bytes, length: int | None) -> Connection:
        connection = connect(stream)
        request(connection)
        connection.send_response(OK, b"", length)
        return connection

    def test_sized(self) -> None:
        connection = self.responding(GET, 5)
        assert (connection.frame_data(5), connection.frame_data(0)) == ((b"", b""), (b"", b""))

    def test_until_close(self) -> None:
        connection = self.responding(b"GET / HTTP/1.0\r\n\r\n", None)
        assert (connection.frame_data(5), connection.frame_data(0)) == ((b"", b""), (b"", b""))

    def test_chunked(self) -> None:
        """An empty chunk would be the last one (RFC 9112 section 7.1)."""
        connection = self.responding(GET, None)
        assert connection.frame_data(0x1F) == (b"1f\r\n", b"\r\n")
        assert connection.frame_data(0) is None
        assert (connection.send_data(b"hello"), connection.send_data(b"")) == (b"5\r\nhello\r\n", b"")

    def test_bodiless(self) -> None:
        connection = self.responding(GET.replace(b"GET", b"HEAD"), 5)
        assert (connection.frame_data(5), connection.send_data(b"hello")) == (None, b"")

    def test_what_needs_no_frame_is_not_copied(self) -> None:
        data = bytes(1_000)
        assert self.responding(GET, 1_000).send_data(data) is data


def assert_ended(connection: Connection) -> None:
    """Nothing more is read, kept, or sent."""
    connection.receive_data(SECOND)
    assert connection.unread == 0
    assert events(connection) == [CLOSED]
    assert connection.receiving is Receiving.CLOSED
    assert connection.sending is Sending.CLOSED
    with pytest.raises(LocalProtocolError):
        connection.send_response(OK, b"", 0)


class TestContinue:
    """RFC 9110 section 10.1.1: 100 (Continue), unless the body is coming anyway."""

    def test_sent(self) -> None:
        connection = connect(EXPECT)
        assert request(connection).expect_continue
        assert connection.send_continue() == CONTINUE
        connection.receive_data(b"hello" + SECOND)
        assert events(connection) == [Data(b"hello"), END_OF_MESSAGE, PAUSED]
        assert b"Connection" not in respond(connection)
        assert request(connection).target == "/second"

    @pytest.mark.parametrize("rest", [b"h", b"hello", b"hello" + SECOND])
    def test_not_needed(self, rest: bytes) -> None:
        """A server may leave it out if it has received some of the body."""
        connection = connect(EXPECT + rest)
        request(connection)
        assert connection.send_continue() == b""

    @pytest.mark.parametrize(
        "stream",
        [
            b"GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n",
            b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        ],
    )
    def test_not_wanted(self, stream: bytes) -> None:
        """Not without a body, and never to 1.0."""
        assert not request(connect(stream)).expect_continue


class TestMisuse:
    """What HTTP does not allow this side now is a defect of the server, and raises before a byte is made."""

    @staticmethod
    def fresh() -> Connection:
        return connect()

    @staticmethod
    def requested() -> Connection:
        connection = connect(GET)
        request(connection)
        return connection

    @staticmethod
    def body_awaited() -> Connection:
        connection = connect(EXPECT)
        request(connection)
        return connection

    @staticmethod
    def responding() -> Connection:
        connection = TestMisuse.requested()
        connection.send_response(OK, b"", 5)
        return connection

    @staticmethod
    def responding_early() -> Connection:
        connection = TestMisuse.body_awaited()
        connection.send_response(OK, b"", 5)
        return connection

    @staticmethod
    def responded() -> Connection:
        connection = TestMisuse.requested()
        respond(connection)
        return connection

    @staticmethod
    def ended() -> Connection:
        connection = TestMisuse.body_awaited()
        respond(connection)
        return connection

    @staticmethod
    def discarding() -> Connection:
        connection = connect(LENGTH)
        request(connection)
        respond(connection)
        return connection

    @staticmethod
    def refused() -> Connection:
        connection = connect(b"\0")
        with pytest.raises(BadRequest):
            connection.next_event()
        return connection

    @pytest.mark.parametrize(
        "state",
        [
            "fresh",
            "requested",
            "responding",
            "responding_early",
            "responded",
            "discarding",
            "ended",
            "refused",
        ],
    )
    def test_continue(self, state: str) -> None:
        """100 (Continue) is for a body that is awaited, before the final response."""
        with pytest.raises(LocalProtocolError):
            getattr(self, state)().send_continue()

    @pytest.mark.parametrize("state", ["responding", "responding_early", "ended"])
    def test_response(self, state: str) -> None:
        """One response for a request, none after the end."""
        with pytest.raises(LocalProtocolError):
            getattr(self, state)().send_response(OK, b"", 0)

    @pytest.mark.parametrize(
        "state", ["fresh", "requested", "body_awaited", "responded", "discarding", "ended", "refused"]
    )
    def test_data(self, state: str) -> None:
        """No body without a head."""
        with pytest.raises(LocalProtocolError):
            getattr(self, state)().send_data(b"hello")

    @pytest.mark.parametrize("state", ["fresh", "discarding", "ended"])
    def test_frame(self, state: str) -> None:
        with pytest.raises(LocalProtocolError):
            getattr(self, state)().frame_data(5)

    @pytest.mark.parametrize(
        "state", ["fresh", "requested", "body_awaited", "responded", "discarding", "ended", "refused"]
    )
    def test_end(self, state: str) -> None:
        """No end without a beginning."""
        with pytest.raises(LocalProtocolError):
            getattr(self, state)().end_response()


# -- one step for what takes three


@pytest.mark.parametrize("body", [b"", b"body"])
@pytest.mark.parametrize(
    "headers", [[], [("Content-Length", "0")], [("Content-Length", "4")], [("Content-Length", "5")]]
)
@pytest.mark.parametrize(
    "status", ["200 OK", "204 No Content", "304 Not Modified", "500 Internal Server Error"]
)
@pytest.mark.parametrize(
    "received",
    [
        GET + SECOND,
        GET.replace(b"1.1", b"1.0"),
        GET.replace(b"1.1\r\n", b"1.0\r\nConnection: keep-alive\r\n"),
        GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        GET.replace(b"GET", b"HEAD"),
        LENGTH,
        LENGTH + b"12345" + GET,
        MUCH,
        CHUNKED,
        EXPECT,
        b"GET / HTTP/1.1\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"",
    ],
)
@pytest.mark.parametrize("closing", [False, True])
def test_a_whole_response_is_its_three_parts(
    received: bytes, status: str, headers: list[tuple[str, str]], body: bytes, closing: bool
) -> None:
    head = HeadEncoder().encode(status, headers)

    def run(respond: Callable[[Connection], bytes]) -> tuple[object, ...]:
        connection = connect(received)
        with contextlib.suppress(RequestError):
            connection.next_event()
        if closing:
            connection.close_after_response()
        sent: bytes | str
        try:
            sent = respond(connection)
        except LocalProtocolError as error:
            sent = str(error)
        try:
            then: object = events(connection)
        except RequestError as error:
            then = str(error)
        return sent, connection.sending, connection.receiving, connection.unread, then

    assert run(lambda connection: connection.send_whole(head, b"X: y\r\n", body)) == run(
        lambda connection: (
            connection.send_response(head, b"X: y\r\n", len(body))
            + connection.send_data(body)
            + connection.end_response()
        )
    )


# -- heads that repeat


def test_the_same_head_again_is_the_same_request() -> None:
    connection = connect()
    told = []
    for data in (GET, GET, SECOND, SECOND, GET, GET[:9], GET[9:], GET):
        connection.receive_data(data)
        event = connection.next_event()
        if event is not NEED_DATA:
            told.append(event)
            respond(connection)
    first, again, second, second_again, first_again, _cut, last = told
    assert first is again
    assert second is second_again
    assert first == first_again == last


@pytest.mark.parametrize("size", [100, 100_000])
def test_bytes_that_were_told_of_are_not_kept(size: int) -> None:
    """While a connection is idle, what it has received last may be large."""
    connection = connect()
    for _ in range(3):
        data = GET[:-2] + b"X: " + b"x" * size + b"\r\n\r\n"
        connection.receive_data(data)
        assert request(connection).may_repeat is (size < 2_048)
        assert connection._buffer.data == b""
        respond(connection)


@pytest.mark.parametrize("respond", [respond, respond_whole])
def test_heads_that_repeat_may_be_cut_anywhere(respond: Callable[[Connection], bytes]) -> None:
    """By what is remembered nothing is changed: not the start of a longer head, and not the middle of one."""
    longer = GET[:-2] + b"X: y\r\n\r\n"
    stream = GET + GET + longer + GET + b"\r\n" + GET + LENGTH + b"12345" + LENGTH + GET[:5] + GET + GET

    def paths(*pieces: bytes) -> list[str | bytes]:
        connection = connect()
        told: list[str | bytes] = []
        for piece in pieces:
            connection.receive_data(piece)
            while (event := connection.next_event()) is not NEED_DATA:
                if isinstance(event, Request):
                    told.append(event.path + str(len(event.fields)))
                    if not event.has_body:
                        respond(connection)
                elif isinstance(event, Data):
                    told.append(event.data)
                elif event is END_OF_MESSAGE:
                    respond(connection)
        return told

    def joined(told: list[str | bytes]) -> list[str | bytes]:
        """The pieces of a body as one."""
        found: list[str | bytes] = []
        for one in told:
            if found and isinstance(one, bytes) and isinstance(found[-1], bytes):
                found[-1] += one
            else:
                found.append(one)
        return found

    whole = paths(stream)
    first = ["/first1", "/first1"]
    assert whole == [*first, "/first2", *first, "/2", b"12345", "/2", b"GET /", "/first1", "/first1"]
    for cut in range(len(stream)):
        assert joined(paths(stream[:cut], stream[cut:])) == whole, cut
