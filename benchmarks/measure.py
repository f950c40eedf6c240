"""One measurement: a server as a process of its own, and wrk against it."""

import http.client
import os
import re
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal

from processes import cpu_seconds, tree

HERE = Path(__file__).resolve().parent
HOST = "127.0.0.1"
READY_WITHIN = 15.0
STOPPED_WITHIN = 5.0


class BenchmarkError(Exception):
    """The run cannot go on. Its text is for the user."""


class NotStartedError(BenchmarkError):
    """A server was not installed, or did not start: it need not be tried again."""


@dataclass(frozen=True, slots=True)
class Server:
    """How a server is started; `{port}`, `{app}` and `{threads}` stand in `arguments`."""

    name: str
    distribution: str
    environment: Literal["own", "peers"]
    arguments: tuple[str, ...]  # `{app}` last
    needs: tuple[str, ...] = ()  # other distributions of peers.txt in its environment

    def using(self, *settings: str, name: str = "") -> "Server":
        """The same with more flags, before the app: some commands take none behind it."""
        *flags, app = self.arguments
        return replace(self, name=name or self.name, arguments=(*flags, *settings, app))


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked of a server, and what it has to answer."""

    name: str
    app: str
    threads: int
    connections: int
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Cores:
    """The core of the server and the core of the client; None leaves both to the system."""

    server: int | None
    client: int | None


@dataclass(frozen=True, slots=True)
class Measurement:
    requests: int
    seconds: float
    cpu_seconds: float
    socket_errors: int
    bad_statuses: int

    @property
    def errors(self) -> int:
        return self.socket_errors + self.bad_statuses

    @property
    def requests_per_second(self) -> float:
        return self.requests / self.seconds

    @property
    def cpu_microseconds(self) -> float:
        """CPU time of the server for one request."""
        return self.cpu_seconds / self.requests * 1e6


def measure(
    server: Server, workload: Workload, python: Path, cores: Cores, *, warm_up: int, seconds: int
) -> Measurement:
    """Starts `server`, checks its answer, warms it up, measures it, and ends it."""
    with running(server, workload.app, workload.threads, python, cores.server) as (process, port):
        check_answer(workload, port)
        load(workload, port, cores, warm_up)
        before = cpu_seconds([process.pid])
        summary = load(workload, port, cores, seconds)
        return parse_summary(summary, cpu_seconds([process.pid]) - before)


@contextmanager
def running(
    server: Server,
    app: str,
    threads: int,
    python: Path,
    core: int | None = None,
    environment: Mapping[str, str] | None = None,
    log: BinaryIO | None = None,
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A server's process that accepts connections, and its port. Whatever happens, it is ended.

    What it prints goes to `log`, a file to write and read, or to one that is not kept.
    """
    port = free_port()
    values = {"port": port, "app": app, "threads": threads}
    arguments = [argument.format_map(values) for argument in server.arguments]
    with nullcontext(log) if log else tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*on_core(core), python, *arguments],
            cwd=HERE,  # where the apps are
            env=os.environ | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            if not becomes_ready(process, port):
                raise NotStartedError("it accepts no connections")
            yield process, port
        except BenchmarkError as error:
            log.seek(0)
            said = log.read()[-4096:].decode(errors="replace")
            raise type(error)(f"{server.name}: {error}\nThe end of its log:\n{said}") from error
        finally:
            end(process)


def on_core(core: int | None) -> list[str]:
    """The beginning of a command that runs on that core. taskset becomes the command: the pid stays."""
    return [] if core is None else ["taskset", "--cpu-list", str(core)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def becomes_ready(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
            return True
        except OSError:
            time.sleep(0.02)
    return False


def end(process: subprocess.Popen[bytes]) -> None:
    children = []
    for pid in tree(process.pid)[1:]:
        try:
            # A descriptor: when the child has ended, its number may be another process's.
            children.append(os.pidfd_open(pid))
        except ProcessLookupError:
            pass
    process.terminate()
    try:
        process.wait(STOPPED_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in children:
        if not select.select([child], [], [], 1)[0]:  # readable once it has ended
            signal.pidfd_send_signal(child, signal.SIGKILL)
        os.close(child)


def check_answer(workload: Workload, port: int) -> None:
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    try:
        connection.request("GET", workload.path, headers=workload.headers)
        response = connection.getresponse()
        answer = response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise BenchmarkError(f"it did not answer: {error!r}") from error
    finally:
        connection.close()
    if answer != (200, workload.body):
        raise BenchmarkError(f"it answered {answer[0]} with {answer[1][:200]!r}")


def load(workload: Workload, port: int, cores: Cores, seconds: int) -> str:
    """What wrk prints after keeping `workload` up for that long."""
    headers = [f"--header={name}: {value}" for name, value in workload.headers.items()]
    command = [
        *on_core(cores.client),
        "wrk",
        "--threads=1",  # one core, one thread
        f"--connections={workload.connections}",
        f"--duration={seconds}s",
        *headers,
        f"http://{HOST}:{port}{workload.path}",
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds + 30)
    if done.returncode:
        raise BenchmarkError(f"wrk failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def parse_summary(summary: str, used: float) -> Measurement:
    done = re.search(r"(\d+) requests in ", summary)
    rate = re.search(r"Requests/sec: +([\d.]+)", summary)
    if not done or not rate or not int(done[1]):
        raise BenchmarkError(f"wrk had no answers:\n{summary}")
    socket_errors = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", summary
    )
    bad_statuses = re.search(r"Non-2xx or 3xx responses: (\d+)", summary)
    return Measurement(
        requests=int(done[1]),
        # wrk rounds the seconds it prints, not the rate it makes of them
        seconds=int(done[1]) / float(rate[1]),
        cpu_seconds=used,
        socket_errors=sum(map(int, socket_errors.groups())) if socket_errors else 0,
        bad_statuses=int(bad_statuses[1]) if bad_statuses else 0,
    )
