"""Request bodies: readers of framed bytes into `Data` and `END_OF_MESSAGE` (RFC 9112 sections 6, 7)."""

from __future__ import annotations

import enum

from waitress_async.errors import BadRequest, HeaderFieldsTooLarge
from waitress_async.http import grammar
from waitress_async.http.events import END_OF_MESSAGE, Data, Signal
from waitress_async.http.fields import parse_field_line
from waitress_async.http.head import body_too_large
from waitress_async.http.limits import Limits
from waitress_async.http.receive_buffer import LineTooLong, ReceiveBuffer


class LengthReader:
    """A body of a length that is known beforehand."""

    __slots__ = ("remaining",)

    def __init__(self, length: int) -> None:
        self.remaining = length

    def read(self, buffer: ReceiveBuffer) -> Data | Signal | None:
        if not self.remaining:
            return END_OF_MESSAGE
        data = buffer.take(self.remaining)
        if not data:
            return None
        self.remaining -= len(data)
        return Data(data)


class _Expect(enum.Enum):
    SIZE = enum.auto()
    DATA = enum.auto()
    DATA_END = enum.auto()
    TRAILER = enum.auto()


class ChunkedReader:
    """A chunked body. Extensions and trailers are validated, bounded, and thrown away."""

    __slots__ = (
        "_expect",
        "_extensions",
        "_limits",
        "_remaining",
        "_size",
        "_trailer_lines",
        "_trailer_size",
    )

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._expect = _Expect.SIZE
        self._remaining = 0  # of the chunk being read
        self._size = 0  # of the decoded body so far, the chunk being read included
        self._extensions = 0
        self._trailer_lines = 0
        self._trailer_size = 0

    def read(self, buffer: ReceiveBuffer) -> Data | Signal | None:
        """The next event, or None while there are too few bytes. Raises RequestError."""
        while True:
            if self._expect is _Expect.DATA:
                data = buffer.take(self._remaining)
                if not data:
                    return None
                self._remaining -= len(data)
                if not self._remaining:
                    self._expect = _Expect.DATA_END
                return Data(data)
            if self._expect is _Expect.DATA_END:
                if not self._read_data_end(buffer):
                    return None
            elif self._expect is _Expect.SIZE:
                if not self._read_size(buffer):
                    return None
            else:
                return self._read_trailers(buffer)

    def _read_size(self, buffer: ReceiveBuffer) -> bool:
        try:
            line = buffer.take_line(self._limits.chunk_line_size)
        except LineTooLong:
            limit = self._limits.chunk_line_size
            raise BadRequest(f"A chunk's size and extensions exceed {limit} bytes.") from None
        if line is None:
            return False
        match = grammar.CHUNK_LINE.fullmatch(line)
        if match is None:
            raise BadRequest("A chunk's size or its extensions are malformed.")
        digits, extensions = match.groups()
        self._extensions += len(extensions)
        if self._extensions > self._limits.chunk_extensions_size:
            limit = self._limits.chunk_extensions_size
            raise BadRequest(f"The chunk extensions of this request exceed {limit} bytes.")
        self._remaining = int(digits, 16)
        self._size += self._remaining
        if self._size > self._limits.body_size:
            raise body_too_large(self._limits)
        self._expect = _Expect.DATA if self._remaining else _Expect.TRAILER
        return True

    def _read_data_end(self, buffer: ReceiveBuffer) -> bool:
        data = buffer.data[buffer.pos : buffer.pos + 2]
        if not b"\r\n".startswith(data):
            raise BadRequest("A chunk is longer than its size says.")
        if len(data) < 2:
            return False
        buffer.pos += 2
        self._expect = _Expect.SIZE
        return True

    def _read_trailers(self, buffer: ReceiveBuffer) -> Signal | None:
        while True:
            try:
                line = buffer.take_line(self._limits.trailer_size - self._trailer_size)
            except LineTooLong:
                limit = self._limits.trailer_size
                raise HeaderFieldsTooLarge(f"The trailer section exceeds {limit} bytes.") from None
            if line is None:
                return None
            if not line:
                return END_OF_MESSAGE
            self._trailer_size += len(line) + 2
            self._trailer_lines += 1
            if self._trailer_lines > self._limits.header_fields:
                raise HeaderFieldsTooLarge(
                    f"More than {self._limits.header_fields} trailer lines.",
                    setting="max_request_header_fields",
                )
            parse_field_line(line)
