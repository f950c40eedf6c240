"""The wire corpus: raw requests, each fed in every way it can be cut, each followed by a second request.

`wire/accepted.toml` and `wire/refused.toml` say what must come of each file, and by which rule. A new case
is a file of raw bytes and a line in its table.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.http.driver import CUTTINGS, Cutting, Driver, Message, Outcome, drive
from waitress_async.http import HeadMemo, Limits, Request

WIRE = Path(__file__).parent / "wire"

SECOND = b"GET /second HTTP/1.1\r\nHost: b\r\n\r\n"
SECOND_REQUEST = Request("GET", "/second", "/second", "", True, {"HTTP_HOST": "b"}, True, None, False, False)


@dataclass(frozen=True)
class Accepted:
    """A line of accepted.toml; the defaults here are those that its first lines tell of."""

    method: str = "GET"
    target: str = "/"
    path: str = "/"
    query: str = ""
    http_11: bool = True
    keep_alive: bool = True
    fields: dict[str, str] = field(default_factory=lambda: {"HTTP_HOST": "a"})
    chunked: bool = False
    expect_continue: bool = False
    body: str = ""
    limits: dict[str, int] = field(default_factory=dict)

    @property
    def message(self) -> Message:
        length = self.fields.get("CONTENT_LENGTH")
        request = Request(
            method=self.method,
            target=self.target,
            path=self.path,
            query=self.query,
            http_11=self.http_11,
            fields=self.fields,
            keep_alive=self.keep_alive,
            content_length=None if length is None else int(length),
            chunked=self.chunked,
            expect_continue=self.expect_continue,
        )
        return Message(request, self.body.encode("latin-1"), complete=True)


@dataclass(frozen=True)
class Refused:
    """A line of refused.toml."""

    status: int
    says: str
    setting: str | None = None
    body: str | None = None
    limits: dict[str, int] = field(default_factory=dict)


@cache
def table(kind: str) -> dict[str, dict[str, Any]]:
    return tomllib.loads((WIRE / f"{kind}.toml").read_text(encoding="utf-8"))


def request_of(kind: str, name: str) -> bytes:
    return (WIRE / kind / f"{name}.request").read_bytes()


@pytest.mark.parametrize("kind", ["accepted", "refused"])
def test_each_file_is_in_the_table(kind: str) -> None:
    """A file that no line of the table tells of would be tested by nothing."""
    assert {path.name for path in (WIRE / kind).iterdir()} == {f"{name}.request" for name in table(kind)}


@pytest.mark.parametrize("cutting", CUTTINGS, ids=lambda cutting: cutting.__name__)
@pytest.mark.parametrize("name", table("accepted"))
def test_accepted(name: str, cutting: Cutting) -> None:
    """One meaning, however it is cut; and the second request is exactly itself, if the connection is kept."""
    case = Accepted(**table("accepted")[name])
    limits = Limits(**case.limits)
    expected = [case.message]
    if case.keep_alive:
        expected.append(Message(SECOND_REQUEST, complete=True))
    for pieces in cutting(request_of("accepted", name) + SECOND):
        outcome = drive(pieces, limits)
        assert outcome.messages == expected, pieces
        assert outcome.refusal is None, pieces
        assert outcome.closed is not case.keep_alive, pieces


@pytest.mark.parametrize("cutting", CUTTINGS, ids=lambda cutting: cutting.__name__)
@pytest.mark.parametrize("name", table("refused"))
def test_refused(name: str, cutting: Cutting) -> None:
    """Refused by its own bytes, for one reason however it is cut; and nothing behind it is ever seen."""
    case = Refused(**table("refused")[name])
    limits = Limits(**case.limits)
    stream = request_of("refused", name)
    check_refused(case, drive([stream + SECOND], limits, eof=True))
    for pieces in cutting(stream):
        driver = Driver(limits)
        for piece in pieces:
            driver.feed(piece)
        check_refused(case, driver.outcome)
        driver.feed(SECOND)
        driver.end()
        check_refused(case, driver.outcome)


def check_refused(case: Refused, outcome: Outcome) -> None:
    assert outcome.refusal is not None
    assert outcome.refusal.status == case.status
    assert case.says in outcome.refusal.detail
    assert outcome.refusal.setting == case.setting
    assert outcome.closed
    if case.body is None:
        assert outcome.messages == []
    else:
        [message] = outcome.messages
        assert message.body == case.body.encode("latin-1")
        assert not message.complete


# Of the others, the limits leave no room for the request before.
WITH_ROOM = [
    name
    for name, line in table("refused").items()
    if not {"header_size", "header_fields", "target_size"} & line.get("limits", {}).keys()
]


@pytest.mark.parametrize("name", WITH_ROOM)
def test_refused_behind_another(name: str) -> None:
    """An error keeps its place in the stream: what is before it is answered first, and nothing after it."""
    case = Refused(**table("refused")[name])
    stream = SECOND + request_of("refused", name) + SECOND
    for cutting in CUTTINGS[:3]:
        for pieces in cutting(stream):
            outcome = drive(pieces, Limits(**case.limits))
            assert outcome.messages.pop(0) == Message(SECOND_REQUEST, complete=True)
            check_refused(case, outcome)


@pytest.mark.parametrize("name", table("accepted"))
def test_ended_early(name: str) -> None:
    """RFC 9112 section 8: whatever its last bytes are missing of, a request that ends early is incomplete."""
    case = Accepted(**table("accepted")[name])
    limits = Limits(**case.limits)
    stream = request_of("accepted", name)
    for size in range(len(stream)):
        for cutting in CUTTINGS[:3]:
            for pieces in cutting(stream[:size]):
                outcome = drive(pieces, limits, eof=True)
                assert outcome.closed
                if outcome.refusal is not None:
                    assert outcome.refusal.detail == "The request ended before it was complete."
                    if outcome.messages and outcome.messages[0].complete:
                        assert stream[size - 1 :] == b"\r\n"  # half of an empty line after the body
                elif outcome.messages:
                    assert outcome.messages == [case.message]
                    assert stream[size:].strip(b"\r\n") == b""
                else:
                    assert stream[:size].strip(b"\r\n") == b""


def test_a_warm_memo_changes_nothing() -> None:
    """Field lines are remembered between connections: the whole corpus twice over one memo, in one order."""
    memo = HeadMemo()
    for _ in range(2):
        for name, line in table("accepted").items():
            accepted = Accepted(**line)
            outcome = drive([request_of("accepted", name)], Limits(**accepted.limits), memo)
            assert outcome.messages == [accepted.message], name
        for name, line in table("refused").items():
            refused = Refused(**line)
            check_refused(refused, drive([request_of("refused", name)], Limits(**refused.limits), memo))


@pytest.mark.parametrize("cutting", CUTTINGS[:3], ids=lambda cutting: cutting.__name__)
@pytest.mark.parametrize(
    "name",
    ["root", "empty-lines-before-at-limit", "length-body-like-a-request", "chunk-data-like-a-last-chunk"],
)
def test_many(name: str, cutting: Cutting) -> None:
    """RFC 9112 section 9.3.2: requests of one connection are answered in their order, each once.

    What is counted for one request, as the empty lines before it, is not counted for the next.
    """
    case = Accepted(**table("accepted")[name])
    for pieces in cutting(request_of("accepted", name) * 20 + SECOND):
        outcome = drive(pieces)
        assert outcome.messages == [case.message] * 20 + [Message(SECOND_REQUEST, complete=True)]
        assert outcome.sent.count(b"HTTP/1.1 200 OK\r\n") == 21
