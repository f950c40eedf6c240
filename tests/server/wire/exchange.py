"""A whole conversation with a server as a file: what the client sends, then what comes back.

In `exchanges/NAME.exchange` a line `>>>` stands before bytes that are sent, a line `<<<` before those that
are to come; the line feed in front of such a line, and the one at the end of the file, belong to no message.
In what is to come `*` stands for anything up to the end of its line, `**` for anything at all.
`exchanges.toml` has a line for each file. Nothing here knows which server it is that answers.
"""

from __future__ import annotations

import re
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

HERE: Final = Path(__file__).parent

# Sent behind every exchange. It is answered if the connection was kept, and closes it.
PROBE: Final = b"GET /echo/probe HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
PROBE_ANSWERED: Final = re.compile(rb"HTTP/1\.1 200 OK\r\n(?:[^\r\n]+\r\n)+\r\nGET /probe HTTP/1\.1 -\n")

Ending = Literal["kept", "closed", "reset"]

_MARK: Final = re.compile(rb"\n(>>>|<<<)\n")
_WILD: Final = {rb"\*": rb"[^\r\n]*", rb"\*\*": rb"(?s:.*)"}


@dataclass(frozen=True, slots=True)
class Turn:
    """Bytes that are sent, and what is to come before the next are."""

    sent: bytes
    expected: bytes

    @property
    def pattern(self) -> re.Pattern[bytes]:
        escaped = re.escape(self.expected)
        return re.compile(re.sub(rb"(?:\\\*){1,2}", lambda match: _WILD[match[0]], escaped))


@dataclass(frozen=True, slots=True)
class Exchange:
    """A line of exchanges.toml, and its file. The defaults are those that its first lines tell of."""

    turns: tuple[Turn, ...]
    ends: Ending = "kept"
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came."""

    answers: tuple[bytes, ...]  # one for each turn; the last is all up to the end, but for the probe's
    ends: Ending


def parse_turns(content: bytes) -> tuple[Turn, ...]:
    """The turns of a file. Raises ValueError if it does not alternate."""
    before, *parts = _MARK.split(b"\n" + content.removesuffix(b"\n"))
    marks, messages = parts[::2], parts[1::2]
    if before or marks != [b">>>", b"<<<"] * (len(marks) // 2) or not marks:
        raise ValueError("an exchange is >>>, what is sent, <<<, what is to come, and so on")
    return tuple(Turn(*pair) for pair in zip(messages[::2], messages[1::2], strict=True))


@cache
def exchanges() -> dict[str, Exchange]:
    """All of them, by name, in the order of the table."""
    table = tomllib.loads((HERE / "exchanges.toml").read_text(encoding="utf-8"))
    return {
        name: Exchange(parse_turns((HERE / "exchanges" / f"{name}.exchange").read_bytes()), **line)
        for name, line in table.items()
    }


def converse(sock: socket.socket, turns: tuple[Turn, ...]) -> Outcome:
    """Hold a conversation over a connected socket, until the server ends it."""
    *earlier, last = turns
    answers = []
    for turn in earlier:
        sock.sendall(turn.sent)
        answers.append(_receive(sock, turn.pattern))
    sock.sendall(last.sent + PROBE)
    rest = bytearray()
    ends: Ending = "closed"
    try:
        while data := sock.recv(65_536):
            rest += data
    except ConnectionResetError:
        ends = "reset"
    probed = list(PROBE_ANSWERED.finditer(rest))
    if probed and probed[-1].end() == len(rest):
        del rest[probed[-1].start() :]
        ends = "kept"
    return Outcome((*answers, bytes(rest)), ends)


def _receive(sock: socket.socket, pattern: re.Pattern[bytes]) -> bytes:
    """What comes, until it is what `pattern` asks for or the end."""
    received = b""
    while not pattern.fullmatch(received) and (data := sock.recv(65_536)):
        received += data
    return received
