"""Loop -> log: records made on the loop are handled by a thread of their own, for a handler may block."""

from __future__ import annotations

import contextlib
import logging
from functools import partial
from typing import Final

from waitress_async.bridge.pool import Pool, QueueFull
from waitress_async.bridge.wakeup import Wakeup

logger = logging.getLogger("waitress_async")


class LogThread:
    """Log calls that never block. What comes while a handler is stuck is dropped, and counted."""

    MAX_QUEUE: Final = 1_000  # records

    def __init__(self, wakeup: Wakeup) -> None:
        self._pool = Pool(wakeup, name="waitress_async-log", threads=1, max_queue=self.MAX_QUEUE)
        self._dropped = 0

    def log(self, level: int, message: str, *args: object) -> None:
        """Have `message % args` logged by the logger `waitress_async`. The loop's thread only."""
        try:  # without asking whether it is wanted: logging answers that under a lock of its own
            self._tell_dropped()
            self._pool.submit(partial(logger.log, level, message, *args))
        except QueueFull:
            self._dropped += 1

    def log_exception(self, error: BaseException, message: str, *args: object) -> None:
        """Have `message % args` logged with the traceback of `error`. The loop's thread only."""
        try:
            self._tell_dropped()
            self._pool.submit(partial(logger.error, message, *args, exc_info=error))
        except QueueFull:
            self._dropped += 1

    def _tell_dropped(self) -> None:
        if self._dropped:
            message = "%d log records were dropped: a log handler is stuck"
            self._pool.submit(partial(logger.warning, message, self._dropped))
            self._dropped = 0

    def close(self) -> None:
        """Let the thread end once what is queued has been logged. Twice is fine."""
        with contextlib.suppress(QueueFull):
            self._tell_dropped()
        self._pool.close()

    async def wait_closed(self, timeout: float) -> None:
        """Wait for that, at most `timeout` seconds."""
        await self._pool.wait_closed(timeout)
