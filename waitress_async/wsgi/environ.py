"""The environ of PEP 3333: what all requests of a server share, those of a connection, and each has alone."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any, BinaryIO, Final, TextIO

from waitress_async.buffers import ReadOnlyFileBasedBuffer, SpooledBody
from waitress_async.http import Request

Environ = dict[str, Any]

# What is not a server's, and is always there.
_OWN: Final = (
    "SERVER_PORT",
    "REMOTE_ADDR",
    "REMOTE_HOST",
    "REMOTE_PORT",
    "wsgi.url_scheme",
    "wsgi.errors",
    "REQUEST_METHOD",
    "REQUEST_URI",
    "PATH_INFO",
    "QUERY_STRING",
    "SERVER_PROTOCOL",
    "wsgi.input",
    "wsgi.early_hints",
    "waitress.client_disconnected",
    "waitress_async.on_disconnect",
    "waitress_async.stream",
)

# Characters of a path that are put into a log line.
_LOGGED: Final = 1_000


def server_environ(
    *,
    server_name: str,
    script_name: str,
    server_software: str,
    shutting_down: Callable[[], bool],
    state: Any,
    from_thread: object,
    empty_body: object,
) -> Environ:
    """What all requests of one server share. Copied for each, so it must hold nothing mutable of ours.

    It has the keys, too, for which each connection or request has a value of its own, so that a copy need not
    grow for them.

    `state` is the program's own, the same object for all requests; `empty_body` the awaitable reader of those
    without a body.
    """
    return {
        "SERVER_NAME": server_name,
        "SERVER_SOFTWARE": server_software,
        "SCRIPT_NAME": script_name,
        "wsgi.version": (1, 0),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": ReadOnlyFileBasedBuffer,
        "wsgi.input_terminated": True,
        "waitress_async.shutting_down": shutting_down,
        "waitress_async.state": state,
        "waitress_async.from_thread": from_thread,
        "waitress_async.spool": SpooledBody(BytesIO(), None, 0),
        "waitress_async.body": empty_body,
        **dict.fromkeys(_OWN),
    }


def connection_environ(
    *, server_port: str, url_scheme: str, remote_addr: str, remote_port: str, errors: TextIO
) -> Environ:
    """What all requests of one connection share, beyond what those of its server do."""
    return {
        "SERVER_PORT": server_port,
        "REMOTE_ADDR": remote_addr,
        "REMOTE_PORT": remote_port,
        "wsgi.url_scheme": url_scheme,
        "wsgi.errors": errors,
    }


def path_below(prefix: str, path: str) -> str:
    """The PATH_INFO of a request for `path` where `prefix` is the SCRIPT_NAME."""
    if path == prefix or path.startswith(prefix + "/"):
        return path[len(prefix) :]
    return path  # others are served too, as waitress does


def logged_path(path: str) -> str:
    """A path, escaped and cut for a log line."""
    return ascii(path[:_LOGGED])[1:-1] + ("..." if len(path) > _LOGGED else "")


class Environs:
    """Makes the environs of one connection's requests, one after the other, in any thread."""

    __slots__ = ("_last", "_server", "_shared", "connection")

    def __init__(self, server: Environ, connection: Environ) -> None:
        """What `server_environ` and `connection_environ` have made. They are left alone."""
        self._server = server
        self.connection = connection
        self._last: Request | None = None
        self._shared: Environ | None = None  # what requests equal to the last one share

    @property
    def base(self) -> Environ:
        """What the requests share, in a dict of its own."""
        return self._server | self.connection

    def make(
        self,
        request: Request,
        body: BinaryIO,
        client_disconnected: Callable[[], bool],
        on_disconnect: Callable[[Callable[[], object]], object],
    ) -> Environ:
        """The environ of a request that is read from `body`.

        No field of a client can override another key: all their names begin with HTTP_ but for CONTENT_TYPE
        and CONTENT_LENGTH. What a trusted proxy tells does override (`ProxyHeaders`).
        """
        if request is not self._last:
            environ = self._share(request)
            self._last = request if request.may_repeat else None
            self._shared = None
        elif self._shared is None:  # worth to be kept: it has come twice
            self._shared = self._share(request)
            environ = self._shared.copy()
        else:
            environ = self._shared.copy()
        environ["wsgi.input"] = body
        environ["waitress.client_disconnected"] = client_disconnected
        environ["waitress_async.on_disconnect"] = on_disconnect
        return environ

    def _share(self, request: Request) -> Environ:
        environ = self._server.copy()
        environ.update(self.connection)
        environ["REMOTE_HOST"] = self.connection["REMOTE_ADDR"]
        environ.update(request.fields)
        environ["REQUEST_METHOD"] = request.method
        environ["REQUEST_URI"] = request.target
        path = request.path
        if prefix := environ["SCRIPT_NAME"]:
            path = path_below(prefix, path)
        environ["PATH_INFO"] = path
        environ["QUERY_STRING"] = request.query
        environ["SERVER_PROTOCOL"] = "HTTP/1.1" if request.http_11 else "HTTP/1.0"
        return environ


def add_complete_body(environ: Environ, body: SpooledBody) -> None:
    """Say of a body that it is complete. A chunked one gets a CONTENT_LENGTH, for apps read no further."""
    environ["CONTENT_LENGTH"] = str(body.size)
    environ["waitress_async.spool"] = body
    environ["waitress_async.body"] = None


def add_streamed_body(environ: Environ, reader: object) -> None:
    """Say of a body that it is still coming. `reader` is its awaitable reader."""
    environ["waitress_async.spool"] = None
    environ["waitress_async.body"] = reader
