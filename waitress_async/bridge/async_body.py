"""The rest of a response from an async iterable: it is drained on the loop, and holds no thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, Callable
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Final

from waitress_async.bridge.input import Input
from waitress_async.bridge.logs import LogThread
from waitress_async.bridge.tasks import Tasks
from waitress_async.bridge.wakeup import Wakeup
from waitress_async.errors import ClientDisconnected

if TYPE_CHECKING:
    from waitress_async.bridge.output import Piece

# Items sent in one turn of the loop of an iterable that never waits.
_ITEMS_A_TURN: Final = 64


class AsyncBodies:
    """The async bodies of one server. Loop's thread, but where it says otherwise."""

    def __init__(self, wakeup: Wakeup, log: LogThread, limit: int, tasks: Tasks) -> None:
        """At most `limit` of them; 0 is any number. They are drained in `tasks`."""
        self.log = log
        self.tasks = tasks
        self._wakeup = wakeup
        self._limit = limit
        self._lock = threading.Lock()  # of the count
        self._count = 0
        self.call = Context().run
        """`call(function)` from within an app's context is as if it were not. Not from within another."""

    def reserve(self) -> bool:
        """Count one more that `make` will make. False if there are as many as may be. Any thread."""
        with self._lock:
            if self._limit and self._count >= self._limit:
                return False
            self._count += 1
            return True

    def make(
        self,
        iterable: AsyncIterable[bytes],
        context: Context,
        path: str,
        request_body: Input | None,
        on_ready: Callable[[], object],
    ) -> AsyncBody:
        """A body that has been reserved. It is drained in `context`; `on_ready` is called on the loop when
        there is something to take. `request_body` is closed at its end. Any thread."""
        return AsyncBody(self, iterable, context, path, request_body, on_ready)

    def discard(self, iterable: AsyncIterable[bytes], context: Context) -> None:
        """Close an iterable that nobody will ask for anything. Any thread."""
        self._wakeup.call(partial(self.tasks.start, _close(iterable), context, "waitress_async-discard"))

    def ended(self) -> None:
        """One that was reserved is over."""
        with self._lock:
            self._count -= 1


class AsyncBody:
    """One of them. The next item is asked for when the last one has been taken, and not before.

    Loop's thread. However it ends, what it drains is closed once.
    """

    __slots__ = (
        "_asked",
        "_bodies",
        "_closed",
        "_context",
        "_item",
        "_iterable",
        "_on_ready",
        "_over",
        "_path",
        "_request_body",
        "_resumed",
        "_task",
        "aborted",
    )

    def __init__(
        self,
        bodies: AsyncBodies,
        iterable: AsyncIterable[bytes],
        context: Context,
        path: str,
        request_body: Input | None,
        on_ready: Callable[[], object],
    ) -> None:
        self._bodies = bodies
        self._iterable = iterable
        self._context = context
        self._path = path  # escaped for the log
        self._request_body = request_body
        self._on_ready = on_ready
        self._task: asyncio.Task[None] | None = None
        self._item = b""
        self._asked = False
        self._resumed: asyncio.Future[None] | None = None  # what waits to be asked
        self._closed = False
        self._over = False
        self.aborted = False  # what was taken is all there is, and is not the whole

    def take(self) -> tuple[list[Piece], bool]:
        """What there is of it, and whether that is the last. If nothing is there, it is asked for more."""
        if self._item:
            item, self._item = self._item, b""
            return [item], False
        if not self._over:
            self._asked = True
            if self._task is None:
                self._task = self._start()
            elif self._resumed is not None and not self._resumed.done():
                self._resumed.set_result(None)
        return [], self._over

    def _start(self) -> asyncio.Task[None]:
        kind = getattr(self._iterable, "__qualname__", None) or type(self._iterable).__qualname__
        # asyncio's debug mode tells the name of a task that holds the loop up.
        return self._bodies.tasks.start(self._run(), self._context, f"{kind} for {self._path}")

    async def _run(self) -> None:
        iterator: AsyncIterable[bytes] = self._iterable
        items = 0
        try:
            if self._task is None:  # an eager one, of which the first step is within `take`
                await asyncio.sleep(0)
            iterator = aiter(self._iterable)
            async for item in iterator:
                if not isinstance(item, bytes):
                    raise TypeError(f"an async body must yield bytes, not {type(item).__name__}")
                if self._closed:  # it was told that the client is gone
                    break
                if item:
                    self._item = item
                    self._asked = False
                    self._bodies.call(self._on_ready)  # now: a turn of the loop would cost as much again
                    items += 1
                    if not items % _ITEMS_A_TURN:
                        await asyncio.sleep(0)
                    if not self._asked:
                        await self._until_asked()
        except asyncio.CancelledError:
            self.aborted = True  # by us, or by the end of the loop
        except BaseException as error:
            self.aborted = True
            if not (self._closed and _says_disconnected(error)):
                self._tell("Exception in the async body of %s", error)
        finally:
            await self._end(iterator)

    async def _until_asked(self) -> None:
        self._resumed = asyncio.get_running_loop().create_future()
        await self._resumed
        self._resumed = None

    async def _end(self, iterator: AsyncIterable[bytes]) -> None:
        try:
            await _close(iterator)
            if iterator is not self._iterable:  # which had made it
                await _close(self._iterable)
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self._tell("Exception in aclose() of the async body of %s", error)
        self._is_over()
        if not self._closed:
            self._bodies.tasks.call_soon(self._on_ready)

    def _is_over(self) -> None:
        self._over = True
        self._bodies.ended()
        if self._request_body is not None:
            self._bodies.tasks.call_soon(self._request_body.close)

    def _tell(self, message: str, error: BaseException) -> None:
        self._bodies.log.log_exception(error, message, self._path)

    def close(self) -> None:
        """Nobody will take any more. If it waits for the request's body, that is about to tell it."""
        self._closed = True
        self._item = b""
        if self._task is None:
            if not self._over:
                self._is_over()
                self._bodies.discard(self._iterable, self._context)
        elif self._request_body is None or not self._request_body.is_awaited_by(self._task):
            self._task.cancel()


def _says_disconnected(error: BaseException) -> bool:
    """Whether it is a ClientDisconnected, or a group of nothing else."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(ClientDisconnected)[1] is None
    return isinstance(error, ClientDisconnected)


async def _close(iterable: AsyncIterable[bytes]) -> None:
    aclose = getattr(iterable, "aclose", None)
    if aclose is not None:
        await aclose()
