"""How long a client may take, measured by what it has done and not by when it last did something.

Nothing here has a timer: the server's one sweep asks. Its clock stands still while the server itself does:
a sweep that comes late counts no more than two of its intervals. Loop's thread.
"""

from __future__ import annotations

import enum
import logging
from typing import Final

from waitress_async.bridge import LogThread
from waitress_async.settings import Settings

# The longest time between two sweeps, and the shortest, in seconds; between them a quarter of the shortest
# timeout, so that none is missed by much.
_SLOWEST: Final = 1.0
_FASTEST: Final = 0.05

# A client that has been faster than it must be has that much time in hand, in times of the first grace.
_SAVINGS: Final = 6

# Lines for one kind of deadline in so many seconds. What is more is counted.
_LINES: Final = 10
_LINES_INTERVAL: Final = 10.0


class Deadline(enum.Enum):
    """What a client can be too slow at. The values are names of settings."""

    HEAD = "header_timeout"
    BODY = "body_min_rate"
    RESPONSE = "response_min_rate"
    QUEUE = "queue_timeout"


def sweep_interval(settings: Settings) -> float:
    """Seconds between two sweeps."""
    timeouts = [
        settings.header_timeout,
        settings.channel_timeout,
        settings.queue_timeout,
        settings.linger_timeout,
        settings.proxy_protocol_timeout,
        settings.min_rate_grace,
    ]
    shortest = min((timeout for timeout in timeouts if timeout), default=_SLOWEST)
    return min(max(shortest / 4, _FASTEST), _SLOWEST)


class Pace:
    """Whether bytes move at a rate, in the long run and with some time in hand."""

    __slots__ = ("_grace", "_in_hand", "_progress")

    def __init__(self, progress: int, grace: float) -> None:
        """`progress` is a number of bytes that will only grow, `grace` the seconds in hand at first."""
        self._progress = progress
        self._grace = grace
        self._in_hand = grace

    def is_too_slow(self, progress: int, elapsed: float, rate: float) -> bool:
        """Take note of `progress` after `elapsed` more seconds of waiting; `rate` is in bytes a second."""
        saved = self._in_hand + (progress - self._progress) / rate
        self._progress = progress
        self._in_hand = min(saved, _SAVINGS * self._grace) - elapsed
        return self._in_hand < 0


class CutLog:
    """Says who was cut and why: a line each, and when there are too many, how many more."""

    def __init__(self, log: LogThread) -> None:
        self._log = log
        self._told: dict[str, tuple[float, int]] = {}  # by setting: since when, and how many

    def tell(self, setting: str, peer: str, how_far: str, now: float) -> None:
        """`setting` is what said so, `how_far` what the client had done. `now` is any clock's, in seconds."""
        self.flush(now)
        since, count = self._told.get(setting, (now, 0))
        self._told[setting] = since, count + 1
        if count < _LINES:
            self._log.log(logging.INFO, "%s: %s: %s", setting, peer, how_far)

    def flush(self, now: float) -> None:
        """Say how many more there were, once the time for lines is over. To be called now and then."""
        for setting, (since, count) in list(self._told.items()):
            if now - since >= _LINES_INTERVAL:
                del self._told[setting]
                if count > _LINES:
                    self._log.log(logging.INFO, "%s: and %d more", setting, count - _LINES)
