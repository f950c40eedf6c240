"""`--lifespan`, `--thread-init` and `--thread-exit` of the real command, and how it then ends."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest
import requests

from tests.frameworks.command import TIMEOUT, Start

SOURCE = """
import asyncio, contextlib, json, sys, threading

events = []

def note(event):
    events.append(event)
    print(event, file=sys.stderr, flush=True)

def app(environ, start_response):
    note("request")
    start_response("200 OK", [])
    if environ["PATH_INFO"] == "/events":
        return [json.dumps(events).encode()]
    return [repr(environ["waitress_async.state"]).encode()]

@contextlib.asynccontextmanager
async def lifespan():
    note("begins")
    yield {"shop": "open"}
    note("ends")

def named(shop):
    return contextlib.asynccontextmanager(lambda: of(shop))

async def of(shop):
    yield shop

@contextlib.asynccontextmanager
async def refused():
    raise ConnectionRefusedError("no database")
    yield

@contextlib.asynccontextmanager
async def exits():
    sys.exit(7)
    yield

@contextlib.asynccontextmanager
async def waits():
    note("begins")
    try:
        await asyncio.Event().wait()
    finally:
        note("cleaned up")
    yield

@contextlib.asynccontextmanager
async def fails_at_the_end():
    yield
    raise LookupError("gone")

@contextlib.asynccontextmanager
async def never_ends():
    yield
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

def thread_init():
    note(f"init {threading.current_thread().name}")

def thread_exit():
    note(f"exit {threading.current_thread().name}")

number = 3
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SOURCE)
    return tmp_path


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), TIMEOUT).close()
    except ConnectionRefusedError:
        return False
    return True


def messages(lines: list[str]) -> list[str]:
    """Without the time and the name of the logger."""
    return [line.partition(" waitress_async: ")[2] or line for line in lines]


@pytest.fixture
def port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        number: int = sock.getsockname()[1]
        return number


@pytest.mark.parametrize("how", ["flag", "file"])
def test_it_is_around_the_requests_and_the_threads(start: Start, shop: Path, how: str) -> None:
    arguments = []
    if how == "flag":
        arguments = ["--lifespan=shop:lifespan", "--thread-init", "shop:thread_init"]
        arguments += ["--thread-exit=shop:thread_exit", "--threads=1"]
    else:
        (shop / "waitress_async.toml").write_text(
            'lifespan = "shop:lifespan"\nthread_init = "shop:thread_init"\n'
            'thread-exit = "shop:thread_exit"\nthreads = 1\n'
        )
    command = start(*arguments, "shop:app", cwd=shop)
    url = command.serving()
    assert requests.get(f"{url}/events", timeout=TIMEOUT).json() == [
        "begins",
        "init waitress_async-1",
        "request",
    ]
    command.signal(signal.SIGTERM)
    status, lines = command.ended()
    assert status == 0
    assert "Leaving the lifespan" in messages(lines)
    thread = "waitress_async-1"
    events = [line for line in lines if line in ("request", "ends", f"exit {thread}")]
    assert events == ["request", f"exit {thread}", "ends"]


def test_a_name_may_be_a_call(start: Start, shop: Path) -> None:
    url = start("--lifespan=shop:named('hats')", "shop:app", cwd=shop).serving()
    assert requests.get(url, timeout=TIMEOUT).text == "'hats'"


@pytest.mark.parametrize(
    ("lifespan", "message", "last"),
    [
        (
            "refused",
            "The lifespan did not start: ConnectionRefusedError: no database",
            "ConnectionRefusedError: no database",
        ),
        ("exits", "The lifespan did not start: SystemExit: 7", "SystemExit: 7"),
    ],
)
def test_a_failure_to_start_is_shown_and_nothing_listens(
    start: Start, shop: Path, port: int, lifespan: str, message: str, last: str
) -> None:
    command = start(f"--lifespan=shop:{lifespan}", "shop:app", cwd=shop, port=port)
    status, lines = command.ended()
    assert status == 1
    assert messages(lines)[:3] == ["Entering the lifespan", message, "Traceback (most recent call last):"]
    assert f'File "{shop / "shop.py"}"' in "".join(lines)
    assert lines[-1] == last
    assert not any("Serving" in line for line in lines)
    assert not listens(port)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (
            ["--lifespan=shop:lifespam"],
            1,
            "Cannot import lifespan 'shop:lifespam': module 'shop' has no attribute 'lifespam' "
            "(did you mean 'lifespan'?)",
        ),
        (["--thread-init=nowhere:f"], 1, "Cannot import thread_init 'nowhere:f': No module named 'nowhere'"),
        (["--thread-exit=shop:number"], 2, "Error: thread_exit: 'shop:number' is no function, but 3"),
        (
            ["--lifespan=on"],
            2,
            "Error: Invalid value for '--lifespan': 'on' is uvicorn's, for ASGI apps",
        ),
    ],
)
def test_what_is_not_there(start: Start, shop: Path, arguments: list[str], status: int, message: str) -> None:
    for more in ([], ["--check-config"]):
        ended, lines = start(*arguments, *more, "shop:app", cwd=shop).ended()
        assert ended == status
        assert lines[-1].startswith(message)


def test_a_signal_while_it_starts_ends_it(start: Start, shop: Path, port: int) -> None:
    command = start("--lifespan=shop:waits", "shop:app", cwd=shop, port=port)
    while command.line() != "begins":
        pass
    assert not listens(port)
    command.signal(signal.SIGTERM)
    status, lines = command.ended()
    assert status == 0
    assert {"Cancelling the lifespan's start", "cleaned up"} <= set(messages(lines))


def test_a_failure_at_the_end_is_logged_once_and_the_status_tells(start: Start, shop: Path) -> None:
    command = start("--lifespan=shop:fails_at_the_end", "shop:app", cwd=shop)
    command.ready()
    command.signal(signal.SIGTERM)
    assert command.process.wait(TIMEOUT) == 1
    lines = []
    while (line := command.line()) is not None:
        lines.append(line)
    text = "\n".join(messages(lines))
    assert text.count("Traceback") == text.count("\nLookupError: gone") == 1
    assert "ERROR waitress_async: The lifespan failed" in "\n".join(lines)
    assert lines[-1] == "The lifespan failed: LookupError: gone"


@pytest.mark.parametrize("hurry", [True, False])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_one_that_never_ends_does_not_hold_the_exit(start: Start, shop: Path, loop: str, hurry: bool) -> None:
    arguments = ["--lifespan=shop:never_ends", f"--loop={loop}", "shop:app"]
    command = start(*arguments, *([] if hurry else ["--graceful-timeout=0"]), cwd=shop)
    command.ready()
    command.signal(signal.SIGTERM)
    if hurry:
        while "Leaving the lifespan" not in str(command.line()):
            pass
        command.signal(signal.SIGINT)
    assert command.process.wait(TIMEOUT) == 0
    lines = []
    while (line := command.line()) is not None:
        lines.append(line)
    assert "The lifespan goes on though it was cut, and is left to itself" in messages(lines)


def test_a_working_directory_is_no_matter_where_the_app_has_its_own(start: Start, shop: Path) -> None:
    url = start(f"--app-dir={shop}", "--lifespan=shop:lifespan", "shop:app").serving()
    assert requests.get(url, timeout=TIMEOUT).text == "{'shop': 'open'}"
