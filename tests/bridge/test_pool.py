"""The pool's threads and the bounded queue in front of them."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.bridge.support import until
from waitress_async.bridge import Pool, QueueFull, Wakeup


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What stuck tasks wait for; opened at the end, so that no test leaves a thread."""
    event = threading.Event()
    yield event
    event.set()


def make_pool(threads: int = 2, max_queue: int = 100) -> Pool:
    return Pool(Wakeup(asyncio.get_running_loop()), name="test_pool", threads=threads, max_queue=max_queue)


def pool_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("test_pool-")]


async def close(pool: Pool) -> None:
    pool.close()
    assert await pool.wait_closed(10) == []
    assert pool_threads() == []


async def test_the_threads_are_named_daemons_and_as_many_as_asked_for() -> None:
    pool = make_pool(threads=3)
    assert sorted(thread.name for thread in pool_threads()) == ["test_pool-1", "test_pool-2", "test_pool-3"]
    assert all(thread.daemon for thread in pool_threads())
    await close(pool)


async def test_tasks_run_in_the_order_of_their_submission() -> None:
    pool = make_pool(threads=1)
    ran: list[int] = []
    for number in range(50):
        pool.submit(partial(ran.append, number))
    await until(lambda: len(ran) == 50)
    assert ran == list(range(50))
    await close(pool)


async def test_all_threads_work_at_the_same_time() -> None:
    pool = make_pool(threads=4)
    together = threading.Barrier(5)
    for _ in range(4):
        pool.submit(partial(together.wait, 10))
    await until(lambda: together.n_waiting == 4)
    together.wait(10)
    await close(pool)


async def test_the_bound_is_exact(gate: threading.Event) -> None:
    pool = make_pool(threads=2, max_queue=3)
    running = threading.Semaphore(0)

    def stick() -> None:
        running.release()
        gate.wait()

    for _ in range(2):
        pool.submit(stick)
    await until(partial(running.acquire, blocking=False))
    await until(partial(running.acquire, blocking=False))
    ran: list[int] = []
    for number in range(3):
        pool.submit(partial(ran.append, number))
    for _ in range(2):
        with pytest.raises(QueueFull):
            pool.submit(partial(ran.append, 99))
        await asyncio.sleep(0)  # the bound is the same in another turn of the loop
    gate.set()
    await until(lambda: len(ran) == 3)
    pool.submit(partial(ran.append, 3))
    await until(lambda: len(ran) == 4)
    assert sorted(ran) == [0, 1, 2, 3]
    await close(pool)


async def test_what_was_submitted_before_the_close_runs() -> None:
    pool = make_pool(threads=2)
    ran: list[int] = []
    for number in range(20):
        pool.submit(partial(ran.append, number))
    await close(pool)
    assert sorted(ran) == list(range(20))


async def test_a_stuck_thread_is_named_and_does_not_hold_the_close(gate: threading.Event) -> None:
    pool = make_pool(threads=2)
    stuck: list[str] = []

    def stick() -> None:
        stuck.append(threading.current_thread().name)
        gate.wait()

    pool.submit(stick)
    await until(lambda: stuck)
    pool.close()
    began = time.monotonic()
    assert await pool.wait_closed(0.05) == stuck
    assert time.monotonic() - began < 5
    assert [thread.name for thread in pool_threads()] == stuck
    gate.set()
    assert await pool.wait_closed(10) == []
    assert pool_threads() == []


def test_a_stuck_thread_that_comes_back_finds_no_loop_and_ends() -> None:
    event = threading.Event()
    started = threading.Event()

    def stick() -> None:
        started.set()
        event.wait()

    async def main() -> None:
        pool = make_pool(threads=1)
        pool.submit(stick)
        await until(started.is_set)
        pool.close()
        assert await pool.wait_closed(0.01) == ["test_pool-1"]

    asyncio.run(main())
    (thread,) = pool_threads()
    event.set()
    thread.join(10)
    assert not thread.is_alive()


class Raising(logging.Handler):
    """A handler with a defect of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError("the handler fails")


@pytest.mark.parametrize(
    "handler", [logging.NullHandler, Raising], ids=["a sound handler", "a handler that raises"]
)
async def test_a_task_that_raises_does_not_end_its_thread(handler: Callable[[], logging.Handler]) -> None:
    pool = make_pool(threads=1)
    logger = logging.getLogger("waitress_async")
    added = handler()
    logger.addHandler(added)
    try:
        ran: list[int] = []
        for error in (ValueError, SystemExit, KeyboardInterrupt):

            def fail(error: type[BaseException] = error) -> None:
                raise error

            pool.submit(fail)
        pool.submit(partial(ran.append, 1))
        await until(lambda: ran or not pool_threads())
        assert ran == [1]
    finally:
        logger.removeHandler(added)
        pool.close()
    assert await pool.wait_closed(10) == []


async def test_a_failed_task_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    pool = make_pool(threads=1)

    def fail() -> None:
        raise LookupError("what failed")

    pool.submit(fail)
    await close(pool)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)


async def test_a_task_is_not_kept_until_the_next_one() -> None:
    """It holds a request: its body, its environ, its connection."""
    pool = make_pool(threads=1)
    gone = threading.Event()

    class Task:
        def __call__(self) -> None:
            pass

        def __del__(self) -> None:
            gone.set()

    pool.submit(Task())
    await until(gone.is_set)
    await close(pool)
