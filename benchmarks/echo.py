"""A large body sent back while it comes: ``python benchmarks/echo.py``. README.md says what and how."""

import socket
import threading
import time
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

from apps import content
from clients import BUFFER, Load, client_process, connected, head_of, parsed_head, whole_answer
from measure import BenchmarkError, Server, running
from processes import MIB, Watch
from rounds import Column, Result, Table, options_of, run
from tables import OURS

EVERY = 0.02  # seconds between two questions

Framing = Literal["Content-Length", "chunked"]

# The same server and app, asked for another path.
ON_LOOP = OURS.using("--stream-request-body", name="on the loop")
IN_THREAD = OURS.using("--stream-request-body", name="in a thread")
PATHS = {ON_LOOP.name: "/loop", IN_THREAD.name: "/thread"}

COLUMNS = (
    Column("cpu", "CPU s", 2),
    Column("wall", "wall s", 2),
    Column("anonymous", "RssAnon MiB", 1),
    Column("resident", "VmHWM MiB", 1),
    Column("held", "threads held"),
    Column("asked", "answers beside"),
    Column("worst", "worst ms", 1),
)


def main() -> None:
    parser = options_of("What it costs to send a large body back while it comes.", rounds=3)
    parser.add_argument("--mib", type=int, default=1024, help="of the body; default: %(default)s")
    options = parser.parse_args()
    framings: tuple[Framing, ...] = ("Content-Length", "chunked")
    run(
        [
            Table(
                f"echo: {options.mib} MiB, {framing}, 4 threads; memory at its peak",
                (ON_LOOP, IN_THREAD),
                COLUMNS,
                partial(measure, framing=framing, size=options.mib * MIB),
                ratios=("cpu", "wall"),
            )
            for framing in framings
        ],
        options,
    )


def measure(server: Server, python: Path, *, framing: Framing, size: int) -> Result:
    path = PATHS[server.name]
    with client_process() as process, running(server, "echo_app:app", 4, python) as (popen, port):
        process.submit(echo, port, path, framing, MIB).result()
        beside = Beside(port)
        with Watch(popen.pid) as watch, beside:
            load = process.submit(echo, port, path, framing, size).result()
        if problems := [*load.problems, *beside.problems]:
            raise BenchmarkError("; ".join(problems))
        return Result(
            {
                "cpu": watch.cpu_seconds,
                "wall": load.seconds,
                "anonymous": watch.anonymous_peak / MIB,
                "resident": watch.resident_peak / MIB,
                "held": max(beside.held),
                "asked": len(beside.held),
                "worst": beside.worst * 1000,
            }
        )


class Beside:
    """Asks the app, during a `with` block, how many of its threads are held."""

    def __init__(self, port: int) -> None:
        self.held: list[int] = []
        self.worst = 0.0
        self.problems: list[str] = []
        self._port = port
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            with connected(self._port) as sock:
                while not self._ended.wait(EVERY):
                    asked = time.perf_counter()
                    sock.sendall(head_of("GET", "/held"))
                    self.held.append(int(whole_answer(sock)))
                    self.worst = max(self.worst, time.perf_counter() - asked)
        except (OSError, BenchmarkError) as error:
            self.problems.append(f"beside: {error!r}")


# -- the client's process


def echo(port: int, path: str, framing: Framing, size: int) -> Load:
    """Send as fast as the server takes it, and compare what comes back meanwhile."""
    problems: list[str] = []
    chunked = framing == "chunked"
    fields = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(size)}
    start = time.perf_counter()
    with connected(port) as sock:
        sending = threading.Thread(target=send, args=(sock, head_of("POST", path, fields), size, chunked))
        sending.start()
        try:
            compare(sock, size, chunked)
        except (OSError, BenchmarkError) as error:
            problems.append(repr(error))
        seconds = time.perf_counter() - start
    sending.join()
    return Load(seconds, problems)


def send(sock: socket.socket, head: bytes, size: int, chunked: bool) -> None:
    try:
        sock.sendall(head)
        for block in content(0, size, BUFFER):
            sock.sendall(b"%x\r\n%b\r\n" % (len(block), block) if chunked else block)
        if chunked:
            sock.sendall(b"0\r\n\r\n")
    except OSError:
        pass  # who receives tells of it


def compare(sock: socket.socket, size: int, chunked: bool) -> None:
    """Receive an answer, which must be 200 and the content of that size."""
    expected = received = 0
    checksum = 0
    with sock.makefile("rb") as file:
        head = b"".join(iter(file.readline, b"\r\n"))
        status, fields = parsed_head(head.removesuffix(b"\r\n"))
        if status != 200 or ("content-length" in fields) is chunked:
            raise BenchmarkError(f"it answered {status} with {fields}")
        for block in chunks(file) if chunked else iter(lambda: file.read1(BUFFER), b""):
            checksum = zlib.crc32(block, checksum)
            received += len(block)
            if received == size and not chunked:
                break
    for block in content(0, size, BUFFER):
        expected = zlib.crc32(block, expected)
    if (received, checksum) != (size, expected):
        raise BenchmarkError(f"{received} bytes came back, with another checksum or length")


def chunks(file: BinaryIO) -> Iterator[bytes]:
    """The chunks of a body."""
    while size := int(file.readline(), 16):
        yield file.read(size)
        file.readline()


if __name__ == "__main__":
    main()
