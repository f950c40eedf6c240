"""The server's life: start, serve, stop. Loop's thread, but for `request_stop`."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import Context, copy_context
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from waitress_async.bridge import (
    AsyncBodies,
    CallbackThread,
    LogThread,
    OutputStore,
    Pool,
    PoolExecutor,
    Portal,
    Tasks,
    Wakeup,
    empty_body,
    in_thread,
)
from waitress_async.buffers import BufferMemory, Spool, check_directory
from waitress_async.errors import LifespanError, ServerClosed, SettingsError
from waitress_async.http import DefaultFields, HeadEncoder, Limits, ProxiedAddresses
from waitress_async.server.bulky import BulkyPaths
from waitress_async.server.connections import Connections
from waitress_async.server.deadlines import CutLog
from waitress_async.server.encrypted import EncryptedProtocol
from waitress_async.server.ends import ends_of
from waitress_async.server.gates import Gates
from waitress_async.server.health import Health
from waitress_async.server.heap import Heap
from waitress_async.server.lifespan import Lifespan, error_of
from waitress_async.server.listeners import (
    Address,
    Listener,
    ListeningSocket,
    LookedUp,
    look_up,
    open_sockets,
    url_of,
)
from waitress_async.server.own_loop import serve_in_thread
from waitress_async.server.protocol import HTTPProtocol
from waitress_async.server.proxies import Proxies
from waitress_async.server.runtime import Application, Runtime
from waitress_async.server.tls import TLS, load_tls
from waitress_async.settings import Settings
from waitress_async.wsgi import check_application, server_environ

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

# The time in seconds that threads have to end once their clients are cut, and log records to be handled.
_UNWIND_TIMEOUT: Final = 0.5

# That of threads that are told to end, and have nothing to do.
_END_TIMEOUT: Final = 0.1

# The least that a lifespan has to be left, however late it is by then.
_LEAVE_TIMEOUT: Final = 1.0

# Time in seconds between the last accept and the closing of idle connections: requests that were sent by
# then, but not read, are still served. At least so many turns of the loop, for one that is held up: to see an
# accepted socket to its first read takes some five.
_LAST_CALL: Final = 0.1
_LAST_TURNS: Final = 10

# Threads that wait for the disk.
_DISK_THREADS: Final = 4

# Spare threads for each of `threads`, where nothing else is set.
_SPARES: Final = 4


class Phase(enum.Enum):
    """The life of a server. It only ever goes forward."""

    NEW = "not started"
    STARTING = "its folder is tried, its addresses are looked up, and its lifespan is entered"
    READY = "serving"
    DRAINING = "what is under way is answered, and nothing more is accepted after drain_delay"
    ABORTING = "what is still under way is cut"
    STOPPED = "nothing of ours is left"


class Server:
    """A WSGI server on the running loop.

        async with Server(app, port=0) as server:
            print(server.url)
            await server.serve_forever()

    It installs no signal handler, configures no logging, and never exits the process. Several servers
    can share a loop. All methods are for the loop's thread but `request_stop`, `reload_tls` and `in_thread`.
    """

    _runtime: Runtime  # from the start on

    def __init__(self, app: WSGIApplication, settings: Settings | None = None, /, **options: object) -> None:
        """`options` are settings by keyword; or give a `Settings`.

        Raises SettingsError (a ValueError), and NotWSGIError (a TypeError) for what is no WSGI app. Names of
        objects ("shop:lifespan") are not looked up here: give the objects.
        """
        if settings is not None and options:
            raise TypeError("give a Settings or keywords, not both")
        check_application(app)
        self._app = app
        self._settings = settings or Settings.from_keywords(**options)
        self._settings.check_loaded()
        self._opened: list[ListeningSocket] | None = None  # that nobody is accepted from yet
        self._announces = True  # where it serves
        self._phase = Phase.NEW
        self._wakeup: Wakeup | None = None  # from the beginning of the start on
        self._stop_requested = False
        self._start_over = asyncio.Event()
        self._log_thread: LogThread | None = None  # from the start on
        self._lifespan: Lifespan | None = None  # from the start on, if it has one
        self._tls: TLS | None = None  # from the start on, if it speaks it
        self._addresses: list[Address] = []
        self._stop_at = math.inf  # when a stop under way becomes an abort, in the loop's time
        self._stop_timeout = 0.0  # seconds from the end of drain_delay on
        self._deadline: asyncio.Timeout | None = None  # which holds it to that
        self._hurried = asyncio.Event()  # by a second call of the stop
        self._outcome = 0, 0  # responses sent since the stop began, connections cut
        self._stopping: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()

    # -- life

    async def start(self) -> None:
        """Listen and serve.

        Raises OSError, which names the address that cannot be had, or the folder in which temporary files
        cannot be made; LifespanError, whose `__cause__` is what the lifespan raised; and ServerClosed if the
        server was started or stopped before. Nothing is left open then, and a lifespan that was entered is
        left again. Cancelled while it waits for the disk or the name service, it leaves a thread that ends
        when the answer comes; while it enters the lifespan, it cancels that and waits for its end.
        """
        if self._phase is not Phase.NEW:
            raise ServerClosed("a server is started once")
        self._phase = Phase.STARTING
        self._wakeup = wakeup = Wakeup(asyncio.get_running_loop())
        if self._stop_requested:  # looked at after the wake-up is there: one of the two is seen
            self._enter_stopped()
            raise ServerClosed("the server was stopped before it started")
        try:
            self._runtime = runtime = await self._open(wakeup)
        except BaseException:
            await self._give_up_start()
            raise
        self._phase = Phase.READY
        self._start_over.set()
        for url in self.urls if self._announces else ():
            runtime.log.log(logging.INFO, "Serving on %s", url)
        if without_effect := ", ".join(self._settings.without_effect):
            runtime.log.log(logging.WARNING, "Settings that have no effect here: %s", without_effect)
        if self._settings.trusted_proxy and not self._settings.trusted_proxy_headers:
            runtime.log.log(
                logging.WARNING, "trusted_proxy_headers is not set: only x-forwarded-proto is trusted"
            )

    def take_over(self, sockets: list[ListeningSocket]) -> None:
        """Listen on these, which `open_sockets` has opened, when it starts; whoever opened them says so.

        Before the start.
        """
        self._opened = sockets
        self._announces = False

    async def _open(self, wakeup: Wakeup) -> Runtime:
        looked_up = await in_thread(wakeup, "waitress_async-start", self._prepare)
        self._check_starting()
        self._log_thread = log = LogThread(wakeup)
        context = await self._enter_lifespan()
        if self._opened is None:
            self._opened = open_sockets(self._settings, looked_up)
        runtime = self._make_runtime(wakeup, log, context)
        sockets, self._opened = self._opened, None
        self._addresses = [listening.address for listening in sockets if not listening.redirects]
        runtime.connections.listen(sockets)
        return runtime

    def _check_starting(self) -> None:
        if self._phase is not Phase.STARTING:
            raise ServerClosed("the server was stopped while it started")

    async def _enter_lifespan(self) -> Context:
        """Returns the context in which the app is to run."""
        make = self._settings.lifespan
        if make is None or isinstance(make, str):  # no name is left here
            return copy_context()
        self._log("Entering the lifespan")
        self._lifespan = lifespan = Lifespan(make, self._lifespan_interrupted)
        try:
            await lifespan.wait_entered()
        except LifespanError:
            self._check_starting()
            self._lifespan = None  # there is nothing to leave, and who starts the server is told
            raise
        self._check_starting()
        return lifespan.context

    def _lifespan_interrupted(self) -> asyncio.Event:
        """Something else has cancelled it: a task group in it, or the end of asyncio.run()."""
        if self._stopping is None:
            self._logs.log(logging.WARNING, "The lifespan was cancelled: the server stops")
            self._begin_stop(None)
        return self._stopped

    async def _give_up_start(self) -> None:
        """Leave nothing of a start that has failed, or was stopped."""
        if self._log_thread is not None:
            await asyncio.shield(self._stopping or self._begin_stop(None))
        self._enter_stopped()

    def _prepare(self) -> LookedUp:
        """What waits for the disk and the name service."""
        check_directory(self._settings.tmp_dir)
        self._tls = load_tls(self._settings)
        return look_up(self._settings) if self._opened is None else {}

    def _make_runtime(self, wakeup: Wakeup, log: LogThread, context: Context) -> Runtime:
        loop = asyncio.get_running_loop()
        settings = self._settings
        threads = settings.threads
        spares = _SPARES * threads if settings.spare_threads is None else settings.spare_threads
        portal = Portal(wakeup)
        portal.install(context)  # before a thread calls a hook in it
        pools = contextlib.ExitStack()  # what is left running if one of them cannot be made
        with pools:
            pool = Pool(
                wakeup,
                name="waitress_async",
                threads=threads,
                max_queue=settings.max_queue,
                spares=spares,
                thread_init=_in_copy_of(context, settings.thread_init),
                thread_exit=_in_copy_of(context, settings.thread_exit),
            )
            pools.callback(pool.close)
            disk = PoolExecutor(wakeup, name="waitress_async-disk", threads=_DISK_THREADS)
            pools.pop_all()
        spool = Spool(
            settings.tmp_dir,
            limit=settings.spool_limit,
            min_free=settings.spool_min_free,
            executor=disk,
            loop=loop,
        )
        memory = BufferMemory(settings.buffer_memory)
        callbacks = CallbackThread(wakeup, log)
        tasks = Tasks()
        bulky = BulkyPaths()
        cuts = CutLog(log)
        encoder = HeadEncoder()
        connections = Connections(
            loop,
            settings,
            log,
            cuts,
            memory,
            Heap(memory, disk.submit),
            self._tls,
            self._make_protocol,
        )
        outputs = OutputStore(
            overflow=min(settings.outbuf_overflow, settings.outbuf_high_watermark),
            high_watermark=settings.outbuf_high_watermark,
            memory=memory,
            spool=spool,
            waiting=pool.lending,
            promise=pool.promise,
            tell=callbacks.submit,
            async_bodies=AsyncBodies(wakeup, log, memory, settings.max_streams, tasks),
        )
        return Runtime(
            loop=loop,
            settings=settings,
            limits=Limits(
                header_size=settings.max_request_header_size,
                header_fields=settings.max_request_header_fields,
                target_size=settings.max_request_target_size,
                body_size=settings.max_request_body_size,
            ),
            proxies=Proxies(settings, log),
            default_fields=DefaultFields(settings.ident),
            application=Application(
                self._app,
                context,
                encoder,
                settings.expose_tracebacks,
                tell_bulky=lambda path, is_bulky: wakeup.call(partial(bulky.note, path, is_bulky)),
            ),
            wakeup=wakeup,
            portal=portal,
            pool=pool,
            disk=disk,
            spool=spool,
            memory=memory,
            outputs=outputs,
            log=log,
            cuts=cuts,
            callbacks=callbacks,
            tasks=tasks,
            bulky=bulky,
            environ=server_environ(
                server_name=settings.server_name,
                script_name=settings.url_prefix,
                server_software=settings.ident or "waitress_async",
                shutting_down=connections.is_draining,
                state=self.state,
                from_thread=portal,
                empty_body=empty_body(),
            ),
            gates=self._make_gates(context, tasks, log, encoder),
            health=self._make_health(connections, encoder),
            connections=connections,
        )

    def _make_gates(
        self, context: Context, tasks: Tasks, log: LogThread, encoder: HeadEncoder
    ) -> Gates | None:
        gates = [gate for gate in self._settings.gates if not isinstance(gate, str)]  # no name is left here
        if not gates:
            return None
        return Gates(gates, state=self.state, context=context, tasks=tasks, log=log, encoder=encoder)

    def _make_health(self, connections: Connections, encoder: HeadEncoder) -> Health | None:
        settings = self._settings
        if settings.live_path is None and settings.ready_path is None:
            return None
        return Health(
            settings,
            encoder,
            is_serving=lambda: self._phase is Phase.READY,
            queue_age=connections.queue_age,
        )

    def _make_protocol(
        self, peer: Address, listener: Listener, proxied: ProxiedAddresses | None
    ) -> HTTPProtocol:
        if self._tls is None:
            ends = ends_of(peer, listener.address, proxied, self._settings.url_scheme)
            return HTTPProtocol(self._runtime, ends)
        if listener.redirects:
            ends = ends_of(peer, listener.address, proxied, "http")
            return HTTPProtocol(self._runtime, ends, redirect_port=self._https_port)
        return EncryptedProtocol(self._runtime, ends_of(peer, listener.address, proxied, "https"))

    @property
    def _https_port(self) -> int:
        """Where plain HTTP is redirected to: the first port of those that speak TLS."""
        ports = [address[1] for address in self._addresses if not isinstance(address, str)]
        return ports[0] if ports else 443

    def reload_tls(self) -> None:
        """Load certificates and keys anew, for new connections. Any thread; one waits for another. It
        reads files.

        Raises SettingsError or OSError, which name the file; what was loaded before goes on being used
        then. SettingsError, too, for a server without TLS.
        """
        if not self._settings.speaks_tls:
            raise SettingsError("there is no certificate to load: the server does not speak TLS")
        if self._tls is not None:  # before the start nothing is loaded that could be old
            self._tls.reload()

    async def reload(self) -> None:
        """Have `reload_tls` called, where TLS is spoken, in a thread; the log says how that went."""
        if self._phase is Phase.STARTING:
            await self._start_over.wait()  # it may have read the files before they changed
        if self._tls is None or self._wakeup is None or self._phase is Phase.STOPPED:
            return
        try:
            await in_thread(self._wakeup, "waitress_async-reload", self._tls.reload)
        except (OSError, SettingsError) as error:
            reason = getattr(error, "strerror", None) or error
            self._logs.log(logging.ERROR, "Certificates stay as they are: %s", reason)
        else:
            self._log("Certificates are loaded anew, for new connections")

    def in_thread(self) -> AbstractContextManager[Self]:
        """Serve for as long as a block lasts, on a loop of its own in a thread of its own.

            with Server(app, port=0).in_thread() as server:
                print(server.url)

        For any thread, also one with a loop. Within the block the server serves; after it the server is
        stopped and its thread has ended. Ctrl-C while that is waited for cuts what is under way. The app
        runs in a copy of the caller's context.

        Entering raises what `start` does, and SettingsError for a loop that is not installed. Leaving raises
        LifespanError, if nothing else is raised there.
        """
        return serve_in_thread(self, self._settings)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        if error is None:
            self._raise_failure()

    async def serve_forever(self) -> None:
        """Start if need be, and return when the server has stopped. Cancelling it stops the server.

        Raises what `start` does; and LifespanError, when all has stopped, if the lifespan has failed
        meanwhile or at its end. So does `async with` at the end of a block that raises nothing.
        """
        if self._phase is Phase.NEW:
            await self.start()
        try:
            await self._stopped.wait()
        except asyncio.CancelledError:
            await self.stop()
            raise
        self._raise_failure()

    def _raise_failure(self) -> None:
        failure = None if self._lifespan is None else self._lifespan.failure
        if failure is not None:
            raise error_of("failed", failure, is_logged=True) from failure

    async def stop(self, timeout: float | None = None) -> None:
        """Stop: accept nothing more, finish what is under way, then cut what is left.

        `timeout` in seconds is `graceful_timeout` by default; a call with a smaller one shortens a stop
        under way. Returns when no connection, thread (but one stuck in the app, which is named in the
        log), task or descriptor of the server is left. Calling it again, or before the start, is fine.
        A lifespan that fails as it is left is told of in the log, and by `serve_forever`.
        """
        if self._is_stoppable_at_once:
            self._enter_stopped()
        elif self._phase is not Phase.STOPPED:
            await asyncio.shield(self._begin_stop(timeout))

    def request_stop(self, timeout: float | None = None) -> None:
        """Have `stop(timeout)` begin, and return at once. Any thread, or a signal handler.

        Before the start, it makes that fail with ServerClosed. During the start it does the same, or
        stops the server once it has started, whichever comes first.
        """
        self._stop_requested = True
        if self._wakeup is not None:
            self._wakeup.call(partial(self._stop_now, timeout))

    def _stop_now(self, timeout: float | None) -> None:
        if self._is_stoppable_at_once:
            self._enter_stopped()
        elif self._phase is not Phase.STOPPED:
            self._begin_stop(timeout)

    @property
    def _is_stoppable_at_once(self) -> bool:
        """Whether nothing would have to end yet, but for a start that looks whether it may go on."""
        return self._phase is Phase.NEW or (self._phase is Phase.STARTING and self._lifespan is None)

    @property
    def is_stuck(self) -> bool:
        """Whether it has stopped, but for tasks that go on though they were cancelled: its lifespan, async
        bodies, calls from threads."""
        if self._phase is not Phase.STOPPED:
            return False
        if self._lifespan is not None and not self._lifespan.is_over:
            return True
        runtime: Runtime | None = getattr(self, "_runtime", None)  # a start that failed made none
        return runtime is not None and bool(runtime.tasks.names or runtime.portal.names)

    @property
    def state(self) -> Any:
        """What the lifespan has yielded; None without one, and before. Any thread."""
        return None if self._lifespan is None else self._lifespan.state

    # -- where it listens

    @property
    def addresses(self) -> list[Address]:
        """The socket addresses that are listened on: `(host, port)`, `(host, port, flow, scope)`, or the path
        of a unix socket (or `@` and its abstract name)."""
        return list(self._addresses)

    @property
    def port(self) -> int:
        """The port of the first address. Raises ServerClosed before the start, and if that has no port."""
        address = self._first_address
        if isinstance(address, str):
            raise ServerClosed(f"the server listens on a unix socket, which has no port: {address}")
        return address[1]

    @property
    def url(self) -> str:
        """A URL without a path by which this machine reaches the first address, or `unix:path`."""
        address = self._first_address
        if not isinstance(address, str):
            host, port = address[:2]
            address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port
        return url_of(address, self._scheme)

    @property
    def urls(self) -> list[str]:
        """Where it listens, as the log says it: by what is spoken there, whatever apps are told."""
        return [url_of(address, self._scheme) for address in self._addresses]

    @property
    def _scheme(self) -> str:
        return "http" if self._tls is None else "https"

    @property
    def _first_address(self) -> Address:
        if not self._addresses:
            raise ServerClosed("the server listens nowhere: it has not started")
        return self._addresses[0]

    # -- the stop

    def _begin_stop(self, timeout: float | None) -> asyncio.Task[None]:
        loop = asyncio.get_running_loop()
        if timeout is None:
            timeout = self._settings.graceful_timeout
        if self._stopping is None:
            is_ready = self._phase is Phase.READY
            self._stop_timeout = timeout
            self._stop_at = loop.time() + timeout + (self._settings.drain_delay if is_ready else 0)
            self._stopping = loop.create_task(self._stop() if is_ready else self._stop_start())
        elif timeout < self._stop_timeout:
            self._stop_timeout = timeout
            self._stop_at = min(self._stop_at, loop.time() + timeout)
            self._hurried.set()
            if self._deadline is not None and not self._deadline.expired():
                self._deadline.reschedule(self._stop_at)
        return self._stopping

    async def _stop(self) -> None:
        try:
            try:
                await self._drain()
            finally:
                self._abort()
            await self._unwind()
        finally:  # also when this task is cancelled, as by the end of asyncio.run()
            self._end_threads()
            self._enter_stopped()

    async def _stop_start(self) -> None:
        """The stop of a server that does not serve yet."""
        self._phase = Phase.ABORTING
        try:
            await self._end_lifespan()
            await self._end_log()
        finally:
            self._enter_stopped()

    def _log(self, message: str, *args: object) -> None:
        self._logs.log(logging.INFO, message, *args)

    @property
    def _logs(self) -> LogThread:
        assert self._log_thread is not None  # from the start on
        return self._log_thread

    async def _end_log(self) -> None:
        self._logs.close()
        await self._logs.wait_closed(_UNWIND_TIMEOUT)

    async def _end_lifespan(self) -> None:
        """Leave it, within what is left of the time for the stop, or cut it."""
        lifespan = self._lifespan
        if lifespan is None:
            return
        self._log("Leaving the lifespan" if lifespan.is_entered else "Cancelling the lifespan's start")
        lifespan.end()
        try:
            least = asyncio.get_running_loop().time() + _LEAVE_TIMEOUT
            async with asyncio.timeout_at(max(self._stop_at, least)) as self._deadline:
                await lifespan.wait_over()
        except TimeoutError:
            self._logs.log(logging.WARNING, "The lifespan is cut: it does not end in time")
            lifespan.cut()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(lifespan.wait_over(), _UNWIND_TIMEOUT)
        finally:
            self._deadline = None
        if not lifespan.is_over:
            self._logs.log(logging.WARNING, "The lifespan goes on though it was cut, and is left to itself")
        if lifespan.failure is not None:
            self._logs.log_exception(lifespan.failure, "The lifespan failed")

    async def _drain(self) -> None:
        """Let what is under way come to its end, until the deadline."""
        runtime = self._runtime
        connections = runtime.connections
        self._phase = Phase.DRAINING
        sent_before = runtime.responses
        self._log("Stopping: %d connection(s) open", len(connections))
        try:
            await self._delay()
            async with asyncio.timeout_at(self._stop_at) as self._deadline:
                queued = connections.stop_listening()
                self._log("Listening no more: %d waiting connection(s) accepted", queued)
                connections.drain()
                for _ in range(_LAST_TURNS):  # for requests that are on their way, or not read yet
                    if len(connections):
                        await asyncio.sleep(_LAST_CALL / _LAST_TURNS)
                idle = connections.close_idle()
                self._log("Closed %d idle connection(s): %d under way", idle, len(connections) - idle)
                await connections.wait_empty()
                await runtime.tasks.wait_closed()
                await self._wait_for_threads()
        except TimeoutError:
            pass
        finally:
            self._outcome = runtime.responses - sent_before, len(connections)

    async def _delay(self) -> None:
        """Serve on for `drain_delay`, for who sends requests to learn of it. Another stop cuts it short."""
        delay = self._settings.drain_delay
        if delay:
            self._log("Serving on for %g seconds", delay)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurried.wait(), delay)
            self._stop_at = min(self._stop_at, self._runtime.loop.time() + self._stop_timeout)

    def _abort(self) -> None:
        """Cut what is left."""
        self._phase = Phase.ABORTING
        self._deadline = None
        self._runtime.portal.abort()
        self._runtime.connections.abort()
        self._runtime.connections.stop_sweeping()

    def _end_threads(self) -> None:
        """Let each thread end that has nothing to do."""
        runtime = self._runtime
        for pool in (runtime.pool, runtime.callbacks, runtime.disk.pool):
            pool.close()

    async def _wait_for_threads(self) -> None:
        """Wait for the app's threads to end, and then for those that wait for the disk."""
        runtime = self._runtime
        runtime.pool.close()
        await runtime.pool.wait_closed()
        runtime.callbacks.close()
        await runtime.callbacks.wait_closed()
        await runtime.spool.wait_closed()
        runtime.disk.pool.close()
        await runtime.disk.pool.wait_closed()

    async def _unwind(self) -> None:
        """Wait for connections and threads that were cut, and name those that do not end."""
        runtime = self._runtime
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_UNWIND_TIMEOUT):
                await runtime.portal.wait_closed()
                await runtime.connections.wait_empty()
                await self._wait_for_threads()
                await runtime.tasks.wait_closed()
        self._end_threads()  # all that are not stuck
        pools = runtime.pool, runtime.callbacks, runtime.disk.pool
        await asyncio.gather(*(pool.wait_closed(_END_TIMEOUT) for pool in pools))
        runtime.tasks.cancel()  # also what only had to be closed
        stuck = [*runtime.pool.stacks(), *runtime.callbacks.stacks(), *runtime.disk.pool.stacks()]
        await runtime.tasks.wait_closed(_END_TIMEOUT)
        for name in runtime.tasks.names:
            runtime.log.log(logging.WARNING, "It goes on though it was cancelled: %s", name)
        if stuck:
            names = ", ".join(name for name, _ in stuck)
            runtime.log.log(logging.WARNING, "%d thread(s) still running: %s", len(stuck), names)
        for name, stack in stuck:
            runtime.log.log(logging.WARNING, "%s is stuck here:\n%s", name, stack)
        if names := ", ".join(runtime.portal.names):
            runtime.log.log(logging.WARNING, "Calls from threads that go on though cancelled: %s", names)
        await self._end_lifespan()
        runtime.cuts.flush(math.inf)
        self._log("Stopped: %d response(s) sent since the stop began, %d connection(s) cut", *self._outcome)
        await self._end_log()

    def _enter_stopped(self) -> None:
        if self._lifespan is not None:
            self._lifespan.end()
        if self._log_thread is not None:
            self._log_thread.close()
        for listening in self._opened or ():
            listening.close()
        self._opened = None
        self._phase = Phase.STOPPED
        self._start_over.set()
        self._stopped.set()


def _in_copy_of(context: Context, hook: Callable[[], object] | str | None) -> Callable[[], object] | None:
    """Calls `hook()` in a copy of the context, as the app is called. Any thread, several at a time."""
    if hook is None or isinstance(hook, str):  # no name is left here
        return None
    return lambda: context.copy().run(hook)
