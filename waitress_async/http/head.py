"""A request head: request line and fields, judged in the order of their bytes (RFC 9112)."""

from __future__ import annotations

from typing import Final

from waitress_async.errors import (
    BadRequest,
    ContentTooLarge,
    ExpectationFailed,
    HeaderFieldsTooLarge,
    MethodNotImplemented,
    RequestError,
    URITooLong,
)
from waitress_async.http import grammar
from waitress_async.http.events import RepeatedFields, Request
from waitress_async.http.limits import Limits
from waitress_async.http.memo import HeadMemo
from waitress_async.http.receive_buffer import ReceiveBuffer, bare_line_feed
from waitress_async.http.request_line import RequestLine, why_malformed

_SINGLE: Final = {
    "HTTP_HOST": "Host",
    "CONTENT_LENGTH": "Content-Length",
    "CONTENT_TYPE": "Content-Type",
}

# What a request line may hold beyond its target: a method, two spaces, a version.
_AROUND_TARGET: Final = 64
_LONGEST_METHOD: Final = _AROUND_TARGET - len("  HTTP/1.1")

# Heads up to this size, in bytes, are compared with the one before them.
_REPEAT_LIMIT: Final = 2_048


class HeadReader:
    """Reads one head after another out of a ReceiveBuffer.

    A head that has arrived whole is split once, and if it is the very one of the request before it on this
    connection, or its field section is, not even that. Until a head has arrived whole, the lines that are
    complete are taken as they come and never looked at again; so an error is raised when its byte
    arrives, every cut of the same bytes gives the same outcome, and a byte at a time costs what the whole
    costs.
    """

    __slots__ = (
        "_count",
        "_empty_lines",
        "_fields",
        "_last",
        "_last_head",
        "_last_section",
        "_limits",
        "_longest_line",
        "_memo",
        "_request_line",
        "_scanned",
        "_taken",
    )

    def __init__(self, limits: Limits, memo: HeadMemo) -> None:
        self._limits = limits
        self._longest_line = limits.target_size + _AROUND_TARGET
        self._memo = memo
        self._last: Request | None = None  # the request before, and the bytes it came as
        self._last_head = b""
        self._last_section = 0  # where its field section begins
        self._empty_lines = 0
        self._begin()

    def _begin(self) -> None:
        self._request_line: RequestLine | None = None
        self._fields: dict[str, str] = {}
        self._count = 0
        self._taken = 0  # bytes of lines taken, from the start of the head
        self._scanned = 0  # bytes in which the end of the head was looked for

    @property
    def method(self) -> str | None:
        """The method of the head being read, once its first line is known."""
        return self._request_line.method if self._request_line else None

    def read(self, buffer: ReceiveBuffer) -> Request | None:
        """Consume a head and return it, or return None while it is incomplete. Raises RequestError.

        The same object as the last time, if the same bytes have come.
        """
        data, start = buffer.data, buffer.pos
        last = self._last
        if last is not None and not self._scanned and data.startswith(self._last_head, start):
            buffer.skip_to(start + len(self._last_head))
            self._empty_lines = 0
            return last
        if not self._taken:
            if data.startswith(b"\r", start):
                if not self._skip_empty_lines(buffer):
                    return None
                start = buffer.pos
            if start == len(data):
                return None
        limit = start + self._limits.header_size
        if self._scanned:
            return self._resume(buffer, start, limit)
        end = data.find(b"\r\n\r\n", start, limit)
        if end < 0:
            self._take_arrived(data, start, limit)
            return None
        end += 4
        buffer.skip_to(end)
        self._empty_lines = 0
        return self._read_whole(bytes(data[start:end]))

    def _read_whole(self, head: bytes) -> Request:
        """A head that arrived in one piece."""
        line, _, section = head.partition(b"\r\n")
        request_line = self._take_request_line(line)
        method, target, authority, path, query, http_11 = request_line
        last = self._last
        if (
            last is not None
            and section == self._last_head[self._last_section :]
            and last.http_11 is http_11
            and authority is None
        ):
            self._request_line = None
            request = Request(
                method,
                target,
                path,
                query,
                http_11,
                last.fields,
                last.keep_alive,
                last.content_length,
                last.chunked,
                last.expect_continue,
            )
        else:
            if len(section) > 2:
                self._take_fields(section[:-4])
            request = self._finish(request_line)
        if authority is None and len(head) <= _REPEAT_LIMIT:
            self._last, self._last_head, self._last_section = request, head, len(line) + 2
            request.may_repeat = True
        return request

    def _resume(self, buffer: ReceiveBuffer, start: int, limit: int) -> Request | None:
        """A head of which a part was judged already."""
        data = buffer.data
        taken = start + self._taken
        end = data.find(b"\r\n\r\n", max(start, taken - 2, start + self._scanned - 3), limit)
        if end < 0:
            self._take_arrived(data, start, limit)
            return None
        if end > taken:
            self._take_lines(bytes(data[taken:end]))
        buffer.skip_to(end + 4)
        self._empty_lines = 0
        assert self._request_line is not None
        return self._finish(self._request_line)

    def _skip_empty_lines(self, buffer: ReceiveBuffer) -> bool:
        """Skip a few empty lines (RFC 9112 section 2.2). False if nothing is known of what follows them."""
        data = buffer.data
        while data.startswith(b"\r\n", buffer.pos):
            self._empty_lines += 1
            if self._empty_lines > self._limits.empty_lines:
                raise BadRequest("Too many empty lines before the request line.")
            buffer.pos += 2
        return data[buffer.pos :] != b"\r"

    def _take_arrived(self, data: bytes | bytearray, start: int, limit: int) -> None:
        """Judge what has arrived of an incomplete head, up to `limit`."""
        stop = min(len(data), limit)
        taken = start + self._taken
        scanned = start + self._scanned
        last = data.rfind(b"\r\n", max(taken, scanned - 1), stop)
        if last >= 0:
            self._take_lines(bytes(data[taken:last]))
            taken = last + 2
        if self._request_line is None:
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
            raise why_malformed(first)
        if stop - start > self._longest_line + 1:  # whose last byte can be the CR of its end
            raise self._request_line_too_long(bytes(data[start:stop]))

    def _request_line_too_long(self, line: bytes) -> RequestError:
        beginning = line[: self._longest_line + 1]
        method, _, _ = beginning.partition(b" ")
        if b"\n" in beginning or len(method) > _LONGEST_METHOD or not grammar.TOKEN.match(beginning):
            return why_malformed(beginning)
        return self._target_too_long()

    def _target_too_long(self) -> URITooLong:
        return URITooLong(
            f"The request target exceeds {self._limits.target_size} bytes.", setting="max_request_target_size"
        )

    def _take_lines(self, block: bytes) -> None:
        if self._request_line is None:
            line, _, block = block.partition(b"\r\n")
            self._take_request_line(line)
            if not block:
                return
        self._take_fields(block)

    def _take_request_line(self, line: bytes) -> RequestLine:
        if len(line) > self._longest_line:
            raise self._request_line_too_long(line)
        memo = self._memo.request_lines
        self._request_line = request_line = memo.recent.get(line) or memo.parse(line)
        if len(request_line.target) > self._limits.target_size:
            raise self._target_too_long()
        return request_line

    def _take_fields(self, block: bytes) -> None:
        lines = block.split(b"\r\n")
        self._count += len(lines)
        too_many = self._count - self._limits.header_fields
        surplus = b""
        if too_many > 0:
            surplus = lines[-too_many]
            del lines[-too_many:]
        fields = self._fields
        parse = self._memo.fields.parse
        known = self._memo.fields.recent.get  # still good to ask if a line that is new to it begins another
        for line in lines:
            key, value = known(line) or parse(line)
            if key not in fields:
                fields[key] = value
            elif key in _SINGLE:
                raise BadRequest(f"{_SINGLE[key]} occurs more than once.")
            elif key:
                if not isinstance(fields, RepeatedFields):
                    fields = self._fields = RepeatedFields(fields)
                fields.add_line(key, value)
        if too_many > 0:
            if b"\n" in surplus:
                raise bare_line_feed()
            raise HeaderFieldsTooLarge(
                f"More than {self._limits.header_fields} field lines.", setting="max_request_header_fields"
            )

    def _finish(self, line: RequestLine) -> Request:
        """The checks that need the whole head: Host, framing (RFC 9112 section 6), the connection."""
        fields = self._fields
        fields.pop("", None)
        if line.http_11 and "HTTP_HOST" not in fields:
            raise BadRequest("An HTTP/1.1 request must have a Host field.")
        if line.authority is not None:
            fields["HTTP_HOST"] = line.authority
        length: int | None = None
        chunked = False
        if "HTTP_TRANSFER_ENCODING" in fields:
            _check_transfer_encoding(
                fields.pop("HTTP_TRANSFER_ENCODING"), line.http_11, "CONTENT_LENGTH" in fields
            )
            chunked = True
        elif "CONTENT_LENGTH" in fields:
            length = int(fields["CONTENT_LENGTH"])
            if length > self._limits.body_size:
                raise body_too_large(self._limits)
        expect_continue = False
        if "HTTP_EXPECT" in fields and line.http_11:
            if fields["HTTP_EXPECT"].lower() != "100-continue":
                raise ExpectationFailed("Only the expectation 100-continue can be met.")
            expect_continue = chunked or bool(length)
        keep_alive = line.http_11
        if "HTTP_CONNECTION" in fields:
            keep_alive = _wants_keep_alive(fields["HTTP_CONNECTION"], line.http_11)
        self._begin()
        return Request(
            line.method,
            line.target,
            line.path,
            line.query,
            line.http_11,
            fields,
            keep_alive,
            length,
            chunked,
            expect_continue,
        )


def body_too_large(limits: Limits) -> ContentTooLarge:
    return ContentTooLarge(
        f"The request body exceeds {limits.body_size} bytes.", setting="max_request_body_size"
    )


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
    value = value.lower()
    if value == "close":  # as it often is, and alone
        return False
    options = {option.strip(" \t") for option in value.split(",")}
    return "close" not in options and (http_11 or "keep-alive" in options)
