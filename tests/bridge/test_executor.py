"""A pool as an executor, for aiofiles and for the loop."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator
from concurrent.futures import Future
from pathlib import Path

import aiofiles
import aiofiles.os
import pytest
import pytest_asyncio

from tests.bridge.support import until
from waitress_async.bridge import PoolExecutor, Wakeup


@pytest_asyncio.fixture
async def executor() -> AsyncIterator[PoolExecutor]:
    executor = PoolExecutor(Wakeup(asyncio.get_running_loop()), name="test_disk", threads=2)
    yield executor
    executor.pool.close()
    assert await executor.pool.wait_closed(10) == []
    assert disk_threads() == []


def disk_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("test_disk-")]


async def test_the_threads_are_named_daemons(executor: PoolExecutor) -> None:
    assert sorted(thread.name for thread in disk_threads()) == ["test_disk-1", "test_disk-2"]
    assert all(thread.daemon for thread in disk_threads())
    thread = await asyncio.get_running_loop().run_in_executor(executor, threading.current_thread)
    assert thread in disk_threads()


async def test_aiofiles_runs_in_it(executor: PoolExecutor, tmp_path: Path) -> None:
    run = aiofiles.os.wrap(threading.current_thread)
    assert await run(executor=executor) in disk_threads()
    path = tmp_path / "file"
    async with aiofiles.open(path, "wb", executor=executor) as file:
        await file.write(b"content")
    async with aiofiles.open(path, "rb", executor=executor) as file:
        assert await file.read() == b"content"
    with pytest.raises(FileNotFoundError):
        await aiofiles.os.wrap(Path.stat)(tmp_path / "nowhere", executor=executor)


async def test_arguments_and_result(executor: PoolExecutor) -> None:
    def join(*words: str, separator: str) -> str:
        return separator.join(words)

    assert await asyncio.wrap_future(executor.submit(join, "a", "b", separator="-")) == "a-b"


@pytest.mark.parametrize(
    "error", [OSError("on fire"), KeyError("x"), SystemExit(3), KeyboardInterrupt()], ids=repr
)
async def test_an_exception_is_the_callers(error: BaseException, executor: PoolExecutor) -> None:
    """Whatever it is; the thread goes on."""

    def fail() -> None:
        raise error

    for _ in range(3):
        future = executor.submit(fail)
        await until(future.done)
        assert future.exception() is error
    assert len(disk_threads()) == 2
    assert await asyncio.wrap_future(executor.submit(int, "5")) == 5


async def test_what_was_cancelled_before_it_ran_does_not_run(executor: PoolExecutor) -> None:
    gate = threading.Event()
    ran: list[int] = []
    stuck = [asyncio.wrap_future(executor.submit(gate.wait)) for _ in range(2)]
    loop = asyncio.get_running_loop()
    cancelled = loop.run_in_executor(executor, ran.append, 1)
    kept = loop.run_in_executor(executor, ran.append, 2)
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.sleep(0)  # the loop passes it on in its next turn
    gate.set()
    await asyncio.gather(*stuck, kept)
    assert cancelled.cancelled()
    assert ran == [2]


async def test_what_runs_is_not_cancelled(executor: PoolExecutor) -> None:
    gate = threading.Event()
    started = threading.Event()
    ran: list[int] = []

    def work() -> None:
        started.set()
        gate.wait()
        ran.append(1)

    future: Future[None] = executor.submit(work)
    await until(started.is_set)
    assert not future.cancel()
    gate.set()
    await asyncio.wrap_future(future)
    assert ran == [1]


async def test_what_was_submitted_before_the_close_runs() -> None:
    executor = PoolExecutor(Wakeup(asyncio.get_running_loop()), name="test_disk", threads=1)
    futures = [executor.submit(str, number) for number in range(20)]
    executor.pool.close()
    assert await executor.pool.wait_closed(10) == []
    assert [future.result(0) for future in futures] == [str(number) for number in range(20)]
    assert disk_threads() == []


@pytest.mark.parametrize("fails", [False, True])
async def test_nothing_of_a_call_is_kept(fails: bool, executor: PoolExecutor) -> None:
    """It may hold a request body. There is no cycle that only the collector would find."""

    class Body:
        pass

    def work(body: Body) -> None:
        if fails:
            raise OSError("on fire")

    body = Body()
    gone = weakref.ref(body)
    gc.collect()
    gc.disable()
    try:
        future = executor.submit(work, body)
        await until(future.done)
        del future, body
        await until(lambda: gone() is None)
    finally:
        gc.enable()
