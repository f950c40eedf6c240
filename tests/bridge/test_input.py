"""A request body that an app reads while it comes: waits, watermarks, and an end to both."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from random import Random
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bridge.support import DEADLINE, CountingLoop, wait
from waitress_async.bridge import Input, Wakeup
from waitress_async.buffers import BufferMemory
from waitress_async.errors import ClientDisconnected

HIGH = 262_144
LOW = 65_536


class Side:
    """The loop's side of an input, on a loop that does not run: the test makes each step itself."""

    def __init__(self) -> None:
        self.loop = CountingLoop()
        self.memory = BufferMemory(1 << 40)
        self.calls: list[str] = []
        self.read_by: list[Input] = []
        self.waiting_now = 0
        self.waits = 0
        self.input = Input(
            Wakeup(self.loop),
            self.memory,
            self._waiting,
            lambda which: self.calls.append("pause" if which is self.input else "?"),
            lambda which: self.calls.append("resume" if which is self.input else "?"),
            self.read_by.append,
        )
        self.file = self.input.getfile()

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        self.waits += 1
        self.waiting_now += 1
        try:
            yield
        finally:
            self.waiting_now -= 1

    def turn(self) -> None:
        """One turn of the loop: what was asked for with a wake-up happens."""
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    def feed(self, *data: bytes) -> None:
        """All of a body."""
        for piece in data:
            self.input.feed_data(piece)
        self.input.feed_eof()


class Reader(threading.Thread):
    """A thread that runs `read` and remembers what came of it."""

    def __init__(self, read: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._read = read
        self.result: object = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._read()
        except BaseException as error:
            self.error = error

    def end(self) -> object:
        self.join(DEADLINE)
        assert not self.is_alive(), "it still waits"
        if self.error is not None:
            raise self.error
        return self.result


@pytest.fixture
def side() -> Iterator[Side]:
    side = Side()
    yield side
    side.input.set_exception(ClientDisconnected("the test is over"))
    side.loop.close()


def reading(side: Side, read: Callable[[], object]) -> Reader:
    """Begin a read that has to wait, and return when it does."""
    reader = Reader(read)
    wait(lambda: side.waiting_now or not reader.is_alive())
    assert reader.is_alive()
    return reader


def readinto(file: BinaryIO, size: int = 100) -> bytes:
    buffer = bytearray(size)
    size = file.readinto(buffer)  # type: ignore[attr-defined]
    return bytes(buffer[:size])


BODY = b"first line\nsecond line\n\nlast"


@pytest.mark.parametrize(
    ("read", "result"),
    [
        (lambda file: file.read(), BODY),
        (lambda file: file.read(-1), BODY),
        (lambda file: file.read(7), b"first l"),
        (lambda file: file.read(1_000_000), BODY),
        (lambda file: file.read(0), b""),
        (lambda file: file.readline(), b"first line\n"),
        (lambda file: file.readline(5), b"first"),
        (lambda file: file.readlines(), BODY.splitlines(keepends=True)),
        (list, BODY.splitlines(keepends=True)),
        (readinto, BODY),
        (lambda file: (file.read(7), file.readline(), file.read()), (b"first l", b"ine\n", BODY[11:])),
        (lambda file: (file.read(), file.read(), file.read(5), file.readline()), (BODY, b"", b"", b"")),
    ],
)
@pytest.mark.parametrize("size", [1, 5, 100])
def test_the_body_as_a_file(
    read: Callable[[BinaryIO], object], result: object, size: int, side: Side
) -> None:
    """PEP 3333 "Input and Error Streams"."""
    side.feed(*[BODY[position : position + size] for position in range(0, len(BODY), size)])
    assert read(side.file) == result
    assert side.waits == 0


def test_it_is_for_reading_and_cannot_seek(side: Side) -> None:
    assert (side.file.readable(), side.file.writable(), side.file.seekable()) == (True, False, False)


def test_an_empty_body(side: Side) -> None:
    side.feed()
    assert side.file.read() == b""


def test_a_read_waits_for_all_that_it_asks_for(side: Side) -> None:
    side.input.feed_data(b"12")
    reader = reading(side, lambda: side.file.read(5))
    side.input.feed_data(b"34")
    wait(lambda: len(side.input) == 0)
    assert reader.is_alive()
    side.input.feed_data(b"567")
    assert reader.end() == b"12345"
    side.input.feed_eof()
    assert side.file.read() == b"67"


def test_a_read_waits_for_the_end(side: Side) -> None:
    reader = reading(side, side.file.read)
    side.input.feed_data(b"some")
    wait(lambda: len(side.input) == 0)
    assert reader.is_alive()
    side.input.feed_eof()
    assert reader.end() == b"some"
    assert side.waiting_now == 0


def test_a_readline_waits_for_its_line(side: Side) -> None:
    reader = reading(side, side.file.readline)
    side.input.feed_data(b"a li")
    wait(lambda: len(side.input) == 0)
    assert reader.is_alive()
    side.input.feed_data(b"ne\nand more")
    assert reader.end() == b"a line\n"


def test_a_read1_takes_what_there_is(side: Side) -> None:
    reader = reading(side, lambda: side.file.read1(100))  # type: ignore[attr-defined]
    side.input.feed_data(b"some")
    assert reader.end() == b"some"


def test_it_waits_only_when_nothing_is_there(side: Side) -> None:
    side.input.feed_data(b"some")
    assert side.input.readinto(bytearray(2)) == 2
    assert side.input.readinto(bytearray(9)) == 2
    assert side.waits == 0
    reader = reading(side, lambda: side.input.readinto(bytearray(9)))
    side.input.feed_data(b"more")
    assert reader.end() == 4
    assert side.waits == 1


# -- the first read


@pytest.mark.parametrize("data", [b"", b"some"])
def test_the_first_read_is_told_once_and_on_the_loop(data: bytes, side: Side) -> None:
    """The client may wait for 100 (Continue), and the app may never ask."""
    side.turn()
    assert side.read_by == []
    side.feed(data) if data else side.input.feed_eof()
    side.file.read(1)
    assert side.read_by == []
    side.turn()
    assert side.read_by == [side.input]
    side.file.read()
    side.turn()
    assert side.read_by == [side.input]


def test_the_first_read_is_told_before_it_waits(side: Side) -> None:
    reader = reading(side, lambda: side.file.read(1))
    side.turn()
    assert side.read_by == [side.input]
    side.input.feed_data(b"1")
    assert reader.end() == b"1"


# -- the marks


def test_the_marks(side: Side) -> None:
    """Reading pauses above the high one, and goes on at the low one."""
    side.input.feed_data(bytes(HIGH))
    assert side.calls == []
    side.input.feed_data(b"1")
    assert side.calls == ["pause"]
    side.input.feed_data(bytes(10))  # was under way already
    assert side.calls == ["pause"]
    for _ in range((HIGH + 11 - LOW - 1) // 1_000):
        side.input.readinto(bytearray(1_000))
    side.turn()
    assert len(side.input) > LOW
    assert side.calls == ["pause"]
    side.input.readinto(bytearray(len(side.input) - LOW))
    assert side.calls == ["pause"]  # not from this thread
    side.turn()
    assert side.calls == ["pause", "resume"]
    side.input.readinto(bytearray(1_000))
    side.turn()
    assert side.calls == ["pause", "resume"]
    side.input.feed_data(bytes(HIGH))
    side.input.readinto(bytearray(HIGH))
    side.turn()
    assert side.calls == ["pause", "resume"] * 2


def test_close_resumes(side: Side) -> None:
    """On the loop; what comes then is dropped, and nobody has to wait for it."""
    side.input.feed_data(bytes(HIGH + 1))
    side.input.close()
    assert side.calls == ["pause"]
    side.turn()
    assert side.calls == ["pause", "resume"]
    side.input.feed_data(bytes(HIGH + 1))
    side.input.close()
    side.turn()
    assert side.calls == ["pause", "resume"]
    assert side.memory.used == 0


def test_below_the_high_mark_nobody_is_told(side: Side) -> None:
    for _ in range(10):
        side.input.feed_data(bytes(HIGH))
        side.input.readinto(bytearray(HIGH))
    side.turn()
    assert side.calls == []


# -- the end before the end

READS: list[Callable[[BinaryIO], object]] = [
    lambda file: file.read(),
    lambda file: file.read(1),
    lambda file: file.readline(),
    readinto,
    next,
]


def test_an_exception_wakes_the_thread(side: Side) -> None:
    reader = reading(side, side.file.read)
    error = ClientDisconnected("the client is gone")
    side.input.set_exception(error)
    with pytest.raises(ClientDisconnected) as caught:
        reader.end()
    assert caught.value is error
    assert side.waiting_now == 0


def test_after_an_exception_all_reads_raise_it(side: Side) -> None:
    side.input.feed_data(b"some")
    error = ClientDisconnected("the first")
    side.input.set_exception(error)
    side.input.set_exception(ValueError("the second"))
    side.input.feed_data(b"more")
    side.input.feed_eof()
    for read in READS:
        with pytest.raises(ClientDisconnected, match="the first"):
            read(side.file)
    assert (len(side.input), side.memory.used) == (0, 0)


def test_what_is_complete_stays_so(side: Side) -> None:
    """The client may leave as soon as it has sent all."""
    side.input.feed_data(b"all of it")
    side.input.feed_eof()
    side.input.set_exception(ClientDisconnected("the client is gone"))
    assert side.file.read() == b"all of it"
    side.input.close()


def test_after_close_reads_raise_value_error(side: Side) -> None:
    """A file that an app has kept for longer than its call."""
    side.input.feed_data(bytes(1_000))
    side.input.close()
    assert side.memory.used == 0
    for read in READS:
        with pytest.raises(ValueError, match="has ended"):
            read(side.file)


def test_after_close_nothing_is_held(side: Side) -> None:
    side.input.close()
    side.input.feed_data(b"still on its way")
    side.input.feed_eof()
    assert (len(side.input), side.memory.used) == (0, 0)
    with pytest.raises(ValueError, match="has ended"):
        side.file.read()
    side.input.close()
    side.input.set_exception(ClientDisconnected("the client is gone"))
    with pytest.raises(ValueError, match="has ended"):
        side.file.read()


def test_close_wakes_a_second_thread_of_the_app(side: Side) -> None:
    """It may read while the app returns, and must not wait for what nobody will feed."""
    reader = reading(side, side.file.read)
    side.input.close()
    reader.join(2)
    assert not reader.is_alive()
    assert isinstance(reader.error, ValueError)


# -- memory


@pytest.mark.parametrize("end", ["read", "close", "exception"])
def test_what_is_held_is_counted(end: str, side: Side) -> None:
    side.input.feed_data(bytes(5_000))
    side.input.feed_data(bytes(1_000))
    assert (side.memory.used, len(side.input)) == (6_000, 6_000)
    side.input.readinto(bytearray(2_500))
    assert side.memory.used == 3_500
    if end == "read":
        side.input.readinto(bytearray(10_000))
    elif end == "close":
        side.input.close()
    else:
        side.input.set_exception(ClientDisconnected("the client is gone"))
    assert (side.memory.used, len(side.input)) == (0, 0)
    side.input.close()
    side.input.close()
    assert side.memory.used == 0


def test_an_input_is_true_and_has_the_length_of_what_is_held(side: Side) -> None:
    assert bool(side.input)
    assert len(side.input) == 0


# -- any body, any way to read it


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(st.integers(1, 3_000) | st.sampled_from([65_536, 150_000, 262_144]), max_size=20),
    reads=st.lists(
        st.tuples(st.sampled_from(["read", "readline", "readinto"]), st.integers(0, 200_000)), max_size=60
    ),
    seed=st.integers(0, 2**32),
    fail_at=st.none() | st.integers(0, 20),
)
def test_what_is_read_is_what_was_fed(
    pieces: list[int], reads: list[tuple[str, int]], seed: int, fail_at: int | None
) -> None:
    """A real thread reads while the loop feeds, as long as it is not paused."""
    random = Random(seed)
    body = b"".join(random.randbytes(size) for size in pieces)
    side = Side()
    plain = BytesIO(body)
    error = ClientDisconnected("the client is gone")

    def read() -> None:
        for how, size in reads:
            if how == "readinto":
                assert readinto(side.file, size) == readinto(plain, size)
            else:
                assert getattr(side.file, how)(size) == getattr(plain, how)(size)
        assert side.file.read() == plain.read()

    reader = Reader(read)
    paused = False
    position = 0

    def take_calls() -> None:
        nonlocal paused
        side.turn()
        for call in side.calls:
            assert paused is (call == "resume")
            paused = call == "pause"
        side.calls.clear()

    def is_going_on() -> bool:
        take_calls()
        return not paused or not reader.is_alive()

    for number, size in enumerate(pieces):
        wait(is_going_on)
        if number == fail_at:
            side.input.set_exception(error)
            break
        side.input.feed_data(body[position : position + size])
        position += size
        assert len(side.input) <= HIGH + 262_144
    else:
        side.input.feed_eof()
    reader.join(DEADLINE)
    assert not reader.is_alive()
    if reader.error is not error and reader.error is not None:
        raise reader.error
    assert reader.error is None or fail_at is not None
    take_calls()
    assert not paused or reader.error is not None
    assert len(side.read_by) <= 1
    side.input.close()
    take_calls()
    assert not paused
    assert side.memory.used == 0
    side.loop.close()
