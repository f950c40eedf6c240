"""`environ["waitress_async.spool"]`: an upload becomes a file of the app's, if possible without a copy."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import RunningServer, ServeInThread
from tests.server.support import Client, eventually, held, needs_proc, request, temporary_files
from waitress_async.buffers import SpooledBody

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

Connect = Callable[[RunningServer], Client]

OVERFLOW = 100_000
SIZES = [1, OVERFLOW - 1, OVERFLOW, 1_000_000]
LARGE = 1_000_000

FRAMINGS = ["counted", "chunked"]


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def upload(body: bytes, framing: str = "counted") -> bytes:
    if framing == "counted":
        return request("/", method="POST", body=body)
    chunks = [body[start : start + 30_000] for start in range(0, len(body), 30_000)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return request("/", "Transfer-Encoding: chunked\r\n", method="POST") + framed + b"0\r\n\r\n"


class KeepingApp:
    """Links the body to `target`, before or after it is read, and keeps what it saw."""

    def __init__(self, target: Path | None = None) -> None:
        self.target = target
        self.read_before = 0  # bytes
        self.read_after = True
        self.write_before = b""  # at the end of wsgi.input
        self.raised: BaseException | None = None
        self.status: os.stat_result | None = None  # of wsgi.input's file, after all
        self.read = b""
        self.body: SpooledBody | None = None
        self.seen: dict[str, Any] = {}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.body = body = environ["waitress_async.spool"]
        assert isinstance(body, SpooledBody)
        file = environ["wsgi.input"]
        self.seen = {"on_disk": body.on_disk, "size": body.size}
        self.read = file.read(self.read_before)
        self.raised = None
        if self.target is not None:
            try:
                body.link(self.target)
            except BaseException as error:
                self.raised = error
        if self.read_after:
            self.read += file.read()
            assert file.read() == b""
        if body.on_disk:
            self.status = os.fstat(file.fileno())
        start_response("200 OK", [])
        return [b"ok"]


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "spool"
    folder.mkdir()
    return folder


@pytest.fixture
def other_file_system(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than `tmp_path`."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other file system at hand")
    with TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def spool_used(server: RunningServer) -> int:
    return server.server._runtime.spool.used


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("size", SIZES)
def test_where_the_body_is_and_its_size(
    serve_in_thread: ServeInThread, connect: Connect, size: int, framing: str
) -> None:
    app = KeepingApp()
    client = connect(serve_in_thread(app, inbuf_overflow=OVERFLOW))
    for _ in range(2):
        client.send(upload(content(size), framing))
        assert client.receive().body == b"ok"
        assert app.seen == {"on_disk": size >= OVERFLOW, "size": size}
        assert app.read == content(size)


@pytest.mark.parametrize("fields", ["", "Content-Length: 0\r\n", "Transfer-Encoding: chunked\r\n"])
def test_a_request_without_a_body(
    serve_in_thread: ServeInThread, connect: Connect, tmp_path: Path, fields: str
) -> None:
    app = KeepingApp(tmp_path / "kept")
    client = connect(serve_in_thread(app))
    for _ in range(2):
        client.send(request("/", fields, method="POST"))
        if "chunked" in fields:
            client.send(b"0\r\n\r\n")
        assert client.receive().body == b"ok"
        assert app.seen == {"on_disk": False, "size": 0}
        assert app.raised is None
        assert (tmp_path / "kept").read_bytes() == b""
        (tmp_path / "kept").unlink()


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("read_before", [0, 1_000, -1])
@pytest.mark.parametrize("size", SIZES)
def test_a_kept_body(
    serve_in_thread: ServeInThread,
    connect: Connect,
    tmp_path: Path,
    spool: Path,
    size: int,
    read_before: int,
    framing: str,
) -> None:
    app = KeepingApp(tmp_path / "kept")
    app.read_before = read_before
    server = serve_in_thread(app, inbuf_overflow=OVERFLOW, tmp_dir=str(spool))
    client = connect(server)
    client.send(upload(content(size), framing))
    assert client.receive().body == b"ok"
    assert app.raised is None
    assert app.read == content(size)  # wsgi.input stays as it was
    client.sock.close()
    server.stop()
    kept = tmp_path / "kept"
    assert kept.read_bytes() == content(size)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert os.listdir(spool) == []
    assert sorted(os.listdir(tmp_path)) == ["kept", "spool"]


@needs_proc
def test_it_is_the_same_file_and_no_copy(
    serve_in_thread: ServeInThread, connect: Connect, tmp_path: Path, spool: Path
) -> None:
    app = KeepingApp(tmp_path / "kept")
    server = serve_in_thread(app, inbuf_overflow=OVERFLOW, tmp_dir=str(spool))
    before = held()
    client = connect(server)
    client.send(upload(content(LARGE)))
    assert client.receive().body == b"ok"
    client.sock.close()
    kept = (tmp_path / "kept").stat()
    assert app.status is not None
    assert (kept.st_dev, kept.st_ino) == (app.status.st_dev, app.status.st_ino)
    assert kept.st_nlink == 1
    assert kept.st_size == LARGE
    eventually(lambda: held() == before, "as many sockets and files as before")
    assert temporary_files() == 0
    assert spool_used(server) == 0


def test_what_is_kept_is_not_counted_as_temporary(
    serve_in_thread: ServeInThread, connect: Connect, tmp_path: Path, spool: Path
) -> None:
    """Not even while the app runs; what is written into it later neither."""
    used: list[int] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        body = environ["waitress_async.spool"]
        used.append(spool_used(server))
        body.link(tmp_path / f"kept-{len(used)}")
        used.append(spool_used(server))
        start_response("200 OK", [])
        return [b"ok"]

    server = serve_in_thread(app, inbuf_overflow=OVERFLOW, tmp_dir=str(spool), spool_limit=LARGE * 3 // 2)
    client = connect(server)
    for _ in range(3):
        client.send(upload(content(LARGE)))
        assert client.receive().body == b"ok"
    assert used == [LARGE, 0] * 3
    assert len(os.listdir(tmp_path)) == 4


def test_across_file_systems(
    serve_in_thread: ServeInThread, connect: Connect, spool: Path, other_file_system: Path
) -> None:
    app = KeepingApp(other_file_system / "kept")
    app.read_before = 10
    server = serve_in_thread(app, inbuf_overflow=OVERFLOW, tmp_dir=str(spool))
    client = connect(server)
    client.send(upload(content(LARGE)))
    assert client.receive().body == b"ok"
    assert app.raised is None
    assert app.read == content(LARGE)
    kept = other_file_system / "kept"
    assert kept.read_bytes() == content(LARGE)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    eventually(lambda: spool_used(server) == 0, "the temporary file is gone")
    assert os.listdir(spool) == []


def test_twice_is_two_names(
    serve_in_thread: ServeInThread, connect: Connect, tmp_path: Path, spool: Path, other_file_system: Path
) -> None:
    targets = [tmp_path / "one", tmp_path / "two", other_file_system / "three"]
    raised: list[BaseException] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            for target in targets:
                environ["waitress_async.spool"].link(target)
        except BaseException as error:
            raised.append(error)
        start_response("200 OK", [])
        return [b"ok"]

    server = serve_in_thread(app, inbuf_overflow=OVERFLOW, tmp_dir=str(spool))
    client = connect(server)
    client.send(upload(content(LARGE)))
    assert client.receive().body == b"ok"
    assert raised == []
    for target in targets:
        assert target.read_bytes() == content(LARGE)
    eventually(lambda: server.server._runtime.spool.files == 0, "the temporary file is gone")
    assert spool_used(server) == 0


@pytest.mark.parametrize("size", [1_000, LARGE], ids=["memory", "disk"])
@pytest.mark.parametrize("where", ["same", "other"])
def test_an_existing_target_is_left_alone(
    serve_in_thread: ServeInThread,
    connect: Connect,
    tmp_path: Path,
    spool: Path,
    request: pytest.FixtureRequest,
    size: int,
    where: str,
) -> None:
    folder = tmp_path if where == "same" else request.getfixturevalue("other_file_system")
    target = folder / "kept"
    target.write_bytes(b"here before")
    app = KeepingApp(target)
    server = serve_in_thread(app, inbuf_overflow=OVERFLOW, tmp_dir=str(spool))
    client = connect(server)
    client.send(upload(content(size)))
    assert client.receive().body == b"ok"
    assert isinstance(app.raised, FileExistsError)
    assert app.read == content(size)
    assert target.read_bytes() == b"here before"
    eventually(lambda: spool_used(server) == 0, "the temporary file is gone")


@pytest.mark.parametrize("size", [1_000, LARGE], ids=["memory", "disk"])
def test_a_target_in_no_folder(
    serve_in_thread: ServeInThread, connect: Connect, tmp_path: Path, spool: Path, size: int
) -> None:
    app = KeepingApp(tmp_path / "missing" / "kept")
    server = serve_in_thread(app, inbuf_overflow=OVERFLOW, tmp_dir=str(spool))
    client = connect(server)
    client.send(upload(content(size)))
    assert client.receive().body == b"ok"
    assert isinstance(app.raised, FileNotFoundError)
    assert app.read == content(size)


@pytest.mark.parametrize("size", [1_000, LARGE], ids=["memory", "disk"])
def test_what_the_app_wrote_into_it_is_kept_too(
    serve_in_thread: ServeInThread, connect: Connect, tmp_path: Path, spool: Path, size: int
) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        file = environ["wsgi.input"]
        file.seek(0, os.SEEK_END)
        file.write(b"and this")
        environ["waitress_async.spool"].link(tmp_path / "kept")
        start_response("200 OK", [])
        return [b"ok"]

    client = connect(serve_in_thread(app, inbuf_overflow=OVERFLOW, tmp_dir=str(spool)))
    client.send(upload(content(size)))
    assert client.receive().body == b"ok"
    assert (tmp_path / "kept").read_bytes() == content(size) + b"and this"


@pytest.mark.parametrize("size", [1_000, LARGE], ids=["memory", "disk"])
def test_after_the_app_has_ended_it_is_too_late(
    serve_in_thread: ServeInThread, connect: Connect, tmp_path: Path, spool: Path, size: int
) -> None:
    app = KeepingApp()
    server = serve_in_thread(app, inbuf_overflow=OVERFLOW, tmp_dir=str(spool))
    client = connect(server)
    client.send(upload(content(size)))
    assert client.receive().body == b"ok"
    client.sock.close()
    server.stop()
    assert app.body is not None
    with pytest.raises(ValueError, match="closed"):
        app.body.link(tmp_path / "kept")
    assert os.listdir(tmp_path) == ["spool"]


def test_an_app_that_fails_after_the_link_has_kept_the_file(
    serve_in_thread: ServeInThread, connect: Connect, tmp_path: Path, spool: Path
) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ["waitress_async.spool"].link(tmp_path / "kept")
        raise RuntimeError("after it")

    client = connect(serve_in_thread(app, inbuf_overflow=OVERFLOW, tmp_dir=str(spool)))
    client.send(upload(content(LARGE)))
    assert client.receive().status == 500
    assert (tmp_path / "kept").read_bytes() == content(LARGE)


def test_a_relative_path_and_one_in_bytes(
    serve_in_thread: ServeInThread,
    connect: Connect,
    tmp_path: Path,
    spool: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A path is what it is everywhere: a relative one is of the working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    raised: list[BaseException] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            environ["waitress_async.spool"].link("relative")
            environ["waitress_async.spool"].link(os.fsencode(folder / "bytes"))
        except BaseException as error:
            raised.append(error)
        start_response("200 OK", [])
        return [b"ok"]

    client = connect(serve_in_thread(app, inbuf_overflow=OVERFLOW, tmp_dir=str(spool)))
    client.send(upload(content(LARGE)))
    assert client.receive().body == b"ok"
    assert raised == []
    assert sorted(os.listdir(folder)) == ["bytes", "relative"]
    assert (folder / "relative").read_bytes() == content(LARGE)
