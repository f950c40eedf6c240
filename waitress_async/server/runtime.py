"""What the connections of one server share. Made when it starts, from its settings and its sockets alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING

from waitress_async.bridge import (
    CallbackThread,
    LogThread,
    OutputStore,
    Pool,
    PoolExecutor,
    Portal,
    Tasks,
    Wakeup,
)
from waitress_async.buffers import BufferMemory, Spool
from waitress_async.http import DefaultFields, HeadEncoder, Limits
from waitress_async.server.bulky import BulkyPaths
from waitress_async.server.deadlines import CutLog
from waitress_async.server.gates import Gates
from waitress_async.server.health import Health
from waitress_async.server.proxies import Proxies
from waitress_async.settings import Settings
from waitress_async.wsgi import Environ

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from waitress_async.server.connections import Connections


@dataclass(frozen=True, slots=True)
class Application:
    """The WSGI app and what it takes to call it. Read by the pool's threads."""

    app: WSGIApplication
    context: Context  # each call of the app runs in a copy of it
    encoder: HeadEncoder
    expose_tracebacks: bool
    tell_bulky: Callable[[str, bool], object]  # whether the response to a path went to disk


@dataclass(slots=True)
class Runtime:
    """Everything that a connection needs of its server. For the loop's thread."""

    loop: asyncio.AbstractEventLoop
    settings: Settings
    limits: Limits
    proxies: Proxies
    default_fields: DefaultFields
    application: Application
    wakeup: Wakeup
    portal: Portal
    pool: Pool
    disk: PoolExecutor  # what waits for the disk
    spool: Spool
    memory: BufferMemory
    outputs: OutputStore
    log: LogThread
    cuts: CutLog
    callbacks: CallbackThread
    tasks: Tasks  # code of the app's on the loop
    bulky: BulkyPaths
    environ: Environ  # that its requests share
    gates: Gates | None  # if there are any
    health: Health | None  # if anybody may ask
    connections: Connections
    responses: int = 0  # sent whole
