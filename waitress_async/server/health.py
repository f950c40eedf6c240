"""Whether the server lives, and whether it should be sent requests: two paths that it answers itself.

Loop's thread, and nothing is waited for: the answer comes with every thread stuck and a full queue.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from waitress_async.http import Answer, HeadEncoder, Request
from waitress_async.settings import Settings

_METHODS: Final = frozenset({"GET", "HEAD"})


class Health:
    """Answers requests for `live_path` and `ready_path`."""

    def __init__(
        self,
        settings: Settings,
        encoder: HeadEncoder,
        *,
        is_serving: Callable[[], bool],
        queue_age: Callable[[], float],
    ) -> None:
        """`is_serving()` is false from the beginning of a stop on; `queue_age()` is that of the request that
        has waited longest for a thread, in seconds."""
        self._live_path = settings.live_path
        self._ready_path = settings.ready_path
        self._max_queue_age = settings.ready_max_queue_age
        self._is_serving = is_serving
        self._queue_age = queue_age

        def answer(status: str, text: str, *more: tuple[str, str]) -> Answer:
            headers = [("Content-Type", "text/plain"), ("Cache-Control", "no-store"), *more]
            return Answer(encoder.encode(status, headers), text.encode())

        self._ok = answer("200 OK", "ok\n")
        self._stopping = answer("503 Service Unavailable", "stopping\n")
        self._behind = answer("503 Service Unavailable", "requests wait too long for a thread\n")
        self._not_allowed = answer("405 Method Not Allowed", "GET or HEAD only\n", ("Allow", "GET, HEAD"))

    def answer(self, request: Request) -> Answer | None:
        """The answer to `request`; None if it is for somebody else."""
        if request.path not in (self._live_path, self._ready_path):
            return None
        if request.method not in _METHODS:
            return self._not_allowed
        return self._ok if request.path == self._live_path else self._readiness()

    def _readiness(self) -> Answer:
        if not self._is_serving():
            return self._stopping
        if self._max_queue_age and self._queue_age() > self._max_queue_age:
            return self._behind
        return self._ok
