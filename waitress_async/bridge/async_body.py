"""The rest of a response from an async iterable: it is drained on the loop, and holds no thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, Callable
from contextvars import Context
from functools import partial
from types import AsyncGeneratorType
from typing import TYPE_CHECKING, Final

from waitress_async.bridge.input import Input
from waitress_async.bridge.logs import LogThread
from waitress_async.bridge.tasks import Tasks
from waitress_async.bridge.wakeup import Wakeup
from waitress_async.buffers import BufferMemory
from waitress_async.errors import ClientDisconnected

if TYPE_CHECKING:
    from waitress_async.bridge.output import Piece

# Items sent in one turn of the loop of an iterable that never waits.
_ITEMS_A_TURN: Final = 64


class AsyncBodies:
    """The async bodies of one server. Loop's thread, but where it says otherwise."""

    def __init__(
        self, wakeup: Wakeup, log: LogThread, memory: BufferMemory, limit: int, tasks: Tasks
    ) -> None:
        """At most `limit` of them; 0 is any number. They are drained in `tasks`."""
        self.memory = memory
        self.tasks = tasks
        self._log = log
        self.wakeup = wakeup
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

    def discard(self, iterable: AsyncIterable[bytes], context: Context, path: str) -> None:
        """Close an iterable that nobody will ask for anything. `path` is for the log. Any thread."""
        self.wakeup.call(partial(self.discard_now, iterable, context, path))

    def discard_now(self, iterable: AsyncIterable[bytes], context: Context, path: str) -> None:
        """The same, on the loop's thread."""
        self.tasks.start(self.close_each((iterable,), path), context, _name(iterable, path))

    async def close_each(self, iterables: tuple[AsyncIterable[bytes], ...], path: str) -> None:
        """Close them, whatever comes of it. Raises nothing: the loop must not be ended by a SystemExit."""
        for iterable in iterables:
            try:
                aclose = getattr(iterable, "aclose", None)
                if aclose is not None:
                    await aclose()
            except GeneratorExit:  # its loop is closed
                raise
            except asyncio.CancelledError:
                pass
            except BaseException as error:
                self.tell("Exception in aclose() of the async body of %s", path, error)

    def tell(self, message: str, path: str, error: BaseException) -> None:
        """Have an error logged, with its traceback."""
        self._log.log_exception(error, message, path)

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
        "_closing",
        "_context",
        "_counted",
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
        self._item: bytes | memoryview = b""  # what is left of it
        self._counted = 0  # bytes of that in `bodies.memory`
        self._asked = False
        self._resumed: asyncio.Future[None] | None = None  # what waits to be asked
        self._closed = False  # nobody will take any more
        self._closing = False  # what it drains is being closed
        self._over = False
        self.aborted = False  # what was taken is all there is, and is not the whole

    def take(self, limit: int) -> tuple[list[Piece], bool]:
        """What there is of it, at most `limit` bytes, and whether that is the last.

        If nothing is there, it is asked for more.
        """
        item = self._item
        if len(item) > limit:
            view = memoryview(item)
            self._keep(view[limit:])
            return [view[:limit]], False
        if item:
            self._keep(b"")
            return [item], False
        if not self._over:
            self._asked = True
            if self._task is None:
                # asyncio's debug mode tells the name of a task that holds the loop up.
                name = _name(self._iterable, self._path)
                self._task = self._bodies.tasks.start(self._run(), self._context, name, self._done)
            elif self._resumed is not None and not self._resumed.done():
                self._resumed.set_result(None)
        return [], self._over

    def _keep(self, rest: bytes | memoryview) -> None:
        """This is left of the item. What is cut up may wait here for the client, and is counted."""
        self._item = rest
        if rest or self._counted:
            self._bodies.memory.add(len(rest) - self._counted)
            self._counted = len(rest)

    async def _run(self) -> None:
        iterator: AsyncIterable[bytes] = self._iterable
        items = 0
        try:
            if self._task is None:  # an eager one, of which the first step is within `take`
                await asyncio.sleep(0)
            iterator = aiter(self._iterable)
            async for item in iterator:
                if self._closed:  # it goes on though it was cancelled, or was told that the client is gone
                    break
                if not isinstance(item, bytes):
                    raise TypeError(f"an async body must yield bytes, not {type(item).__name__}")
                if item:
                    self._item = item
                    self._asked = False
                    self._bodies.call(self._on_ready)  # now: a turn of the loop would cost as much again
                items += 1
                if not items % _ITEMS_A_TURN:
                    await asyncio.sleep(0)
                if not self._asked:
                    await self._until_asked()
        except GeneratorExit:  # it was left to itself, and its loop is closed
            raise
        except asyncio.CancelledError:
            self.aborted = True  # by us, or by the end of the loop
        except BaseException as error:
            self.aborted = True
            if not (self._closed and _says_disconnected(error)):
                self._bodies.tell("Exception in the async body of %s", self._path, error)
        self._closing = True
        made = () if iterator is self._iterable else (iterator,)
        await self._bodies.close_each((*made, self._iterable), self._path)
        self._end()

    async def _until_asked(self) -> None:
        self._resumed = asyncio.get_running_loop().create_future()
        await self._resumed
        self._resumed = None

    def _end(self) -> None:
        self._over = True
        self._bodies.ended()
        if self._request_body is not None:
            self._bodies.wakeup.call(self._request_body.close)
        if not self._closed:
            self._bodies.wakeup.call(self._on_ready)

    def _done(self, task: asyncio.Task[None]) -> None:
        if self._over:
            return
        self.aborted = True  # it was cancelled before its first step, or a GeneratorExit is the app's
        if not task.cancelled() and (error := task.exception()) is not None:
            self._bodies.tell("Exception in the async body of %s", self._path, error)
        self._give_up()

    def _give_up(self) -> None:
        """Nothing will be asked of it."""
        self._bodies.discard_now(self._iterable, self._context, self._path)
        self._end()

    def close(self) -> None:
        """Nobody will take any more. If it waits for the request's body, that is about to tell it."""
        self._closed = True
        self._keep(b"")
        if self._task is None:
            if not self._over:
                self._give_up()
        elif not self._closing and not self._waits_for_request_body(self._task):
            self._task.cancel()

    def _waits_for_request_body(self, task: asyncio.Task[None]) -> bool:
        return self._request_body is not None and self._request_body.is_awaited_by(task)


def _name(iterable: AsyncIterable[bytes], path: str) -> str:
    """A name for the task that drains it. What else it has for a name may be code of the app's."""
    named = iterable if isinstance(iterable, AsyncGeneratorType) else type(iterable)
    return f"{named.__qualname__} for {path}"


def _says_disconnected(error: BaseException) -> bool:
    """Whether it is a ClientDisconnected, or a group of nothing else."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(ClientDisconnected)[1] is None
    return isinstance(error, ClientDisconnected)
