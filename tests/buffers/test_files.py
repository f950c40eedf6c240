"""The three buffers over one file each."""

# ruff: noqa: SIM115 - the buffers close the files

from __future__ import annotations

import bz2
import gzip
import io
import os
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from waitress_async.buffers import (
    COPY_BYTES,
    BytesIOBasedBuffer,
    FileBasedBuffer,
    OverflowableBuffer,
    ReadOnlyFileBasedBuffer,
    TempfileBasedBuffer,
)

Kind = type[BytesIOBasedBuffer] | type[TempfileBasedBuffer]
both_kinds = pytest.mark.parametrize("kind", [BytesIOBasedBuffer, TempfileBasedBuffer])


class OnlyRead:
    """The least an app may pass to `wsgi.file_wrapper`."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)


class SeekAndTell(OnlyRead):
    """A file from before the `seekable` method."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


class SaysItIsNotSeekable(io.BytesIO):
    def seekable(self) -> bool:
        return False


# Storage of our own


@both_kinds
def test_append_keeps_the_read_position(kind: Kind) -> None:
    buffer = kind()
    buffer.append(b"abc")
    assert buffer.get(2, skip=True) == b"ab"
    buffer.append(b"def")
    assert len(buffer) == buffer.remain == 4
    assert buffer.get() == b"cdef"
    buffer.close()


@both_kinds
def test_get_peeks_or_consumes(kind: Kind) -> None:
    buffer = kind()
    buffer.append(b"abcdef")
    assert buffer.get(2) == b"ab"
    assert buffer.get(2) == b"ab"
    assert buffer.get(0) == b""
    assert buffer.get(100) == buffer.get(-1) == buffer.get(-7) == b"abcdef"
    assert len(buffer) == 6
    assert buffer.get(4, skip=True) == b"abcd"
    assert len(buffer) == 2
    assert buffer.get(100, skip=True) == b"ef"
    assert buffer.get(skip=True) == b""
    assert len(buffer) == 0
    buffer.close()


@pytest.mark.parametrize("data", [bytearray(b"abcd"), memoryview(b"abcd"), memoryview(b"abcd").cast("H")])
def test_append_takes_any_bytes_and_counts_bytes(data: bytearray | memoryview) -> None:
    buffer = BytesIOBasedBuffer()
    buffer.append(data)
    assert len(buffer) == 4
    assert buffer.get() == b"abcd"


@both_kinds
def test_a_buffer_is_true_even_when_it_is_empty(kind: Kind) -> None:
    buffer = kind()
    assert buffer
    assert len(buffer) == 0
    buffer.close()


@both_kinds
def test_skip_goes_to_the_last_byte_and_no_further(kind: Kind) -> None:
    buffer = kind()
    buffer.append(b"abcdef")
    buffer.skip(2)
    buffer.skip(0, allow_prune=True)
    assert buffer.get() == b"cdef"
    for amount in (5, -1):
        with pytest.raises(ValueError, match=f"cannot skip {amount} bytes of 4"):
            buffer.skip(amount)
    assert buffer.get() == b"cdef"
    buffer.skip(4)
    assert len(buffer) == 0
    buffer.close()


@both_kinds
def test_prune_moves_what_is_unread_and_closes_the_old_file(kind: Kind) -> None:
    buffer = kind()
    buffer.append(b"x" * (COPY_BYTES + 5) + b"rest")
    buffer.skip(COPY_BYTES + 5)
    old = buffer.getfile()
    buffer.prune()
    assert old.closed
    assert len(buffer) == 4
    assert buffer.get() == b"rest"
    new = buffer.getfile()
    assert new.tell() == 0
    assert new.seek(0, io.SEEK_END) == 4
    buffer.close()


@both_kinds
def test_prune_has_nothing_to_do_in_an_empty_file(kind: Kind) -> None:
    buffer = kind()
    file = buffer.getfile()
    buffer.prune()
    assert buffer.getfile() is file
    buffer.close()


class Full(io.BytesIO):
    def write(self, data: object) -> int:
        raise OSError("no space left")


def test_prune_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = BytesIOBasedBuffer()
    buffer.append(b"abcdef")
    buffer.skip(2)
    new = Full()
    monkeypatch.setattr(buffer, "newfile", lambda: new)
    with pytest.raises(OSError, match="no space left"):
        buffer.prune()
    assert new.closed
    assert buffer.get() == b"cdef"
    assert len(buffer) == 4


def test_the_base_class_makes_no_files() -> None:
    buffer = FileBasedBuffer(io.BytesIO())
    with pytest.raises(NotImplementedError):
        buffer.newfile()
    buffer.append(b"ab")
    buffer.skip(1)
    with pytest.raises(NotImplementedError):
        buffer.prune()
    assert buffer.get() == b"b"


def test_bytes_that_were_never_counted_do_not_make_remain_negative() -> None:
    buffer = FileBasedBuffer(io.BytesIO(b"data"))
    assert buffer.get(100, skip=True) == b"data"
    assert buffer.remain == len(buffer) == 0


@both_kinds
@pytest.mark.parametrize(
    "source_kind", [BytesIOBasedBuffer, TempfileBasedBuffer, lambda: OverflowableBuffer(3)]
)
def test_a_copy_has_everything_and_is_independent(
    kind: Kind, source_kind: Callable[[], FileBasedBuffer | OverflowableBuffer]
) -> None:
    source = source_kind()
    source.append(b"read and unread")
    source.getfile()
    source.skip(5)
    copy = kind(from_buffer=source)
    assert copy.get() == source.get() == b"and unread"
    assert len(copy) == len(source) == 10
    assert copy.getfile().tell() == source.getfile().tell() == 5

    source.append(b" in the source")
    copy.append(b" in the copy")
    assert source.get() == b"and unread in the source"
    source.close()
    assert copy.get() == b"and unread in the copy"
    whole = copy.getfile()
    whole.seek(0)
    assert whole.read() == b"read and unread in the copy"
    copy.close()


def test_a_copy_of_a_closed_buffer_is_refused_and_leaks_no_file() -> None:
    source = BytesIOBasedBuffer()
    source.close()
    with pytest.raises(ValueError, match="closed"):
        TempfileBasedBuffer(source)


@both_kinds
def test_a_closed_buffer_says_so(kind: Kind) -> None:
    buffer = kind()
    buffer.append(b"abc")
    file = buffer.getfile()
    buffer.close()
    buffer.close()
    assert buffer.closed
    assert file.closed
    assert len(buffer) == 0
    calls: list[Callable[[], object]] = [
        lambda: buffer.append(b"x"),
        buffer.get,
        lambda: buffer.get(1, skip=True),
        lambda: buffer.skip(0),
        buffer.prune,
        buffer.getfile,
    ]
    for call in calls:
        with pytest.raises(ValueError, match="the buffer is closed"):
            call()


def test_a_temporary_file_is_a_real_one() -> None:
    buffer = TempfileBasedBuffer()
    assert buffer.getfile().fileno() > 2
    buffer.close()


# Somebody else's file


def test_prepare_measures_from_the_position() -> None:
    file = io.BytesIO(b"0123456789")
    file.seek(4)
    buffer = ReadOnlyFileBasedBuffer(file)
    assert len(buffer) == 0
    assert buffer.prepare() == len(buffer) == 6
    assert buffer.prepare(3) == 3
    assert buffer.prepare(100) == 6
    assert buffer.prepare(0) == 0
    assert file.tell() == 4
    with pytest.raises(ValueError, match="-1"):
        buffer.prepare(-1)


def test_prepare_past_the_end_finds_nothing() -> None:
    file = io.BytesIO(b"abc")
    file.seek(10)
    buffer = ReadOnlyFileBasedBuffer(file)
    assert buffer.prepare() == len(buffer) == 0
    assert list(buffer) == []


def test_get_gives_what_was_agreed_on() -> None:
    file = io.BytesIO(b"0123456789")
    buffer = ReadOnlyFileBasedBuffer(file)
    assert buffer.get() == b""
    buffer.prepare(5)
    assert buffer.get() == buffer.get(-3) == buffer.get(6) == b"01234"
    assert file.tell() == 0
    assert buffer.get(3, skip=True) == b"012"
    assert len(buffer) == 2
    buffer.skip(1)
    assert buffer.get(100, skip=True) == b"4"
    assert buffer.get(100, skip=True) == b""
    assert len(buffer) == 0


@pytest.mark.parametrize("block_size", [1, 3, 4, 100])
def test_iterating_yields_blocks(block_size: int) -> None:
    file = io.BytesIO(b"0123456789")
    blocks = list(ReadOnlyFileBasedBuffer(file, block_size))
    assert b"".join(blocks) == b"0123456789"
    assert all(len(block) == block_size for block in blocks[:-1])

    file.seek(1)
    buffer = ReadOnlyFileBasedBuffer(file, block_size)
    buffer.prepare(5)
    blocks = list(buffer)
    assert b"".join(blocks) == b"12345"
    assert all(len(block) == block_size for block in blocks[:-1])
    assert file.tell() == 6
    assert len(buffer) == 0


def test_a_file_cut_short_ends_the_iteration_and_shows() -> None:
    file = io.BytesIO(b"0123456789")
    buffer = ReadOnlyFileBasedBuffer(file, 4)
    buffer.prepare()
    file.truncate(6)
    assert list(buffer) == [b"0123", b"45"]
    assert len(buffer) == 4


def test_a_seekable_file_shows_its_own_methods() -> None:
    file = io.BytesIO(b"abc")
    buffer = ReadOnlyFileBasedBuffer(file)
    assert (buffer.seek, buffer.tell, buffer.seekable) == (file.seek, file.tell, file.seekable)


def test_seek_and_tell_are_enough_to_be_seekable() -> None:
    buffer = ReadOnlyFileBasedBuffer(SeekAndTell(b"abc"))
    buffer.seek(1)
    assert buffer.tell() == 1
    assert not hasattr(buffer, "seekable")
    assert buffer.prepare() == 2


@pytest.mark.parametrize("file", [OnlyRead(b"abcdef"), SaysItIsNotSeekable(b"abcdef")])
def test_a_file_that_cannot_seek_is_iterated_whole(file: OnlyRead | io.BytesIO) -> None:
    buffer = ReadOnlyFileBasedBuffer(file, 4)
    assert not any(hasattr(buffer, name) for name in ("seek", "tell", "seekable"))
    assert buffer.prepare() == buffer.prepare(3) == 0
    assert list(buffer) == [b"abcd", b"ef"]


def test_a_file_wrapper_does_not_write() -> None:
    with pytest.raises(NotImplementedError):
        ReadOnlyFileBasedBuffer(io.BytesIO()).append(b"x")


@pytest.mark.parametrize("block_size", [0, -1])
def test_a_block_has_at_least_one_byte(block_size: int) -> None:
    with pytest.raises(ValueError, match="block_size"):
        ReadOnlyFileBasedBuffer(io.BytesIO(), block_size)


def test_closing_a_wrapper_closes_the_file_if_it_can() -> None:
    file = io.BytesIO(b"abc")
    for wrapped in (file, OnlyRead(b"abc")):
        buffer = ReadOnlyFileBasedBuffer(wrapped)
        buffer.prepare()
        buffer.close()
        buffer.close()
        assert len(buffer) == 0
        with pytest.raises(ValueError, match="the buffer is closed"):
            next(buffer)
        with pytest.raises(ValueError, match="the buffer is closed"):
            buffer.prepare()
    assert file.closed


# The descriptor behind it


def make_file(path: Path) -> Path:
    path.write_bytes(b"0123456789")
    return path


WITH_A_DESCRIPTOR: dict[str, Callable[[Path], Any]] = {
    "buffered": lambda path: open(path, "rb"),
    "unbuffered": lambda path: open(path, "rb", buffering=0),
    "for update": lambda path: open(path, "r+b"),
    "FileIO": io.FileIO,
    "by descriptor": lambda path: os.fdopen(os.open(path, os.O_RDONLY), "rb"),
    "named temporary": lambda _path: tempfile.NamedTemporaryFile(),
    "temporary": lambda _path: tempfile.TemporaryFile(),
}


@pytest.mark.parametrize("opener", WITH_A_DESCRIPTOR.values(), ids=WITH_A_DESCRIPTOR)
def test_a_file_on_disk_has_a_descriptor(opener: Callable[[Path], Any], tmp_path: Path) -> None:
    file = opener(make_file(tmp_path / "file"))
    if file.writable():
        file.write(b"0123456789")
        file.seek(0)
    assert file.read(3) == b"012"
    with closing(ReadOnlyFileBasedBuffer(file)) as buffer:
        assert buffer.prepare() == 7
        descriptor = buffer.descriptor()
        assert descriptor is not None
        assert descriptor == file.fileno()
        assert os.pread(descriptor, 100, buffer.tell()) == buffer.get() == b"3456789"


def test_the_descriptor_shows_what_the_app_has_written(tmp_path: Path) -> None:
    """Also what is still in the file object's own buffer before `prepare`."""
    file = open(make_file(tmp_path / "file"), "r+b")
    file.read(2)
    file.write(b"XX")
    file.seek(0)
    with closing(ReadOnlyFileBasedBuffer(file)) as buffer:
        buffer.prepare()
        descriptor = buffer.descriptor()
        assert descriptor is not None
        assert os.pread(descriptor, 100, 0) == buffer.get() == b"01XX456789"


class Upper(io.BufferedReader):
    """Whoever makes a subclass has something in mind."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size).upper()


class UpperRaw(io.FileIO):
    def readinto(self, buffer: Any, /) -> int | None:
        raise NotImplementedError


class ShowsADescriptor:
    """As many wrappers do."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb")
        self.fileno = self._file.fileno
        self.close = self._file.close

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)[::-1]


def pipe(_path: Path) -> Any:
    read, write = os.pipe()
    os.close(write)
    return os.fdopen(read, "rb")


def spooled(_path: Path) -> Any:
    return tempfile.SpooledTemporaryFile()


def rolled_over(_path: Path) -> Any:
    file = tempfile.SpooledTemporaryFile()
    file.write(b"data")
    file.rollover()
    return file


WITHOUT: dict[str, Callable[[Path], Any]] = {
    "BytesIO": lambda _path: io.BytesIO(b"data"),
    "buffered BytesIO": lambda _path: io.BufferedReader(cast(io.RawIOBase, io.BytesIO(b"data"))),
    "GzipFile": lambda path: gzip.open(path, "rb"),
    "buffered GzipFile": lambda path: io.BufferedReader(cast(io.RawIOBase, gzip.open(path, "rb"))),
    "BZ2File": lambda path: bz2.open(path, "rb"),
    "subclass": lambda path: Upper(io.FileIO(path)),
    "raw subclass": UpperRaw,
    "buffered raw subclass": lambda path: io.BufferedReader(UpperRaw(path)),
    "text": open,
    "temporary text": lambda _path: tempfile.NamedTemporaryFile("w+"),
    "spooled": spooled,
    "rolled over": rolled_over,
    "with a fileno": ShowsADescriptor,
    "pipe": pipe,
    "device": lambda _path: open("/dev/null", "rb"),
    "only read": lambda _path: OnlyRead(b"data"),
}


@pytest.mark.parametrize("opener", WITHOUT.values(), ids=WITHOUT)
def test_anything_else_has_none(opener: Callable[[Path], Any], tmp_path: Path) -> None:
    with closing(ReadOnlyFileBasedBuffer(opener(make_file(tmp_path / "file")))) as buffer:
        assert buffer.descriptor() is None


def test_a_closed_buffer_has_no_descriptor(tmp_path: Path) -> None:
    buffer = ReadOnlyFileBasedBuffer(open(make_file(tmp_path / "file"), "rb"))
    buffer.close()
    with pytest.raises(ValueError, match="the buffer is closed"):
        buffer.descriptor()
