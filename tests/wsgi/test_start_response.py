"""PEP 3333 "The start_response() Callable" and "Error Handling"."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.wsgi.calling import TEXT, answering, call
from tests.wsgi.logs import Log
from waitress_async.wsgi import Environ

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

FAILED = "ERROR waitress_async: Exception while serving /"


def assert_failed(app: WSGIApplication, log: Log, reason: str) -> None:
    """The client is told that the app failed, and the log why."""
    sink = call(app)
    assert (sink.status, sink.whole) == ("500 Internal Server Error", True)
    assert sink.content_length == len(sink.body)
    assert reason in log.take(FAILED)


def test_status_and_headers_are_the_apps_own() -> None:
    headers = [
        ("x-Lower", "1"),
        ("Content-Type", "text/plain"),
        ("X-UPPER", ""),
        ("A", "\xe9\t!"),
        ("a", "2"),
    ]
    sink = call(lambda _environ, start: (start("299 Quite \xe9", headers), [b"x"])[1])
    assert sink.status == "299 Quite \xe9"
    assert sink.fields == headers


def test_the_apps_list_of_headers_is_left_alone() -> None:
    headers = [("Content-Type", "text/plain"), ("Content-Length", "1")]
    before = headers[:]
    call(lambda _environ, start: (start("200 OK", headers), [b"x"])[1])
    assert headers == before


@pytest.mark.parametrize("result", [[], [b"x"], iter([]), iter([b"x"]), iter([b"", b"x"])])
def test_it_is_required(result: Iterable[bytes], log: Log) -> None:
    assert_failed(lambda _environ, _start_response: result, log, "start_response was not called")


def test_a_second_call_needs_an_exception(log: Log) -> None:
    def app(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        start_response("202 Accepted", TEXT)
        return [b"never"]

    assert_failed(app, log, "second time")


def test_a_second_call_after_the_head_needs_one_too(log: Log) -> None:
    def app(_environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield b"first"
        start_response("202 Accepted", TEXT)
        yield b"never"

    sink = call(app)
    assert (sink.status, sink.body, sink.whole) == ("200 OK", b"first", False)
    assert "second time" in log.take(FAILED)


def test_an_exception_replaces_a_head_that_is_not_sent() -> None:
    def app(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("X-Old", "1"), ("Content-Length", "1000")])
        try:
            raise KeyError
        except KeyError:
            start_response("503 Later", TEXT, sys.exc_info())
        return [b"sorry"]

    sink = call(app)
    assert (sink.status, sink.fields, sink.body) == ("503 Later", TEXT, b"sorry")
    assert (sink.content_length, sink.whole) == (5, True)


def test_empty_chunks_leave_the_head_open() -> None:
    def app(_environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        write = start_response("200 OK", TEXT)
        yield b""
        write(b"")
        yield b""
        try:
            raise KeyError
        except KeyError:
            start_response("503 Later", TEXT, sys.exc_info())
        yield b"sorry"

    sink = call(app)
    assert (sink.status, sink.body) == ("503 Later", b"sorry")


def test_an_exception_after_the_head_comes_back(log: Log) -> None:
    seen: list[BaseException] = []
    error = KeyError("the app's own")

    def app(_environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield b"first"
        try:
            raise error
        except KeyError:
            try:
                start_response("503 Later", TEXT, sys.exc_info())
            except KeyError as again:
                seen.append(again)
                raise
        yield b"never"

    sink = call(app)
    assert seen == [error]
    assert (sink.status, sink.body, sink.whole) == ("200 OK", b"first", False)
    assert "the app's own" in log.take(FAILED)


def test_the_first_call_may_have_exc_info() -> None:
    """Also one of no exception."""

    def app(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", TEXT, sys.exc_info())
        return [b"body"]

    assert call(app).status == "200 OK"


def test_exc_info_of_no_exception_cannot_replace_a_sent_head(log: Log) -> None:
    """`sys.exc_info()` outside of an `except` is three times None, and no licence for a second call."""

    def app(_environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield b"first"
        start_response("503 Later", TEXT, sys.exc_info())
        yield b"never"

    sink = call(app)
    assert (sink.status, sink.body, sink.whole) == ("200 OK", b"first", False)
    log.take(FAILED)


def test_no_frame_holds_the_traceback_that_goes_through_it() -> None:
    """PEP 3333 asks servers not to keep exc_info: it would be a cycle, as lasting as its frames."""
    held: list[bool] = []

    def app(_environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield b"first"
        try:
            raise KeyError
        except KeyError as error:
            information = type(error), error, cast(TracebackType, error.__traceback__)
        try:
            start_response("503 Later", TEXT, information)
        except KeyError as again:
            here = inspect.currentframe()
            for frame, _ in traceback.walk_tb(again.__traceback__):
                held.append(frame is not here and information in frame.f_locals.values())

    call(app)
    assert len(held) > 1
    assert not any(held)


def test_a_generator_may_call_it_late() -> None:
    def app(_environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        yield b""  # PEP 3333: the call may come as late as before the first chunk that is not empty
        start_response("201 Created", TEXT)
        yield b"body"

    sink = call(app)
    assert (sink.status, sink.body, sink.content_length) == ("201 Created", b"body", None)


def test_a_generator_may_end_without_a_chunk() -> None:
    def app(_environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("201 Created", TEXT)
        yield from ()

    sink = call(app)
    assert (sink.status, sink.body, sink.content_length) == ("201 Created", b"", 0)


def test_a_chunk_before_the_call_is_an_error(log: Log) -> None:
    def app(_environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        yield b"too early"
        start_response("200 OK", TEXT)

    assert_failed(app, log, "start_response was not called")


# -- what it refuses


@pytest.mark.parametrize(
    "status",
    ["", "OK", "20 OK", "2000 OK", "200OK", " 200 OK", "200 OK\r\nX: y", "200 O\nK", "200 O\0K", "200 \u2713",
     "100 Continue", "101 Switching Protocols", "099 Odd", "\u0662\u0660\u0660 OK", b"200 OK", 200, None],
)  # fmt: skip
def test_a_bad_status(status: Any, log: Log) -> None:
    assert_failed(answering([b"never"], status), log, "status must be")


@pytest.mark.parametrize(
    "header",
    [
        ("X-Split", "a\r\nSet-Cookie: b"),
        ("X-Split", "a\nb"),
        ("X-Split", "a\rb"),
        ("X-Nul", "a\0b"),
        ("X-Delete", "a\x7fb"),
        ("X-Wide", "\u2713"),
        ("X-Colon:", "a"),
        ("X Space", "a"),
        ("X-Split\r\nSet-Cookie", "a"),
        ("", "a"),
        ("\xe9", "a"),
        ("X-Number", 1),
        ("X-None", None),
        ("X-Bytes", b"a"),
        (b"X-Bytes", "a"),
        ("X-Three", "a", "b"),
        None,
    ],
)
def test_a_bad_header(header: Any, log: Log) -> None:
    assert_failed(answering([b"never"], headers=[header]), log, "Error: ")


@pytest.mark.parametrize(
    "name",
    ["Connection", "keep-alive", "Proxy-Authenticate", "proxy-authorization", "TE", "Trailer", "trailers",
     "Transfer-Encoding", "TRANSFER-ENCODING", "Upgrade"],
)  # fmt: skip
def test_hop_by_hop_headers_are_the_servers(name: str, log: Log) -> None:
    assert_failed(answering([b"never"], headers=[(name, "x")]), log, "hop-by-hop")


@pytest.mark.parametrize(
    "length", ["", "x", "-1", "+1", "1.0", "0x1", " 1", "1 ", "1_0", "\xb2", "1, 1", "9" * 20]
)
def test_a_bad_content_length(length: str, log: Log) -> None:
    assert_failed(answering([b"never"], headers=[("Content-Length", length)]), log, "Content-Length")


@pytest.mark.parametrize("second", ["5", "6"])
def test_two_content_lengths(second: str, log: Log) -> None:
    headers = [("Content-Length", "5"), ("content-length", second)]
    assert_failed(answering([b"never"], headers=headers), log, "more than once")


def test_what_is_refused_is_refused_each_time(log: Log) -> None:
    """Field lines are remembered; refusals must not be, as good ones."""
    for _ in range(2):
        assert_failed(answering([b"never"], headers=[("X-Split", "a\r\nb")]), log, "X-Split")


def test_a_refused_head_can_be_replaced(log: Log) -> None:
    def app(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        try:
            start_response("200 OK", [("X-Split", "a\r\nb")])
        except ValueError:
            start_response("503 Later", TEXT, sys.exc_info())
        return [b"sorry"]

    assert call(app).status == "503 Later"
    assert log.lines == []


def test_the_write_callable_is_returned_by_every_call() -> None:
    def app(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        writes: list[Callable[[bytes], object]] = [start_response("200 OK", TEXT)]
        try:
            raise KeyError
        except KeyError:
            writes.append(start_response("200 Still", TEXT, sys.exc_info()))
        for write in writes:
            write(b"x")
        return []

    sink = call(app)
    assert (sink.status, sink.body) == ("200 Still", b"xx")
