"""The request line and the four forms of its target (RFC 9112 section 3)."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from waitress_async.errors import BadRequest, MethodNotImplemented, RequestError, VersionNotSupported
from waitress_async.http import grammar
from waitress_async.http.receive_buffer import bare_line_feed


class RequestLine(NamedTuple):
    """What a request line says."""

    method: str
    target: str  # as it came, ASCII
    authority: str | None  # of a target in absolute form
    path: str  # percent-decoded bytes as latin-1; "" for the asterisk form
    query: str
    http_11: bool


def parse_request_line(line: bytes) -> RequestLine:
    """Parse a request line without its CR LF. Raises RequestError. The caller bounds its length."""
    text = line.decode("latin-1")
    plain = grammar.PLAIN_REQUEST_LINE.fullmatch(text)
    if plain is not None and plain[1] != "CONNECT":
        method, path, query, minor = plain.groups("")
        target = text[len(method) + 1 : -len(" HTTP/1.1")]
        return RequestLine(method, target, None, path, query, minor == "1")
    return _parse(line)


def _parse(line: bytes) -> RequestLine:
    """What is not as plain as that."""
    match = grammar.REQUEST_LINE.fullmatch(line)
    if match is None:
        raise why_malformed(line)
    method, target, version = match.groups()
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise VersionNotSupported("Only HTTP/1.0 and HTTP/1.1 are spoken here.")
    if method == b"CONNECT":
        raise MethodNotImplemented("CONNECT is not implemented.")
    authority, path = _split_target(method, target)
    path, _, query = path.partition(b"?")
    if b"%" in path:
        path = unquote_to_bytes(path)
    return RequestLine(
        method.decode("ascii"),
        target.decode("ascii"),
        authority,
        path.decode("latin-1"),
        query.decode("ascii"),
        version == b"HTTP/1.1",
    )


def why_malformed(line: bytes) -> RequestError:
    """Why, as a reader of single bytes would have found: a wrong first byte before anything else."""
    if line[:1] == b"\x16":
        return BadRequest("This looks like a TLS handshake, and this port speaks plain HTTP.")
    if b"\n" in line and (line[:1] == b"\n" or grammar.TOKEN.match(line)):
        return bare_line_feed()
    return BadRequest("The request line is malformed.")


def _split_target(method: bytes, target: bytes) -> tuple[str | None, bytes]:
    """The authority of a target, if it has one, and its path with its query."""
    if target[:1] == b"/":
        if b"#" in target:
            raise BadRequest("A request target must not hold a fragment.")
        return None, target
    if target == b"*" and method == b"OPTIONS":
        return None, b""  # RFC 3875 has no PATH_INFO of "*"; the target itself is in REQUEST_URI
    match = grammar.ABSOLUTE_TARGET.fullmatch(target)
    if match is None:
        raise BadRequest("The request target is neither a path nor an absolute http URL.")
    authority, path = match.groups()
    if authority[:1] in b":" or not grammar.is_authority(authority):  # RFC 9110 section 4.2.1: a host
        raise BadRequest("The authority of the request target is malformed.")
    if path[:1] != b"/" and not (method == b"OPTIONS" and not path):
        path = b"/" + path
    return authority.decode("ascii"), path
