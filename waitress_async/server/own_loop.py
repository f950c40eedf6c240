"""A loop that is a server's own: for a whole program, or for a thread beside the caller's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from waitress_async.bridge import BackgroundThread
from waitress_async.errors import LifespanError, ServerClosed, SettingsError
from waitress_async.settings import Settings

if TYPE_CHECKING:
    from waitress_async.server.server import Server

    S = TypeVar("S", bound=Server)


@contextlib.contextmanager
def own_loop(server: Server, settings: Settings) -> Iterator[asyncio.Runner]:
    """A runner for `server`. Raises SettingsError for a loop that is not installed."""
    runner = asyncio.Runner(loop_factory=_loop_factory(settings.loop))
    try:
        yield runner
    finally:
        if server.is_stuck:  # the runner would wait for that for ever
            runner.get_loop().close()
        else:
            runner.close()


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name != "asyncio":
        try:
            import uvloop
        except ImportError:
            if name == "uvloop":
                raise SettingsError("loop: uvloop is not installed") from None
        else:
            return uvloop.new_event_loop
    return asyncio.new_event_loop


@contextlib.contextmanager
def serve_in_thread(server: S, settings: Settings) -> Iterator[S]:
    """See `Server.in_thread`."""

    def run(ready: Callable[[], object]) -> None:
        with own_loop(server, settings) as runner:
            runner.run(_serve(server, ready))

    thread = BackgroundThread(run, name="waitress_async-serve")
    try:
        if thread.wait_ready():
            yield server
    except BaseException:
        with contextlib.suppress(LifespanError, ServerClosed):  # the log has it; it was stopped as it started
            _stop(server, thread)
        raise
    _stop(server, thread)


async def _serve(server: Server, ready: Callable[[], object]) -> None:
    async with server:
        ready()
        await server.serve_forever()


def _stop(server: Server, thread: BackgroundThread) -> None:
    try:
        server.request_stop()
        thread.join()
    except KeyboardInterrupt:
        server.request_stop(0)
        thread.join()
        raise
