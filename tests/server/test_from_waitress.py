"""What waitress's functional tests are about, over TCP and unix sockets, by the API that waitress has.

`wire/` has whole exchanges; here are those that are no sequence of bytes.
"""

from __future__ import annotations

import logging
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.conftest import LOOPS
from tests.server.support import DEADLINE, GatedApp
from tests.server.wire.apps import app
from tests.server.wire.exchange import HERE, Turn, converse, exchanges, parse_turns
from waitress_async import create_server

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

TRANSPORTS: Final = ("tcp", "unix")


class Served:
    """A server that listens on both kinds of sockets, run by a thread."""

    def __init__(self, app: WSGIApplication, loop: str, settings: Mapping[str, Any]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        path = f"{self._folder.name}/socket"
        self._server = create_server(app, listen=["127.0.0.1:0", f"unix:{path}"], loop=loop, **settings)
        host, port = self._server.effective_listen[0]
        self.path = path
        self.address = host, int(port)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()

    def connect(self, transport: str) -> socket.socket:
        unix = transport == "unix"
        sock = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        sock.settimeout(DEADLINE)
        try:
            sock.connect(self.path if unix else self.address)
        except BaseException:
            sock.close()
            raise
        return sock

    def ask(self, transport: str, path: str) -> bytes:
        """The body of the answer to a GET."""
        with self.connect(transport) as sock:
            outcome = converse(sock, (Turn(get(path), b""),))
        assert outcome.ends == "kept"
        return outcome.answers[0].partition(b"\r\n\r\n")[2]

    def close(self) -> None:
        self._server.close()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        assert not Path(self.path).exists()
        self._folder.cleanup()


class Errors(logging.Handler):
    """What was logged, from its level on."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


Serve = Callable[..., Served]


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """`serve(app, loop, settings)`: a server, the same one each time, whose loop must be told of no error."""
    running: dict[tuple[object, ...], Served] = {}

    def start(app: WSGIApplication, loop: str, settings: Mapping[str, Any] | None = None) -> Served:
        key = (app, loop, *(settings or {}).items())
        if key not in running:
            running[key] = Served(app, loop, settings or {})
        return running[key]

    errors = Errors(logging.ERROR)
    logging.getLogger("asyncio").addHandler(errors)
    yield start
    for served in running.values():
        served.close()
    logging.getLogger("asyncio").removeHandler(errors)
    assert errors.messages == []


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()


over_both = pytest.mark.parametrize("transport", TRANSPORTS)
on_both = pytest.mark.parametrize("loop", LOOPS)


# -- exchanges


def test_each_file_is_in_the_table() -> None:
    """A file that no line of the table tells of would be tested by nothing."""
    files = {path.name for path in (HERE / "exchanges").iterdir()}
    assert files == {f"{name}.exchange" for name in exchanges()}


@on_both
@over_both
@pytest.mark.parametrize("name", exchanges())
def test_exchange(serve: Serve, name: str, transport: str, loop: str) -> None:
    exchange = exchanges()[name]
    served = serve(app, loop, exchange.settings)
    with served.connect(transport) as sock:
        outcome = converse(sock, exchange.turns)
    for answer, turn in zip(outcome.answers, exchange.turns, strict=True):
        assert turn.pattern.fullmatch(answer), answer
    ends = exchange.ends
    if transport == "unix" and ends == "reset":
        ends = "closed"  # a unix socket cannot be reset: there the cut cannot be told from an end
    assert outcome.ends == ends


@pytest.mark.parametrize(
    ("expected", "received", "fits"),
    [
        (b"Date: *\r\n\r\n*\n", b"Date: now\r\n\r\nany\n", True),
        (b"Date: *\r\n\r\n", b"Date: now\r\nX: y\r\n\r\n", False),
        (b"a**z", b"a\r\n*\nz", True),
        (b"a**z", b"a\nzz", True),
        (b"a.", b"ab", False),
    ],
)
def test_what_fits(expected: bytes, received: bytes, fits: bool) -> None:
    assert bool(Turn(b"", expected).pattern.fullmatch(received)) is fits


@pytest.mark.parametrize("content", [b"", b">>>\nsent\n", b"<<<\nx\n>>>\ny\n", b"x\n>>>\ny\n<<<\nz\n"])
def test_what_is_no_exchange(content: bytes) -> None:
    with pytest.raises(ValueError, match="an exchange is"):
        parse_turns(content)


def test_messages_keep_their_own_line_ends() -> None:
    assert parse_turns(b">>>\na\r\n\r\n\n<<<\nb\n\n>>>\n\n<<<\nc\n") == (
        Turn(b"a\r\n\r\n", b"b\n"),
        Turn(b"", b"c"),
    )


# -- the rest


@on_both
@over_both
def test_the_two_ends_as_the_app_sees_them(serve: Serve, transport: str, loop: str) -> None:
    served = serve(app, loop)
    keys = ("REMOTE_ADDR", "REMOTE_HOST", "SERVER_PORT", "SERVER_NAME")
    seen = [served.ask(transport, f"/environ/{key}").decode() for key in keys]
    port = served.ask(transport, "/environ/REMOTE_PORT")
    if transport == "unix":
        assert seen == ["localhost", "localhost", "80", "waitress.invalid"]
        assert port == b""
    else:
        assert seen == ["127.0.0.1", "127.0.0.1", str(served.address[1]), "waitress.invalid"]
        assert int(port) > 0


@on_both
@pytest.mark.parametrize(("ident", "software"), [("", b"waitress_async"), ("mine", b"mine")])
def test_the_software_is_told_without_a_server_header_too(
    serve: Serve, ident: str, software: bytes, loop: str
) -> None:
    """PEP 3333 asks for a string; of waitress it is None then."""
    assert serve(app, loop, {"ident": ident}).ask("tcp", "/environ/SERVER_SOFTWARE") == software


@on_both
@over_both
@pytest.mark.parametrize("length", ["none", "3000000"])
def test_a_large_file(serve: Serve, transport: str, length: str, loop: str) -> None:
    assert serve(app, loop).ask(transport, f"/body/file/{length}/3000000") == b"0123456789" * 300_000


@on_both
@over_both
def test_many_clients_at_once(serve: Serve, transport: str, loop: str) -> None:
    served = serve(app, loop)
    clients = [served.connect(transport) for _ in range(50)]
    try:
        for number, client in enumerate(clients):
            client.sendall(get(f"/echo/{number}"))
        for number, client in reversed(list(enumerate(clients))):
            answer = converse(client, (Turn(b"", b""),)).answers[0]
            assert answer.endswith(f"\r\n\r\nGET /{number} HTTP/1.1 -\n".encode())
    finally:
        for client in clients:
            client.close()


class SleepyApp:
    """`app`, but for `/sleepy`, which waits until it is woken."""

    def __init__(self) -> None:
        self.gated = GatedApp()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        sleepy = environ["PATH_INFO"] == "/sleepy"
        return (self.gated if sleepy else app)(environ, start_response)


@on_both
@over_both
def test_a_request_that_takes_long_holds_up_no_other(serve: Serve, transport: str, loop: str) -> None:
    sleepy = SleepyApp()
    served = serve(sleepy, loop)
    with served.connect(transport) as client:
        client.sendall(get("/sleepy"))
        sleepy.gated.wait_entered()
        try:
            assert served.ask(transport, "/echo/x") == b"GET /x HTTP/1.1 -\n"
            assert sleepy.gated.done == []
        finally:
            sleepy.gated.let_go()
        answer = converse(client, (Turn(b"", b""),)).answers[0]
    assert answer.endswith(b"\r\n\r\n/sleepy")
