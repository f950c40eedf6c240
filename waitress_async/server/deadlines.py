"""How long a client may take, measured by what it has done and not by when it last did something.

Nothing here has a timer: the server's one sweep asks. Its clock stands still while the server itself does:
a sweep that comes late counts no more than two of its intervals. Loop's thread.
"""

from __future__ import annotations

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


def sweep_interval(settings: Settings) -> float:
    """Seconds between two sweeps."""
    timeouts = [
        settings.header_timeout,
        settings.channel_timeout,
        settings.queue_timeout,
        settings.linger_timeout,
        settings.proxy_protocol_timeout,
        settings.tls_handshake_timeout,
        settings.min_rate_grace,
        settings.gate_timeout if settings.gates else 0,
        settings.ready_max_queue_age if settings.ready_path else 0,
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
        progress = max(progress, self._progress)  # of one that is gone the system may not tell any more
        saved = self._in_hand + (progress - self._progress) / rate
        self._progress = progress
        self._in_hand = min(saved, _SAVINGS * self._grace) - elapsed
        return self._in_hand < 0


class Patience:
    """How long the client of one connection has been waited for. Asked once a sweep, of which `now` is the
    clock and `elapsed` what it moved, in seconds."""

    __slots__ = ("_body", "_head_of", "_head_since", "_response", "_settings", "turn_since")

    def __init__(self, settings: Settings, now: float) -> None:
        self._settings = settings
        self.turn_since = now
        """When its turn to send a request began."""
        self._head_of = -1  # requests before the head that is awaited
        self._head_since = 0.0  # when that was first seen to have begun
        self._body: Pace | None = None
        self._response: Pace | None = None

    def is_idle_too_long(self, now: float, requests: int) -> bool:
        """Whether nothing of a request has come for longer than may be. `requests` were made before it."""
        self._head_of = -1
        timeout = self._settings.channel_timeout if requests else self._settings.header_timeout
        return bool(timeout) and now - self.turn_since >= timeout

    def is_head_late(self, now: float, requests: int) -> bool:
        """Whether a request head, of which some has come, is not whole when it has to be."""
        if self._head_of != requests:
            self._head_of = requests
            self._head_since = now
        timeout = self._settings.header_timeout
        return bool(timeout) and now - self._head_since >= timeout

    def is_body_late(self, received: int, elapsed: float) -> bool:
        """Whether a body that is waited for comes too slowly; `received` is all that came, in bytes."""
        rate = self._settings.body_min_rate
        if self._body is None:
            self._body = self._pace(rate)
            return False
        return self._body.is_too_slow(received, elapsed, rate)

    def body_has_come(self) -> None:
        """No body is on its way: the next one has its time anew."""
        self._body = None

    def is_response_late(self, taken: int, elapsed: float) -> bool:
        """Whether a response that waits is taken too slowly; `taken` is all that was taken, in bytes."""
        rate = self._settings.response_min_rate
        if self._response is None:
            self._response = self._pace(rate)
            return False
        return self._response.is_too_slow(taken, elapsed, rate)

    def response_is_taken(self) -> None:
        """Nothing waits for the client to take it: what comes next has its time anew."""
        self._response = None

    def _pace(self, rate: float) -> Pace | None:
        """From no progress: what it did before is to its credit."""
        return Pace(0, self._settings.min_rate_grace) if rate else None


class CutLog:
    """Says who was cut and why: a line each, and when there are too many, how many more."""

    def __init__(self, log: LogThread) -> None:
        self._log = log
        self._told: dict[str, tuple[float, int]] = {}  # by setting: since when, and how many

    def tell(self, reason: str, peer: str, how_far: str, now: float, level: int = logging.INFO) -> None:
        """`reason` is the setting that said so, or what went wrong; `how_far` what the client had done.

        `now` is by the sweep's clock.
        """
        self.flush(now)
        since, count = self._told.get(reason, (now, 0))
        self._told[reason] = since, count + 1
        if count < _LINES:
            self._log.log(level, "%s: %s: %s", reason, peer, how_far)

    @property
    def owes_lines(self) -> bool:
        """Whether there were more than were told of."""
        return any(count > _LINES for _, count in self._told.values())

    def flush(self, now: float) -> None:
        """Say how many more there were, once the time for lines is over. To be called now and then."""
        for reason, (since, count) in list(self._told.items()):
            if now - since >= _LINES_INTERVAL:
                del self._told[reason]
                if count > _LINES:
                    self._log.log(logging.INFO, "%s: and %d more", reason, count - _LINES)
