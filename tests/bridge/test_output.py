"""A response between the app's thread and the loop: one crossing, two watermarks, an end to every wait."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bridge.support import DEADLINE, CountingLoop, until, wait
from waitress_async.bridge import Output, Wakeup
from waitress_async.errors import ClientDisconnected
from waitress_async.http import HeadEncoder

HEAD = HeadEncoder().encode("200 OK", [])


class Writer(threading.Thread):
    """A thread that runs `write` and remembers how it ended."""

    def __init__(self, write: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._write = write
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._write()
        except BaseException as error:
            self.error = error

    def ended(self) -> bool:
        return not self.is_alive()


class Side:
    """The loop's side of an output, on a loop that does not run: the test makes each step itself."""

    def __init__(self, high: int) -> None:
        self.loop = CountingLoop()
        self.ready = 0
        self.output = Output(Wakeup(self.loop), self._on_ready, high)

    def _on_ready(self) -> None:
        self.ready += 1

    def turn(self) -> None:
        """One turn of the loop: what was asked for with a wake-up happens."""
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    def is_held(self, writer: Writer) -> bool:
        """Whether the writer waits: all that it wrote is here, and it has not come back."""
        writer.join(0.05)
        return writer.is_alive()


@pytest.fixture
def make_side() -> Iterator[Callable[[int], Side]]:
    sides: list[Side] = []

    def make(high: int) -> Side:
        sides.append(Side(high))
        return sides[-1]

    yield make
    for side in sides:
        side.output.close()
        side.loop.close()


@pytest.fixture
def side(make_side: Callable[[int], Side]) -> Side:
    return make_side(100)


def test_a_whole_response_crosses_once(side: Side) -> None:
    side.output.begin(HEAD, 5)
    side.turn()
    assert (side.ready, side.loop.wakeups) == (0, 0)
    side.output.finish(b"whole")
    assert side.loop.wakeups == 1
    side.turn()
    assert side.ready == 1
    assert side.output.head is HEAD
    assert side.output.length == 5
    assert side.output.take(1_000) == ([b"whole"], True)


def test_an_empty_response_crosses_once(side: Side) -> None:
    side.output.begin(HEAD, 0)
    side.output.finish(b"")
    assert side.loop.wakeups == 1
    assert side.output.take(1_000) == ([], True)


def test_chunks_that_pile_up_share_a_crossing(side: Side) -> None:
    side.output.begin(HEAD, None)
    for chunk in (b"a", b"b", b"c"):
        side.output.write(chunk)
    side.output.finish(b"d")
    side.turn()
    assert (side.ready, side.loop.wakeups) == (1, 1)
    chunks, last = side.output.take(1_000)
    assert (b"".join(chunks), last) == (b"abcd", True)


def test_after_a_take_the_next_chunk_is_announced(side: Side) -> None:
    side.output.begin(HEAD, None)
    side.output.write(b"one")
    assert side.output.take(1_000) == ([b"one"], False)
    assert side.output.take(1_000) == ([], False)
    side.output.write(b"two")
    side.output.write(b"three")
    assert b"".join(side.output.take(1_000)[0]) == b"twothree"
    side.output.finish(b"")
    side.turn()
    assert side.output.take(1_000) == ([], True)
    assert side.loop.wakeups <= 3


def test_what_a_take_leaves_is_not_announced_again(make_side: Callable[[int], Side]) -> None:
    """The loop knows that there is more; a second announcement would be a wasted wake-up."""
    side = make_side(100_000)
    side.output.begin(HEAD, None)
    for _ in range(3):
        side.output.write(bytes(10_000))
    side.turn()
    taken, last = side.output.take(1)
    assert not last
    assert sum(map(len, taken)) == 10_000
    side.output.write(bytes(10_000))
    side.turn()
    assert side.ready == 1
    assert sum(map(len, side.output.take(100_000)[0])) == 30_000


@pytest.mark.parametrize("limit", [1, 10_000, 10_001, 25_000, 60_000])
def test_take_takes_whole_chunks_until_its_limit_is_reached(
    limit: int, make_side: Callable[[int], Side]
) -> None:
    side = make_side(1_000_000)
    side.output.begin(HEAD, None)
    sent = [bytes([number]) * 10_000 for number in range(6)]
    for chunk in sent:
        side.output.write(chunk)
    side.output.finish(b"")
    received = []
    last = False
    while not last:
        chunks, last = side.output.take(limit)
        size = sum(map(len, chunks))
        assert size >= limit or last
        assert size < limit + 10_000  # no more than a chunk beyond it
        received += chunks
    assert b"".join(received) == b"".join(sent)


def test_the_thread_waits_above_the_high_watermark_until_the_low_one(side: Side) -> None:
    side.output.begin(HEAD, None)

    def write() -> None:
        for _ in range(6):
            side.output.write(bytes(20))

    writer = Writer(write)
    wait(lambda: side.is_held(writer))
    taken = 0
    while 120 - taken > 50:
        assert side.is_held(writer), f"released with {120 - taken} bytes above the low watermark"
        size = sum(map(len, side.output.take(1)[0]))
        assert size
        taken += size
    writer.join(DEADLINE)
    assert writer.ended()
    assert writer.error is None


def test_the_thread_does_not_wait_at_the_high_watermark(side: Side) -> None:
    side.output.begin(HEAD, None)
    writer = Writer(lambda: side.output.write(bytes(100)))
    writer.join(DEADLINE)
    assert writer.ended()


def test_finish_never_waits(side: Side) -> None:
    side.output.begin(HEAD, None)
    writer = Writer(lambda: side.output.finish(bytes(1_000_000)))
    writer.join(DEADLINE)
    assert writer.ended()
    assert side.output.take(1) == ([bytes(1_000_000)], True)


def test_close_releases_a_waiting_thread(side: Side) -> None:
    side.output.begin(HEAD, None)
    writer = Writer(lambda: side.output.write(bytes(1_000)))
    wait(lambda: side.is_held(writer))
    assert not side.output.is_closed()
    side.output.close()
    writer.join(DEADLINE)
    assert isinstance(writer.error, ClientDisconnected)
    assert side.output.is_closed()
    assert side.output.take(1_000) == ([], False)


def test_write_after_close_raises_and_finish_does_not(side: Side) -> None:
    side.output.begin(HEAD, None)
    side.output.write(b"before")
    side.output.close()
    with pytest.raises(ClientDisconnected):
        side.output.write(b"after")
    side.output.finish(b"the end")
    side.output.abort()


def test_close_twice_is_fine(side: Side) -> None:
    side.output.close()
    side.output.close()
    assert side.output.is_closed()


def test_an_abort_gives_what_was_written(side: Side) -> None:
    side.output.begin(HEAD, None)
    side.output.write(b"so far")
    side.output.abort()
    assert side.output.take(1_000) == ([b"so far"], True)
    assert side.output.aborted


def test_a_second_thread_of_the_app_does_not_wait_for_ever(side: Side) -> None:
    """An app may hand `write` to a thread of its own, and return before that one is done."""
    side.output.begin(HEAD, None)
    writer = Writer(lambda: side.output.write(bytes(1_000)))
    wait(lambda: side.is_held(writer))
    side.output.finish(b"the end")
    _, last = side.output.take(10_000)
    assert last
    writer.join(2)
    assert writer.ended()


def test_two_waiting_threads_are_both_released(side: Side) -> None:
    side.output.begin(HEAD, None)
    writers = [Writer(lambda: side.output.write(bytes(1_000))) for _ in range(2)]
    wait(lambda: all(side.is_held(writer) for writer in writers))
    side.output.close()
    for writer in writers:
        writer.join(2)
    assert [writer.ended() for writer in writers] == [True, True]


@settings(max_examples=60, deadline=None)
@given(
    chunks=st.lists(st.integers(1, 40_000), max_size=30),
    last=st.integers(0, 40_000),
    high=st.sampled_from([1, 1_000, 30_000, 1_000_000]),
    seed=st.integers(0, 2**32),
)
def test_bytes_out_are_bytes_in(chunks: list[int], last: int, high: int, seed: int) -> None:
    """A real thread against a loop that takes at its own rhythm: sometimes late, sometimes a little."""
    random = Random(seed)
    sent = random.randbytes(sum(chunks) + last)
    received: list[bytes] = []
    largest = max([*chunks, last])

    def write(output: Output) -> None:
        output.begin(HEAD, None)
        position = 0
        for size in chunks:
            output.write(sent[position : position + size])
            position += size
        output.finish(sent[position:])

    async def main() -> None:
        complete = asyncio.Event()
        paused = False

        def pump() -> None:
            while not paused and not complete.is_set():
                limit = random.choice([1, 5_000, 100_000])
                taken, is_last = output.take(limit)
                assert sum(map(len, taken)) < limit + max(largest, 8_192)
                received.extend(taken)
                if is_last:
                    complete.set()
                if not taken or random.random() < 0.2:
                    return pause() if taken else None
            return None

        def pause() -> None:
            nonlocal paused
            paused = True
            loop.call_later(random.random() / 1_000, resume)

        def resume() -> None:
            nonlocal paused
            paused = False
            pump()

        loop = asyncio.get_running_loop()
        output = Output(Wakeup(loop), pump, high)
        writer = Writer(lambda: write(output))
        await asyncio.wait_for(complete.wait(), DEADLINE)
        await until(writer.ended)
        assert writer.error is None
        assert output.take(1_000) in (([], True), ([], False))

    asyncio.run(main())
    assert b"".join(received) == sent


def test_close_at_any_moment_ends_the_thread(make_side: Callable[[int], Side]) -> None:
    """No moment between looking and waiting may swallow the release."""
    for attempt in range(200):
        side = make_side(10)
        side.output.begin(HEAD, None)

        def stream(output: Output = side.output) -> None:
            while True:
                output.write(bytes(6))

        writer = Writer(stream)
        time.sleep(attempt % 5 / 10_000)
        side.output.take(1_000)
        side.output.close()
        writer.join(DEADLINE)
        assert writer.ended()
        assert isinstance(writer.error, ClientDisconnected)
