"""The body: what an app may return, `write()`, and the accounting against a Content-Length."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.wsgi.calling import TEXT, Chunks, RecordingSink, SizedChunks, answering, call
from tests.wsgi.logs import Log
from waitress_async.wsgi import Environ

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

FAILED = "ERROR waitress_async: Exception while serving /"
TOO_LONG = "WARNING waitress_async: application-written content exceeded the number of bytes specified"
TOO_SHORT = "WARNING waitress_async: application returned too few bytes"
NOT_ALLOWED = "WARNING waitress_async: application-written content was ignored"

KIB = 1024


# -- what it may return


class OldIterable:
    """Iterable by `__getitem__` alone."""

    def __getitem__(self, index: int) -> bytes:
        return [b"one", b"", b"two"][index]


@pytest.mark.parametrize(
    ("result", "body"),
    [
        ([b"one", b"", b"two"], b"onetwo"),
        ((b"one", b"", b"two"), b"onetwo"),
        (iter([b"one", b"", b"two"]), b"onetwo"),
        ((chunk for chunk in [b"one", b"", b"two"]), b"onetwo"),
        ({b"one": 1, b"two": 2}, b"onetwo"),
        (Chunks(b"one", b"", b"two"), b"onetwo"),
        (OldIterable(), b"onetwo"),
        (iter([]), b""),
        (iter([b"", b""]), b""),
    ],
)
def test_any_iterable(result: Iterable[bytes], body: bytes) -> None:
    sink = call(answering(result))
    assert (sink.status, sink.body, sink.whole) == ("200 OK", body, True)


@pytest.mark.parametrize(
    ("result", "body"),
    [
        ([], b""),
        ((), b""),
        ([b""], b""),
        ([b"", b""], b""),
        ([b"body"], b"body"),
        ((b"body",), b"body"),
        ([b"bo", b"", b"dy"], b"body"),
        ([b"x" * 200 * KIB], b"x" * 200 * KIB),
        ([b"x" * 100 * KIB] * 3, b"x" * 300 * KIB),
        (SizedChunks(1, b"body"), b"body"),
        (SizedChunks(1, b""), b""),
        (Chunks(), b""),
        (Chunks(b""), b""),
    ],
)
def test_a_length_that_is_known_is_declared(result: Iterable[bytes], body: bytes) -> None:
    sink = call(answering(result))
    assert (sink.content_length, sink.whole) == (len(body), True)
    assert sink.body == body


@pytest.mark.parametrize("result", [iter([b"body"]), Chunks(b"body"), SizedChunks(2, b"bo", b"dy")])
def test_a_length_that_is_not_known_is_not_declared(result: Iterable[bytes]) -> None:
    sink = call(answering(result))
    assert (sink.content_length, sink.body, sink.whole) == (None, b"body", True)


class Unsizable(Chunks):
    """Its `len()` is not to be had."""

    def __init__(self, error: Exception) -> None:
        super().__init__(b"bo", b"dy")
        self.error = error

    def __len__(self) -> int:
        raise self.error


@pytest.mark.parametrize("error", [TypeError(), AttributeError(), NotImplementedError()])
def test_a_len_that_fails_is_no_len(error: Exception) -> None:
    """A wrapper that passes `__len__` on to an iterator: wsgiref forgives these three as well."""
    sink = call(answering(Unsizable(error)))
    assert (sink.content_length, sink.body) == (None, b"body")


def test_one_chunk_promised_and_two_given(log: Log) -> None:
    """PEP 3333: an iterable of length 1 is taken at its word."""
    sink = call(answering(SizedChunks(1, b"first", b"second")))
    assert (sink.content_length, sink.body, sink.whole) == (5, b"first", True)
    log.take(TOO_LONG)


def test_what_is_complete_crosses_in_one_call() -> None:
    for result in ([b"body"], [b"bo", b"dy"], [], (b"a",) * 1000):
        assert call(answering(result)).calls == ["begin", "finish"]


@pytest.mark.parametrize("shape", [list, tuple])
def test_a_large_list_crosses_in_one_call_and_is_not_copied(shape: Callable[[Any], Any]) -> None:
    chunks = [bytes([number]) * 100 * KIB for number in range(20)]
    sink = call(answering(shape(chunks)))
    assert (sink.calls, sink.content_length) == (["begin", "finish"], 2000 * KIB)
    assert all(sent is chunk for sent, chunk in zip(sink.chunks, chunks, strict=True))


def test_chunks_are_asked_for_one_at_a_time() -> None:
    """PEP 3333 "Buffering and Streaming": a chunk is handed on before the app is asked for the next one."""
    sink = RecordingSink()
    sent: list[int] = []

    def app(_environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        for _ in range(3):
            yield b"chunk"
            sent.append(sink.calls.count("write"))

    call(app, sink=sink)
    assert sent == [1, 2, 3]


NOT_BYTES: list[Any] = ["text", 7, None, bytearray(b"x"), memoryview(b"x"), array("b", b"x"), [b"x"]]


@pytest.mark.parametrize("chunk", NOT_BYTES)
@pytest.mark.parametrize("shape", [list, tuple, iter, lambda chunks: SizedChunks(1, *chunks)])
def test_chunks_are_bytes(chunk: Any, shape: Callable[[Any], Any], log: Log) -> None:
    sink = call(answering(shape([chunk])))
    assert sink.status == "500 Internal Server Error"
    assert f"must yield and write bytes, not {type(chunk).__name__}" in log.take(FAILED)


@pytest.mark.parametrize("result", ["text", b"bytes", None, 7, object()])
def test_what_is_no_iterable_of_bytes(result: Any, log: Log) -> None:
    assert call(answering(result)).status == "500 Internal Server Error"
    assert "TypeError" in log.take(FAILED)


@pytest.mark.parametrize("shape", [list, tuple])
def test_a_list_with_a_bad_chunk_is_not_begun(shape: Callable[[Any], Any], log: Log) -> None:
    chunks: list[Any] = [b"good", "bad"]
    assert call(answering(shape(chunks))).status == "500 Internal Server Error"
    log.take(FAILED)


def test_a_bad_chunk_behind_a_good_one_cuts(log: Log) -> None:
    chunks: list[Any] = [b"good", "bad", b"never"]
    sink = call(answering(iter(chunks)))
    assert (sink.status, sink.body, sink.whole) == ("200 OK", b"good", False)
    log.take(FAILED)


# -- write()


def writing(*written: Any, result: Iterable[bytes] = (), length: int | None = None) -> Any:
    """An app that writes, and then returns."""

    def app(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        headers = [] if length is None else [("Content-Length", str(length))]
        write = start_response("200 OK", [*TEXT, *headers])
        for data in written:
            write(data)
        return result

    return app


@pytest.mark.parametrize(
    ("result", "rest"),
    [
        ([], b""),
        ([b""], b""),
        ([b"!"], b"!"),
        ((b"!", b"?"), b"!?"),
        (iter([]), b""),
        (iter([b"!"]), b"!"),
        (SizedChunks(1, b"!"), b"!"),
        (Chunks(b"", b"!"), b"!"),
    ],
)
def test_writes_come_before_what_is_returned(result: Iterable[bytes], rest: bytes) -> None:
    sink = call(writing(b"wri", b"", b"tten", result=result))
    assert (sink.content_length, sink.body, sink.whole) == (None, b"written" + rest, True)


def test_writes_count_with_what_is_returned() -> None:
    sink = call(writing(b"wri", b"tten", result=[b"!"], length=8))
    assert (sink.content_length, sink.body, sink.whole) == (8, b"written!", True)


def test_a_write_is_with_the_server_when_it_returns() -> None:
    sink = RecordingSink()

    def app(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", TEXT)
        write(b"")
        assert sink.calls == []
        write(b"one")
        assert sink.calls == ["begin", "write"]
        return [b"two"]

    assert call(app, sink=sink).body == b"onetwo"


def test_a_generator_may_write() -> None:
    def app(_environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        write = start_response("200 OK", TEXT)
        write(b"1")
        yield b"2"
        write(b"3")
        yield b""
        write(b"4")

    assert call(app).body == b"1234"


@pytest.mark.parametrize("data", NOT_BYTES)
def test_only_bytes_are_written(data: Any, log: Log) -> None:
    assert call(writing(data)).status == "500 Internal Server Error"
    assert f"must yield and write bytes, not {type(data).__name__}" in log.take(FAILED)


def test_a_write_after_the_end_sends_nothing() -> None:
    """An app that kept `write` beyond its call, maybe in a thread of its own."""
    kept: list[Callable[[bytes], object]] = []

    def app(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        kept.append(start_response("200 OK", TEXT))
        return [b"body"]

    sink = call(app)
    with pytest.raises(ValueError, match="after the end of the response"):
        kept[0](b"late")
    assert (sink.body, sink.breaches) == (b"body", [])


# -- more or less than the Content-Length

OVER: list[Iterable[bytes]] = [
    [b"12345678"],
    [b"1234", b"5678"],
    [b"12345", b"678", b"9"],
    (b"12345", b"", b"678"),
    iter([b"12345678"]),
    iter([b"12345", b"678", b"9"]),
    iter([b"123", b"", b"4567", b"8"]),
    [b"12345" + b"x" * 100 * KIB, b"y"],
    SizedChunks(1, b"12345678"),
]


@pytest.mark.parametrize("result", OVER)
def test_more_than_declared_is_cut_off_and_logged_once(result: Iterable[bytes], log: Log) -> None:
    sink = call(answering(result, length=5))
    assert (sink.content_length, sink.body, sink.whole) == (5, b"12345", True)
    log.take(TOO_LONG)


@pytest.mark.parametrize(("chunk", "taken"), [(b"12345", 2), (b"123456", 1)])
def test_an_app_that_says_too_much_is_not_asked_for_all_of_it(chunk: bytes, taken: int, log: Log) -> None:
    chunks = Chunks(*[chunk] * 1000)
    call(answering(chunks, length=5))
    assert chunks.taken == taken
    log.take(TOO_LONG)


def test_more_written_than_declared_is_logged_once(log: Log) -> None:
    sink = call(writing(b"1234", b"5678", b"9", result=[b"0", b"0"], length=5))
    assert (sink.body, sink.whole) == (b"12345", True)
    log.take(TOO_LONG)


def test_more_than_nothing(log: Log) -> None:
    sink = call(answering([b"1"], length=0))
    assert (sink.content_length, sink.body, sink.whole) == (0, b"", True)
    log.take(TOO_LONG)


def test_code_behind_the_last_chunk_runs() -> None:
    """What fills the length is the end for the client, not for the generator."""
    ran: list[int] = []

    def chunks() -> Iterator[bytes]:
        yield b"12345"
        ran.append(1)

    call(answering(chunks(), length=5))
    assert ran == [1]


UNDER: list[tuple[Iterable[bytes], bytes]] = [
    ([], b""),
    ([b""], b""),
    ([b"12"], b"12"),
    ([b"1", b"2"], b"12"),
    (iter([]), b""),
    (iter([b"1", b"", b"2"]), b"12"),
    (SizedChunks(1, b"12"), b"12"),
    (Chunks(b"1", b"2"), b"12"),
]


@pytest.mark.parametrize(("result", "body"), UNDER)
def test_less_than_declared_cuts_the_response(result: Iterable[bytes], body: bytes, log: Log) -> None:
    sink = call(answering(result, length=5))
    assert (sink.content_length, sink.body, sink.whole) == (5, body, False)
    assert f"({len(body)}) for specified Content-Length (5)" in log.take(TOO_SHORT)


def test_less_written_than_declared(log: Log) -> None:
    sink = call(writing(b"1", b"2", length=5))
    assert (sink.body, sink.whole) == (b"12", False)
    log.take(TOO_SHORT)


# -- HEAD, 204, 304


@pytest.mark.parametrize(
    ("result", "length"),
    [([b"body"], 4), ([b"bo", b"dy"], 4), (SizedChunks(1, b"body"), 4), (iter([b"bo", b"dy"]), None)],
)
def test_head_has_the_length_and_no_body(result: Iterable[bytes], length: int | None) -> None:
    sink = call(answering(result), "HEAD")
    assert (sink.status, sink.content_length) == ("200 OK", length)
    assert (sink.body, sink.whole) == (b"", True)


@pytest.mark.parametrize("result", [[], [b"12345"], [b"1", b"2"], iter([]), iter([b"1", b"2"]), [b"1" * 9]])
def test_head_keeps_the_length_that_the_app_declares(result: Iterable[bytes]) -> None:
    """An app may leave the body of a HEAD to the server, or save itself the work: both are no fault."""
    sink = call(answering(result, length=5), "HEAD")
    assert (sink.content_length, sink.body, sink.whole) == (5, b"", True)


@pytest.mark.parametrize("result", [[], [b""], iter([]), iter([b""])])
def test_an_empty_answer_to_head_does_not_say_that_get_is_empty(result: Iterable[bytes]) -> None:
    """RFC 9110 section 9.3.2: a length in it would have to be the one of GET, which nobody knows here."""
    sink = call(answering(result), "HEAD")
    assert (sink.content_length, sink.whole) == (None, True)


def test_head_does_not_ask_for_the_whole_body() -> None:
    chunks = Chunks(*[b"x"] * 1000)
    call(answering(chunks), "HEAD")
    assert chunks.taken == 1
    assert len(chunks.closed_in) == 1


def test_writes_to_head_are_dropped() -> None:
    sink = call(writing(b"1", b"2", result=[b"3"], length=3), "HEAD")
    assert (sink.content_length, sink.body, sink.whole) == (3, b"", True)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
@pytest.mark.parametrize("result", [[], [b""], Chunks(), Chunks(b"")])
def test_a_status_without_a_body(result: Iterable[bytes], status: str, method: str) -> None:
    sink = call(answering(result, status), method)
    assert (sink.status, sink.content_length, sink.whole) == (status, None, True)


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
@pytest.mark.parametrize("result", [[b"body"], [b"bo", b"dy"], Chunks(b"bo", b"dy"), SizedChunks(1, b"body")])
def test_a_body_that_must_not_be_is_dropped_and_logged_once(
    result: Iterable[bytes], status: str, log: Log
) -> None:
    sink = call(answering(result, status))
    assert (sink.status, sink.body, sink.whole) == (status, b"", True)
    log.take(NOT_ALLOWED)


def test_304_may_have_a_length_and_204_must_not() -> None:
    """RFC 9110 section 8.6."""
    not_modified = call(answering([], "304 Not Modified", length=5))
    assert ("Content-Length", "5") in not_modified.fields
    assert not_modified.whole
    no_content = call(answering([], "204 No Content", length=0))
    assert no_content.fields == TEXT
    assert no_content.whole


# -- an environ that the app has changed: PEP 3333 lets it, "in any way it desires"


def test_an_environ_that_was_emptied() -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        environ.clear()
        start_response("200 OK", TEXT)
        return [b"body"]

    sink = call(app)
    assert (sink.status, sink.body) == ("200 OK", b"body")


@pytest.mark.parametrize(("method", "pretended", "body"), [("GET", "HEAD", b"body"), ("HEAD", "GET", b"")])
def test_the_method_is_the_clients(method: str, pretended: str, body: bytes) -> None:
    """Middleware that rewrites the method for the app does not change how long the client's answer is."""

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        environ["REQUEST_METHOD"] = pretended
        start_response("200 OK", [*TEXT, ("Content-Length", "4")])
        return [b"body"]

    sink = call(app, method)
    assert (sink.content_length, sink.body, sink.whole) == (4, body, True)
