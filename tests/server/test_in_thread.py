"""`with Server(app).in_thread()`: a server beside a program without asyncio, or with it."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import LOOPS
from tests.server.support import (
    DEADLINE,
    Client,
    GatedApp,
    eventually,
    fetch,
    hello,
    local_server,
    nothing_left,
)
from waitress_async import LifespanError, Server, ServerClosed, SettingsError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    threads = threading.active_count()
    with nothing_left():
        yield
    assert threading.active_count() == threads


def get(server: Server, path: str = "/") -> bytes:
    with Client(("127.0.0.1", server.port)) as client:
        return client.get(path).body


def refuses(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), DEADLINE):
            return False
    except (ConnectionRefusedError, ConnectionResetError):
        return True


@pytest.mark.parametrize("loop", LOOPS)
def test_it_serves_within_the_block(loop: str) -> None:
    loops: list[str] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        loops.append(type(asyncio.get_running_loop()).__module__.partition(".")[0])
        yield

    made = local_server(loop=loop, lifespan=lifespan)
    with made.in_thread() as server:
        assert server is made
        assert get(server) == b"Hello, world!"
        port = server.port
        assert server.url == f"http://127.0.0.1:{port}"
    assert refuses(port)
    assert loops == [loop]


def test_several_at_once_one_of_them_ended() -> None:
    with local_server().in_thread() as one:
        with local_server().in_thread() as other:
            assert get(one) == get(other) == b"Hello, world!"
        assert refuses(other.port)
        assert get(one) == b"Hello, world!"


def test_what_is_in_flight_is_answered() -> None:
    app = GatedApp()
    answers: list[bytes] = []
    with local_server(app).in_thread() as server:
        visitor = threading.Thread(target=lambda: answers.append(get(server, "/in-flight")))
        visitor.start()
        app.wait_entered()
        gate = threading.Thread(target=open_when_it_stops, args=(server, app))
        gate.start()
    visitor.join()
    gate.join()
    assert answers == [b"/in-flight"]


def open_when_it_stops(server: Server, app: GatedApp) -> None:
    eventually(lambda: refuses(server.port), "it listens no more")
    app.let_go()


def test_the_app_runs_in_a_copy_of_the_callers_context() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        return [variable.get().encode()]

    variable.set("by the caller")
    with local_server(app).in_thread() as server:
        assert get(server) == b"by the caller"


# -- errors are the caller's


def test_an_address_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(OSError, match="Cannot listen"),
            Server(hello, host="127.0.0.1", port=port).in_thread(),
        ):
            raise AssertionError("the block is not entered")


class FailingStart:
    async def __aenter__(self) -> None:
        raise LookupError

    async def __aexit__(self, *_error: object) -> None:
        raise AssertionError("it was not entered")


@asynccontextmanager
async def failing_end() -> AsyncIterator[None]:
    yield
    raise LookupError


def test_a_lifespan_that_does_not_start() -> None:
    with pytest.raises(LifespanError) as raised, local_server(lifespan=FailingStart).in_thread():
        raise AssertionError("the block is not entered")
    assert isinstance(raised.value.__cause__, LookupError)


def test_a_lifespan_that_fails_at_the_end() -> None:
    entered = []
    with pytest.raises(LifespanError) as raised, local_server(lifespan=failing_end).in_thread():
        entered.append(True)
    assert entered
    assert isinstance(raised.value.__cause__, LookupError)


def test_a_loop_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    with (
        pytest.raises(SettingsError, match="loop: uvloop is not installed"),
        local_server(loop="uvloop").in_thread(),
    ):
        raise AssertionError("the block is not entered")


def test_a_server_is_started_once() -> None:
    with local_server().in_thread() as server:
        pass
    with pytest.raises(ServerClosed, match="a server is started once"), server.in_thread():
        raise AssertionError("the block is not entered")


def test_one_that_was_stopped_before() -> None:
    server = local_server()
    server.request_stop()
    with pytest.raises(ServerClosed, match="stopped before it started"), server.in_thread():
        raise AssertionError("the block is not entered")


@pytest.mark.parametrize("lifespan", [None, failing_end])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_what_the_block_raises_goes_first(error: type[BaseException], lifespan: Any) -> None:
    with pytest.raises(error), local_server(lifespan=lifespan).in_thread():
        raise error


def test_one_that_is_stopped_within_the_block() -> None:
    with local_server().in_thread() as server:
        server.request_stop()
        eventually(lambda: refuses(server.port), "it listens no more")


# -- beside a loop


async def test_under_a_loop_that_goes_on() -> None:
    """pytest-asyncio's."""
    with local_server().in_thread() as server:
        assert await fetch(server.port) == b"Hello, world!"


async def test_beside_a_server_on_that_loop() -> None:
    async with local_server() as one:
        with local_server().in_thread() as other:
            assert [await fetch(one.port), await fetch(other.port)] == [b"Hello, world!"] * 2
        assert await fetch(one.port) == b"Hello, world!"


# -- Ctrl-C

PROGRAM = """
import os, signal, threading
from waitress_async import Server

entered = threading.Event()
interrupted = []

def app(environ, start_response):
    entered.set()
    environ["waitress_async.on_disconnect"](lambda: interrupted.append(True))
    while not environ["waitress_async.shutting_down"]():
        pass
    os.kill(os.getpid(), signal.SIGINT)  # while the main thread waits for the end of the block
    while not interrupted:
        pass
    start_response("200 OK", [])
    return []

def visit(url):
    try:
        urllib.request.urlopen(url)
    except OSError:
        print("cut", flush=True)

import urllib.request
try:
    with Server(app, host="127.0.0.1", port=0).in_thread() as server:
        client = threading.Thread(target=visit, args=(server.url,))
        client.start()
        entered.wait()
except KeyboardInterrupt:
    client.join()
    print("interrupted", [thread.name for thread in threading.enumerate()])
"""


# The same, but it comes while the stop is asked for.
ASKING = PROGRAM.replace("    os.kill", "    # os.kill").replace(
    "entered = ",
    """
class Server(Server):
    def request_stop(self, timeout=None):
        super().request_stop(timeout)
        if timeout is None:
            os.kill(os.getpid(), signal.SIGINT)

entered = """,
    1,
)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    "program", [PROGRAM, ASKING], ids=["while it is waited for", "while it is asked for"]
)
def test_ctrl_c_at_the_end_cuts_what_is_left(program: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split("\n") == ["cut", "interrupted ['MainThread']", ""]


ENTERING = """
import asyncio, contextlib, os, signal, threading
from waitress_async import Server

@contextlib.asynccontextmanager
async def lifespan():
    os.kill(os.getpid(), signal.SIGINT)  # while the main thread waits for the start
    await asyncio.Event().wait()
    yield

try:
    with Server(lambda *_: [], host="127.0.0.1", port=0, lifespan=lifespan).in_thread():
        print("served", flush=True)
except BaseException as error:
    print(type(error).__name__, [thread.name for thread in threading.enumerate()])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_while_the_start_is_waited_for_is_what_is_raised() -> None:
    result = subprocess.run(
        [sys.executable, "-c", ENTERING],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "KeyboardInterrupt ['MainThread']\n"
