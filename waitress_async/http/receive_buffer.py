"""Bytes received and not yet understood. Searching and consuming are linear, however the bytes were cut."""

from __future__ import annotations

from waitress_async.errors import BadRequest


class LineTooLong(Exception):
    """No line end within the limit. The caller knows what the line was, and so how to refuse it."""


def bare_line_feed() -> BadRequest:
    return BadRequest("A line must end in CR LF; a bare LF was found.")


class ReceiveBuffer:
    """A window over received bytes: `data[pos:]` is what is left.

    `data` is the very object that was received while that is possible, so that a request which
    arrives in one piece, and the pieces of a large body, are not copied. It becomes a bytearray when
    bytes are joined; a bytearray drops its head without moving its tail.
    """

    __slots__ = ("_scanned", "data", "pos")

    def __init__(self) -> None:
        self.data: bytes | bytearray = b""
        self.pos = 0
        self._scanned = 0  # no line feed in data[pos:_scanned]

    def __len__(self) -> int:
        return len(self.data) - self.pos

    def feed(self, data: bytes) -> None:
        held = self.data
        if self.pos == len(held):
            self.data = data
            self._scanned = self.pos = 0
            return
        if self.pos or not isinstance(held, bytearray):
            if isinstance(held, bytearray):
                del held[: self.pos]
            else:
                self.data = held = bytearray(held[self.pos :])
            self._scanned = max(0, self._scanned - self.pos)
            self.pos = 0
        held += data

    def clear(self) -> None:
        self.data = b""
        self._scanned = self.pos = 0

    def skip_to(self, pos: int) -> None:
        """Consume what is before `pos`."""
        if pos == len(self.data):
            self.data = b""  # the object that was received may be large, and the next one long in coming
            self._scanned = self.pos = 0
        else:
            self.pos = pos

    def take(self, size: int) -> bytes:
        """Consume at most `size` bytes and return them."""
        data, start = self.data, self.pos
        if not start and len(data) <= size:
            self.clear()
            return bytes(data)
        end = min(start + size, len(data))
        self.skip_to(end)
        return bytes(data[start:end])

    def take_line(self, limit: int) -> bytes | None:
        """Consume a line and return it without its CR LF, or return None while its end has not come.

        `limit` counts the whole line with its end, in bytes. Raises LineTooLong beyond it, and
        BadRequest for a bare LF within it.
        """
        start = self.pos
        stop = start + limit
        end = self.data.find(b"\n", max(start, self._scanned), stop)
        if end < 0:
            if len(self.data) >= stop:
                raise LineTooLong
            self._scanned = len(self.data)
            return None
        if end == start or self.data[end - 1] != 0x0D:
            raise bare_line_feed()
        self.pos = end + 1
        return bytes(self.data[start : end - 1])
