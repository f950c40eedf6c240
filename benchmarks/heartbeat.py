"""How long the loop is ever held up while bodies go to a disk that is slow, and come from one."""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import uvloop
from clients import at_once, client_process, connected, head_of

from waitress_async import Server

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

MIB = 1 << 20
BEAT = 0.001  # seconds between two looks at the clock


def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """Takes an upload, or gives a file back."""
    start_response("200 OK", [])
    if environ["REQUEST_METHOD"] == "POST":
        while environ["wsgi.input"].read(MIB):
            pass
        return [b"taken"]
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the server closes it
    file.truncate(int(environ["QUERY_STRING"]))
    return environ["wsgi.file_wrapper"](file)


def main() -> None:
    arguments = parse()
    print(f"{arguments.clients} clients at once, {arguments.mib} MiB each; each disk call as said\n")
    print(f"{'':40}{'took s':>10}{'disk calls':>12}{'longest gap ms':>16}")
    for name in ("upload", "download"):
        for delay in (0.0, arguments.delay):
            run = (
                asyncio.Runner(loop_factory=uvloop.new_event_loop)
                if arguments.loop == "uvloop"
                else asyncio.Runner()
            )
            with run as runner:
                took, calls, gap = runner.run(measure(name, delay, arguments))
            kind = (
                f"{name}, {delay * 1000:.0f} ms more for each call" if delay else f"{name}, the disk as it is"
            )
            print(f"{kind:40}{took:10.2f}{calls:12}{gap * 1000:16.1f}")


async def measure(name: str, delay: float, arguments: argparse.Namespace) -> tuple[float, int, float]:
    """Returns how long it took, how many calls went to the disk, and the longest time without a heartbeat."""
    size = arguments.mib * MIB
    gaps: list[float] = []

    async def beat() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(BEAT)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    with client_process() as process, slowed(delay) as calls:
        async with Server(app, host="127.0.0.1", port=0) as server:
            heart = asyncio.create_task(beat())
            work = asyncio.wrap_future(
                process.submit(run_clients, name, server.port, arguments.clients, size)
            )
            seconds, problems = await work
            heart.cancel()
            await asyncio.wait([heart])
    if problems:
        raise SystemExit("\n".join(problems))
    return seconds, calls[0], max(gaps)


class slowed:  # noqa: N801 - reads like a function
    """Within it, whatever reads, writes or sends a file takes `delay` longer. Counts the calls."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._calls = [0]
        self._originals: dict[str, Callable[..., object]] = {}

    def __enter__(self) -> list[int]:
        for name in ("pwrite", "pread", "sendfile"):
            self._originals[name] = getattr(os, name)
            setattr(os, name, self._slow(self._originals[name]))
        return self._calls

    def __exit__(self, *_exc: object) -> None:
        for name, original in self._originals.items():
            setattr(os, name, original)

    def _slow(self, call: Callable[..., object]) -> Callable[..., object]:
        def slow(*arguments: object) -> object:
            self._calls[0] += 1
            if self._delay:
                time.sleep(self._delay)
            return call(*arguments)

        return slow


def run_clients(name: str, port: int, clients: int, size: int) -> tuple[float, list[str]]:
    """In a process of its own: that many uploads or downloads."""
    block = bytes(MIB)

    def client(_number: int) -> None:
        with connected(port) as sock:
            if name == "upload":
                sock.sendall(head_of("POST", "/", {"Content-Length": str(size), "Connection": "close"}))
                for _ in range(size // MIB):
                    sock.sendall(block)
            else:
                sock.sendall(head_of("GET", f"/?{size}", {"Connection": "close"}))
            received = 0
            buffer = bytearray(MIB)
            while count := sock.recv_into(buffer):
                received += count
            if received < (100 if name == "upload" else size):
                raise OSError(f"only {received} bytes came")

    load = at_once(clients, client)
    return load.seconds, load.problems


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--mib", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--delay", type=float, default=0.05, help="seconds; default: %(default)s")
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    return parser.parse_args()


if __name__ == "__main__":
    main()
