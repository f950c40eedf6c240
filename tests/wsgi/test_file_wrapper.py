"""PEP 3333 "Optional Platform-Specific File Handling": `wsgi.file_wrapper`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from io import BytesIO, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.wsgi.calling import TEXT, RecordingSink, call
from tests.wsgi.logs import Log
from waitress_async.wsgi import Environ

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

TOO_SHORT = "WARNING waitress_async: application returned too few bytes"
LEFT = "INFO waitress_async: Client disconnected while serving /"

CONTENT = bytes(range(256)) * 1024


class Stream:
    """The least that PEP 3333 asks of a file: `read(size)`."""

    def __init__(self, content: bytes) -> None:
        self._file = BytesIO(content)
        self.sizes: list[int] = []

    def read(self, size: int) -> bytes:
        self.sizes.append(size)
        return self._file.read(size)


class Pipe(RawIOBase):
    """A file that has all the methods, of which `seek` and `tell` fail."""

    def __init__(self, content: bytes) -> None:
        self._file = BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer)


def sending(
    file: Any, *arguments: int, length: int | None = None, status: str = "200 OK", written: bytes = b""
) -> WSGIApplication:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        headers = [] if length is None else [("Content-Length", str(length))]
        write = start_response(status, [*TEXT, *headers])
        write(written)
        result: Iterable[bytes] = environ["wsgi.file_wrapper"](file, *arguments)
        return result

    return app


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("position", [0, 1, 1000, len(CONTENT) - 1, len(CONTENT), len(CONTENT) + 1])
def test_a_file_from_its_position(path: Path, position: int) -> None:
    with path.open("rb") as file:
        file.seek(position)
        sink = call(sending(file))
        assert file.closed
    assert sink.body == CONTENT[position:]
    assert (sink.content_length, sink.whole) == (len(sink.body), True)


@pytest.mark.parametrize("buffering", [-1, 0])
def test_a_file_of_any_kind(path: Path, buffering: int) -> None:
    sink = call(sending(path.open("rb", buffering)))
    assert (sink.content_length, sink.body) == (len(CONTENT), CONTENT)


def test_a_file_in_memory() -> None:
    sink = call(sending(BytesIO(CONTENT)))
    assert (sink.content_length, sink.body) == (len(CONTENT), CONTENT)


def test_a_file_is_sent_in_pieces(path: Path) -> None:
    sink = call(sending(path.open("rb"), 10_000))
    assert max(map(len, sink.chunks)) == 10_000
    assert sink.body == CONTENT


@pytest.mark.parametrize("make", [Stream, Pipe])
def test_what_cannot_seek_is_sent_to_its_end(make: Any) -> None:
    sink = call(sending(make(CONTENT), 5000))
    assert (sink.content_length, sink.body, sink.whole) == (None, CONTENT, True)


@pytest.mark.parametrize("make", [Stream, Pipe])
def test_what_cannot_seek_with_a_length(make: Any) -> None:
    sink = call(sending(make(CONTENT), length=len(CONTENT)))
    assert (sink.content_length, sink.body, sink.whole) == (len(CONTENT), CONTENT, True)


def test_a_block_size_is_what_is_read() -> None:
    stream = Stream(CONTENT)
    call(sending(stream, 100_000))
    assert set(stream.sizes) == {100_000}


def test_the_apps_length_is_what_is_sent(path: Path) -> None:
    """So an app sends a part of a file, from where it has set it; nobody is blamed for the rest."""
    with path.open("rb") as file:
        file.seek(10)
        sink = call(sending(file, 100, length=250))
    assert (sink.content_length, sink.body, sink.whole) == (250, CONTENT[10:260], True)


def test_a_file_that_is_shorter_than_the_apps_length(path: Path, log: Log) -> None:
    sink = call(sending(path.open("rb"), length=len(CONTENT) + 1))
    assert (sink.content_length, sink.body, sink.whole) == (len(CONTENT) + 1, CONTENT, False)
    log.take(TOO_SHORT)


class Changing(RecordingSink):
    """While it is written to, the file at `path` gets shorter or longer."""

    def __init__(self, path: Path, content: bytes) -> None:
        super().__init__()
        self.path = path
        self.content = content

    def write(self, data: bytes) -> None:
        self.path.write_bytes(self.content)
        super().write(data)


def test_a_file_that_shrinks_meanwhile(path: Path, log: Log) -> None:
    """Its length was promised when the head was sent."""
    sink = call(sending(path.open("rb", 0), 1000), sink=Changing(path, CONTENT[:1500]))
    assert (sink.content_length, sink.body, sink.whole) == (len(CONTENT), CONTENT[:1500], False)
    log.take(TOO_SHORT)


def test_a_file_that_grows_meanwhile(path: Path) -> None:
    sink = call(sending(path.open("rb", 0), 1000), sink=Changing(path, CONTENT + b"more"))
    assert (sink.content_length, sink.body, sink.whole) == (len(CONTENT), CONTENT, True)


def test_an_empty_file() -> None:
    sink = call(sending(BytesIO()))
    assert (sink.content_length, sink.body, sink.whole) == (0, b"", True)


def test_a_file_after_a_write(path: Path) -> None:
    sink = call(sending(path.open("rb"), written=b"before"))
    assert (sink.content_length, sink.body, sink.whole) == (None, b"before" + CONTENT, True)


def test_head(path: Path) -> None:
    with path.open("rb") as file:
        sink = call(sending(file), "HEAD")
        assert file.closed
    assert (sink.content_length, sink.body, sink.whole) == (len(CONTENT), b"", True)


def test_the_file_is_closed_when_the_client_leaves(path: Path, log: Log) -> None:
    file = path.open("rb")
    sink = call(sending(file, 1000), sink=RecordingSink(client_leaves_after=2))
    assert (sink.body, sink.whole, file.closed) == (CONTENT[:2000], False, True)
    log.take(LEFT)


def test_a_file_without_close() -> None:
    assert call(sending(Stream(CONTENT))).whole


def test_an_error_of_the_file_cuts(log: Log) -> None:
    class Broken(Stream):
        def read(self, size: int) -> bytes:
            if self.sizes:
                raise OSError("the disk is on fire")
            return super().read(size)

    sink = call(sending(Broken(CONTENT), 1000))
    assert (sink.body, sink.whole) == (CONTENT[:1000], False)
    assert "the disk is on fire" in log.take("ERROR waitress_async: Exception while serving /")


def test_middleware_may_wrap_the_wrapper(path: Path) -> None:
    """It is an iterable as any other, which PEP 3333 lets middleware take apart."""

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        with path.open("rb") as file:
            for chunk in sending(file, 1000)(environ, start_response):
                yield chunk.swapcase()

    sink = call(app)
    assert (sink.content_length, sink.body) == (None, CONTENT.swapcase())


def test_the_wrapper_is_a_class() -> None:
    """Frameworks test with isinstance() whether a result is one."""

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        wrapper = environ["wsgi.file_wrapper"]
        assert isinstance(wrapper(BytesIO()), wrapper)
        return []

    assert call(app).status == "200 OK"
