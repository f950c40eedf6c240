"""A request head: request line and fields, judged in the order of their bytes (RFC 9112 sections 2, 3, 5, 6)."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote_to_bytes

from waitress_async.errors import (
    BadRequest,
    ContentTooLarge,
    ExpectationFailed,
    HeaderFieldsTooLarge,
    MethodNotImplemented,
    RequestError,
    URITooLong,
    VersionNotSupported,
)
from waitress_async.http import grammar
from waitress_async.http.events import Request
from waitress_async.http.fields import FieldMemo
from waitress_async.http.limits import Limits
from waitress_async.http.receive_buffer import ReceiveBuffer, bare_line_feed

_SINGLE: Final = {
    "HTTP_HOST": "Host",
    "CONTENT_LENGTH": "Content-Length",
    "CONTENT_TYPE": "Content-Type",
}

# What a request line may hold beyond its target: a method, two spaces, a version.
_AROUND_TARGET: Final = 64


class HeadReader:
    """Reads one head after another out of a ReceiveBuffer.

    A head that has arrived whole is split once. Until it has, the lines that are complete are taken
    as they come and never looked at again; so an error is raised when its byte arrives, every cut of
    the same bytes gives the same outcome, and a byte at a time costs what the whole costs.
    """

    __slots__ = ("_count", "_empty_lines", "_fields", "_limits", "_memo", "_scanned", "_start_line", "_taken")

    def __init__(self, limits: Limits, memo: FieldMemo) -> None:
        self._limits = limits
        self._memo = memo
        self._reset()
        self._empty_lines = 0

    def _reset(self) -> None:
        self._start_line: tuple[str, str, bytes | None, str, str, bool] | None = None
        self._fields: dict[str, str] = {}
        self._count = 0
        self._taken = 0  # bytes of lines taken, from the start of the head
        self._scanned = 0  # bytes in which the end of the head was looked for

    @property
    def method(self) -> str | None:
        """The method of the head being read, once its first line is known."""
        return self._start_line[0] if self._start_line else None

    def read(self, buffer: ReceiveBuffer) -> Request | None:
        """Consume a head and return it, or return None while it is incomplete. Raises RequestError."""
        if not self._taken and not self._skip_empty_lines(buffer):
            return None
        data, start = buffer.data, buffer.pos
        limit = start + self._limits.header_size
        taken = start + self._taken
        end = data.find(b"\r\n\r\n", max(start, taken - 2, start + self._scanned - 3), limit)
        if end >= 0:
            if end > taken or not self._taken:
                self._take_lines(bytes(data[taken:end]))
            request = self._finish()
            buffer.pos = end + 4
            self._empty_lines = 0
            self._reset()
            return request
        self._take_arrived(data, start, limit)
        return None

    def _skip_empty_lines(self, buffer: ReceiveBuffer) -> bool:
        """Skip a few empty lines (RFC 9112 section 2.2). False if nothing follows them yet."""
        data = buffer.data
        while data.startswith(b"\r\n", buffer.pos):
            self._empty_lines += 1
            if self._empty_lines > self._limits.empty_lines:
                raise BadRequest("Too many empty lines before the request line.")
            buffer.pos += 2
        return len(data) - buffer.pos > 1 or data[buffer.pos :] not in (b"", b"\r")

    def _take_arrived(self, data: bytes | bytearray, start: int, limit: int) -> None:
        """Judge what has arrived of an incomplete head, up to `limit`."""
        stop = min(len(data), limit)
        taken = start + self._taken
        scanned = start + self._scanned
        last = data.rfind(b"\r\n", max(taken, scanned - 1), stop)
        if last >= 0:
            self._take_lines(bytes(data[taken:last]))
            taken = last + 2
        if self._start_line is None:
            self._check_partial_request_line(data, taken, stop)
        if data.find(b"\n", max(taken, scanned), stop) >= 0:
            raise bare_line_feed()
        if stop == limit:
            raise HeaderFieldsTooLarge(
                f"The request head exceeds {self._limits.header_size} bytes.",
                setting="max_request_header_size",
            )
        self._taken = taken - start
        self._scanned = stop - start

    def _check_partial_request_line(self, data: bytes | bytearray, start: int, stop: int) -> None:
        first = bytes(data[start : start + 1])
        if not grammar.TOKEN.match(first):
            raise _malformed_request_line(first)
        longest = self._limits.target_size + _AROUND_TARGET
        if stop - start > longest:
            raise self._request_line_too_long(bytes(data[start : start + longest]))

    def _request_line_too_long(self, beginning: bytes) -> RequestError:
        if b"\n" in beginning or b" " not in beginning or not grammar.TOKEN.match(beginning):
            return _malformed_request_line(beginning)
        return self._target_too_long()

    def _target_too_long(self) -> URITooLong:
        return URITooLong(
            f"The request target exceeds {self._limits.target_size} bytes.", setting="max_request_target_size"
        )

    def _take_lines(self, block: bytes) -> None:
        lines = block.split(b"\r\n")
        if self._start_line is None:
            self._start_line = self._parse_request_line(lines.pop(0))
        self._count += len(lines)
        too_many = self._count > self._limits.header_fields
        if too_many:
            first_surplus = len(lines) - (self._count - self._limits.header_fields)
            surplus = lines[first_surplus]
            del lines[first_surplus:]
        fields = self._fields
        known = self._memo.recent.get
        for line in lines:
            key, value = known(line) or self._memo.parse(line)
            if key not in fields:
                fields[key] = value
            elif key in _SINGLE:
                raise BadRequest(f"{_SINGLE[key]} occurs more than once.")
            elif key:
                fields[key] += ("; " if key == "HTTP_COOKIE" else ", ") + value
        if too_many:
            if b"\n" in surplus:
                raise bare_line_feed()
            raise HeaderFieldsTooLarge(
                f"More than {self._limits.header_fields} field lines.", setting="max_request_header_fields"
            )

    def _parse_request_line(self, line: bytes) -> tuple[str, str, bytes | None, str, str, bool]:
        """RFC 9112 section 3. Returns method, target, authority (of the absolute form), path, query, is 1.1."""
        longest = self._limits.target_size + _AROUND_TARGET
        if len(line) > longest:
            raise self._request_line_too_long(line[:longest])
        match = grammar.REQUEST_LINE.fullmatch(line)
        if match is None:
            raise _malformed_request_line(line)
        method, target, version = match.groups()
        if version == b"HTTP/1.1":
            http_11 = True
        elif version == b"HTTP/1.0":
            http_11 = False
        else:
            raise VersionNotSupported("Only HTTP/1.0 and HTTP/1.1 are spoken here.")
        if len(target) > self._limits.target_size:
            raise self._target_too_long()
        if method == b"CONNECT":
            raise MethodNotImplemented("CONNECT is not implemented.")
        authority = None
        path = target
        if target[:1] != b"/":
            authority, path = _split_target(method, target)
        elif b"#" in target:
            raise BadRequest("A request target must not hold a fragment.")
        path, _, query = path.partition(b"?")
        if b"%" in path:
            path = unquote_to_bytes(path)
        return (
            method.decode("ascii"),
            target.decode("ascii"),
            authority,
            path.decode("latin-1"),
            query.decode("ascii"),
            http_11,
        )

    def _finish(self) -> Request:
        """The checks that need the whole head: Host, framing (RFC 9112 section 6), expectation, persistence."""
        assert self._start_line is not None
        method, target, authority, path, query, http_11 = self._start_line
        fields = self._fields
        fields.pop("", None)
        if http_11 and "HTTP_HOST" not in fields:
            raise BadRequest("An HTTP/1.1 request must have a Host field.")
        if authority is not None:
            fields["HTTP_HOST"] = authority.decode("ascii")
        length: int | None = None
        chunked = False
        if "HTTP_TRANSFER_ENCODING" in fields:
            _check_transfer_encoding(
                fields.pop("HTTP_TRANSFER_ENCODING"), http_11, "CONTENT_LENGTH" in fields
            )
            chunked = True
        elif "CONTENT_LENGTH" in fields:
            length = int(fields["CONTENT_LENGTH"])
            if length > self._limits.body_size:
                raise body_too_large(self._limits)
        expect_continue = False
        if "HTTP_EXPECT" in fields and http_11:
            if fields["HTTP_EXPECT"].lower() != "100-continue":
                raise ExpectationFailed("Only the expectation 100-continue can be met.")
            expect_continue = chunked or bool(length)
        keep_alive = http_11
        if "HTTP_CONNECTION" in fields:
            keep_alive = _wants_keep_alive(fields["HTTP_CONNECTION"], http_11)
        return Request(
            method, target, path, query, http_11, fields, keep_alive, length, chunked, expect_continue
        )


def body_too_large(limits: Limits) -> ContentTooLarge:
    return ContentTooLarge(
        f"The request body exceeds {limits.body_size} bytes.", setting="max_request_body_size"
    )


def _malformed_request_line(line: bytes) -> RequestError:
    """Why, judged as far as a reader of single bytes would have come: a wrong first byte before anything else."""
    if line[:1] == b"\x16":
        return BadRequest("This looks like a TLS handshake, and this port speaks plain HTTP.")
    if b"\n" in line and (line[:1] == b"\n" or grammar.TOKEN.match(line)):
        return bare_line_feed()
    return BadRequest("The request line is malformed.")


def _split_target(method: bytes, target: bytes) -> tuple[bytes | None, bytes]:
    """A target that is not in origin form: return its authority, if it has one, and its path with query."""
    if target == b"*" and method == b"OPTIONS":
        return None, b""  # RFC 3875 has no PATH_INFO of "*"; the target itself is in REQUEST_URI
    match = grammar.ABSOLUTE_TARGET.fullmatch(target)
    if match is None:
        raise BadRequest("The request target is neither a path nor an absolute http URL.")
    authority, path = match.groups()
    if not authority or not grammar.is_authority(authority):
        raise BadRequest("The authority of the request target is malformed.")
    if path[:1] != b"/" and not (method == b"OPTIONS" and not path):
        path = b"/" + path
    return authority, path


def _check_transfer_encoding(value: str, http_11: bool, with_length: bool) -> None:
    """RFC 9112 section 6.1: chunked, once and alone, is all that is understood."""
    if not http_11:
        raise BadRequest("Transfer-Encoding has no meaning in HTTP/1.0.")
    if with_length:
        raise BadRequest("Transfer-Encoding and Content-Length exclude each other.")
    if value.lower() == "chunked":
        return
    codings = [coding.strip(" \t").lower() for coding in value.split(",")]
    if codings.count("chunked") > 1:
        raise BadRequest("The coding chunked is applied more than once.")
    if "chunked" in codings[:-1]:
        raise BadRequest("The coding chunked must be the last one.")
    if not all(grammar.TOKEN.fullmatch(coding.encode("latin-1")) for coding in codings):
        raise BadRequest("Transfer-Encoding is malformed.")
    raise MethodNotImplemented("No transfer coding but chunked is implemented.")


def _wants_keep_alive(value: str, http_11: bool) -> bool:
    """RFC 9112 section 9.3. `close` wins over everything else in the list."""
    options = {option.strip(" \t") for option in value.lower().split(",")}
    return "close" not in options and (http_11 or "keep-alive" in options)
