"""The WSGI apps of the workloads that need more than hello."""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from apps import HELLO_HEADERS, hello
from apps import part as content

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

COMPUTED = 0.001  # seconds
SLEPT = 0.010

MEBIBYTE = content(0, 0, 1_000_000) + content(0, 1_000_000, 48_576)


def compute(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """A millisecond of this thread's own work, in Python."""
    until = time.thread_time() + COMPUTED
    while time.thread_time() < until:
        sum(range(100))
    return hello(environ, start_response)


def sleep(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """What waits for a database."""
    time.sleep(SLEPT)
    return hello(environ, start_response)


def form(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """Takes a form, and says how long it was."""
    answer = b"%d" % len(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]


def mebibyte(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    start_response("200 OK", [HELLO_HEADERS[0], ("Content-Length", str(len(MEBIBYTE)))])
    return [MEBIBYTE]
