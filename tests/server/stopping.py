"""An app that a stop meets in every state, and the clients that ask it. For a server in another process."""

from __future__ import annotations

import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

STREAM: Final = [bytes([number]) * 20_000 for number in range(20)]
UPLOAD: Final = bytes(range(256)) * 1_000

_WITHIN: Final = 20.0  # seconds; far more than anything here takes


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """One path for each thing that a request can be about when the server is told to stop."""
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    path = environ["PATH_INFO"]
    shutting_down: Callable[[], bool] = environ["waitress_async.shutting_down"]
    if path == "/stream":
        return iter(STREAM)
    if path == "/events":
        return _events(shutting_down)
    if path == "/upload":
        return [summed(environ["wsgi.input"].read())]
    if path == "/late":
        _wait_for(shutting_down)
    elif path == "/stuck":
        environ["waitress_async.on_disconnect"](
            lambda: None
        )  # has a thread of ours started, which is not stuck
        never_returns()
    return [path.encode("latin-1")]


def never_returns() -> None:
    """Its name is looked for in the log."""
    threading.Event().wait()


def _events(shutting_down: Callable[[], bool]) -> Iterator[bytes]:
    """A stream that ends when it learns that the server stops."""
    yield b"%s\n" % str(shutting_down()).encode()
    _wait_for(shutting_down)
    yield b"%s\n" % str(shutting_down()).encode()


def _wait_for(predicate: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WITHIN
    while not predicate() and time.monotonic() < deadline:
        time.sleep(0.005)


def summed(body: bytes) -> bytes:
    """What an upload is answered."""
    return b"%d %08x" % (len(body), zlib.crc32(body))


class Tally:
    """What became of the requests of some clients. Any thread."""

    def __init__(self) -> None:
        self.stopping = threading.Event()  # set before the server is told
        self.wrong: list[str] = []
        self.answered: Counter[str] = Counter()  # by the kind of client
        self.turned_away = 0  # requests that were sent after the stop began, and got nothing of an answer
        self._changed = threading.Condition()

    def add(self, kind: str) -> None:
        """A request was answered whole."""
        with self._changed:
            self.answered[kind] += 1
            self._changed.notify_all()

    def turn_away(self) -> None:
        with self._changed:
            self.turned_away += 1

    def fail(self, what: str) -> None:
        with self._changed:
            self.wrong.append(what)
            self._changed.notify_all()

    def wait_answered(self, kinds: Iterable[str], count: int) -> None:
        """Wait until each kind has had so many answers, or something went wrong."""
        kinds = list(kinds)
        with self._changed:
            enough = self._changed.wait_for(
                lambda: self.wrong or all(self.answered[kind] >= count for kind in kinds), _WITHIN
            )
        assert enough, self.answered
