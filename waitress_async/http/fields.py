"""Field lines of a request: one raw line -> one (CGI name, value) pair (RFC 9112 section 5)."""

from __future__ import annotations

from collections.abc import Container
from functools import lru_cache
from typing import Final

from waitress_async.errors import BadRequest
from waitress_async.http import grammar
from waitress_async.http.receive_buffer import bare_line_feed

Field = tuple[str, str]

# Names up to this length, in bytes, are remembered.
_KNOWN_NAME: Final = 64

# A field that is validated and then forgotten: see parse_field_line.
DROPPED: Final[Field] = ("", "")

# Never kept between requests: secrets, and what no two clients share.
_PRIVATE: Final = frozenset({"HTTP_COOKIE", "HTTP_AUTHORIZATION", "HTTP_PROXY_AUTHORIZATION"})


def parse_field_line(line: bytes, dropped: Container[str] = ()) -> Field:
    """The CGI name (RFC 3875 section 4.1.18) and the latin-1 value of one field line without its CR LF.

    Names with `_` are dropped, as they would collide with the same name spelt with `-`; so are those of
    `dropped`, CGI names, and `Proxy`, which CGI would turn into a variable that programs trust
    (CVE-2016-5385).
    Raises BadRequest for what RFC 9110 section 5 does not allow, and for a malformed Host or
    Content-Length.
    """
    match = grammar.FIELD_LINE.fullmatch(line)
    if match is None:
        raise _why_malformed(line)
    name, value = match.groups()
    key = _known_name(name) if len(name) <= _KNOWN_NAME else _cgi_name(name)
    if not key or key in dropped:
        return DROPPED
    value = value.strip(b" \t")
    if key == "CONTENT_LENGTH":
        if not grammar.CONTENT_LENGTH.fullmatch(value):
            raise BadRequest("Content-Length must be a decimal number of at most 19 digits.")
    elif key == "HTTP_HOST" and not grammar.is_authority(value):
        raise BadRequest("The Host field is malformed.")
    return key, value.decode("latin-1")


def _cgi_name(name: bytes) -> str:
    """What a field is called in an environ; nothing if it must not be there."""
    key = name.upper().replace(b"-", b"_").decode("ascii")
    if b"_" in name or key == "PROXY":
        return ""
    return key if key in ("CONTENT_LENGTH", "CONTENT_TYPE") else "HTTP_" + key


_known_name = lru_cache(maxsize=1_024)(_cgi_name)


def is_private(field: Field) -> bool:
    """Whether a field must not be kept between requests."""
    return field[0] in _PRIVATE


def _why_malformed(line: bytes) -> BadRequest:
    if b"\n" in line:
        return bare_line_feed()
    if b"\r" in line:
        return BadRequest("A bare CR was found in a field line.")
    if line[:1] in b" \t":
        return BadRequest("A field line must not begin with white space (line folding is obsolete).")
    name, colon, value = line.partition(b":")
    if not colon:
        return BadRequest("A field line has no colon.")
    if name.rstrip(b" \t") != name:
        return BadRequest("White space before the colon of a field line.")
    if not grammar.TOKEN.fullmatch(name):
        return BadRequest("A field name is empty or not a token.")
    if b"\0" in value:
        return BadRequest("A NUL was found in a field value.")
    return BadRequest("A control character was found in a field value.")
