"""Loop -> a thread for one call: what blocks, seldom happens, and must not wait for the app's threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from waitress_async.bridge.pool import Pool
from waitress_async.bridge.wakeup import Wakeup

T = TypeVar("T")


async def in_thread(wakeup: Wakeup, name: str, function: Callable[[], T]) -> T:
    """Return `function()`, or raise what it raises, from a thread of its own named `name-1`.

    Cancelling it leaves the thread to its own devices. Unlike `asyncio.to_thread` it leaves the loop's
    default executor alone, which is the caller's.
    """
    result: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def set_result(value: T) -> None:
        if not result.done():
            result.set_result(value)

    def set_exception(error: BaseException) -> None:
        if not result.done():
            result.set_exception(error)

    def run() -> None:
        try:
            value = function()
        except BaseException as error:
            raised = error
            wakeup.call(lambda: set_exception(raised))
        else:
            wakeup.call(lambda: set_result(value))

    pool = Pool(wakeup, name=name, threads=1, max_queue=1)
    pool.submit(run)
    pool.close()
    return await result
