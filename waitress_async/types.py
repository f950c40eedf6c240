"""Types of what this server adds to the environ, for apps whose types are checked.

    from typing import cast
    from waitress_async.types import Environ

    def app(environ, start_response):
        keys = cast(Environ, environ)
        keys["waitress_async.on_disconnect"](cancel)

Other servers have none of these keys, so `keys.get` is how code asks that runs there, too. PEP 3333 allows
servers to add keys of their own ("environ Variables").
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any, BinaryIO, Protocol, TypedDict

from waitress_async.buffers import SpooledBody
from waitress_async.from_thread import FromThread

__all__ = [
    "Ask",
    "EarlyHints",
    "Environ",
    "FromThread",
    "OnDisconnect",
    "RequestBody",
    "SpooledBody",
    "Stream",
]


class Ask(Protocol):
    """What the server knows: call it. Any thread."""

    def __call__(self) -> bool: ...


class OnDisconnect(Protocol):
    """Have a function called once if the client leaves before the response is complete. Any thread."""

    def __call__(self, callback: Callable[[], object], /) -> None: ...


class EarlyHints(Protocol):
    """Send 103 (Early Hints) with these headers, before the response begins (RFC 8297). The app's thread."""

    def __call__(self, headers: Iterable[tuple[str, str]], /) -> None: ...


class Stream(Protocol):
    """Have what an async iterable yields follow what the app returns, from the loop. The app's thread."""

    def __call__(self, iterable: AsyncIterable[bytes], /) -> None: ...


class RequestBody(Protocol):
    """The request's body, with the verbs of `asyncio.StreamReader`. On the server's loop."""

    async def read(self, n: int = -1) -> bytes: ...

    async def readexactly(self, n: int) -> bytes: ...

    async def readuntil(self, separator: bytes = b"\n") -> bytes: ...

    async def readline(self) -> bytes: ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...


Environ = TypedDict(
    "Environ",
    {
        "wsgi.input": BinaryIO,
        "wsgi.input_terminated": bool,
        "wsgi.early_hints": EarlyHints,
        "waitress.client_disconnected": Ask,
        "waitress_async.on_disconnect": OnDisconnect,
        "waitress_async.shutting_down": Ask,
        "waitress_async.stream": Stream,
        "waitress_async.body": RequestBody | None,
        "waitress_async.spool": SpooledBody | None,
        "waitress_async.from_thread": FromThread,
        "waitress_async.state": Any,
    },
    total=False,
)
"""The keys that this server adds, and what they are."""
