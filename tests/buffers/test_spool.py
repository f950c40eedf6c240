"""Temporary files: where they are, what they may take, and what an app may keep of them."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.buffers.support import DEADLINE, PATTERN, Source, ended, until
from waitress_async.buffers import BufferReader, SharedFile, Spool, SpooledBody, SpoolFile
from waitress_async.buffers import spool as spool_module
from waitress_async.errors import SpoolFull

ROOT = Path(__file__).parents[2]


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """For threads that may wait for the disk. At the end nothing may be left in it."""
    directory = tmp_path / "spool"
    directory.mkdir()
    spool = Spool(str(directory))
    yield spool
    assert (spool.files, spool.used) == (0, 0)
    assert list(directory.iterdir()) == []


@pytest.fixture
def file(spool: Spool) -> Iterator[SpoolFile]:
    with contextlib.closing(spool.open()) as file:
        yield file


def without_unnamed_files(monkeypatch: pytest.MonkeyPatch, code: int = errno.EOPNOTSUPP) -> None:
    """As on a file system that does not have them."""
    original = os.open

    def open_file(path: str, flags: int, mode: int = 0o777, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(code, os.strerror(code))
        return original(path, flags, mode, **options)

    monkeypatch.setattr(os, "open", open_file)


@pytest.fixture(params=["unnamed", "made and unlinked"])
def either_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "unnamed":
        without_unnamed_files(monkeypatch)


# A descriptor that several threads use


def test_a_shared_file_is_closed_once() -> None:
    closed: list[int] = []
    file = SharedFile(7, lambda: closed.append(1))
    with file as descriptor, file:
        assert descriptor == 7
    assert closed == []
    file.close()
    file.close()
    assert closed == [1]
    assert file.closed
    with pytest.raises(ValueError, match="the file is closed"), file:
        pass


def test_a_shared_file_is_closed_when_the_last_has_left() -> None:
    closed: list[int] = []
    file = SharedFile(7, lambda: closed.append(1))
    with file:
        with file:
            file.close()
            file.close()
            assert file.closed
            with pytest.raises(ValueError, match="the file is closed"):
                file.__enter__()
        assert closed == []
    assert closed == [1]


def test_a_shared_file_is_left_by_an_exception_as_well() -> None:
    closed: list[int] = []
    file = SharedFile(7, lambda: closed.append(1))
    with contextlib.suppress(OSError), file:
        file.close()
        raise OSError("broken")
    assert closed == [1]


# What they may take


@pytest.mark.usefixtures("either_kind")
def test_a_file_has_no_name(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path))
    file = spool.open()
    with file as descriptor:
        status = os.fstat(descriptor)
        assert status.st_dev == tmp_path.stat().st_dev
        assert status.st_nlink == 0
        assert status.st_mode & 0o777 == 0o600
        assert not os.get_inheritable(descriptor)
    assert list(tmp_path.iterdir()) == []
    file.close()


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT])
def test_a_system_without_unnamed_files(code: int, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    without_unnamed_files(monkeypatch, code)
    file = spool.open()
    file.append(b"data")
    assert file.read(10, 0) == b"data"
    file.close()


def test_other_errors_of_open_are_told(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    without_unnamed_files(monkeypatch, errno.EACCES)
    with pytest.raises(PermissionError):
        spool.open()
    assert (spool.files, spool.used) == (0, 0)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError):
        spool.open()
    assert spool.files == 0


def test_the_systems_folder_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    without_unnamed_files(monkeypatch)
    made: list[str] = []
    original = tempfile.mkstemp

    def make(*, dir: str) -> tuple[int, str]:
        made.append(dir)
        return original(dir=dir)

    monkeypatch.setattr(tempfile, "mkstemp", make)
    Spool().open().close()
    assert made == [str(tmp_path)]


def test_the_limit_is_for_all_files_together_and_exact(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path), limit=100)
    one, two = spool.open(), spool.open()
    assert (spool.files, spool.used) == (2, 0)
    one.append(bytes(60))
    two.append(bytes(40))
    assert spool.used == 100
    for refused in (one, two):
        with pytest.raises(SpoolFull) as caught:
            refused.append(b"!")
        assert caught.value.setting == "spool_limit"
        assert caught.value.errno == errno.ENOSPC
    assert (one.size, two.size, spool.used) == (60, 40, 100)
    one.write(b"over what is there", 10)
    assert (one.size, spool.used) == (60, 100)
    one.close()
    assert (spool.files, spool.used) == (1, 40)
    two.append(bytes(60))
    assert spool.used == 100
    two.close()
    assert (spool.files, spool.used) == (0, 0)


def test_what_is_refused_is_not_written(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path), limit=10)
    file = spool.open()
    with pytest.raises(SpoolFull):
        file.append(bytes(11))
    assert file.read(100, 0) == b""
    file.append(bytes(10))
    file.close()


def test_what_is_expected_is_asked_for_and_not_set_aside(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path), limit=100)
    one, two = spool.open(100), spool.open(100)
    one.append(bytes(1))
    with pytest.raises(SpoolFull) as caught:
        spool.open(100)
    assert caught.value.setting == "spool_limit"
    assert (spool.files, spool.used) == (2, 1)
    one.close()
    two.close()
    assert (spool.files, spool.used) == (0, 0)


class FreeSpace:
    """What the file system is said to have left."""

    f_frsize = 4096

    def __init__(self, free: int) -> None:
        self.f_bavail = free // self.f_frsize


def test_so_much_is_left_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 1 << 20
    asked: list[int] = []

    def ask(descriptor: int) -> FreeSpace:
        asked.append(descriptor)
        return FreeSpace(free)

    monkeypatch.setattr(os, "fstatvfs", ask)
    spool = Spool(str(tmp_path), min_free=1 << 19)
    file = spool.open(1 << 19)
    for open_file in (lambda: spool.open((1 << 19) + 1), lambda: file.append(bytes((1 << 19) + 1))):
        with pytest.raises(SpoolFull) as caught:
            open_file()
        assert caught.value.setting == "spool_min_free"
        assert caught.value.errno == errno.ENOSPC
    assert (spool.files, spool.used, file.size) == (1, 0, 0)
    file.append(bytes(1 << 19))
    free = (1 << 19) - 1
    with pytest.raises(SpoolFull):
        file.append(b"!")
    file.close()
    assert (spool.files, spool.used) == (0, 0)
    assert asked

    asked.clear()
    unbounded = Spool(str(tmp_path)).open(1 << 60)
    unbounded.append(b"x")
    unbounded.close()
    assert asked == []


NO_ROOM = f"{os.strerror(errno.ENOSPC)}|{os.strerror(errno.EFBIG)}"


def fill(directory: str) -> None:
    """On a disk of less than 2 MiB: it says so, the file is freed, and there is room again."""
    spool = Spool(directory)
    for _ in range(3):
        file = spool.open()
        try:
            file.append(PATTERN[: 1 << 19])
            with pytest.raises(OSError, match=NO_ROOM) as caught:
                file.append(PATTERN * 2)
            assert not isinstance(caught.value, SpoolFull)
            assert file.size == 1 << 19
            assert file.read(1 << 19, 0) == PATTERN[: 1 << 19]
        finally:
            file.close()
        assert (spool.files, spool.used) == (0, 0)


async def overfill(directory: str) -> None:
    """The same by way of a reader."""
    spool = Spool(directory)
    for size in (2, 1):
        source = Source()
        reader = source.reader(overflow=1000, spool=spool)
        reader.feed_data(PATTERN[: size << 19] * size)
        await source.resumed()
        error = reader.exception()
        if size == 1:
            assert error is None
            reader.feed_eof()
            assert reader.getfile().read() == PATTERN[: 1 << 19]
        else:
            assert isinstance(error, OSError)
            with pytest.raises(OSError, match=NO_ROOM):
                reader.feed_data(b"x")
        reader.close()
        await until(lambda: spool.files == 0)
        assert spool.used == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[str]:
    """A file system of 1 MiB."""
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount(8)")
    if done.returncode:
        pytest.skip("this user may not mount")
    yield str(tmp_path)
    subprocess.run(["umount", str(tmp_path)], check=True)


async def test_a_full_disk(small_disk: str) -> None:
    fill(small_disk)
    await overfill(small_disk)


def test_a_disk_quota(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from tests.buffers import test_spool\n"
        "test_spool.fill(sys.argv[1])\n"
        "asyncio.run(test_spool.overfill(sys.argv[1]))\n"
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    done = subprocess.run(
        [sys.executable, "-B", "-W", "error", "-c", program, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=limit,
    )
    assert (done.returncode, done.stderr) == (0, "")


# Written and read by position


def test_writing_and_reading_by_position(file: SpoolFile, spool: Spool) -> None:
    assert file.size == 0
    file.append(b"Hello, ")
    file.append(bytearray(b"World"))
    file.append(memoryview(b"!!!!").cast("H"))
    assert (file.size, spool.used) == (16, 16)
    file.write(b"W0rld", 7)
    assert (file.size, spool.used) == (16, 16)
    assert file.read(7, 0) == b"Hello, "
    assert file.read(100, 7) == b"W0rld!!!!"
    assert file.read(5, 16) == file.read(5, 99) == b""
    file.write(b"xy", 15)
    assert (file.size, spool.used) == (17, 17)
    file.append(b"")
    assert spool.used == 17


def test_a_write_in_pieces(file: SpoolFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """pwrite(2) may write less than it was given."""
    original = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda descriptor, data, offset: original(descriptor, data[:1000], offset)
    )
    file.append(PATTERN[:9_500])
    assert file.size == 9_500
    assert file.read(10_000, 0) == PATTERN[:9_500]


def in_threads(*functions: Callable[[], object]) -> None:
    """Run them side by side, and raise what one of them raises."""
    errors: list[BaseException] = []

    def run(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_one_thread_writes_and_another_reads(file: SpoolFile, spool: Spool) -> None:
    pieces = [PATTERN[begin : begin + 997] for begin in range(0, len(PATTERN), 997)]
    written = threading.Semaphore(0)
    found = []

    def write() -> None:
        for piece in pieces:
            file.append(piece)
            written.release()

    def read() -> None:
        for number in range(len(pieces)):
            assert written.acquire(timeout=DEADLINE)
            found.append(file.read(997, number * 997))

    in_threads(write, read)
    assert found == pieces
    assert file.size == spool.used == len(PATTERN)


@pytest.mark.parametrize("method", ["pread", "pwrite"])
def test_a_file_closed_while_a_thread_is_inside(
    method: str, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go = threading.Event(), threading.Event()
    original = getattr(os, method)
    results: list[bytes] = []

    def held(*arguments: Any) -> Any:
        entered.set()
        assert go.wait(DEADLINE)
        return original(*arguments)

    file = spool.open()
    file.append(b"data")
    monkeypatch.setattr(os, method, held)

    def use() -> None:
        if method == "pread":
            results.append(file.read(4, 0))
        else:
            file.append(b"more")
            results.append(b"more")

    def close() -> None:
        assert entered.wait(DEADLINE)
        file.close()
        file.close()
        assert file.closed
        assert spool.files == 1
        with pytest.raises(ValueError, match="the file is closed"):
            file.read(1, 0)
        go.set()

    in_threads(use, close)
    assert results == [b"data" if method == "pread" else b"more"]
    assert (spool.files, spool.used) == (0, 0)


def test_a_closed_file_says_so(spool: Spool, tmp_path: Path) -> None:
    file = spool.open()
    file.append(b"data")
    shown = file.getfile()
    file.close()
    file.close()
    assert shown.closed
    calls: list[Callable[[], object]] = [
        lambda: file.append(b"x"),
        lambda: file.write(b"x", 0),
        lambda: file.read(1, 0),
        file.getfile,
        lambda: file.link(tmp_path / "kept"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="closed"):
            call()
    assert not (tmp_path / "kept").exists()


async def test_a_file_discarded_on_a_loops_thread_is_closed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(str(tmp_path))
    threads: list[threading.Thread] = []
    file = spool.open()
    file.append(b"data")
    tell = spool._count_closed

    def told() -> None:
        threads.append(threading.current_thread())
        tell()

    monkeypatch.setattr(spool, "_count_closed", told)
    spool.discard(file)
    await spool.wait_closed()
    assert (spool.files, spool.used) == (0, 0)
    assert len(threads) == 1
    assert threads != [threading.current_thread()]
    await spool.wait_closed()


def test_a_file_discarded_on_any_other_thread_is_closed_at_once(spool: Spool) -> None:
    file = spool.open()
    spool.discard(file)
    assert file.closed
    assert spool.files == 0


# As a file object


def test_the_file_object_has_a_position_of_its_own(file: SpoolFile) -> None:
    file.append(PATTERN)
    shown = file.getfile()
    assert shown.tell() == 0
    assert shown.read(1000) == PATTERN[:1000]
    assert file.read(10, 500_000) == PATTERN[500_000:500_010]
    file.append(b"the end")
    file.write(b"", 3)
    assert shown.tell() == 1000
    assert shown.read() == PATTERN[1000:] + b"the end"
    assert shown.seek(-3, io.SEEK_END)
    assert shown.readline() == b"end"
    assert file.getfile() is shown
    assert shown.tell() == 0
    assert shown.fileno() > 2


def test_what_an_app_writes_and_what_does_not_fit_is_thrown_away(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullRaw(io.FileIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(spool_module, "FileIO", FullRaw)
    file = spool.open()
    shown = file.getfile()
    shown.write(b"into a buffer")
    file.close()
    assert shown.closed


# Kept


def test_a_link_is_the_file_itself(file: SpoolFile, spool: Spool, tmp_path: Path) -> None:
    file.append(PATTERN)
    with file as descriptor:
        inode = os.fstat(descriptor).st_ino
        path = tmp_path / "kept"
        old_mask = os.umask(0)
        try:
            file.link(path)
        finally:
            os.umask(old_mask)
        assert os.fstat(descriptor).st_nlink == 1
    status = path.stat()
    assert (status.st_ino, status.st_nlink, status.st_mode & 0o777) == (inode, 1, 0o600)
    assert spool.used == 0
    assert file.read(10, 0) == PATTERN[:10]
    file.close()
    assert path.read_bytes() == PATTERN
    assert spool.used == 0


def test_a_link_has_what_an_app_wrote(file: SpoolFile, tmp_path: Path) -> None:
    file.append(b"Hello, World!")
    shown = file.getfile()
    shown.seek(7)
    shown.write(b"W0rld")
    file.link(str(tmp_path / "kept"))
    assert shown.tell() == 12
    assert (tmp_path / "kept").read_bytes() == b"Hello, W0rld!"


def test_a_file_may_be_linked_twice(file: SpoolFile, spool: Spool, tmp_path: Path) -> None:
    file.append(b"data")
    file.link(tmp_path / "one")
    file.link(tmp_path / "two")
    assert (tmp_path / "one").samefile(tmp_path / "two")
    assert spool.used == 0


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system."""
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one file system")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def check_copy(file: SpoolFile, spool: Spool, path: Path) -> None:
    """Keep `file`, which holds PATTERN, by a copy at `path`."""
    shown = file.getfile()
    shown.seek(123)
    old_mask = os.umask(0)
    try:
        file.link(path)
    finally:
        os.umask(old_mask)
    assert shown.tell() == 123
    with file as descriptor:
        status = os.fstat(descriptor)
        assert status.st_nlink == 0
        assert not os.path.samestat(status, path.stat())
    assert path.stat().st_mode & 0o777 == 0o600
    assert spool.used == len(PATTERN), "there are two of it now, and one is temporary"
    file.close()
    assert spool.used == 0
    assert path.read_bytes() == PATTERN


def test_a_link_to_another_file_system_is_a_copy(file: SpoolFile, spool: Spool, elsewhere: Path) -> None:
    file.append(PATTERN)
    check_copy(file, spool, elsewhere / "kept")


def test_a_link_is_a_copy_where_files_cannot_be_given_a_name(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_unnamed_files(monkeypatch)
    with contextlib.closing(spool.open()) as file:
        file.append(PATTERN)
        check_copy(file, spool, tmp_path / "kept")


@pytest.mark.usefixtures("either_kind")
def test_a_link_replaces_nothing(spool: Spool, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_bytes(b"mine")
    with contextlib.closing(spool.open()) as file:
        file.append(b"data")
        with pytest.raises(FileExistsError):
            file.link(path)
        assert path.read_bytes() == b"mine"
        with pytest.raises(FileNotFoundError):
            file.link(tmp_path / "missing" / "kept")
        assert spool.used == 4
        assert file.getfile().read() == b"data"


def test_a_copy_replaces_nothing(file: SpoolFile, elsewhere: Path) -> None:
    path = elsewhere / "kept"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        file.link(path)
    assert path.read_bytes() == b"mine"


def test_nothing_is_left_of_a_copy_that_fails(
    file: SpoolFile, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.append(PATTERN)
    reads = [PATTERN[: 1 << 18]]

    def fail(*_arguments: Any) -> bytes:
        if reads:
            return reads.pop()
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(OSError, match="broken"):
        file.link(elsewhere / "kept")
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("lose", [lambda file: file.close(), lambda file: io.TextIOWrapper(file).close()])
def test_a_link_of_a_file_that_the_app_has_closed(
    lose: Callable[[Any], object], spool: Spool, tmp_path: Path
) -> None:
    """Its descriptor may be somebody else's by then."""
    other = tmp_path / "secret"
    other.write_bytes(b"of another request")
    file = spool.open()
    file.append(b"data")
    lose(file.getfile())
    stolen = os.open(other, os.O_RDONLY)
    try:
        with pytest.raises(ValueError, match="closed"):
            file.link(tmp_path / "kept")
        assert not (tmp_path / "kept").exists()
    finally:
        file.close()
        os.close(stolen)


# The body of a request


async def bodies(
    source: Source, data: bytes, overflow: int, spool: Spool
) -> tuple[BufferReader, SpooledBody]:
    """As the server makes one."""
    reader = await source.ended(data, overflow=overflow, spool=spool)
    return reader, SpooledBody(reader.getfile(), reader.file, len(reader))


@pytest.mark.parametrize("on_disk", [False, True])
async def test_a_body_is_kept(on_disk: bool, source: Source, spool: Spool, tmp_path: Path) -> None:
    data = PATTERN * 2
    reader, body = await bodies(source, data, 0 if on_disk else len(data) + 1, spool)
    wsgi_input = reader.getfile()
    assert (body.on_disk, body.size) == (on_disk, len(data))
    wsgi_input.read(1234)
    path = tmp_path / "kept"
    body.link(path)
    assert wsgi_input.tell() == 1234
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes() == data
    with pytest.raises(FileExistsError):
        body.link(path)
    with pytest.raises(FileNotFoundError):
        body.link(tmp_path / "missing" / "kept")
    assert wsgi_input.read(10) == data[1234:1244]
    reader.close()
    await spool.wait_closed()
    with pytest.raises(ValueError, match="closed"):
        body.link(tmp_path / "late")
    assert not (tmp_path / "late").exists()
    assert path.read_bytes() == data


def test_an_empty_body_is_kept(tmp_path: Path) -> None:
    reader = ended()
    body = SpooledBody(reader.getfile(), reader.file, len(reader))
    body.link(tmp_path / "kept")
    assert (body.on_disk, body.size, (tmp_path / "kept").read_bytes()) == (False, 0, b"")
    reader.close()


def test_nothing_is_left_of_a_body_that_could_not_be_copied(tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(errno.EIO, "broken")

    file = Broken(b"data")
    file.seek(2)
    with pytest.raises(OSError, match="broken"):
        SpooledBody(file, None, 4).link(tmp_path / "kept")
    assert list(tmp_path.iterdir()) == []
    assert file.tell() == 2
