"""What a request asks of the system, as strace sees it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.server.support import DEADLINE, Client, request

REQUESTS = 200

PROGRAM = """
import os, socket, sys
from tests.server.support import hello
from waitress_async import serve

sock = socket.socket()
sock.bind(("127.0.0.1", 0))
sock.listen()
print(sock.getsockname()[1], os.getpid(), flush=True)
serve(hello, sockets=[sock], loop=sys.argv[1])
"""

# Of one line: the process, the call, the descriptor it is made on.
_CALL = re.compile(r"\d+ +(\w+)\((\d+)?")

# It may be the second line of the call, if another thread's came between.
_ACCEPTED = re.compile(r"accept4\b.*= (\d+)$")


def _traces() -> bool:
    """Whether strace is here, and may trace."""
    if shutil.which("strace") is None:
        return False
    command = ["strace", "-o", os.devnull, "true"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(not _traces(), reason="strace is not installed, or must not trace here")
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("kind", ["GET", "POST"])
def test_a_request_is_read_once_and_answered_in_one_write(tmp_path: Path, loop: str, kind: str) -> None:
    trace = tmp_path / "trace"
    message = request("/", "Accept: */*\r\n", kind, b"x" * 300 if kind == "POST" else b"")
    command = ["strace", "-f", "-qq", "-o", str(trace), sys.executable, "-c", PROGRAM, loop]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port, pid = map(int, process.stdout.readline().split())
        with Client(("127.0.0.1", port)) as client:
            for _ in range(REQUESTS):
                client.send(message)
                assert client.receive().status == 200
        os.kill(pid, signal.SIGTERM)
        assert process.wait(DEADLINE) == 0

    lines = trace.read_text().splitlines()
    accepted, descriptor = next(
        (n, match[1]) for n, line in enumerate(lines) if (match := _ACCEPTED.search(line))
    )
    counts: Counter[str] = Counter()
    for line in lines[accepted:]:
        if match := _CALL.match(line):
            call, on = match.groups()
            counts[f"{call} on the connection" if on == descriptor else call] += 1
    reads = sum(counts[f"{name} on the connection"] for name in ("read", "recvfrom"))
    writes = sum(counts[f"{name} on the connection"] for name in ("write", "sendto", "writev", "sendmsg"))
    assert reads == REQUESTS + 1, counts  # and the end
    assert writes == REQUESTS, counts
    # The thread wakes the loop, once; more is for the stop.
    assert counts["write"] + counts["sendto"] <= REQUESTS + 20, counts
