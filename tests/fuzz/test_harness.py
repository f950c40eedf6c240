"""That the fuzzing can fail: the reference reads the corpus as it is meant, and planted faults are found."""

from __future__ import annotations

import ast
import asyncio
import random
import re
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz import reference, whole
from tests.fuzz.alone import Alone
from tests.fuzz.compare import bounds_of, difference, is_stricter
from tests.fuzz.mutate import TESTS, case, corpus
from tests.http.driver import Outcome, drive
from waitress_async.http import HeadMemo, Limits, grammar

WIRE = TESTS / "http/wire"

# -- the reference


def wire_files() -> list[tuple[str, Path, dict[str, int]]]:
    """Each with its kind and its limits."""
    found = []
    for kind in ("accepted", "refused"):
        table: dict[str, dict[str, Any]] = tomllib.loads((WIRE / f"{kind}.toml").read_text(encoding="utf-8"))
        for name, line in table.items():
            found.append((kind, WIRE / kind / f"{name}.request", line.get("limits", {})))
    return found


def test_the_reference_reads_the_corpus_as_it_is_meant() -> None:
    """It takes what must be taken and refuses what must be refused: it is no help if it does only one."""
    for kind, path, own_limits in wire_files():
        limits = Limits(**own_limits)
        stream = path.read_bytes()
        reading = reference.read(stream, bounds_of(limits))
        outcome = drive([stream], limits, eof=True)
        if kind == "accepted":
            assert [seen.complete for seen in reading.requests] == [True], path
            assert reading.ending in {reference.Ending.CLEAN, reference.Ending.CLOSED}, path
        else:
            assert not any(seen.complete for seen in reading.requests), path
            assert reading.ending in {reference.Ending.REFUSED, reference.Ending.INCOMPLETE}, path
        assert not is_stricter(outcome, reading), path


def test_the_reference_shares_no_code() -> None:
    source = Path(reference.__file__).read_text(encoding="utf-8")
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module))
    assert imported == {"__future__", "enum", "dataclasses"}


# -- that a fault in a parser is found

LIMITS = Limits()


def in_head(pattern: bytes, by: bytes) -> Callable[[bytes], Outcome]:
    """A parser that takes something in a first head for something else."""

    def parse(stream: bytes) -> Outcome:
        head, end, rest = re.split(rb"(\r?\n\r?\n|\Z)", stream, maxsplit=1)
        return drive([re.sub(pattern, by, head + end) + rest], LIMITS, eof=True)

    return parse


def anywhere(pattern: bytes, by: bytes | Callable[[re.Match[bytes]], bytes]) -> Callable[[bytes], Outcome]:
    return lambda stream: drive([re.sub(pattern, by, stream)], LIMITS, eof=True)


def loses_a_byte(stream: bytes) -> Outcome:
    outcome = drive([stream], LIMITS, eof=True)
    for message in outcome.messages:
        if len(message.body) > 20:
            message.body = message.body[:-1]
    return outcome


def takes_the_second_field(stream: bytes) -> Outcome:
    outcome = drive([stream], LIMITS, eof=True)
    for message in outcome.messages:
        for name, value in message.request.fields.items():
            message.request.fields[name] = value.rpartition(", ")[2]
    return outcome


def is_content_with_half(stream: bytes) -> Outcome:
    outcome = drive([stream], LIMITS, eof=True)
    outcome.messages = [replace(message, complete=True) for message in outcome.messages]
    return outcome


PLANTED: dict[str, Callable[[bytes], Outcome]] = {
    "a bare LF ends a line": in_head(rb"\r?\n", b"\r\n"),
    "a bare CR ends a line": in_head(rb"\r(?!\n)", b"\r\n"),
    "CR CR LF ends a line": in_head(rb"\r+\n", b"\r\n"),
    "a length may have a sign": in_head(rb"(?i)(content-length: *)[+-]", rb"\1"),
    "a length may have a space": in_head(rb"(?i)(content-length: *[0-9]+)[ ,][^\r\n]*", rb"\1"),
    "the first of two lengths counts": in_head(
        rb"(?is)(content-length:.*\r\n)content-length:.*?\r\n", rb"\1"
    ),
    "the length counts, not the coding": in_head(
        rb"(?is)(content-length:.*\r\n)transfer-encoding:.*?\r\n", rb"\1"
    ),
    "any coding is chunked": in_head(rb"(?i)(transfer-encoding: ?).*(?=\r)", rb"\1chunked"),
    "VT is white space": in_head(rb"[\x0b\x0c]", b" "),
    "white space before a colon": in_head(rb"[ \t]+:", b":"),
    "a line may be folded": in_head(rb"\r\n[ \t]+", b" "),
    "an underscore is a dash": in_head(rb"(?i)(content|transfer)_", rb"\1-"),
    "a NUL ends a value": in_head(rb"\0[^\r\n]*", b""),
    "no-break spaces are trimmed": in_head(rb"[\x85\xa0]+(?=\r\n)", b""),
    "two spaces in a request line": in_head(rb"  ", b" "),
    "a size may be 0x5": anywhere(rb"(?<=\n)0[xX](?=[0-9a-fA-F]+\r\n)", b""),
    "a size may have a space": anywhere(rb"(?<=\n)([0-9a-fA-F]+)[ \t]+(?=\r\n)", rb"\1"),
    "a size of too many digits": anywhere(rb"(?<=\n)0{9,}(?=[0-9a-fA-F]+\r\n)", b""),
    "a size in decimal": anywhere(rb"(?<=\n)[1-9][0-9](?=\r\n)", lambda match: b"%x" % int(match[0])),
    "a trailer is the next request": anywhere(rb"(?<=\n)0\r\n(?!\r\n)", b"0\r\n\r\n"),
    "data may end in LF": anywhere(rb"(?<=\n5\r\nhello)\r?\n?", b"\r\n"),
    "an extension is thrown away unread": anywhere(rb"(?<=\n)([0-9a-fA-F]+);[^\r\n]*(?=\r\n)", rb"\1"),
    "a body loses its last byte": loses_a_byte,
    "the last of two fields counts": takes_the_second_field,
    "half a body will do": is_content_with_half,
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug: str) -> None:
    """By streams that were all good before they were damaged."""
    sources = corpus("accepted")
    parse = PLANTED[bug]
    assert any(
        difference(case(0, number, sources), LIMITS, random.Random(number), HeadMemo(), parse)
        for number in range(30_000)
    )


# A pattern of the parser's own, and a lenient one.
PATTERNS = {
    "CONTENT_LENGTH": rb"[+\-]?[0-9_]+",
    "FIELD_LINE": rb"([^:\x00-\x20]+)[ \t]*:([^\r\n]*)",
    "REQUEST_LINE": rb"([A-Za-z]+) +([^ \r]+) +(HTTP/1\.[01])",
    "CHUNK_LINE": rb"((?:0x)?[0-9A-Fa-f]+)(\s*(?:;[^\r]*)?)",
    "ABSOLUTE_TARGET": rb"(?i)https?://(?:[^/]*@)?([^/?#@]*)([^#]*)",
}


@pytest.mark.parametrize("name", PATTERNS)
def test_a_lenient_pattern_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, name, re.compile(PATTERNS[name]))
    alone = Alone(0, corpus())
    for _ in range(3_000):
        alone.run_next()
        if alone.findings:
            return
    pytest.fail("not found")


# -- that a fault in a server is found


@pytest.mark.skipif(sys.platform != "linux", reason="each client has an address of its own in 127.0.0.0/8")
def test_a_fault_in_a_whole_server_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # Where the reference sees a refusal, others wait for a close that is not to come.
    monkeypatch.setattr(whole, "some_way", lambda _reading, _chance: whole.Way.HALF_CLOSE)
    monkeypatch.setattr(grammar, "CONTENT_LENGTH", re.compile(PATTERNS["CONTENT_LENGTH"]))
    figures = whole.Figures()
    whole.run_batch("plain", corpus("refused"), random.Random(0), figures, asyncio.new_event_loop)
    assert any(b"Content-Length: +" in stream for _, stream, _ in figures.findings)
