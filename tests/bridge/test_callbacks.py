"""The thread in which apps are told things: started when it is needed, and what waits for it is bounded."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial

import pytest
import pytest_asyncio

from tests.bridge.support import until
from waitress_async.bridge import CallbackThread, LogThread, Wakeup
from waitress_async.bridge import pool as pool_module


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest_asyncio.fixture
async def callbacks(gate: threading.Event) -> AsyncIterator[CallbackThread]:
    wakeup = Wakeup(asyncio.get_running_loop())
    log = LogThread(wakeup)
    callbacks = CallbackThread(wakeup, log)
    yield callbacks
    gate.set()
    callbacks.close()
    log.close()
    await log.wait_closed(10)
    assert await callbacks.wait_closed(10) == []
    assert threads() == []


def threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("waitress_async-callback")]


async def test_there_is_no_thread_before_there_is_a_call(callbacks: CallbackThread) -> None:
    assert threads() == []
    assert callbacks.stacks() == []
    called: list[str] = []
    callbacks.submit(lambda: called.append(threading.current_thread().name))
    await until(lambda: called)
    assert called == threads() == ["waitress_async-callback-1"]


async def test_calls_are_made_one_after_the_other_in_their_order(callbacks: CallbackThread) -> None:
    called: list[int] = []
    for number in range(100):
        callbacks.submit(partial(called.append, number))
    await until(lambda: len(called) == 100)
    assert called == list(range(100))
    assert len(threads()) == 1


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()], ids=repr)
async def test_what_a_call_raises_is_logged_and_the_next_one_is_made(
    callbacks: CallbackThread, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    called: list[int] = []

    def fail() -> None:
        raise error

    callbacks.submit(fail)
    callbacks.submit(lambda: called.append(1))
    await until(lambda: called)
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert (record.name, record.getMessage()) == ("waitress_async", "Exception in a callback of the app")
    assert record.exc_info is not None
    assert record.exc_info[1] is error


async def test_where_a_stuck_call_is_can_be_told(callbacks: CallbackThread, gate: threading.Event) -> None:
    stuck = threading.Event()

    def wait_here() -> None:
        stuck.set()
        gate.wait()

    callbacks.submit(wait_here)
    await until(stuck.is_set)
    ((name, stack),) = callbacks.stacks()
    assert name == "waitress_async-callback-1"
    assert "wait_here" in stack
    callbacks.close()
    assert await callbacks.wait_closed(0.01) == [name]


async def test_calls_behind_a_stuck_one_are_bounded(
    callbacks: CallbackThread,
    gate: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each of those that are not made is told of."""
    monkeypatch.setattr(CallbackThread, "MAX_QUEUE", 3)
    called: list[int] = []
    stuck = threading.Event()

    def wait_here() -> None:
        stuck.set()
        gate.wait()

    callbacks.submit(wait_here)
    await until(stuck.is_set)
    for number in range(10):
        callbacks.submit(partial(called.append, number))
    gate.set()
    callbacks.close()
    assert await callbacks.wait_closed(10) == []
    assert called == [0, 1, 2]
    await until(lambda: len(not_called(caplog)) == 7)
    assert set(not_called(caplog)) == {logging.ERROR}


def not_called(caplog: pytest.LogCaptureFixture) -> list[int]:
    """The levels of the lines that say so."""
    start = "A callback of the app is not called: "
    return [record.levelno for record in list(caplog.records) if record.getMessage().startswith(start)]


async def test_what_is_queued_is_called_before_the_end_and_nothing_after(callbacks: CallbackThread) -> None:
    called: list[int] = []
    callbacks.submit(lambda: called.append(1))
    callbacks.close()
    callbacks.close()
    callbacks.submit(lambda: called.append(2))
    assert await callbacks.wait_closed(10) == []
    assert called == [1]


async def test_one_that_was_never_used_is_closed_at_once(callbacks: CallbackThread) -> None:
    callbacks.close()
    assert await callbacks.wait_closed() == []


async def test_without_a_thread_nobody_is_told_and_nothing_fails(
    callbacks: CallbackThread, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """But for the log. The next call is another try."""
    called: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(pool_module._Worker, "start", _cannot_start)
        callbacks.submit(lambda: called.append(1))
    callbacks.submit(lambda: called.append(2))
    await until(lambda: called)
    assert called == [2]
    await until(lambda: not_called(caplog))


def _cannot_start(_thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")
