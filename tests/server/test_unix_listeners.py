"""Servers on unix sockets: what is served over them, and whose file is there before, meanwhile and after."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from wsgiref.validate import validator

import pytest

from tests.conftest import RunningServer, ServeInThread
from tests.server import test_disconnect, test_files, test_keep_alive, test_refusals, test_uploads
from tests.server.support import (
    DEADLINE,
    Client,
    GatedApp,
    bounded,
    eventually,
    eventually_async,
    held,
    hello,
    in_thread,
    needs_proc,
    nothing_left,
    on_each_loop,
    request,
    server_threads,
    temporary_files,
)
from tests.server.test_unix_sockets import leave_stale, mode_of, short_folder
from waitress_async import Server, ServerClosed
from waitress_async.server.unix_sockets import unix_address

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ROOT = Path(__file__).parents[2]

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has it")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away, and change its user")


class UnixClient(Client):
    """A client of the unix socket of this path, or @ and abstract name."""

    def __init__(self, address: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        try:
            self.sock.settimeout(DEADLINE)
            self.sock.connect(unix_address(address))
        except BaseException:
            self.sock.close()
            raise
        self._buffer = b""


def address_of(server: Server) -> str:
    """The first address, of a unix socket."""
    address = server.addresses[0]
    assert isinstance(address, str)
    return address


def body_of(address: str) -> bytes:
    with UnixClient(address) as client:
        return client.get().body


async def assert_answers(address: str, body: bytes) -> None:
    """As `body_of`, beside the server's own loop."""

    def ask() -> None:
        assert body_of(address) == body

    await in_thread(ask)


def exists(path: str) -> bool:
    return os.path.lexists(path)


def named(name: bytes) -> WSGIApplication:
    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        return [name]

    return app


@pytest.fixture
def folder() -> Iterator[str]:
    with short_folder() as folder:
        yield folder


@pytest.fixture
def place(folder: str) -> str:
    """A path for a socket."""
    return f"{folder}/s"


@pytest.fixture
def serve_in_thread(serve_in_thread: ServeInThread, folder: str) -> ServeInThread:
    """As everywhere, but on a unix socket where nothing else is said."""
    numbers = itertools.count()

    def start(app: WSGIApplication, **settings: object) -> RunningServer:
        return serve_in_thread(app, **{"listen": f"unix:{folder}/{next(numbers)}", **settings})

    return start


@pytest.fixture
def connect(serve_in_thread: ServeInThread) -> Iterator[Callable[[RunningServer], Client]]:
    """As everywhere, but to a unix socket."""
    clients: list[Client] = []

    def make(server: RunningServer) -> Client:
        clients.append(UnixClient(address_of(server.server)))
        return clients[-1]

    yield make
    for client in clients:
        client.sock.close()


# -- what is true of TCP

test_kept_in_chunks = test_keep_alive.test_a_stream_of_unknown_length_is_chunked_and_the_connection_kept
test_1_0 = test_keep_alive.test_a_stream_of_unknown_length_ends_a_1_0_connection
test_pipelined = test_keep_alive.test_25_pipelined_requests_are_answered_in_order
test_half_closed = test_keep_alive.test_a_half_closed_client_is_answered
test_uploads_are_files = test_uploads.test_the_body_is_a_file_at_position_0
test_uploads_leave_no_file = test_uploads.test_files_are_gone_when_the_answer_has_come
test_lingering = test_refusals.test_a_client_that_still_sends_a_large_body_reads_the_413

path, sendfile, app = test_files.path, test_files.sendfile, test_files.app
test_files_are_sent = test_files.test_every_byte_comes
test_parts_of_files_are_sent = test_files.test_a_part_of_a_file


def file_under_way(client: Client, app: test_disconnect.App) -> None:
    client.send(request("/file"))
    assert client.sock.recv(1)


@needs_proc
@pytest.mark.parametrize("enter", [*test_disconnect.STATES, file_under_way], ids=lambda state: state.__name__)
def test_a_client_goes(
    serve_in_thread: ServeInThread, enter: Callable[[Client, test_disconnect.App], None], path: Path
) -> None:
    """There is no reset here: it closes."""
    app = test_disconnect.App()

    def with_file(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        if environ["PATH_INFO"] == "/file":
            start_response("200 OK", [])
            return environ["wsgi.file_wrapper"](path.open("rb"))
        return app(environ, start_response)

    settings = {"inbuf_overflow": test_disconnect.OVERFLOW, "outbuf_high_watermark": 65_536}
    server = serve_in_thread(with_file, threads=1, **settings).server
    before = held()
    with UnixClient(address_of(server)) as client:
        enter(client, app)
    app.gate.let_go(1)
    eventually(lambda: held() == before, "as many sockets and files as before")
    assert temporary_files() == 0
    with UnixClient(address_of(server)) as other:
        assert other.get("/other").body == b"plain"  # by the one thread


# -- what the app sees, and the server tells


def environ_app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({name: value for name, value in environ.items() if isinstance(value, str)}).encode()]


@pytest.mark.parametrize("name", ["{}/s", "{}/\N{SNOWMAN}", pytest.param("@{}/s", marks=linux_only)])
@pytest.mark.parametrize(("scheme", "port"), [("http", "80"), ("https", "443")])
def test_the_environ(serve_in_thread: ServeInThread, folder: str, name: str, scheme: str, port: str) -> None:
    address = name.format(folder)
    app: Any = validator(environ_app)
    server = serve_in_thread(app, listen=f"unix:{address}", url_scheme=scheme).server
    with UnixClient(address) as client:
        environ = json.loads(client.get().body)
    assert environ["REMOTE_ADDR"] == environ["REMOTE_HOST"] == "localhost"
    assert environ["REMOTE_PORT"] == ""
    assert environ["SERVER_PORT"] == port
    assert environ["SERVER_NAME"] == "waitress.invalid"
    assert (server.addresses, server.url) == ([address], f"unix:{address}")
    with pytest.raises(ServerClosed, match="no port"):
        server.port  # noqa: B018


@pytest.mark.parametrize("name", ["{}/client", pytest.param("@{}/\udcff", marks=linux_only)])
def test_a_client_that_has_a_name_too(serve_in_thread: ServeInThread, folder: str, name: str) -> None:
    address = address_of(serve_in_thread(environ_app).server)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(DEADLINE)
        sock.bind(unix_address(name.format(folder)))
        sock.connect(address)
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert json.loads(sock.makefile("rb").read().partition(b"\r\n\r\n")[2])["REMOTE_ADDR"] == "localhost"


def test_mixed_with_tcp(serve_in_thread: ServeInThread, folder: str) -> None:
    places = f"unix:{folder}/a 127.0.0.1:0 unix:{folder}/b"
    server = serve_in_thread(environ_app, listen=places).server
    first, internet, last = server.addresses
    assert (first, last, server.url) == (f"{folder}/a", f"{folder}/b", f"unix:{folder}/a")
    assert not isinstance(internet, str)
    for address in (f"{folder}/a", f"{folder}/b"):
        assert json.loads(body_of(address))["REMOTE_ADDR"] == "localhost"
    with Client(("127.0.0.1", internet[1])) as client:
        environ = json.loads(client.get().body)
    assert (environ["REMOTE_ADDR"], environ["SERVER_PORT"]) == ("127.0.0.1", str(internet[1]))


def test_the_first_address_has_the_port(serve_in_thread: ServeInThread, place: str) -> None:
    server = serve_in_thread(hello, listen=f"127.0.0.1:0 unix:{place}").server
    assert server.addresses == [("127.0.0.1", server.port), place]
    assert server.url == f"http://127.0.0.1:{server.port}"


@on_each_loop
async def test_the_setting_of_waitress(place: str) -> None:
    with nothing_left():
        async with Server(hello, unix_socket=place) as server:
            assert server.addresses == [place]
            await assert_answers(place, b"Hello, world!")
            assert mode_of(place) == 0o600
        assert not exists(place)


@on_each_loop
async def test_a_path_is_what_it_was_at_the_start(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    async with Server(hello, unix_socket="s"):
        monkeypatch.chdir("/")
        assert exists(f"{folder}/s")
    assert not exists(f"{folder}/s")


# -- permissions and owners


@pytest.mark.parametrize(("perms", "mode"), [("660", 0o660), (0o606, 0o606), ("000", 0)])
@on_each_loop
async def test_permissions(place: str, perms: object, mode: int) -> None:
    async with Server(hello, unix_socket=place, unix_socket_perms=perms):
        assert mode_of(place) == mode


@pytest.mark.parametrize(
    ("owner", "ids"),
    [
        (f"{os.getuid()}", (os.getuid(), os.getgid())),
        pytest.param("65534", (65534, os.getgid()), marks=root_only),
        pytest.param(":65534", (os.getuid(), 65534), marks=root_only),
        pytest.param("65533:65534", (65533, 65534), marks=root_only),
    ],
)
@on_each_loop
async def test_owners(place: str, owner: str, ids: tuple[int, int]) -> None:
    async with Server(hello, unix_socket=place, unix_socket_owner=owner, unix_socket_perms="660"):
        found = os.stat(place)
        assert (found.st_uid, found.st_gid) == ids
        assert mode_of(place) == 0o660
    assert not exists(place)


@on_each_loop
async def test_an_owner_that_does_not_exist(folder: str, place: str) -> None:
    with nothing_left(), pytest.raises(OSError, match="no user 'nobody at all'") as caught:
        await Server(hello, unix_socket=place, unix_socket_owner="nobody at all").start()
    assert caught.value.strerror is not None
    assert caught.value.strerror.startswith(f"Cannot listen on unix:{place}: unix_socket_owner: ")
    assert os.listdir(folder) == []


# -- whose file it is


@on_each_loop
async def test_our_file_is_removed_when_the_stop_begins(place: str) -> None:
    """A successor can have the path while requests in flight are finished."""
    app = GatedApp()
    with nothing_left():
        first = Server(app, unix_socket=place)
        await first.start()
        client = UnixClient(place)
        client.send(request("/in-flight"))

        def finish() -> None:
            app.let_go()
            with client:
                assert client.receive().body == b"/in-flight"

        await eventually_async(lambda: app.entered, "the app was called")
        stopping = asyncio.create_task(first.stop())
        await eventually_async(lambda: not exists(place), "the file is gone")
        async with Server(named(b"second"), unix_socket=place):
            await assert_answers(place, b"second")
            await in_thread(finish)
            await bounded(stopping)
            await assert_answers(place, b"second")  # whose file is still there


@on_each_loop
async def test_a_file_in_the_place_of_ours_is_left_alone(place: str) -> None:
    with nothing_left():
        async with Server(hello, unix_socket=place):
            os.rename(place, f"{place}.ours")
            os.mkdir(place)
        assert stat.S_ISDIR(os.lstat(place).st_mode)
        assert stat.S_ISSOCK(os.lstat(f"{place}.ours").st_mode)


def test_a_second_server_fails_and_the_first_goes_on(serve_in_thread: ServeInThread, place: str) -> None:
    serve_in_thread(named(b"first"), listen=f"unix:{place}")
    inode = os.lstat(place).st_ino

    async def second() -> None:
        with pytest.raises(OSError, match=f"Cannot listen on unix:{place}: Address already in use") as caught:
            await Server(named(b"second"), unix_socket=place).start()
        assert caught.value.errno == errno.EADDRINUSE

    asyncio.run(second())
    assert os.lstat(place).st_ino == inode
    assert body_of(place) == b"first"


@pytest.mark.parametrize(
    "places", ["unix:{0}/s unix:{0}/./s", pytest.param("unix:@{0} unix:@{0}", marks=linux_only)]
)
@on_each_loop
async def test_one_place_twice(folder: str, places: str) -> None:
    """By one name it is one; by two it is in use."""
    server = Server(hello, listen=places.format(folder))
    with nothing_left():
        if "@" in places:
            async with server:
                assert server.addresses == [f"@{folder}"]
        else:
            with pytest.raises(OSError, match=f"unix:{folder}/./s: Address already in use"):
                await server.start()
    assert os.listdir(folder) == []


@linux_only
@on_each_loop
async def test_an_abstract_name_in_use(folder: str) -> None:
    async with Server(hello, unix_socket=f"@{folder}"):
        with pytest.raises(OSError, match=f"Cannot listen on unix:@{folder}: Address already in use"):
            await Server(hello, unix_socket=f"@{folder}").start()


@on_each_loop
async def test_a_stale_file_is_replaced(place: str) -> None:
    with nothing_left():
        leave_stale(place)
        async with Server(hello, unix_socket=place):
            await assert_answers(place, b"Hello, world!")
        assert not exists(place)


KILLED = """
import sys
from waitress_async import serve

def app(environ, start_response):
    start_response("200 OK", [])
    return [b"first"]

serve(app, unix_socket=sys.argv[1])
"""


def test_the_file_of_a_killed_server_is_taken_over(serve_in_thread: ServeInThread, place: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, place], cwd=ROOT)
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            eventually(lambda: sock.connect_ex(place) == 0, "it listens")
        assert body_of(place) == b"first"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE)
    assert exists(place)
    with pytest.raises(ConnectionRefusedError):
        body_of(place)
    running = serve_in_thread(named(b"second"), listen=f"unix:{place}")
    assert body_of(place) == b"second"
    running.stop()
    assert not exists(place)


# -- nothing is left


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        ("127.0.0.1:{port}", r"127\.0\.0\.1:{port}: Address already in use"),
        ("unix:{folder}/missing/s", "unix:{folder}/missing/s: its directory does not exist"),
        ("unix:{folder}/file", "unix:{folder}/file: it is a file that is not a socket"),
        ("fd://999999", "fd://999999: Bad file descriptor"),
    ],
)
@on_each_loop
async def test_of_several_places_that_cannot_all_be_had_none_is_left(
    folder: str, last: str, reason: str
) -> None:
    os.mkdir(f"{folder}/file")
    with socket.create_server(("127.0.0.1", 0)) as used:
        names = {"folder": folder, "port": used.getsockname()[1]}
        with nothing_left(), pytest.raises(OSError, match="Cannot listen on " + reason.format(**names)):
            await Server(hello, listen=f"unix:{folder}/s 127.0.0.1:0 {last.format(**names)}").start()
    assert os.listdir(folder) == ["file"]


class Names:
    """A name service that keeps those who ask waiting."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.answer = threading.Event()
        self._getaddrinfo = socket.getaddrinfo

    def getaddrinfo(self, *arguments: Any, **options: Any) -> Any:
        self.asked.set()
        assert self.answer.wait(DEADLINE)
        return self._getaddrinfo(*arguments, **options)


async def cancelled(server: Server, starting: asyncio.Task[None]) -> None:
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting


async def stopped(server: Server, starting: asyncio.Task[None]) -> None:
    await bounded(server.stop())


async def stopped_by_a_thread(server: Server, starting: asyncio.Task[None]) -> None:
    await in_thread(server.request_stop)


@pytest.mark.parametrize("end", [cancelled, stopped, stopped_by_a_thread])
@on_each_loop
async def test_a_start_that_is_given_up_while_a_name_is_looked_up(
    folder: str, end: Callable[[Server, asyncio.Task[None]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names()
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    with nothing_left():
        server = Server(hello, listen=f"unix:{folder}/s localhost:0")
        starting = asyncio.create_task(server.start())
        await eventually_async(names.asked.is_set, "the name is asked for")
        assert os.listdir(folder) == []
        await end(server, starting)
        names.answer.set()
        if end is not cancelled:
            with pytest.raises(ServerClosed):
                await starting
        await eventually_async(lambda: not server_threads(), "the look-up has ended")
        assert server.addresses == []
    assert os.listdir(folder) == []


DROPPED = """
import asyncio, os, sys
from waitress_async import Server

def app(environ, start_response):
    start_response("200 OK", [])
    return [b""]

async def main():
    async with Server(app, listen=f"unix:{sys.argv[1]}/s unix:{sys.argv[1]}/t 127.0.0.1:0") as server:
        os.setegid(65534)
        os.seteuid(65534)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.addresses[2][1])
    print((await reader.read()).decode() or "closed")
    try:
        await asyncio.open_connection("127.0.0.1", server.addresses[2][1])
    except ConnectionRefusedError:
        print("refused")
    writer.close()

asyncio.run(main())
"""


@root_only
def test_a_file_that_may_not_be_removed_any_more_does_not_hold_the_stop(folder: str) -> None:
    """As by a program that has changed its user after it has bound."""
    os.chmod(folder, 0o755)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DROPPED, folder],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["closed", "refused"], "")
    assert sorted(os.listdir(folder)) == ["s", "t"]
