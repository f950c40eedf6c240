"""Apps that raise: a 500 while the head can be changed, a cut after it, a log record, and nothing escapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.wsgi.calling import TEXT, Chunks, RecordingSink, answering, call
from tests.wsgi.logs import Log
from waitress_async.errors import ClientDisconnected, ResponseNotStored
from waitress_async.wsgi import Environ

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

FAILED = "ERROR waitress_async: Exception while serving /"
LEFT = "INFO waitress_async: Client disconnected while serving /"

ERRORS = [ValueError("secret"), OSError("secret"), SystemExit("secret"), KeyboardInterrupt("secret"),
          GeneratorExit("secret"), BaseExceptionGroup("secret", [KeyboardInterrupt()])]  # fmt: skip


def raising(error: BaseException, *, start: bool = False, written: bytes = b"") -> WSGIApplication:
    def app(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if start:
            write = start_response("200 OK", [("X-Old", "1"), ("Content-Length", "1000")])
            write(written)
        raise error

    return app


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_before_the_head_it_is_a_500(error: BaseException, start: bool, log: Log) -> None:
    sink = call(raising(error, start=start))
    assert sink.status == "500 Internal Server Error"
    assert dict(sink.fields) == {
        "Content-Type": "text/plain; charset=utf-8",
        "Content-Length": str(len(sink.body)),
    }
    assert sink.whole
    assert b"secret" not in sink.body
    assert b"Traceback" not in sink.body
    record = log.take(FAILED)
    assert "Traceback (most recent call last)" in record
    assert type(error).__name__ in record


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_after_the_head_the_response_is_cut(error: BaseException, log: Log) -> None:
    sink = call(raising(error, start=True, written=b"some"), expose_tracebacks=True)
    assert (sink.status, sink.body, sink.whole) == ("200 OK", b"some", False)
    assert type(error).__name__ in log.take(FAILED)


def test_after_the_cut_nothing_is_sent(log: Log) -> None:
    """To an app that kept `write`."""
    kept: list[Callable[[bytes], object]] = []

    def app(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        kept.append(start_response("200 OK", TEXT))
        kept[0](b"some")
        raise ValueError

    sink = call(app)
    log.take(FAILED)
    with pytest.raises(ValueError, match="after the end of the response"):
        kept[0](b"more")
    assert (sink.calls, sink.body) == (["begin", "write", "abort"], b"some")


def test_after_the_whole_body_nothing_is_cut(log: Log) -> None:
    """The client has what was promised to it."""

    def app(_environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [*TEXT, ("Content-Length", "4")])
        yield b"body"
        raise ValueError("too late")

    sink = call(app)
    assert (sink.body, sink.whole) == (b"body", True)
    assert "too late" in log.take(FAILED)


def test_to_head_it_is_a_500_without_a_body(log: Log) -> None:
    sink = call(raising(ValueError("x")), "HEAD", expose_tracebacks=True)
    assert (sink.status, sink.body, sink.whole) == ("500 Internal Server Error", b"", True)
    assert sink.content_length
    log.take(FAILED)


def test_tracebacks_are_shown_on_request(log: Log) -> None:
    sink = call(raising(ValueError("\u2713 \ud800")), expose_tracebacks=True)
    assert sink.status == "500 Internal Server Error"
    assert sink.content_length == len(sink.body)
    text = sink.body.decode("utf-8")
    assert "Traceback (most recent call last)" in text
    assert "ValueError: \u2713 \\ud800" in text
    log.take(FAILED)


def test_a_traceback_that_cannot_be_written_is_no_second_error(log: Log) -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise ValueError

    sink = call(raising(Unspeakable()), expose_tracebacks=True)
    assert b"Unspeakable" in sink.body
    log.take(FAILED)


def test_an_app_that_is_none(log: Log) -> None:
    app: Any = None
    assert call(app).status == "500 Internal Server Error"
    log.take(FAILED)


# -- the client left


def test_a_write_tells_the_app(log: Log) -> None:
    def app(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", TEXT)
        write(b"one")
        with pytest.raises(ClientDisconnected):
            write(b"two")
        write(b"three")
        return [b"never reached"]

    sink = call(app, sink=RecordingSink(client_leaves_after=1))
    assert (sink.body, sink.whole) == (b"one", False)
    log.take(LEFT)


def test_it_is_an_oserror_for_the_app(log: Log) -> None:
    """Frameworks know how to be told so."""

    def app(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", TEXT)
        try:
            write(b"one")
        except OSError as error:
            raise ConnectionError from error
        return []

    assert not call(app, sink=RecordingSink(client_leaves_after=0)).whole
    assert "ConnectionError" in log.take(FAILED)
    log.take(LEFT)


def test_an_app_that_makes_do_is_not_blamed_for_the_missing_bytes(log: Log) -> None:
    def app(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", [*TEXT, ("Content-Length", "6")])
        try:
            write(b"one")
            write(b"two")
        except OSError:
            pass
        return []

    assert not call(app, sink=RecordingSink(client_leaves_after=0)).whole
    log.take(LEFT)


# -- a response that the disk did not take


class Unstored(RecordingSink):
    """The first write fails, and has aborted the response, as an output does."""

    def write(self, data: bytes) -> None:
        self.calls.append("write")
        raise ResponseNotStored("the disk is on fire")

    def abort(self) -> None:
        self.calls.append("abort")


def test_a_response_that_cannot_be_stored_is_cut(log: Log) -> None:
    """It is not the app's fault: one line says so, without a traceback."""
    result = Chunks(b"one", b"two")
    sink = call(answering(result), sink=Unstored())
    assert (sink.calls, sink.whole, result.taken) == (["begin", "write", "abort"], False, 1)
    assert len(result.closed_in) == 1
    line = log.take("ERROR waitress_async: The response to / is cut")
    assert "the disk is on fire" in line
    assert "\n" not in line


def test_an_app_that_goes_on_after_a_failed_write(log: Log) -> None:
    """It is an OSError, which an app may catch; what it writes then is not sent behind a gap."""

    def app(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", TEXT)
        with pytest.raises(ResponseNotStored):
            write(b"one")
        return [b"two"]

    sink = call(app, sink=Unstored())
    assert (sink.body, sink.whole) == (b"", False)
    log.take("ERROR waitress_async: The response to / is cut")


# -- what the log says of the path


PATHS = [
    ("/plain", "/plain"),
    ("/\x1b[31mred\x07", "/\\x1b[31mred\\x07"),
    ("/a\r\nERROR forged: line", "/a\\r\\nERROR forged: line"),
    ("/\x00\x7f\x85\xa0\xe9", "/\\x00\\x7f\\x85\\xa0\\xe9"),
    ("/it's", "/it's"),
    ("/\"both'", '/"both'),
    ("/back\\slash", "/back\\\\slash"),
    ("/%s%d%n", "/%s%d%n"),
]


@pytest.mark.parametrize(("path", "written"), PATHS)
def test_the_path_is_escaped(path: str, written: str, log: Log) -> None:
    def short(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [*TEXT, ("Content-Length", "9")])
        return [b"1"]

    def long(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [*TEXT, ("Content-Length", "1")])
        return [b"123"]

    def closing(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        return Chunks(b"1", on_close=ValueError())

    def streaming(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        return Chunks(b"1")

    for app in (short, long, closing, raising(ValueError())):
        call(app, path=path)
    call(streaming, path=path, sink=RecordingSink(client_leaves_after=0))
    for start in (
        "WARNING waitress_async: application returned too few",
        "WARNING waitress_async: application-written content exceeded",
        "ERROR waitress_async: Exception in close() while serving ",
        "ERROR waitress_async: Exception while serving ",
        "INFO waitress_async: Client disconnected while serving ",
    ):
        line = log.take(start).split("\n")[0]
        assert written in line
        assert line.isascii()
        assert line.isprintable()


def test_the_path_is_the_clients(log: Log) -> None:
    """Dispatchers move the front of PATH_INFO to SCRIPT_NAME; the log should still say what was asked for."""

    def app(environ: Environ, _start_response: StartResponse) -> Iterable[bytes]:
        environ["SCRIPT_NAME"], environ["PATH_INFO"] = "/shop", "/basket"
        raise ValueError

    call(app, path="/shop/basket")
    log.take("ERROR waitress_async: Exception while serving /shop/basket")
