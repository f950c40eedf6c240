"""Memory of connections that wait: ``python benchmarks/held.py``. README.md says what and how."""

import argparse
import asyncio
import subprocess
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from apps import HELLO, content, summed
from clients import TIMEOUT, check, head_of, parsed_head, raise_descriptor_limit
from environments import own_python
from measure import HERE, HOST, BenchmarkError, Server, running
from processes import MIB, settled_anonymous, tree
from rounds import Column, Result, Table, options_of, run
from tables import BROWSER_HEADERS, HYPERCORN, OURS, UVICORN, WAITRESS

UPLOAD = 400 * 1024
SENT_AT_FIRST = 200 * 1024
LARGE = 8 * MIB
AT_ONCE = 64  # exchanges; it is no matter of load here
LARGE_AT_ONCE = 4
SMALLER_BUFFERS = "--buffer-memory=67108864"

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

# Others close an idle connection, or take few of them, long before this is measured.
PATIENT = (
    OURS,
    WAITRESS.using("--connection-limit=10000", "--asyncore-use-poll"),
    UVICORN.using("--timeout-keep-alive=300"),
    HYPERCORN.using("--keep-alive=300"),
)


def main() -> None:
    parser = options_of("Compare what connections cost that wait.", rounds=1)
    parser.add_argument("--part", choices=["uploads", "idle", "large"], help="default: all three")
    parser.add_argument("--uploads", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--idle", type=int, default=2000, help="default: %(default)s")
    parser.add_argument("--large", type=int, default=200, help="default: %(default)s")
    options = parser.parse_args()
    raise_descriptor_limit()
    tables = {"uploads": uploads_table, "idle": idle_table, "large": large_table}
    run([table(options) for name, table in tables.items() if options.part in (None, name)], options)


def uploads_table(options: argparse.Namespace) -> Table:
    servers = [OURS]
    if flag_is_known(SMALLER_BUFFERS, options):
        servers.append(OURS.using(SMALLER_BUFFERS, name="64 MiB of buffers"))
    return Table(
        f"{options.uploads} uploads of {UPLOAD // 1024} KiB, of which {SENT_AT_FIRST // 1024} KiB have come",
        tuple(servers),
        (
            Column("held", "RssAnon MiB", 1),
            Column("unsent", "unsent MiB", 1),
            Column("right", "right answers"),
        ),
        partial(measure_uploads, count=options.uploads),
    )


def idle_table(options: argparse.Namespace) -> Table:
    return Table(
        f"{options.idle} connections, idle after one browser-like request each",
        PATIENT,
        (Column("each", "KiB each", 1), Column("open", "still open")),
        partial(measure_idle, count=options.idle),
        ratios=("each",),
    )


def large_table(options: argparse.Namespace) -> Table:
    return Table(
        f"{options.large} connections, idle after a hello, and after an upload and a download of "
        f"{LARGE // MIB} MiB, {LARGE_AT_ONCE} at once",
        PATIENT,
        (
            Column("hello", "hello, KiB each", 1),
            Column("large", "large, KiB each", 1),
            Column("open", "still open"),
        ),
        partial(measure_large, count=options.large),
        ratios=("large",),
    )


def flag_is_known(flag: str, options: argparse.Namespace) -> bool:
    """Whether this server, as it is installed, has that setting."""
    said = subprocess.run(
        [own_python(options.cache), "-m", "waitress_async", "--help"],
        cwd=HERE,
        check=False,
        capture_output=True,
        text=True,
    ).stdout
    if flag.partition("=")[0] in said:
        return True
    print(f"skipped: {flag}: this server has no such setting")
    return False


@contextmanager
def settled_server(server: Server, python: Path) -> Iterator[tuple[int, Callable[[], int]]]:
    """Its port, and a function that says how much memory it has above what it had after one hello."""
    with running(server, "apps:bodies", 4, python) as (process, port):
        check(port, "/", HELLO)
        start = settled_anonymous(tree(process.pid))
        yield port, lambda: settled_anonymous(tree(process.pid)) - start


def measure_uploads(server: Server, python: Path, *, count: int) -> Result:
    async def hold() -> dict[str, float]:
        bodies = [b"".join(content(number * 997, UPLOAD)) for number in range(count)]
        async with opened(count, port) as streams:
            for (_, writer), body in zip(streams, bodies, strict=True):
                fields = BROWSER_HEADERS | {"Content-Length": str(UPLOAD)}
                writer.write(head_of("POST", "/upload", fields) + body[:SENT_AT_FIRST])
            figures = {"held": await asyncio.to_thread(memory) / MIB}
            # A server may take no more of an upload than it has room for.
            figures["unsent"] = sum(writer.transport.get_write_buffer_size() for _, writer in streams) / MIB

            async def finish(number: int) -> None:
                reader, writer = streams[number]
                writer.write(bodies[number][SENT_AT_FIRST:])
                await expect(reader, summed([bodies[number]]))

            # All at once: no upload may have to wait for another that waits for it.
            figures["right"] = await for_each(count, finish, at_once=count)
            return figures

    with settled_server(server, python) as (port, memory):
        return finished(hold())


def measure_idle(server: Server, python: Path, *, count: int) -> Result:
    with settled_server(server, python) as (port, memory):
        each, still_open = idle_after(hello, port, memory, count, AT_ONCE)
        return Result({"each": each, "open": still_open})


def measure_large(server: Server, python: Path, *, count: int) -> Result:
    with settled_server(server, python) as (port, memory):
        after_hello, _ = idle_after(hello, port, memory, count, LARGE_AT_ONCE)
    with settled_server(server, python) as (port, memory):
        after_large, still_open = idle_after(large, port, memory, count, LARGE_AT_ONCE)
    return Result({"hello": after_hello, "large": after_large, "open": still_open})


def idle_after(
    exchange: Callable[[Stream], Awaitable[None]],
    port: int,
    memory: Callable[[], int],
    count: int,
    at_once: int,
) -> tuple[float, float]:
    """KiB for each connection that has had that exchange, and how many of them the server has not closed."""

    async def hold() -> dict[str, float]:
        async with opened(count, port) as streams:
            await for_each(count, lambda number: exchange(streams[number]), at_once=at_once)
            return {
                "each": await asyncio.to_thread(memory) / 1024 / count,
                "open": sum(not reader.at_eof() for reader, _ in streams),
            }

    figures = finished(hold()).figures
    return figures["each"], figures["open"]


def finished(work: Any) -> Result:
    """What the coroutine returns, whose failures are the server's."""
    try:
        return Result(asyncio.run(asyncio.wait_for(work, TIMEOUT)))
    except (OSError, EOFError, TimeoutError) as error:
        raise BenchmarkError(f"{error!r}") from error


async def for_each(count: int, work: Callable[[int], Awaitable[None]], *, at_once: int) -> int:
    """Does `work` for each number below `count`, and returns how many that is."""
    room = asyncio.Semaphore(at_once)

    async def one(number: int) -> None:
        async with room:
            await work(number)

    async with asyncio.timeout(TIMEOUT):
        await asyncio.gather(*(one(number) for number in range(count)))
    return count


@asynccontextmanager
async def opened(count: int, port: int) -> AsyncIterator[list[Stream]]:
    streams: list[Stream] = []

    async def connect(_number: int) -> None:
        streams.append(await asyncio.open_connection(HOST, port))

    try:
        await for_each(count, connect, at_once=AT_ONCE)
        yield streams
    finally:
        for _, writer in streams:
            writer.transport.abort()


async def hello(stream: Stream) -> None:
    reader, writer = stream
    writer.write(head_of("GET", "/", BROWSER_HEADERS))
    await expect(reader, HELLO)


async def large(stream: Stream) -> None:
    reader, writer = stream
    body = b"".join(content(0, LARGE))
    writer.write(head_of("POST", "/upload", BROWSER_HEADERS | {"Content-Length": str(LARGE)}))
    writer.write(body)
    await expect(reader, summed([body]))
    writer.write(head_of("GET", f"/generated/{LARGE}/0", BROWSER_HEADERS))
    await expect_sum(reader, LARGE, zlib.crc32(body))


async def expect(reader: asyncio.StreamReader, body: bytes) -> None:
    """Reads an answer, which must be that."""
    answer = await reader.readexactly(await answered_length(reader))
    if answer != body:
        raise BenchmarkError(f"it answered {answer[:100]!r}, not {body!r}")


async def expect_sum(reader: asyncio.StreamReader, length: int, checksum: int) -> None:
    """Reads an answer that is not kept; its body must have that length and checksum."""
    left = answered = await answered_length(reader)
    found = 0
    while left:
        if not (block := await reader.read(min(left, MIB))):
            raise BenchmarkError(f"the connection closed {left} bytes before the end")
        found = zlib.crc32(block, found)
        left -= len(block)
    if (answered, found) != (length, checksum):
        raise BenchmarkError(f"it answered {answered} bytes of checksum {found:08x}")


async def answered_length(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    status, fields = parsed_head(head.removesuffix(b"\r\n\r\n"))
    if status != 200 or "content-length" not in fields:
        raise BenchmarkError(f"it answered {status} with {fields}")
    return int(fields["content-length"])


if __name__ == "__main__":
    main()
