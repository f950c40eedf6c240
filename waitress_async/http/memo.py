"""What was parsed is remembered, for clients repeat themselves. Bounded in entries and in bytes."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Final, Generic, TypeVar

from waitress_async.http.fields import Field, is_private, parse_field_line
from waitress_async.http.request_line import RequestLine, parse_request_line

T = TypeVar("T")


class Memo(Generic[T]):
    """Lines and what they mean, in two generations: when the recent one is full it becomes the older one,
    and a line that is asked for again moves back.

    `recent` is public so that a hit costs one dict look-up: `memo.recent.get(line) or memo.parse(line)`.
    """

    MAX_LINE: Final = 512  # bytes
    MAX_ENTRIES: Final = 1_024  # in each generation
    MAX_BYTES: Final = 131_072  # of lines, in each generation

    __slots__ = ("_is_private", "_older", "_parse", "_size", "recent")

    def __init__(self, parse: Callable[[bytes], T], is_private: Callable[[T], bool]) -> None:
        """`parse` may raise; what `is_private` says yes to is never kept."""
        self._parse = parse
        self._is_private = is_private
        self.recent: dict[bytes, T] = {}
        self._older: dict[bytes, T] = {}
        self._size = 0

    def parse(self, line: bytes) -> T:
        """The meaning of a line that `recent` does not hold. Raises as `parse` does."""
        value = self._older.get(line)
        if value is None:
            value = self._parse(line)
            if len(line) > self.MAX_LINE or self._is_private(value):
                return value
        self._size += len(line)
        if len(self.recent) >= self.MAX_ENTRIES or self._size > self.MAX_BYTES:
            self._older, self.recent, self._size = self.recent, {}, len(line)
        self.recent[line] = value
        return value


class HeadMemo:
    """The memos for the lines of request heads. Shared by connections, used on their loop only."""

    __slots__ = ("fields", "request_lines")

    def __init__(self, dropped: Container[str] = ()) -> None:
        """`dropped` are CGI names (`HTTP_...`) of fields that no request shall have."""
        self.fields: Memo[Field] = Memo(lambda line: parse_field_line(line, dropped), is_private)
        # A query can hold a secret, and is seldom asked for twice.
        self.request_lines: Memo[RequestLine] = Memo(parse_request_line, lambda line: bool(line.query))
