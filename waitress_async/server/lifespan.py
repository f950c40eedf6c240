"""What a program has begun before its server listens, and ended after its last request. Loop's thread."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from contextvars import Context, copy_context
from typing import Any

from waitress_async.errors import LifespanError


class Lifespan:
    """An async context manager, entered and left by a task of its own.

    By the same task, for task groups and cancel scopes in it need that. Who cancels it while the server
    serves, as a task group in it does if one of its tasks fails, has the server stop first: that is how a
    block would end that had the server in it.
    """

    def __init__(
        self, make: Callable[[], AbstractAsyncContextManager[Any]], stop: Callable[[], asyncio.Event]
    ) -> None:
        """Begin to enter what `make()` returns.

        `stop()` begins to stop the server, if it is not stopping, and returns what is set when it has.
        """
        self.state: Any = None
        """What it has yielded."""
        self.context: Context = copy_context()
        """That in which it has yielded."""
        self.is_entered = False
        self.failure: BaseException | None = None
        """What it has raised."""
        self._stop = stop
        self._stopped: asyncio.Event | None = None  # which the task waits for, once it was cancelled
        self._settled = asyncio.Event()  # it is entered, or over
        self._may_end = asyncio.Event()
        self._over = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._live(make))
        self._task.add_done_callback(self._ended)  # cancelled before its first step, it takes none

    async def wait_entered(self) -> None:
        """Raises LifespanError if it is over before it is entered."""
        await self._settled.wait()
        if not self.is_entered:
            raise error_of("did not start", self.failure) from self.failure

    def end(self) -> None:
        """Let it be left; if it is not entered yet, cancel that. Returns at once. Twice is fine."""
        if not self.is_entered and not self._may_end.is_set():
            self._task.cancel()
        self._may_end.set()

    def cut(self) -> None:
        """Cancel it, wherever it is."""
        self._task.cancel()

    async def wait_over(self) -> None:
        """Wait until it is left."""
        await self._over.wait()

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    async def _live(self, make: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        try:
            async with _checked(make()) as self.state:
                self.context = copy_context()
                self.is_entered = True
                self._settled.set()
                await self._wait_for_end()
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except asyncio.CancelledError:
            pass  # it had to end, and nothing went wrong
        except BaseException as error:  # an exit too: the program would be gone without a word
            self.failure = error
        self._ended()
        if self._stopped is not None:  # or asyncio.run(), which may be what ends it, would not wait for that
            await self._stopped.wait()

    def _ended(self, _task: object = None) -> None:
        self._settled.set()
        self._over.set()

    async def _wait_for_end(self) -> None:
        try:
            await self._may_end.wait()
        except asyncio.CancelledError:
            if not self._may_end.is_set():
                self._stopped = self._stop()
                await self._may_end.wait()
            raise


def error_of(fate: str, failure: BaseException | None, *, is_logged: bool = False) -> LifespanError:
    """What is raised for a lifespan that has raised `failure`; None if it was cancelled."""
    reason = "it was cancelled" if failure is None else f"{type(failure).__name__}: {failure}".rstrip(": ")
    return LifespanError(f"The lifespan {fate}: {reason}", is_logged=is_logged)


def _checked(made: Any) -> AbstractAsyncContextManager[Any]:
    kind = type(made)
    if hasattr(kind, "__aenter__") and hasattr(kind, "__aexit__"):
        manager: AbstractAsyncContextManager[Any] = made
        return manager
    if inspect.iscoroutine(made):
        made.close()  # or Python would say that nobody awaited it
    raise TypeError(
        f"the lifespan function returned no async context manager, but an object of type {kind.__name__}: "
        "write it as an async generator that yields once, and decorate it with contextlib.asynccontextmanager"
    )
