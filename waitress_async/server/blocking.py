"""A server for programs without asyncio: bound when it is made, run by one thread, closed by any."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from waitress_async.errors import NotWSGIError
from waitress_async.server.listeners import ListeningSocket, look_up, open_sockets
from waitress_async.server.run import run, unclaimed_signals
from waitress_async.server.server import Server
from waitress_async.settings import Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

logger = logging.getLogger("waitress_async")


class BlockingServer:
    """What `create_server` gives: it listens already, and `run()` serves. All methods are for any thread."""

    def __init__(self, app: WSGIApplication, settings: Settings) -> None:
        """Listens. Raises OSError, whose `strerror` names the place, and NotWSGIError."""
        self._settings = settings
        self._server = Server(app, settings)
        self._opened: list[list[ListeningSocket]] = []  # once; whoever pops it has them
        sockets = open_sockets(settings, look_up(settings))
        self._opened.append(sockets)
        self.effective_listen: list[tuple[str, int | str]] = [
            ("unix", address) if isinstance(address, str) else address[:2]
            for address in (listening.address for listening in sockets)
        ]

    @property
    def effective_host(self) -> str:
        """The address that is listened on, the first if there are several; `unix` for a unix socket."""
        return self.effective_listen[0][0]

    @property
    def effective_port(self) -> int | str:
        """The port that belongs to `effective_host`; the path of a unix socket."""
        return self.effective_listen[0][1]

    def print_listen(self, format_str: str) -> None:
        """Log `format_str.format(host, port)` for each place that is listened on."""
        for host, port in self.effective_listen:
            logger.info(format_str.format(f"[{host}]" if ":" in host else host, port))

    def run(self) -> None:
        """Serve until `close()`, or a SIGINT or SIGTERM in the main thread for which there is no handler.

        Returns when requests in flight are answered, at the latest after `graceful_timeout`; at once if it
        was closed or run before. Ctrl-C is no exception here, as in waitress. Raises OSError for a folder in
        which temporary files cannot be made, SettingsError for a loop that is not installed, LifespanError,
        and RuntimeError where a loop runs already.
        """
        sockets = self._take()
        if sockets is None:
            return
        try:
            self._server.take_over(sockets)
            run(self._server, self._settings, stop_signals=unclaimed_signals())
        except KeyboardInterrupt:
            pass  # it came before there was a handler, or after
        finally:
            _close_all(sockets)  # that were not taken over

    def close(self) -> None:
        """Stop listening, and have `run()` end gracefully. Returns at once; twice is fine."""
        sockets = self._take()
        if sockets is None:
            self._server.request_stop()
        else:
            _close_all(sockets)

    def _take(self) -> list[ListeningSocket] | None:
        """The open sockets, for whoever asks first."""
        try:
            return self._opened.pop()
        except IndexError:
            return None


def _close_all(sockets: list[ListeningSocket]) -> None:
    for listening in sockets:
        listening.close()


def create_server(app: WSGIApplication, **options: object) -> BlockingServer:
    """Listen for `app`, and return the server, whose `run()` serves. `options` are the settings by keyword.

    Raises SettingsError (a ValueError), NotWSGIError (a TypeError and a ValueError) and OSError.
    """
    if app is None:
        raise NotWSGIError(
            'The "app" passed to ``create_server`` was ``None``. You forgot to return a WSGI app within your '
            "application."
        )
    return BlockingServer(app, Settings.from_keywords(**options))
