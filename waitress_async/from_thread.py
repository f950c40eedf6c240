"""Calls from the thread that runs a WSGI app to the server's event loop. Names and behaviour as in anyio.

    from waitress_async import from_thread

    def app(environ, start_response):
        answer = from_thread.run(client.get, "https://example.org/", timeout=5)

The calls are made on the loop, beside the server's own work: what they run must not block. They run in a copy
of the thread's context (`contextvars`), so what they set there is not seen in the thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar, TypeVarTuple, Unpack

from waitress_async.bridge import current_portal

__all__ = ["FromThread", "run", "run_sync"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def run(
    async_fn: Callable[[Unpack[Ts]], Awaitable[T]],
    *args: *Ts,
    timeout: float | None = None,
    cancel_on_disconnect: bool = False,
) -> T:
    """Await `async_fn(*args)` on the server's loop, in a task of its own, and return what it returns.

    For the thread that the server calls the app in, and for others in a copy of its context. It waits until
    the task has ended. What the function raises is raised here, with its traceback; KeyboardInterrupt and
    SystemExit, too, which do not end the loop. A function that is cancelled may clean up first, or return a
    value in spite of it, which counts. Otherwise this raises

    - TimeoutError if it took more than `timeout` seconds from the call on;
    - ClientDisconnected, if `cancel_on_disconnect`, when the client leaves before its response is complete;
    - ServerClosed when a stop cuts what is left, and for calls after that;
    - concurrent.futures.CancelledError if something else cancelled it.

    Raises RuntimeError on the loop's own thread, in a thread without a server behind it, and, with
    `cancel_on_disconnect`, in one that the server has not called the app in.
    """
    return current_portal().run(async_fn, *args, timeout=timeout, cancel_on_disconnect=cancel_on_disconnect)


def run_sync(fn: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
    """Call `fn(*args)` on the server's loop, and return what it returns or raise what it raises.

    For functions that need the loop's thread, as the methods of a future or a transport do. Raises
    ServerClosed and RuntimeError as `run` does, and TypeError if `fn` is async.
    """
    return current_portal().run_sync(fn, *args)


class FromThread(Protocol):
    """The type of `environ["waitress_async.from_thread"]`: the same calls, for any thread but the loop's."""

    def run(
        self,
        async_fn: Callable[[Unpack[Ts]], Awaitable[T]],
        /,
        *args: *Ts,
        timeout: float | None = None,
        cancel_on_disconnect: bool = False,
    ) -> T:
        """See `run`."""

    def run_sync(self, fn: Callable[[Unpack[Ts]], T], /, *args: *Ts) -> T:
        """See `run_sync`."""
