"""What the clients of the benchmarks share. They run in a process of their own, which shares no lock with the
sampling of memory."""

import multiprocessing
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from measure import HOST, BenchmarkError

TIMEOUT = 120.0
BUFFER = 1 << 18


@dataclass(frozen=True, slots=True)
class Load:
    """What a client process reports: how long it took from first byte to last, and what went wrong."""

    seconds: float
    problems: list[str]


@contextmanager
def client_process() -> Iterator[ProcessPoolExecutor]:
    """A process for clients, which has started."""
    raise_descriptor_limit()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        process.submit(raise_descriptor_limit).result()
        yield process


def raise_descriptor_limit() -> None:
    """As many descriptors as the system allows, for this process and for the servers that it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def at_once(count: int, client: Callable[[int], None]) -> Load:
    """Runs that many clients in threads, which begin together, each with its number."""
    problems: list[str] = []
    begin = threading.Barrier(count + 1)

    def guarded(number: int) -> None:
        begin.wait()
        try:
            client(number)
        except (OSError, BenchmarkError) as error:
            problems.append(f"client {number}: {error!r}")

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    begin.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return Load(time.perf_counter() - start, problems)


def connected(port: int, receive_buffer: int | None = None) -> socket.socket:
    """A blocking socket whose every operation is bounded in time."""
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)  # before the window is agreed on
    sock.settimeout(TIMEOUT)
    try:
        sock.connect((HOST, port))
    except OSError:
        sock.close()
        raise
    return sock


def head_of(method: str, path: str, fields: dict[str, str] | None = None) -> bytes:
    """The head of a request."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}"]
    lines += [f"{name}: {value}" for name, value in (fields or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def parsed_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Status and fields, with names in small letters, of an answer's head without the empty line."""
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
        raise BenchmarkError(f"not an answer: {first[:100]!r}")
    fields = (line.partition(":") for line in lines)
    return int(rest[:3]), {name.lower(): value.strip() for name, _, value in fields}


def begin_answer(sock: socket.socket) -> tuple[int, bytes]:
    """Content-Length of the answer that comes, and what has come of its body. It must be a 200."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := sock.recv(BUFFER)):
            raise BenchmarkError(f"the connection closed after {data[:200]!r}")
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    status, fields = parsed_head(head)
    if status != 200 or "content-length" not in fields:
        raise BenchmarkError(f"it answered {status} with {fields} {body[:200]!r}")
    return int(fields["content-length"]), body


def whole_answer(sock: socket.socket) -> bytes:
    """The body of an answer that is small."""
    length, body = begin_answer(sock)
    while len(body) < length:
        if not (more := sock.recv(BUFFER)):
            raise BenchmarkError(f"the connection closed after {len(body)} bytes of {length}")
        body += more
    return body


def check(port: int, path: str, expected: bytes, body: bytes = b"") -> None:
    """One request with that body, or none; its answer must be that."""
    fields = {"Connection": "close"} | ({"Content-Length": str(len(body))} if body else {})
    try:
        with connected(port) as sock:
            sock.sendall(head_of("POST" if body else "GET", path, fields) + body)
            answer = whole_answer(sock)
    except OSError as error:
        raise BenchmarkError(f"it did not answer {path}: {error!r}") from error
    if answer != expected:
        raise BenchmarkError(f"it answered {path} with {len(answer)} bytes {answer[:100]!r}")
