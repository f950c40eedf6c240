"""A server as a whole program: its own loop, stopped by signals where there are any."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from waitress_async.bridge import Wakeup, in_thread
from waitress_async.errors import ServerClosed, SettingsError
from waitress_async.server.listeners import url_of
from waitress_async.server.server import Server
from waitress_async.server.systemd import Notifier
from waitress_async.settings import Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


def serve(app: WSGIApplication, **options: object) -> None:
    """Serve `app` until SIGINT or SIGTERM. `options` are the settings by keyword.

    Makes a loop of its own (uvloop where it is installed). The first signal stops gracefully, a second
    one at once. Raises SettingsError (a ValueError), NotWSGIError (a TypeError) and OSError. Configures no
    logging.
    """
    settings = Settings.from_keywords(**options)
    run(Server(app, settings), settings)


async def serve_async(app: WSGIApplication, **options: object) -> None:
    """Serve `app` on the running loop until cancelled, then stop gracefully. Handles no signals."""
    async with Server(app, **options) as server:
        await server.serve_forever()


def run(
    server: Server,
    settings: Settings,
    *,
    notifier: Notifier | None = None,
    reload: Callable[[], object] | None = None,
) -> None:
    """Run `server`, which is new, on a loop of its own, in any thread; in the main one signals stop it.

    `notifier` is told how it goes, and closed. `reload()` is called in a thread when SIGHUP comes; it must
    not raise. Raises SettingsError for a loop that is not installed, and OSError.
    """
    with (
        contextlib.closing(_Manager(notifier, settings)) as manager,
        asyncio.Runner(loop_factory=_loop_factory(settings.loop)) as runner,
    ):
        runner.run(_serve_until_signalled(server, manager, reload))


async def _serve_until_signalled(
    server: Server, manager: _Manager, reload: Callable[[], object] | None
) -> None:
    with _signals(server, manager, reload):  # from before it says that it serves
        try:
            await server.start()
        except ServerClosed:
            return  # a signal came first
        try:
            manager.ready(server)
            await server.serve_forever()
        finally:
            manager.stopping()
            await server.stop()


class _Manager:
    """The service manager, if there is one, and what it is told. Loop's thread, but for `close`."""

    def __init__(self, notifier: Notifier | None, settings: Settings) -> None:
        self._notifier = notifier
        self._settings = settings
        self._status = ""  # while it serves

    def ready(self, server: Server) -> None:
        """It serves. From now on the watchdog is fed, by the loop: one that is stuck is noticed."""
        urls = (url_of(address, self._settings.url_scheme) for address in server.addresses)
        self._status = f"Serving on {', '.join(urls)}"
        if self._notifier is not None:
            self._notifier.ready(self._status)
            self._feed_watchdog()

    def stopping(self) -> None:
        """It serves no more, from the first call on; a reload that ends now is not told."""
        if self._notifier is not None and self._status:
            self._notifier.stopping("Finishing the requests in flight")
        self._status = ""

    async def reload(self, reload: Callable[[], object]) -> None:
        if self._notifier is not None and self._status:
            self._notifier.reloading("Reloading")
        await in_thread(Wakeup(asyncio.get_running_loop()), "waitress_async-reload", reload)
        if self._notifier is not None and self._status:
            self._notifier.ready(self._status)

    def _feed_watchdog(self) -> None:
        notifier = self._notifier
        if notifier is not None and notifier.watchdog_interval is not None:
            notifier.feed_watchdog()
            asyncio.get_running_loop().call_later(notifier.watchdog_interval, self._feed_watchdog)

    def close(self) -> None:
        """Tell nothing any more: the loop is closed."""
        if self._notifier is not None:
            self._notifier.close()


@contextlib.contextmanager
def _signals(server: Server, manager: _Manager, reload: Callable[[], object] | None) -> Iterator[None]:
    """SIGINT and SIGTERM stop the server, once gracefully, twice at once; SIGHUP reloads."""
    loop = asyncio.get_running_loop()
    signalled = False
    reloading: asyncio.Task[None] | None = None

    def stop() -> None:
        nonlocal signalled
        manager.stopping()
        server.request_stop(0 if signalled else None)
        signalled = True

    def hang_up() -> None:
        nonlocal reloading
        if reload is not None and (reloading is None or reloading.done()):
            reloading = loop.create_task(manager.reload(reload))

    handlers: dict[str, Callable[[], None]] = {"SIGINT": stop, "SIGTERM": stop}
    if reload is not None:
        handlers["SIGHUP"] = hang_up
    handled = []
    try:
        for name, handler in handlers.items():
            try:
                number = getattr(signal, name)
                loop.add_signal_handler(number, handler)
            except (AttributeError, NotImplementedError, RuntimeError, ValueError):
                continue  # not on this system, or not in this thread
            handled.append(number)
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
        if reloading is not None:
            reloading.cancel()


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
