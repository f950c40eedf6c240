"""Damaged streams: no request is seen that an independent reader does not see, and no byte of one differs.

The same for longer, and by hand: `python -m tests.fuzz --minutes 20`.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import LOOPS
from tests.fuzz import whole
from tests.fuzz.alone import Alone
from tests.fuzz.compare import difference, some_limits
from tests.fuzz.mutate import MUTATIONS, behind_large_body, case, corpus
from waitress_async.http import HeadMemo

# -- the parser alone


@pytest.mark.parametrize("seed", range(4))
def test_mutated_streams(seed: int) -> None:
    """Whatever the cut: nothing seen that is not there, no error but RequestError, an end to the events."""
    alone = Alone(seed, corpus())
    for _ in range(350):
        alone.run_next()
    assert alone.findings == []
    assert alone.stricter == []


def test_a_seed_tells_its_streams() -> None:
    sources = corpus()
    assert [case(7, number, sources) for number in range(50)] == [
        case(7, number, sources) for number in range(50)
    ]


@pytest.mark.parametrize("mutation", set(MUTATIONS), ids=lambda mutation: mutation.__name__)
def test_each_mutation_changes_something(mutation: Callable[..., bytes]) -> None:
    sources = corpus()
    chance = random.Random(1)
    assert any(mutation(chance, stream, sources) != stream for stream in sources)
    assert isinstance(mutation(chance, b"", sources), bytes)


def mostly(good: str, *bad: str) -> st.SearchStrategy[str]:
    return st.sampled_from([good] * (15 * len(bad)) + list(bad))


SPACES = mostly(" ", "", "\t", "  ", "\x0b", "\xa0", "\r", "\n", "\0")
ENDS = mostly("\r\n", "\n", "\r", "\r\r\n", "\n\r", "\r\n ", "\0\r\n", "\x85")
NUMBERS = mostly(
    "5", "+5", "-5", "05", "0x5", "5_0", "5,5", "5, 6", "5;5", "", "\xef\xbc\x96", "4", "6", "5" * 20, "5\x0b"
)
SIZES = mostly(
    "5", "+5", "0x5", "05", "5_", " 5", "5 ", "", "-5", "5h", "f", "0" * 17 + "5", "4", "6", "5;", "5\r"
)
CODINGS = mostly(
    "chunked",
    "Chunked",
    "xchunked",
    "chunked,",
    ",chunked",
    "chunked, chunked",
    "gzip, chunked",
    "identity",
    "",
)
EXTENSIONS = mostly(
    "", ";a=b", ';a="b"', ';a="b', ";", ";a=", ' ;\ta = "\\""', ";a\n", ';a="\r\n"', " ", ";\0"
)
HOSTS = mostly(
    "a", "", "a:80", "[::1]", "[::1]:", "a/b", "a@b", "a b", "a,b", "[::g]", "a:99999", ":", "a\x0b"
)
TARGETS = mostly(
    "/", "/a?b", "*", "http://b/", "http://", "b:80", "/#", "/%0d%0a", "/\x7f", "http://@b/", "/\xa0"
)
VERSIONS = mostly(
    "HTTP/1.1", "HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "http/1.1", "HTTP/1.10", "HTTP/1,1", "HTTP/1. 1"
)
METHODS = mostly("POST", "GET", "HEAD", "OPTIONS", "CONNECT", "po st", "", "P\0", "PO(ST")
NAMES = {
    "length": mostly(
        "Content-Length", "content-length", "Content_Length", "Content-Length ", "Content-Lengt", "\tC"
    ),
    "coding": mostly(
        "Transfer-Encoding", "TRANSFER-ENCODING", "Transfer_Encoding", "Transfer-Encoding\0", " T"
    ),
    "host": mostly("Host", "HOST", "Host ", "H_ost", "Ho\nst"),
}
OTHER_FIELDS = mostly(
    "X: 1", "Connection: close", "Connection: x, keep-alive", "Expect: 100-continue", "", "X", ": 1"
)


@st.composite
def nearly_requests(draw: st.DrawFn) -> bytes:
    """A request, but for a part or two that some parsers take for another."""
    framing = draw(st.sampled_from([*["length", "coding", "none"] * 5, "both", "twice"]))
    lines = [f"{draw(NAMES['host'])}:{draw(SPACES)}{draw(HOSTS)}"]
    if framing in {"length", "both", "twice"}:
        lines.append(f"{draw(NAMES['length'])}:{draw(SPACES)}{draw(NUMBERS)}")
    if framing in {"coding", "both"}:
        lines.append(f"{draw(NAMES['coding'])}:{draw(SPACES)}{draw(CODINGS)}")
    if framing == "twice":
        lines.append(f"{draw(NAMES['length'])}: {draw(NUMBERS)}")
    lines += draw(st.lists(OTHER_FIELDS, max_size=2))
    lines = draw(st.permutations(lines))
    head = f"{draw(METHODS)}{draw(SPACES)}{draw(TARGETS)}{draw(SPACES)}{draw(VERSIONS)}{draw(ENDS)}"
    head += "".join(line + draw(ENDS) for line in lines) + draw(ENDS)
    body = ""
    if framing == "coding":
        for size in [draw(SIZES) for _ in range(draw(st.integers(0, 2)))]:
            body += f"{size}{draw(EXTENSIONS)}{draw(ENDS)}hello{draw(ENDS)}"
        body += f"{draw(mostly('0', '00', '', '0x0', '-0', '1'))}{draw(EXTENSIONS)}{draw(ENDS)}"
        body += "".join(line + draw(ENDS) for line in draw(st.lists(OTHER_FIELDS, max_size=2)))
        body += draw(ENDS)
    elif framing != "none":
        body = "hello"
    return (head + body).encode("latin-1", "replace")


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(nearly_requests(), min_size=1, max_size=3), st.integers(0, 2**32))
def test_nearly_valid_requests(requests: list[bytes], seed: int) -> None:
    chance = random.Random(seed)
    assert difference(b"".join(requests), some_limits(chance), chance, HeadMemo()) is None


# -- whole servers


@pytest.mark.skipif(sys.platform != "linux", reason="each client has an address of its own in 127.0.0.0/8")
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", whole.KINDS)
def test_a_whole_server(kind: str, loop: str) -> None:
    """The app is called for what is there, each answer is to its request, and no connection hangs."""
    figures = whole.Figures()
    sources = corpus()
    streams = [case(11, number, sources) for number in range(80)]
    streams[0] = behind_large_body(random.Random(kind), streams[0])
    whole.run_batch(kind, streams, random.Random(kind), figures, LOOPS[loop])
    assert figures.findings == []
    assert figures.stricter == []
    assert figures.answers > 10
    assert sum(figures.refusals.values()) > 10
