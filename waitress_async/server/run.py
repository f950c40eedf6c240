"""A server as a whole program: its own loop, stopped by signals where there are any."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from waitress_async.errors import ServerClosed, SettingsError
from waitress_async.server.server import Server
from waitress_async.settings import Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


def serve(app: WSGIApplication, **options: object) -> None:
    """Serve `app` until SIGINT or SIGTERM. `options` are the settings by keyword.

    Makes a loop of its own (uvloop where it is installed). The first signal stops gracefully, a second
    one at once. Raises SettingsError (a ValueError) and OSError. Configures no logging.
    """
    run(app, Settings.from_keywords(**options))


async def serve_async(app: WSGIApplication, **options: object) -> None:
    """Serve `app` on the running loop until cancelled, then stop gracefully. Handles no signals."""
    async with Server(app, **options) as server:
        await server.serve_forever()


def run(app: WSGIApplication, settings: Settings) -> None:
    """`serve` with settings that are made already."""
    with asyncio.Runner(loop_factory=_loop_factory(settings.loop)) as runner:
        runner.run(_serve_until_signalled(app, settings))


async def _serve_until_signalled(app: WSGIApplication, settings: Settings) -> None:
    server = Server(app, settings)
    with _signals_stop(server):  # from before it says that it serves
        try:
            await server.start()
        except ServerClosed:
            return  # a signal came first
        try:
            await server.serve_forever()
        finally:
            await server.stop()


@contextlib.contextmanager
def _signals_stop(server: Server) -> Iterator[None]:
    """SIGINT and SIGTERM stop the server: once gracefully, twice at once."""
    loop = asyncio.get_running_loop()
    signalled = False

    def stop() -> None:
        nonlocal signalled
        server.request_stop(0 if signalled else None)
        signalled = True

    handled = []
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, stop)
            except (NotImplementedError, RuntimeError, ValueError):
                continue  # not on this system, or not in this thread
            handled.append(number)
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if name != "asyncio":
        try:
            import uvloop
        except ImportError:
            if name == "uvloop":
                raise SettingsError("loop: uvloop is not installed") from None
        else:
            return uvloop.new_event_loop
    return None
