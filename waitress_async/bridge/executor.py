"""A pool with the face of `concurrent.futures`, for libraries that want an executor."""

from __future__ import annotations

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
