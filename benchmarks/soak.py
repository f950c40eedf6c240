"""Many kinds of clients for a long time: ``python benchmarks/soak.py``. README.md says what and how."""

import argparse
import asyncio
import json
import random
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from apps import BLOCK, FILE, HELLO, PERIOD, part, write_file
from clients import head_of, parsed_head, raise_descriptor_limit
from environments import default_cache, own_python
from machine import machine_facts
from measure import HOST, BenchmarkError, running
from processes import MIB, anonymous, cpu_seconds, descriptors, status
from tables import BROWSER_HEADERS, OURS

LARGEST = 20_000_000
SMALL_RECEIVE_BUFFER = 16384
EXCHANGE_WITHIN = 120.0
REUSED = 0.7  # how many connections have another exchange
THINK = 0.05  # seconds, at most, between two exchanges of a client
SETTLES_WITHIN = 40.0
STEADY = 5.0  # longer than a server lingers on a connection
GROWTH, GROWTH_BYTES = 0.15, 4 * MIB  # what the last third may have above the first
SHOWN = 10  # wrong answers in full

# The kinds of exchange, each a method of Client, and how often each comes.
KINDS = {
    "hellos": 30,
    "uploads": 12,
    "chunked": 8,
    "slow_up": 4,
    "echoes": 5,
    "ignored": 3,
    "files": 8,
    "generated": 8,
    "lists": 5,
    "slow_down": 4,
    "resets": 10,
    "refused": 5,
}

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends a reset


class WrongError(Exception):
    """An answer that is not what it has to be, or that did not come."""


FAILURES = (
    WrongError,
    BenchmarkError,
    OSError,
    EOFError,
    TimeoutError,
    ValueError,
    asyncio.LimitOverrunError,
)


@dataclass(frozen=True, slots=True)
class Figures:
    """What the server's process has open and uses."""

    anonymous: int
    descriptors: int
    threads: int
    files: int

    @property
    def countable(self) -> tuple[int, int, int]:
        """What has to be the same before and after."""
        return self.descriptors, self.threads, self.files


@dataclass(slots=True)
class Tally:
    """What the clients have done so far."""

    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)  # RssAnon, once a second


class Stream:
    """A client's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.reusable = True

    @classmethod
    async def open(cls, port: int, receive_buffer: int | None = None) -> "Stream":
        sock = socket.socket()
        try:
            if receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, (HOST, port))
            return cls(*await asyncio.open_connection(sock=sock, limit=receive_buffer or 2 * BLOCK))
        except BaseException:
            sock.close()
            raise

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        head = await self.reader.readuntil(b"\r\n\r\n")
        status_code, fields = parsed_head(head.removesuffix(b"\r\n\r\n"))
        if fields.get("connection", "").lower() == "close":
            self.reusable = False
        return status_code, fields

    async def answer(self, check: Callable[[bytes], Awaitable[None]]) -> None:
        """Reads a 200 and gives its body to `check`, in pieces, and b"" at its end."""
        status_code, fields = await self.head()
        if status_code != 200:
            raise WrongError(f"status {status_code}")
        if "content-length" in fields:
            await self._sized(int(fields["content-length"]), check)
        elif fields.get("transfer-encoding") == "chunked":
            while length := int(await self.reader.readuntil(b"\r\n"), 16):
                await self._sized(length, check)
                if await self.reader.readexactly(2) != b"\r\n":
                    raise WrongError("a chunk does not end where it says")
            if await self.reader.readexactly(2) != b"\r\n":
                raise WrongError("the body does not end with its last chunk")
        else:
            self.reusable = False
            while piece := await self.reader.read(BLOCK):
                await check(piece)
        await check(b"")

    async def _sized(self, left: int, check: Callable[[bytes], Awaitable[None]]) -> None:
        while left:
            if not (piece := await self.reader.read(min(left, BLOCK))):
                raise WrongError(f"the connection closed {left} bytes before the end")
            left -= len(piece)
            await check(piece)

    def reset(self) -> None:
        if sock := self.writer.get_extra_info("socket"):
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()


class Client:
    """Has one exchange after another, of kinds and sizes that its seed decides."""

    def __init__(self, port: int, seed: str, tally: Tally) -> None:
        self._port = port
        self._random = random.Random(seed)
        self._tally = tally
        self._stream: Stream | None = None

    async def run(self, end: float) -> None:
        try:
            while time.monotonic() < end:
                (kind,) = self._random.choices(list(KINDS), list(KINDS.values()))
                try:
                    async with asyncio.timeout(EXCHANGE_WITHIN):
                        await getattr(self, kind)()
                except FAILURES as error:
                    self._tally.wrong.append(f"{kind}: {error!r}")
                    await self._leave(reuse=False)
                else:
                    self._tally.done[kind] += 1
                    await self._leave(reuse=self._random.random() < REUSED)
                await asyncio.sleep(self._random.random() * THINK)
        finally:
            await self._leave(reuse=False)

    async def _leave(self, *, reuse: bool) -> None:
        stream = self._stream
        if stream and not (reuse and stream.reusable):
            self._stream = None
            await stream.close()

    async def _connected(self, receive_buffer: int | None = None) -> Stream:
        """The connection of the exchange before, or another."""
        if receive_buffer is not None:
            await self._leave(reuse=False)
        if not self._stream:
            self._stream = await Stream.open(self._port, receive_buffer)
        return self._stream

    def _length(self, most: int = LARGEST) -> int:
        """As often of ten as of a million bytes."""
        return int(most ** self._random.random())

    # Exchanges

    async def hellos(self) -> None:
        """Pipelined, and cut anywhere."""
        stream = await self._connected()
        count = self._random.randint(1, 8)
        requests = head_of("GET", "/", BROWSER_HEADERS) * count
        cut = self._random.randrange(len(requests))
        await stream.send(requests[:cut])
        if self._random.random() < 0.5:
            await asyncio.sleep(self._random.random() * 0.02)
        await stream.send(requests[cut:])
        for _ in range(count):
            await stream.answer(_equal(HELLO))

    async def uploads(self) -> None:
        await self._upload(self._length())

    async def chunked(self) -> None:
        await self._upload(self._length(), chunked=True)

    async def slow_up(self) -> None:
        pieces = self._random.randint(2, 30)
        length = self._length(2_000_000)
        pause = self._random.uniform(0.01, 0.2)
        await self._upload(
            length, chunked=self._random.random() < 0.5, block=max(1, -(-length // pieces)), pause=pause
        )

    async def _upload(
        self, length: int, *, chunked: bool = False, block: int | None = None, pause: float = 0
    ) -> None:
        stream = await self._connected()
        seed = self._random.randrange(PERIOD)
        fields = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(length)}
        if expects := self._random.random() < 0.2:
            fields["Expect"] = "100-continue"
        await stream.send(head_of("POST", "/upload", fields))
        if expects and length and (await stream.head())[0] != 100:
            raise WrongError("no 100 to an expectation")
        checksum = 0
        start = 0
        while start < length:
            step = min(length - start, block or self._random.randint(1, 2 * BLOCK))
            piece = part(seed, start, step)
            start += step
            checksum = zlib.crc32(piece, checksum)
            await stream.send(b"%x\r\n%b\r\n" % (step, piece) if chunked else piece)
            if pause:
                await asyncio.sleep(pause)
        if chunked:
            await stream.send(b"0\r\n\r\n")
        await stream.answer(_equal(b"%d %08x" % (length, checksum)))

    async def echoes(self) -> None:
        """Sends and reads at the same time: the answer may begin before the request has ended."""
        await self._send_and_read("/echo")

    async def ignored(self) -> None:
        await self._send_and_read("/ignore", b"ignored")

    async def _send_and_read(self, path: str, expected: bytes | None = None) -> None:
        stream = await self._connected()
        length = max(1, self._length())
        seed = self._random.randrange(PERIOD)
        check = _same(seed, length) if expected is None else _equal(expected)
        await stream.send(head_of("POST", path, {"Content-Length": str(length)}))
        sending = asyncio.create_task(self._send_body(stream, seed, length))
        try:
            await stream.answer(check)
            if stream.reusable:  # otherwise the server wants no more of it
                await sending
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _send_body(self, stream: Stream, seed: int, length: int) -> None:
        for start in range(0, length, BLOCK):
            await stream.send(part(seed, start, min(BLOCK, length - start)))

    async def files(self) -> None:
        await self._download("file")

    async def generated(self) -> None:
        await self._download("generated" if self._random.random() < 0.5 else "unsized")

    async def lists(self) -> None:
        await self._download("list")

    async def slow_down(self) -> None:
        pauses = self._random.randint(2, 30)
        kind = self._random.choice(["file", "generated", "unsized", "list"])
        await self._download(kind, pauses=pauses, pause=self._random.uniform(0.01, 0.2))

    async def _download(self, kind: str, *, pauses: int = 0, pause: float = 0) -> None:
        stream = await self._connected(SMALL_RECEIVE_BUFFER if pauses else None)
        length = self._length()
        seed = self._random.randrange(PERIOD)
        request = head_of("GET", f"/{kind}/{length}/{seed}", BROWSER_HEADERS)
        if kind == "unsized" and self._random.random() < 0.3:  # the connection's end is the body's
            request = request.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"keep-alive", b"close")
            stream.reusable = False
        await stream.send(request)
        compare = _same(seed, length)
        every = length // pauses + 1 if pauses else length + 1
        taken = 0

        async def check(piece: bytes) -> None:
            nonlocal taken
            before, taken = taken // every, taken + len(piece)
            await compare(piece)
            if taken // every > before:
                await asyncio.sleep(pause)

        await stream.answer(check)

    async def resets(self) -> None:
        """Breaks off somewhere. What the server does then is seen in its figures."""
        await self._leave(reuse=False)
        stream = await Stream.open(self._port, self._random.choice([None, SMALL_RECEIVE_BUFFER]))
        length = self._length()
        upload = head_of("POST", "/upload", {"Content-Length": str(length)})
        kind = self._random.choice(["file", "generated", "unsized", "list"])
        download = head_of("GET", f"/{kind}/{length}/0")
        try:
            match self._random.choice(["head", "upload", "download", "at once", "hellos"]):
                case "head":
                    await stream.send(upload[: self._random.randrange(len(upload))])
                case "upload":
                    await stream.send(upload)
                    await self._send_body(stream, 0, self._random.randint(0, length))
                case "download":
                    await stream.send(download)
                    left = self._random.randint(0, length)
                    while left > 0 and (piece := await stream.reader.read(min(left, BLOCK))):
                        left -= len(piece)
                case "at once":
                    await stream.send(download)
                case "hellos":
                    await stream.send(head_of("GET", "/") * 20)
            await asyncio.sleep(self._random.choice([0, 0, self._random.random() * 0.1]))
        except OSError:
            pass
        finally:
            if self._random.random() < 0.8:
                stream.reset()
            else:
                await stream.close()

    async def refused(self) -> None:
        await self._leave(reuse=False)
        request, expected = self._random.choice(REFUSED)
        stream = self._stream = await Stream.open(self._port)
        stream.reusable = False
        await stream.send(request)
        status_code, _ = await stream.head()
        if status_code != expected:
            raise WrongError(f"status {status_code} for {request[:60]!r}")
        while await stream.reader.read(BLOCK):  # its end: nothing behind a refusal is answered
            pass


CHUNKED = {"Transfer-Encoding": "chunked"}
REFUSED = [
    (b"GET / HTTP/1.1\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: x\nX: y\r\n\r\n", 400),
    (head_of("POST", "/upload", {"Content-Length": "1", "content-length": "2"}), 400),
    (head_of("POST", "/upload", CHUNKED) + b"+5\r\nhello\r\n0\r\n\r\n", 400),
    (head_of("POST", "/upload", {"Transfer-Encoding": "gzip, chunked"}), 501),
    (head_of("POST", "/upload", {"Content-Length": str(10**12)}), 413),
    (head_of("POST", "/upload", {"Content-Length": str(10**12), "Expect": "100-continue"}), 413),
    (head_of("GET", "/" + "a" * 70_000), 414),
    (head_of("GET", "/", {"X": "a" * 300_000}), 431),
]


def _equal(expected: bytes) -> Callable[[bytes], Awaitable[None]]:
    """A check for a short body."""
    body = bytearray()

    async def check(piece: bytes) -> None:
        body.extend(piece)
        if (not piece or len(body) > len(expected)) and body != expected:
            raise WrongError(f"{bytes(body[:100])!r}, not {expected!r}")

    return check


def _same(seed: int, length: int) -> Callable[[bytes], Awaitable[None]]:
    """A check for the content of that seed and length."""
    position = 0

    async def check(piece: bytes) -> None:
        nonlocal position
        if piece != part(seed, position, len(piece)):
            raise WrongError(f"wrong bytes from {position} on, of seed {seed} and length {length}")
        position += len(piece)
        if not piece and position != length:
            raise WrongError(f"{position} bytes, not {length}")

    return check


# The run


def main() -> None:
    options = parse_options()
    if sys.platform != "linux":
        sys.exit("This soak reads /proc: it needs Linux.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    raise_descriptor_limit()
    python = own_python(options.cache)
    server = OURS.using(*options.setting)
    try:
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log:
            file = Path(folder, "body")
            write_file(file, PERIOD + LARGEST)
            with running(
                server, "apps:bodies", options.threads, python, environment={FILE: str(file)}, log=log
            ) as (process, port):
                found = asyncio.run(soak(process, port, options))
            log.seek(0)
            said = log.read().decode(errors="replace")
    except BenchmarkError as error:
        sys.exit(f"soak.py: {error}")
    failures = report(found, said)
    if options.json:
        facts = machine_facts() | {name: str(value) for name, value in vars(options).items()}
        options.json.write_text(json.dumps({"facts": facts, **found, "failures": failures}, indent=2) + "\n")
    sys.exit(1 if failures else 0)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Try this server with many kinds of clients at length.")
    parser.add_argument("--minutes", type=float, default=15, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--clients", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=4, help="of the server; default: %(default)s")
    parser.add_argument("--setting", action="append", default=[], metavar="FLAG", help="for the server")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--cache", type=Path, metavar="DIR", default=default_cache(), help=argparse.SUPPRESS)
    return parser.parse_args()


async def soak(process: subprocess.Popen[bytes], port: int, options: argparse.Namespace) -> dict[str, Any]:
    """A warm-up, which is not compared with anything, and the soak, with figures in silence around it."""
    seconds = options.minutes * 60
    warm_up = min(60.0, seconds / 4)
    every = min(60.0, seconds / 6)
    print(f"{options.clients} clients, seed {options.seed}; {warm_up:.0f} s of warm-up, then the soak\n")
    print_head()
    await run_clients(process, port, options, "warm-up", warm_up, every)
    before = await silent(process.pid)
    print_silent("before", before)
    tally = await run_clients(process, port, options, "soak", seconds - warm_up, every)
    after = await silent(process.pid, like=before)
    print_silent("after", after)
    third = len(tally.samples) // 3
    return {
        "done": dict(tally.done),
        "wrong": tally.wrong,
        "before": asdict(before),
        "after": asdict(after),
        "first_third": statistics.median(tally.samples[:third]),
        "last_third": statistics.median(tally.samples[-third:]),
    }


async def run_clients(
    process: subprocess.Popen[bytes],
    port: int,
    options: argparse.Namespace,
    phase: str,
    seconds: float,
    every: float,
) -> Tally:
    tally = Tally()
    end = time.monotonic() + seconds
    watching = asyncio.create_task(watch(process, phase, tally, every))
    clients: asyncio.Future[list[None]] = asyncio.gather(
        *(
            Client(port, f"{options.seed}/{phase}/{number}", tally).run(end)
            for number in range(options.clients)
        )
    )
    try:
        both: list[asyncio.Future[Any]] = [watching, clients]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            await watching  # which raises: the server has ended
        await clients
    finally:
        clients.cancel()
        watching.cancel()
        await asyncio.gather(watching, clients, return_exceptions=True)
    return tally


async def watch(process: subprocess.Popen[bytes], phase: str, tally: Tally, every: float) -> None:
    start = since = time.monotonic()
    used = cpu_seconds([process.pid]), time.process_time()
    while True:
        await asyncio.sleep(1)
        if process.poll() is not None:
            raise BenchmarkError(f"the server has ended, with status {process.returncode}")
        tally.samples.append(anonymous([process.pid]))
        now = time.monotonic()
        if now - since >= every:
            now_used = cpu_seconds([process.pid]), time.process_time()
            shares = [(new - old) / (now - since) * 100 for new, old in zip(now_used, used, strict=True)]
            print_line(phase, now - start, tally, figures(process.pid), shares)
            since, used = now, now_used


def figures(pid: int) -> Figures:
    count, nameless = descriptors(pid)
    return Figures(anonymous([pid]), count, status(pid)["Threads"], nameless)


async def silent(pid: int, like: Figures | None = None) -> Figures:
    """The figures once they are steady, or are those of before; in any case after a bounded time."""
    deadline = time.monotonic() + SETTLES_WITHIN
    latest = figures(pid)
    since = time.monotonic()
    while time.monotonic() < deadline:
        await asyncio.sleep(0.2)
        now = figures(pid)
        if now.countable != latest.countable:
            since = time.monotonic()
        latest = now
        steady = time.monotonic() - since >= STEADY
        if steady and (like is None or now.countable == like.countable):
            break
    return latest


def report(found: dict[str, Any], log: str) -> list[str]:
    """Prints what came out, and returns what is not as it has to be."""
    before, after = Figures(**found["before"]), Figures(**found["after"])
    failures = []
    print(f"\n{sum(found['done'].values()):,} exchanges, {len(found['wrong'])} wrong")
    for wrong in found["wrong"][:SHOWN]:
        print(f"  {wrong}")
    if found["wrong"]:
        failures.append("there were wrong answers")
    if after.countable != before.countable:
        failures.append("descriptors, threads or temporary files are not what they were before")
    first, last = found["first_third"], found["last_third"]
    bound = first * (1 + GROWTH) + GROWTH_BYTES
    print(
        f"RssAnon, median of the first third {first / MIB:.1f} MiB, of the last {last / MIB:.1f} MiB "
        f"(at most {bound / MIB:.1f})"
    )
    if last > bound:
        failures.append("memory has grown")
    if tracebacks := log.count("Traceback (most recent call last)"):
        print(f"{tracebacks} tracebacks in the server's log, which begin with:")
        print(log[log.index("Traceback") :][:2000])
    print("; ".join(failures) or "as it has to be")
    return failures


def print_head() -> None:
    kinds = "".join(f"{kind:>10}" for kind in KINDS)
    print(
        f"{'phase':<9}{'s':>5}{'done':>9}{kinds}{'wrong':>6}{'RssAnon':>9}{'fds':>6}{'threads':>8}"
        f"{'files':>6}{'CPU %':>7}{'client %':>9}",
        flush=True,
    )


def print_line(phase: str, seconds: float, tally: Tally, now: Figures, shares: list[float]) -> None:
    kinds = "".join(f"{tally.done[kind]:>10}" for kind in KINDS)
    print(
        f"{phase:<9}{seconds:>5.0f}{tally.done.total():>9}{kinds}{len(tally.wrong):>6}"
        f"{now.anonymous / MIB:>9.1f}{now.descriptors:>6}{now.threads:>8}{now.files:>6}"
        f"{shares[0]:>7.0f}{shares[1]:>9.0f}",
        flush=True,
    )


def print_silent(word: str, now: Figures) -> None:
    print(
        f"{word:<9}nobody there: RssAnon {now.anonymous / MIB:.1f} MiB, {now.descriptors} descriptors, "
        f"{now.threads} threads, {now.files} temporary files",
        flush=True,
    )


if __name__ == "__main__":
    main()
