"""What waitress documents about its buffers, done with ours: same calls, same results."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from waitress_async.buffers import (
    COPY_BYTES,
    STRBUF_LIMIT,
    BytesIOBasedBuffer,
    OverflowableBuffer,
    ReadOnlyFileBasedBuffer,
    TempfileBasedBuffer,
)

Headers = list[tuple[str, str]]


def test_the_constants() -> None:
    assert COPY_BYTES == 262_144
    assert STRBUF_LIMIT == 8_192


def test_a_buffer_in_memory_and_one_on_disk() -> None:
    memory_buffer = BytesIOBasedBuffer()
    memory_buffer.append(b"Hello, ")
    memory_buffer.append(b"World!")
    assert memory_buffer.get() == b"Hello, World!"
    assert len(memory_buffer) == 13
    assert memory_buffer.get(5, skip=True) == b"Hello"
    assert len(memory_buffer) == 8

    file_buffer = TempfileBasedBuffer()
    large_data = b"x" * 1_000_000
    file_buffer.append(large_data)
    assert len(file_buffer) == 1_000_000
    file_buffer.close()


def test_a_buffer_that_overflows() -> None:
    buffer = OverflowableBuffer(65_536)
    lines = b"".join(f"Line {i}\n".encode() for i in range(1000))
    for line in lines.splitlines(keepends=True):
        buffer.append(line)
    overflowed = buffer.overflowed
    buffer.append(b"x" * 100_000)
    assert (overflowed, buffer.overflowed) == (False, True)
    assert buffer.get(1000) == lines[:1000]
    assert len(buffer) == len(lines) + 100_000
    buffer.close()


def test_an_app_that_returns_a_wrapped_file(tmp_path: Path) -> None:
    content = os.urandom(150_000)
    path = tmp_path / "file.dat"
    path.write_bytes(content)

    def app(environ: dict[str, Any], start_response: Callable[[str, Headers], object]) -> Iterable[bytes]:
        try:
            file = path.open("rb")
        except FileNotFoundError:
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"File not found"]
        start_response("200 OK", [("Content-Length", str(path.stat().st_size))])
        return ReadOnlyFileBasedBuffer(file, block_size=65_536)

    seen: list[tuple[str, Headers]] = []
    result = app({}, lambda status, headers: seen.append((status, headers)))
    assert isinstance(result, ReadOnlyFileBasedBuffer)
    assert result.block_size == 65_536
    assert [len(block) for block in result] == [65_536, 65_536, 18_928]
    result.seek(0)
    assert b"".join(result) == content
    result.close()

    path.unlink()
    assert app({}, lambda status, headers: seen.append((status, headers))) == [b"File not found"]
    assert [status for status, _ in seen] == ["200 OK", "404 Not Found"]


def test_a_copy_from_memory_to_disk() -> None:
    source = BytesIOBasedBuffer()
    source.append(b"Important data that needs to be copied")
    destination = TempfileBasedBuffer(from_buffer=source)
    assert source.get() == destination.get()
    source.append(b" - modified")
    assert source.get() != destination.get()
    source.close()
    destination.close()
