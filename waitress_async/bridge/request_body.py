"""What an app on the loop sees of a request body: `environ["waitress_async.body"]`."""

from __future__ import annotations

from collections.abc import Callable

from waitress_async.buffers import BufferReader


class RequestBody:
    """The body of one request, read while it comes, with the verbs of asyncio.StreamReader.

    On the server's loop: in an async body, in a task that it starts, or from a thread by way of the loop.
    One task reads at a time; while it waits, a read of another raises RuntimeError. A cancelled read takes
    nothing.

    A read waits for the client, and what the app does not read, its client keeps: no more than some 256 KiB
    are held, but for a read that asks for more. The first read asks a client that sent
    `Expect: 100-continue` for the body, if no response has begun.

    Every read raises `ClientDisconnected` if the body ends before it is complete, `ValueError` after the end
    of the response, and `RuntimeError` on another loop, or if `wsgi.input` has been read.
    """

    __slots__ = ("_reader",)

    def __init__(self, reader: Callable[[], BufferReader]) -> None:
        """`reader()` is what a read reads. It may raise what that read is to raise."""
        self._reader = reader

    async def read(self, n: int = -1) -> bytes:
        """Return at most `n` bytes, of those that are here when there are any; `b""` at the end of the body.

        With a negative `n`, wait for the end and return all of it, which has to fit in memory.
        """
        return await self._reader().read(n)

    async def readexactly(self, n: int) -> bytes:
        """Return `n` bytes. Raises `asyncio.IncompleteReadError` if the body has not as many."""
        return await self._reader().readexactly(n)

    async def readuntil(self, separator: bytes = b"\n") -> bytes:
        """Return the bytes up to and with `separator`.

        Raises `asyncio.IncompleteReadError` if there is none to the end of the body, and
        `asyncio.LimitOverrunError`, taking nothing, if more than 64 KiB come before it.
        """
        return await self._reader().readuntil(separator)

    async def readline(self) -> bytes:
        r"""Return the bytes up to and with the next `\n`, or what is left at the end of the body.

        Raises `ValueError`, taking nothing, for a line longer than 64 KiB.
        """
        return await self._reader().readline()

    def __aiter__(self) -> RequestBody:
        """Iterate over lines, as `readline` returns them."""
        return self

    async def __anext__(self) -> bytes:
        if line := await self.readline():
            return line
        raise StopAsyncIteration


def empty_body() -> RequestBody:
    """The body of a request that has none. It may be shared by all of one loop, for no read of it waits."""
    reader = BufferReader()
    reader.feed_eof()
    return RequestBody(lambda: reader)
