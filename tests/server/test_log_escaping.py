"""What comes from the network is escaped and bounded before it is logged, whoever logs it.

The exceptions of the app are its own: logging prints them as they are, behind the line that is ours.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import tempfile
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ServeInThread
from tests.server.peers import linux_only
from tests.server.support import Client, eventually, hello, request
from tests.wsgi.logs import Log, strict_log

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

# What somebody would have in the log: lines of their own, colours, bells, other scripts, formats.
NASTY = b"\n2030-01-01 CRITICAL waitress_async: forged\r\x1b[31m\x07\x00\x7f\x9b\xe2\x80\xae\xff%s%n{0}"
QUOTED = "".join(f"%{byte:02X}" for byte in NASTY)

# Characters in one line of the log, of which a path or a field takes the most.
LONGEST = 5_000


@pytest.fixture
def log() -> Iterator[Log]:
    logger = logging.getLogger("waitress_async")
    before = logger.level
    logger.setLevel(logging.INFO)
    with strict_log(logging.WARNING) as log:
        yield log
    logger.setLevel(before)


def assert_tame(line: str) -> None:
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < LONGEST


# -- paths


def short(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", "9")])
    return [b"1"]


def long(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", "1")])
    return [b"123"]


def bodiless(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("204 No Content", [])
    return [b"123"]


def failing(_environ: WSGIEnvironment, _start_response: StartResponse) -> Iterable[bytes]:
    raise ValueError


class FailingToClose:
    def __init__(self, _environ: WSGIEnvironment, start_response: StartResponse) -> None:
        start_response("200 OK", [])

    def __iter__(self) -> Iterator[bytes]:
        return iter([b"1"])

    def close(self) -> None:
        raise ValueError


APPS: dict[str, Any] = {
    "WARNING waitress_async: application returned too few bytes ": short,
    "WARNING waitress_async: application-written content exceeded ": long,
    "WARNING waitress_async: application-written content was ignored ": bodiless,
    "ERROR waitress_async: Exception while serving ": failing,
    "ERROR waitress_async: Exception in close() while serving ": FailingToClose,
}


@pytest.mark.parametrize("start", APPS)
@pytest.mark.parametrize("path", ["/" + QUOTED, "/" + "%FF" * 20_000], ids=["nasty", "huge"])
def test_a_path(serve_in_thread: ServeInThread, log: Log, start: str, path: str) -> None:
    server = serve_in_thread(APPS[start])
    with Client(server.address) as client:
        client.send(request(path, "Connection: close\r\n"))
        client.rest()
    line, *traceback = log.take(start).split("\n")
    assert_tame(line)
    assert r"/\xff\xff" in line or r"/\n2030-01-01 CRITICAL waitress_async: forged\r\x1b[31m" in line
    assert all("2030" not in more for more in traceback)


@pytest.mark.parametrize("reflected", [NASTY, b"\xff" * 60_000], ids=["nasty", "huge"])
@pytest.mark.parametrize("where", ["status", "name", "value"])
def test_what_an_app_reflects_into_a_head(
    serve_in_thread: ServeInThread, log: Log, reflected: bytes, where: str
) -> None:
    """It may not be sent, and the refusal quotes it."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        text = environ["wsgi.input"].read().decode("latin-1") + "\n"
        status = "200 " + text if where == "status" else "200 OK"
        start_response(status, [(text if where == "name" else "X", text if where == "value" else "1")])
        return []

    server = serve_in_thread(app)
    with Client(server.address) as client:
        client.send(request(method="POST", body=reflected))
        assert client.receive().status == 500
    for line in log.take("ERROR waitress_async: Exception while serving /\n").rstrip("\n").split("\n"):
        assert_tame(line.replace("^", ""))


def test_an_exception_of_the_app_is_printed_as_it_is(serve_in_thread: ServeInThread, log: Log) -> None:
    """It stands behind our line, as the last of its traceback, where whoever reads a log expects anything."""

    def app(environ: WSGIEnvironment, _start_response: StartResponse) -> Iterable[bytes]:
        raise ValueError(environ["PATH_INFO"])

    server = serve_in_thread(app)
    with Client(server.address) as client:
        assert client.get("/" + QUOTED).status == 500
    line, second, *_ = (record := log.take("ERROR waitress_async: Exception while serving /")).split("\n")
    assert_tame(line)
    assert second == "Traceback (most recent call last):"
    assert record.endswith("ValueError: /" + NASTY.decode("latin-1"))


# -- who sends, and what for


def proxy_headers(value: bytes) -> bytes:
    return b"GET / HTTP/1.1\r\nHost: a\r\nForwarded: for=" + value + b"\r\n\r\n"


FORWARDED = {"trusted_proxy": "127.0.0.1", "trusted_proxy_headers": "forwarded"}

# Settings, and what is sent, for each answer that may come with a line in the log. A field cannot hold
# control characters, for it is refused then; all else it can.
SENT: dict[str, tuple[dict[str, Any], bytes]] = {
    "method": ({}, NASTY + b" / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "target": ({}, b"GET /" + NASTY + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
    "version": ({}, b"GET / HTTP/" + NASTY + b"\r\nHost: a\r\n\r\n"),
    "host": ({}, b"GET / HTTP/1.1\r\nHost: " + NASTY + b"\r\n\r\n"),
    "field name": ({}, b"GET / HTTP/1.1\r\nHost: a\r\n" + NASTY + b": 1\r\n\r\n"),
    "field value": ({}, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + NASTY + b"\r\n\r\n"),
    "length": ({}, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + NASTY + b"\r\n\r\n"),
    "coding": ({}, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: " + NASTY + b"\r\n\r\n"),
    "chunk": ({}, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + NASTY + b"\r\n"),
    "expectation": ({}, b"POST / HTTP/1.1\r\nHost: a\r\nExpect: \xff\x80%s\r\nContent-Length: 1\r\n\r\n"),
    "forwarded": (FORWARDED, proxy_headers(b"\xff\x80%s{0}\t\xe2\x80\xae")),
    "huge forwarded": (FORWARDED, proxy_headers(b"\xff" * 60_000)),
    "x-forwarded-for": (
        {"trusted_proxy": "127.0.0.1", "trusted_proxy_headers": "x-forwarded-for", "trusted_proxy_count": 1},
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: \xff\x80%s\r\n\r\n",
    ),
    "untrusted": (
        {"clear_untrusted_proxy_headers": True, "log_untrusted_proxy_headers": True},
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: \xff\x80%s\r\n\r\n",
    ),
    "PROXY, version 1": ({"proxy_protocol": "v1"}, b"PROXY TCP4 \x1b[31m\xff%s 1 2 3\r\n"),
    "PROXY, no line": ({"proxy_protocol": "v1"}, b"PROXY UNKNOWN" + NASTY + b"\r\n"),
    "PROXY, version 2": (
        {"proxy_protocol": "v2"},
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x08" + NASTY[:8],
    ),
    "no PROXY": ({"proxy_protocol": "auto"}, NASTY),
    "too late": ({"header_timeout": 0.2}, b"GET /\xff\x80%s"),
}


class Everything(logging.Handler):
    """What is logged, by whomever; but for asyncio's debug lines, which show sockets as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != "asyncio" or record.levelno > logging.DEBUG:
            self.lines.append(self.format(record))


@pytest.fixture
def everything() -> Iterator[Everything]:
    handler = Everything()
    loggers = [logging.getLogger(), logging.getLogger("waitress_async"), logging.getLogger("asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    loggers[0].addHandler(handler)
    yield handler
    loggers[0].removeHandler(handler)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.mark.parametrize("what", SENT)
def test_what_is_sent(serve_in_thread: ServeInThread, everything: Everything, what: str) -> None:
    """In whatever it says, each record is one line, in ASCII, and not long."""
    settings, sent = SENT[what]
    server = serve_in_thread(hello, **settings)
    with Client(server.address) as client:
        client.send(sent)
        with contextlib.suppress(OSError):  # it may have been closed by then
            if what != "too late":
                client.half_close()
            client.rest()
    server.stop()
    for line in everything.lines:
        assert_tame(line)
        assert "CRITICAL" not in line or r"\n2030" in line
    told = [line for line in everything.lines if line.startswith(("WARNING waitress_async", "INFO waitress"))]
    assert any("127.0.0.1" in line or "untrusted" in line for line in told[1:]) is (what in TOLD)


# Those of which the log has something to say, and so the others it says nothing of.
TOLD = {what for what in SENT if "PROXY" in what or "forwarded" in what} | {"untrusted", "too late"}


@linux_only
@pytest.mark.parametrize("settings", [{"proxy_protocol": "v1"}, {"header_timeout": 0.2}], ids=str)
def test_a_peer_on_a_unix_socket(
    serve_in_thread: ServeInThread, everything: Everything, settings: dict[str, Any]
) -> None:
    """Its address is what it likes."""
    with tempfile.TemporaryDirectory(prefix="wa-") as folder:
        serve_in_thread(hello, listen=f"unix:{folder}/s", **settings)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(os.fsencode(folder) + b"/\n\x1b[31m\xff%s")
            sock.connect(f"{folder}/s")
            sock.settimeout(20)
            sock.send(b"P")
            if "proxy_protocol" in settings:
                sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1_000).startswith((b"HTTP/1.1 408 ", b""))
        eventually(lambda: any(tells_of_peer(line) for line in everything.lines), "it was told of")
    for line in everything.lines:
        assert_tame(line)


def tells_of_peer(line: str) -> bool:
    return "PROXY header: " in line or "header_timeout: " in line
