"""`serve()`: a process of its own, ended by signals."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.server.support import DEADLINE, Client, hello, request
from tests.server.test_tls_contexts import Files
from waitress_async import SettingsError, serve

PROGRAM = """
import socket, sys, threading
from waitress_async import serve

def app(environ, start_response):
    if environ["PATH_INFO"] == "/stuck":
        print("stuck", flush=True)
        threading.Event().wait()
    if environ["PATH_INFO"] == "/slow":
        print("slow", flush=True)
        sys.stdin.readline()
    start_response("200 OK", [])
    return [b"answer"]

sock = socket.socket()
sock.bind(("127.0.0.1", 0))
sock.listen()
print(sock.getsockname()[1], flush=True)
serve(app, sockets=[sock], loop=sys.argv[1], graceful_timeout=60)
print("returned", flush=True)
"""


class Program:
    """The program, its port, and what it has to say."""

    def __init__(self, loop: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PROGRAM, loop],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.address = "127.0.0.1", int(self.line())
        with Client(self.address) as client:
            assert client.get().body == b"answer"  # it serves, and so it handles signals

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self, text: str | None = None) -> tuple[int, str, str]:
        """Its exit status, and the rest of what it wrote."""
        out, err = self.process.communicate(text, timeout=DEADLINE)
        return self.process.returncode, out.strip(), err.strip()


@pytest.fixture
def start() -> Iterator[Callable[[str], Program]]:
    programs: list[Program] = []

    def make(loop: str) -> Program:
        programs.append(Program(loop))
        return programs[-1]

    yield make
    for program in programs:
        program.process.kill()
        program.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_signal_stops_it_when_the_request_in_flight_is_answered(
    start: Callable[[str], Program], loop: str, number: int
) -> None:
    program = start(loop)
    with Client(program.address) as client, Client(program.address) as idle:
        assert idle.get().status == 200
        client.send(request("/slow"))
        assert program.line() == "slow"
        program.process.send_signal(number)
        idle.assert_ended()
        assert program.process.poll() is None
        status, out, err = program.end("go on\n")
        response = client.receive()
    assert (response.body, response.closes) == (b"answer", True)
    assert (status, out, err) == (0, "returned", "")


@pytest.mark.parametrize("client_stays", [True, False], ids=["the client waits", "the client is gone"])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_second_signal_stops_it_at_once(
    start: Callable[[str], Program], loop: str, client_stays: bool
) -> None:
    """A thread that never comes back holds neither the stop nor the end of the process."""
    program = start(loop)
    with Client(program.address) as client, Client(program.address) as idle:
        assert idle.get().status == 200
        client.send(request("/stuck"))
        assert program.line() == "stuck"
        if not client_stays:
            client.reset()
        program.process.send_signal(signal.SIGTERM)
        idle.assert_ended()
        program.process.send_signal(signal.SIGTERM)
        status, out, err = program.end()
    assert (status, out) == (0, "returned")
    assert "1 thread(s) still running: waitress_async-" in err


async def test_where_a_loop_runs_already_it_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"use serve_async\(\) or Server on it, or another thread$"):
        serve(hello, host="127.0.0.1", port=0)


def test_a_private_keyword_of_waitress_that_many_scripts_have() -> None:
    with pytest.raises(SettingsError, match=r"^threads: 0 is less than 1$"):
        serve(hello, _quiet=True, threads=0)


HANGING_UP = """
import os, signal, socket, ssl, sys, threading
from waitress_async import serve

loop, certfile, keyfile = sys.argv[1:]
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # who starts the tests may ignore it, as nohup does

def own(*_arguments):
    pass

def app(environ, start_response):
    handler = signal.getsignal(signal.SIGHUP)
    names = {own: "the program's", signal.SIG_DFL: "nobody's"}
    print(names.get(handler, "the server's"), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    start_response("200 OK", [])
    return []

def ask(address):
    plain = socket.create_connection(address)
    with ssl._create_unverified_context().wrap_socket(plain) as sock:
        sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        while sock.recv(65536):
            pass

def serve_once(**settings):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        asking = threading.Thread(target=ask, args=(sock.getsockname(),))
        asking.start()
        serve(app, sockets=[sock], loop=loop, **settings)
        asking.join()

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certfile, keyfile)
serve_once(ssl_context=context)
serve_once(certfile=certfile, keyfile=keyfile)
signal.signal(signal.SIGHUP, own)
serve_once(certfile=certfile, keyfile=keyfile)
print(signal.getsignal(signal.SIGHUP) is own, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_sighup_is_the_server_s_where_it_can_reload_and_nobody_else_has_it(loop: str, tmp_path: Path) -> None:
    """A context of the program's it cannot load anew."""
    files = Files(tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", HANGING_UP, loop, files.certfile, files.keyfile],
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.stdout.splitlines() == ["nobody's", "the server's", "the program's", "True"], done.stderr
    assert (done.returncode, done.stderr) == (0, "")
