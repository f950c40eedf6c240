"""Responses: their framing to the byte, and what an app must not make them say."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from waitress_async.errors import LocalProtocolError
from waitress_async.http import (
    Connection,
    DefaultFields,
    HeadEncoder,
    HeadMemo,
    Limits,
    Request,
    Sending,
)

NOW = 784111777.9  # RFC 9110 section 5.6.7 has this date


def connection_after(*lines: str) -> Connection:
    """A connection that waits for the answer to the request of these lines."""
    connection = Connection(Limits(), HeadMemo())
    connection.receive_data("".join(f"{line}\r\n" for line in lines).encode("ascii") + b"\r\n")
    assert isinstance(connection.next_event(), Request)
    return connection


def respond(
    connection: Connection,
    status: str = "200 OK",
    headers: Sequence[tuple[str, str]] = (),
    body: Sequence[bytes] = (),
    length: int | None = None,
) -> bytes:
    pieces = [connection.send_response(HeadEncoder().encode(status, headers), b"", length)]
    pieces += [connection.send_data(data) for data in body]
    return b"".join([*pieces, connection.end_response()])


HTTP_11 = ("GET / HTTP/1.1", "Host: a")
HTTP_11_CLOSE = (*HTTP_11, "Connection: close")
HTTP_10 = ("GET / HTTP/1.0",)
HTTP_10_KEEP = (*HTTP_10, "Connection: keep-alive")
HEAD_11 = ("HEAD / HTTP/1.1", "Host: a")
HEAD_10 = ("HEAD / HTTP/1.0",)

OK = b"HTTP/1.1 200 OK\r\n"
CLOSE = b"Connection: close\r\n"
KEEP = b"Connection: keep-alive\r\n"
LENGTH = b"Content-Length: 5\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
END = b"\r\n"
CHUNKS = b"2\r\nhe\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n"


class TestFraming:
    """RFC 9112 sections 6.3 and 9.3: one framing, of version, method, status and length."""

    @pytest.mark.parametrize(
        ("request_lines", "expected", "kept"),
        [
            (HTTP_11, OK + LENGTH + END + b"hello", True),
            (HTTP_11_CLOSE, OK + LENGTH + CLOSE + END + b"hello", False),
            (HTTP_10, OK + LENGTH + CLOSE + END + b"hello", False),
            (HTTP_10_KEEP, OK + LENGTH + KEEP + END + b"hello", True),
            (HEAD_11, OK + LENGTH + END, True),
            (HEAD_10, OK + LENGTH + CLOSE + END, False),
        ],
    )
    @pytest.mark.parametrize("said_by", ["app", "server"])
    def test_of_known_length(
        self, request_lines: tuple[str, ...], expected: bytes, kept: bool, said_by: str
    ) -> None:
        """It makes no difference whether the app says the length or the server knows it."""
        connection = connection_after(*request_lines)
        if said_by == "app":
            sent = respond(connection, headers=[("Content-Length", "5")], body=[b"he", b"", b"llo"])
        else:
            sent = respond(connection, body=[b"he", b"", b"llo"], length=5)
        assert sent == expected
        assert_kept(connection, kept)

    @pytest.mark.parametrize(
        ("request_lines", "expected", "kept"),
        [
            (HTTP_11, OK + CHUNKED + END + CHUNKS, True),
            (HTTP_11_CLOSE, OK + CHUNKED + CLOSE + END + CHUNKS, False),
            (HTTP_10, OK + CLOSE + END + b"he0123456789abcdef", False),
            (HTTP_10_KEEP, OK + CLOSE + END + b"he0123456789abcdef", False),
            (HEAD_11, OK + END, True),
            (HEAD_10, OK + CLOSE + END, False),
        ],
    )
    def test_of_unknown_length(self, request_lines: tuple[str, ...], expected: bytes, kept: bool) -> None:
        """Chunks on 1.1, where an empty piece must not end the body; the close on 1.0."""
        connection = connection_after(*request_lines)
        assert respond(connection, body=[b"he", b"", b"0123456789abcdef"]) == expected
        assert_kept(connection, kept)

    @pytest.mark.parametrize(
        ("request_lines", "status", "length", "sending"),
        [
            (HTTP_11, "200 OK", 5, Sending.SIZED),
            (HTTP_11, "200 OK", None, Sending.CHUNKED),
            (HTTP_10, "200 OK", 5, Sending.SIZED),
            (HTTP_10_KEEP, "200 OK", None, Sending.UNTIL_CLOSE),
            (HEAD_11, "200 OK", None, Sending.BODILESS),
            (HTTP_11, "204 No Content", None, Sending.BODILESS),
            (HTTP_10, "304 Not Modified", None, Sending.BODILESS),
        ],
    )
    def test_the_framing_can_be_asked_for(
        self, request_lines: tuple[str, ...], status: str, length: int | None, sending: Sending
    ) -> None:
        """Whoever cuts a response must know whether the client can tell."""
        connection = connection_after(*request_lines)
        assert connection.sending is Sending.IDLE
        connection.send_response(HeadEncoder().encode(status, []), b"", length)
        assert connection.sending is sending

    def test_chunked_without_any_data(self) -> None:
        """RFC 9112 section 7.1: an empty chunked body is its last chunk."""
        assert respond(connection_after(*HTTP_11)) == OK + CHUNKED + END + b"0\r\n\r\n"

    def test_of_length_zero(self) -> None:
        """A length of zero is a known length."""
        assert respond(connection_after(*HTTP_11), length=0) == OK + b"Content-Length: 0\r\n\r\n"

    @pytest.mark.parametrize(("request_lines", "body"), [(HTTP_11, b"hello"), (HEAD_11, b"")])
    def test_what_the_app_says_wins(self, request_lines: tuple[str, ...], body: bytes) -> None:
        """A Content-Length is never sent twice."""
        connection = connection_after(*request_lines)
        sent = respond(connection, headers=[("content-length", "5")], body=[b"hello"], length=5)
        assert sent == OK + b"content-length: 5\r\n\r\n" + body

    @pytest.mark.parametrize("length", [None, 0, 5])
    @pytest.mark.parametrize("request_lines", [HTTP_11, HEAD_11])
    def test_204(self, request_lines: tuple[str, ...], length: int | None) -> None:
        """RFC 9110 section 8.6: 204 has neither body nor Content-Length; the connection is kept."""
        connection = connection_after(*request_lines)
        sent = respond(
            connection, "204 No Content", [("X", "1"), ("Content-Length", "5")], [b"hello"], length
        )
        assert sent == b"HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n"
        assert_kept(connection, True)

    @pytest.mark.parametrize("length", [None, 0, 5])
    @pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
    def test_no_length_is_made_up(self, status: str, length: int | None) -> None:
        """What has no body gets no length of it from the server."""
        connection = connection_after(*HTTP_11)
        assert respond(connection, status, [], [b"hello"], length) == f"HTTP/1.1 {status}\r\n\r\n".encode()
        assert_kept(connection, True)

    def test_304_may_tell_the_length(self) -> None:
        """RFC 9110 section 8.6: of 304 it is the length that 200 would have had; there is still no body."""
        connection = connection_after(*HTTP_11)
        sent = respond(connection, "304 Not Modified", [("Content-Length", "5")], [b"hello"])
        assert sent == b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"
        assert_kept(connection, True)

    @pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
    def test_no_body_on_http_10(self, status: str) -> None:
        """Without a body there is no need for the close to end it."""
        connection = connection_after(*HTTP_10_KEEP)
        expected = f"HTTP/1.1 {status}\r\nConnection: keep-alive\r\n\r\n"
        assert respond(connection, status) == expected.encode("ascii")
        assert_kept(connection, True)

    def test_order_of_the_head(self) -> None:
        """Case and order of the fields are the app's own; what the server adds follows them."""
        head = HeadEncoder().encode("200 OK", [("b", "1"), ("A", "2"), ("b", "3"), ("Set-Cookie", "x=\xe9")])
        sent = connection_after(*HTTP_11_CLOSE).send_response(head, b"Server: s\r\n", 0)
        assert sent == (
            b"HTTP/1.1 200 OK\r\nb: 1\r\nA: 2\r\nb: 3\r\nSet-Cookie: x=\xe9\r\n"
            b"Server: s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )


def assert_kept(connection: Connection, kept: bool) -> None:
    """Whether a second request would be read."""
    connection.receive_data(b"GET /second HTTP/1.1\r\nHost: b\r\n\r\n")
    assert isinstance(connection.next_event(), Request) is kept


class TestEncoding:
    """What PEP 3333 and RFC 9110 section 5 allow in a status and in fields."""

    @pytest.mark.parametrize(
        ("status", "line"),
        [
            ("200 OK", b"HTTP/1.1 200 OK\r\n"),
            ("404 ", b"HTTP/1.1 404 \r\n"),
            ("404", b"HTTP/1.1 404 \r\n"),
            ("299 any text, \t even \xe9", b"HTTP/1.1 299 any text, \t even \xe9\r\n"),
            ("999 X", b"HTTP/1.1 999 X\r\n"),
        ],
    )
    def test_status(self, status: str, line: bytes) -> None:
        """RFC 9112 section 4: three digits, a space even without a reason, and the reason."""
        encoder = HeadEncoder()
        for _ in range(2):
            head = encoder.encode(status, [])
            assert head.status == int(status[:3])
            assert connection_after(*HTTP_11).send_response(head, b"", 0).startswith(line)

    @pytest.mark.parametrize(
        "status",
        [
            "200 OK\r\nX: 1",
            "200 OK\n",
            "200 OK\r",
            "200 OK\r\n",
            "200 \0",
            "200 \x7f",
            "200\r\n",
            "200 \u20ac",
            "",
            "OK",
            "20 OK",
            "2000 OK",
            "200OK",
            "200\tOK",
            " 200 OK",
            "+20 OK",
            "\u0662\u0660\u0660 OK",
            "100 Continue",
            "101 Switching Protocols",
            "000 X",
        ],
    )
    def test_status_refused(self, status: str) -> None:
        """Nothing that splits the head, and nothing that is no final response."""
        with pytest.raises(ValueError, match="status"):
            HeadEncoder().encode(status, [])

    @pytest.mark.parametrize("value", ["", "1", " a \t b ", "\xe9\xff\x80", 'a,b;"c"', "x" * 10_000])
    def test_value(self, value: str) -> None:
        encoder = HeadEncoder()
        for _ in range(2):
            sent = respond(connection_after(*HTTP_11), headers=[("X", value)], length=0)
            assert sent == OK + f"X: {value}\r\n".encode("latin-1") + b"Content-Length: 0\r\n\r\n"
            assert encoder.encode("200 OK", [("X", value)]).fields == f"X: {value}\r\n".encode("latin-1")

    @pytest.mark.parametrize(
        "value",
        [
            "a\r\nY: 1",
            "a\nY: 1",
            "a\rY: 1",
            "\n",
            "a\r\n",
            "a\n",
            "\r\n folded",
            "\0",
            "\x1b[1m",
            "\x7f",
            "\u20ac",
            "\u560a",
        ],
    )
    def test_value_refused(self, value: str) -> None:
        """RFC 9110 section 5.5: a value cannot end its line. (U+560A ends in LF's byte.)"""
        with pytest.raises(ValueError, match="X"):
            HeadEncoder().encode("200 OK", [("X", value)])

    @pytest.mark.parametrize(
        "name",
        [
            "",
            " ",
            "X:",
            "X Y",
            "X\r\nY",
            "X\n",
            "X\r",
            "\nX",
            "X\0",
            "X\t",
            "\xe9",
            "\u20ac",
            "X/Y",
            "(X)",
            "X: 1\r\nY",
        ],
    )
    def test_name_refused(self, name: str) -> None:
        """RFC 9110 section 5.1: a name is a token."""
        with pytest.raises(ValueError, match="name"):
            HeadEncoder().encode("200 OK", [(name, "1")])

    @pytest.mark.parametrize(
        "name",
        [
            "Connection",
            "keep-alive",
            "Proxy-Authenticate",
            "PROXY-AUTHORIZATION",
            "Proxy-Connection",
            "TE",
            "Trailer",
            "Trailers",
            "transfer-encoding",
            "Upgrade",
        ],
    )
    def test_hop_by_hop_refused(self, name: str) -> None:
        """PEP 3333: these fields are the server's (RFC 9110 section 7.6.1)."""
        with pytest.raises(ValueError, match="hop-by-hop"):
            HeadEncoder().encode("200 OK", [(name, "close")])

    @pytest.mark.parametrize("value", ["0", "5", "0005", "9" * 19])
    def test_content_length(self, value: str) -> None:
        encoder = HeadEncoder()
        for name in ("Content-Length", "content-length", "Content-Length"):
            head = encoder.encode("200 OK", [(name, value)])
            assert head.content_length == int(value)
            assert head.fields == f"{name}: {value}\r\n".encode("ascii")

    @pytest.mark.parametrize(
        "value",
        ["", " 5", "5 ", "+5", "-5", "5,5", "5, 5", "5_0", "0x5", "5.0", "five", "\u0665", "\xb2", "9" * 20],
    )
    def test_content_length_refused(self, value: str) -> None:
        """RFC 9110 section 8.6: digits. What would not be understood must not be sent."""
        encoder = HeadEncoder()
        for _ in range(2):
            with pytest.raises(ValueError, match="Content-Length"):
                encoder.encode("200 OK", [("Content-Length", value)])

    @pytest.mark.parametrize("second", ["5", "6"])
    @pytest.mark.parametrize("status", ["200 OK", "204 No Content"])
    def test_content_length_twice_refused(self, second: str, status: str) -> None:
        """Equal or not: a client may refuse the one as the other."""
        with pytest.raises(ValueError, match="more than once"):
            HeadEncoder().encode(status, [("Content-Length", "5"), ("content-length", second)])

    @pytest.mark.parametrize(
        ("name", "value"), [(b"X", "1"), ("X", b"1"), ("X", 1), (None, "1"), ("X", None), ("X", ["1"])]
    )
    def test_field_of_another_type(self, name: object, value: object) -> None:
        """PEP 3333: names and values are native strings."""
        header: tuple[str, str] = (name, value)  # type: ignore[assignment]
        with pytest.raises(TypeError):
            HeadEncoder().encode("200 OK", [header])

    @pytest.mark.parametrize("status", [b"200 OK", 200, None])
    def test_status_of_another_type(self, status: object) -> None:
        with pytest.raises(TypeError):
            HeadEncoder().encode(status, [])  # type: ignore[arg-type]

    def test_a_memo_that_is_full_still_encodes(self) -> None:
        """More different fields than any memo holds, and a refusal among them each time."""
        encoder = HeadEncoder()
        for i in range(3_000):
            number = str(i)
            head = encoder.encode(f"200 {number}", [("X", number), ("Content-Length", number)])
            assert head.fields == b"X: %d\r\nContent-Length: %d\r\n" % (i, i)
            assert head.content_length == i
            if not i % 1_000:
                with pytest.raises(ValueError, match="Y"):
                    encoder.encode("200 OK", [("Y", f"{number}\r\n")])


class TestDefaultFields:
    """RFC 9110 sections 6.6.1 and 10.2.4: Date and Server, unless the app gave them."""

    DATE = b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"

    @pytest.mark.parametrize(
        ("headers", "expected"),
        [
            ([], b"Server: s/1\r\n" + DATE),
            ([("X", "1")], b"Server: s/1\r\n" + DATE),
            ([("date", "x")], b"Server: s/1\r\n"),
            ([("SERVER", "x")], DATE),
            ([("Server", "x"), ("Date", "x")], b""),
        ],
    )
    def test_lines(self, headers: list[tuple[str, str]], expected: bytes) -> None:
        encoder = HeadEncoder()
        for _ in range(2):
            head = encoder.encode("200 OK", headers)
            assert DefaultFields("s/1").lines(head, NOW) == expected

    @pytest.mark.parametrize("ident", [None, ""])
    def test_without_ident(self, ident: str | None) -> None:
        """A server that does not tell its name."""
        fields = DefaultFields(ident)
        assert fields.lines(HeadEncoder().encode("200 OK", []), NOW) == self.DATE
        assert fields.lines(HeadEncoder().encode("200 OK", [("Date", "x")]), NOW) == b""

    def test_the_date_follows_the_time(self) -> None:
        """Both when it goes on and when the clock is set back."""
        fields = DefaultFields(None)
        head = HeadEncoder().encode("200 OK", [])
        seconds = [fields.lines(head, NOW + i)[-14:-6] for i in (0, 0.05, 0.2, 60, 0, 0)]
        assert seconds == [b"08:49:37", b"08:49:37", b"08:49:38", b"08:50:37", b"08:49:37", b"08:49:37"]

    @pytest.mark.parametrize("ident", ["a\r\nX: 1", "a\n", "\0", "\u20ac"])
    def test_ident_refused(self, ident: str) -> None:
        with pytest.raises(ValueError, match="ident"):
            DefaultFields(ident)


class TestHints:
    def test_a_whole_response(self) -> None:
        encoder = HeadEncoder()
        expected = b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\nLink: <\xe9>\r\n\r\n"
        for _ in range(2):
            assert encoder.encode_hints(iter([("Link", "<a>"), ("Link", "<\xe9>")])) == expected

    @pytest.mark.parametrize(
        "header", [("Link", "a\r\nb"), ("a b", "1"), ("Connection", "close"), ("Content-Length", "0")]
    )
    def test_what_is_not_allowed(self, header: tuple[str, str]) -> None:
        with pytest.raises(ValueError, match=r"header|Content-Length"):
            HeadEncoder().encode_hints([header])

    def test_they_are_sent_before_the_response_and_not_to_http_1_0(self) -> None:
        hints = HeadEncoder().encode_hints([("Link", "<a>")])
        connection = connection_after("GET / HTTP/1.1", "Host: a")
        assert connection.send_hints(hints) == hints
        connection.send_response(HeadEncoder().encode("200 OK", []), b"", 5)
        with pytest.raises(LocalProtocolError):
            connection.send_hints(hints)
        assert connection_after("GET / HTTP/1.0").send_hints(hints) == b""
