"""`python -m waitress_async` from start to end: pages, signals, exit statuses, and what it says meanwhile."""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import sys
from pathlib import Path

import pytest
import requests

from tests.frameworks.command import TIMEOUT, Command, Start

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")

# An app whose requests tell where they are by lines on stderr, and wait for files.
APP = """\
import pathlib
import sys
import threading


def app(environ, start_response):
    path = environ["PATH_INFO"]
    start_response("200 OK", [("Content-Type", "text/plain")])
    if path == "/gate":
        return gate()
    if path == "/stuck":
        return stuck()
    if path == "/left":
        return left(environ["waitress.client_disconnected"])
    return [b"hello"]


def say(text):
    sys.stderr.write(text + "\\n")
    sys.stderr.flush()


def gate():
    yield b"first "
    say("at the gate")
    with open("gate") as gate:  # a FIFO: opened when somebody opens its other end
        yield gate.read().encode()


def stuck():
    yield b"first "
    say("running")
    threading.Event().wait()


def left(client_disconnected):
    yield b"first "
    say("running")
    event = threading.Event()
    while not client_disconnected():
        event.wait(0.01)
    say("left alone")
    event.wait()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "gated.py").write_text(APP)
    return tmp_path


def reset(sock: socket.socket) -> None:
    """Close the connection with a RST, which a server can tell from a client that only sends no more."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def assert_only_warned_of_the_thread(lines: list[str]) -> None:
    running, stuck, *stack = lines
    match = re.search(
        r" WARNING waitress_async: 1 thread\(s\) still running: (waitress_async-[0-9]+)$", running
    )
    assert match
    assert stuck.endswith(f" WARNING waitress_async: {match[1]} is stuck here:")
    assert any('/gated.py", line ' in line for line in stack)
    assert all(line.startswith("  ") for line in stack if line)


def begin(url: str, path: str) -> requests.Response:
    """A request whose answer has begun."""
    return requests.get(url + path, stream=True, timeout=TIMEOUT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("arguments", [(), ("--loop", "asyncio")])
def test_it_serves_and_stops(start: Start, number: signal.Signals, arguments: tuple[str, ...]) -> None:
    command = start(*arguments, "examples.demo:app")
    url = command.serving()
    with requests.Session() as session:
        for _ in range(2):
            page = session.get(f"{url}/", timeout=TIMEOUT)
            assert page.status_code == 200
            assert "An unmodified Flask app" in page.text
        command.signal(number)  # with a connection open, and idle
        assert command.ended() == (0, [])


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_loop_is_the_one_asked_for(start: Start, tmp_path: Path, loop: str) -> None:
    (tmp_path / "which.py").write_text(
        "import sys\n"
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [('Content-Type', 'text/plain')])\n"
        "    return [b'uvloop' if 'uvloop' in sys.modules else b'asyncio']\n"
    )
    url = start("--loop", loop, "which:app", cwd=tmp_path).serving()
    assert requests.get(url, timeout=TIMEOUT).text == loop


def test_a_request_in_flight_finishes(start: Start, folder: Path) -> None:
    gate = folder / "gate"
    os.mkfifo(gate)
    command = start("gated:app", cwd=folder)
    url = command.ready()
    with begin(url, "/gate") as response:
        assert command.line() == "at the gate"
        command.signal(signal.SIGTERM)
        command.until_it_refuses()
        assert command.process.poll() is None
        gate.write_text("and last")
        assert response.text == "first and last"
    assert command.ended() == (0, [])


@pytest.mark.parametrize("path", ["/stuck", "/left"])
def test_a_second_signal_ends_it_at_once(start: Start, folder: Path, path: str) -> None:
    """Whether the client still waits for the stuck request or has gone."""
    command = start("--graceful-timeout", "600", "gated:app", cwd=folder)
    command.ready()
    with socket.create_connection(("127.0.0.1", command.port), TIMEOUT) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        received = b""
        while b"first" not in received:
            received += client.recv(1000)
        assert command.line() == "running"
        if path == "/left":
            reset(client)
            assert command.line() == "left alone"
        command.signal(signal.SIGTERM)
        command.until_it_refuses()
        assert command.process.poll() is None
        command.signal(signal.SIGTERM)
        status, lines = command.ended()
    assert status == 0
    assert_only_warned_of_the_thread(lines)


def test_the_deadline_ends_it_too(start: Start, folder: Path) -> None:
    command = start("--graceful-timeout", "0", "gated:app", cwd=folder)
    url = command.ready()
    with begin(url, "/stuck") as response:
        assert command.line() == "running"
        command.signal(signal.SIGTERM)
        status, lines = command.ended()
        assert status == 0
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            response.content  # noqa: B018 - cut, and the client can tell
    assert_only_warned_of_the_thread(lines)


def test_a_signal_is_heeded_from_the_first_line_on(start: Start, tmp_path: Path) -> None:
    """What waits for "Serving on" may stop the server right after it: handlers must be there by then."""
    (tmp_path / "early.py").write_text(
        "import logging, signal, sys\n"
        "sys.setswitchinterval(1e-6)\n"
        "class Handler(logging.StreamHandler):\n"
        "    def emit(self, record):\n"
        "        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:\n"
        "            record.msg = 'too early: ' + record.msg\n"
        "        super().emit(record)\n"
        "form = '%(asctime)s %(levelname)s %(name)s: %(message)s'\n"
        "logging.basicConfig(format=form, handlers=[Handler()])\n"
        "from gated import app\n"
    )
    (tmp_path / "gated.py").write_text(APP)
    for _ in range(3):
        command = start("early:app", cwd=tmp_path)
        command.serving()
        command.signal(signal.SIGTERM)
        assert command.ended() == (0, [])


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_signal_at_the_very_end_changes_nothing(start: Start, folder: Path, loop: str) -> None:
    """The process takes its time to end when the server has."""
    command = start(f"--loop={loop}", "gated:app", cwd=folder)
    command.ready()
    command.signal(signal.SIGTERM)
    while "Stopped: " not in (command.line() or ""):
        pass
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        command.signal(number)
    assert command.process.wait(TIMEOUT) == 0


def test_a_port_in_use(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = start("examples.flask_app:app", port=port)
        status, lines = command.ended()
    assert status == 1
    assert lines == [f"Error: Cannot listen on 127.0.0.1:{port}: Address already in use"]


def test_an_exception_is_one_record_with_its_traceback(start: Start, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "def app(environ, start_response):\n    raise KeyError('the reason')\n"
    )
    command = start("broken:app", cwd=tmp_path)
    url = command.serving()
    response = requests.get(f"{url}/%1b[2J", timeout=TIMEOUT)
    assert response.status_code == 500
    assert "the reason" not in response.text
    command.signal(signal.SIGTERM)
    status, lines = command.ended()
    assert status == 0
    assert lines[0].endswith(" ERROR waitress_async: Exception while serving /\\x1b[2J")
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == "KeyError: 'the reason'"


def test_a_command_that_does_not_serve_is_told_of() -> None:
    """The helper above: it must not wait for a line that never comes."""
    command = Command("examples.missing:app")
    with pytest.raises(AssertionError, match=r"exit 1: .*examples\.missing"):
        command.serving()
    command.kill()
