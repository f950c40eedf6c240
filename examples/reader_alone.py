"""The awaitable reader by itself, without a server.

    python examples/reader_alone.py

Part one: a fast sender and a slow reader of lines share a socket. What the reader has not got to yet is held
by a BufferReader, a little of it in memory and the rest in a temporary file. When too much is held, and while
a thread writes to the file, the reader pauses the transport, so the sender has to wait as well.

Part two: the same class as the server uses it. The whole stream is collected first, then handed to a thread
as an ordinary file.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket

from waitress_async.buffers import BufferReader

KIB = 1024
LINES = 40_000
LINE = b"%07d " + b"." * 91 + b"\n"  # 100 bytes


class Inbox(asyncio.Protocol):
    """Everything a protocol has to do: pass on what it is told."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.pauses = 0
        self.most_held = 0
        self.reader = BufferReader(
            overflow=64 * KIB,  # more than this goes to disk
            high_water=1024 * KIB,  # more than this pauses the sender
            low_water=256 * KIB,  # and this little lets it go on
            pause_reading=self.pause_reading,
            resume_reading=transport.resume_reading,
        )

    def data_received(self, data: bytes) -> None:
        self.reader.feed_data(data)
        self.most_held = max(self.most_held, len(self.reader))

    def eof_received(self) -> None:
        self.reader.feed_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self.reader.set_exception(exc)

    def pause_reading(self) -> None:
        self.pauses += 1
        self.transport.pause_reading()


async def send(sock: socket.socket) -> None:
    """Write as fast as the other side lets us."""
    _, writer = await asyncio.open_connection(sock=sock)
    for number in range(LINES):
        writer.write(LINE % number)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def fast_sender_slow_reader() -> None:
    near, far = socket.socketpair()
    _, inbox = await asyncio.get_running_loop().create_connection(Inbox, sock=near)
    sender = asyncio.create_task(send(far))

    count = 0
    async for line in inbox.reader:
        assert line == LINE % count, "lost, doubled or out of order"
        count += 1
        if count % 2_000 == 0:
            await asyncio.sleep(0.01)  # something slow
    await sender
    inbox.transport.close()
    inbox.reader.close()

    print(f"{count} lines, {count * len(LINE) // KIB} KiB, all in order")
    print(f"the sender was paused {inbox.pauses} times; at most {inbox.most_held // KIB} KiB were held")


def digest(reader: BufferReader) -> str:
    """What an app might do with a request body: read a file. It runs in a thread, where files may be slow."""
    result = hashlib.sha256()
    try:
        for line in reader.getfile():
            result.update(line)
    finally:
        reader.close()
    return result.hexdigest()


async def collect_then_read_as_a_file() -> None:
    may_feed = asyncio.Event()  # not while the disk is written
    may_feed.set()
    reader = BufferReader(overflow=64 * KIB, pause_reading=may_feed.clear, resume_reading=may_feed.set)
    expected = hashlib.sha256()
    for number in range(LINES // 10):
        line = LINE % number
        reader.feed_data(line)
        expected.update(line)
        await may_feed.wait()
    reader.feed_eof()

    size = len(reader)
    result = await asyncio.to_thread(digest, reader)
    assert result == expected.hexdigest()
    print(f"{size // KIB} KiB were collected in a file on disk, and a thread read it")


async def main() -> None:
    await fast_sender_slow_reader()
    await collect_then_read_as_a_file()


if __name__ == "__main__":
    asyncio.run(main())
