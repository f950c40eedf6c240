"""One call of a WSGI app, from `app(environ, start_response)` to `close()`, all in one thread (PEP 3333)."""

from __future__ import annotations

import contextlib
import enum
import logging
import traceback
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from contextvars import Context, copy_context
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol

from waitress_async.buffers import ReadOnlyFileBasedBuffer
from waitress_async.errors import (
    ClientDisconnected,
    HTTPError,
    InternalServerError,
    ResponseNotStored,
    ServiceUnavailable,
)
from waitress_async.http import HeadEncoder, ResponseHead, error_response
from waitress_async.wsgi.environ import Environ, logged_path

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

logger = logging.getLogger("waitress_async")

ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]

# A list of chunks up to this size, in bytes, is joined and sent as one.
_JOIN_LIMIT: Final = 65_536

# A body up to this size, in bytes, is sent with its head in one step.
_SMALL_ANSWER: Final = 4_096

# A file up to this size, in bytes, is read by the app's thread: sending it in another way costs more.
_SMALL_FILE: Final = 65_536

# Nested calls that `write` may need, down into the loop's `call_soon_threadsafe` in its debug mode.
_WRITE_DEPTH: Final = 40

_TOO_LONG: Final = (
    "application-written content exceeded the number of bytes specified by Content-Length header (%s)"
)
_NOT_ALLOWED: Final = (
    "application-written content was ignored due to HTTP response that may not contain a message-body: (%s)"
)


class Sink(Protocol):
    """Where a response goes. `begin` once, `write` any number of times, then `finish` or `abort` once."""

    def hint(self, response: bytes) -> None:
        """Send a whole 103 (Early Hints) response, before the head. Raises ValueError when it is too much."""

    def begin(self, head: ResponseHead, length: int | None) -> None:
        """Set the head, and the body's length where it is known and the head does not say it."""

    def write(self, data: bytes) -> None:
        """Send some of the body. May wait for the client. Raises ClientDisconnected, ResponseNotStored."""

    def finish(self, chunks: Sequence[bytes]) -> None:
        """Send the last of the body, maybe nothing or all of it. Raises ResponseNotStored."""

    def answer(self, head: ResponseHead, body: bytes) -> None:
        """Send a small response that is all there, in place of `begin` and `finish`."""

    def finish_file(self, descriptor: int, offset: int, size: int, close: Callable[[], object]) -> None:
        """Send `size` bytes of a file, from `offset` on, as the last of the body.

        `close()` is called once, on a thread where apps may run, when that is done or nobody wants it. Raises
        OSError if it cannot be done so, and `close` is forgotten.
        """

    def can_go_on(self) -> bool:
        """Whether `finish_async` may be called, once."""

    def finish_async(self, iterable: AsyncIterable[bytes], context: Context, path: str) -> None:
        """Send what an async iterable yields, as the rest of the body."""

    def discard_async(self, iterable: AsyncIterable[bytes], context: Context, path: str) -> None:
        """Close an async iterable that is not wanted. `path` is for the log."""

    def abort(self) -> None:
        """Send what was written, then cut, so that the client sees that the body is not whole."""

    def is_closed(self) -> bool:
        """Whether the client is known to be gone."""


def run_application(
    app: WSGIApplication,
    environ: Environ,
    sink: Sink,
    encoder: HeadEncoder,
    expose_tracebacks: bool = False,
) -> None:
    """Call the app, send its response to `sink`, and close its iterable exactly once, on every way out.

    A file that is handed to `Sink.finish_file` is closed later, by that. Returns normally whatever the app
    raises: before the head was sent that is a 500, after it the response is cut; both are logged. What the
    app keeps of the call, `start_response` and `write`, raises ValueError from then on, in any thread.
    """
    response = _Response(environ, sink, encoder)
    environ["waitress_async.stream"] = response.go_on_with
    environ["wsgi.early_hints"] = response.hint
    result: Iterable[bytes] | None = None
    try:
        result = app(environ, response.start_response)
        if response.send(result):
            result = None  # nothing to close, or somebody else's
    except ResponseNotStored:
        pass  # logged where it was raised
    except BaseException as error:
        if isinstance(error, ClientDisconnected) and response.is_client_gone:
            response.client_disconnected()
        else:
            _log_exception("Exception while serving %s", response.path)
            response.fail(error, expose_tracebacks)
    finally:
        phase, response.phase = response.phase, _OVER
        if result is not None:
            _close(result, response)
        if response.rest is not None:
            response.hand_over(wanted=phase is _ASYNC)


def _close(result: object, response: _Response) -> None:
    try:
        close: Callable[[], object] | None = getattr(result, "close", None)
        if close is not None:
            close()
    except BaseException:
        _log_exception("Exception in close() while serving %s", response.path)


def _log_exception(message: str, path: str) -> None:
    """Log the exception that is being handled. It is the app's, and so is what a traceback asks of it:
    logging passes on what that raises, if it is a RecursionError or no Exception."""
    try:
        logger.exception(message, path)
    except BaseException as error:
        with contextlib.suppress(BaseException):
            logger.error(message + ": it cannot be shown (%s)", path, type(error).__name__)


class _Phase(enum.Enum):
    HEAD = "the head can still be changed"
    BODY = "the head is with the sink"
    COMPLETE = "the sink has all that it will get"
    GONE = "the client has left"
    ASYNC = "the rest comes from an async iterable"
    OVER = "the call of the app is over"


# Looked up often, and an attribute of an Enum class is a slow one.
_HEAD, _BODY, _COMPLETE, _GONE, _ASYNC, _OVER = _Phase


class _Response:
    """The state of one response as the app's thread sees it, and the accounting of its body."""

    __slots__ = (
        "_encoder",
        "_head",
        "_is_head",
        "_length",
        "_path",
        "_remaining",
        "_sink",
        "_surplus",
        "phase",
        "rest",
    )

    def __init__(self, environ: Environ, sink: Sink, encoder: HeadEncoder) -> None:
        # The environ is the app's to change once it has been called.
        self._path: str = environ["PATH_INFO"]
        self._is_head = environ["REQUEST_METHOD"] == "HEAD"
        self._sink = sink
        self._encoder = encoder
        self.phase = _HEAD
        self._head: ResponseHead | None = None
        self._length: int | None = None
        self._remaining: int | None = None  # bytes still to come, where the length is known
        self._surplus = _TOO_LONG  # what to log when more comes after that; "" to log nothing
        self.rest: tuple[AsyncIterable[bytes], Context] | None = None  # what the body goes on with

    @property
    def path(self) -> str:
        """The request's path, escaped for a log line."""
        return logged_path(self._path)

    @property
    def is_client_gone(self) -> bool:
        """Whether a ClientDisconnected can be this request's: it may come from another one's body, too."""
        return self.phase is _GONE or self.phase is _COMPLETE or self._sink.is_closed()

    def start_response(
        self, status: str, headers: Sequence[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], object]:
        """PEP 3333 "The start_response() Callable"."""
        if exc_info is not None and exc_info[1] is not None:
            try:
                if self.phase is not _HEAD:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # break the cycle through the traceback's frame
        elif self.phase is _OVER:
            raise ValueError("start_response was called after the end of the response")
        elif self._head is not None:
            raise AssertionError("start_response was called a second time, without exc_info")
        if self.rest is not None:  # the length that a framework has counted is that of what it returns
            headers = [header for header in headers if header[0].lower() != "content-length"]
        self._head = self._encoder.encode(status, headers)
        return self.write

    def write(self, data: bytes) -> None:
        """PEP 3333 "The write() Callable": on return the bytes are with the server."""
        _check_chunk(data)
        if data:
            _reserve_stack(_WRITE_DEPTH)
            self._begin(None)
            self._write(data)

    def hint(self, headers: Iterable[tuple[str, str]]) -> None:
        """environ["wsgi.early_hints"]: tell the client what it will need, before the response (RFC 8297).

        Without effect when the response has begun, and for a client of HTTP/1.0. Raises TypeError and
        ValueError as `start_response` does, and ValueError for a Content-Length and for what is too much.
        """
        response = self._encoder.encode_hints(headers)
        if self.phase is _HEAD:
            self._sink.hint(response)

    def go_on_with(self, iterable: AsyncIterable[bytes]) -> None:
        """environ["waitress_async.stream"]: have what `iterable` yields follow what the app returns.

        It is drained on the server's loop, in a copy of the context of this call, when the app's iterable is
        at its end and closed. A Content-Length that `start_response` is given after this is left out. Raises
        TypeError for what is no async iterable, and RuntimeError the second time, and after the end of the
        response.
        """
        if not hasattr(type(iterable), "__aiter__"):
            raise TypeError(f"an async iterable of bytes is wanted, not {type(iterable).__name__}")
        if self.rest is not None:
            raise RuntimeError("the response goes on with another async iterable already")
        if self.phase is not _HEAD and self.phase is not _BODY:
            raise RuntimeError("the response has ended")
        self.rest = iterable, copy_context()

    def _go_on_with_result(self, iterable: AsyncIterable[bytes]) -> None:
        try:
            self.go_on_with(iterable)
        except RuntimeError:
            if self.rest is None or self.rest[0] is not iterable:
                self._sink.discard_async(iterable, copy_context(), self.path)
            raise

    def hand_over(self, *, wanted: bool) -> None:
        """Hand over what the body goes on with, or have it closed."""
        assert self.rest is not None
        iterable, context = self.rest
        if wanted:
            self._sink.finish_async(iterable, context, self.path)
        else:
            self._sink.discard_async(iterable, context, self.path)

    def send(self, result: Iterable[bytes]) -> bool:
        """Send what the app returned. Returns whether it is not to be closed: it is a plain list, or still in
        use, and its user closes it."""
        if isinstance(result, list | tuple) and self.rest is None:
            if len(result) != 1 or not self._is_answer(result[0]):
                self._send_complete(result)
            return type(result) is list
        if hasattr(type(result), "__aiter__") and not hasattr(type(result), "__iter__"):  # Django's has both
            self._go_on_with_result(result)  # type: ignore[arg-type]
            self._end()
            return True
        if type(result) is ReadOnlyFileBasedBuffer and self.rest is None and self._send_file(result):
            return True
        length = None if self.rest is not None else self._length_of_file(result)
        single = length is None and self.rest is None and _is_single(result)
        for chunk in result:
            _check_chunk(chunk)
            if chunk:
                self._begin(len(chunk) if single else length)
                if not self._write(chunk):
                    break
        self._end()
        return False

    def _send_complete(self, chunks: list[bytes] | tuple[bytes, ...]) -> None:
        """Send a body that is all there: with the head, at once, whatever the client does."""
        chunks = tuple(chunks)  # a list may be another request's too, and change meanwhile
        length = 0
        for chunk in chunks:
            _check_chunk(chunk)
            length += len(chunk)
        if len(chunks) > 1 and length <= _JOIN_LIMIT:
            chunks = (b"".join(chunks),)
        self._begin(length)
        if self.phase is _BODY and (self._remaining is None or self._remaining == length):
            self._remaining = 0
            self._finish(chunks)
            return
        for chunk in chunks:
            if chunk and not self._write(chunk):
                break
        self._end()

    def _is_answer(self, body: bytes) -> bool:
        """Send a body if it is small, and nothing has to be said of it. Returns whether that is so."""
        head = self._head
        if self.phase is not _HEAD or head is None or self._is_head or not head.allows_body:
            return False
        if (
            type(body) is not bytes
            or len(body) > _SMALL_ANSWER
            or head.content_length not in (None, len(body))
        ):
            return False
        self.phase = _COMPLETE
        self._surplus = ""
        self._sink.answer(head, body)
        return True

    def _send_file(self, file: ReadOnlyFileBasedBuffer) -> bool:
        """Hand over a real file, to be sent without a thread. Returns whether that was done."""
        descriptor = file.descriptor()
        head = self._head
        if descriptor is None or self.phase is not _HEAD or head is None:
            return False
        size = file.prepare()
        count = size if head.content_length is None else head.content_length
        if not _SMALL_FILE < count <= size:
            return False
        self._begin(count)
        if self.phase is not _BODY:  # to a HEAD request, say
            return False
        close = partial(copy_context().run, _close, file, self)
        try:
            self._sink.finish_file(descriptor, file.file.tell(), count, close)
        except OSError:  # no descriptor is left for it
            return False
        self.phase = _COMPLETE
        return True

    def _length_of_file(self, result: Iterable[bytes]) -> int | None:
        """The length of a wsgi.file_wrapper over a real file, from its current position."""
        if isinstance(result, ReadOnlyFileBasedBuffer):
            return result.prepare(self._head.content_length if self._head else None) or None
        return None

    def _begin(self, length: int | None) -> None:
        """Give the head to the sink, when the first of the body is there. `length`: of the body, if known."""
        if self.phase is not _HEAD:
            return
        head = self._head
        if head is None:
            raise AssertionError("start_response was not called before the first of the body")
        if self._is_head or not head.allows_body:
            self._surplus = "" if self._is_head else _NOT_ALLOWED
            self._sink.begin(head, length or None)
            self._finish(())
        else:
            self._length = length if head.content_length is None else head.content_length
            self._remaining = self._length
            self._sink.begin(head, length)
            self.phase = _BODY

    def _write(self, data: bytes) -> bool:
        """Count and send a non-empty chunk; what fills the length finishes the response.

        Returns whether it is worth asking the app for more.
        """
        if self.phase is _GONE:
            raise ClientDisconnected("the client is gone")
        if self.phase is _OVER:
            raise ValueError("write() was called after the end of the response")
        if self.phase is _COMPLETE:
            self._refuse_surplus()
            return False
        if self._remaining is not None:
            if len(data) > self._remaining:
                self._refuse_surplus()
                data = data[: self._remaining]
            self._remaining -= len(data)
            if not self._remaining:
                self._finish((data,))
                return bool(self._surplus)
        try:
            self._sink.write(data)
        except ClientDisconnected:
            self.client_disconnected()
            raise
        except ResponseNotStored as error:
            self._not_stored(error)
            raise
        return True

    def _not_stored(self, error: ResponseNotStored) -> None:
        logger.error("The response to %s is cut, for it could not be stored: %s", self.path, error)
        self.cut()
        self.phase = _GONE

    def _refuse_surplus(self) -> None:
        if self._surplus:
            logger.warning(self._surplus, self.path)
            self._surplus = ""

    def _finish(self, chunks: Sequence[bytes]) -> None:
        self.phase = _COMPLETE
        try:
            self._sink.finish(chunks)
        except ResponseNotStored as error:
            self._not_stored(error)

    def _end(self) -> None:
        """The app has nothing more to give."""
        if self.rest is not None:
            self._go_on()
            return
        if self.phase is _HEAD:
            self._begin(0)
        if self.phase is not _BODY:
            return
        if self._remaining:
            assert self._length is not None
            logger.warning(
                "application returned too few bytes (%s) for specified Content-Length (%s) via app_iter (%s)",
                self._length - self._remaining,
                self._length,
                self.path,
            )
            self.cut()
        else:
            self._finish(())

    def _go_on(self) -> None:
        """The rest comes from an async iterable, if there may be one more of them."""
        if self.phase is _COMPLETE:
            self._refuse_surplus()
        if self.phase is not _HEAD and self.phase is not _BODY:
            return
        has_body = not self._is_head and self._head is not None and self._head.allows_body
        if has_body and not self._sink.can_go_on():
            if self.phase is _BODY:
                logger.error(
                    "The response to %s is cut, for there are too many streams (max_streams)", self.path
                )
            self._answer(ServiceUnavailable("Too many streams.", setting="max_streams", retry_after=1))
            return
        self._begin(None)
        if self.phase is _BODY:
            self.phase = _ASYNC

    def client_disconnected(self) -> None:
        """Nobody is there to send the rest to."""
        if self.phase is _HEAD or self.phase is _BODY:
            logger.info("Client disconnected while serving %s", self.path)
            self.cut()
            self.phase = _GONE

    def cut(self) -> None:
        """Let the client see that what it has is not the whole."""
        if self.phase is _HEAD or self.phase is _BODY:
            self.phase = _COMPLETE
            self._sink.abort()

    def fail(self, error: BaseException, expose_tracebacks: bool) -> None:
        """Answer for an app that raised."""
        detail = "The application failed, and the server's log says how."
        if expose_tracebacks:
            with contextlib.suppress(BaseException):  # see _log_exception
                detail = "".join(traceback.format_exception(error))
        self._answer(InternalServerError(detail))

    def _answer(self, error: HTTPError) -> None:
        """Answer in the app's stead, or cut what it has begun."""
        if self.phase is not _HEAD:
            self.cut()
            return
        self._head, body = error_response(error, self._encoder)
        self._begin(len(body))
        self._write(body)


def _check_chunk(chunk: bytes) -> None:
    if not isinstance(chunk, bytes):
        raise TypeError(f"a WSGI app must yield and write bytes, not {type(chunk).__name__}")


def _reserve_stack(calls: int) -> None:
    """Raise RecursionError now, and not in the midst of something, unless there is room for so many calls."""
    if calls:
        _reserve_stack(calls - 1)


def _is_single(result: Iterable[bytes]) -> bool:
    """Whether `result` says that it has exactly one chunk (PEP 3333 "Handling the Content-Length Header")."""
    try:
        return len(result) == 1  # type: ignore[arg-type]
    except Exception:  # most often TypeError, but __len__ is the app's
        return False
