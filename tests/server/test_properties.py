"""Whatever the sizes, thresholds, cuts, speeds and leavings: what arrives is what was sent, or it is cut."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import LOOPS, RunningServer
from tests.server.support import DEADLINE, Client, eventually, held, needs_proc, small_listener
from waitress_async import Server

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

pytestmark = needs_proc

# What there is to send; each body is a piece of it.
CONTENT = Random(0).randbytes(3_001_000)


@dataclass(frozen=True)
class Visit:
    """One request and what becomes of it."""

    number: int
    size: int  # of the request body
    framing: Literal["counted", "chunked"]
    streamed: bool
    answer: int  # size of the response body
    kind: Literal["list", "generated", "counted", "file"]
    pieces: int  # bytes in which bodies are cut, in both directions
    reads: int  # bytes that the client reads at a time
    slow: bool  # whether it waits now and then
    leaves: float | None  # after which part of all that it does the client goes


visits = st.builds(
    Visit,
    number=st.just(0),
    size=st.one_of(st.integers(0, 3_000), st.integers(0, 900_000)),
    framing=st.sampled_from(["counted", "chunked"]),
    streamed=st.booleans(),
    answer=st.one_of(st.integers(0, 3_000), st.integers(0, 3_000_000)),
    kind=st.sampled_from(["list", "generated", "counted", "file"]),
    pieces=st.sampled_from([700, 20_000, 70_000, 400_000]),
    reads=st.sampled_from([1_000, 65_536, 1_000_000]),
    slow=st.booleans(),
    leaves=st.one_of(st.none(), st.none(), st.floats(0, 1)),
)

thresholds = st.fixed_dictionaries(
    {
        "threads": st.sampled_from([1, 4]),
        "inbuf_overflow": st.sampled_from([1, 10_000, 300_000]),
        "outbuf_overflow": st.sampled_from([0, 1_000, 200_000]),
        "outbuf_high_watermark": st.sampled_from([10_000, 250_000, 16_000_000]),
        "buffer_memory": st.sampled_from([1, 400_000, 100_000_000]),
    }
)


class App:
    """Answers as the visit says, and notes what it was sent."""

    def __init__(self) -> None:
        self.visits: dict[str, Visit] = {}
        self.wrong: list[str] = []

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        visit = self.visits[environ["PATH_INFO"].rpartition("/")[2]]
        body = environ["wsgi.input"]
        sent = CONTENT[visit.number : visit.number + visit.size]
        position = 0
        while data := body.read(visit.pieces):
            if data != sent[position : position + len(data)]:
                self.wrong.append(f"{visit}: other bytes at {position}")
            position += len(data)
        if position != visit.size:
            self.wrong.append(f"{visit}: {position} bytes")
        if visit.kind == "file":
            file = tempfile.TemporaryFile()  # noqa: SIM115 - the server closes it
            file.write(b"before" + CONTENT[visit.number : visit.number + visit.answer])
            file.seek(6)
            start_response("200 OK", [])
            result: Iterable[bytes] = environ["wsgi.file_wrapper"](file)
            return result
        start_response("200 OK", [("Content-Length", str(visit.answer))] if visit.kind == "counted" else [])
        pieces = self._pieces(visit)
        return list(pieces) if visit.kind == "list" else pieces

    def _pieces(self, visit: Visit) -> Iterator[bytes]:
        for start in range(0, visit.answer, visit.pieces):
            yield CONTENT[visit.number + start : visit.number + min(start + visit.pieces, visit.answer)]


class Gone(Exception):
    """The client has left."""


class Visitor:
    """A client that cuts what it sends, reads as it likes, and may leave at any moment."""

    def __init__(self, client: Client, visit: Visit) -> None:
        self._client = client
        self._visit = visit
        self._steps = itertools.count()
        self._left = visit.leaves
        self._pause = threading.Event()

    def _step(self, done: float) -> None:
        if self._left is not None and done >= self._left:
            self._client.reset()
            raise Gone
        if self._visit.slow and next(self._steps) % 7 == 6:
            self._pause.wait(0.002)

    def run(self) -> None:
        visit = self._visit
        folder = "streamed" if visit.streamed else "whole"
        framing = (
            f"Content-Length: {visit.size}" if visit.framing == "counted" else "Transfer-Encoding: chunked"
        )
        head = f"POST /{folder}/{visit.number} HTTP/1.1\r\nHost: x\r\n{framing}\r\nConnection: close\r\n\r\n"
        data = bytearray(head.encode())
        for start in range(0, visit.size, visit.pieces):
            piece = CONTENT[visit.number + start : visit.number + min(start + visit.pieces, visit.size)]
            data += piece if visit.framing == "counted" else b"%x\r\n%b\r\n" % (len(piece), piece)
        if visit.framing == "chunked":
            data += b"0\r\n\r\n"
        for start in range(0, len(data), visit.pieces):
            self._step(start / len(data) / 2)
            self._client.send(bytes(data[start : start + visit.pieces]))
        received = bytearray()
        while more := self._client.sock.recv(visit.reads):
            received += more
            self._step(0.5 + len(received) / (visit.answer + 1_000) / 2)
        assert received.startswith(b"HTTP/1.1 200 OK\r\n"), bytes(received[:500])
        fields, _, body = received.partition(b"\r\n\r\n")
        if b"chunked" in fields:
            body = self._unchunked(body)
        else:
            assert b"Content-Length: %d" % visit.answer in fields
        assert body == CONTENT[visit.number : visit.number + visit.answer]

    def _unchunked(self, body: bytearray) -> bytearray:
        decoded = bytearray()
        position = 0
        while True:
            end = body.index(b"\r\n", position)
            size = int(body[position:end], 16)
            decoded += body[end + 2 : end + 2 + size]
            position = end + 2 + size + 2
            assert body[position - 2 : position] == b"\r\n"
            if not size:
                assert position == len(body)
                return decoded


def serve(app: App, loop: str, options: dict[str, int]) -> RunningServer:
    server = Server(
        app, sockets=[small_listener()], stream_request_prefix="/streamed", channel_timeout=0, **options
    )
    started = threading.Event()
    errors: list[dict[str, object]] = []
    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        loops[0].set_exception_handler(lambda _loop, context: errors.append(context))
        await server.start()
        started.set()
        await server.serve_forever()

    def run() -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(main())

    thread = threading.Thread(target=run, name="server-under-test", daemon=True)
    thread.start()
    assert started.wait(DEADLINE)
    return RunningServer(server, loops[0], thread, errors)


def run_visit(address: tuple[str, int], visit: Visit, failed: list[BaseException]) -> None:
    try:
        with Client(address, receive_buffer=65_536) as client:
            Visitor(client, visit).run()
    except Gone:
        pass
    except BaseException as error:
        failed.append(error)


def in_threads(runs: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=run, daemon=True) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive(), "a client waits for ever"


@pytest.mark.parametrize("loop", LOOPS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=st.lists(visits, min_size=1, max_size=6), options=thresholds)
def test_what_arrives_is_what_was_sent(loop: str, drawn: list[Visit], options: dict[str, int]) -> None:
    app = App()
    for number, visit in enumerate(drawn):
        app.visits[str(number)] = Visit(**{**vars(visit), "number": number})
    before = held()
    server = serve(app, loop, options)
    failed: list[BaseException] = []
    runtime = server.server._runtime
    try:
        in_threads(
            [
                lambda visit=visit: run_visit(server.address, visit, failed)  # type: ignore[misc]
                for visit in app.visits.values()
            ]
        )
        eventually(lambda: runtime.memory.used == 0, f"no memory is counted: {runtime.memory.used}")
        eventually(lambda: runtime.spool.files == 0, "no temporary file is open")
        eventually(lambda: runtime.spool.used == 0, "no file is counted")
    finally:
        server.stop()
    assert failed == []
    assert app.wrong == []
    assert server.errors == []
    assert held() == before
