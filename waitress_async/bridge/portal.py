"""Threads -> loop and back: a thread has something run on the loop, and waits for what comes of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from contextvars import Context, ContextVar, copy_context
from functools import partial
from time import monotonic
from typing import Any, Generic, TypeVar, TypeVarTuple, Unpack, cast

from waitress_async.bridge.output import Output
from waitress_async.bridge.pool import current_task
from waitress_async.bridge.wakeup import Wakeup
from waitress_async.errors import ClientDisconnected, ServerClosed

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_current: ContextVar[Portal] = ContextVar("waitress_async.portal")


def current_portal() -> Portal:
    """The portal of the server whose app this thread runs. Raises RuntimeError if there is none."""
    try:
        return _current.get()
    except LookupError:
        raise RuntimeError(
            "there is no server behind this thread: call it where the app is called; in a thread of your own "
            'call environ["waitress_async.from_thread"], or run that thread in a copy of the context '
            "(contextvars.copy_context().run)"
        ) from None


class Portal:
    """Calls from threads to the loop of one server. A thread has one at a time, for it waits.

    Made on the loop's thread.
    """

    def __init__(self, wakeup: Wakeup) -> None:
        self._wakeup = wakeup
        self._loop = asyncio.get_running_loop()
        self._loops_thread = threading.get_ident()
        self._lock = threading.Lock()  # of what follows
        self._calls: set[_Call[Any]] = set()  # that are not over
        self._aborted = False

    def install(self, context: Context) -> None:
        """Have `current_portal` find this one in `context` and its copies."""
        context.run(_current.set, self)

    # -- any thread but the loop's

    def run(
        self,
        function: Callable[[Unpack[Ts]], Awaitable[T]],
        *args: *Ts,
        timeout: float | None = None,
        cancel_on_disconnect: bool = False,
    ) -> T:
        """See `waitress_async.from_thread.run`."""
        self._check_thread("await the function there")
        output = _output_of_this_thread() if cancel_on_disconnect else None
        call = _AsyncCall(partial(function, *args), self._over, self._loop, timeout)
        return self._result(call, output)

    def run_sync(self, function: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        """See `waitress_async.from_thread.run_sync`."""
        self._check_thread("call the function there")
        return self._result(_SyncCall(partial(function, *args), self._over), None)

    def _check_thread(self, advice: str) -> None:
        if threading.get_ident() == self._loops_thread:
            raise RuntimeError(f"this is the loop's own thread, which would wait for itself: {advice}")

    def _result(self, call: _Call[T], output: Output | None) -> T:
        """Have the call made, and wait for it. It is cancelled if the client that `output` is for leaves."""
        with self._lock:
            if self._aborted or self._loop.is_closed():
                raise _stopped()
            self._calls.add(call)
        try:
            if output is not None:
                output.on_loss(call.client_left)
            self._wakeup.call(call.start)
            call.wait()
        except BaseException:  # a signal handler's, where this is the main thread
            self._wakeup.call(partial(call.cancel, CancelledError("its thread does not wait any more")))
            raise
        finally:
            if output is not None:
                output.forget(call.client_left)
        return call.result()

    # -- the loop

    def _over(self, call: _Call[Any]) -> None:
        with self._lock:
            self._calls.discard(call)

    def abort(self) -> None:
        """Make no more calls, and cancel those that are made: all raise ServerClosed. Twice is fine."""
        with self._lock:
            self._aborted = True
            calls = list(self._calls)
        for call in calls:
            call.cancel(_stopped())

    async def wait_closed(self) -> None:
        """Wait until no call is left. After `abort`."""
        while tasks := self._tasks():
            await asyncio.wait(tasks)

    @property
    def names(self) -> list[str]:
        """What the calls that are not over have called."""
        with self._lock:
            return sorted(call.name for call in self._calls)

    def _tasks(self) -> list[asyncio.Task[None]]:
        with self._lock:
            return [call.task for call in self._calls if call.task is not None]


class _Call(Generic[T]):
    """What one thread has asked for and the loop makes. The answer crosses with the release of a lock."""

    __slots__ = ("_answered", "_context", "_error", "_is_over", "_on_over", "_result", "name", "task")

    def __init__(self, name: str, on_over: Callable[[_Call[Any]], object]) -> None:
        self.name = name
        """What it calls, for the log."""
        self._on_over = on_over
        self._context = copy_context()
        self._answered = threading.Lock()
        self._answered.acquire()
        self._is_over = False
        self._result: T | None = None
        self._error: BaseException | None = None
        self.task: asyncio.Task[None] | None = None  # that makes it

    # -- the thread

    def wait(self) -> None:
        """Wait until it is over."""
        self._answered.acquire()

    def result(self) -> T:
        """What came of it, once. Raises what it raised, and keeps no reference to that."""
        error, self._error = self._error, None
        if error is None:
            return cast(T, self._result)
        try:
            raise error
        finally:
            del error  # its traceback has this frame

    # -- the loop

    def start(self) -> None:
        """Make the call, unless it was cancelled."""
        raise NotImplementedError

    def cancel(self, reason: BaseException) -> None:
        """Have its thread go on, with `reason`, when it is cancelled; at once if it was not started."""
        if not self._is_over:
            self._end(None, reason)

    def client_left(self) -> None:
        """Nobody waits for what its thread works on."""
        self.cancel(ClientDisconnected("the client is gone"))

    def _end(self, result: T | None, error: BaseException | None) -> None:
        self._is_over = True
        self._result = result
        self._error = error
        self._on_over(self)
        self._answered.release()


class _SyncCall(_Call[T]):
    __slots__ = ("_function",)

    def __init__(self, function: partial[T], on_over: Callable[[_Call[Any]], object]) -> None:
        super().__init__(_name(function), on_over)
        self._function = function

    def start(self) -> None:
        if self._is_over:
            return
        try:
            result = self._context.run(self._function)
            if asyncio.iscoroutine(result):
                result.close()
                raise TypeError(f"run_sync() calls what is not async: {self.name} is for run()")
        except BaseException as error:  # the loop must not be ended by a SystemExit that is the app's
            self._end(None, error)
        else:
            self._end(result, None)


class _AsyncCall(_Call[T]):
    __slots__ = ("_ends_at", "_function", "_loop", "_reason")

    def __init__(
        self,
        function: partial[Awaitable[T]],
        on_over: Callable[[_Call[Any]], object],
        loop: asyncio.AbstractEventLoop,
        timeout: float | None,
    ) -> None:
        super().__init__(_name(function), on_over)
        self._function = function
        self._loop = loop
        self._ends_at = None if timeout is None else monotonic() + timeout
        self._reason: BaseException | None = None  # that it is cancelled for

    def start(self) -> None:
        if self._is_over:
            return
        making = self._make()
        # asyncio's debug mode tells the name of a task that holds the loop up.
        create_task = partial(self._loop.create_task, making, name=f"{self.name} for a thread")
        try:
            self.task = self._context.run(create_task)
        except BaseException as error:  # of a task factory that is the program's
            making.close()
            self._end(None, error)
        else:
            self.task.add_done_callback(self._made)

    def cancel(self, reason: BaseException) -> None:
        if self.task is None:
            super().cancel(reason)
        elif self._reason is None:
            self._reason = reason
            self.task.cancel()

    async def _make(self) -> None:
        """Await the function, and keep what comes of it: the loop must not be ended by a SystemExit."""
        try:
            if self._ends_at is None:
                self._result = await self._function()
            else:
                async with asyncio.timeout(self._ends_at - monotonic()):
                    self._result = await self._function()
        except BaseException as error:
            self._error = error

    def _made(self, task: asyncio.Task[None]) -> None:
        """The task is done; it may have been cancelled before it began."""
        error, self._error = self._error, None
        if task.cancelled():
            error = asyncio.CancelledError()
        if isinstance(error, asyncio.CancelledError):
            reason = self._reason or CancelledError("the task that ran it was cancelled")
            reason.__cause__ = error
            error = reason
        self.task = self._reason = None
        self._end(self._result, error)


def _name(function: partial[Any]) -> str:
    """The name of what is called. Not its `repr`, which would be the app's code on the loop."""
    return str(getattr(function.func, "__qualname__", type(function.func).__qualname__))


def _stopped() -> ServerClosed:
    return ServerClosed("the server stops, and makes no more calls from threads")


def _output_of_this_thread() -> Output:
    """The output of the request that this thread serves. Raises RuntimeError if it serves none."""
    output = getattr(current_task(), "output", None)
    if isinstance(output, Output):
        return output
    raise RuntimeError("cancel_on_disconnect is for the thread that the server calls the app in")
