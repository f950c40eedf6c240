"""A server as a whole program: its own loop, stopped by signals where there are any."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Final

from waitress_async.bridge import Wakeup, in_thread
from waitress_async.errors import ServerClosed
from waitress_async.server.own_loop import own_loop
from waitress_async.server.server import Server
from waitress_async.server.systemd import Notifier
from waitress_async.settings import Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

STOP_SIGNALS: Final = ("SIGINT", "SIGTERM")


def serve(app: WSGIApplication, **options: object) -> None:
    """Serve `app` until SIGINT or SIGTERM. `options` are the settings by keyword.

    Makes a loop of its own (uvloop where it is installed). The first signal stops gracefully, a second
    one at once; a handler that the program has set for one of them stays. Raises SettingsError (a
    ValueError), NotWSGIError (a TypeError), OSError, LifespanError, and RuntimeError where a loop runs
    already. Configures no logging.
    """
    options.pop("_quiet", None)  # of waitress, and written in many a script to have it configure no logging
    settings = Settings.from_keywords(**options)
    run(Server(app, settings), settings, stop_signals=unclaimed_signals())


async def serve_async(app: WSGIApplication, **options: object) -> None:
    """Serve `app` on the running loop until cancelled, then stop gracefully. Handles no signals."""
    async with Server(app, **options) as server:
        await server.serve_forever()


def run(
    server: Server,
    settings: Settings,
    *,
    stop_signals: Collection[str] = STOP_SIGNALS,
    notifier: Notifier | None = None,
    reload: Callable[[], object] | None = None,
    is_program: bool = False,
) -> None:
    """Run `server`, which is new, on a loop of its own, in any thread. In the main one signals stop it.

    `is_program` says that the process ends with it: signals change nothing any more then.

    `notifier` is told how it goes, and closed. On SIGHUP certificates are loaded anew, and `reload()` is
    called in a thread; it must not raise. Raises SettingsError for a loop that is not installed, OSError,
    LifespanError, and RuntimeError where a loop runs already.
    """
    _check_no_loop_runs()
    with (
        contextlib.closing(_Manager(notifier, settings)) as manager,
        own_loop(server, settings) as runner,
        contextlib.suppress(KeyboardInterrupt),  # where signals cannot be handled, as on Windows, it ends so
    ):
        runner.run(_serve_until_signalled(server, manager, stop_signals, reload, is_program))


def unclaimed_signals() -> list[str]:
    """Those that stop a server, but for those for which the program has a handler of its own.

    An ignored one is not the program's: a shell ignores SIGINT for what it runs in the background.
    """
    handlers = {name: _handler(name) for name in STOP_SIGNALS}
    return [
        name
        for name, handler in handlers.items()
        if not callable(handler) or handler is signal.default_int_handler
    ]


def _handler(name: str) -> object:
    """What the program has set for a signal; None for one that this system has not."""
    number = getattr(signal, name, None)
    return None if number is None else signal.getsignal(number)


def _check_no_loop_runs() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        "an event loop runs in this thread already: use serve_async() or Server on it, or another thread"
    )


async def _serve_until_signalled(
    server: Server,
    manager: _Manager,
    stop_signals: Collection[str],
    reload: Callable[[], object] | None,
    is_program: bool,
) -> None:
    with _signals(server, manager, stop_signals, reload, is_program):  # from before it says that it serves
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
        self._status = f"Serving on {', '.join(server.urls)}"
        if self._notifier is not None:
            self._notifier.ready(self._status)
            self._feed_watchdog()

    def stopping(self) -> None:
        """It serves no more, from the first call on; a reload that ends now is not told."""
        if self._notifier is not None and self._status:
            self._notifier.stopping("Finishing the requests in flight")
        self._status = ""

    async def reload(self, server: Server, reload: Callable[[], object] | None) -> None:
        """Reload, and tell of it if it serves: one that begins before is part of the start."""
        notifier = self._notifier if self._status else None
        if notifier is not None:
            notifier.reloading("Reloading")
        if reload is not None:
            await in_thread(Wakeup(asyncio.get_running_loop()), "waitress_async-reload", reload)
        await server.reload()
        if notifier is not None and self._status:
            notifier.ready(self._status)

    def can_reload(self, reload: Callable[[], object] | None) -> bool:
        """Whether SIGHUP means anything. Where there is a service manager it must at least not be the end."""
        return reload is not None or self._notifier is not None or self._settings.certfile is not None

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
def _signals(
    server: Server,
    manager: _Manager,
    stop_signals: Collection[str],
    reload: Callable[[], object] | None,
    is_program: bool,
) -> Iterator[None]:
    """`stop_signals` stop the server, once gracefully, twice at once; SIGHUP reloads."""
    loop = asyncio.get_running_loop()
    signalled = False
    hung_up = asyncio.Event()

    def stop() -> None:
        nonlocal signalled
        manager.stopping()
        server.request_stop(0 if signalled else None)
        signalled = True

    async def reload_when_hung_up() -> None:
        while await hung_up.wait():
            hung_up.clear()  # before it is begun: what changes meanwhile is told of by another signal
            try:
                await manager.reload(server, reload)
            except RuntimeError as error:  # the system has no thread for it
                loop.call_exception_handler({"message": "Cannot reload", "exception": error})

    handlers: dict[str, Callable[[], None]] = dict.fromkeys(stop_signals, stop)
    reloading = None
    if manager.can_reload(reload) and not callable(_handler("SIGHUP")):  # the program's goes first
        handlers["SIGHUP"] = hung_up.set
        reloading = loop.create_task(reload_when_hung_up())
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
            with _blocked(number):
                loop.remove_signal_handler(number)
                if is_program:  # it ends now: who asks for that again must not change how
                    signal.signal(number, signal.SIG_IGN)
        if reloading is not None:
            reloading.cancel()


@contextlib.contextmanager
def _blocked(number: int) -> Iterator[None]:
    """Have this signal wait meanwhile."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
