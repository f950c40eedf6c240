"""The buffer that goes from memory to disk, and back when it is pruned."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from waitress_async.buffers import STRBUF_LIMIT, OverflowableBuffer


def on_disk(buffer: OverflowableBuffer) -> bool:
    return buffer.overflowed


@pytest.mark.parametrize("overflow", [1, 10, STRBUF_LIMIT - 1, STRBUF_LIMIT, STRBUF_LIMIT + 1, 20_000])
def test_the_threshold_holds_whatever_its_size(overflow: int) -> None:
    whole, bytewise = OverflowableBuffer(overflow), OverflowableBuffer(overflow)
    data = bytes(i % 251 for i in range(overflow - 1))
    whole.append(data)
    for i in range(len(data)):
        bytewise.append(data[i : i + 1])
    for buffer in (whole, bytewise):
        assert not on_disk(buffer)
        buffer.append(b"!")
        assert on_disk(buffer)
        assert len(buffer) == overflow
        assert buffer.get() == data + b"!"
        buffer.close()


def test_few_bytes_need_no_file() -> None:
    buffer = OverflowableBuffer(100_000)
    buffer.append(b"x" * (STRBUF_LIMIT - 1))
    buffer.skip(0)
    assert buffer.get(5, skip=True) == b"xxxxx"
    stages = [buffer.buf]
    buffer.append(b"x" * 5)
    stages.append(buffer.buf)
    buffer.append(b"x")
    stages.append(buffer.buf)
    assert [stage is None for stage in stages] == [True, True, False]
    assert buffer.get() == b"x" * STRBUF_LIMIT
    buffer.close()


STAGES = [(b"", 10), (b"abcdef", 10), (b"abcdef" * 2000, 100_000), (b"abcdef" * 2000, 100)]


@pytest.mark.parametrize(("data", "overflow"), STAGES)
def test_reading_is_the_same_in_each_stage(data: bytes, overflow: int) -> None:
    buffer = OverflowableBuffer(overflow)
    buffer.append(data)
    assert bool(buffer) is bool(data)
    assert buffer.get(4) == data[:4]
    assert buffer.get(-1) == buffer.get(-2) == buffer.get(len(data) + 1) == data
    assert buffer.get(4, skip=True) == data[:4]
    data = data[4:]
    buffer.skip(len(data) // 2, allow_prune=True)
    data = data[len(data) // 2 :]
    assert len(buffer) == len(data)
    for amount in (-1, len(data) + 1):
        with pytest.raises(ValueError, match=f"cannot skip {amount} bytes"):
            buffer.skip(amount)
    assert buffer.get(0, skip=True) == b""
    buffer.prune()
    assert buffer.get() == data
    buffer.append(b"more")
    assert buffer.get(skip=True) == data + b"more"
    assert not buffer
    buffer.close()


@pytest.mark.parametrize(("data", "overflow"), STAGES)
def test_the_file_stands_at_what_is_unread(data: bytes, overflow: int) -> None:
    buffer = OverflowableBuffer(overflow)
    buffer.append(data)
    buffer.get(3, skip=True)
    assert buffer.getfile().read() == data[3:]
    buffer.close()


def test_prune_comes_back_from_the_disk_when_the_rest_fits_in_memory() -> None:
    buffer = OverflowableBuffer(10)
    buffer.append(b"0123456789ab")
    buffer.skip(2)
    buffer.prune()
    assert on_disk(buffer)
    buffer.skip(1)
    file = buffer.getfile()
    buffer.prune()
    assert not on_disk(buffer)
    assert file.closed
    assert buffer.get() == b"3456789ab"
    buffer.close()


def test_moving_to_disk_closes_the_file_in_memory() -> None:
    buffer = OverflowableBuffer(10)
    buffer.append(b"abc")
    in_memory = buffer.getfile()
    buffer.append(b"defghij")
    assert in_memory.closed
    assert buffer.get() == b"abcdefghij"
    buffer.close()


@pytest.mark.parametrize(("data", "overflow"), STAGES)
def test_a_closed_buffer_says_so_in_each_stage(data: bytes, overflow: int) -> None:
    buffer = OverflowableBuffer(overflow)
    buffer.append(data)
    buffer.close()
    buffer.close()
    assert len(buffer) == 0
    assert not buffer
    calls: list[Callable[[], object]] = [
        lambda: buffer.append(b"x"),
        lambda: buffer.append(b"x" * 200_000),
        buffer.get,
        lambda: buffer.skip(0),
        buffer.prune,
        buffer.getfile,
    ]
    for call in calls:
        with pytest.raises(ValueError, match="the buffer is closed"):
            call()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow over `size` bytes: as near to a full disk as a test can come."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("in_memory", [5_000, 50_000])
def test_a_full_disk_leaves_the_bytes_in_memory(in_memory: int) -> None:
    buffer = OverflowableBuffer(60_000)
    buffer.append(b"a" * in_memory)
    with largest_file(1_000), pytest.raises(OSError, match="large"):
        buffer.append(b"b" * 60_000)
    assert not on_disk(buffer)
    assert buffer.get() == b"a" * in_memory
    buffer.append(b"c")
    assert buffer.get() == b"a" * in_memory + b"c"
    buffer.close()


def test_a_disk_that_fills_up_later_is_reported_and_can_be_closed() -> None:
    buffer = OverflowableBuffer(1_000)
    buffer.append(b"a" * 1_000)
    file = buffer.getfile()
    with largest_file(1_500):
        with pytest.raises(OSError, match="large"):
            buffer.append(b"b" * 1_000)
        assert len(buffer) == 1_000
        buffer.close()
    assert file.closed
    assert isinstance(file, io.BufferedRandom)
