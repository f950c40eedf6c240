"""The server's own answers: one place renders them, and they never say back what the client said."""

from __future__ import annotations

import pytest

from tests.http.driver import drive
from waitress_async.errors import (
    BadRequest,
    ContentTooLarge,
    ExpectationFailed,
    HeaderFieldsTooLarge,
    HTTPError,
    InternalServerError,
    MethodNotImplemented,
    RequestError,
    ServiceUnavailable,
    URITooLong,
    VersionNotSupported,
)
from waitress_async.http import NEED_DATA, Connection, HeadEncoder, HeadMemo, Limits, error_response


@pytest.mark.parametrize(
    ("error", "status", "body"),
    [
        (BadRequest("Why."), "400 Bad Request", "400 Bad Request\n\nWhy.\n"),
        (
            ContentTooLarge("Why.", setting="one"),
            "413 Content Too Large",
            "413 Content Too Large\n\nWhy. (setting: one)\n",
        ),
        (URITooLong("Why."), "414 URI Too Long", "414 URI Too Long\n\nWhy.\n"),
        (ExpectationFailed("Why."), "417 Expectation Failed", "417 Expectation Failed\n\nWhy.\n"),
        (
            HeaderFieldsTooLarge("Why.", setting="two"),
            "431 Request Header Fields Too Large",
            "431 Request Header Fields Too Large\n\nWhy. (setting: two)\n",
        ),
        (InternalServerError("Why."), "500 Internal Server Error", "500 Internal Server Error\n\nWhy.\n"),
        (MethodNotImplemented("Why."), "501 Not Implemented", "501 Not Implemented\n\nWhy.\n"),
        (ServiceUnavailable("Why."), "503 Service Unavailable", "503 Service Unavailable\n\nWhy.\n"),
        (
            VersionNotSupported("Why."),
            "505 HTTP Version Not Supported",
            "505 HTTP Version Not Supported\n\nWhy.\n",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, HTTPError) else "",
)
def test_rendering(error: HTTPError, status: str, body: str) -> None:
    """RFC 9110 section 15: the status and its reason, in plain text the rule and the setting exceeded."""
    head, sent_body = error_response(error, HeadEncoder())
    assert head.status == int(status[:3])
    assert head.status_line == f"HTTP/1.1 {status}\r\n".encode("ascii")
    assert head.fields == (
        f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n".encode("ascii")
    )
    assert sent_body == body.encode("ascii")


def test_retry_after() -> None:
    """RFC 9110 section 10.2.3: 503 may say when to come again, in seconds."""
    head, _ = error_response(ServiceUnavailable("Why.", retry_after=0), HeadEncoder())
    assert head.fields.endswith(b"\r\nRetry-After: 0\r\n")


def test_a_detail_of_any_text_can_be_sent() -> None:
    """Lengths are of bytes; what UTF-8 cannot say is escaped."""
    head, body = error_response(InternalServerError("\u20ac \udcff"), HeadEncoder())
    assert body == "500 Internal Server Error\n\n\u20ac \\udcff\n".encode()
    assert head.content_length == len(body)


def refuse(stream: bytes) -> tuple[Connection, RequestError]:
    connection = Connection(Limits(), HeadMemo())
    connection.receive_data(stream)
    while True:
        try:
            assert connection.next_event() is not NEED_DATA
        except RequestError as error:
            return connection, error


@pytest.mark.parametrize(
    ("stream", "has_body"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", True),
        (b"HEAD / HTTP/1.1\r\n\r\n", False),
        (b"HEAD / HTTP/1.1\r\nHost\r\n\r\n", False),
        (b"HEAD / HTTP/1.1\r\nHost: a\r\nX: \n", False),
        (b"HEAD / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", False),
        (b"HEAD / HTTP/2.0\r\n\r\n", True),
        (b"\0", True),
    ],
)
def test_head_gets_no_body(stream: bytes, has_body: bool) -> None:
    """RFC 9110 section 9.3.2: a refused HEAD is still a HEAD, once its request line was understood."""
    connection, error = refuse(stream)
    head, body = error_response(error, HeadEncoder())
    answer = connection.send_response(head, b"") + connection.send_data(body) + connection.end_response()
    assert b"\r\nConnection: close\r\n" in answer
    assert b"\r\nContent-Length: %d\r\n" % len(body) in answer
    assert answer.endswith(b"\r\n\r\n" + body if has_body else b"\r\n\r\n")


def test_head_is_not_remembered_for_the_next() -> None:
    """The answer to a refused second request has its body, whatever the first one was."""
    connection = Connection(Limits(), HeadMemo())
    connection.receive_data(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\nGET\r\n")
    connection.next_event()
    connection.send_response(HeadEncoder().encode("200 OK", []), b"", 0)
    connection.end_response()
    with pytest.raises(RequestError):
        connection.next_event()
    connection.send_response(HeadEncoder().encode("400 Bad Request", []), b"", 5)
    assert connection.send_data(b"hello") == b"hello"


MARK = b"<script>zqj</script>"
HOSTILE = {
    "method": b"%b / HTTP/1.1\r\nHost: a\r\n\r\n",
    "target": b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n",
    "fragment": b"GET /#%b HTTP/1.1\r\nHost: a\r\n\r\n",
    "authority": b"GET http://%b/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "version": b"GET / %b\r\nHost: a\r\n\r\n",
    "name": b"GET / HTTP/1.1\r\n%b: a\r\n\r\n",
    "value": b"GET / HTTP/1.1\r\nX: %b\0\r\n\r\n",
    "line": b"GET / HTTP/1.1\r\n%b\r\n\r\n",
    "host": b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n",
    "length": b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: %b\r\n\r\n",
    "coding": b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: %b\r\n\r\n",
    "expectation": b"GET / HTTP/1.1\r\nHost: a\r\nExpect: %b\r\n\r\n",
    "chunk size": b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%b\r\n",
    "extension": b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0;%b\r\n",
    "chunk end": b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na%b\r\n",
    "trailer": b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n%b: \0\r\n",
    "behind": b"GET / HTTP/1.1\r\n\r\n%b",
}


@pytest.mark.parametrize("stream", HOSTILE.values(), ids=HOSTILE.keys())
def test_nothing_is_echoed(stream: bytes) -> None:
    """Neither in the answer nor in the exception, which may be logged: not as it came, not escaped."""
    _, error = refuse(stream % MARK)
    head, body = error_response(error, HeadEncoder())
    for said in (head.status_line, head.fields, body, str(error).encode()):
        assert b"zqj" not in said
        assert b"<" not in said


def test_a_refusal_is_told_once() -> None:
    """After a refusal nothing more comes, and what arrives is thrown away (RFC 9112 section 2.2)."""
    connection, _ = refuse(b"GET / HTTP/1.1\r\n\r\n")
    connection.receive_data(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 1_000)
    assert connection.unread == 0
    assert drive([b"GET / HTTP/1.1\r\n\r\n", b"x" * 10_000]).messages == []
