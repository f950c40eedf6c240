"""The request line: what is plain is read in a shorter way, to the same end."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from waitress_async.errors import RequestError
from waitress_async.http import request_line
from waitress_async.http.request_line import RequestLine, parse_request_line

# Of few characters, so that what is special comes often.
TARGETS = st.text('/a?#%&=~"<>[]{}|^` \x00\x7f\x80\xff*:@', max_size=8)
LINES = st.builds(
    lambda method, target, version: f"{method} {target} {version}".encode("latin-1"),
    st.sampled_from(["GET", "HEAD", "OPTIONS", "CONNECT", "get", "G T", "", "\x16", "(", "M-SEARCH"]),
    TARGETS | TARGETS.map(lambda text: "/" + text) | st.just("http://a/b?c") | st.just("*"),
    st.sampled_from(["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/1.2", "HTTP/1", "", "HTTP/1.1 ", "http/1.1"]),
)


def outcome(line: bytes, parse: object) -> RequestLine | tuple[type[RequestError], str]:
    assert callable(parse)
    try:
        found = parse(line)
    except RequestError as error:
        return type(error), str(error)
    assert isinstance(found, RequestLine)
    return found


@given(LINES)
@example(b"GET /a?b HTTP/1.1")
@example(b"GET /a? HTTP/1.1")
@example(b"GET /? HTTP/1.0")
@example(b"GET /a?b?c HTTP/1.1")
@example(b"CONNECT /a HTTP/1.1")
@example(b"GET /a%41?%41 HTTP/1.1")
@example(b"GET /a#b HTTP/1.1")
@example(b"GET /a?b#c HTTP/1.1")
@example(b"GET /\xe9 HTTP/1.1")
def test_the_short_way_and_the_long_one_agree(line: bytes) -> None:
    assert outcome(line, parse_request_line) == outcome(line, request_line._parse)


@pytest.mark.parametrize("number", [n for n in range(256) if n not in (0x20, 0x0A, 0x0D)])
@pytest.mark.parametrize("line", ["GET /%s HTTP/1.1", "GET /a?%s HTTP/1.1", "G%sT / HTTP/1.1"])
def test_every_byte_everywhere(number: int, line: str) -> None:
    each = (line % chr(number)).encode("latin-1")
    assert outcome(each, parse_request_line) == outcome(each, request_line._parse)
