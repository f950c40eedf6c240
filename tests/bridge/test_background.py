"""A thread whose maker waits for it to be ready, and for its end."""

from __future__ import annotations

import contextvars
import gc
import threading
import weakref
from collections.abc import Callable

import pytest

from waitress_async.bridge import BackgroundThread


def test_it_is_ready_when_it_says_so_and_goes_on() -> None:
    freed = threading.Event()

    def run(ready: Callable[[], object]) -> None:
        ready()
        assert freed.wait(10)

    thread = BackgroundThread(run, name="test_background")
    assert thread.wait_ready()
    (found,) = [one for one in threading.enumerate() if one.name == "test_background"]
    assert found.daemon
    freed.set()
    thread.join()
    assert not found.is_alive()
    assert thread.wait_ready()


def test_one_that_ends_before_is_not() -> None:
    thread = BackgroundThread(lambda _ready: None, name="test_background")
    assert not thread.wait_ready()
    thread.join()


@pytest.mark.parametrize("error", [LookupError, SystemExit])
def test_what_it_raises_is_raised_by_the_join_once(error: type[BaseException]) -> None:
    def fail(_ready: Callable[[], object]) -> None:
        raise error("told")

    thread = BackgroundThread(fail, name="test_background")
    assert not thread.wait_ready()
    with pytest.raises(error, match="told"):
        thread.join()
    thread.join()


def test_an_error_makes_no_cycle() -> None:
    class Marked(Exception):
        pass

    def fail(_ready: Callable[[], object]) -> None:
        raise Marked

    def joined() -> weakref.ref[BaseException]:
        try:
            BackgroundThread(fail, name="test_background").join()
        except Marked as error:
            return weakref.ref(error)
        raise AssertionError

    gc.collect()
    gc.disable()
    try:
        assert joined()() is None
    finally:
        gc.enable()


def test_it_has_a_copy_of_the_context() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    found: list[str] = []

    def run(_ready: Callable[[], object]) -> None:
        found.append(variable.get())
        variable.set("in the thread")

    variable.set("by the maker")
    BackgroundThread(run, name="test_background").join()
    assert (found, variable.get()) == (["by the maker"], "by the maker")
