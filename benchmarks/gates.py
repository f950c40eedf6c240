"""What a gate costs, and what the uploads that it refuses: ``python benchmarks/gates.py``. See README.md."""

import os
import re
import select
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from clients import BUFFER, connected, head_of, parsed_head, whole_answer
from gate_apps import DECIDES_AFTER, WHO
from loads import choose_cores
from measure import HOST, BenchmarkError, Cores, Server, measure, running
from processes import MIB
from rounds import Column, Result, Table, options_of, run
from tables import OURS
from workloads import HELLO_LOAD

SIZE = 1 << 30  # of an upload, in bytes
APP = "gate_apps:calls"
BLOCK = bytes(65_536)

# How an upload is announced, and whether its client waits to be asked for it.
KINDS: Mapping[str, dict[str, str]] = {
    "Content-Length": {"Content-Length": str(SIZE)},
    "chunked": {"Transfer-Encoding": "chunked"},
    "Content-Length, expect": {"Content-Length": str(SIZE), "Expect": "100-continue"},
    "chunked, expect": {"Transfer-Encoding": "chunked", "Expect": "100-continue"},
}
CURL = "curl -T"

UPLOAD_COLUMNS = (
    Column("status", "status"),
    Column("sent", "sent KiB"),
    Column("read", "read KiB"),
    Column("calls", "app calls"),
    Column("switches", "thread switches"),
    Column("after", "ms after gate", 1),
)
HELLO_COLUMNS = (
    Column("rate", "requests/s", more_is_better=True),
    Column("cpu", "CPU us/request", 1),
    Column("errors", "errors"),
)

# linux/tcp.h, struct tcp_info: bytes of ours that the other system has.
_BYTES_ACKED = struct.Struct("=120xQ")


def main() -> None:
    parser = options_of("Measure refused uploads, and what a gate costs.", rounds=3)
    parser.add_argument("--seconds", type=int, default=5, help="of each hello; default: %(default)s")
    options = parser.parse_args()
    kinds = [*KINDS, CURL] if shutil.which("curl") else [*KINDS]
    cores = choose_cores(pinned=True)
    run(
        [
            Table(
                f"uploads of {SIZE // MIB} MiB, which a gate refuses after {DECIDES_AFTER} s",
                tuple(OURS.using("--gate=gate_apps:refuses", name=kind) for kind in kinds),
                UPLOAD_COLUMNS,
                measure_upload,
            ),
            Table(
                "hello: what a gate costs; 64 connections, 4 threads, a core for the server",
                (
                    OURS.using(name="no gate"),
                    OURS.using("--gate=gate_apps:passes", name="a gate"),
                    OURS.using("--gate=gate_apps:awaits", name="a gate that awaits"),
                ),
                HELLO_COLUMNS,
                partial(measure_hello, cores=cores, seconds=options.seconds),
                ratios=("rate", "cpu"),
            ),
        ],
        options,
    )


def measure_hello(server: Server, python: Path, *, cores: Cores, seconds: int) -> Result:
    found = measure(server, HELLO_LOAD, python, cores, warm_up=1, seconds=seconds)
    return Result(
        {"rate": found.requests_per_second, "cpu": found.cpu_microseconds, "errors": float(found.errors)}
    )


def measure_upload(server: Server, python: Path) -> Result:
    upload = upload_by_curl if server.name == CURL else partial(upload_raw, kind=server.name)
    with running(server, APP, 4, python) as (process, port):
        calls_of_app(port)  # what is made once is there
        before = settled_switches(process.pid)
        figures = upload(port)
        figures["switches"] = float(switches(process.pid) - before)
        figures["calls"] = float(calls_of_app(port) - 1)
        return Result(figures)


def upload_raw(port: int, *, kind: str) -> dict[str, float]:
    """A client that sends as fast as it can, and reads. If it expects 100 (Continue), it waits for that."""
    fields = KINDS[kind]
    head = head_of("POST", "/upload", fields)
    piece = b"%x\r\n%s\r\n" % (len(BLOCK), BLOCK) if "chunked" in kind else BLOCK
    with connected(port) as sock:
        sock.sendall(head)
        asked = time.monotonic()
        sock.setblocking(False)
        sent = 0
        read = 0.0
        answer = b""
        while b"\r\n\r\n" not in answer or not answer.endswith(WHO):
            may_send = "Expect" not in fields or answer.startswith(b"HTTP/1.1 100")
            readable, writable, _ = select.select([sock], [sock] if may_send else [], [], 0.02)
            if readable:
                data = sock.recv(BUFFER)
                if not data:
                    raise BenchmarkError(f"the connection closed after {answer[:200]!r}")
                answer += data
            elif writable:
                sent += sock.send(piece[sent % len(piece) :])
            elif time.monotonic() - asked < DECIDES_AFTER:  # it takes no more: the gate is being asked
                read = float(acknowledged(sock) - received_and_unread(sock) - len(head))
        after = time.monotonic() - asked - DECIDES_AFTER
    status, _ = parsed_head(answer.partition(b"\r\n\r\n")[0])
    return {"status": status, "sent": sent / 1024, "read": read / 1024, "after": after * 1000}


def upload_by_curl(port: int) -> dict[str, float]:
    """What anybody would try: curl expects 100 (Continue), and waits a second for it."""
    with tempfile.NamedTemporaryFile() as file:
        os.truncate(file.fileno(), SIZE)
        command = ["curl", "--silent", "--show-error", "--output", "-", "--upload-file", file.name]
        command += ["--write-out", "%{http_code} %{size_upload}", f"http://{HOST}:{port}/upload"]
        begun = time.monotonic()
        done = subprocess.run(command, check=False, capture_output=True, timeout=60)
        after = time.monotonic() - begun - DECIDES_AFTER
    if done.returncode or not done.stdout.startswith(WHO):
        raise BenchmarkError(f"curl failed: {done.stderr.decode()!r} {done.stdout[:200]!r}")
    status, size = map(int, done.stdout.removeprefix(WHO).split())
    return {"status": status, "sent": size / 1024, "after": after * 1000}


def acknowledged(sock: socket.socket) -> int:
    """Bytes that the server's system has."""
    size: int = _BYTES_ACKED.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size))[
        0
    ]
    return size


def received_and_unread(sock: socket.socket) -> int:
    """Bytes of those that the server has not read: the receive queue of its end, proc(5)."""
    ours, theirs = sock.getsockname()[1], sock.getpeername()[1]
    pattern = rf":{theirs:04X} [0-9A-F]+:{ours:04X} [0-9A-F]{{2}} [0-9A-F]+:([0-9A-F]+)"
    found = re.search(pattern, Path("/proc/net/tcp").read_text())
    if found is None:
        raise BenchmarkError("the connection is not among those of the system")
    return int(found[1], 16)


def switches(pid: int) -> int:
    """How often all its threads but the first, which is the loop's, were given a core."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        if int(task.name) != pid:
            total += sum(map(int, re.findall(r"ctxt_switches:\s+(\d+)", (task / "status").read_text())))
    return total


def settled_switches(pid: int) -> int:
    """The same, once it does not change: the log has its own thread."""
    latest = -1
    while latest != (latest := switches(pid)):
        time.sleep(0.2)
    return latest


def calls_of_app(port: int) -> int:
    """How often the app was called before this."""
    with connected(port) as sock:
        sock.sendall(head_of("GET", "/calls", {"Connection": "close"}))
        return int(whole_answer(sock))


if __name__ == "__main__":
    main()
