"""A WSGI app whose threads can be kept busy: latency.py asks it for hello meanwhile."""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from apps import hello
from work_apps import SLEPT as BUSY

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment


def busy(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/compute":
        until = time.thread_time() + BUSY
        while time.thread_time() < until:
            sum(range(100))
    elif environ["PATH_INFO"] == "/wait":
        time.sleep(BUSY)
    return hello(environ, start_response)
