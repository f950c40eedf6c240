"""Loop -> pool: named threads, the bounded queue in front of them, and spares for those that wait."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Final, cast

from waitress_async.bridge.wakeup import Wakeup

logger = logging.getLogger("waitress_async")

Task = Callable[[], object]

# That there are too few spares is said so often, in seconds.
_TELL_INTERVAL: Final = 10.0

# A spare thread that has nothing to do looks so often whether it is still needed, in seconds.
_SPARE_LOOKS: Final = 0.5


class QueueFull(Exception):
    """As many tasks wait already as may wait."""


class _Worker(threading.Thread):
    def __init__(self, pool: Pool, number: int, *, spare: bool) -> None:
        run = pool._run_spare if spare else pool._run
        super().__init__(target=pool._live, args=(run,), name=f"{pool.name}-{number}", daemon=True)
        self.pool = pool
        self.number = number
        self.task: Task | None = None  # that it runs

    def perform(self, task: Task) -> None:
        """Run it."""
        self.task = task
        try:
            task()
        except BaseException:  # a defect of ours: tasks answer for their app's errors themselves
            with contextlib.suppress(BaseException):  # a log handler may be what failed
                logger.exception("A task of the pool failed")
        finally:
            self.task = None
            del task  # the traceback of an error that the task keeps has this frame


def current_task() -> Task | None:
    """What the calling thread runs for its pool, as it was submitted; None in threads of others."""
    thread = threading.current_thread()
    return thread.task if isinstance(thread, _Worker) else None


def _this_worker() -> _Worker:
    return cast(_Worker, threading.current_thread())


def _call_hook(hook: Task | None, name: str) -> None:
    if hook is None:
        return
    try:
        hook()
    except BaseException:
        with contextlib.suppress(BaseException):
            logger.exception("Exception in %s", name)


class Pool:
    """Daemon threads that run tasks in the order in which they were submitted.

    What is submitted in one turn of the loop is queued at its end, all at once. A thread that is woken
    earlier would fight the loop for the interpreter lock between every two callbacks.

    A task that will wait for a client says so with `lending()`: meanwhile another thread is there in its
    stead, up to `spares` of them. Spares end when they are no longer needed; the first threads stay, and
    with them what apps keep for each thread.

    Bulky tasks, which will keep the disk busy, have half of the threads, at least one, and spares as all
    have. What others there are does not wait behind them.

    Daemons, because a thread stuck in an app must not hold the exit of the process; not an executor's,
    because the interpreter waits for those. Made and closed on the loop's thread.
    """

    def __init__(
        self,
        wakeup: Wakeup,
        *,
        name: str,
        threads: int,
        max_queue: float = math.inf,
        spares: int = 0,
        thread_init: Task | None = None,
        thread_exit: Task | None = None,
    ) -> None:
        """Start `threads` threads named `name-1`, ... At most `max_queue` tasks wait for one of them.

        Each thread, a spare too, calls `thread_init` before its first task, and `thread_exit` after its last.
        What they raise is logged, and changes nothing; a thread stuck in one has not ended.
        """
        self._wakeup = wakeup
        self.name = name
        self._wanted = threads
        self._spares = spares
        self._submitted: list[Task] = []  # in this turn of the loop
        self._bulky = 0  # tasks that are queued or run
        self._held_back: deque[Task] = deque()  # bulky ones
        self._queue: SimpleQueue[Task | None] = SimpleQueue()
        self._max_queue = max_queue
        self._thread_init = thread_init
        self._thread_exit = thread_exit
        self._closed = False
        self._ended = asyncio.Event()
        self._lock = threading.Lock()  # of what follows
        self._threads: list[_Worker] = []
        self._active = 0  # threads that are not about to end
        self._waiting = 0  # those of them in `lending()`
        self._promised = 0  # tasks that are to come
        self._tell_after = -math.inf
        try:
            with self._lock:
                for _ in range(threads):
                    self._start_thread(spare=False)
        except BaseException:  # the system has no more
            self.close()
            raise

    def submit(self, task: Task, *, bulky: bool = False) -> None:
        """Queue a task. Raises QueueFull. The loop's thread only, which makes the bound exact."""
        if self._queue.qsize() + len(self._submitted) + len(self._held_back) >= self._max_queue:
            raise QueueFull
        if bulky:
            self._held_back.append(task)
            self._let_bulky()
            return
        if not self._submitted:
            asyncio.get_running_loop().call_soon(self._queue_submitted)
        self._submitted.append(task)

    def _let_bulky(self) -> None:
        limit = max(1, self._wanted // 2) + min(self._waiting, self._spares)
        while self._held_back and self._bulky < limit:
            self._bulky += 1
            self._queue.put(partial(self._run_bulky, self._held_back.popleft()))

    def _bulky_ended(self) -> None:
        self._bulky -= 1
        self._let_bulky()

    def promise(self, task: Task) -> Callable[[], object]:
        """Return what to call, on any thread, to have `task` run. The pool does not end before that."""
        with self._lock:
            self._promised += 1
        return partial(self._queue.put, partial(self._keep_promise, task))

    def _queue_submitted(self) -> None:
        for task in self._submitted:
            self._queue.put(task)
        self._submitted.clear()

    # -- in the threads

    def _live(self, run: Callable[[], None]) -> None:
        _call_hook(self._thread_init, "thread_init")
        run()
        _call_hook(self._thread_exit, "thread_exit")
        self._wakeup.call(partial(self._thread_ended, threading.current_thread()))

    def _run_bulky(self, task: Task) -> None:
        _this_worker().task = task
        try:
            task()
        finally:
            self._wakeup.call(self._bulky_ended)

    def _run(self) -> None:
        perform = _this_worker().perform
        get = self._queue.get
        while (task := get()) is not None or self._is_promised():
            if task is not None:
                perform(task)
            del task  # or the last request would live until the next one comes

    def _run_spare(self) -> None:
        perform = _this_worker().perform
        while not self._is_surplus():
            try:
                task = self._queue.get(timeout=_SPARE_LOOKS)
            except Empty:
                continue
            if task is not None:
                perform(task)
            elif not self._is_promised():
                break
            del task

    def _keep_promise(self, task: Task) -> None:
        try:
            task()
        finally:
            with self._lock:
                self._promised -= 1
                end = self._closed and not self._promised
            if end:
                self._end_threads()

    def _is_promised(self) -> bool:
        """Whether a task is still to come. The threads are told to end once more when it has run."""
        with self._lock:
            return self._promised > 0

    def _is_surplus(self) -> bool:
        """Whether there are more threads than should be. The calling one must end then."""
        with self._lock:
            if self._closed or self._active <= self._should_be_active():
                return False
            self._active -= 1
            return True

    def _should_be_active(self) -> int:
        return self._wanted + min(self._waiting, self._spares)

    @contextlib.contextmanager
    def lending(self) -> Iterator[None]:
        """Around a wait: let another thread run tasks meanwhile. Any thread; those of others lend nothing."""
        thread = threading.current_thread()
        if not isinstance(thread, _Worker) or thread.pool is not self:
            yield
            return
        if not self._lend():
            self._tell_used_up()
        if self._held_back:
            self._wakeup.call(self._let_bulky)
        try:
            yield
        finally:
            self._take_back()

    def _lend(self) -> bool:
        """Returns whether there is another thread in this one's place."""
        with self._lock:
            self._waiting += 1
            if self._waiting > self._spares:
                return False
            if self._active < self._should_be_active() and not self._closed:
                try:
                    self._start_thread(spare=True)
                except RuntimeError:  # the system has no more
                    return False
            return True

    def _take_back(self) -> None:
        with self._lock:
            self._waiting -= 1

    def _tell_used_up(self) -> None:
        now = monotonic()
        with self._lock:
            if now < self._tell_after:
                return
            self._tell_after = now + _TELL_INTERVAL
            waiting = self._waiting
        logger.warning(
            "%d threads wait for slow clients and there is no spare thread left: new requests may wait too "
            "(setting: spare_threads)",
            waiting,
        )

    def _start_thread(self, *, spare: bool) -> None:
        """With the lock held."""
        taken = {thread.number for thread in self._threads}
        number = next(number for number in count(1) if number not in taken)
        thread = _Worker(self, number, spare=spare)
        thread.start()
        self._threads.append(thread)
        self._active += 1

    # -- the end

    def close(self) -> None:
        """Let each thread end once the tasks queued or promised so far have run. Twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._submitted += self._held_back
        self._held_back.clear()
        self._queue_submitted()
        self._end_threads()

    def _end_threads(self) -> None:
        for _ in range(self._active):
            self._queue.put(None)

    @property
    def names(self) -> list[str]:
        """The names of the threads that have not ended."""
        return [thread.name for thread in self._threads]

    def stacks(self) -> list[tuple[str, str]]:
        """The name of each thread that has not ended, and where it is, as a traceback shows it."""
        frames = sys._current_frames()
        return [
            (thread.name, "".join(traceback.format_stack(frames[thread.ident])))
            for thread in self._threads
            if thread.ident in frames
        ]

    async def wait_closed(self, timeout: float | None = None) -> list[str]:
        """Wait for the threads to end, at most `timeout` seconds. Return the names of those that have not."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), timeout)
        return self.names

    def _thread_ended(self, thread: threading.Thread) -> None:
        thread.join()  # it has nothing left to do
        with self._lock:
            self._threads = [one for one in self._threads if one is not thread]
            if not self._threads:
                self._ended.set()
