"""Quick questions beside slow readers: ``python benchmarks/slow_readers.py``. README.md says what and how."""

import asyncio
import socket
import statistics
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from apps import BLOCK, FILE, HELLO, write_file
from clients import check, client_process, head_of
from measure import HOST, BenchmarkError, Server, running
from processes import MIB, Watch
from rounds import Column, Result, Table, options_of, run
from tables import CHEROOT, GRANIAN, GUNICORN, OURS, WAITRESS

RECEIVE_BUFFER = 65536  # what a reader has not read stands with the server, not here
PACE = 0.1  # seconds between two reads of a reader
QUESTION_EVERY = 0.02
SETTLES_WITHIN = 5.0
GRACE = 1.0  # for the answer to the last question

COLUMNS = (
    Column("worst", "worst ms", 1),
    Column("p99", "p99 ms", 1),
    Column("median", "median ms", 1),
    Column("answered", "answers"),
    Column("reading", "readers served"),
    Column("read", "they read MiB", 1),
    Column("anonymous", "RssAnon MiB", 1),
    Column("resident", "VmHWM MiB", 1),
)


def main() -> None:
    parser = options_of("Compare how a quick answer fares beside slow readers.", rounds=3)
    parser.add_argument("--readers", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=10, help="default: %(default)s")
    parser.add_argument("--mib", type=int, default=256, help="of each body; default: %(default)s")
    options = parser.parse_args()
    size = options.mib * MIB
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "body")
        write_file(file, size)
        run(
            [
                Table(
                    f"{options.readers} slow readers of {options.mib} MiB {source}, 4 threads; beside "
                    f"them hello each {QUESTION_EVERY * 1000:.0f} ms for {options.seconds:g} s; "
                    "memory at its peak",
                    (OURS, WAITRESS, GUNICORN, GRANIAN, CHEROOT),
                    COLUMNS,
                    partial(
                        measure,
                        path=f"/{kind}/{size}/0",
                        readers=options.readers,
                        seconds=options.seconds,
                        file=file,
                    ),
                    ratios=("worst", "median"),
                )
                for kind, source in (("file", "from a file"), ("generated", "made by the app"))
            ],
            options,
        )


def measure(server: Server, python: Path, *, path: str, readers: int, seconds: float, file: Path) -> Result:
    with (
        client_process() as process,
        running(server, "apps:bodies", 4, python, environment={FILE: str(file)}) as (popen, port),
    ):
        check(port, "/", HELLO)
        with Watch(popen.pid) as watch:
            heard = process.submit(listen, port, path, readers, seconds).result()
        figures = {
            "answered": float(len(heard.latencies)),
            "reading": float(heard.readers_served),
            "read": heard.bytes_read / MIB,
            "anonymous": watch.anonymous_peak / MIB,
            "resident": watch.resident_peak / MIB,
        }
        notes = heard.problems[:3]
        # A question that was never answered waited at least so long.
        waits = [*heard.latencies, heard.unanswered] if heard.unanswered else heard.latencies
        if heard.latencies:
            figures |= {
                "worst": max(waits) * 1000,
                "p99": statistics.quantiles(waits, n=100, method="inclusive")[98] * 1000
                if len(waits) > 1
                else waits[0] * 1000,
                "median": statistics.median(waits) * 1000,
            }
            if heard.unanswered:
                notes.append(f"the last question had no answer in {heard.unanswered:.1f} s")
        else:
            notes.append(f"no answer in {heard.unanswered:.1f} s")
        return Result(figures, "; ".join(notes))


@dataclass(slots=True)
class Heard:
    """What the client process reports; latencies in seconds."""

    latencies: list[float] = field(default_factory=list)
    unanswered: float = 0.0
    readers_served: int = 0
    bytes_read: int = 0
    problems: list[str] = field(default_factory=list)


def listen(port: int, path: str, readers: int, seconds: float) -> Heard:
    """The client process."""
    return asyncio.run(_listen(port, path, readers, seconds))


async def _listen(port: int, path: str, readers: int, seconds: float) -> Heard:
    loop = asyncio.get_running_loop()
    heard = Heard()
    first_bytes = [loop.create_future() for _ in range(readers)]
    reading = [asyncio.create_task(_read_slowly(port, path, first, heard)) for first in first_bytes]
    try:
        # Measured is the server at work with all readers, if it gets so far.
        settling = Heard()
        first_answer = asyncio.create_task(_ask(port, settling, loop.time(), SETTLES_WITHIN))
        await asyncio.wait([*first_bytes, first_answer], timeout=SETTLES_WITHIN)
        await first_answer
        await _ask(port, heard, loop.time() + seconds, GRACE)
    finally:
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
    heard.readers_served = sum(first.done() and not first.cancelled() for first in first_bytes)
    return heard


async def _read_slowly(port: int, path: str, first: "asyncio.Future[None]", heard: Heard) -> None:
    loop = asyncio.get_running_loop()
    buffer = bytearray(BLOCK)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, (HOST, port))
            await loop.sock_sendall(sock, head_of("GET", path))
            while received := await loop.sock_recv_into(sock, buffer):
                if not first.done():
                    if not buffer.startswith(b"HTTP/1.1 200"):
                        raise BenchmarkError(f"it answered {bytes(buffer[:100])!r}")
                    first.set_result(None)
                heard.bytes_read += received
                await asyncio.sleep(PACE)
            heard.problems.append("a reader's connection closed")
        except (OSError, BenchmarkError) as error:
            heard.problems.append(f"a reader: {error!r}")


async def _ask(port: int, heard: Heard, end: float, grace: float) -> None:
    """Asks at least once, and until `end`; gives up when `grace` more has gone by without an answer."""
    loop = asyncio.get_running_loop()
    request = head_of("GET", "/")
    with socket.socket() as sock:
        sock.setblocking(False)
        asked = loop.time()
        try:
            async with asyncio.timeout_at(end + grace):
                await loop.sock_connect(sock, (HOST, port))
                while True:
                    asked = loop.time()
                    await loop.sock_sendall(sock, request)
                    answer = b""
                    while not answer.endswith(HELLO):
                        if not (more := await loop.sock_recv(sock, 4096)):
                            raise BenchmarkError(f"the connection closed after {answer[:100]!r}")
                        answer += more
                    if not answer.startswith(b"HTTP/1.1 200"):
                        raise BenchmarkError(f"it answered {answer[:100]!r}")
                    now = loop.time()
                    heard.latencies.append(now - asked)
                    if now >= end:
                        return
                    await asyncio.sleep(max(0.0, asked + QUESTION_EVERY - now))
        except TimeoutError:
            heard.unanswered = loop.time() - asked
        except (OSError, BenchmarkError) as error:
            heard.problems.append(f"hello: {error!r}")


if __name__ == "__main__":
    main()
