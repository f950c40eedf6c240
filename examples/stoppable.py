"""A WSGI app behind a real socket for as long as a test lasts, in place of WebTest's StopableWSGIServer.

    with StoppableServer.create(app) as server:
        page = urllib.request.urlopen(server.application_url)

``python examples/stoppable.py`` does that with an app of one page. Logging stays the tests' own.
"""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from waitress_async import create_server
from waitress_async.server import BlockingServer

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


class StoppableServer:
    """A server in a thread of its own, on a free port of 127.0.0.1 if nothing else is said."""

    def __init__(self, server: BlockingServer) -> None:
        self.server = server
        self._thread = threading.Thread(target=server.run, name="stoppable-server", daemon=True)
        self._thread.start()

    @classmethod
    def create(cls, app: WSGIApplication, **settings: object) -> Self:
        """Serve `app`. `settings` are those of `create_server`, and so are the errors."""
        defaults = {"host": "127.0.0.1", "port": 0, "expose_tracebacks": True, "graceful_timeout": 5}
        return cls(create_server(app, **{**defaults, **settings}))

    @property
    def application_url(self) -> str:
        """With a slash at its end."""
        host, port = self.server.effective_host, self.server.effective_port
        return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"

    def wait(self, timeout: float = 10) -> bool:
        """Whether it serves, within `timeout` seconds. It need not be asked: a client waits by itself.

        The port is open when `create` returns, so no request is refused, however early.
        """
        address = self.server.effective_host, int(self.server.effective_port)
        try:
            with socket.create_connection(address, timeout) as probe:
                probe.sendall(b"no request\r\n\r\n")  # which the server answers itself: the app sees nothing
                return probe.recv(1) == b"H"
        except OSError:
            return False

    def shutdown(self) -> bool:
        """Stop, and return when its thread has ended: requests in flight are answered. Twice is fine."""
        self.server.close()
        self._thread.join()
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"You asked for {environ['PATH_INFO']}\n".encode("latin-1")]


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        return str(response.read(), "utf-8")


if __name__ == "__main__":
    with StoppableServer.create(app) as server:
        print(fetch(f"{server.application_url}page"), end="")
