"""Calls from any thread to the loop: in order, none lost, and many of them for one wake-up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from functools import partial

import pytest

from tests.bridge.support import CountingLoop, until
from waitress_async.bridge import Wakeup

VARIABLE: ContextVar[str] = ContextVar("VARIABLE")


def in_threads(number: int, run: Callable[[int], object]) -> None:
    """Run `run(0)`, `run(1)`, ... each in a thread, and wait for all."""
    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def counting(main: Callable[[CountingLoop], object]) -> CountingLoop:
    """Run `main(loop)` on a loop that counts."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, CountingLoop)
        result = main(loop)
        if asyncio.iscoroutine(result):
            await result

    with asyncio.Runner(debug=True, loop_factory=CountingLoop) as runner:
        runner.run(run())
        loop = runner.get_loop()
        assert isinstance(loop, CountingLoop)
        return loop


def test_many_calls_from_many_threads_wake_the_loop_once() -> None:
    made: list[tuple[int, int]] = []

    async def main(loop: CountingLoop) -> None:
        wakeup = Wakeup(loop)

        def ask(thread: int) -> None:
            for number in range(100):
                wakeup.call(partial(made.append, (thread, number)))

        in_threads(8, ask)  # the loop's thread waits here, so all of them come while a run is pending
        assert loop.wakeups == 1
        assert made == []
        await until(lambda: len(made) == 800)
        assert loop.wakeups == 1

    counting(main)
    for thread in range(8):
        assert [number for where, number in made if where == thread] == list(range(100))


def test_calls_after_a_run_wake_the_loop_again() -> None:
    made: list[int] = []

    async def main(loop: CountingLoop) -> None:
        wakeup = Wakeup(loop)
        for number in range(3):
            in_threads(1, lambda _, number=number: wakeup.call(partial(made.append, number)))  # type: ignore[misc]
            await until(lambda number=number: len(made) == number + 1)  # type: ignore[misc]
        assert loop.wakeups == 3

    counting(main)
    assert made == [0, 1, 2]


@pytest.mark.parametrize("position", [0, 5, 9])
def test_a_call_that_raises_does_not_lose_the_others(position: int) -> None:
    made: list[int] = []
    reported: list[object] = []

    def make(number: int) -> None:
        if number == position:
            raise RuntimeError(f"call {number}")
        made.append(number)

    async def main(loop: CountingLoop) -> None:
        loop.set_exception_handler(lambda _loop, context: reported.append(context["exception"]))
        wakeup = Wakeup(loop)
        for number in range(10):
            wakeup.call(partial(make, number))
        await until(lambda: len(made) == 9)
        wakeup.call(partial(make, 10))
        await until(lambda: 10 in made)

    counting(main)
    assert made == [number for number in range(11) if number != position]
    assert [str(error) for error in reported] == [f"call {position}"]


def test_a_call_may_ask_for_a_call() -> None:
    made: list[int] = []

    async def main(loop: CountingLoop) -> None:
        wakeup = Wakeup(loop)

        def again(number: int) -> None:
            made.append(number)
            if number < 5:
                wakeup.call(partial(again, number + 1))

        wakeup.call(partial(again, 0))
        await until(lambda: len(made) == 6)

    counting(main)
    assert made == list(range(6))


def test_a_call_that_asks_for_ever_does_not_hold_the_loop() -> None:
    made: list[int] = []

    async def main(loop: CountingLoop) -> None:
        wakeup = Wakeup(loop)

        def again() -> None:
            made.append(1)
            if len(made) < 100_000:
                wakeup.call(again)

        wakeup.call(again)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(made) < 10
        made.extend([1] * 100_000)
        await asyncio.sleep(0)

    counting(main)


def test_no_call_is_lost_while_the_loop_runs() -> None:
    """Threads ask while the loop takes: the moment between the last look and the flag is what counts."""
    made: list[int] = []

    async def main(loop: CountingLoop) -> None:
        wakeup = Wakeup(loop)

        def ask(_thread: int) -> None:
            for number in range(5_000):
                wakeup.call(partial(made.append, number))

        asking = threading.Thread(target=in_threads, args=(4, ask))
        asking.start()
        await until(lambda: len(made) == 20_000)
        asking.join()
        assert loop.wakeups <= 20_000

    counting(main)


def test_on_a_closed_loop_it_does_nothing() -> None:
    loop = asyncio.new_event_loop()
    wakeup = Wakeup(loop)
    loop.close()
    made: list[int] = []
    for number in range(3):
        wakeup.call(partial(made.append, number))
    in_threads(2, lambda number: wakeup.call(partial(made.append, number)))
    assert made == []


async def test_calls_are_made_in_no_context_of_a_thread() -> None:
    """What watches a socket would keep an app's variables for as long as it does."""
    seen: list[int] = []

    def ask(_thread: int) -> None:
        VARIABLE.set("the app's own")
        wakeup.call(lambda: seen.append(len(copy_context())))

    wakeup = Wakeup(asyncio.get_running_loop())
    for _ in range(2):
        in_threads(1, ask)
        await until(lambda: bool(seen))
        assert seen.pop() == 0


@pytest.mark.parametrize("is_asked", [False, True], ids=["before the loop is asked", "after it"])
def test_ctrl_c_in_the_midst_of_a_call_loses_no_other(is_asked: bool) -> None:
    made: list[str] = []

    async def main(loop: CountingLoop) -> None:
        ask = loop.call_soon_threadsafe

        def interrupted(*arguments: object, **options: object) -> None:
            loop.call_soon_threadsafe = ask  # type: ignore[method-assign]
            if is_asked:
                ask(*arguments, **options)  # type: ignore[arg-type]
            raise KeyboardInterrupt

        wakeup = Wakeup(loop)
        loop.call_soon_threadsafe = interrupted  # type: ignore[assignment,method-assign]
        with pytest.raises(KeyboardInterrupt):
            wakeup.call(partial(made.append, "interrupted"))
        wakeup.call(partial(made.append, "next"))
        await until(lambda: len(made) == 2)
        wakeup.call(partial(made.append, "last"))
        await until(lambda: len(made) == 3)

    counting(main)
    assert made == ["interrupted", "next", "last"]
