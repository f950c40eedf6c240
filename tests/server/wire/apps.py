"""The app behind the exchanges, written for any WSGI server. The first part of the path says what it does."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    Write = Callable[[bytes], object]

_TEXT: Final = ("Content-Type", "text/plain")


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    what, _, rest = environ["PATH_INFO"].lstrip("/").partition("/")
    if what == "environ":
        start_response("200 OK", [_TEXT])
        return [environ[rest].encode("latin-1")]
    if what == "status":
        return status(rest, start_response)
    if what == "fail":
        return fail(rest, start_response)
    if what == "body":
        way, declared, given = rest.split("/")
        return body(way, declared, int(given), environ, start_response)
    return echo(rest, environ, start_response)


def echo(path: str, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """`/echo/PATH`: a line of what was understood, and the body."""
    start_response("200 OK", [_TEXT])
    length = environ.get("CONTENT_LENGTH") or "-"
    line = f"{environ['REQUEST_METHOD']} /{path} {environ['SERVER_PROTOCOL']} {length}\n"
    return [line.encode("latin-1") + environ["wsgi.input"].read()]


def status(code: str, start_response: StartResponse) -> Iterable[bytes]:
    """`/status/CODE`: that status, and an empty list."""
    start_response(f"{code} Whatever", [("X-Code", code)])
    return []


def fail(when: str, start_response: StartResponse) -> Iterable[bytes]:
    """`/fail/WHEN`: an error, sooner or later."""
    if when == "before":
        raise RuntimeError("before start_response")
    write = start_response("200 OK", [_TEXT])
    if when == "after":
        raise RuntimeError("after start_response")
    if when == "write":
        write(b"written")
        raise RuntimeError("after write")
    return failing(when)


def failing(when: str) -> Iterator[bytes]:
    if when == "generator":
        yield b"yielded"
    raise RuntimeError("in the generator")


def body(
    way: str, declared: str, given: int, environ: WSGIEnvironment, start_response: StartResponse
) -> Iterable[bytes]:
    """`/body/WAY/DECLARED/GIVEN`: so many bytes, in that way, with a Content-Length unless that is `none`."""
    headers = [_TEXT] if declared == "none" else [_TEXT, ("Content-Length", declared)]
    write = start_response("200 OK", headers)
    content = (b"0123456789" * (given // 10 + 1))[:given]
    halves = [content[: given // 2], content[given // 2 :]]
    if way == "list":
        return [content]
    if way == "pieces":
        return iter(halves)
    if way == "write":
        for half in halves:
            write(half)
        return []
    return environ["wsgi.file_wrapper"](FILES[way](content))  # type: ignore[no-any-return]


class ReadOnly:
    """An object that has nothing of a file but read()."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)


class Unseekable(io.RawIOBase):
    """An object of the io module that can be read, and says that it cannot seek."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        return self._file.readinto(buffer)


def on_disk(content: bytes) -> object:
    file = tempfile.TemporaryFile()  # noqa: SIM115  # the server closes it
    file.write(content)
    file.seek(0)
    return file


def closed(content: bytes) -> object:
    file = io.BytesIO(content)
    file.close()
    return file


FILES: Final[dict[str, Callable[[bytes], object]]] = {
    "file": on_disk,
    "memory": io.BytesIO,
    "read-only": ReadOnly,
    "unseekable": Unseekable,
    "closed": closed,
}
