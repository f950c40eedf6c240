"""An app that sends the request's body back while it comes, on the loop or in a thread."""

import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

BLOCK = 65536


class Echo:
    """/loop answers with an async body, /thread with a generator; both have the request's length.

    Anything else is answered with the number of threads that such calls hold: each from the call on, until
    the async body is returned or the generator is closed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held = 0

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Any:
        length = environ.get("CONTENT_LENGTH")
        sized = [("Content-Length", length)] if length else []
        match environ["PATH_INFO"]:
            case "/loop":
                self._count(1)
                try:
                    start_response("200 OK", sized)
                    return on_loop(environ["waitress_async.body"])
                finally:
                    self._count(-1)
            case "/thread":
                self._count(1)
                start_response("200 OK", sized)
                return self._in_thread(environ["wsgi.input"])
            case _:
                return self._answer(start_response)

    def _in_thread(self, file: BinaryIO) -> Iterator[bytes]:
        try:
            while data := file.read(BLOCK):
                yield data
        finally:
            self._count(-1)

    def _answer(self, start_response: "StartResponse") -> Iterable[bytes]:
        body = b"%d" % self._held
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    def _count(self, change: int) -> None:
        with self._lock:
            self._held += change


async def on_loop(body: Any) -> AsyncIterator[bytes]:
    while data := await body.read(BLOCK):
        yield data


app = Echo()
