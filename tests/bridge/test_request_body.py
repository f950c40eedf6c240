"""A request body that is read on the loop while it comes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from asyncio import IncompleteReadError, LimitOverrunError
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bridge.support import DEADLINE, until
from waitress_async.bridge import Input, Wakeup, empty_body
from waitress_async.buffers import BufferMemory
from waitress_async.errors import ClientDisconnected

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="none")

HIGH = 262_144
LOW = 65_536


class Side:
    """The loop's side of an input, on the running loop."""

    def __init__(self) -> None:
        self.memory = BufferMemory(1 << 40)
        self.calls: list[str] = []
        self.seen: dict[str, str] = {}  # the variable, in each kind of call
        self.input = Input(
            Wakeup(asyncio.get_running_loop()),
            self.memory,
            contextlib.nullcontext,
            lambda which: self.calls.append("pause" if which is self.input else "?"),
            partial(self._called, "resume"),
            partial(self._called, "first read"),
        )
        self.body = self.input.getreader()

    def _called(self, what: str, which: Input) -> None:
        self.calls.append(what if which is self.input else "?")
        self.seen[what] = VARIABLE.get()


@pytest.fixture
async def side() -> Side:
    return Side()


async def turn() -> None:
    """Let the loop do what it was asked for, also from a thread."""
    for _ in range(3):
        await asyncio.sleep(0)


def waits(side: Side) -> bool:
    return side.input.is_waited_for


async def begun(read: Any) -> asyncio.Task[bytes]:
    """A read that has to wait, and does."""
    task: asyncio.Task[bytes] = asyncio.ensure_future(read)
    await turn()
    assert not task.done()
    return task


# -- reads


@pytest.mark.parametrize("size", [1, 3, 100])
async def test_the_verbs(side: Side, size: int) -> None:
    body = b"one\ntwo\nthree;four\nlast"
    for start in range(0, len(body), size):
        side.input.feed_data(body[start : start + size])
    side.input.feed_eof()
    assert await side.body.read(2) == b"on"
    assert await side.body.readline() == b"e\n"
    assert await side.body.readexactly(3) == b"two"
    assert await side.body.readuntil(b";") == b"\nthree;"
    assert [line async for line in side.body] == [b"four\n", b"last"]
    assert await side.body.read() == b""
    with pytest.raises(IncompleteReadError):
        await side.body.readexactly(1)
    assert side.memory.used == 0


async def test_a_read_waits_for_the_client(side: Side) -> None:
    task = await begun(side.body.read(10))
    assert waits(side)
    side.input.feed_data(b"some")
    assert not waits(side)
    assert await task == b"some"
    task = await begun(side.body.read())
    side.input.feed_data(b"more")
    await turn()
    assert not task.done()
    side.input.feed_eof()
    assert await task == b"more"
    assert not side.input.is_waited_for


async def test_the_first_read_is_told_once(side: Side) -> None:
    side.input.feed_data(b"some")
    await turn()
    assert side.calls == []
    await side.body.read(1)
    await side.body.read(1)
    await turn()
    assert side.calls == ["first read"]


async def test_a_line_without_end_takes_nothing(side: Side) -> None:
    side.input.feed_data(bytes(70_000))
    with pytest.raises(ValueError, match="65536"):
        await side.body.readline()
    with pytest.raises(LimitOverrunError):
        await side.body.readuntil(b";")
    assert await side.body.readexactly(70_000) == bytes(70_000)


async def test_a_cancelled_read_takes_nothing(side: Side) -> None:
    task = await begun(side.body.readexactly(5))
    side.input.feed_data(b"123")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not side.input.is_waited_for
    side.input.feed_data(b"45")
    assert await side.body.readexactly(5) == b"12345"


async def test_one_task_reads_at_a_time(side: Side) -> None:
    task = await begun(side.body.read(1))
    with pytest.raises(RuntimeError, match="another coroutine is reading"):
        await side.body.read(1)
    assert side.input.is_awaited_by(task)  # type: ignore[arg-type]
    side.input.feed_data(b"1")
    assert await task == b"1"


async def test_the_empty_one() -> None:
    body = empty_body()
    for _ in range(2):
        assert await body.read() == await body.read(5) == await body.readline() == b""
        assert [line async for line in body] == []
    with pytest.raises(IncompleteReadError):
        await body.readexactly(1)


# -- the marks


async def test_the_marks(side: Side) -> None:
    """What is held pauses above the high one and resumes at the low one, whoever began to hold it."""
    side.input.feed_data(bytes(HIGH))
    assert side.calls == []
    side.input.feed_data(b"1")
    assert (side.calls, side.input.paused) == (["pause"], True)
    await side.body.read(HIGH - LOW)
    await turn()
    assert "resume" not in side.calls
    assert len(side.input) == side.memory.used == LOW + 1
    await side.body.read(1)
    await turn()
    assert side.calls[-1] == "resume"
    assert not side.input.paused
    side.calls.clear()
    side.input.feed_data(bytes(HIGH - LOW))
    assert side.calls == []
    side.input.feed_data(b"1")
    assert side.calls == ["pause"]


async def test_what_the_loop_is_asked_for_is_none_of_the_apps(side: Side) -> None:
    """What is called with its variables may keep them for as long as the connection lives."""
    VARIABLE.set("of the app")
    side.input.feed_data(bytes(HIGH + 1))
    await side.body.readexactly(HIGH + 1)
    await turn()
    assert side.calls == ["pause", "pause", "first read", "resume"]
    assert side.seen == {"first read": "none", "resume": "none"}


async def test_a_read_of_more_than_the_mark_resumes(side: Side) -> None:
    side.input.feed_data(bytes(HIGH + 1))
    task = await begun(side.body.readexactly(HIGH + 100))
    assert side.calls[-1] == "resume"
    side.input.feed_data(bytes(99))
    assert len(await task) == HIGH + 100


async def test_nothing_goes_to_disk_when_memory_is_short(side: Side) -> None:
    side.memory.add(1 << 40)
    await begun(side.body.readexactly(HIGH))
    side.input.feed_data(bytes(HIGH - 1))
    await turn()
    assert side.memory.used == (1 << 40) + HIGH - 1  # and no task waits for a disk
    assert len(asyncio.all_tasks()) == 2
    side.input.close()
    await turn()


# -- one side or the other


async def in_thread(call: Any) -> Any:
    """What `call()` returns or raises in another thread, while the loop runs."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(call())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    await until(lambda: result)
    thread.join(DEADLINE)
    return result[0]


@pytest.mark.parametrize("ended", [False, True])
async def test_what_a_thread_reads_cannot_be_read_here(side: Side, ended: bool) -> None:
    side.input.feed_data(b"some")
    file = side.input.getfile()
    assert await in_thread(lambda: file.read(1)) == b"s"
    assert side.input.is_read_by_thread
    if ended:
        side.input.feed_eof()
        assert await in_thread(file.read) == b"ome"
    with pytest.raises(RuntimeError, match="and cannot be read from waitress_async"):
        await side.body.read()
    await turn()
    assert side.calls == ["first read"]


@pytest.mark.parametrize("ended", [False, True])
async def test_what_is_read_here_cannot_be_read_by_a_thread(side: Side, ended: bool) -> None:
    side.input.feed_data(b"some")
    assert await side.body.read(1) == b"s"
    assert not side.input.is_read_by_thread
    if ended:
        side.input.feed_eof()
        assert await side.body.read() == b"ome"
    error = await in_thread(side.input.getfile().read)
    assert isinstance(error, RuntimeError)
    assert "has been read from waitress_async.body" in str(error)


async def test_another_loop_is_refused(side: Side) -> None:
    error = await in_thread(lambda: asyncio.run(side.body.read()))
    assert isinstance(error, RuntimeError)
    assert "on the server's loop" in str(error)
    side.input.feed_data(b"some")
    assert await in_thread(lambda: side.input.getfile().read(4)) == b"some"  # and has claimed nothing


# -- the end before the end


@contextlib.contextmanager
def raising(error: type[Exception], match: str) -> Iterator[None]:
    with pytest.raises(error, match=match):
        yield


async def assert_all_raise(side: Side, error: type[Exception], match: str) -> None:
    reads = (side.body.read(), side.body.read(1), side.body.readline(), side.body.readexactly(1))
    for read in reads:
        with raising(error, match):
            await read
    with raising(error, match):
        await anext(side.body)


@pytest.mark.parametrize("reads_before", [False, True])
async def test_after_an_exception_all_reads_raise_it(side: Side, reads_before: bool) -> None:
    side.input.feed_data(bytes(HIGH + 10))
    if reads_before:
        await side.body.read(1)
    side.input.set_exception(ClientDisconnected("the first"))
    side.input.set_exception(ClientDisconnected("the second"))
    side.input.feed_data(b"more")
    side.input.feed_eof()
    await assert_all_raise(side, ClientDisconnected, "the first")
    assert (len(side.input), side.memory.used) == (0, 0)


async def test_an_exception_wakes_the_read(side: Side) -> None:
    task = await begun(side.body.read())
    side.input.feed_data(b"some")
    side.input.set_exception(ClientDisconnected("the client is gone"))
    with pytest.raises(ClientDisconnected):
        await task
    assert side.memory.used == 0


async def test_what_is_complete_stays_so(side: Side) -> None:
    await side.body.read(0)
    side.input.feed_data(b"all of it")
    side.input.feed_eof()
    side.input.set_exception(ClientDisconnected("the client is gone"))
    assert await side.body.read() == b"all of it"


@pytest.mark.parametrize("reads_before", [False, True])
async def test_after_close_reads_raise_value_error(side: Side, reads_before: bool) -> None:
    """Whichever thread closes it. What is held is dropped, and who feeds need not wait."""
    side.input.feed_data(bytes(HIGH + 1))
    if reads_before:
        await side.body.read(1)
    await in_thread(side.input.close)
    await turn()
    assert side.calls[-1] == "resume"
    assert (side.input.paused, len(side.input), side.memory.used) == (False, 0, 0)
    side.input.feed_data(bytes(HIGH + 1))
    side.input.feed_eof()
    await assert_all_raise(side, ValueError, "has ended")
    side.input.close()
    assert side.memory.used == 0


async def test_close_wakes_the_read(side: Side) -> None:
    task = await begun(side.body.read())
    await in_thread(side.input.close)
    with pytest.raises(ValueError, match="has ended"):
        await task


# -- any cut


class Model:
    """The same bytes, all there from the beginning, and what a read of them has to give."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def is_short_of(self, verb: tuple[Any, ...]) -> bool:
        """Whether the end comes before that read has what it wants."""
        match verb:
            case ("readexactly", int(size)):
                return len(self._data) < size
            case ("readuntil", bytes(separator)):
                return separator not in self._data
        return False

    def is_right(self, verb: tuple[Any, ...], result: bytes) -> bool:
        """Whether a read may return that; it is taken then."""
        match verb:
            case ("read", int(size)) if size >= 0:
                right = self._data.startswith(result) and (
                    0 < len(result) <= size or (not result and (not size or not self._data))
                )
            case ("read", _):
                right = result == self._data
            case ("readexactly", int(size)):
                right = result == self._data[:size]
            case (_, *separators):
                separator = separators[0] if separators else b"\n"
                head, found, _ = self._data.partition(separator)
                right = result == head + found
        self._data = self._data[len(result) :]
        return right


def is_right(model: Model, verb: tuple[Any, ...], task: asyncio.Task[bytes]) -> bool:
    """Whether a read may end as this one has. One of too much takes all that is left."""
    error = task.exception()
    if error is None:
        return model.is_right(verb, task.result())
    assert isinstance(error, IncompleteReadError), error
    return model.is_short_of(verb) and model.is_right(("read", -1), error.partial)


verbs = st.one_of(
    st.tuples(st.just("read"), st.integers(-1, 12)),
    st.tuples(st.just("readexactly"), st.integers(0, 12)),
    st.tuples(st.just("readline")),
    st.tuples(st.just("readuntil"), st.sampled_from([b"\n", b"ab", b"aab"])),
)


@given(
    data=st.text("ab\n", max_size=120).map(str.encode),
    cuts=st.lists(st.integers(0, 9), max_size=60),
    reads=st.lists(verbs, max_size=60),
    before=st.integers(0, 20),
    cancel_every=st.integers(1, 5),
)
@settings(deadline=None, max_examples=150)
async def test_any_cut_and_any_reads(
    data: bytes, cuts: list[int], reads: list[tuple[Any, ...]], before: int, cancel_every: int
) -> None:
    """What is read is what was fed, in order, whatever is cancelled on the way. `before` pieces of it come
    before the first read."""
    side, model = Side(), Model(data)
    pieces = []
    for cut in cuts:
        piece, data = data[:cut], data[cut:]
        pieces.append(piece)
    pieces.append(data)

    def feed() -> None:
        if pieces:
            side.input.feed_data(pieces.pop(0))
            if not pieces:
                side.input.feed_eof()

    for _ in range(before):
        feed()
    for number, verb in enumerate([*reads, ("read", -1)], start=1):
        name, *arguments = verb
        if not number % cancel_every:
            task = asyncio.create_task(getattr(side.body, name)(*arguments))
            await asyncio.sleep(0)
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
            else:
                assert is_right(model, verb, task)
        task = asyncio.create_task(getattr(side.body, name)(*arguments))
        async with asyncio.timeout(DEADLINE):
            while not task.done():
                feed()
                await asyncio.sleep(0)
        assert is_right(model, verb, task)
    assert await side.body.read() == b""
    assert side.memory.used == 0
    side.input.close()
    await turn()
