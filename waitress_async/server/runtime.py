"""What the connections of one server share. Loop's thread, but for what `Application` says of itself."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from waitress_async.bridge import LogThread, Pool, Wakeup
from waitress_async.http import DefaultFields, HeadMemo, HeadEncoder, Limits
from waitress_async.settings import Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from waitress_async.server.protocol import HTTPProtocol


class Phase(enum.Enum):
    """The life of a server. It only ever goes forward."""

    NEW = "not started"
    READY = "serving"
    DRAINING = "accepting nothing; what is under way is answered"
    ABORTING = "what is still under way is cut"
    STOPPED = "nothing of ours is left"


@dataclass(frozen=True, slots=True)
class Application:
    """The WSGI app and what it takes to call it. Read by the pool's threads."""

    app: WSGIApplication
    context: Context  # each call of the app runs in a copy of it
    encoder: HeadEncoder
    expose_tracebacks: bool


@dataclass(slots=True)
class Runtime:
    """Everything that a connection needs of its server, made when the server starts."""

    loop: asyncio.AbstractEventLoop
    settings: Settings
    limits: Limits
    application: Application
    default_fields: DefaultFields
    wakeup: Wakeup
    pool: Pool
    log: LogThread
    connection_lost: Callable[[HTTPProtocol], object]
    memo: HeadMemo = field(default_factory=HeadMemo)
    connections: set[HTTPProtocol] = field(default_factory=set)
    phase: Phase = Phase.NEW
