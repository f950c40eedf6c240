"""The same streams, sent to whole servers over TCP: what their apps are called with, and what comes back.

Servers and clients share a loop. Each client comes from an address of its own in 127.0.0.0/8, by which the
app knows whose request it sees.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import hashlib
import json
import logging
import random
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tests.fuzz.compare import at_random, bounds_of, cgi_fields
from tests.fuzz.reference import Ending, Reading, Seen, read
from tests.server.support import DEADLINE, local_server, nothing_left
from waitress_async.http import Limits

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

CLIENTS: Final = 16  # at once

_RESET: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Kind:
    """A server to be met."""

    settings: Mapping[str, object]
    limits: Limits = field(default_factory=Limits)
    streams: bool = False
    trusts: bool = False
    """Whether it takes a proxy's word, so that only some of a request is as it was sent."""


KINDS: Final[Mapping[str, Kind]] = {
    "plain": Kind({}),
    "tight": Kind(
        {
            "inbuf_overflow": 8,  # so that bodies are files
            "max_request_header_size": 200,
            "max_request_header_fields": 8,
            "max_request_target_size": 40,
            "max_request_body_size": 40,
        },
        Limits(header_size=200, header_fields=8, target_size=40, body_size=40),
    ),
    "streamed": Kind({"stream_request_body": True}, streams=True),
    "trusting": Kind(
        {
            "trusted_proxy": "*",
            "trusted_proxy_headers": "x-forwarded-for x-forwarded-host x-forwarded-proto x-forwarded-port",
        },
        trusts=True,
    ),
    "forwarded": Kind({"trusted_proxy": "*", "trusted_proxy_headers": "forwarded"}, trusts=True),
}


@dataclass(frozen=True, slots=True)
class Call:
    """What the app saw of a request."""

    told: dict[str, Any]
    body: bytes
    complete: bool


class Recorder:
    """An app that answers with what it sees, and notes it."""

    def __init__(self, reads: Callable[[str], bool] = lambda _path: True) -> None:
        """`reads` says of a path whether the body is read at all."""
        self.calls: dict[str, list[Call]] = {}  # by the client's address
        self._reads = reads

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        told = told_of(environ)
        body = b""
        complete = False
        try:
            if self._reads(environ["PATH_INFO"]):
                size = 1 + len(environ["PATH_INFO"]) % 7
                while data := environ["wsgi.input"].read(size):
                    body += data
                complete = True
        finally:
            self.calls.setdefault(environ["REMOTE_ADDR"], []).append(Call(told, body, complete))
        answer = said_of(told, body)
        start_response("200 OK", [("Content-Type", "application/json"), ("Saw", digest(answer))])
        return [answer]


def said_of(told: dict[str, Any], body: bytes) -> bytes:
    return json.dumps({**told, "body": body.hex()}).encode("ascii")


def told_of(environ: WSGIEnvironment) -> dict[str, Any]:
    length = environ.get("CONTENT_LENGTH")
    return {
        "method": environ["REQUEST_METHOD"],
        "target": environ["REQUEST_URI"],
        "path": environ["SCRIPT_NAME"] + environ["PATH_INFO"],
        "query": environ["QUERY_STRING"],
        "protocol": environ["SERVER_PROTOCOL"],
        "length": None if length is None else int(length),
        "fields": {
            name: value
            for name, value in sorted(environ.items())
            if name.startswith("HTTP_") or name == "CONTENT_TYPE"
        },
    }


def told_by(seen: Seen, kind: Kind) -> dict[str, Any]:
    """What an app must be told of a request."""
    fields = cgi_fields(seen)
    fields.pop("CONTENT_LENGTH", None)
    length = seen.content_length
    if seen.chunked and not kind.streams:
        length = len(seen.body)
    return {
        "method": seen.method.decode("ascii"),
        "target": seen.target.decode("ascii"),
        "path": seen.path.decode("latin-1"),
        "query": seen.query.decode("ascii"),
        "protocol": seen.version.decode("ascii"),
        "length": length,
        "fields": dict(sorted(fields.items())),
    }


# What a proxy's word does not change.
_TRUE_ANYHOW: Final = ("method", "target", "path", "query", "protocol", "length")


def differs(told: Mapping[str, Any], seen: Seen, kind: Kind) -> str | None:
    expected = told_by(seen, kind)
    for key in _TRUE_ANYHOW if kind.trusts else expected:
        if told[key] != expected[key]:
            return f"{key} is {told[key]!r}, not {expected[key]!r}"
    return None


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- what is wrong


def wrong_calls(calls: list[Call], reading: Reading, kind: Kind) -> str | None:
    """What the app saw that is not there."""
    for number, call in enumerate(calls):
        if number == len(reading.requests):
            return f"call {number} is for no request: {call}; {reading.ending.name}: {reading.why}"
        seen = reading.requests[number]
        if (difference := differs(call.told, seen, kind)) is not None:
            return f"call {number}: {difference}"
        if call.complete and not (seen.complete and call.body == seen.body):
            return f"call {number} had the body {call.body!r}, not {seen.body!r}"
        if not seen.body.startswith(call.body) or not (seen.complete or kind.streams):
            return f"call {number} had some of a body, {call.body!r}, of {seen.body!r}"
    return None


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    fields: dict[bytes, bytes]
    body: bytes


class NoAnswer(Exception):
    """What came is no sequence of responses."""


def answers_of(received: bytes, reading: Reading) -> list[Answer]:
    """The final answers in what came. Raises NoAnswer."""
    answers: list[Answer] = []
    rest = received
    while rest:
        head, end, rest = rest.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        version, _, status = lines[0][:12].partition(b" ")
        if not end or version != b"HTTP/1.1" or not status.isdigit():
            raise NoAnswer(f"no response head: {head!r}")
        if status == b"100":
            continue
        fields = dict(line.split(b": ", 1) for line in lines[1:])
        length = int(fields[b"Content-Length"])
        to_head = len(answers) < len(reading.requests) and reading.requests[len(answers)].method == b"HEAD"
        if to_head or (int(status) >= 400 and not rest):  # what is refused may have been a HEAD
            length = 0
        answers.append(Answer(int(status), fields, rest[:length]))
        if len(rest) < length:
            raise NoAnswer(f"{length - len(rest)} bytes are missing of answer {len(answers)}")
        rest = rest[length:]
    return answers


def wrong_answers(received: bytes, reading: Reading, kind: Kind) -> str | None:
    """What came back that cannot be: an answer to no request, in another's place, or after a refusal."""
    try:
        answers = answers_of(received, reading)
    except (NoAnswer, KeyError, ValueError) as error:
        return f"{error!r} in {received!r}"
    for number, answer in enumerate(answers):
        closes = answer.fields.get(b"Connection") == b"close"
        if answer.status != 200:
            if not 400 <= answer.status < 600 or answer.status in {500, 503, 507}:
                return f"answer {number} is {answer}"
            if not closes or number != len(answers) - 1:
                return f"a refusal was not the end: {answers}"
            continue
        if number >= len(reading.requests):
            return f"answer {number} is to no request: {answer}"
        seen = reading.requests[number]
        if seen.method == b"HEAD":
            expected = digest(said_of(told_by(seen, kind), seen.body)).encode()
            if not kind.streams and not kind.trusts and answer.fields[b"Saw"] != expected:
                return f"answer {number} is to another request: {answer}"
        else:
            told = json.loads(answer.body)
            if (difference := differs(told, seen, kind)) is not None:
                return f"answer {number}: {difference}"
            if answer.fields[b"Saw"] != digest(answer.body).encode():
                return f"answer {number} has another's head: {answer}"
        if closes and number != len(answers) - 1:
            return f"answers go on after the last one: {answers}"
    return None


def is_short(received: bytes, reading: Reading, kind: Kind) -> bool:
    """Whether good requests were not answered.

    None need be after an early answer to a streamed one, or a proxy's header that is malformed.
    """
    if kind.streams or kind.trusts:
        return False
    answered = sum(answer.status == 200 for answer in answers_of(received, reading))
    return answered < sum(seen.complete for seen in reading.requests)


# -- clients


@dataclass(slots=True)
class Figures:
    """What was sent, and what came of it."""

    streams: int = 0
    resets: int = 0
    calls: int = 0
    answers: int = 0
    refusals: dict[int, int] = field(default_factory=dict)  # by status
    findings: list[tuple[str, bytes, str]] = field(default_factory=list)  # server, stream, what is wrong
    stricter: list[tuple[str, bytes, str]] = field(default_factory=list)  # than the reference

    def summary(self) -> str:
        return (
            f"{self.streams} streams ({self.resets} reset), {self.calls} calls of the app,"
            f" {self.answers} answers, refused {sum(self.refusals.values())}:"
            f" {dict(sorted(self.refusals.items()))},"
            f" stricter {len(self.stricter)}, found {len(self.findings)}"
        )

    def count(self, received: bytes, reading: Reading) -> None:
        for answer in answers_of(received, reading):
            if answer.status == 200:
                self.answers += 1
            else:
                self.refusals[answer.status] = self.refusals.get(answer.status, 0) + 1


def address_of(number: int) -> str:
    return f"127.{1 + number // 62_500 % 250}.{number // 250 % 250}.{1 + number % 250}"


class Way(enum.Enum):
    """How a client ends."""

    HALF_CLOSE = "it says that this is all, and reads to the end"
    WAIT = "it reads to the end, which the server has to make"
    RESET = "it resets the connection somewhere in its stream, and reads nothing"


def some_way(reading: Reading, chance: random.Random) -> Way:
    kind = chance.random()
    if kind < 0.05:
        return Way.RESET
    if kind < 0.35 and reading.ending in {Ending.CLOSED, Ending.REFUSED}:
        return Way.WAIT
    return Way.HALF_CLOSE


async def send(port: int, source: str, stream: bytes, chance: random.Random, way: Way) -> bytes:
    """What comes back for a stream that is sent in pieces. Raises OSError."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((source, 0))
        await loop.sock_connect(sock, ("127.0.0.1", port))
        pieces = at_random(stream, chance)
        if way is Way.RESET:
            pieces = pieces[: chance.randint(0, len(pieces))]
        for piece in pieces:
            await loop.sock_sendall(sock, piece)
            if chance.random() < 0.5:
                await asyncio.sleep(0)
        if way is Way.RESET:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            return b""
        if way is Way.HALF_CLOSE:
            sock.shutdown(socket.SHUT_WR)
        received = bytearray()
        while data := await loop.sock_recv(sock, 65_536):
            received += data
        return bytes(received)


class Batch:
    """Some streams, each sent to one server of its kind."""

    def __init__(self, name: str, figures: Figures) -> None:
        self._name = name
        self._kind = KINDS[name]
        self._figures = figures
        streams = self._kind.streams
        self._app = Recorder(lambda path: not streams or len(path) % 3 != 0)
        self._readings: dict[str, tuple[bytes, Reading]] = {}  # by the client's address

    async def run(self, streams: Iterable[bytes], chance: random.Random) -> None:
        """Send them all, then stop the server and look at what its app has seen."""
        faults: list[str] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: faults.append(repr(context)))
        settings = {"clear_untrusted_proxy_headers": False, **self._kind.settings}
        with errors_logged(faults):
            async with local_server(self._app, **settings) as server:
                numbered = enumerate(streams)
                async with asyncio.TaskGroup() as clients:
                    for _ in range(CLIENTS):
                        clients.create_task(
                            self._visit(server.port, numbered, random.Random(chance.random()))
                        )
        if asyncio.all_tasks() != {asyncio.current_task()}:
            faults.append(f"tasks are left: {asyncio.all_tasks()}")
        self._figures.findings += [(self._name, b"", fault) for fault in faults]
        self._figures.calls += sum(len(calls) for calls in self._app.calls.values())
        if self._kind.trusts:  # then a client's address is what it says
            return
        for address, (stream, reading) in self._readings.items():
            calls = self._app.calls.get(address, [])
            self._note(stream, wrong_calls(calls, reading, self._kind))

    async def _visit(self, port: int, streams: Iterator[tuple[int, bytes]], chance: random.Random) -> None:
        kind, figures = self._kind, self._figures
        for number, stream in streams:
            address = address_of(number)
            reading = read(stream, bounds_of(kind.limits))
            self._readings[address] = stream, reading
            figures.streams += 1
            way = some_way(reading, chance)
            try:
                async with asyncio.timeout(DEADLINE):
                    received = await send(port, address, stream, chance, way)
            except (OSError, TimeoutError) as error:
                self._note(stream, repr(error))
                continue
            if way is Way.RESET:
                figures.resets += 1
                continue
            found = wrong_answers(received, reading, kind)
            self._note(stream, found)
            if found is None:
                figures.count(received, reading)
                if is_short(received, reading, kind):
                    figures.stricter.append((self._name, stream, repr(received)))

    def _note(self, stream: bytes, found: str | None) -> None:
        if found is not None:
            self._figures.findings.append((self._name, stream, found))


@contextlib.contextmanager
def errors_logged(to: list[str]) -> Iterator[None]:
    """Append what is logged as an error."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            to.append(self.format(record))

    handler = Handler(logging.ERROR)
    loggers = [logging.getLogger(name) for name in ("waitress_async", "asyncio")]
    for logger in loggers:
        logger.addHandler(handler)
    yield
    for logger in loggers:
        logger.removeHandler(handler)


def run_batch(
    name: str,
    streams: Iterable[bytes],
    chance: random.Random,
    figures: Figures,
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Send the streams to a server of a kind on a loop of its own, after which nothing may be left."""
    with nothing_left(), asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(Batch(name, figures).run(streams, chance))
