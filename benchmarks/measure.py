"""One measurement: a server as a process of its own, and wrk against it."""

import http.client
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal

from processes import cpu_seconds, exactly_anonymous, tree

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
    title: str
    app: str
    answer: bytes
    headers: dict[str, str]
    threads: int = 4
    connections: int = 64
    method: str = "GET"
    body: bytes = b""
    varied: bool = False  # the query and the Cookie differ in a thousand requests
    tls: bool = False


@dataclass(frozen=True, slots=True)
class Cores:
    """The core of the server and the core of the client; None leaves both to the system."""

    server: int | None
    client: int | None


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk has seen. Latencies in microseconds."""

    requests: int
    microseconds: int
    socket_errors: int
    bad_statuses: int
    p50: int
    p99: int
    p999: int


@dataclass(frozen=True, slots=True)
class Measurement:
    load: Load
    cpu_seconds: float  # of the server's processes
    memory: int  # bytes that they have after it, with no file behind them

    @property
    def errors(self) -> int:
        return self.load.socket_errors + self.load.bad_statuses

    @property
    def requests_per_second(self) -> float:
        return self.load.requests / self.load.microseconds * 1e6

    @property
    def cpu_microseconds(self) -> float:
        """CPU time of the server for one request."""
        return self.cpu_seconds / self.load.requests * 1e6


def measure(
    server: Server,
    workload: Workload,
    python: Path,
    cores: Cores,
    *,
    warm_up: int,
    seconds: int,
    environment: Mapping[str, str] | None = None,
) -> Measurement:
    """Starts `server`, checks its answer, warms it up, measures it, and ends it."""
    with running(server, workload.app, workload.threads, python, cores.server, environment) as (
        process,
        port,
    ):
        check_answer(workload, port)
        keep_up(workload, port, cores, warm_up)
        pids = tree(process.pid)
        before = cpu_seconds(pids)
        seen = keep_up(workload, port, cores, seconds)
        return Measurement(seen, cpu_seconds(pids) - before, exactly_anonymous(pids))


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
    connection: http.client.HTTPConnection
    if workload.tls:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # as wrk does
        connection = http.client.HTTPSConnection(HOST, port, timeout=10, context=context)
    else:
        connection = http.client.HTTPConnection(HOST, port, timeout=10)
    try:
        connection.request(workload.method, "/", workload.body or None, workload.headers)
        response = connection.getresponse()
        answer = response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise BenchmarkError(f"it did not answer: {error!r}") from error
    finally:
        connection.close()
    if answer != (200, workload.answer):
        raise BenchmarkError(f"it answered {answer[0]} with {answer[1][:200]!r}")


def keep_up(workload: Workload, port: int, cores: Cores, seconds: int) -> Load:
    """What wrk sees when it keeps `workload` up for that long."""
    headers = [f"--header={name}: {value}" for name, value in workload.headers.items()]
    with tempfile.NamedTemporaryFile() as body:
        body.write(workload.body)
        body.flush()
        command = [
            *on_core(cores.client),
            "wrk",
            "--threads=1",  # one core, one thread
            f"--connections={workload.connections}",
            f"--duration={seconds}s",
            *headers,
            f"--script={HERE / 'wrk.lua'}",
            f"{'https' if workload.tls else 'http'}://{HOST}:{port}/",
            "--",
            workload.method,
            "varied" if workload.varied else "alike",
            *([body.name] if workload.body else []),
        ]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds + 30)
    if done.returncode:
        raise BenchmarkError(f"wrk failed: {done.stderr.strip() or done.stdout.strip()}")
    load = Load(**json.loads(done.stdout.splitlines()[-1]))
    if not load.requests:
        raise BenchmarkError(f"wrk had no answers:\n{done.stdout}")
    return load
