"""The real command as systemd runs it: with sockets passed, and a manager that is told how it goes."""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.frameworks.command import ROOT, TIMEOUT, Command, environment
from tests.server.support import Client, request
from tests.server.test_notify import FED, Manager
from tests.server.test_unix_listeners import UnixClient
from tests.server.test_unix_sockets import short_folder
from waitress_async import Settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")

ACTIVATE: Final = shutil.which("systemd-socket-activate")
ANALYZE: Final = shutil.which("systemd-analyze")

needs_socket_activate = pytest.mark.skipif(
    ACTIVATE is None, reason="systemd-socket-activate is not installed (Debian: package systemd)"
)
needs_analyze = pytest.mark.skipif(
    ANALYZE is None, reason="systemd-analyze is not installed (Debian: package systemd)"
)

COMMAND: Final = (sys.executable, "-W", "default", "-m", "waitress_async")

APP = """\
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/gate":
        with open("gate") as gate:  # a FIFO: opened when somebody opens its other end
            return [gate.read().encode()]
    return [f"{environ['REMOTE_ADDR']} {environ['SERVER_PORT']}".encode()]
"""

# Starts a command with these descriptors from 3 on, and tells it that they are for it.
LAUNCHER = """
import fcntl, os, sys
numbers, *command = sys.argv[1:]
moved = [fcntl.fcntl(int(number), fcntl.F_DUPFD_CLOEXEC, 100) for number in numbers.split()]
for number, source in enumerate(moved, 3):
    os.dup2(source, number)
os.environ.setdefault("LISTEN_PID", str(os.getpid()))
os.environ["LISTEN_FDS"] = str(len(moved))
os.execv(command[0], command)
"""

LOGGING = """\
version = 1
root = {level = "INFO", handlers = ["stderr"]}
formatters = {plain = {format = "%(message)s"}}
handlers = {stderr = {class = "logging.StreamHandler", formatter = "plain"}}
"""

SERVING = re.compile(r"Serving on (\S+)$")


class Service(Command):
    """The command line `command`, in a process of its own."""

    def __init__(self, command: list[str], cwd: Path, passed: list[int], **environ: str) -> None:
        inherited = {
            name: value
            for name, value in environment().items()
            if not name.startswith(("LISTEN_", "NOTIFY_"))
        }
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**inherited, "PYTHONPATH": str(ROOT), **environ},
            pass_fds=passed,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_line(self, text: str) -> str:
        """Wait for a line with `text` in it, and return it."""
        lines = []
        while (line := self.line()) is not None:
            if text in line:
                return line
            lines.append(line)
        raise AssertionError(f"exit {self.process.wait(TIMEOUT)}: {lines}")

    def places(self, count: int) -> list[str]:
        """Wait until it serves, and return where, with its own port for any port."""
        found = [SERVING.search(self.wait_line("Serving on ")) for _ in range(count)]
        return [match[1] for match in found if match]


@pytest.fixture
def folder() -> Iterator[Path]:
    """With an app in it, and short enough for sockets."""
    with short_folder() as folder:
        Path(folder, "shop.py").write_text(APP)
        yield Path(folder)


@pytest.fixture
def manager(folder: Path) -> Iterator[Manager]:
    manager = Manager(f"{folder}/notify")
    with manager.sock:
        yield manager


StartService = Callable[..., Service]


@pytest.fixture
def start(folder: Path) -> Iterator[StartService]:
    """`start(*arguments, sockets=..., NAME=value)` starts the command, with sockets passed as by systemd.

    `before` is a command that does so instead.
    """
    running: list[Service] = []

    def start(
        *arguments: str,
        app: str = "shop:app",
        before: tuple[str, ...] = (),
        sockets: tuple[socket.socket, ...] = (),
        **environ: str,
    ) -> Service:
        passed = [sock.fileno() for sock in sockets]
        if passed:
            before = (sys.executable, "-ISc", LAUNCHER, " ".join(map(str, passed)))
        running.append(Service([*before, *COMMAND, *arguments, app], folder, passed, **environ))
        return running[-1]

    yield start
    for service in running:
        service.kill()


def address_of(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)


# -- sockets


@pytest.fixture
def activate(folder: Path) -> tuple[str, ...]:
    """systemd's own tool: it starts the command when the first client comes."""
    with socket.create_server(("127.47.11.2", 0)) as sock:  # nobody else's address, so the port stays free
        address = "{}:{}".format(*sock.getsockname())
    options = ["-l", f"{folder}/s", "-l", address, "--fdname=admin:web", "-E", f"PYTHONPATH={ROOT}"]
    return (str(ACTIVATE), *options)


@needs_socket_activate
def test_without_a_place_the_command_takes_what_systemd_passes(
    start: StartService, activate: tuple[str, ...], folder: Path
) -> None:
    service = start(before=(*activate, "-E", "PORT=1"))
    address = activate[4]
    service.wait_line(f"Listening on {address}")
    with Client(address_of(address)) as client, UnixClient(f"{folder}/s") as other:
        assert client.get().body == f"127.0.0.1 {address_of(address)[1]}".encode()
        assert other.get().body == b"localhost 80"
    assert service.places(2) == [f"unix:{folder}/s", f"http://{address}"]
    service.signal(signal.SIGTERM)
    assert service.ended() == (0, [])
    assert (folder / "s").is_socket()  # it is systemd's


@needs_socket_activate
def test_one_of_those_that_systemd_passes_and_others(
    start: StartService, activate: tuple[str, ...], folder: Path
) -> None:
    listen = f"--listen=systemd://web 127.0.0.1:0 unix:{folder}/own"
    service = start(listen, before=activate)
    address = activate[4]
    service.wait_line(f"Listening on {address}")
    with Client(address_of(address)) as client:
        assert client.get().status == 200
    passed, url, own = service.places(3)
    assert (passed, own) == (f"http://{address}", f"unix:{folder}/own")
    with Client(address_of(url)) as client, UnixClient(f"{folder}/own") as other:
        assert client.get().status == other.get().status == 200
    service.signal(signal.SIGTERM)
    assert service.ended() == (0, [])
    assert not (folder / "own").exists()
    assert (folder / "s").is_socket()


def test_who_says_where_to_listen_is_told_of_sockets_that_are_not_used(start: StartService) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        service = start("--host=127.0.0.1", "--port=0", sockets=(sock,))
        warning = service.wait_line("not used")
        (url,) = service.places(1)
        assert address_of(url) != sock.getsockname()
    assert re.search(r"sockets passed by systemd are not used, because of: host\b.*\bport\b", warning)


def test_sockets_that_are_for_another_process(start: StartService) -> None:
    """As under a shell that does not `exec` the command."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        service = start("--listen=systemd://", sockets=(sock,), LISTEN_PID="1")
        status, lines = service.ended()
    assert status == 1
    reason = "systemd has passed no such socket (it has passed: none)"
    assert lines == [f"Error: Cannot listen on systemd://: {reason}"]


@pytest.mark.parametrize("place", ["unix:{folder}/s", "fd://3", "systemd://", "fd://99"])
def test_what_is_in_use_or_not_there_is_one_line(start: StartService, folder: Path, place: str) -> None:
    place = place.format(folder=folder)
    with socket.socket(socket.AF_UNIX) as used, socket.socket() as late, socket.socket() as early:
        used.bind(f"{folder}/s")
        used.listen()
        for sock in (late, early):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        late.bind(("127.0.0.1", 0))
        early.bind(late.getsockname())
        early.listen()
        status, lines = start(f"--listen={place}", sockets=(late,)).ended()
        lines = [line for line in lines if not line.startswith("Warning: sockets passed by systemd")]
    reason = "Bad file descriptor" if place == "fd://99" else "Address already in use"
    assert lines == [f"Error: Cannot listen on {place}: {reason}"]
    assert status == 1
    assert (folder / "s").is_socket()


# -- the manager


def test_the_manager_is_told_from_start_to_end(start: StartService, manager: Manager, folder: Path) -> None:
    os.mkfifo(folder / "gate")
    (folder / "log.toml").write_text(LOGGING)
    options = ["--listen=127.0.0.1:0", "--log-config=log.toml"]
    service = start(*options, NOTIFY_SOCKET=manager.path, WATCHDOG_USEC="200000")
    ready = manager.told()
    (url,) = SERVING.findall(ready[1])
    with Client(address_of(url)) as client, Client(address_of(url)) as other:
        assert other.get().body == f"127.0.0.1 {address_of(url)[1]}".encode()
        assert ready == ["READY=1", f"STATUS=Serving on {url}"]
        for _ in range(3):
            manager.wait_fed()

        service.signal(signal.SIGHUP)
        reloading, clock, _ = manager.told()
        assert (reloading, clock.partition("=")[0]) == ("RELOADING=1", "MONOTONIC_USEC")
        assert manager.told() == ready
        manager.wait_fed()

        client.send(request("/gate"))
        service.signal(signal.SIGTERM)
        assert manager.told() == ["STOPPING=1", "STATUS=Finishing the requests in flight"]
        other.assert_ended()
        assert service.process.poll() is None
        service.signal(signal.SIGHUP)
        (folder / "gate").write_text("finished")
        assert client.receive().body == b"finished"
    assert service.ended()[0] == 0
    assert set(manager.drain()) <= {FED}


GATED = """\
import socket, sys

getaddrinfo = socket.getaddrinfo

def gated(*arguments, **options):
    print("asked", file=sys.stderr, flush=True)
    open("gate").close()
    return getaddrinfo(*arguments, **options)

socket.getaddrinfo = gated

from shop import app
"""


def test_a_reload_during_the_start_does_not_say_that_it_is_ready(
    start: StartService, manager: Manager, folder: Path
) -> None:
    os.mkfifo(folder / "gate")
    (folder / "log.toml").write_text(LOGGING)
    (folder / "gated.py").write_text(GATED)
    options = ["--listen=127.0.0.1:0", "--log-config=log.toml"]
    service = start(*options, app="gated:app", NOTIFY_SOCKET=manager.path)
    service.wait_line("asked")
    service.signal(signal.SIGHUP)
    service.wait_line("Logging is configured anew")
    assert manager.drain() == []
    (folder / "gate").write_text("")
    assert manager.told()[0] == "READY=1"
    service.signal(signal.SIGTERM)
    assert manager.told()[0] == "STOPPING=1"
    assert service.ended()[0] == 0
    assert manager.drain() == []


def test_a_reload_that_does_not_end_does_not_hold_the_stop(
    start: StartService, manager: Manager, folder: Path
) -> None:
    log = folder / "log.toml"
    log.write_text(LOGGING)
    service = start("--listen=127.0.0.1:0", "--log-config=log.toml", NOTIFY_SOCKET=manager.path)
    assert manager.told()[0] == "READY=1"
    log.unlink()
    os.mkfifo(log)  # which nobody writes to
    service.signal(signal.SIGHUP)
    assert manager.told()[0] == "RELOADING=1"
    service.signal(signal.SIGTERM)
    assert manager.told()[0] == "STOPPING=1"
    assert service.ended()[0] == 0
    assert manager.drain() == []


def test_a_manager_that_cannot_be_told(start: StartService) -> None:
    status, lines = start("--listen=127.0.0.1:0", NOTIFY_SOCKET="relative").ended()
    assert status == 2
    assert "NOTIFY_SOCKET is neither an absolute path nor an abstract name" in lines[-1]


# -- docs/deployment/systemd.md


def units(program: str) -> dict[str, str]:
    """The units of the document by their names, with another program to start."""
    text = (ROOT / "docs/deployment/systemd.md").read_text()
    found = dict(
        re.findall(r"^```ini\n# /etc/systemd/system/(\S+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    )
    assert set(found) == {"shop.service", "shop.socket", "shop-admin.socket"}
    return {name: unit.replace("/srv/shop/venv/bin/waitress-async", program) for name, unit in found.items()}


@needs_analyze
def test_systemd_understands_the_units_of_the_document(folder: Path) -> None:
    found = units(sys.executable)
    for name, unit in found.items():
        (folder / name).write_text(unit)
    command = [str(ANALYZE), "--man=no", "verify", *(f"{folder}/{name}" for name in found)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT)
    assert (
        "shop" not in done.stdout + done.stderr
    )  # it warns of what it does not know, and says where that is


def test_the_command_understands_the_unit_of_the_document(folder: Path) -> None:
    unit = units(" ".join(COMMAND))["shop.service"]
    (command,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    (folder / "shop.py").unlink()
    (folder / "shop").mkdir()
    (folder / "shop/wsgi.py").write_text(APP)
    (folder / "logging.toml").write_text(LOGGING)
    service = Service([*command.split(), "--check-config"], folder, [])
    try:
        assert service.ended() == (0, [])
    finally:
        service.kill()
    (killed_after,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert int(killed_after) > Settings().graceful_timeout + 5
