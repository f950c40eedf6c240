"""`close()` of what the app returned: exactly once, on every way out, in the thread that called the app."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pytest

from tests.wsgi.calling import TEXT, Chunks, RecordingSink, SizedChunks, answering, call
from tests.wsgi.logs import Log
from waitress_async.wsgi import Environ

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

FAILED = "ERROR waitress_async: Exception while serving /"
CLOSE_FAILED = "ERROR waitress_async: Exception in close() while serving /"
TOO_LONG = "WARNING waitress_async: application-written content exceeded"
TOO_SHORT = "WARNING waitress_async: application returned too few bytes"
LEFT = "INFO waitress_async: Client disconnected while serving /"

ESCAPES: list[BaseException] = [
    ValueError("x"), OSError("x"), MemoryError(), RecursionError(), StopIteration(), SystemExit(3),
    KeyboardInterrupt(), GeneratorExit(),
]  # fmt: skip


def assert_closed(chunks: Chunks) -> None:
    assert chunks.closed_in == [threading.get_ident()]


class ClosableList(list[bytes]):
    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_a_list_may_have_one() -> None:
    chunks = ClosableList([b"one", b"two"])
    assert call(answering(chunks)).content_length == 6
    assert chunks.closed == 1


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("chunks", [(), (b"",), (b"body",), (b"bo", b"", b"dy")])
def test_after_the_body(chunks: tuple[bytes, ...], method: str) -> None:
    result = Chunks(*chunks)
    assert call(answering(result), method).whole
    assert_closed(result)


def test_after_what_is_full() -> None:
    result = Chunks(b"body")
    call(answering(result, length=4))
    assert_closed(result)


def test_after_too_much(log: Log) -> None:
    result = Chunks(b"bo", b"dybody", b"body")
    call(answering(result, length=4))
    assert_closed(result)
    log.take(TOO_LONG)


def test_after_too_little(log: Log) -> None:
    result = Chunks(b"bo")
    call(answering(result, length=4))
    assert_closed(result)
    log.take(TOO_SHORT)


def test_without_start_response(log: Log) -> None:
    result = Chunks(b"body")
    call(lambda _environ, _start: result)
    assert_closed(result)
    log.take(FAILED)


@pytest.mark.parametrize("bad", ["text", None])
def test_after_a_chunk_that_is_not_bytes(bad: Any, log: Log) -> None:
    result = Chunks(b"good", bad, b"never")
    call(answering(result))
    assert_closed(result)
    log.take(FAILED)


@pytest.mark.parametrize("before", [(), (b"",), (b"some",)])
@pytest.mark.parametrize("error", ESCAPES, ids=repr)
def test_after_an_exception_of_the_iterator(
    error: BaseException, before: tuple[bytes, ...], log: Log
) -> None:
    class Raising(Chunks):
        def __next__(self) -> bytes:
            if self.taken < len(self.chunks):
                self.taken += 1
                return self.chunks[self.taken - 1]
            raise error

        def __iter__(self) -> Any:
            return self

    result = Raising(*before)
    sink = call(answering(result))
    assert_closed(result)
    if isinstance(error, StopIteration):  # from `__next__` it is the end
        assert (sink.status, sink.whole) == ("200 OK", True)
    elif any(before):
        assert (sink.status, sink.body, sink.whole) == ("200 OK", b"some", False)
        log.take(FAILED)
    else:
        assert (sink.status, sink.whole) == ("500 Internal Server Error", True)
        log.take(FAILED)


@pytest.mark.parametrize("error", ESCAPES, ids=repr)
def test_after_an_iterator_that_cannot_be_had(error: BaseException, log: Log) -> None:
    class Raising(Chunks):
        def __iter__(self) -> Any:
            raise error

    result = Raising()
    assert call(answering(result)).status == "500 Internal Server Error"
    assert_closed(result)
    log.take(FAILED)


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_after_the_client_left(writes: int, log: Log) -> None:
    result = Chunks(*[b"chunk"] * 10)
    sink = call(answering(result), sink=RecordingSink(client_leaves_after=writes))
    assert (sink.body, sink.whole, result.taken) == (b"chunk" * writes, False, writes + 1)
    assert_closed(result)
    log.take(LEFT)


def test_a_generator_is_closed_where_it_stands(log: Log) -> None:
    events: list[str] = []

    def app(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        try:
            yield b"one"
            yield b"two"
            events.append("never")
        except GeneratorExit:
            events.append("left")
            raise
        finally:
            events.append("cleaned up")

    call(app, sink=RecordingSink(client_leaves_after=1))
    assert events == ["left", "cleaned up"]
    log.take(LEFT)


@pytest.mark.parametrize("error", ESCAPES, ids=repr)
def test_an_exception_of_close_is_logged_and_stays(error: BaseException, log: Log) -> None:
    result = Chunks(b"bo", b"dy", on_close=error)
    sink = call(answering(result))
    assert (sink.body, sink.whole) == (b"body", True)
    assert_closed(result)
    assert type(error).__name__ in log.take(CLOSE_FAILED)


def test_an_exception_of_close_behind_another(log: Log) -> None:
    result = Chunks(b"body", raising=ValueError("the first"), on_close=OSError("the second"))
    assert not call(answering(result)).whole
    assert_closed(result)
    assert "the first" in log.take(FAILED)
    assert "the second" in log.take(CLOSE_FAILED)


def test_an_exception_of_close_after_the_client_left(log: Log) -> None:
    result = Chunks(b"body", on_close=OSError("the second"))
    call(answering(result), sink=RecordingSink(client_leaves_after=0))
    assert_closed(result)
    log.take(LEFT)
    log.take(CLOSE_FAILED)


def test_a_close_that_cannot_be_had_is_logged_and_stays(log: Log) -> None:
    """A proxy whose attributes raise (werkzeug's LocalProxy outside of its context does)."""

    class Proxy:
        def __iter__(self) -> Any:
            return iter([b"body"])

        @property
        def close(self) -> Callable[[], None]:
            raise RuntimeError("out of context")

    sink = call(answering(Proxy()))
    assert (sink.body, sink.whole) == (b"body", True)
    log.take(CLOSE_FAILED)


def test_close_comes_after_the_last_chunk() -> None:
    sink = RecordingSink()
    seen: list[list[str]] = []

    class Watching(SizedChunks):
        def close(self) -> None:
            seen.append(sink.calls[:])

    call(answering(Watching(2, b"bo", b"dy")), sink=sink)
    assert seen == [["begin", "write", "write", "finish"]]


def test_only_what_was_returned_is_closed() -> None:
    """PEP 3333 has middleware close what it wraps; the server must not do it for it."""
    inner = Chunks(b"body")

    class Outer(Chunks):
        def __iter__(self) -> Any:
            return iter(inner)

    outer = Outer()
    call(answering(outer))
    assert_closed(outer)
    assert inner.closed_in == []


def test_all_of_it_runs_in_the_calling_thread() -> None:
    seen: list[int] = []

    class Watching(Chunks):
        def __iter__(self) -> Any:
            seen.append(threading.get_ident())
            yield b"body"
            seen.append(threading.get_ident())

    result = Watching()

    def app(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        seen.append(threading.get_ident())
        start_response("200 OK", TEXT)
        return result

    thread = threading.Thread(target=run, args=(app,))
    thread.start()
    thread.join(20)
    assert seen + result.closed_in == [thread.ident] * 4


def run(app: WSGIApplication) -> None:
    call(app)
