"""What is remembered between requests: bounded, and nothing that is a secret."""

from __future__ import annotations

import pytest

from tests.http.driver import drive
from waitress_async.http import HeadMemo

SECRETS = [
    b"Cookie: session=zqj",
    b"cookie:zqj",
    b"Authorization: Basic zqj",
    b"Proxy-Authorization: Basic zqj",
]


def head(*lines: bytes, target: bytes = b"/") -> bytes:
    return b"\r\n".join([b"GET " + target + b" HTTP/1.1", b"Host: a", *lines, b"", b""])


def remembered(memo: HeadMemo) -> list[bytes]:
    return [*memo.fields.recent, *memo.request_lines.recent]


def test_what_repeats_is_remembered() -> None:
    memo = HeadMemo()
    drive([head(b"X: 1")], memo=memo)
    assert set(remembered(memo)) == {b"GET / HTTP/1.1", b"Host: a", b"X: 1"}


@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_are_not_remembered(secret: bytes) -> None:
    """Credentials of one client are not kept in memory for the others' sake."""
    memo = HeadMemo()
    outcome = drive([head(secret) * 3], memo=memo)
    assert len(outcome.messages) == 3
    assert all(b"zqj" not in line for line in remembered(memo))


def test_queries_are_not_remembered() -> None:
    memo = HeadMemo()
    drive([head(target=b"/?zqj")], memo=memo)
    assert all(b"zqj" not in line for line in remembered(memo))


def test_what_is_refused_is_not_remembered() -> None:
    """The memo holds only what was validated: the same line is refused every time."""
    memo = HeadMemo()
    for _ in range(3):
        assert drive([head(b"X : zqj")], memo=memo).refusal is not None
        assert drive([b"GET zqj HTTP/1.1\r\nHost: a\r\n\r\n"], memo=memo).refusal is not None
    assert all(b"zqj" not in line for line in remembered(memo))


@pytest.mark.parametrize("padding", [0, 400, 2_000])
def test_bounded(padding: int) -> None:
    """However many different lines come, of whatever length, in entries and in bytes."""
    memo = HeadMemo()
    for start in range(0, 6_000, 50):
        lines = [b"X: %d%s" % (start + i, b"-" * padding) for i in range(50)]
        outcome = drive([head(*lines, target=b"/%d%s" % (start, b"-" * padding))], memo=memo)
        assert outcome.refusal is None
        [message] = outcome.messages
        assert message.request.fields["HTTP_X"] == ", ".join(line[3:].decode() for line in lines)
        for one in (memo.fields, memo.request_lines):
            assert len(one.recent) <= one.MAX_ENTRIES
            assert sum(map(len, one.recent)) <= one.MAX_BYTES
            assert all(len(line) <= one.MAX_LINE for line in one.recent)


def test_what_is_asked_for_again_stays() -> None:
    """A line that every request has outlives any number of lines that come once."""
    memo = HeadMemo().fields
    host = memo.parse(b"Host: a")
    for i in range(3 * memo.MAX_ENTRIES):
        memo.parse(b"X: %d" % i)
        assert (memo.recent.get(b"Host: a") or memo.parse(b"Host: a")) is host


def test_what_is_not_asked_for_again_is_forgotten() -> None:
    memo = HeadMemo().fields
    once = memo.parse(b"X: once")
    for i in range(3 * memo.MAX_ENTRIES):
        memo.parse(b"X: %d" % i)
    assert b"X: once" not in memo.recent
    assert memo.parse(b"X: once") == once
    assert memo.parse(b"X: once") is not once
