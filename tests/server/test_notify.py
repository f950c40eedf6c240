"""What the service manager is told by `run()`, and when: a real socket, and a loop in a thread of its own."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.server.support import (
    DEADLINE,
    Client,
    GatedApp,
    eventually,
    hello,
    local_server,
    nothing_left,
    request,
)
from tests.server.test_stop import refuses
from tests.server.test_tls_contexts import Files
from tests.server.test_unix_listeners import Names, UnixClient
from tests.server.test_unix_sockets import short_folder
from waitress_async import Server, Settings, SettingsError
from waitress_async.server import Notifier, run

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="systemd is Linux's")

FED = "WATCHDOG=1"


@pytest.fixture
def folder() -> Iterator[str]:
    with short_folder() as folder:
        yield folder


class Manager:
    """A service manager's end of the socket."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(path)
        self.sock.settimeout(DEADLINE)

    def notifier(self, **environ: str) -> Notifier:
        notifier = Notifier.from_environ({"NOTIFY_SOCKET": self.path, **environ}, os.getpid())
        assert notifier is not None
        return notifier

    def told(self) -> list[str]:
        """The next assignments, but for those that feed the watchdog."""
        while (text := self.sock.recv(65_536).decode()) == FED:
            pass
        return text.split("\n")

    def wait_fed(self) -> None:
        while self.sock.recv(65_536).decode() != FED:
            pass

    def drain(self) -> list[str]:
        """All that was told so far and not asked for."""
        self.sock.setblocking(False)
        texts = []
        try:
            while True:
                texts.append(self.sock.recv(65_536).decode())
        except BlockingIOError:
            return texts
        finally:
            self.sock.settimeout(DEADLINE)


@pytest.fixture
def manager(folder: str) -> Iterator[Manager]:
    manager = Manager(f"{folder}/notify")
    with manager.sock:
        yield manager


class Running:
    """`run()` in a thread."""

    def __init__(self, server: Server, loop: str, notifier: Notifier | None) -> None:
        self.server = server
        self.errors: list[BaseException] = []
        self._arguments: dict[str, Any] = {
            "settings": replace(server._settings, loop=cast(Any, loop)),
            "notifier": notifier,
        }
        self._thread = threading.Thread(target=self._run, name="run", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            run(self.server, **self._arguments)
        except BaseException as error:
            self.errors.append(error)

    def ended(self) -> list[BaseException]:
        """Wait for the end. Returns what it raised."""
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        return self.errors

    def stop(self) -> None:
        self.server.request_stop()
        assert self.ended() == []


Run = Callable[..., Running]


@pytest.fixture(params=["uvloop", "asyncio"])
def run_in_thread(request: pytest.FixtureRequest) -> Iterator[Run]:
    """`run_in_thread(server, notifier)`, on both loops."""
    started: list[Running] = []

    def start(server: Server, notifier: Notifier | None) -> Running:
        started.append(Running(server, request.param, notifier))
        return started[-1]

    with nothing_left():
        yield start
        for one in started:
            one.server.request_stop(0)
            one.ended()


def test_it_is_ready_when_it_answers(run_in_thread: Run, manager: Manager, folder: str) -> None:
    server = Server(hello, listen=f"127.0.0.1:0 unix:{folder}/s")
    running = run_in_thread(server, manager.notifier())
    ready, status = manager.told()
    with Client(("127.0.0.1", server.port)) as client, UnixClient(f"{folder}/s") as other:
        assert client.get().body == other.get().body == b"Hello, world!"
    assert ready == "READY=1"
    assert status == f"STATUS=Serving on http://127.0.0.1:{server.port}, unix:{folder}/s"
    running.stop()
    assert manager.drain() == ["STOPPING=1\nSTATUS=Finishing the requests in flight"]


@pytest.mark.parametrize("url_scheme", ["http", "https"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_it_tells_what_is_spoken_and_not_what_apps_are_told(
    run_in_thread: Run, manager: Manager, tmp_path: Path, scheme: str, url_scheme: str
) -> None:
    tls = Files(tmp_path).settings if scheme == "https" else {}
    server = local_server(url_scheme=url_scheme, **tls)
    running = run_in_thread(server, manager.notifier())
    assert manager.told() == ["READY=1", f"STATUS=Serving on {scheme}://127.0.0.1:{server.port}"]
    assert server.urls == [server.url]
    running.stop()


def test_and_not_before(run_in_thread: Run, manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names()
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    running = run_in_thread(local_server(), manager.notifier(WATCHDOG_USEC="1000"))
    assert names.asked.wait(DEADLINE)
    assert manager.drain() == []
    names.answer.set()
    assert manager.told()[0] == "READY=1"
    running.stop()


def test_a_start_that_fails_tells_nothing(run_in_thread: Run, manager: Manager) -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        running = run_in_thread(local_server(port=used.getsockname()[1]), manager.notifier())
        (error,) = running.ended()
    assert isinstance(error, OSError)
    assert manager.drain() == []


def test_a_start_that_is_given_up_tells_nothing(
    run_in_thread: Run, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names()
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    running = run_in_thread(local_server(), manager.notifier())
    assert names.asked.wait(DEADLINE)
    running.server.request_stop()
    names.answer.set()
    assert running.ended() == []
    assert manager.drain() == []


def test_a_loop_that_is_not_installed(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    with nothing_left(), pytest.raises(SettingsError, match="uvloop is not installed"):
        run(local_server(), Settings(loop="uvloop"), notifier=manager.notifier())
    assert manager.drain() == []


def test_the_watchdog_is_fed_by_the_loop_and_only_by_it(run_in_thread: Run, manager: Manager) -> None:
    """Also while a thread of the app is stuck, and not once the loop is."""
    app = GatedApp()
    server = local_server(app)
    running = run_in_thread(server, manager.notifier(WATCHDOG_USEC="4000"))
    assert manager.told()[0] == "READY=1"
    with Client(("127.0.0.1", server.port)) as client:
        client.send(request())
        app.wait_entered()
        for _ in range(5):
            manager.wait_fed()
        blocked, go_on = threading.Event(), threading.Event()

        def block() -> None:
            blocked.set()
            go_on.wait(DEADLINE)

        server._runtime.loop.call_soon_threadsafe(block)
        assert blocked.wait(DEADLINE)
        assert set(manager.drain()) <= {FED}
        manager.sock.settimeout(0.1)  # 50 times the time after which it is fed
        with pytest.raises(TimeoutError):
            manager.wait_fed()
        manager.sock.settimeout(DEADLINE)
        go_on.set()
        manager.wait_fed()
        app.let_go()
        assert client.receive().status == 200
    running.stop()


def test_the_watchdog_is_fed_while_requests_in_flight_are_finished(
    run_in_thread: Run, manager: Manager
) -> None:
    app = GatedApp()
    server = local_server(app)
    running = run_in_thread(server, manager.notifier(WATCHDOG_USEC="4000"))
    assert manager.told()[0] == "READY=1"
    with Client(("127.0.0.1", server.port)) as client:
        client.send(request())
        app.wait_entered()
        running.server.request_stop()
        eventually(lambda: refuses(("127.0.0.1", server.port)), "the stop has begun")
        manager.drain()
        for _ in range(3):
            manager.wait_fed()
        app.let_go()
        assert client.receive().status == 200
    running.stop()


@pytest.mark.parametrize("environ", [{}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}])
def test_nobody_is_fed_where_nobody_watches(
    run_in_thread: Run, manager: Manager, environ: dict[str, str]
) -> None:
    server = local_server()
    running = run_in_thread(server, manager.notifier(**environ))
    assert manager.told()[0] == "READY=1"
    with Client(("127.0.0.1", server.port)) as client:
        assert client.get().status == 200
    running.stop()
    assert [text.partition("=")[0] for text in manager.drain()] == ["STOPPING"]


def test_a_program_that_embeds_a_server_speaks_for_itself(
    run_in_thread: Run, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment is the command's to read."""
    monkeypatch.setenv("NOTIFY_SOCKET", manager.path)
    monkeypatch.setenv("WATCHDOG_USEC", "1000")
    server = local_server()
    running = run_in_thread(server, None)
    eventually(lambda: server.addresses, "it listens")
    with Client(("127.0.0.1", server.port)) as client:
        assert client.get().status == 200
    running.stop()
    assert manager.drain() == []
