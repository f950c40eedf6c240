"""Who is too slow, how often it is asked, and what is said of those who were: `server/deadlines.py` alone."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from fractions import Fraction
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waitress_async import Settings
from waitress_async.bridge import LogThread, Wakeup
from waitress_async.server.deadlines import CutLog, Pace, sweep_interval

REASONS = ["header_timeout", "body_min_rate", "response_min_rate", "queue_timeout"]

# -- the pace

RATE = 256.0  # bytes a second
SAVINGS = 6  # graces

# What floats sum up without an error: bytes at a rate that is a power of two, and eighths of a second.
graces = st.integers(1, 80).map(lambda eighths: eighths / 8)
steps = st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 24).map(lambda eighths: eighths / 8)))


def ends_at(grace: float, waits: list[tuple[int, float]], start: int = 0, rate: float = RATE) -> int | None:
    """After which of `waits` (bytes that came in it, seconds that it took) a client is too slow."""
    pace = Pace(start, grace)
    progress = start
    for number, (size, elapsed) in enumerate(waits):
        progress += size
        if pace.is_too_slow(progress, elapsed, rate):
            return number
    return None


def in_hand(grace: float, waits: list[tuple[int, float]]) -> Fraction:
    """Seconds: what came is worth its time at the rate, counted from the first grace, or from any moment on
    at which no more than the savings can have been left."""
    worth = [Fraction(size) / Fraction(RATE) - Fraction(elapsed) for size, elapsed in waits]
    since_start = Fraction(grace) + sum(worth)
    since_any = (
        SAVINGS * Fraction(grace) - Fraction(waits[at][1]) + sum(worth[at + 1 :]) for at in range(len(waits))
    )
    return min(since_start, *since_any)


@given(graces, steps, st.integers(0, 1 << 40))
def test_a_client_is_too_slow_when_no_time_is_left(
    grace: float, waits: list[tuple[int, float]], start: int
) -> None:
    """The first time that the sum says so, and wherever its count of bytes began."""
    end = ends_at(grace, waits, start)
    upto = len(waits) if end is None else end
    assert all(in_hand(grace, waits[: at + 1]) >= 0 for at in range(upto))
    if end is not None:
        assert in_hand(grace, waits[: end + 1]) < 0


@given(
    grace=st.floats(0.1, 60),
    rate=st.floats(0.001, 1e9),
    elapsed=st.lists(st.floats(0.01, 1), min_size=1, max_size=50),
)
def test_whoever_keeps_to_the_rate_is_never_too_slow(grace: float, rate: float, elapsed: list[float]) -> None:
    """Whatever the sizes and intervals are, as long as no interval is longer than what can be saved."""
    waits = [(math.ceil(rate * min(seconds, grace)), min(seconds, grace) * (1 - 1e-9)) for seconds in elapsed]
    assert ends_at(grace, waits, rate=rate) is None


@given(grace=graces, elapsed=st.integers(1, 8).map(lambda eighths: eighths / 8))
def test_who_does_nothing_has_the_grace_and_no_more(grace: float, elapsed: float) -> None:
    end = ends_at(grace, [(0, elapsed)] * 1_000)
    assert end is not None
    assert end * elapsed <= grace < (end + 1) * elapsed


@given(grace=graces, size=st.integers(1 << 20, 1 << 50), elapsed=st.just(0.125))
def test_however_fast_it_was_six_graces_are_saved(grace: float, size: int, elapsed: float) -> None:
    end = ends_at(grace, [(size, 0.0)] + [(0, elapsed)] * 10_000)
    assert end is not None
    stalled = end * elapsed  # the first wait took no time
    assert stalled - elapsed <= SAVINGS * grace < stalled


@given(graces, steps, st.integers(0, 1_000), st.data())
def test_more_bytes_never_hurt(
    grace: float, waits: list[tuple[int, float]], more: int, data: st.DataObject
) -> None:
    end = ends_at(grace, waits)
    if waits:
        at = data.draw(st.integers(0, len(waits) - 1))
        size, elapsed = waits[at]
        faster = ends_at(grace, [*waits[:at], (size + more, elapsed), *waits[at + 1 :]])
        assert faster is None or (end is not None and faster >= end)


@given(graces, steps, st.integers(0, 1 << 40))
def test_progress_that_is_not_told_any_more_is_none(
    grace: float, waits: list[tuple[int, float]], start: int
) -> None:
    """What was done stays done, and is not done again when it is told again."""
    pace = Pace(start, grace)
    progress = start
    end = None
    for number, (size, elapsed) in enumerate(waits):
        progress += size
        if pace.is_too_slow(progress, elapsed, RATE) or pace.is_too_slow(0, 0.0, RATE):
            end = number
            break
    assert end == ends_at(grace, waits, start)


def test_a_byte_now_and_then_is_too_slow() -> None:
    """What a last-byte timeout never sees: there is some progress in each second."""
    end = ends_at(5.0, [(1, 1.0)] * 1_000, rate=240.0)
    assert end == 5


# -- the sweep's interval

timeouts: Final = (
    "header_timeout",
    "channel_timeout",
    "queue_timeout",
    "linger_timeout",
    "proxy_protocol_timeout",
    "tls_handshake_timeout",
)


@given(
    given=st.fixed_dictionaries(
        {}, optional={name: st.just(0.0) | st.floats(0.001, 600) for name in timeouts}
    ),
    grace=st.floats(0.1, 100),
)
def test_the_sweep_comes_four_times_in_the_shortest_timeout(given: dict[str, float], grace: float) -> None:
    """But no more often than twenty times a second, and at least once."""
    settings = Settings.from_keywords(**given, min_rate_grace=grace)
    interval = sweep_interval(settings)
    assert 0.05 <= interval <= 1.0
    values = [getattr(settings, name) for name in timeouts] + [grace]
    on = [value for value in values if value]
    assert interval == 0.05 or all(interval <= value / 4 for value in on)
    assert interval == 1.0 or interval == 0.05 or any(interval == value / 4 for value in on)


@pytest.mark.parametrize("name", timeouts)
def test_whichever_is_the_shortest(name: str) -> None:
    settings = Settings.from_keywords(**{**dict.fromkeys(timeouts, 100.0), name: 0.4})
    assert sweep_interval(settings) == 0.1


def test_by_default_it_comes_twice_a_second() -> None:
    assert sweep_interval(Settings()) == 0.5


# -- what is said

LINES: Final = 10
SECONDS: Final = 10.0


class Said:
    """The lines of a `CutLog`, in the order in which it gave them to the log's thread."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "waitress_async")
        self._caplog = caplog
        self._log = LogThread(Wakeup(asyncio.get_running_loop()))
        self.cuts = CutLog(self._log)

    async def lines(self) -> list[str]:
        self._log.close()
        await self._log.wait_closed(10)
        assert {record.levelno for record in self._caplog.records} <= {logging.INFO}
        return [record.getMessage() for record in self._caplog.records]


async def test_a_line_for_each_says_which_deadline_who_and_how_far(caplog: pytest.LogCaptureFixture) -> None:
    said = Said(caplog)
    said.cuts.tell("header_timeout", "192.0.2.1:80", "3 bytes of a request head came", 0.0)
    said.cuts.tell("body_min_rate", "[::1]:80", "nothing came", 0.0)
    assert await said.lines() == [
        "header_timeout: 192.0.2.1:80: 3 bytes of a request head came",
        "body_min_rate: [::1]:80: nothing came",
    ]


async def test_of_each_kind_ten_in_ten_seconds_and_then_a_count(caplog: pytest.LogCaptureFixture) -> None:
    said = Said(caplog)
    for number in range(1_000):
        said.cuts.tell("header_timeout", f"192.0.2.1:{number}", "late", 100.0 + number / 1_000)
    said.cuts.tell("body_min_rate", "192.0.2.1:1", "late", 101.0)  # has lines of its own
    said.cuts.tell("header_timeout", "192.0.2.1:1000", "late", 100.0 + SECONDS)
    lines = await said.lines()
    assert lines == [
        *[f"header_timeout: 192.0.2.1:{number}: late" for number in range(LINES)],
        "body_min_rate: 192.0.2.1:1: late",
        "header_timeout: and 990 more",
        "header_timeout: 192.0.2.1:1000: late",
    ]


async def test_the_count_comes_though_nobody_else_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    """Or the end of an attack would be told with the beginning of the next."""
    said = Said(caplog)
    for number in range(LINES + 3):
        said.cuts.tell("header_timeout", f"192.0.2.1:{number}", "late", 100.0)
    said.cuts.flush(100.0 + SECONDS / 2)
    said.cuts.tell("header_timeout", "192.0.2.1:9", "late", 100.0 + SECONDS / 2)
    said.cuts.flush(100.0 + SECONDS)
    said.cuts.flush(100.0 + 2 * SECONDS)
    lines = await said.lines()
    assert lines[LINES:] == ["header_timeout: and 4 more"]


async def test_nothing_more_is_said_where_ten_lines_were_enough(caplog: pytest.LogCaptureFixture) -> None:
    said = Said(caplog)
    for number in range(LINES):
        said.cuts.tell("header_timeout", f"192.0.2.1:{number}", "late", 0.0)
    said.cuts.flush(math.inf)
    assert len(await said.lines()) == LINES


@given(st.lists(st.tuples(st.sampled_from(REASONS), st.floats(0, 5)), max_size=300))
def test_no_cut_is_left_out_of_lines_and_counts(cuts: list[tuple[str, float]]) -> None:
    """And in no ten seconds there are more than twice the lines: the end of one stretch and the next one."""

    class Lines(LogThread):
        def __init__(self) -> None:
            self.lines: list[tuple[float, str, int]] = []  # when, the setting, how many

        def log(self, level: int, message: str, *args: object) -> None:
            assert level == logging.INFO
            more = args[1] if "more" in message else None
            self.lines.append((now, str(args[0]), more if isinstance(more, int) else 0))

    log = Lines()
    told = CutLog(log)
    now = 0.0
    for deadline, later in cuts:
        now += later
        told.tell(deadline, "192.0.2.1:1", "late", now)
    told.flush(math.inf)
    for deadline in REASONS:
        lines = [(when, more) for when, setting, more in log.lines if setting == deadline]
        assert sum(more or 1 for _, more in lines) == sum(one == deadline for one, _ in cuts)
        single = [when for when, more in lines if not more]
        for first, last in zip(single, itertools.islice(single, 2 * LINES, None), strict=False):
            assert last - first >= SECONDS
