"""Loop -> a thread for what apps want to be told. There they may block, and hold up but each other."""

from __future__ import annotations

import logging
from functools import partial
from typing import Final

from waitress_async.bridge.logs import LogThread
from waitress_async.bridge.pool import Pool, QueueFull, Task
from waitress_async.bridge.wakeup import Wakeup

logger = logging.getLogger("waitress_async")


class CallbackThread:
    """Calls functions of apps, in the order of their submission, in a thread that starts with the first.

    Made, used and closed on the loop's thread.
    """

    MAX_QUEUE: Final = 10_000  # calls; more are not made

    def __init__(self, wakeup: Wakeup, log: LogThread) -> None:
        self._wakeup = wakeup
        self._log = log
        self._pool: Pool | None = None
        self._closed = False

    def submit(self, callback: Task) -> None:
        """Have `callback()` called. What it raises is logged."""
        if self._closed:
            return
        try:
            if self._pool is None:
                self._pool = Pool(
                    self._wakeup, name="waitress_async-callback", threads=1, max_queue=self.MAX_QUEUE
                )
            self._pool.submit(partial(_call, callback))
        except (QueueFull, RuntimeError):  # one that is stuck holds up so many; or the system has no thread
            self._log.log(
                logging.ERROR, "A callback of the app is not called: too many wait, or no thread is left"
            )

    def close(self) -> None:
        """Let the thread end when it has made the calls that are queued. Twice is fine."""
        self._closed = True
        if self._pool is not None:
            self._pool.close()

    def stacks(self) -> list[tuple[str, str]]:
        """See `Pool.stacks`."""
        return [] if self._pool is None else self._pool.stacks()

    async def wait_closed(self, timeout: float | None = None) -> list[str]:
        """Wait for that, at most `timeout` seconds. Returns the names of threads that have not ended."""
        return [] if self._pool is None else await self._pool.wait_closed(timeout)


def _call(callback: Task) -> None:
    try:
        callback()
    except BaseException:
        logger.exception("Exception in a callback of the app")
