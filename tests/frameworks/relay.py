"""A proxy of somebody else's in front of a server of ours: both run here, and clients come from anywhere."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.conftest import LOOPS
from waitress_async import Server

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

TIMEOUT: Final = 30  # seconds, for whatever is waited for

# From here come the clients; the proxies use 127.0.0.1.
CLIENTS: Final = ("127.0.0.2", "127.0.0.3")

# Those of Debian's packages are not on everybody's path.
_FOLDERS: Final = "/usr/sbin:/usr/local/sbin"


def needs(program: str) -> pytest.MarkDecorator:
    """Skips tests where a program is not installed."""
    reason = f"{program} is not installed, or this is not Linux"
    return pytest.mark.skipif(sys.platform != "linux" or find(program) is None, reason=reason)


def find(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path=_FOLDERS)


class Shop:
    """An app that tells what it was told."""

    def __init__(self) -> None:
        self.checks: list[str] = []  # REMOTE_ADDR of those who asked for /health
        self._more = threading.Semaphore(0)

    def let_go(self) -> None:
        """Let /stream go on."""
        self._more.release()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        path = environ["PATH_INFO"]
        if path == "/stream":
            return self._stream()
        if path == "/cut":
            return self._cut()
        if path == "/health":
            self.checks.append(environ["REMOTE_ADDR"])
            return [b"well"]
        if path == "/digest":
            return [hashlib.file_digest(environ["wsgi.input"], "sha256").hexdigest().encode()]
        return [json.dumps({key: value for key, value in environ.items() if isinstance(value, str)}).encode()]

    def _stream(self) -> Iterator[bytes]:
        yield b"first "
        assert self._more.acquire(timeout=TIMEOUT)
        yield b"second"

    def _cut(self) -> Iterator[bytes]:
        yield b"first "
        raise ValueError("on purpose")


class Accepting(socket.socket):
    """A listening socket that counts what it accepts."""

    accepted = 0

    def accept(self) -> tuple[socket.socket, Any]:
        found = super().accept()
        self.accepted += 1
        return found


def listener(place: str = "127.0.0.1") -> Accepting:
    """A bound socket: on a port of an address, or on a path."""
    family = socket.AF_UNIX if "/" in place else socket.AF_INET6 if ":" in place else socket.AF_INET
    sock = Accepting(family)
    sock.bind(place if "/" in place else (place, 0))
    sock.listen(100)
    return sock


@contextmanager
def serving(app: Shop, loop: str, **settings: object) -> Iterator[None]:
    """A server in a thread of its own."""
    server = Server(app, **settings)
    started = threading.Event()

    async def main() -> None:
        try:
            await server.start()
        finally:
            started.set()
        await server.serve_forever()

    def run() -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(main())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(TIMEOUT)
    try:
        yield
    finally:
        server.request_stop()
        thread.join(TIMEOUT)
        assert not thread.is_alive()


@contextmanager
def running(
    command: list[str], folder: Path, sockets: Iterable[socket.socket], **environment: str
) -> Iterator[None]:
    """A program that takes over these sockets, which are closed here."""
    inherited = [sock.fileno() for sock in sockets]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={"PATH": os.defpath, **environment},
            pass_fds=inherited,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    for sock in sockets:
        sock.close()
    try:
        yield
        assert process.poll() is None, (folder / "output").read_text()
    finally:
        process.terminate()
        process.wait(TIMEOUT)


class Visitor(http.client.HTTPConnection):
    """A client of a proxy, on one connection."""

    def __init__(self, address: tuple[str, int], source: str = "") -> None:
        super().__init__(*address, timeout=TIMEOUT, source_address=(source, 0) if source else None)
        self.connect()
        self.name: tuple[str, int] = self.sock.getsockname()[:2]

    def ask(self, path: str = "/", headers: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environ of a request, as far as it is text."""
        self.request("GET", path, headers=headers or {})
        answer = self.getresponse()
        content = answer.read()
        assert answer.status == 200, content
        environ: dict[str, str] = json.loads(content)
        return environ

    def upload(self, body: bytes, *, chunked: bool) -> str:
        """The digest of the body as the app got it."""
        pieces = (body[at : at + 65_536] for at in range(0, len(body), 65_536))
        self.request("POST", "/digest", body=pieces if chunked else body, encode_chunked=chunked)
        answer = self.getresponse()
        assert answer.status == 200
        return answer.read().decode()
