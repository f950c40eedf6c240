"""Log records made on the loop: handled elsewhere, and never waited for."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator

import pytest

from tests.bridge.support import until
from waitress_async.bridge import LogThread, Wakeup


class Stuck(logging.Handler):
    """A handler that is held up until it is let go: a full pipe, a slow disk."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.entered = threading.Event()
        self.messages: list[str] = []
        self.threads: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.entered.set()
        self.open.wait()
        self.messages.append(record.getMessage())
        self.threads.add(threading.current_thread().name)


@pytest.fixture
def handler() -> Iterator[Stuck]:
    logger = logging.getLogger("waitress_async")
    stuck = Stuck()
    level = logger.level
    logger.addHandler(stuck)
    logger.setLevel(logging.INFO)
    yield stuck
    logger.removeHandler(stuck)
    logger.setLevel(level)
    stuck.open.set()


def make() -> LogThread:
    return LogThread(Wakeup(asyncio.get_running_loop()))


def log_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("waitress_async-log")]


async def test_records_come_in_order_from_the_log_thread(handler: Stuck) -> None:
    handler.open.set()
    log = make()
    for number in range(20):
        log.log(logging.INFO, "record %d of %s", number, "many")
    log.close()
    await log.wait_closed(10)
    assert handler.messages == [f"record {number} of many" for number in range(20)]
    (thread,) = handler.threads
    assert thread.startswith("waitress_async-log")
    assert log_threads() == []


async def test_a_stuck_handler_never_blocks_the_caller_and_what_is_dropped_is_counted(handler: Stuck) -> None:
    log = make()
    log.log(logging.INFO, "the first")
    await until(handler.entered.is_set)
    surplus = 50
    began = time.monotonic()
    for number in range(log.MAX_QUEUE + surplus):
        log.log(logging.INFO, "%d", number)
    assert time.monotonic() - began < 5  # it would be for ever
    handler.open.set()
    await until(lambda: len(handler.messages) == 1 + log.MAX_QUEUE)
    log.log(logging.INFO, "the next")
    log.close()
    await log.wait_closed(10)
    kept = [str(number) for number in range(log.MAX_QUEUE)]
    assert handler.messages[:-2] == ["the first", *kept]
    assert handler.messages[-2].startswith(f"{surplus} log records were dropped")
    assert handler.messages[-1] == "the next"


async def test_what_was_dropped_is_said_at_the_latest_at_the_end(handler: Stuck) -> None:
    log = make()
    log.log(logging.INFO, "the first")
    await until(handler.entered.is_set)
    for _ in range(log.MAX_QUEUE + 7):
        log.log(logging.INFO, "more")
    handler.open.set()
    await until(lambda: len(handler.messages) == 1 + log.MAX_QUEUE)
    log.close()
    await log.wait_closed(10)
    assert handler.messages[-1].startswith("7 log records were dropped")


async def test_a_stuck_handler_does_not_hold_the_close(handler: Stuck) -> None:
    log = make()
    log.log(logging.INFO, "stuck")
    await until(handler.entered.is_set)
    began = time.monotonic()
    log.close()
    await log.wait_closed(0.05)
    assert time.monotonic() - began < 5
    handler.open.set()
    await until(lambda: not log_threads())


async def test_what_the_level_does_not_ask_for_costs_no_record(handler: Stuck) -> None:
    log = make()
    log.log(logging.DEBUG, "%s", "nobody asked")
    log.close()
    await log.wait_closed(10)
    assert not handler.entered.is_set()
