"""A pool with the face of `concurrent.futures`, for libraries that want an executor; and one-call threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import ParamSpec, TypeVar

from waitress_async.bridge.pool import Pool
from waitress_async.bridge.wakeup import Wakeup

P = ParamSpec("P")
T = TypeVar("T")


class PoolExecutor(Executor):
    """An executor whose threads are a pool's: named, daemons, and none of them the interpreter's to wait for.

    Made and used on the loop's thread.
    """

    def __init__(self, wakeup: Wakeup, *, name: str, threads: int) -> None:
        """Start `threads` threads named `name-1`, ..."""
        self.pool = Pool(wakeup, name=name, threads=threads)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See `concurrent.futures.Executor.submit`. The loop's thread only."""
        future: Future[T] = Future()
        self.pool.submit(partial(_run, future, partial(fn, *args, **kwargs)))
        return future


async def in_thread(wakeup: Wakeup, name: str, function: Callable[[], T]) -> T:
    """Return `function()`, or raise what it raises, from a thread of its own named `name-1`.

    For what blocks, seldom happens, and must not wait for the app's threads. Cancelling it leaves the thread
    to its own devices. Unlike `asyncio.to_thread` it leaves the loop's default executor alone, which is the
    caller's.
    """
    executor = PoolExecutor(wakeup, name=name, threads=1)
    result = asyncio.wrap_future(executor.submit(function))
    executor.pool.close()
    await asyncio.wait([result])
    await executor.pool.wait_closed()
    return result.result()


def _run(future: Future[T], function: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except BaseException as error:
        future.set_exception(error)
        del future, function  # the error's traceback has this frame: no cycle is left for the collector
    else:
        future.set_result(result)
