"""A response head: status and fields checked and encoded, default fields, the server's own answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from typing import Final, NamedTuple

from waitress_async.errors import HTTPError, PermanentRedirect, ServiceUnavailable

# RFC 9112 section 4. What begins with 1 is not a final response.
_STATUS: Final = re.compile(r"([2-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_LENGTH: Final = re.compile(r"[0-9]{1,19}")

# RFC 9110 section 7.6.1, and PEP 3333 "Other HTTP Features": these are between client and server alone.
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "trailers",
        "transfer-encoding",
        "upgrade",
    }
)

# RFC 9110 section 6.4.1.
_NO_BODY: Final = frozenset({204, 304})

# Characters of what an app gave that are put into a message.
_QUOTED: Final = 200


@dataclass(slots=True)
class ResponseHead:
    """A final status and its fields, encoded. Treat as immutable."""

    status: int
    status_line: bytes  # with its CR LF
    fields: bytes  # field lines, each with its CR LF
    content_length: int | None
    has_date: bool
    has_server: bool
    allows_body: bool  # whether the status does


class Answer(NamedTuple):
    """A whole response that needs no app."""

    head: ResponseHead
    body: bytes


class HeadEncoder:
    """Makes response heads; remembers them and their lines, for apps repeat themselves.

    One per server, shared by the pool's threads: each memo is one dict, whose single operations are
    atomic, and losing an entry to a race costs nothing but doing the work again.
    """

    MAX_ENTRIES: Final = 1_024
    MAX_VALUE: Final = 256  # characters
    MAX_HEADS: Final = 128
    MAX_FIELDS: Final = 32  # of a head that is remembered

    def __init__(self) -> None:
        self._heads: dict[tuple[str, tuple[tuple[str, str], ...]], ResponseHead] = {}
        self._lines: dict[tuple[str, str], tuple[str, bytes]] = {}
        self._status_lines: dict[str, tuple[int, bytes]] = {}

    def encode(self, status: str, headers: Sequence[tuple[str, str]]) -> ResponseHead:
        """Check and encode what an app gave to start_response (PEP 3333).

        Raises TypeError for what is not str, ValueError for what HTTP does not allow, and for
        hop-by-hop fields. May be called from any thread.
        """
        headers = tuple(headers)
        try:
            known = self._heads.get((status, headers))
        except TypeError:  # which is told below, of what has no hash
            known = None
        return known or self._encode(status, headers)

    def _encode(self, status: str, headers: tuple[tuple[str, str], ...]) -> ResponseHead:
        code, status_line = self._status_lines.get(status) or self._encode_status(status)
        repeats = len(headers) <= self.MAX_FIELDS
        lines = []
        content_length: int | None = None
        has_date = has_server = False
        for header in headers:
            try:
                known = self._lines[header]
            except (KeyError, TypeError):
                known = None  # and no exception goes on, which would be shown with that of a wrong field
            if known is None:
                known = self._encode_field(header)
                repeats = False
            name, line = known
            if name:
                if name == "date":
                    has_date = True
                elif name == "server":
                    has_server = True
                else:
                    if content_length is not None:
                        raise ValueError("Content-Length occurs more than once in the response headers")
                    content_length = int(header[1])
                    if code == 204:  # RFC 9110 section 8.6
                        continue
            lines.append(line)
        head = ResponseHead(
            code, status_line, b"".join(lines), content_length, has_date, has_server, code not in _NO_BODY
        )
        if repeats:
            if len(self._heads) >= self.MAX_HEADS:
                self._heads.clear()
            self._heads[status, headers] = head
        return head

    def encode_hints(self, headers: Iterable[tuple[str, str]]) -> bytes:
        """Check and encode a whole 103 (Early Hints) response (RFC 8297). Any thread.

        Raises as `encode` does, and ValueError for a Content-Length (RFC 9110 section 8.6).
        """
        lines = [b"HTTP/1.1 103 Early Hints\r\n"]
        for header in headers:
            name, line = self._encode_field(header)
            if name == "content-length":
                raise ValueError("early hints must not have a Content-Length")
            lines.append(line)
        lines.append(b"\r\n")
        return b"".join(lines)

    def _encode_status(self, status: str) -> tuple[int, bytes]:
        if not isinstance(status, str):
            raise TypeError(f"status must be a str, not {type(status).__name__}")
        match = _STATUS.fullmatch(status)
        if match is None:
            raise ValueError(
                f"status must be three digits from 200 on, a space and a reason, not {_quote(status)}"
            )
        code = int(match[1])
        line = f"HTTP/1.1 {status if len(status) > 3 else status + ' '}\r\n".encode("latin-1")
        if len(self._status_lines) >= self.MAX_ENTRIES:
            self._status_lines.clear()
        self._status_lines[status] = code, line
        return code, line

    def _encode_field(self, header: tuple[str, str]) -> tuple[str, bytes]:
        """Return the lower-case name if the server must know of the field, "" otherwise, and its line."""
        name, value = header
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"a header must be two str, not {_quote(header)}")
        if not _NAME.fullmatch(name):
            raise ValueError(f"a header name must be a token, not {_quote(name)}")
        if not _VALUE.fullmatch(value):
            raise ValueError(
                f"the value of header {name[:_QUOTED]} must be latin-1 without control characters: "
                f"{_quote(value)}"
            )
        lower = name.lower()
        if lower in _HOP_BY_HOP:
            raise ValueError(f"{name} is a hop-by-hop header; a WSGI app must not set it (PEP 3333)")
        if lower == "content-length" and not _LENGTH.fullmatch(value):
            raise ValueError(f"Content-Length must be a decimal number, not {_quote(value)}")
        kind = lower if lower in {"content-length", "date", "server"} else ""
        encoded = kind, f"{name}: {value}\r\n".encode("latin-1")
        if len(value) <= self.MAX_VALUE and lower != "set-cookie":
            if len(self._lines) >= self.MAX_ENTRIES:
                self._lines.clear()
            self._lines[name, value] = encoded
        return encoded


def _quote(value: object) -> str:
    """What an app gave, for a message: it may have come from a client."""
    text = ascii(value)
    return text if len(text) <= _QUOTED else text[:_QUOTED] + "..."


class DefaultFields:
    """The Date and Server lines that a response gets when its app gave none. One per server, on its loop."""

    __slots__ = ("_both", "_date", "_second", "_server")

    def __init__(self, ident: str | None) -> None:
        """`ident` is the value of Server; None leaves the field out. ValueError if it is no field value."""
        if ident and not _VALUE.fullmatch(ident):
            raise ValueError(f"ident must be latin-1 without control characters: {ident!r}")
        self._server = f"Server: {ident}\r\n".encode("latin-1") if ident else b""
        self._second = -1
        self._date = self._both = b""

    def lines(self, head: ResponseHead, now: float) -> bytes:
        """The lines that `head` lacks. `now` is seconds since the epoch; the date is made once a second."""
        if not 0 <= now - self._second < 1:
            self._second = second = int(now)
            self._date = f"Date: {formatdate(second, usegmt=True)}\r\n".encode("ascii")
            self._both = self._server + self._date
        if not head.has_date and not head.has_server:
            return self._both
        return (b"" if head.has_server else self._server) + (b"" if head.has_date else self._date)


def error_response(error: HTTPError, encoder: HeadEncoder) -> Answer:
    """The one place where the server's own answers are rendered: reason, detail, setting exceeded."""
    detail = error.detail
    if error.setting:
        detail += f" (setting: {error.setting})"
    body = f"{error.status} {error.reason}\n\n{detail}\n".encode("utf-8", "backslashreplace")
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    if isinstance(error, ServiceUnavailable) and error.retry_after is not None:
        headers.append(("Retry-After", str(error.retry_after)))
    if isinstance(error, PermanentRedirect):
        headers.append(("Location", error.location))
    return Answer(encoder.encode(f"{error.status} {error.reason}", headers), body)
