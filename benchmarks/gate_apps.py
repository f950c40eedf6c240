"""Gates, and the app behind them, for gates.py. Only this server can import it."""

import asyncio
from collections.abc import Iterable
from itertools import count
from typing import TYPE_CHECKING

from waitress_async import GateRequest, Refusal

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

DECIDES_AFTER = 0.3  # seconds
WHO = b"who are you?\n"

_UNAUTHORIZED = Refusal(401, [("WWW-Authenticate", "Bearer")], WHO)

_calls = count()


async def passes(_request: GateRequest) -> None:
    """Awaits nothing."""


async def awaits(_request: GateRequest) -> None:
    """As one does that asks somebody, and has its answer in the next turn of the loop."""
    await asyncio.sleep(0)


async def refuses(request: GateRequest) -> Refusal | None:
    """Uploads, after a while."""
    if request.path != "/upload":
        return None
    await asyncio.sleep(DECIDES_AFTER)
    return _UNAUTHORIZED


def calls(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """How often it was called before."""
    answer = str(next(_calls)).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]
