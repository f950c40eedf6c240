"""`create_server`: listens at once, run by one thread, closed by any, and gone afterwards."""

from __future__ import annotations

import errno
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import pytest

from tests.conftest import LOOPS
from tests.server.support import (
    DEADLINE,
    Client,
    GatedApp,
    descriptors,
    eventually,
    hello,
    needs_proc,
    nothing_left,
    request,
    server_threads,
)
from tests.server.test_listeners import needs_ipv6
from waitress_async import NotWSGIError, SettingsError, create_server
from waitress_async.server import BlockingServer

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

T = TypeVar("T")

LOCAL: dict[str, object] = {"host": "127.0.0.1", "port": 0}

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has it")


class Create(Protocol):
    def __call__(self, app: WSGIApplication = ..., **settings: object) -> BlockingServer: ...


class Running(threading.Thread):
    """A thread that runs a server."""

    def __init__(self, server: BlockingServer) -> None:
        super().__init__(name="runs-a-server", daemon=True)
        self._server = server
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._server.run()
        except BaseException as error:
            self._error = error

    def returned(self) -> None:
        """Wait until `run()` has returned, or raise what it has raised."""
        self.join(DEADLINE)
        assert not self.is_alive(), "run() does not return"
        if self._error is not None:
            raise self._error


def elsewhere(call: Callable[[], T]) -> T:
    """Call it in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(DEADLINE)


def at_once(*calls: Callable[[], object]) -> None:
    """Call them all at the same moment, each in a thread."""
    barrier = threading.Barrier(len(calls))

    def together(call: Callable[[], object]) -> None:
        barrier.wait(DEADLINE)
        call()

    with ThreadPoolExecutor(len(calls)) as pool:
        for future in [pool.submit(together, call) for call in calls]:
            future.result(DEADLINE)


def address_of(server: BlockingServer) -> tuple[str, int]:
    assert isinstance(server.effective_port, int)
    return server.effective_host, server.effective_port


def get(server: BlockingServer, path: str = "/") -> bytes:
    with Client(address_of(server)) as client:
        return client.get(path).body


def refuses(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, DEADLINE):
            return False
    except (ConnectionRefusedError, ConnectionResetError):
        return True


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    with nothing_left():
        yield


@pytest.fixture(params=list(LOOPS))
def create(request: pytest.FixtureRequest) -> Iterator[Create]:
    """`create(app, **settings)` listens on 127.0.0.1, any port; closed at the end. Once with each loop."""
    servers = []

    def create(app: WSGIApplication = hello, **settings: object) -> BlockingServer:
        if not settings.keys() & {"listen", "host", "sockets", "unix_socket"}:
            settings = {**LOCAL, **settings}
        servers.append(create_server(app, loop=request.param, **settings))
        return servers[-1]

    yield create
    for server in servers:
        server.close()


@pytest.fixture
def gated() -> Iterator[GatedApp]:
    app = GatedApp()
    yield app
    app.let_go(10_000)


@pytest.fixture
def socket_path() -> Iterator[str]:
    """In a folder whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="wa-") as folder:
        yield f"{folder}/s"


# -- where it listens


def test_it_listens_at_once(create: Create) -> None:
    server = create()
    assert server_threads() == []
    host, port = address_of(server)
    assert (host, port > 0) == ("127.0.0.1", True)
    assert server.effective_listen == [(host, port)]
    with Client((host, port)) as early:
        early.send(request("/", "Connection: close\r\n"))
        running = Running(server)
        assert early.receive().body == b"Hello, world!"
    server.close()
    running.returned()


def test_settings_are_cast_from_strings(create: Create) -> None:
    server = create(host="127.0.0.1", port="0", threads="2", expose_tracebacks="true")
    running = Running(server)
    assert get(server) == b"Hello, world!"
    assert "waitress_async-2" in server_threads()
    assert "waitress_async-3" not in server_threads()
    server.close()
    running.returned()


@needs_ipv6
def test_several_places(create: Create) -> None:
    server = create(listen="127.0.0.1:0 [::1]:0")
    running = Running(server)
    (host, port), (host6, port6) = server.effective_listen
    assert (host, host6) == ("127.0.0.1", "::1")
    assert (server.effective_host, server.effective_port) == (host, port)
    for place in ((host, port), (host6, port6)):
        assert isinstance(place[1], int)
        with Client((place[0], place[1])) as client:
            assert client.get().body == b"Hello, world!"
    server.close()
    running.returned()


def test_sockets_that_are_given(create: Create) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        server = create(sockets=[sock])
        assert server.effective_listen == [sock.getsockname()]
        running = Running(server)
        assert get(server) == b"Hello, world!"
        server.close()
        running.returned()
        assert sock.fileno() == -1


@pytest.mark.parametrize("ran", [True, False], ids=["run", "never run"])
def test_a_unix_socket(create: Create, socket_path: str, ran: bool) -> None:
    server = create(unix_socket=socket_path, unix_socket_perms="640")
    assert (server.effective_host, server.effective_port) == ("unix", socket_path)
    assert server.effective_listen == [("unix", socket_path)]
    assert os.stat(socket_path).st_mode & 0o777 == 0o640
    if ran:
        running = Running(server)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(DEADLINE)
            client.connect(socket_path)
            client.sendall(request("/", "Connection: close\r\n"))
            answer = b"".join(iter(lambda: client.recv(65_536), b""))
        assert answer.endswith(b"Hello, world!")
    server.close()
    if ran:
        running.returned()
    assert not os.path.exists(socket_path)


@linux_only
def test_an_abstract_name(create: Create) -> None:
    name = f"@waitress-async-{os.getpid()}"
    server = create(listen=f"unix:{name}")
    assert server.effective_listen == [("unix", name)]


def test_print_listen_logs_a_line_for_each_place(
    create: Create, socket_path: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = create(listen=f"127.0.0.1:0 127.0.0.1:0 unix:{socket_path}")
    ports = [port for _, port in server.effective_listen[:2]]
    with caplog.at_level(logging.INFO, "waitress_async"):
        server.print_listen("Serving on http://{}:{}")
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        ("waitress_async", "INFO", f"Serving on http://127.0.0.1:{ports[0]}"),
        ("waitress_async", "INFO", f"Serving on http://127.0.0.1:{ports[1]}"),
        ("waitress_async", "INFO", f"Serving on http://unix:{socket_path}"),
    ]


@needs_ipv6
def test_print_listen_puts_brackets_around_ipv6(create: Create, caplog: pytest.LogCaptureFixture) -> None:
    server = create(host="::1", port=0)
    with caplog.at_level(logging.INFO, "waitress_async"):
        server.print_listen("{} {}")
    assert caplog.messages == [f"[::1] {server.effective_port}"]


# -- what cannot be made


def test_a_port_in_use(create: Create, socket_path: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for listen in (f"127.0.0.1:{port}", f"unix:{socket_path} 127.0.0.1:0 127.0.0.1:{port}"):
            with pytest.raises(
                OSError, match=f"Cannot listen on 127.0.0.1:{port}: Address already"
            ) as caught:
                create(listen=listen)
            assert caught.value.errno == errno.EADDRINUSE
    assert not os.path.exists(socket_path)


def test_two_on_one_port(create: Create) -> None:
    """The second is refused when it is made, though the first does not run yet; then the port is free."""
    first = create()
    port = first.effective_port
    with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
        create(host="127.0.0.1", port=port)
    first.close()
    assert create(host="127.0.0.1", port=port).effective_port == port


def test_none_is_no_app() -> None:
    text = 'The "app" passed to ``create_server`` was ``None``. You forgot to return a WSGI app within your '
    with pytest.raises(ValueError, match=f"^{text}application\\.$"):
        create_server(None, **LOCAL)  # type: ignore[arg-type]


async def asgi(scope: object, receive: object, send: object) -> None: ...


@pytest.mark.parametrize("app", [asgi, "app:app", object()])
def test_what_is_no_wsgi_app(app: WSGIApplication) -> None:
    with pytest.raises(TypeError) as caught:
        create_server(app, **LOCAL)
    assert isinstance(caught.value, NotWSGIError)


def test_settings_that_are_wrong() -> None:
    with pytest.raises(SettingsError, match="Unknown adjustment 'thread'"):
        create_server(hello, **LOCAL, thread=4)
    with pytest.raises(ValueError, match="host or port may not be set if listen is set"):
        create_server(hello, **LOCAL, listen="127.0.0.1:0")


def test_a_start_that_fails_closes_it(create: Create, tmp_path: Path) -> None:
    server = create(tmp_dir=tmp_path / "missing")
    running = Running(server)
    with pytest.raises(OSError, match="missing"):
        running.returned()
    assert refuses(address_of(server))
    server.close()


# -- run and close


def test_it_runs_in_the_main_thread(create: Create) -> None:
    server = create()
    bodies: list[bytes] = []

    def visit() -> None:
        try:
            bodies.append(get(server))
        finally:
            server.close()

    assert threading.current_thread() is threading.main_thread()
    visitor = threading.Thread(target=visit)
    visitor.start()
    server.run()
    visitor.join()
    assert bodies == [b"Hello, world!"]
    assert refuses(address_of(server))


def test_run_returns_when_what_is_in_flight_is_answered(create: Create, gated: GatedApp) -> None:
    server = create(gated)
    running = Running(server)
    with Client(address_of(server)) as client, Client(address_of(server)) as idle:
        client.send(request("/in-flight"))
        gated.wait_entered()
        server.close()
        idle.assert_ended()
        eventually(lambda: refuses(address_of(server)), "nothing is accepted any more")
        assert running.is_alive()
        gated.let_go()
        response = client.receive()
        assert (response.body, response.closes) == (b"/in-flight", True)
    running.returned()


def test_close_before_run(create: Create) -> None:
    server = create()
    server.close()
    assert refuses(address_of(server))
    server.run()
    server.close()
    Running(server).returned()


def test_close_twice_and_run_twice(create: Create) -> None:
    server = create()
    running = Running(server)
    assert get(server) == b"Hello, world!"
    server.close()
    server.close()
    running.returned()
    server.close()
    server.run()
    assert refuses(address_of(server))


def test_a_second_run_leaves_the_first_alone(create: Create) -> None:
    server = create()
    running = Running(server)
    assert get(server) == b"Hello, world!"
    server.run()
    assert get(server) == b"Hello, world!"
    server.close()
    running.returned()


def test_close_from_several_threads_at_the_same_time(create: Create, gated: GatedApp) -> None:
    server = create(gated)
    running = Running(server)
    with Client(address_of(server)) as client:
        client.send(request("/in-flight"))
        gated.wait_entered()
        at_once(*[server.close] * 8)
        assert running.is_alive()
        gated.let_go()
        assert client.receive().body == b"/in-flight"
    running.returned()


def test_close_from_inside_the_app(create: Create) -> None:
    servers: list[BlockingServer] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        servers[0].close()
        servers[0].close()
        start_response("200 OK", [])
        yield b"good"
        servers[0].close()
        yield b"bye"

    servers.append(create(app))
    running = Running(servers[0])
    assert get(servers[0]) == b"goodbye"
    running.returned()


def test_run_and_close_at_the_same_time(create: Create) -> None:
    """Whoever comes first, `run()` returns and nothing is left."""
    chance = random.Random(1)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # in other orders each time
    try:
        for _ in range(25):
            server = create(threads=1)
            calls = [server.run, server.close, server.close]
            chance.shuffle(calls)
            at_once(*calls)
            assert refuses(address_of(server))
    finally:
        sys.setswitchinterval(interval)


@needs_proc
def test_again_and_again_leaves_no_descriptor(create: Create) -> None:
    def once() -> None:
        server = create(threads=1)
        running = Running(server)
        assert get(server) == b"Hello, world!"
        server.close()
        running.returned()

    once()  # a loop opens something when it is first used
    once()
    before = sorted(descriptors())
    for _ in range(5):
        once()
    assert len(descriptors()) == len(before), (before, sorted(descriptors()))


# -- several


def test_a_bunch_of_servers(create: Create) -> None:
    """All serve at the same time; closing one leaves the others alone."""

    def app_of(number: int) -> WSGIApplication:
        def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            barrier.wait(DEADLINE)  # all of them are here
            start_response("200 OK", [])
            return [b"%d" % number]

        return app

    count = 6
    barrier = threading.Barrier(count)
    servers = [create(app_of(number), threads=1) for number in range(count)]
    running = [Running(server) for server in servers]
    while servers:
        with ThreadPoolExecutor(len(servers)) as pool:
            bodies = list(pool.map(get, servers))
        assert bodies == [b"%d" % number for number in range(count - len(servers), count)]
        servers.pop(0).close()
        running.pop(0).returned()
        if servers:
            barrier = threading.Barrier(len(servers))


def test_made_here_run_there_closed_elsewhere(create: Create) -> None:
    server = elsewhere(create)
    running = Running(server)
    assert get(server) == b"Hello, world!"
    elsewhere(server.close)
    running.returned()


# -- signals, in a process of its own

PROGRAM = """
import signal, sys, threading
from waitress_async import create_server

def app(environ, start_response):
    start_response("200 OK", [])
    return [b"answer"]

def handle(number, frame):
    print("handled", flush=True)
    server.close()

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started this may have it ignored
loop, thread, handler = sys.argv[1:]
server = create_server(app, host="127.0.0.1", port=0, loop=loop)
print(server.effective_port, flush=True)
if handler == "own":
    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
if thread == "main":
    server.run()
else:
    thread = threading.Thread(target=server.run)
    thread.start()
    thread.join()
server.run()
assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
print("returned", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("thread", "handler", "printed"),
    [
        ("main", "none", "returned\n"),
        ("main", "own", "handled\nreturned\n"),
        ("other", "own", "handled\nreturned\n"),
    ],
)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_signal(loop: str, thread: str, handler: str, printed: str, number: signal.Signals) -> None:
    """In the main thread `run()` returns; in another the program's own handler is called and may close it."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM, loop, thread, handler],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            with Client(("127.0.0.1", int(process.stdout.readline()))) as client:
                assert client.get().body == b"answer"  # it serves, and so the handlers are there
                process.send_signal(number)
                client.assert_ended()
            out, errors = process.communicate(timeout=DEADLINE)
        finally:
            process.kill()
    assert (process.returncode, out, errors) == (0, printed, "")
