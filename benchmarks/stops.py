"""Stops under load, and what they lose: ``python benchmarks/stops.py``. README.md says what and how."""

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apps import HELLO, bodies, part, summed
from clients import TIMEOUT, connected, head_of
from environments import default_cache, own_python
from machine import machine_facts
from measure import HOST, BenchmarkError, running
from processes import descriptors
from tables import BROWSER_HEADERS, OURS

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

THREADS = 4
UPLOAD = 300_000  # bytes
STREAM = 2_000_000
PIECE = 65_536  # of a stream, read
PAUSE = 0.01  # seconds after each
CLIENTS_OF_A_KIND = 4
LOAD = 0.3, 1.0  # seconds of it before a stop
ALLOWED = 1.0  # seconds that an exit may take beyond graceful_timeout
STUCK_TIMEOUT = 2.0  # graceful_timeout, in seconds, where a thread is stuck
STUCK_EACH = 10  # embedded: one in so many stops has a stuck thread
RELEASED_WITHIN = 10.0

# How a client asks: the method and the path, its fields, its body, and what it has to be answered.
_CONTENT = part(1, 0, UPLOAD)
KINDS = {
    "kept": (head_of("GET", "/", BROWSER_HEADERS), HELLO),
    "closed": (head_of("GET", "/", {"Connection": "close"}), HELLO),
    "uploads": (head_of("POST", "/upload", {"Content-Length": str(UPLOAD)}) + _CONTENT, summed([_CONTENT])),
    "streams": (
        head_of("GET", f"/unsized/{STREAM}/1"),
        b"".join(part(1, at, 100_000) for at in range(0, STREAM, 100_000)),
    ),
}

_STOPPED = re.compile(r"Stopped: (\d+) response\(s\) sent since the stop began, (\d+) connection\(s\) cut")

released = threading.Event()  # what is stuck


def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """As `bodies`, but /stuck does not return before it is released."""
    if environ["PATH_INFO"] == "/stuck":
        never_returns()
    return bodies(environ, start_response)


def never_returns() -> None:
    released.wait()


@dataclass(frozen=True, slots=True)
class Stop:
    """One stop: what became of the requests, and of the process."""

    asked: int  # before the signal, to the last byte
    in_flight: int  # of those, not answered whole when it was sent
    answered: int  # of those
    lost: int  # of those; and answers of later ones that began, and are not whole
    later: int  # asked after the signal, and answered whole all the same
    turned_away: int  # asked after the signal, and not answered with a single byte
    exit_status: int
    seconds: float  # from the signal to the exit
    counted: int  # what the server's last line says it has answered since the stop began
    cut: int  # and cut
    problems: list[str]

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.exit_status or self.cut or self.problems)


class Tally:
    """What has become of the requests so far. Any thread."""

    def __init__(self) -> None:
        self.signalled = threading.Event()  # before the signal is sent
        self.problems: list[str] = []
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def ask(self) -> bool:
        """A request has been sent. Returns whether that was before the signal."""
        with self._lock:
            in_time = not self.signalled.is_set()
            self._counts["asked" if in_time else "asked later"] += 1
            return in_time

    def add(self, what: str, problem: str = "") -> None:
        with self._lock:
            self._counts[what] += 1
            if problem:
                self.problems.append(problem)

    def signal(self) -> int:
        """The signal is sent now. Returns how many wait for their answer."""
        with self._lock:
            self.signalled.set()
            return self._counts["asked"] - self._counts["answered"] - self._counts["lost"]

    def __getitem__(self, what: str) -> int:
        return self._counts[what]


class Client:
    """Asks for the same again and again, until the server takes no more from it."""

    def __init__(self, kind: str, port: int, tally: Tally) -> None:
        self._kind = kind
        self._port = port
        self._tally = tally
        self._request, self._expected = KINDS[kind]
        self._sock: socket.socket | None = None

    def run(self) -> None:
        while self._ask():
            pass
        self._leave()

    def _ask(self) -> bool:
        """Returns whether to go on."""
        tally = self._tally
        sent = in_time = False
        try:
            if self._sock is None:
                self._sock = connected(self._port, PIECE if self._kind == "streams" else None)
            self._sock.sendall(self._request)
            in_time = tally.ask()
            sent = True
            response = http.client.HTTPResponse(self._sock)
            response.begin()
        except OSError as error:  # before anything of an answer has come
            if in_time or not tally.signalled.is_set():
                tally.add("lost" if sent else "failed", f"{self._kind}: {error!r}")
            else:
                tally.add("turned away")
            return False
        try:
            body = response.read() if self._kind != "streams" else b"".join(slowly(response))
        except (OSError, http.client.HTTPException) as error:
            body = repr(error).encode()
        if response.status != 200 or body != self._expected:
            tally.add("lost", f"{self._kind}: {response.status} {body[:100]!r}, {len(body)} bytes")
            return False
        tally.add("answered" if in_time else "later")
        if response.will_close:
            self._leave()
        return True

    def _leave(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def slowly(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while piece := response.read(PIECE):
        yield piece
        time.sleep(PAUSE)


def stop_under_load(
    python: Path, settings: list[str], graceful_timeout: float, chance: random.Random
) -> Stop:
    server = OURS.using(f"--graceful-timeout={graceful_timeout:g}", *settings)
    tally = Tally()
    with (
        tempfile.TemporaryFile() as log,
        running(server, "stops:app", THREADS, python, log=log) as (process, port),
    ):
        clients = [Client(kind, port, tally) for kind in KINDS for _ in range(CLIENTS_OF_A_KIND)]
        threads = [threading.Thread(target=client.run) for client in clients]
        for thread in threads:
            thread.start()
        time.sleep(chance.uniform(*LOAD))
        in_flight = tally.signal()
        status, seconds = terminated(process)
        for thread in threads:
            thread.join()
        log.seek(0)
        lines = log.read().decode(errors="replace").splitlines()
    problems = list(tally.problems)
    stopped = _STOPPED.search(lines[-1]) if lines else None
    if stopped is None:
        problems.append(f"the last line of the log is {lines[-1:]}")
    if seconds > graceful_timeout + ALLOWED:
        problems.append(f"the exit took {seconds:.2f} s")
    return Stop(
        asked=tally["asked"],
        in_flight=in_flight,
        answered=tally["answered"],
        lost=tally["lost"],
        later=tally["later"],
        turned_away=tally["turned away"],
        exit_status=status,
        seconds=seconds,
        counted=int(stopped[1]) if stopped else -1,
        cut=int(stopped[2]) if stopped else -1,
        problems=problems,
    )


def terminated(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Sends SIGTERM. Returns the exit status, and how many seconds it took."""
    began = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    try:
        status = process.wait(TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError("it does not exit") from error
    return status, time.perf_counter() - began


def stop_with_a_stuck_thread(python: Path, settings: list[str]) -> tuple[int, float, list[str]]:
    """Exit status, seconds, and what is wrong."""
    server = OURS.using(f"--graceful-timeout={STUCK_TIMEOUT:g}", *settings)
    with (
        tempfile.TemporaryFile() as log,
        running(server, "stops:app", THREADS, python, log=log) as (process, port),
    ):
        with connected(port) as stuck, connected(port) as other:
            stuck.sendall(head_of("GET", "/stuck"))
            other.sendall(head_of("GET", "/"))
            if not other.recv(1):  # by now the one before it is being served
                raise BenchmarkError("it did not answer")
            status, seconds = terminated(process)
        log.seek(0)
        text = log.read().decode(errors="replace")
    problems = []
    if status:
        problems.append(f"it exited with {status}")
    if seconds > STUCK_TIMEOUT + ALLOWED:
        problems.append("it took too long")
    if "in never_returns" not in text or "1 thread(s) still running" not in text:
        problems.append(f"the log does not name the one thread with its stack:\n{text}")
    if not _STOPPED.search(text.splitlines()[-1]):
        problems.append(f"the last line of the log is {text.splitlines()[-1]!r}")
    return status, seconds, problems


# -- embedded


@dataclass(frozen=True, slots=True)
class Left:
    """What a process has that a server may have made."""

    threads: int
    tasks: int
    descriptors: int
    files: int

    @classmethod
    def now(cls) -> "Left":
        count, nameless = descriptors(os.getpid())
        return cls(threading.active_count(), len(asyncio.all_tasks()), count, nameless)

    def beyond(self, before: "Left") -> Counter[str]:
        """What there is more than before."""
        own = asdict(self)
        return Counter(
            {name: own[name] - count for name, count in asdict(before).items() if own[name] > count}
        )


async def stop_embedded(stops: int) -> tuple[list[float], Counter[str], int]:
    """Seconds of each stop, what was left in all, and how many had a stuck thread. One before them all
    makes what loop and interpreter make once."""
    await live(stuck=False)
    before = Left.now()
    seconds: list[float] = []
    left: Counter[str] = Counter()
    stuck = 0
    for number in range(stops):
        is_stuck = number % STUCK_EACH == STUCK_EACH - 1
        stuck += is_stuck
        seconds.append(await live(stuck=is_stuck))
        left += Left.now().beyond(before)
    return seconds, left, stuck


async def live(*, stuck: bool) -> float:
    """Start, serve, and stop with clients at it, and with a thread that is stuck or without. Returns the
    seconds of the stop."""
    from waitress_async import Server

    released.clear()
    server = Server(app, host=HOST, port=0, threads=THREADS, graceful_timeout=0.2 if stuck else 10)
    await server.start()
    asking = [asyncio.create_task(ask(server.port, kind)) for kind in KINDS for _ in range(CLIENTS_OF_A_KIND)]
    held = [asyncio.create_task(ask(server.port, "/stuck"))] if stuck else []
    await asyncio.sleep(0.05)
    began = time.perf_counter()
    await server.stop()
    seconds = time.perf_counter() - began
    released.set()
    await asyncio.gather(*asking, *held)
    deadline = time.perf_counter() + RELEASED_WITHIN
    while stuck and any(thread.name.startswith("waitress_async") for thread in threading.enumerate()):
        if time.perf_counter() > deadline:
            break
        await asyncio.sleep(0.005)
    return seconds


async def ask(port: int, what: str) -> None:
    """Ask until the server ends it."""
    data = KINDS[what][0] if what in KINDS else head_of("GET", what)
    with contextlib.suppress(OSError):
        while True:
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                writer.write(data)
                while await reader.read(1 << 16):
                    pass
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()


# -- the run


def main() -> None:
    options = parsed_options()
    if sys.platform != "linux":
        sys.exit("stops.py needs Linux: it reads /proc")
    python = own_python(options.cache)
    chance = random.Random(options.seed)
    clients = CLIENTS_OF_A_KIND * len(KINDS)
    print(
        f"{options.stops} stops under {clients} clients, graceful_timeout {options.graceful_timeout:g} s\n",
        flush=True,
    )
    print_row(["stop", *COLUMNS.values()])
    stops: list[Stop] = []
    for number in range(1, options.stops + 1):
        stop = stop_under_load(python, options.setting, options.graceful_timeout, chance)
        stops.append(stop)
        print_stop(str(number), stop)
    if stops:
        print_sum(stops)
    status, seconds, problems = stop_with_a_stuck_thread(python, options.setting)
    said = "; ".join(problems) or "the log names the one thread, with its stack"
    print(f"\na stuck thread, graceful_timeout {STUCK_TIMEOUT:g} s: ", end="")
    print(f"exit {status} after {seconds:.2f} s; {said}", flush=True)
    embedded, left, stuck = embed(python, options.embedded)
    print(
        f"\n{len(embedded)} stops in one process, {stuck} of them with a stuck thread: "
        f"median {statistics.median(embedded):.2f} s, worst {max(embedded):.2f} s; left over: "
        + (
            ", ".join(f"{count} {name}" for name, count in left.items())
            or "no thread, task, descriptor or file"
        )
    )
    if options.json is not None:
        found = {
            "machine": machine_facts(),
            "stops": [asdict(stop) for stop in stops],
            "stuck": {"exit_status": status, "seconds": seconds, "problems": problems},
            "embedded": {"seconds": embedded, "left": left},
        }
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    if problems or left or not all(stop.is_clean for stop in stops):
        sys.exit(1)


def embed(python: Path, stops: int) -> tuple[list[float], Counter[str], int]:
    """In a process that has had no other threads, and has the server."""
    script = (
        "import asyncio, json, stops\n"
        "try:\n    from uvloop import new_event_loop\n"
        "except ImportError:\n    new_event_loop = None\n"
        "with asyncio.Runner(loop_factory=new_event_loop) as runner:\n"
        f"    print(json.dumps(runner.run(stops.stop_embedded({stops}))))\n"
    )
    done = subprocess.run(
        [python, "-c", script], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchmarkError(f"the embedded servers ended in an error:\n{done.stderr[-4000:]}")
    seconds, left, stuck = json.loads(done.stdout)
    return seconds, Counter(left), stuck


COLUMNS = {
    "asked": "asked",
    "in_flight": "in flight",
    "answered": "answered",
    "lost": "lost",
    "later": "later",
    "turned_away": "turned away",
    "counted": "counted",
    "cut": "cut",
    "exit_status": "exit",
    "seconds": "seconds",
}


def print_stop(word: str, stop: Stop) -> None:
    figures = asdict(stop)
    print_row([word, *(figures[name] for name in COLUMNS)])
    for problem in stop.problems[:5]:
        print(f"{'':8}! {problem}", flush=True)


def print_row(cells: Iterable[object]) -> None:
    texts = [f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells]
    print(f"{texts[0]:>6}" + "".join(f"{text:>12}" for text in texts[1:]), flush=True)


def print_sum(stops: list[Stop]) -> None:
    figures = [asdict(stop) for stop in stops]
    summed_up = {name: sum(each[name] for each in figures) for name in COLUMNS}
    summed_up["exit_status"] = max(each["exit_status"] for each in figures)
    summed_up["seconds"] = max(each["seconds"] for each in figures)
    print_row(["in all", *summed_up.values()])


def parsed_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Stop this server under load, and count what that loses.")
    parser.add_argument("--stops", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--embedded", type=int, default=50, help="stops in one process; default: %(default)s")
    parser.add_argument("--graceful-timeout", type=float, default=10, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="of when each is; default: %(default)s")
    parser.add_argument(
        "--setting", action="append", default=[], metavar="FLAG", help="for its command; repeat it for more"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--cache", type=Path, metavar="DIR", default=default_cache(), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
