"""A stand-in for systems that are not at hand: this one, without what they do not have.

It shows that each thing is asked for before it is used, and not that all is well on Windows.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Taken from this interpreter before anything of ours is imported.
TAKEN = '''
import asyncio, functools, mmap, os, signal, socket, sys, time

socket.socketpair = functools.partial(socket.socketpair, socket.AF_UNIX)  # for asyncio itself
for module, names in {
    os: ("pread", "pwrite", "sendfile", "O_TMPFILE", "fstatvfs", "fchmod"),
    socket: ("AF_UNIX", "SO_REUSEPORT"),
    mmap: ("MAP_PRIVATE", "MAP_ANONYMOUS"),
    signal: ("SIGHUP",),
    time: ("clock_gettime_ns",),
}.items():
    for name in names:
        delattr(module, name)
for name in ("uvloop", "resource", "pwd", "grp", "fcntl"):
    sys.modules[name] = None


def not_there(*_arguments):
    raise NotImplementedError


class ProactorLike(asyncio.SelectorEventLoop):
    """What asyncio's loop on Windows can do: it accepts by itself, and watches no descriptor."""

    add_reader = remove_reader = add_writer = remove_writer = add_signal_handler = not_there
'''

SERVE = """
import http.client, logging, tempfile
from waitress_async import Server

logging.disable()
LARGE = os.urandom(3_000_000)


def app(environ, start_response):
    body = environ["wsgi.input"].read()
    if environ["PATH_INFO"] == "/file":
        file = tempfile.TemporaryFile()
        file.write(LARGE)
        file.seek(0)
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](file)
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def ask(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    for method, path, body, expected in (
        ("GET", "/", None, b""),
        ("POST", "/", LARGE, LARGE),
        ("GET", "/file", None, LARGE),
    ):
        connection.request(method, path, body)
        answer = connection.getresponse()
        assert answer.status == 200 and answer.read() == expected, (method, path)
    connection.close()


async def main():
    async with Server(app, host="127.0.0.1", port=0, connection_limit=1) as server:
        for _ in range(3):  # at its limit it accepts no more, and then again
            await asyncio.to_thread(ask, server.port)


with asyncio.Runner(loop_factory=LOOP) as runner:
    runner.run(main())
print("served")
"""


def run(*parts: str, tmp_path: Path) -> str:
    script = tmp_path / "script.py"
    script.write_text("".join(parts))
    done = subprocess.run(
        [sys.executable, "-W", "error", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("loop", ["asyncio.SelectorEventLoop", "ProactorLike"])
def test_a_server_without_what_other_systems_lack(loop: str, tmp_path: Path) -> None:
    assert run(TAKEN, f"LOOP = {loop}\n", SERVE, tmp_path=tmp_path) == "served\n"


def test_the_command_can_be_imported(tmp_path: Path) -> None:
    assert run(TAKEN, "import waitress_async.cli\nprint('imported')", tmp_path=tmp_path) == "imported\n"


def test_a_unix_socket_is_refused_with_a_reason(tmp_path: Path) -> None:
    script = """
from waitress_async import create_server
try:
    create_server(print, unix_socket="/tmp/nowhere.sock")
except OSError as error:
    print(error.strerror)
"""
    said = run(TAKEN, script, tmp_path=tmp_path)
    assert said == "Cannot listen on unix:/tmp/nowhere.sock: this system has no unix sockets\n"
