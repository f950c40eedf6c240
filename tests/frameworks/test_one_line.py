"""Scripts as waitress's and the frameworks' documents have them, of which one line is changed: the import."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.frameworks.command import TIMEOUT
from tests.frameworks.program import Program
from tests.server.support import eventually

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")

FLASK = """
from flask import Flask, request
from waitress import serve

app = Flask(__name__)
app.config["PROPAGATE_EXCEPTIONS"] = True

@app.get("/")
def page():
    return {"url": request.url, "client": request.remote_addr}

@app.get("/fail")
def fail():
    raise LookupError("on purpose")
"""

DJANGO = """
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse
from django.urls import path
from waitress import serve

def page(request):
    return JsonResponse({"url": request.build_absolute_uri(), "client": request.META["REMOTE_ADDR"]})

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], USE_X_FORWARDED_HOST=False)
urlpatterns = [path("", page)]
app = get_wsgi_application()
"""

LOGGING = """
import logging
logging.basicConfig(level=logging.INFO)
"""

PROXIED = {
    "X-Forwarded-For": "192.0.2.7",
    "X-Forwarded-Host": "shop.example",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Port": "8443",
}


def script(framework: str, arguments: str, *, logging: bool = True) -> str:
    text = f"{framework}{LOGGING if logging else ''}\nserve(app, {arguments})\nprint('returned')\n"
    assert text.count("from waitress import serve\n") == 1
    return text.replace("from waitress import serve\n", "from waitress_async import serve\n")


@dataclass
class Case:
    """A call of `serve`, and what its page answers; `{at}` is where it listens."""

    framework: str
    arguments: str
    url: str = "http://{at}/"
    client: str = "127.0.0.1"
    path: str = "/"
    sent: dict[str, str] = field(default_factory=dict)
    ident: str | None = "waitress_async"
    said: list[str] = field(default_factory=list)


CASES = {
    "host and port": Case(FLASK, "host='127.0.0.1', port=0"),
    "a place to listen, and a scheme": Case(
        FLASK,
        "listen='127.0.0.1:0', threads=8, url_scheme='https', url_prefix='/shop', ident=None",
        path="/shop/",
        url="https://{at}/shop/",
        ident=None,
    ),
    "behind a proxy": Case(
        FLASK,
        "host='127.0.0.1', port='0', ident='shop', trusted_proxy='127.0.0.1', trusted_proxy_count=1, "
        "trusted_proxy_headers='x-forwarded-for x-forwarded-host x-forwarded-proto x-forwarded-port', "
        "clear_untrusted_proxy_headers=True, log_untrusted_proxy_headers=True",
        sent=PROXIED,
        url="https://shop.example:8443/",
        client="192.0.2.7",
        ident="shop",
    ),
    "behind a proxy with Forwarded": Case(
        DJANGO,
        "listen='127.0.0.1:0', trusted_proxy='*', trusted_proxy_headers={'forwarded'}",
        sent={"Forwarded": 'for=192.0.2.7;proto=https;host="shop.example"', **PROXIED},
        url="https://shop.example/",
        client="192.0.2.7",
    ),
    "every number": Case(
        DJANGO,
        "host='127.0.0.1', port=0, threads=6, backlog=2048, connection_limit=200, cleanup_interval=10, "
        "channel_timeout=60, asyncore_use_poll=True, asyncore_loop_timeout=5, recv_bytes=65536, "
        "send_bytes=18000, inbuf_overflow=1048576, outbuf_overflow=1048576, log_socket_errors=False, "
        "channel_request_lookahead=5, max_request_header_size=262144, max_request_body_size=1073741824, "
        "expose_tracebacks=True",
        said=[
            "WARNING:waitress_async:Settings that have no effect here: recv_bytes, send_bytes, "
            "cleanup_interval, log_socket_errors, asyncore_loop_timeout, asyncore_use_poll, "
            "channel_request_lookahead"
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line(name: str) -> None:
    case = CASES[name]
    with Program("-c", script(case.framework, case.arguments)) as program, requests.Session() as session:
        session.trust_env = False
        url = program.serving()
        for _ in range(2):
            answer = session.get(url + case.path, headers=case.sent, timeout=TIMEOUT)
            expected: dict[str, Any] = {
                "url": case.url.format(at=url.removeprefix("http://")),
                "client": case.client,
            }
            assert answer.json() == expected
            assert answer.headers.get("Server") == case.ident
        assert program.end(signal.SIGINT) == (0, "returned\n", case.said)


@pytest.mark.parametrize("exposed", [True, False])
def test_expose_tracebacks(exposed: bool) -> None:
    text = script(FLASK, f"host='127.0.0.1', port=0, expose_tracebacks={exposed}")
    with Program("-c", text) as program:
        answer = requests.get(f"{program.serving()}/fail", timeout=TIMEOUT)
        assert answer.status_code == 500
        assert ("LookupError: on purpose" in answer.text) == exposed
        status, out, lines = program.end(signal.SIGINT)
    assert (status, out) == (0, "returned\n")
    assert lines[0] == "ERROR:waitress_async:Exception while serving /fail"
    assert lines[-1] == "LookupError: on purpose"


def test_a_program_without_logging_is_told_of_warnings_alone() -> None:
    """By Python's last resort, from WARNING on: to configure logging is the program's."""
    with tempfile.TemporaryDirectory(prefix="wa-") as folder:
        place = f"{folder}/s"
        arguments = f"unix_socket={place!r}, unix_socket_perms='600', asyncore_use_poll=True"
        with Program("-c", script(FLASK, arguments, logging=False)) as program:
            eventually(lambda: os.path.exists(place) or program.process.poll() is not None, "it listens")
            assert Path(place).stat().st_mode & 0o777 == 0o600
            with socket.socket(socket.AF_UNIX) as sock:
                eventually(lambda: sock.connect_ex(place) == 0, "it takes connections")
                sock.sendall(b"GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n")
                answer = b"".join(iter(lambda: sock.recv(65_536), b""))
            assert b'"url":"http://shop.example/"' in answer
            said = ["Settings that have no effect here: asyncore_use_poll"]
            assert program.end(signal.SIGINT) == (0, "returned\n", said)
        assert not os.path.exists(place)
