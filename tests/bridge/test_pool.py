"""The pool's threads and the bounded queue in front of them."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from random import Random

import pytest

from tests.bridge.support import until
from waitress_async.bridge import Pool, QueueFull, Wakeup
from waitress_async.bridge import pool as pool_module
from waitress_async.bridge.pool import current_task


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What stuck tasks wait for; opened at the end, so that no test leaves a thread."""
    event = threading.Event()
    yield event
    event.set()


_others: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def others() -> None:
    """Threads that a failed test has left are no concern of the next one."""
    _others.update(threading.enumerate())


def make_pool(threads: int = 2, max_queue: int = 100, spares: int = 0) -> Pool:
    wakeup = Wakeup(asyncio.get_running_loop())
    return Pool(wakeup, name="test_pool", threads=threads, max_queue=max_queue, spares=spares)


def pool_threads() -> list[threading.Thread]:
    return [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("test_pool-") and thread not in _others
    ]


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


# -- lending


class Waiting:
    """A task that waits for a client until it is let go; then it is at the rest of its work."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.lent = threading.Event()
        self.client = threading.Event()
        self.relieved = threading.Event()
        self.work = threading.Event()
        self.thread = ""

    def __call__(self) -> None:
        self.thread = threading.current_thread().name
        with self.pool.lending():
            self.lent.set()
            assert self.client.wait(20)
        self.relieved.set()
        assert self.work.wait(20)

    def let_go(self) -> None:
        self.work.set()
        self.client.set()


@pytest.fixture
def waiting() -> Iterator[Callable[[Pool], Waiting]]:
    """Makes tasks that are let go at the end."""
    tasks: list[Waiting] = []

    def make(pool: Pool) -> Waiting:
        tasks.append(Waiting(pool))
        return tasks[-1]

    yield make
    for task in tasks:
        task.let_go()


MakeWaiting = Callable[[Pool], Waiting]


async def runs(pool: Pool) -> str:
    """The name of the thread that runs what is submitted now."""
    ran: list[str] = []
    pool.submit(lambda: ran.append(threading.current_thread().name))
    await until(lambda: ran)
    return ran[0]


async def does_not_run(pool: Pool) -> Callable[[], bool]:
    """Submit a task that finds no thread. Returns whether it has run since."""
    ran = threading.Event()
    pool.submit(ran.set)
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert not ran.is_set()
    return ran.is_set


async def test_a_thread_that_waits_is_replaced(waiting: MakeWaiting) -> None:
    pool = make_pool(threads=1, spares=2)
    first, second = waiting(pool), waiting(pool)
    pool.submit(first)
    assert await runs(pool) == "test_pool-2"
    pool.submit(second)
    assert await runs(pool) == "test_pool-3"
    assert (first.thread, second.thread) == ("test_pool-1", "test_pool-2")
    assert sorted(pool.names) == ["test_pool-1", "test_pool-2", "test_pool-3"]
    assert all(thread.daemon for thread in pool_threads())
    first.let_go()
    second.let_go()
    await close(pool)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("spares", [0, 1, 3])
async def test_there_are_so_many_spares(
    threads: int, spares: int, waiting: MakeWaiting, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(threads=threads, spares=spares)
    tasks = [waiting(pool) for _ in range(threads + spares)]
    for task in tasks:
        pool.submit(task)
    await until(lambda: all(task.lent.is_set() for task in tasks))
    assert len(pool_threads()) == threads + spares
    has_run = await does_not_run(pool)
    assert len(pool_threads()) == threads + spares
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    tasks[0].let_go()
    await until(has_run)
    for task in tasks:
        task.let_go()
    await until(lambda: len(pool_threads()) == threads)
    await close(pool)


async def test_no_thread_is_lent_for_one_that_does_not_wait_for_a_client(gate: threading.Event) -> None:
    pool = make_pool(threads=1, spares=3)
    pool.submit(gate.wait)
    has_run = await does_not_run(pool)
    assert [thread.name for thread in pool_threads()] == ["test_pool-1"]
    gate.set()
    await until(has_run)
    await close(pool)


async def test_a_spare_ends_when_the_wait_is_over(waiting: MakeWaiting) -> None:
    """Nothing has to come for that."""
    pool = make_pool(threads=1, spares=1)
    task = waiting(pool)
    pool.submit(task)
    await until(lambda: task.lent.is_set() and len(pool_threads()) == 2)
    task.client.set()
    await until(lambda: pool.names == ["test_pool-1"])
    assert task.relieved.is_set()
    assert [thread.name for thread in pool_threads()] == ["test_pool-1"]
    task.let_go()
    assert await runs(pool) == "test_pool-1"
    await close(pool)


async def test_a_spare_ends_after_its_task(waiting: MakeWaiting, gate: threading.Event) -> None:
    """And not the first thread, with what an app may keep for it."""
    pool = make_pool(threads=1, spares=1)
    task = waiting(pool)
    pool.submit(task)
    await until(task.lent.is_set)
    stuck: list[str] = []

    def stick() -> None:
        stuck.append(threading.current_thread().name)
        gate.wait()

    pool.submit(stick)
    await until(lambda: stuck)
    assert stuck == ["test_pool-2"]
    task.let_go()
    assert await runs(pool) == "test_pool-1"
    assert pool.names == ["test_pool-1", "test_pool-2"]
    gate.set()
    await until(lambda: pool.names == ["test_pool-1"])
    await close(pool)


async def test_the_first_threads_stay_and_numbers_come_again(waiting: MakeWaiting) -> None:
    pool = make_pool(threads=2, spares=2)
    for _ in range(3):
        tasks = [waiting(pool) for _ in range(4)]
        for task in tasks:
            pool.submit(task)
        await until(lambda tasks=tasks: all(task.lent.is_set() for task in tasks))  # type: ignore[misc]
        assert sorted(pool.names) == [f"test_pool-{number}" for number in (1, 2, 3, 4)]
        for task in tasks:
            task.let_go()
        await until(lambda: pool.names == ["test_pool-1", "test_pool-2"])
    await close(pool)


async def test_a_spare_that_is_not_needed_for_one_is_there_for_the_next(waiting: MakeWaiting) -> None:
    pool = make_pool(threads=1, spares=1)
    for _ in range(50):
        task = waiting(pool)
        pool.submit(task)
        await until(task.lent.is_set)
        await runs(pool)
        assert len(pool_threads()) <= 3  # one may be about to end
        task.let_go()
    await until(lambda: len(pool_threads()) == 1)
    await close(pool)


async def test_what_is_queued_keeps_no_surplus_thread(waiting: MakeWaiting) -> None:
    pool = make_pool(threads=1, spares=1, max_queue=100_000)
    task = waiting(pool)
    pool.submit(task)
    await until(task.lent.is_set)
    ran: list[int] = []
    for number in range(10_000):
        pool.submit(partial(ran.append, number))
    task.let_go()
    await until(lambda: len(pool_threads()) == 1)
    await until(lambda: len(ran) == 10_000)
    assert len(pool_threads()) == 1
    await close(pool)


async def test_an_exception_ends_a_wait_as_well(caplog: pytest.LogCaptureFixture) -> None:
    pool = make_pool(threads=1, spares=5)

    def fail() -> None:
        with pool.lending():
            raise ConnectionError("the client is gone")

    for _ in range(5):
        pool.submit(fail)
    await until(lambda: len(caplog.records) == 5)
    await until(lambda: len(pool_threads()) == 1)
    assert {record.levelname for record in caplog.records} == {"ERROR"}
    await close(pool)


async def test_a_foreign_thread_lends_nothing(waiting: MakeWaiting, caplog: pytest.LogCaptureFixture) -> None:
    pool = make_pool(threads=1, spares=0)
    other = Pool(Wakeup(asyncio.get_running_loop()), name="other", threads=1, spares=5)
    for lender in (pool, other):
        task = waiting(lender)
        thread = threading.Thread(target=task)
        thread.start()
        await until(task.lent.is_set)
        task.let_go()
        thread.join()
    task = waiting(other)
    pool.submit(task)
    await until(task.lent.is_set)
    assert other.names == ["other-1"]
    assert pool.names == ["test_pool-1"]
    task.let_go()
    assert caplog.records == []
    other.close()
    assert await other.wait_closed(10) == []
    await close(pool)


async def test_that_the_spares_are_used_up_is_said_once_in_ten_seconds(
    waiting: MakeWaiting, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_000.0]
    monkeypatch.setattr(pool_module, "monotonic", lambda: now[0])
    pool = make_pool(threads=3, spares=1)
    tasks = [waiting(pool) for _ in range(4)]

    async def lend(task: Waiting) -> list[str]:
        pool.submit(task)
        await until(task.lent.is_set)
        return [record.getMessage() for record in caplog.records]

    assert await lend(tasks[0]) == []
    (message,) = await lend(tasks[1])
    assert message.startswith("2 threads wait")
    assert "spare_threads" in message
    now[0] += 9.9
    assert len(await lend(tasks[2])) == 1
    now[0] += 0.2
    assert len(await lend(tasks[3])) == 2
    for task in tasks:
        task.let_go()
    await close(pool)


async def test_a_system_without_threads_left_lends_none(
    waiting: MakeWaiting, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(threads=1, spares=3)
    task = waiting(pool)

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        pool.submit(task)
        await until(task.lent.is_set)
        has_run = await does_not_run(pool)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert pool.names == ["test_pool-1"]
    task.let_go()
    await until(has_run)
    await close(pool)


async def test_the_system_has_fewer_threads_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was started ends."""
    start = threading.Thread.start
    started = 0

    def start_two(thread: threading.Thread) -> None:
        nonlocal started
        started += 1
        if started > 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_two)
        with pytest.raises(RuntimeError, match="can't start"):
            make_pool(threads=3)
    await until(lambda: not pool_threads())


async def test_close_while_threads_are_lent(waiting: MakeWaiting) -> None:
    pool = make_pool(threads=2, spares=2)
    tasks = [waiting(pool) for _ in range(3)]
    for task in tasks:
        pool.submit(task)
    await until(lambda: all(task.lent.is_set() for task in tasks))
    ran: list[int] = []
    for number in range(10):
        pool.submit(partial(ran.append, number))
    pool.close()
    assert sorted(await pool.wait_closed(0.05)) == sorted(task.thread for task in tasks)
    await until(lambda: len(ran) == 10)
    for task in tasks:
        task.let_go()
    assert await pool.wait_closed(10) == []
    assert pool_threads() == []


async def test_close_when_all_wait_runs_what_is_queued_afterwards(waiting: MakeWaiting) -> None:
    pool = make_pool(threads=1, spares=1)
    tasks = [waiting(pool) for _ in range(2)]
    for task in tasks:
        pool.submit(task)
    await until(lambda: all(task.lent.is_set() for task in tasks))
    ran: list[int] = []
    for number in range(10):
        pool.submit(partial(ran.append, number))
    pool.close()
    for task in tasks:
        task.let_go()
    assert await pool.wait_closed(10) == []
    assert sorted(ran) == list(range(10))


async def test_a_wait_that_begins_after_the_close(waiting: MakeWaiting, gate: threading.Event) -> None:
    """Nobody is lent any more, and nothing is lost by it."""
    pool = make_pool(threads=1, spares=1)
    task = waiting(pool)

    def stick_and_wait() -> None:
        gate.wait()
        task()

    ran: list[int] = []
    pool.submit(stick_and_wait)
    pool.submit(partial(ran.append, 1))
    pool.close()
    gate.set()
    await until(task.lent.is_set)
    assert pool.names == ["test_pool-1"]
    task.let_go()
    assert await pool.wait_closed(10) == []
    assert ran == [1]


@pytest.mark.parametrize("seed", range(30))
async def test_close_at_any_moment_of_many_waits(seed: int) -> None:
    pool = make_pool(threads=1 + seed % 3, spares=seed % 4, max_queue=10_000)
    random = Random(seed)
    ran: list[int] = []

    def work(number: int) -> None:
        with pool.lending():
            time.sleep(0 if number % 2 else 0.0002)
        ran.append(number)

    for number in range(100):
        pool.submit(partial(work, number))
    for _ in range(random.randrange(20)):
        await asyncio.sleep(0.0005)
    await close(pool)
    assert sorted(ran) == list(range(100))


async def test_no_task_is_lost_while_spares_come_and_go() -> None:
    pool = make_pool(threads=1, spares=3, max_queue=100_000)
    ran: list[int] = []
    most = 0
    interval = sys.getswitchinterval()

    def work(number: int) -> None:
        if number % 2:
            with pool.lending():
                time.sleep(0 if number % 4 == 1 else 0.0001)
        ran.append(number)

    sys.setswitchinterval(1e-5)
    try:
        for start in range(0, 6_000, 20):
            for number in range(start, start + 20):
                pool.submit(partial(work, number))
            await until(lambda start=start: len(ran) >= start)  # type: ignore[misc]
            most = max(most, len(pool_threads()))
        await until(lambda: len(ran) == 6_000)
    finally:
        sys.setswitchinterval(interval)
    assert sorted(ran) == list(range(6_000))
    assert most > 1
    await until(lambda: len(pool_threads()) == 1)
    await runs(pool)
    await close(pool)


# -- promises


async def test_the_pool_does_not_end_before_a_promise_is_kept() -> None:
    pool = make_pool(threads=2)
    ran: list[str] = []
    keep = pool.promise(lambda: ran.append(threading.current_thread().name))
    pool.close()
    assert sorted(await pool.wait_closed(0.05)) == ["test_pool-1", "test_pool-2"]
    assert ran == []
    thread = threading.Thread(target=keep)
    thread.start()
    thread.join()
    assert await pool.wait_closed(10) == []
    assert pool_threads() == []
    (name,) = ran
    assert name.startswith("test_pool-")


async def test_a_promise_is_kept_however_many_wait(gate: threading.Event) -> None:
    pool = make_pool(threads=1, max_queue=1)
    running = threading.Event()

    def stick() -> None:
        running.set()
        gate.wait()

    pool.submit(stick)
    await until(running.is_set)
    pool.submit(bool)
    with pytest.raises(QueueFull):
        pool.submit(bool)
    ran: list[int] = []
    for number in range(5):
        pool.promise(partial(ran.append, number))()
    gate.set()
    await until(lambda: len(ran) == 5)
    assert ran == [0, 1, 2, 3, 4]
    await close(pool)


async def test_many_promises_from_many_threads() -> None:
    pool = make_pool(threads=2)
    ran: list[int] = []

    def promise(thread: int) -> None:
        for number in range(100):
            pool.promise(partial(ran.append, thread * 100 + number))()

    threads = [threading.Thread(target=promise, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    await close(pool)
    assert sorted(ran) == list(range(400))


async def test_all_promises_are_waited_for() -> None:
    pool = make_pool(threads=1)
    ran: list[int] = []
    keep = [pool.promise(partial(ran.append, number)) for number in range(3)]
    pool.submit(partial(ran.append, 9))
    pool.close()
    for number in (2, 0, 1):
        assert await pool.wait_closed(0.02) == ["test_pool-1"]
        keep[number]()
    assert await pool.wait_closed(10) == []
    assert ran == [9, 2, 0, 1]


async def test_a_promise_made_by_a_task_that_outlives_the_close(gate: threading.Event) -> None:
    """An app that returns a file while the server stops."""
    pool = make_pool(threads=1)
    ran: list[str] = []
    promised: list[Callable[[], object]] = []
    running = threading.Event()

    def task() -> None:
        running.set()
        gate.wait()
        promised.append(pool.promise(lambda: ran.append(threading.current_thread().name)))

    pool.submit(task)
    await until(running.is_set)
    pool.close()
    gate.set()
    await until(lambda: promised)
    promised[0]()
    assert await pool.wait_closed(10) == []
    assert ran == ["test_pool-1"]


async def test_a_promise_kept_while_a_thread_is_lent(waiting: MakeWaiting) -> None:
    pool = make_pool(threads=1, spares=1)
    task = waiting(pool)
    pool.submit(task)
    await until(task.lent.is_set)
    ran: list[int] = []
    keep = pool.promise(partial(ran.append, 1))
    pool.close()
    keep()
    await until(lambda: ran)
    task.let_go()
    assert await pool.wait_closed(10) == []
    assert ran == [1]


# -- bulky tasks


@pytest.mark.parametrize(("threads", "at_a_time"), [(1, 1), (2, 1), (3, 1), (4, 2), (9, 4)])
async def test_bulky_tasks_leave_half_of_the_threads_to_the_others(
    gate: threading.Event, threads: int, at_a_time: int
) -> None:
    pool = make_pool(threads=threads)
    running: list[int] = []

    def bulky(number: int) -> None:
        running.append(number)
        gate.wait()

    for number in range(12):
        pool.submit(partial(bulky, number), bulky=True)
    await until(lambda: len(running) == at_a_time)
    if threads > 1:
        passed = threading.Event()
        pool.submit(passed.set)
        await until(passed.is_set)
    assert len(running) == at_a_time
    gate.set()
    await until(lambda: len(running) == 12)
    assert sorted(running[:at_a_time]) == list(range(at_a_time))
    await close(pool)


async def test_bulky_tasks_that_wait_for_clients_make_room_for_others(gate: threading.Event) -> None:
    """Up to the number of spares, as they do for all tasks."""
    pool = make_pool(threads=2, spares=3)
    running: list[int] = []

    def bulky(number: int) -> None:
        running.append(number)
        with pool.lending():
            gate.wait()

    for number in range(8):
        pool.submit(partial(bulky, number), bulky=True)
    await until(lambda: len(running) == 4)  # half of the threads, and the spares
    passed = threading.Event()
    pool.submit(passed.set)
    await until(passed.is_set)
    assert len(running) == 4
    gate.set()
    await until(lambda: len(running) == 8)
    await close(pool)


async def test_bulky_tasks_that_are_held_back_count_as_queued(gate: threading.Event) -> None:
    pool = make_pool(threads=2, max_queue=3)
    running = threading.Event()

    def bulky() -> None:
        running.set()
        gate.wait()

    pool.submit(bulky, bulky=True)
    await until(running.is_set)
    for _ in range(3):
        pool.submit(gate.wait, bulky=True)
    with pytest.raises(QueueFull):
        pool.submit(gate.wait, bulky=True)
    with pytest.raises(QueueFull):
        pool.submit(gate.wait)
    gate.set()
    await close(pool)


async def test_bulky_tasks_that_are_held_back_run_before_the_end(gate: threading.Event) -> None:
    pool = make_pool(threads=2)
    ran: list[int] = []

    def bulky(number: int) -> None:
        gate.wait()
        ran.append(number)

    for number in range(5):
        pool.submit(partial(bulky, number), bulky=True)
    pool.close()
    gate.set()
    await close(pool)
    assert sorted(ran) == list(range(5))


async def test_a_bulky_task_that_fails_makes_room_for_the_next(caplog: pytest.LogCaptureFixture) -> None:
    pool = make_pool(threads=2)
    ran = threading.Event()

    def fail() -> None:
        raise LookupError("on purpose")

    for _ in range(3):
        pool.submit(fail, bulky=True)
    pool.submit(ran.set, bulky=True)
    await until(ran.is_set)
    await close(pool)
    assert caplog.text.count("LookupError: on purpose") == 3


@pytest.mark.parametrize("bulky", [False, True])
async def test_a_thread_knows_what_it_runs(bulky: bool) -> None:
    """As it was submitted, and for no longer than it runs."""
    pool = make_pool(threads=2)
    seen: list[object] = []

    def look() -> None:
        seen.append(current_task())
        own = threading.Thread(target=lambda: seen.append(current_task()))
        own.start()
        own.join()

    pool.submit(look, bulky=bulky)
    await until(lambda: len(seen) == 2)
    assert seen == [look, None]
    await until(lambda: all(thread.task is None for thread in pool._threads))
    assert current_task() is None
    await close(pool)
