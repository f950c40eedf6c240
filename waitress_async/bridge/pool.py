"""Loop -> pool: named threads, and the bounded queue in front of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

from waitress_async.bridge.wakeup import Wakeup

logger = logging.getLogger("waitress_async")

Task = Callable[[], object]


class QueueFull(Exception):
    """As many tasks wait already as may wait."""


class Pool:
    """Daemon threads that run tasks in the order in which they were submitted.

    What is submitted in one turn of the loop is queued at its end, all at once. A thread that is woken
    earlier would fight the loop for the interpreter lock between every two callbacks.

    Daemons, because a thread stuck in an app must not hold the exit of the process; not an executor's,
    because the interpreter waits for those. Made and closed on the loop's thread.
    """

    def __init__(self, wakeup: Wakeup, *, name: str, threads: int, max_queue: int) -> None:
        """Start `threads` threads named `name-1`, ... At most `max_queue` tasks wait for one of them."""
        self._wakeup = wakeup
        self._submitted: list[Task] = []  # in this turn of the loop
        self._queue: SimpleQueue[Task | None] = SimpleQueue()
        self._max_queue = max_queue
        self._closed = False
        self._ended = asyncio.Event()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True)
            for number in range(1, threads + 1)
        ]
        for started, thread in enumerate(self._threads):
            try:
                thread.start()
            except BaseException:  # the system has no more
                del self._threads[started:]
                self.close()
                raise

    def submit(self, task: Task) -> None:
        """Queue a task. Raises QueueFull. The loop's thread only, which makes the bound exact."""
        submitted = self._submitted
        if self._queue.qsize() + len(submitted) >= self._max_queue:
            raise QueueFull
        if not submitted:
            asyncio.get_running_loop().call_soon(self._queue_submitted)
        submitted.append(task)

    def _queue_submitted(self) -> None:
        for task in self._submitted:
            self._queue.put(task)
        self._submitted.clear()

    def _run(self) -> None:
        get = self._queue.get
        while (task := get()) is not None:
            try:
                task()
            except BaseException:  # a defect of ours: tasks answer for their app's errors themselves
                with contextlib.suppress(BaseException):  # a log handler may be what failed
                    logger.exception("A task of the pool failed")
            del task  # or the last request would live until the next one comes
        self._wakeup.call(partial(self._thread_ended, threading.current_thread()))

    def close(self) -> None:
        """Let each thread end once the tasks queued so far have run. Twice is fine."""
        if self._closed:
            return
        self._closed = True
        self._queue_submitted()
        for _ in self._threads:
            self._queue.put(None)

    async def wait_closed(self, timeout: float | None = None) -> list[str]:
        """Wait for the threads to end, at most `timeout` seconds. Return the names of those that have not."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), timeout)
        return [thread.name for thread in self._threads]

    def _thread_ended(self, thread: threading.Thread) -> None:
        thread.join()  # it has nothing left to do
        self._threads.remove(thread)
        if not self._threads:
            self._ended.set()
