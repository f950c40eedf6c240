"""PEP 3333 "Optional Platform-Specific File Handling": `wsgi.file_wrapper`."""

from __future__ import annotations

import gzip
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from contextvars import ContextVar, copy_context
from io import BufferedRandom, BufferedReader, BytesIO, FileIO, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import pytest

from tests.wsgi.calling import TEXT, HandedOver, RecordingSink, call, make_environ
from tests.wsgi.logs import Log
from waitress_async.http import HeadEncoder
from waitress_async.wsgi import Environ, run_application

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

TOO_SHORT = "WARNING waitress_async: application returned too few bytes"
LEFT = "INFO waitress_async: Client disconnected while serving /"
CLOSE_FAILED = "ERROR waitress_async: Exception in close() while serving /"
NOT_ALLOWED = "WARNING waitress_async: application-written content was ignored"

CONTENT = bytes(range(256)) * 1024

# As much as is read by the app's thread, whatever the file is.
SMALL = CONTENT[:65_536]


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


@pytest.fixture
def small_path(tmp_path: Path) -> Path:
    path = tmp_path / "small"
    path.write_bytes(SMALL)
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


def test_a_file_is_sent_in_pieces(small_path: Path) -> None:
    for file, content in ((small_path.open("rb"), SMALL), (BytesIO(CONTENT), CONTENT)):
        sink = call(sending(file, 10_000))
        assert max(map(len, sink.chunks)) == 10_000
        assert sink.body == content


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


def test_a_file_that_shrinks_meanwhile(small_path: Path, log: Log) -> None:
    """Its length was promised when the head was sent."""
    sink = call(sending(small_path.open("rb", 0), 1000), sink=Changing(small_path, SMALL[:1500]))
    assert (sink.content_length, sink.body, sink.whole) == (len(SMALL), SMALL[:1500], False)
    log.take(TOO_SHORT)


def test_a_file_that_grows_meanwhile(small_path: Path) -> None:
    sink = call(sending(small_path.open("rb", 0), 1000), sink=Changing(small_path, SMALL + b"more"))
    assert (sink.content_length, sink.body, sink.whole) == (len(SMALL), SMALL, True)


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


def test_the_file_is_closed_when_the_client_leaves(small_path: Path, log: Log) -> None:
    file = small_path.open("rb")
    sink = call(sending(file, 1000), sink=RecordingSink(client_leaves_after=2))
    assert (sink.body, sink.whole, file.closed) == (SMALL[:2000], False, True)
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


# -- files that are handed over: sent by the server, without the app's thread


def begin(app: WSGIApplication, method: str = "GET") -> tuple[RecordingSink, HandedOver | None]:
    """Call the app; what the sink does later with the file is left to the test."""
    sink = RecordingSink()
    environ = make_environ()
    environ["REQUEST_METHOD"] = method
    run_application(app, environ, sink, HeadEncoder())
    assert sink.breaches == []
    assert sink.ended
    return sink, sink.file


def handed_over(app: WSGIApplication) -> HandedOver:
    sink, file = begin(app)
    assert sink.calls == ["begin", "finish_file"]
    assert file is not None
    return file


def read_by_the_app(app: WSGIApplication, method: str = "GET") -> RecordingSink:
    sink, file = begin(app, method)
    assert file is None
    return sink


def open_temporary() -> BinaryIO:
    """Written and not flushed: its end is in Python's buffer."""
    file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115
    file.write(CONTENT[:-10])
    file.flush()
    file.write(CONTENT[-10:])
    file.seek(0)
    return file


def open_named_temporary() -> BinaryIO:
    file = tempfile.NamedTemporaryFile()  # noqa: SIM115
    file.write(CONTENT)
    file.seek(0)
    return cast(BinaryIO, file)


REAL: dict[str, Callable[[Path], BinaryIO]] = {
    "buffered": lambda path: path.open("rb"),
    "unbuffered": lambda path: cast(BinaryIO, path.open("rb", 0)),
    "for reading and writing": lambda path: path.open("r+b"),
    "FileIO": lambda path: cast(BinaryIO, FileIO(path)),
    "BufferedReader": lambda path: cast(BinaryIO, BufferedReader(FileIO(path))),
    "BufferedRandom": lambda path: cast(BinaryIO, BufferedRandom(FileIO(path, "r+"))),
    "TemporaryFile": lambda _path: open_temporary(),
    "NamedTemporaryFile": lambda _path: open_named_temporary(),
}


@pytest.fixture(params=REAL)
def real_file(request: pytest.FixtureRequest, path: Path) -> Iterator[BinaryIO]:
    with REAL[request.param](path) as file:
        yield file


def test_a_real_file_is_handed_over(real_file: BinaryIO) -> None:
    file = handed_over(sending(real_file))
    assert (file.descriptor, file.offset, file.count) == (real_file.fileno(), 0, len(CONTENT))
    assert file.read() == CONTENT
    assert not real_file.closed
    file.close()
    assert real_file.closed


@pytest.mark.parametrize("how", ["read", "seek", "read and seek", "a line"])
def test_the_offset_is_where_the_app_stands(real_file: BinaryIO, how: str) -> None:
    """Not where the descriptor stands: Python reads ahead."""
    position = 0
    if how.startswith("read"):
        position = len(real_file.read(1_000))
    if how == "a line":
        position = len(real_file.readline())
    if how.endswith("seek"):
        position = real_file.seek(70_000)
    file = handed_over(sending(real_file))
    assert (file.offset, file.count) == (position, len(CONTENT) - position)
    assert file.read() == CONTENT[position:]


def test_the_apps_position_is_left_alone(real_file: BinaryIO) -> None:
    real_file.seek(1_234)
    real_file.read(1)
    raw = os.lseek(real_file.fileno(), 0, os.SEEK_CUR)
    file = handed_over(sending(real_file))
    assert real_file.tell() == 1_235
    file.read()
    assert real_file.tell() == 1_235
    assert os.lseek(real_file.fileno(), 0, os.SEEK_CUR) <= max(raw, 1_235)
    assert real_file.read(10) == CONTENT[1_235:1_245]


def test_what_was_written_before_is_in_it() -> None:
    """The descriptor's bytes are those of the file object: what Python holds back is written first."""
    with tempfile.TemporaryFile() as target:
        target.write(CONTENT)
        target.seek(100)
        target.write(b"changed")
        target.seek(50)
        file = handed_over(sending(target))
        assert (file.offset, file.count) == (50, len(CONTENT) - 50)
        assert file.read() == CONTENT[50:100] + b"changed" + CONTENT[107:]


def test_of_a_range_only_that(real_file: BinaryIO) -> None:
    real_file.seek(10)
    file = handed_over(sending(real_file, length=100_000))
    assert (file.offset, file.count, file.read()) == (10, 100_000, CONTENT[10:100_010])


def test_the_head_says_how_long_it_is(path: Path) -> None:
    with path.open("rb") as opened:
        sink, _ = begin(sending(opened))
        assert (sink.content_length, sink.length) == (len(CONTENT), len(CONTENT))


def test_one_byte_more_than_small(tmp_path: Path) -> None:
    path = tmp_path / "just large"
    path.write_bytes(CONTENT[:65_537])
    with path.open("rb") as file:
        assert handed_over(sending(file)).count == 65_537


class MyReader(BufferedReader):
    """What reads otherwise than the descriptor would: decrypts, say."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size).swapcase()


class MyFile(FileIO):
    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(-1 if size is None else size).swapcase()

    def readinto(self, buffer: Any, /) -> int:
        data = super().read(len(buffer)).swapcase()
        buffer[: len(data)] = data
        return len(data)


class Delegating:
    """An object of the app's, which shows the descriptor of what it reads from."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")

    def read(self, size: int) -> bytes:
        return self._file.read(size).swapcase()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: MyReader(FileIO(path)),
        MyFile,
        lambda path: BufferedReader(MyFile(path)),
        Delegating,
    ],
    ids=["BufferedReader's subclass", "FileIO's subclass", "a reader of one", "a delegate"],
)
def test_a_file_of_the_apps_own_kind_is_read(make: Callable[[Path], Any], path: Path) -> None:
    with closing(make(path)) as file:
        sink = read_by_the_app(sending(file))
    assert (sink.content_length, sink.body, sink.whole) == (len(CONTENT), CONTENT.swapcase(), True)


def test_what_unpacks_is_read(tmp_path: Path) -> None:
    """Its descriptor is that of the packed bytes."""
    path = tmp_path / "packed"
    content = os.urandom(150_000)
    path.write_bytes(gzip.compress(content))
    with gzip.open(path) as file:
        assert read_by_the_app(sending(file)).body == content


def test_a_file_in_memory_is_read() -> None:
    assert read_by_the_app(sending(BytesIO(CONTENT))).body == CONTENT
    with tempfile.SpooledTemporaryFile(max_size=10**6) as file:
        file.write(CONTENT)
        file.seek(0)
        assert read_by_the_app(sending(file)).body == CONTENT


@pytest.mark.parametrize("buffering", [0, -1])
def test_a_pipe_is_read(buffering: int) -> None:
    readable, writable = os.pipe()

    def write() -> None:
        with open(writable, "wb") as file:
            file.write(CONTENT)

    thread = threading.Thread(target=write)
    thread.start()
    with open(readable, "rb", buffering) as file:
        sink = read_by_the_app(sending(file))
    thread.join()
    assert (sink.content_length, sink.body, sink.whole) == (None, CONTENT, True)


@pytest.mark.parametrize("length", [None, 65_536, 1])
def test_a_small_file_is_read(small_path: Path, length: int | None) -> None:
    with small_path.open("rb") as file:
        sink = read_by_the_app(sending(file, length=length))
        assert (sink.content_length, sink.body) == (length or 65_536, SMALL[: length or 65_536])


def test_a_small_part_of_a_file_is_read(path: Path) -> None:
    with path.open("rb") as file:
        file.seek(len(CONTENT) - 65_536)
        assert read_by_the_app(sending(file)).body == CONTENT[-65_536:]
    with path.open("rb") as file:
        assert read_by_the_app(sending(file, length=1_000)).body == CONTENT[:1_000]


def test_a_file_shorter_than_declared_is_read_and_cut(path: Path, log: Log) -> None:
    with path.open("rb") as file:
        sink = read_by_the_app(sending(file, length=len(CONTENT) + 1))
        assert (sink.body, sink.whole) == (CONTENT, False)
        assert file.closed
    log.take(TOO_SHORT)


@pytest.mark.parametrize("length", [None, len(CONTENT), 100_000])
def test_head_hands_nothing_over(path: Path, length: int | None) -> None:
    with path.open("rb") as file:
        sink = read_by_the_app(sending(file, length=length), "HEAD")
        assert (sink.content_length, sink.body, sink.whole) == (length or len(CONTENT), b"", True)
        assert file.closed


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_a_status_without_a_body_hands_nothing_over(path: Path, status: str, log: Log) -> None:
    with path.open("rb") as file:
        sink = read_by_the_app(sending(file, status=status))
        assert (sink.status, sink.body, sink.whole) == (status, b"", True)
        assert file.closed
    log.take(NOT_ALLOWED)


@pytest.mark.parametrize("length", [None, len(CONTENT) + 6])
def test_after_a_write_it_is_read(path: Path, length: int | None) -> None:
    with path.open("rb") as file:
        sink = read_by_the_app(sending(file, written=b"before", length=length))
        assert (sink.body, sink.whole) == (b"before" + CONTENT, True)
        assert file.closed


def test_without_start_response_it_is_not_sent(path: Path, log: Log) -> None:
    with path.open("rb") as file:
        sink = read_by_the_app(lambda environ, _start: environ["wsgi.file_wrapper"](file))
        assert sink.status == "500 Internal Server Error"
        assert file.closed
    log.take("ERROR waitress_async: Exception while serving /")


def test_inside_of_middleware_it_is_read(path: Path) -> None:
    """The wrapper is not what the outermost app returned."""

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        yield from sending(file)(environ, start_response)

    with path.open("rb") as file:
        assert read_by_the_app(app).body == CONTENT


class Closing:
    """A real file for the wrapper, whose `close` is watched."""

    def __init__(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None
    ) -> None:
        self.file = path.open("rb")
        self.closed: list[str] = []
        self._error = error
        self._monkeypatch = monkeypatch

    def app(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        REQUEST.set("of the request")
        wrapper = environ["wsgi.file_wrapper"](self.file)
        wrapped_close = wrapper.close

        def close() -> None:
            self.closed.append(REQUEST.get())
            wrapped_close()
            if self._error is not None:
                raise self._error

        self._monkeypatch.setattr(wrapper, "close", close)
        result: Iterable[bytes] = wrapper
        return result


REQUEST: ContextVar[str] = ContextVar("request", default="none")


def test_it_is_closed_once_by_the_sink_in_the_requests_context(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server calls from a thread that knows nothing of the request."""
    watched = Closing(path, monkeypatch)
    _, file = copy_context().run(begin, watched.app)
    assert file is not None
    assert (watched.closed, watched.file.closed) == ([], False)
    thread = threading.Thread(target=file.close)
    thread.start()
    thread.join()
    assert (watched.closed, watched.file.closed) == (["of the request"], True)
    assert REQUEST.get() == "none"


@pytest.mark.parametrize("error", [OSError("on fire"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_a_close_that_raises_is_logged(
    error: BaseException, path: Path, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    watched = Closing(path, monkeypatch, error)
    _, file = copy_context().run(begin, watched.app)
    assert file is not None
    file.close()
    assert watched.closed == ["of the request"]
    assert type(error).__name__ in log.take(CLOSE_FAILED)


def test_a_sink_that_fails_leaves_the_closing_to_the_app_s_thread(
    path: Path, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    """Exactly once on every way out, this one too."""

    class Failing(RecordingSink):
        def finish_file(self, descriptor: int, offset: int, count: int, close: Callable[[], object]) -> None:
            self.calls.append("abort")
            raise MemoryError("no more of it")

    watched = Closing(path, monkeypatch)
    sink = Failing()
    copy_context().run(run_application, watched.app, make_environ(), sink, HeadEncoder())
    assert watched.closed == ["of the request"]
    log.take("ERROR waitress_async: Exception while serving /")
