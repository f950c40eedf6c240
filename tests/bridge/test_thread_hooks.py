"""What each thread of a pool does when it starts, and before it ends."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

import pytest

from tests.bridge.support import until, wait
from waitress_async.bridge import Pool, Wakeup


class Calls:
    """What was called in which thread, in order."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str]] = []

    def of(self, name: str) -> Callable[[], None]:
        return lambda: self.made.append((name, threading.current_thread().name))

    def names(self, thread: str) -> list[str]:
        return [name for name, caller in self.made if caller == thread]


def make_pool(
    thread_init: Callable[[], object] | None = None,
    thread_exit: Callable[[], object] | None = None,
    *,
    threads: int = 1,
    spares: int = 0,
) -> Pool:
    return Pool(
        Wakeup(asyncio.get_running_loop()),
        name="test_hooks",
        threads=threads,
        spares=spares,
        thread_init=thread_init,
        thread_exit=thread_exit,
    )


async def close(pool: Pool) -> None:
    pool.close()
    assert await pool.wait_closed(10) == []


async def test_they_are_around_the_tasks_of_each_thread() -> None:
    calls = Calls()
    pool = make_pool(calls.of("init"), calls.of("exit"), threads=3)
    together = threading.Barrier(3)

    def task() -> None:
        together.wait(10)
        calls.of("task")()

    for _ in range(3):
        pool.submit(task)
    await close(pool)
    for number in (1, 2, 3):
        assert calls.names(f"test_hooks-{number}") == ["init", "task", "exit"]


async def test_a_spare_calls_them_too_and_ends() -> None:
    calls = Calls()
    pool = make_pool(calls.of("init"), calls.of("exit"), spares=1)
    ran_beside = threading.Event()

    def lend() -> None:
        with pool.lending():
            assert ran_beside.wait(10)

    pool.submit(lend)
    pool.submit(ran_beside.set)
    await until(lambda: calls.names("test_hooks-2") == ["init", "exit"])  # it is no longer needed
    assert calls.names("test_hooks-1") == ["init"]
    await close(pool)
    assert calls.names("test_hooks-1") == ["init", "exit"]


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
async def test_what_they_raise_is_logged_and_the_thread_goes_on(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise error

    pool = make_pool(fail, fail)
    ran: list[int] = []
    pool.submit(lambda: ran.append(1))
    await close(pool)
    assert ran == [1]
    records = [(record.levelno, record.getMessage(), record.exc_info) for record in caplog.records]
    assert [record[:2] for record in records] == [
        (logging.ERROR, "Exception in thread_init"),
        (logging.ERROR, "Exception in thread_exit"),
    ]
    assert all(info is not None and info[0] is error for _, _, info in records)


@pytest.mark.parametrize("hook", ["thread_init", "thread_exit"])
async def test_a_thread_stuck_in_one_is_named_and_holds_nothing_up(hook: str) -> None:
    freed, entered = threading.Event(), threading.Event()

    def stick() -> None:
        entered.set()
        assert freed.wait(10)

    pool = make_pool(**{hook: stick})  # type: ignore[arg-type]  # no number is among them
    pool.close()
    wait(entered.is_set)
    assert await pool.wait_closed(0.01) == ["test_hooks-1"]
    ((name, stack),) = pool.stacks()
    assert (name, "in stick" in stack) == ("test_hooks-1", True)
    freed.set()
    assert await pool.wait_closed(10) == []
