"""Calls from threads to the loop: what comes back, what cancels them, and that nothing is left of them."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextvars import ContextVar, copy_context
from functools import partial
from random import Random
from typing import Any, NoReturn, TypeVar

import pytest

from tests.bridge.support import DEADLINE, CountingLoop, until, wait
from waitress_async import from_thread
from waitress_async.bridge import Portal, Wakeup, current_portal
from waitress_async.bridge import portal as portal_module
from waitress_async.errors import ServerClosed
from waitress_async.from_thread import FromThread

T = TypeVar("T")

who = ContextVar("who", default="nobody")


class LoopThread:
    """A loop in a thread of its own, and a portal to it. The tests are the threads that call."""

    def __init__(self, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self.errors: list[dict[str, object]] = []  # that the loop was told of
        self._factory = loop_factory
        self._started = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        assert self._started.wait(DEADLINE)

    def _run(self) -> None:
        with asyncio.Runner(debug=True, loop_factory=self._factory) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(lambda _loop, context: self.errors.append(context))
        self._ended = asyncio.Event()
        self.wakeup = Wakeup(self.loop)
        self.portal = Portal(self.wakeup)
        self._started.set()
        await self._ended.wait()
        self.portal.abort()
        await asyncio.wait_for(self.portal.wait_closed(), DEADLINE)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    def end(self) -> None:
        """End the loop, and see that no call is left."""
        self.wakeup.call(self._ended.set)
        self.thread.join(DEADLINE)
        assert not self.thread.is_alive()
        assert self.loop.is_closed()
        assert self.portal.names == []
        assert self.errors == []

    def on_loop(self, function: Callable[[], T]) -> T:
        """Call it on the loop, without the portal."""
        results: list[T] = []
        self.wakeup.call(lambda: results.append(function()))
        wait(lambda: results)
        return results[0]


@pytest.fixture
def side(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> Iterator[LoopThread]:
    side = LoopThread(loop_factory)
    yield side
    side.end()


@pytest.fixture
def portal(side: LoopThread) -> Portal:
    return side.portal


class Caller(threading.Thread):
    """A thread that makes one call, and what came of that."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.result: object = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._call()
        except BaseException as error:
            self.error = error

    def ended(self) -> BaseException | None:
        """Wait for its end. Return what the call raised."""
        self.join(DEADLINE)
        assert not self.is_alive(), "it still waits"
        return self.error


class Waiting:
    """An async function that waits for ever, and what became of it."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.cleaned_up = False

    async def __call__(self) -> None:
        self.entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # whoever cleans up may wait for it
            self.cleaned_up = True

    def wait_entered(self) -> None:
        assert self.entered.wait(DEADLINE)


class OnPurpose(BaseException):
    """Not even an Exception."""


# -- what comes back


def test_the_call_is_made_on_the_loop_and_its_value_returned(side: LoopThread) -> None:
    async def add(first: int, second: int) -> tuple[int, threading.Thread, object]:
        await asyncio.sleep(0)
        return first + second, threading.current_thread(), asyncio.current_task()

    total, thread, first_task = side.portal.run(add, 1, 2)
    assert (total, thread) == (3, side.thread)
    assert side.portal.run(add, 1, 2, timeout=DEADLINE)[:2] == (3, side.thread)
    assert side.portal.run(add, 3, 4)[2] is not first_task


def test_a_plain_function_is_called_there_too(side: LoopThread) -> None:
    def look(first: int, second: int) -> tuple[int, threading.Thread, asyncio.AbstractEventLoop]:
        return first + second, threading.current_thread(), asyncio.get_running_loop()

    assert side.portal.run_sync(look, 1, 2) == (3, side.thread, side.loop)


def test_the_portal_is_what_the_environ_key_promises(portal: Portal) -> None:
    typed: FromThread = portal  # for the type checker
    assert typed.run_sync(divmod, 7, 2) == (3, 1)


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, OnPurpose])
@pytest.mark.parametrize("way", ["run", "run with a timeout", "run_sync"])
def test_what_it_raises_is_raised_in_the_thread(portal: Portal, way: str, error: type[BaseException]) -> None:
    """With its traceback. Not even a SystemExit ends the loop."""

    def fails_on_purpose() -> NoReturn:
        raise error("on purpose")

    async def awaits() -> None:
        await asyncio.sleep(0)
        fails_on_purpose()

    ways: dict[str, Callable[[], object]] = {
        "run": partial(portal.run, awaits),
        "run with a timeout": partial(portal.run, awaits, timeout=DEADLINE),
        "run_sync": partial(portal.run_sync, fails_on_purpose),
    }
    with pytest.raises(error, match="on purpose") as raised:
        ways[way]()
    names = [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert names[0] == "test_what_it_raises_is_raised_in_the_thread"
    assert names[-1] == "fails_on_purpose"
    assert portal.run_sync(int) == 0


def test_a_stop_iteration_is_raised_too(portal: Portal) -> None:
    with pytest.raises(StopIteration):
        portal.run_sync(next, iter([]))

    async def stops() -> object:
        return next(iter([]))

    with pytest.raises(RuntimeError, match="coroutine raised StopIteration"):
        portal.run(stops)


@pytest.mark.parametrize("kind", ["raises", "raises in run_sync", "timeout", "cancelled", "aborted"])
def test_errors_leave_no_cycles(side: LoopThread, kind: str) -> None:
    """What an error holds is free as soon as the thread is done with it."""
    portal = side.portal

    async def fails() -> None:
        raise OnPurpose

    async def cancels_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    def fails_at_once() -> None:
        raise OnPurpose

    def abort_once_it_waits(waiting: Waiting) -> None:
        waiting.wait_entered()
        side.wakeup.call(portal.abort)

    def call() -> weakref.ref[Waiting]:
        waiting = Waiting()  # which the traceback's frames hold
        if kind == "aborted":
            threading.Thread(target=abort_once_it_waits, args=(waiting,)).start()
        try:
            match kind:
                case "raises":
                    portal.run(fails)
                case "raises in run_sync":
                    portal.run_sync(fails_at_once)
                case "timeout":
                    portal.run(waiting, timeout=0.001)
                case "cancelled":
                    portal.run(cancels_itself)
                case "aborted":
                    portal.run(waiting)
        except BaseException:
            return weakref.ref(waiting)
        raise AssertionError("nothing was raised")

    gc.collect()
    gc.disable()
    try:
        held = call()
        wait(lambda: held() is None)  # the loop's thread may be about to let go of it
    finally:
        gc.enable()


def test_what_is_not_async_is_not_for_run(portal: Portal) -> None:
    with pytest.raises(TypeError, match="await"):
        portal.run(lambda: 1)  # type: ignore[arg-type, return-value]


def test_what_is_async_is_not_for_run_sync(portal: Portal) -> None:
    async def waits() -> None:
        raise AssertionError("never begun")

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(TypeError, match=r"waits is for run\(\)"):
            portal.run_sync(waits)  # type: ignore[unused-coroutine]
        gc.collect()
    assert warned == []  # of a coroutine that nobody awaited


def test_context_variables_go_along_and_do_not_come_back(portal: Portal) -> None:
    seen: list[str] = []

    def look() -> None:
        seen.append(who.get())
        who.set("the call")

    async def look_async() -> None:
        look()
        await asyncio.sleep(0)
        seen.append(who.get())

    def in_context() -> None:
        who.set("the thread")
        portal.run_sync(look)
        portal.run(look_async)
        seen.append(who.get())

    copy_context().run(in_context)
    assert seen == ["the thread", "the thread", "the call", "the thread"]


# -- what cancels it


@pytest.mark.parametrize("timeout", [0.01, 0, -1])
def test_a_timeout(portal: Portal, timeout: float) -> None:
    waiting = Waiting()
    with pytest.raises(TimeoutError):
        portal.run(waiting, timeout=timeout)
    assert waiting.cleaned_up  # before the thread went on


def test_the_time_runs_from_the_call_on(side: LoopThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not from when the loop gets round to it: by this clock, a thousand seconds later."""
    now = {side.thread: 1_000.0}
    monkeypatch.setattr(portal_module, "monotonic", lambda: now.get(threading.current_thread(), 0.0))
    waiting = Waiting()
    caller = Caller(partial(side.portal.run, waiting, timeout=900))
    assert isinstance(caller.ended(), TimeoutError)
    assert waiting.cleaned_up


def test_what_is_there_in_spite_of_a_timeout_is_returned(portal: Portal) -> None:
    async def at_once() -> str:
        return "at once"

    async def insists() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "in spite of it"
        raise AssertionError

    assert portal.run(at_once, timeout=0) == "at once"
    assert portal.run(insists, timeout=0.001) == "in spite of it"


def test_an_abort_ends_calls_that_run_and_calls_that_wait_for_the_loop(side: LoopThread) -> None:
    portal = side.portal
    waiting, never = Waiting(), Waiting()
    running = Caller(partial(portal.run, waiting))
    waiting.wait_entered()
    held, gate = threading.Event(), threading.Event()

    def hold_then_abort() -> None:
        held.set()
        assert gate.wait(DEADLINE)
        portal.abort()

    side.wakeup.call(hold_then_abort)
    assert held.wait(DEADLINE)
    called: list[int] = []
    not_begun = [Caller(partial(portal.run, never)), Caller(partial(portal.run_sync, called.append, 1))]
    wait(lambda: len(portal.names) == 3)
    gate.set()
    for caller in (running, *not_begun):
        assert isinstance(caller.ended(), ServerClosed)
    assert waiting.cleaned_up
    assert not never.entered.is_set()
    assert called == []
    for refused in (partial(portal.run, never), partial(portal.run_sync, int)):
        error = Caller(refused).ended()
        assert isinstance(error, ServerClosed)
        assert "the server stops" in str(error)
    side.on_loop(portal.abort)  # twice is fine


def test_one_that_goes_on_though_cancelled_is_named(side: LoopThread) -> None:
    entered, told = threading.Event(), threading.Event()
    gates: list[asyncio.Event] = []

    async def stubborn() -> str:
        gates.append(asyncio.Event())
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.set()
            await gates[0].wait()
        return "done"

    caller = Caller(partial(side.portal.run, stubborn))
    assert entered.wait(DEADLINE)
    side.wakeup.call(side.portal.abort)
    assert told.wait(DEADLINE)
    (name,) = side.portal.names
    assert name.endswith("<locals>.stubborn")
    side.wakeup.call(gates[0].set)
    assert caller.ended() is None
    assert caller.result == "done"


@pytest.mark.parametrize("when", ["before it began", "while it waits", "by itself"])
def test_cancelled_by_somebody_else(side: LoopThread, when: str) -> None:
    """As by the end of asyncio.run(), of a program that has not stopped its server."""
    waiting = Waiting()

    def cancelled_at_once(
        loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=loop, **options)
        task.cancel()
        return task

    async def cancels_itself() -> None:
        raise asyncio.CancelledError("on purpose")

    if when == "before it began":
        side.on_loop(lambda: side.loop.set_task_factory(cancelled_at_once) or True)
    caller = Caller(partial(side.portal.run, cancels_itself if when == "by itself" else waiting))
    if when == "while it waits":
        waiting.wait_entered()
        side.wakeup.call(lambda: [task.cancel() for task in side.portal._tasks()])
    error = caller.ended()
    assert isinstance(error, CancelledError)
    assert isinstance(error.__cause__, asyncio.CancelledError)
    assert waiting.entered.is_set() is waiting.cleaned_up is (when == "while it waits")
    side.on_loop(lambda: side.loop.set_task_factory(None) or True)


def test_a_task_factory_that_fails(side: LoopThread) -> None:
    """It is the program's, and its error the thread's."""

    def fail(_loop: asyncio.AbstractEventLoop, _coroutine: Any, **_options: Any) -> NoReturn:
        raise OnPurpose

    side.on_loop(lambda: side.loop.set_task_factory(fail) or True)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(OnPurpose):
            side.portal.run(Waiting())
        gc.collect()
    assert warned == []
    side.on_loop(lambda: side.loop.set_task_factory(None) or True)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs a signal for one thread")
def test_a_signal_that_interrupts_the_wait_cancels_the_call(side: LoopThread) -> None:
    """A main thread may wait, too, and its Ctrl-C must work."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals are the main thread's")
    waiting = Waiting()
    main = threading.get_ident()
    interrupted = threading.Event()

    def interrupt(_number: int, _frame: object) -> None:
        if not interrupted.is_set():
            interrupted.set()
            raise OnPurpose

    def send() -> None:
        """Again and again: one that comes just before the wait is handled after it."""
        waiting.wait_entered()
        while not interrupted.wait(0.01):
            signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        sender = Caller(send)
        with pytest.raises(OnPurpose):
            side.portal.run(waiting)
        assert sender.ended() is None
    finally:
        signal.signal(signal.SIGUSR1, before)
    wait(lambda: not side.portal.names)
    assert waiting.cleaned_up


# -- where it cannot be made


def test_on_the_loops_own_thread(side: LoopThread) -> None:
    async def nested() -> None:
        assert side.portal.run_sync(int)

    for call, advice in (
        (partial(side.portal.run, nested), "call the function there"),
        (partial(side.portal.run_sync, side.portal.run, Waiting()), "await the function there"),
    ):
        error = Caller(call).ended()
        assert isinstance(error, RuntimeError)
        assert str(error) == f"this is the loop's own thread, which would wait for itself: {advice}"


def test_a_thread_of_the_functions_own_may_call_in_turn(side: LoopThread) -> None:
    """`to_thread` takes the context along."""

    async def asks_a_thread() -> int:
        thread = Caller(partial(copy_context().run, partial(from_thread.run_sync, int)))
        await until(lambda: not thread.is_alive())
        assert thread.ended() is None
        assert isinstance(thread.result, int)
        return thread.result

    context = copy_context()
    side.portal.install(context)
    assert context.run(from_thread.run, asks_a_thread) == 0


def test_without_a_server() -> None:
    waiting = Waiting()
    for call in (partial(from_thread.run, waiting), partial(from_thread.run_sync, int), current_portal):
        with pytest.raises(RuntimeError, match=r'environ\["waitress_async.from_thread"\]') as raised:
            call()
        assert raised.value.__suppress_context__
    assert not waiting.entered.is_set()


def test_the_context_says_which_server(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """The innermost, where one is started from an app of another."""
    outer, inner = LoopThread(loop_factory), LoopThread(loop_factory)
    outside = copy_context()
    outer.portal.install(outside)
    inside = outside.copy()
    inner.portal.install(inside)
    assert outside.run(from_thread.run_sync, threading.current_thread) is outer.thread
    assert inside.run(from_thread.run_sync, threading.current_thread) is inner.thread
    outer.end()
    inner.end()


def test_without_a_request(portal: Portal) -> None:
    waiting = Waiting()
    with pytest.raises(RuntimeError, match="cancel_on_disconnect is for the thread"):
        portal.run(waiting, cancel_on_disconnect=True)
    assert not waiting.entered.is_set()


def test_on_a_closed_loop(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Nobody has stopped the server: the loop was just closed."""
    loop = loop_factory()

    async def make() -> Portal:
        return Portal(Wakeup(asyncio.get_running_loop()))

    portal = loop.run_until_complete(make())
    loop.close()
    caller = Caller(partial(portal.run_sync, int))
    assert isinstance(caller.ended(), ServerClosed)
    assert portal.names == []


# -- many


def test_many_threads_get_what_is_theirs(side: LoopThread) -> None:
    """A task for each at most, whatever comes of them."""
    threads, calls = 16, 60
    most = 0

    async def made(number: int, kind: str) -> int:
        nonlocal most
        most = max(most, len(asyncio.all_tasks()) - 1)
        if kind == "raises":
            raise ValueError(number)
        if kind == "waits":
            await asyncio.sleep(0.001)
        elif kind == "late":
            await asyncio.Event().wait()
        return number

    def call_often(thread: int) -> None:
        chance = Random(thread)
        for call in range(calls):
            number = thread * calls + call
            kind = chance.choice(["at once", "waits", "raises", "late"])
            if kind == "raises":
                with pytest.raises(ValueError, match=f"^{number}$"):
                    side.portal.run(made, number, kind)
            elif kind == "late":
                with pytest.raises(TimeoutError):
                    side.portal.run(made, number, kind, timeout=0.001)
            else:
                assert side.portal.run(made, number, kind) == number
                assert side.portal.run_sync(abs, -number) == number

    callers = [Caller(partial(call_often, thread)) for thread in range(threads)]
    for caller in callers:
        if (error := caller.ended()) is not None:
            raise error
    assert 1 < most <= threads
    assert side.portal.names == []


def test_calls_of_many_threads_share_a_wake_up() -> None:
    side = LoopThread(CountingLoop)
    loop = side.loop
    assert isinstance(loop, CountingLoop)
    held, gate = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        assert gate.wait(DEADLINE)

    side.wakeup.call(hold)
    assert held.wait(DEADLINE)
    before = loop.wakeups
    callers = [Caller(partial(side.portal.run_sync, int)) for _ in range(8)]
    wait(lambda: len(side.portal.names) == 8)
    gate.set()
    for caller in callers:
        assert caller.ended() is None
    assert loop.wakeups - before == 1
    side.end()
