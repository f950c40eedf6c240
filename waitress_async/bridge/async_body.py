"""The rest of a response from an async iterable: it is drained on the loop, and holds no thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterable, Callable, Coroutine
from contextvars import Context
from functools import partial
from types import AsyncGeneratorType

from waitress_async.bridge.logs import LogThread
from waitress_async.bridge.wakeup import Wakeup
from waitress_async.buffers import BufferMemory


class AsyncBodies:
    """The async bodies of one server. Loop's thread, but where it says otherwise."""

    def __init__(self, wakeup: Wakeup, log: LogThread, memory: BufferMemory, limit: int) -> None:
        """At most `limit` of them; 0 is any number."""
        self.memory = memory
        self._log = log
        self._wakeup = wakeup
        self._limit = limit
        self._lock = threading.Lock()  # of the count
        self._count = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._context = Context()  # for what is ours, or the app's variables would go with it

    def reserve(self) -> bool:
        """Count one more that `make` will make. False if there are as many as may be. Any thread."""
        with self._lock:
            if self._limit and self._count >= self._limit:
                return False
            self._count += 1
            return True

    def make(
        self, iterable: AsyncIterable[bytes], context: Context, path: str, on_ready: Callable[[], object]
    ) -> AsyncBody:
        """A body that has been reserved. It is drained in `context`; `on_ready` is called on the loop when
        there is something to take. Any thread."""
        return AsyncBody(self, iterable, context, path, on_ready)

    def discard(self, iterable: AsyncIterable[bytes], context: Context, path: str) -> None:
        """Close an iterable that nobody will ask for anything. `path` is for the log. Any thread."""
        self._wakeup.call(partial(self.discard_now, iterable, context, path))

    def discard_now(self, iterable: AsyncIterable[bytes], context: Context, path: str) -> None:
        """The same, on the loop's thread."""
        self.start(self.close_each((iterable,), path), context, _name(iterable, path), _nothing)

    def start(
        self,
        work: Coroutine[object, object, None],
        context: Context,
        name: str,
        on_done: Callable[[asyncio.Task[None]], object],
    ) -> asyncio.Task[None]:
        """Run `work` in a task that `wait_closed` waits for."""
        loop = asyncio.get_running_loop()
        # Not by `create_task(context=...)`, which not all task factories of programs know.
        task = context.run(partial(loop.create_task, work, name=name))
        self._tasks.add(task)
        task.add_done_callback(on_done, context=self._context)
        task.add_done_callback(self._tasks.discard, context=self._context)
        return task

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

    def call_soon(self, call: Callable[[], object]) -> None:
        """Have `call()` made by the loop, in none of the apps' contexts."""
        asyncio.get_running_loop().call_soon(call, context=self._context)

    def ended(self) -> None:
        """One that was reserved is over."""
        with self._lock:
            self._count -= 1

    def cancel(self) -> None:
        """Cancel what is left."""
        for task in list(self._tasks):
            task.cancel()

    @property
    def names(self) -> list[str]:
        """Those of the tasks that are left."""
        return [task.get_name() for task in self._tasks]

    async def wait_closed(self, timeout: float | None = None) -> None:
        """Wait for all tasks to end, at most `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._tasks:
                    await asyncio.wait(self._tasks)


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
        on_ready: Callable[[], object],
    ) -> None:
        self._bodies = bodies
        self._iterable = iterable
        self._context = context
        self._path = path  # escaped for the log
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

    def take(self, limit: int) -> tuple[list[bytes | memoryview], bool]:
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
            self._ask()
        return [], self._over

    def _keep(self, rest: bytes | memoryview) -> None:
        """This is left of the item. What is cut up may wait here for the client, and is counted."""
        self._item = rest
        if rest or self._counted:
            self._bodies.memory.add(len(rest) - self._counted)
            self._counted = len(rest)

    def _ask(self) -> None:
        self._asked = True
        if self._task is None:
            # asyncio's debug mode tells the name of a task that holds the loop up.
            name = _name(self._iterable, self._path)
            self._task = self._bodies.start(self._run(), self._context, name, self._done)
        elif self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)

    async def _run(self) -> None:
        iterator: AsyncIterable[bytes] = self._iterable
        try:
            iterator = aiter(self._iterable)
            async for item in iterator:
                if self._closed:  # it goes on though it was cancelled
                    break
                if not isinstance(item, bytes):
                    raise TypeError(f"an async body must yield bytes, not {type(item).__name__}")
                if item:
                    self._item = item
                    self._asked = False
                    self._bodies.call_soon(self._on_ready)
                    await self._until_asked()
                else:
                    await asyncio.sleep(0)  # or one that yields nothing else would hold the loop
        except GeneratorExit:  # it was left to itself, and its loop is closed
            raise
        except asyncio.CancelledError:
            self.aborted = True  # by us, or by the end of the loop
        except BaseException as error:
            self.aborted = True
            self._bodies.tell("Exception in the async body of %s", self._path, error)
        self._closing = True
        made = () if iterator is self._iterable else (iterator,)
        await self._bodies.close_each((*made, self._iterable), self._path)
        self._end()

    async def _until_asked(self) -> None:
        if not self._asked:
            self._resumed = asyncio.get_running_loop().create_future()
            await self._resumed
            self._resumed = None

    def _end(self) -> None:
        self._over = True
        self._bodies.ended()
        if not self._closed:
            self._bodies.call_soon(self._on_ready)

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
        """Nobody will take any more."""
        self._closed = True
        self._keep(b"")
        if self._task is not None:
            if not self._closing:
                self._task.cancel()
        elif not self._over:
            self._give_up()


def _name(iterable: AsyncIterable[bytes], path: str) -> str:
    """A name for the task that drains it. What else it has for a name may be code of the app's."""
    named = iterable if isinstance(iterable, AsyncGeneratorType) else type(iterable)
    return f"{named.__qualname__} for {path}"


def _nothing(_task: asyncio.Task[None]) -> None:
    pass
