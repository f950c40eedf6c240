"""What a stream of HTTP/1.1 requests says: a second reader, which shares nothing with the server's.

Written from RFC 9110 and RFC 9112 alone, for the whole stream at once, and to be checked by reading it: slow,
a byte at a time, without regular expressions. Where the RFCs leave a choice to a server it takes the strict
one, and what this server has promised to refuse (docs/from-waitress.md) it refuses.

It must import nothing of ours.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

ALPHA = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
DIGIT = b"0123456789"
HEXDIG = DIGIT + b"ABCDEFabcdef"
TCHAR = b"!#$%&'*+-.^_`|~" + DIGIT + ALPHA  # RFC 9110 section 5.6.2
VCHAR = bytes(range(0x21, 0x7F))
OBS_TEXT = bytes(range(0x80, 0x100))
SP, HTAB, DQUOTE, BACKSLASH = b" ", b"\t", b'"', b"\\"
FIELD_VALUE = VCHAR + OBS_TEXT + SP + HTAB  # RFC 9110 section 5.5
REG_NAME = b"-._~!$&'()*+,;=" + DIGIT + ALPHA  # RFC 3986 section 3.2.2, but for percent-encoded bytes


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much of each part is read before it is refused. In bytes; what is as large as its bound is read."""

    header_size: int  # from the first byte of the request line to the empty line's last one
    request_line_size: int  # without its line end
    header_fields: int  # lines of a field section, and of a trailer section
    target_size: int
    body_size: int  # of the content
    chunk_line_size: int  # with its line end
    chunk_extensions_size: int  # of all chunks of a body together
    trailer_size: int  # with the empty line
    empty_lines: int  # before a request line


@dataclass(frozen=True, slots=True)
class Seen:
    """A request, as it stands in the stream. Of one that is not `complete`, the body is what came of it."""

    method: bytes
    target: bytes
    version: bytes
    authority: bytes | None  # of a target in absolute form
    path: bytes  # percent-decoded; empty for the asterisk form
    query: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    keep_alive: bool
    content_length: int | None
    chunked: bool
    expect_continue: bool
    body: bytes = b""
    complete: bool = False


class Ending(enum.Enum):
    CLEAN = "the stream ends between two requests"
    CLOSED = "a request was the last one by what it said; what follows it is not read"
    INCOMPLETE = "the stream ends within a request"
    REFUSED = "a request is malformed, or not for this server; what follows is not read"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a stream says. Only the last request may be incomplete: its head was good, its body was not."""

    requests: tuple[Seen, ...]
    ending: Ending
    position: int  # the first byte that belongs to none of the complete requests
    why: str = ""


class Refused(Exception):
    """The rule that was broken."""


class Incomplete(Exception):
    """The stream ends where it may not."""


class _BodyBroken(Exception):
    """A body that is refused or incomplete, and what of it came before."""

    def __init__(self, body: bytes, cause: Refused | Incomplete) -> None:
        self.body = body
        self.cause = cause


def read(stream: bytes, bounds: Bounds) -> Reading:
    """All that a connection says whose client sends these bytes and then ends its side."""
    requests: list[Seen] = []
    position = 0
    while True:
        start = position
        try:
            start = skip_empty_lines(stream, position, bounds)
            if start == len(stream):
                return Reading(tuple(requests), Ending.CLEAN, position)
            head, after_head = read_head(stream, start, bounds)
            try:
                body, position = read_body(stream, after_head, head, bounds)
            except _BodyBroken as broken:
                requests.append(replace(head, body=broken.body))
                raise broken.cause from None
        except Refused as error:
            return Reading(tuple(requests), Ending.REFUSED, start, str(error))
        except Incomplete:
            return Reading(tuple(requests), Ending.INCOMPLETE, start)
        requests.append(replace(head, body=body, complete=True))
        if not head.keep_alive:
            return Reading(tuple(requests), Ending.CLOSED, position)


# -- lines (RFC 9112 section 2.2)


def read_line(stream: bytes, position: int) -> tuple[bytes, int]:
    """A line without its CR LF, and where the next one begins."""
    end = position
    while end < len(stream) and stream[end : end + 1] != b"\n":
        end += 1
    if end == len(stream):
        raise Incomplete
    line = stream[position:end]
    if line[-1:] != b"\r":
        raise Refused("a line feed without a carriage return")
    return line[:-1], end + 1


def skip_empty_lines(stream: bytes, position: int, bounds: Bounds) -> int:
    count = 0
    while stream[position : position + 2] == b"\r\n":
        count += 1
        if count > bounds.empty_lines:
            raise Refused("too many empty lines before a request line")
        position += 2
    return position


# -- heads


def read_head(stream: bytes, start: int, bounds: Bounds) -> tuple[Seen, int]:
    """What a head says, still without a body, and where its body begins."""
    line, position = read_line(stream, start)
    if len(line) > bounds.request_line_size:
        raise Refused("the request line is too long")
    method, target, version = read_request_line(line)
    if len(target) > bounds.target_size:
        raise Refused("the target is too long")
    fields = []
    while True:
        line, position = read_line(stream, position)
        if position - start > bounds.header_size:
            raise Refused("the head is too large")
        if line == b"":
            break
        fields.append(read_field(line))
        if len(fields) > bounds.header_fields:
            raise Refused("too many fields")
    authority, path, query = read_target(method, target)
    check_host(version, fields)
    if len(values_of(b"content-type", fields)) > 1:
        raise Refused("two content types")
    content_length, chunked = read_framing(version, fields)
    if content_length is not None and content_length > bounds.body_size:
        raise Refused("the body is too large")
    has_body = chunked or (content_length is not None and content_length > 0)
    expects = read_expectation(version, fields)
    head = Seen(
        method,
        target,
        version,
        authority,
        path,
        query,
        tuple(fields),
        read_persistence(version, fields),
        content_length,
        chunked,
        expects and has_body,
    )
    return head, position


def read_request_line(line: bytes) -> tuple[bytes, bytes, bytes]:
    """RFC 9112 section 3: three parts, and one space between them."""
    parts = line.split(SP)
    if len(parts) != 3:
        raise Refused("a request line has three parts")
    method, target, version = parts
    if not consists_of(TCHAR, method):
        raise Refused("a method is a token")
    if method == b"CONNECT":
        raise Refused("CONNECT is for proxies")
    if not consists_of(VCHAR, target):
        raise Refused("a target is of visible characters")
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise Refused("another version")
    return method, target, version


def read_field(line: bytes) -> tuple[bytes, bytes]:
    """RFC 9112 section 5: a token, a colon at once, a value with white space around it.

    What is malformed in a head is in a trailer section, where it means nothing, too.
    """
    name, colon, value = line.partition(b":")
    if not colon:
        raise Refused("a field has a colon")
    if not consists_of(TCHAR, name):  # a folded line begins with white space, and so is here too
        raise Refused("a field name is a token")
    for byte in value:
        if byte not in FIELD_VALUE:
            raise Refused("a control character in a field value")
    value = trim(value)
    if name.lower() == b"host":
        check_authority(value)
    if name.lower() == b"content-length" and not (consists_of(DIGIT, value) and len(value) <= 19):
        raise Refused("a length is of digits")
    return name, value


def trim(value: bytes) -> bytes:
    while value[:1] in (SP, HTAB):
        value = value[1:]
    while value[-1:] in (SP, HTAB):
        value = value[:-1]
    return value


def consists_of(characters: bytes, text: bytes) -> bool:
    """One character at least, and all of these."""
    return len(text) > 0 and all(byte in characters for byte in text)


def values_of(name: bytes, fields: list[tuple[bytes, bytes]]) -> list[bytes]:
    return [value for other, value in fields if other.lower() == name]


# -- targets (RFC 9112 section 3.2)


def read_target(method: bytes, target: bytes) -> tuple[bytes | None, bytes, bytes]:
    """Authority, decoded path, query."""
    if b"#" in target:
        raise Refused("a target has no fragment")
    authority = None
    if target == b"*":
        if method != b"OPTIONS":
            raise Refused("the asterisk form is for OPTIONS")
        return None, b"", b""
    if target[:1] == b"/":
        rest = target
    else:
        scheme, mark, rest = target.partition(b"://")
        if not mark or scheme.lower() not in (b"http", b"https"):
            raise Refused("neither a path nor an http URL")
        end = 0
        while end < len(rest) and rest[end : end + 1] not in (b"/", b"?"):
            end += 1
        authority, rest = rest[:end], rest[end:]
        if authority == b"" or authority[:1] == b":":
            raise Refused("an http URL has a host")  # RFC 9110 section 4.2.1
        check_authority(authority)
    path, _, query = rest.partition(b"?")
    if path == b"" and not (method == b"OPTIONS" and rest == b""):  # RFC 9112 section 3.2.4
        path = b"/"
    return authority, percent_decoded(path), query


def percent_decoded(path: bytes) -> bytes:
    decoded = b""
    position = 0
    while position < len(path):
        digits = path[position + 1 : position + 3]
        if path[position : position + 1] == b"%" and len(digits) == 2 and consists_of(HEXDIG, digits):
            decoded += bytes([int(digits, 16)])
            position += 3
        else:
            decoded += path[position : position + 1]
            position += 1
    return decoded


# -- Host (RFC 9110 section 7.2, RFC 9112 section 3.2)


def check_host(version: bytes, fields: list[tuple[bytes, bytes]]) -> None:
    hosts = values_of(b"host", fields)
    if len(hosts) > 1:
        raise Refused("two hosts")
    if not hosts and version == b"HTTP/1.1":
        raise Refused("no host")


def check_authority(authority: bytes) -> None:
    """RFC 3986 section 3.2, without user information."""
    if authority[:1] == b"[":
        host, bracket, rest = authority[1:].partition(b"]")
        if not bracket or not is_ipv6(host):
            raise Refused("no IPv6 address in brackets")
        if rest == b"":
            return
        if rest[:1] != b":":
            raise Refused("text after a bracket")
        check_port(rest[1:])
        return
    host, colon, port = authority.partition(b":")
    if colon:
        check_port(port)
    while host:
        if host[:1] == b"%":
            if len(host) < 3 or not consists_of(HEXDIG, host[1:3]):
                raise Refused("a percent sign without two digits")
            host = host[3:]
        elif host[0] in REG_NAME:
            host = host[1:]
        else:
            raise Refused("a character that no host has")


def check_port(port: bytes) -> None:
    if port == b"":
        return
    if not consists_of(DIGIT, port) or len(port) > 5 or int(port) > 65_535:
        raise Refused("no port")


def is_ipv6(text: bytes) -> bool:
    """RFC 3986 section 3.2.2: eight groups, or fewer with one gap."""
    before, gap, after = text.partition(b"::")
    if not gap:
        return groups_of(text, may_end_in_ipv4=True) == 8
    left = 0 if before == b"" else groups_of(before, may_end_in_ipv4=False)
    right = 0 if after == b"" else groups_of(after, may_end_in_ipv4=True)
    return left is not None and right is not None and left + right <= 7


def groups_of(text: bytes, may_end_in_ipv4: bool) -> int | None:
    """How many 16-bit groups stand there; None if something else does."""
    count = 0
    parts = text.split(b":")
    for number, part in enumerate(parts, 1):
        if may_end_in_ipv4 and number == len(parts) and is_ipv4(part):
            count += 2
        elif consists_of(HEXDIG, part) and len(part) <= 4:
            count += 1
        else:
            return None
    return count


def is_ipv4(text: bytes) -> bool:
    parts = text.split(b".")
    return len(parts) == 4 and all(
        consists_of(DIGIT, part) and len(part) <= 3 and part == b"%d" % int(part) and int(part) <= 255
        for part in parts
    )


# -- framing (RFC 9112 section 6), persistence (section 9.3), expectations (RFC 9110 section 10.1.1)


def read_framing(version: bytes, fields: list[tuple[bytes, bytes]]) -> tuple[int | None, bool]:
    """The content length, and whether the body is chunked. One field line of one kind, or no body."""
    lengths = values_of(b"content-length", fields)
    codings = values_of(b"transfer-encoding", fields)
    if codings:
        if version != b"HTTP/1.1":
            raise Refused("a transfer coding before HTTP/1.1")
        if lengths:
            raise Refused("a length and a transfer coding")
        if len(codings) != 1 or codings[0].lower() != b"chunked":
            raise Refused("another coding than chunked")
        return None, True
    if not lengths:
        return None, False
    if len(lengths) != 1:
        raise Refused("two lengths")
    return int(lengths[0]), False


def read_persistence(version: bytes, fields: list[tuple[bytes, bytes]]) -> bool:
    options = []
    for value in values_of(b"connection", fields):
        for element in value.split(b","):
            options.append(trim(element).lower())
    if b"close" in options:
        return False
    return version == b"HTTP/1.1" or b"keep-alive" in options


def read_expectation(version: bytes, fields: list[tuple[bytes, bytes]]) -> bool:
    expectations = values_of(b"expect", fields)
    if not expectations or version != b"HTTP/1.1":
        return False
    if len(expectations) != 1 or expectations[0].lower() != b"100-continue":
        raise Refused("an expectation that cannot be met")
    return True


# -- bodies


def read_body(stream: bytes, position: int, head: Seen, bounds: Bounds) -> tuple[bytes, int]:
    if head.chunked:
        return read_chunks(stream, position, bounds)
    size = head.content_length or 0
    body = stream[position : position + size]
    if len(body) < size:
        raise _BodyBroken(body, Incomplete())
    return body, position + size


def read_chunks(stream: bytes, position: int, bounds: Bounds) -> tuple[bytes, int]:
    """RFC 9112 section 7.1."""
    body = b""
    extensions = 0
    try:
        while True:
            line, after = read_line(stream, position)
            if after - position > bounds.chunk_line_size:
                raise Refused("a chunk line is too long")
            position = after
            size, extension = read_chunk_line(line)
            extensions += len(extension)
            if extensions > bounds.chunk_extensions_size:
                raise Refused("too many chunk extensions")
            if len(body) + size > bounds.body_size:
                raise Refused("the body is too large")
            if size == 0:
                return body, skip_trailers(stream, position, bounds)
            data = stream[position : position + size]
            body += data
            position += len(data)
            if len(data) < size:
                raise Incomplete
            end = stream[position : position + 2]
            if end in (b"", b"\r"):
                raise Incomplete
            if end != b"\r\n":
                raise Refused("a chunk's data ends in CR LF")
            position += 2
    except (Refused, Incomplete) as error:
        raise _BodyBroken(body, error) from None


def read_chunk_line(line: bytes) -> tuple[int, bytes]:
    """The size, and its extensions, which are well-formed."""
    end = 0
    while end < len(line) and line[end] in HEXDIG:
        end += 1
    digits, extensions = line[:end], line[end:]
    if digits == b"" or len(digits) > 16:
        raise Refused("a chunk size is of hexadecimal digits")
    rest = extensions
    while rest:
        rest = skip_extension(rest)
    return int(digits, 16), extensions


def skip_extension(text: bytes) -> bytes:
    """RFC 9112 section 7.1.1: BWS ";" BWS token [ BWS "=" BWS ( token / quoted-string ) ]."""
    text = skip_white_space(text)
    if text[:1] != b";":
        raise Refused("an extension begins with a semicolon")
    text = skip_token(skip_white_space(text[1:]))
    after_space = skip_white_space(text)
    if after_space[:1] != b"=":
        return text
    text = skip_white_space(after_space[1:])
    return skip_quoted_string(text) if text[:1] == DQUOTE else skip_token(text)


def skip_white_space(text: bytes) -> bytes:
    while text[:1] in (SP, HTAB):
        text = text[1:]
    return text


def skip_token(text: bytes) -> bytes:
    end = 0
    while end < len(text) and text[end] in TCHAR:
        end += 1
    if end == 0:
        raise Refused("no token")
    return text[end:]


def skip_quoted_string(text: bytes) -> bytes:
    """RFC 9110 section 5.6.4."""
    position = 1
    while position < len(text):
        character = text[position : position + 1]
        if character == DQUOTE:
            return text[position + 1 :]
        if character == BACKSLASH:
            position += 1
            character = text[position : position + 1]
        if character == b"" or character not in FIELD_VALUE:
            raise Refused("a quoted string holds what it may not")
        position += 1
    raise Refused("a quoted string without end")


def skip_trailers(stream: bytes, start: int, bounds: Bounds) -> int:
    """RFC 9112 section 7.1.2: they are read, and nothing of them is told."""
    position = start
    count = 0
    while True:
        line, position = read_line(stream, position)
        if position - start > bounds.trailer_size:
            raise Refused("the trailer section is too large")
        if line == b"":
            return position
        read_field(line)
        count += 1
        if count > bounds.header_fields:
            raise Refused("too many trailers")
