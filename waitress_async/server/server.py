"""The server: listeners in front, connections in the middle, a pool of threads behind. Loop's thread.

Only `request_stop` may be called from elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextvars import copy_context
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from waitress_async.bridge import LogThread, Pool, Wakeup
from waitress_async.errors import ServerClosed
from waitress_async.http import DefaultFields, HeadEncoder, Limits
from waitress_async.server.descriptors import descriptor_allowance
from waitress_async.server.listeners import Address, Listener, format_address, open_sockets
from waitress_async.server.protocol import HTTPProtocol
from waitress_async.server.runtime import Application, Phase, Runtime
from waitress_async.settings import Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

_SWEEP_INTERVAL: Final = 1.0  # seconds
_MAX_CONNECTIONS: Final = 10_000  # where the setting leaves it to the descriptor limit

# After an abort, the time in seconds that threads and log have to end.
_UNWIND_TIMEOUT: Final = 1.0


class Server:
    """A WSGI server on the running loop.

        async with Server(app, port=0) as server:
            print(server.url)
            await server.serve_forever()

    It installs no signal handler, configures no logging, and never exits the process. Several servers
    can share a loop. All methods are for the loop's thread but `request_stop`.
    """

    def __init__(self, app: WSGIApplication, settings: Settings | None = None, /, **options: object) -> None:
        """`options` are settings by keyword; or give a `Settings`. Raises SettingsError (a ValueError)."""
        if settings is not None and options:
            raise TypeError("give a Settings or keywords, not both")
        self._app = app
        self._settings = settings or Settings.from_keywords(**options)
        self._phase = Phase.NEW
        self._runtime: Runtime | None = None
        self._listeners: list[Listener] = []
        self._handshakes: set[asyncio.Task[object]] = set()  # accepted sockets on their way to a transport
        self._limit = 0
        self._limit_reached = False
        self._sweeper: asyncio.TimerHandle | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()  # a connection was lost, or the deadline moved
        self._stopped = asyncio.Event()
        self._deadline = 0.0

    # -- life

    async def start(self) -> None:
        """Listen and serve. Raises OSError for an address that cannot be had; nothing is left open then."""
        if self._phase is not Phase.NEW:
            raise ServerClosed("a server is started once")
        loop = asyncio.get_running_loop()
        settings = self._settings
        sockets = await open_sockets(settings)
        wakeup = Wakeup(loop)
        log = LogThread(wakeup)
        self._runtime = runtime = Runtime(
            loop=loop,
            settings=settings,
            limits=Limits(
                header_size=settings.max_request_header_size,
                header_fields=settings.max_request_header_fields,
                target_size=settings.max_request_target_size,
                body_size=settings.max_request_body_size,
            ),
            application=Application(self._app, copy_context(), HeadEncoder(), settings.expose_tracebacks),
            default_fields=DefaultFields(settings.ident),
            wakeup=wakeup,
            pool=Pool(wakeup, name="waitress_async", threads=settings.threads, max_queue=settings.max_queue),
            log=log,
            connection_lost=self._connection_lost,
        )
        self._limit = self._connection_limit(log)
        self._listeners = [Listener(loop, sock, log, self._accepted, self._exhausted) for sock in sockets]
        self._enter(Phase.READY)
        for listener in self._listeners:
            log.log(logging.INFO, "Serving on %s://%s", settings.url_scheme, format_address(listener.address))
            listener.resume()
        del runtime

    def _connection_limit(self, log: LogThread) -> int:
        wanted = self._settings.connection_limit
        allowed = descriptor_allowance()
        if wanted > allowed:
            log.log(
                logging.WARNING, "connection_limit %d lowered to %d by the descriptor limit", wanted, allowed
            )
        return min(wanted or _MAX_CONNECTIONS, allowed)

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        if self._runtime is not None:
            self._runtime.phase = phase

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def serve_forever(self) -> None:
        """Start if need be, and return when the server has stopped. Cancelling it stops the server."""
        if self._phase is Phase.NEW:
            await self.start()
        try:
            await self._stopped.wait()
        except asyncio.CancelledError:
            await self.stop()
            raise

    async def stop(self, timeout: float | None = None) -> None:
        """Stop: accept nothing more, finish what is under way, then cut what is left.

        `timeout` in seconds is `graceful_timeout` by default; a second call with a smaller one shortens
        it. Returns when no connection, thread (but one stuck in the app, which is named in the log), task
        or descriptor of the server is left. Calling it again, or before the start, is fine.
        """
        if self._phase is Phase.NEW:
            self._enter(Phase.STOPPED)
            self._stopped.set()
            return
        if self._phase is Phase.STOPPED:
            return
        self._begin_stop(timeout)
        assert self._stopping is not None
        await asyncio.shield(self._stopping)

    def request_stop(self, timeout: float | None = None) -> None:
        """Have `stop(timeout)` begin, and return at once. Any thread, or a signal handler."""
        if self._runtime is not None:
            self._runtime.wakeup.call(lambda: self._begin_stop(timeout))

    # -- where it listens

    @property
    def addresses(self) -> list[Address]:
        """The socket addresses that are listened on, `(host, port)` or `(host, port, flow, scope)`."""
        return [listener.address for listener in self._listeners]

    @property
    def port(self) -> int:
        """The port of the first address. Raises ServerClosed before the start."""
        return self._first_address[1]

    @property
    def url(self) -> str:
        """A URL, without a slash at its end, by which this machine reaches the first address."""
        host, port = self._first_address[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"{self._settings.url_scheme}://{format_address((host, port))}"

    @property
    def _first_address(self) -> Address:
        if not self._listeners:
            raise ServerClosed("the server listens nowhere: it has not started")
        return self._listeners[0].address

    # -- connections

    def _accepted(self, sock: socket.socket, address: Address, listener: Listener) -> bool:
        runtime = self._runtime
        assert runtime is not None
        host, port = address[:2]
        protocol = HTTPProtocol(runtime, (host, str(port)), str(listener.address[1]))
        task = runtime.loop.create_task(self._connect(protocol, sock))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)
        if self._sweeper is None:
            self._sweeper = runtime.loop.call_later(_SWEEP_INTERVAL, self._sweep)
        if self._open_connections < self._limit:
            return True
        if not self._limit_reached:
            self._limit_reached = True
            runtime.log.log(
                logging.WARNING,
                "total open connections reached the connection limit, no longer accepting new connections",
            )
        self._pause_listening()
        return False

    async def _connect(self, protocol: HTTPProtocol, sock: socket.socket) -> None:
        assert self._runtime is not None
        try:
            await self._runtime.loop.connect_accepted_socket(lambda: protocol, sock)
        except OSError:  # the peer is gone already
            sock.close()

    @property
    def _open_connections(self) -> int:
        assert self._runtime is not None
        return len(self._runtime.connections) + len(self._handshakes)

    def _connection_lost(self, protocol: HTTPProtocol) -> None:
        self._changed.set()
        if self._limit_reached and self._open_connections < self._limit and self._phase is Phase.READY:
            self._limit_reached = False
            assert self._runtime is not None
            self._runtime.log.log(
                logging.INFO,
                "total open connections dropped below the connection limit, listening again",
            )
            self._resume_listening()

    def _exhausted(self) -> None:
        assert self._runtime is not None
        self._pause_listening()
        self._runtime.loop.call_later(_SWEEP_INTERVAL, self._resume_listening)

    def _pause_listening(self) -> None:
        for listener in self._listeners:
            listener.pause()

    def _resume_listening(self) -> None:
        if self._phase is Phase.READY and not self._limit_reached:
            for listener in self._listeners:
                listener.resume()

    def _sweep(self) -> None:
        """The one timer of the server. It runs only while there are connections."""
        runtime = self._runtime
        assert runtime is not None
        self._sweeper = None
        now = runtime.loop.time()
        for protocol in list(runtime.connections):
            protocol.sweep(now)
        if self._open_connections and self._phase is not Phase.STOPPED:
            self._sweeper = runtime.loop.call_later(_SWEEP_INTERVAL, self._sweep)

    # -- the stop

    def _begin_stop(self, timeout: float | None) -> None:
        runtime = self._runtime
        assert runtime is not None
        if self._phase is Phase.STOPPED:
            return
        deadline = runtime.loop.time() + (self._settings.graceful_timeout if timeout is None else timeout)
        if self._stopping is None:
            self._deadline = deadline
            self._stopping = runtime.loop.create_task(self._stop())
        elif deadline < self._deadline:
            self._deadline = deadline
            self._changed.set()

    async def _stop(self) -> None:
        runtime = self._runtime
        assert runtime is not None
        try:
            self._enter(Phase.DRAINING)
            for listener in self._listeners:
                listener.close()
            for protocol in list(runtime.connections):
                protocol.drain()
            await self._until_empty()
        finally:
            self._enter(Phase.ABORTING)
            for task in list(self._handshakes):
                task.cancel()
            for protocol in list(runtime.connections):
                protocol.abort()
            runtime.pool.close()
        remaining = max(self._deadline - runtime.loop.time(), _UNWIND_TIMEOUT)
        stuck = await runtime.pool.wait_closed(remaining)
        if stuck:
            runtime.log.log(logging.WARNING, "%d thread(s) still running: %s", len(stuck), ", ".join(stuck))
        self._deadline = runtime.loop.time() + _UNWIND_TIMEOUT
        await self._until_empty()
        if self._sweeper is not None:
            self._sweeper.cancel()
        await runtime.log.close(_UNWIND_TIMEOUT)
        self._enter(Phase.STOPPED)
        self._stopped.set()

    async def _until_empty(self) -> None:
        """Wait for the last connection to go, until the deadline."""
        assert self._runtime is not None
        while self._open_connections:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), self._deadline - self._runtime.loop.time())
            except TimeoutError:
                return
