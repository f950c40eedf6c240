"""A server inside somebody else's asyncio program: the API, and what it must leave alone."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import signal
import socket
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

import pytest

from tests.server.support import (
    Client,
    GatedApp,
    bounded,
    eventually_async,
    fetch,
    hello,
    in_thread,
    local_server,
    nothing_left,
    on_each_loop,
    server_threads,
)
from waitress_async import Server, ServerClosed, Settings, serve_async

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


REFUSED = r"refused|Connect call failed"  # uvloop's words, and asyncio's

# -- the context manager


@on_each_loop
async def test_a_server_serves_between_enter_and_exit() -> None:
    with nothing_left():
        async with Server(hello, host="127.0.0.1", port=0) as server:
            assert server.addresses == [("127.0.0.1", server.port)]
            assert server.url == f"http://127.0.0.1:{server.port}"
            assert await fetch(server.port) == b"Hello, world!"
        with pytest.raises(OSError, match=REFUSED):
            await fetch(server.port)


@on_each_loop
async def test_a_server_can_be_made_of_settings() -> None:
    async with Server(hello, Settings(host="127.0.0.1", port=0, threads=1)) as server:
        assert await fetch(server.port) == b"Hello, world!"
    with pytest.raises(TypeError):
        Server(hello, Settings(), port=0)


@on_each_loop
async def test_before_the_start_it_listens_nowhere() -> None:
    server = local_server()
    assert server.addresses == []
    for name in ("port", "url"):
        with pytest.raises(ServerClosed):
            getattr(server, name)
    await server.stop()


@on_each_loop
async def test_an_error_inside_stops_the_server_and_passes() -> None:
    with nothing_left(), pytest.raises(LookupError):
        async with local_server():
            raise LookupError


@on_each_loop
async def test_two_servers_share_a_loop() -> None:
    with nothing_left():
        async with local_server(lambda environ, start: (start("200 OK", []), [b"one"])[1]) as one:
            async with local_server(lambda environ, start: (start("200 OK", []), [b"two"])[1]) as two:
                assert [await fetch(one.port), await fetch(two.port)] == [b"one", b"two"]
            assert await fetch(one.port) == b"one"
            with pytest.raises(OSError, match=REFUSED):
                await fetch(two.port)


@on_each_loop
async def test_one_server_stops_while_another_is_in_the_middle_of_an_answer() -> None:
    app = GatedApp()
    async with local_server(app) as busy:
        async with local_server():
            answer = asyncio.create_task(fetch(busy.port, "/busy"))
            await eventually_async(lambda: app.entered, "the app was called")
        app.let_go()
        assert await answer == b"/busy"


# -- serve_forever, and its ends


async def ended_by_stop(server: Server) -> None:
    await server.stop()


async def ended_by_request(server: Server) -> None:
    server.request_stop()


async def ended_by_a_thread(server: Server) -> None:
    await in_thread(server.request_stop)


@pytest.mark.parametrize("end", [ended_by_stop, ended_by_request, ended_by_a_thread])
@on_each_loop
async def test_serve_forever_returns(end: Callable[[Server], Coroutine[Any, Any, None]]) -> None:
    with nothing_left():
        server = local_server()
        serving = asyncio.create_task(server.serve_forever())  # which starts it
        await eventually_async(lambda: server.addresses, "the server has started")
        assert await fetch(server.port) == b"Hello, world!"
        assert not serving.done()
        await end(server)
        await bounded(serving)


@on_each_loop
async def test_serve_forever_after_the_stop_returns() -> None:
    async with local_server() as server:
        pass
    await bounded(server.serve_forever())


async def serve_forever(app: GatedApp, addresses: Callable[[int], object]) -> None:
    async with local_server(app) as server:
        addresses(server.port)
        await server.serve_forever()


async def through_serve_async(app: GatedApp, addresses: Callable[[int], object]) -> None:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    addresses(sock.getsockname()[1])
    await serve_async(app, sockets=[sock])


@pytest.mark.parametrize("serve", [serve_forever, through_serve_async])
@on_each_loop
async def test_cancelling_stops_gracefully(
    serve: Callable[[GatedApp, Callable[[int], object]], Coroutine[Any, Any, None]],
) -> None:
    app = GatedApp()
    ports: list[int] = []
    with nothing_left():
        serving = asyncio.create_task(serve(app, ports.append))
        await eventually_async(
            lambda: ports and "waitress_async-1" in server_threads(), "the server has started"
        )
        answer = asyncio.create_task(fetch(ports[0], "/in-flight"))
        await eventually_async(lambda: app.entered, "the app was called")
        serving.cancel()
        await asyncio.sleep(0.02)
        assert not serving.done()
        app.let_go()
        assert await answer == b"/in-flight"
        with pytest.raises(asyncio.CancelledError):
            await bounded(serving)


# -- start and stop, in every order


@on_each_loop
async def test_stop_twice_and_at_the_same_time() -> None:
    with nothing_left():
        server = local_server()
        await server.start()
        await bounded(asyncio.gather(server.stop(), server.stop(), server.stop()))
        await bounded(server.stop())
        server.request_stop()
        await asyncio.sleep(0)


@on_each_loop
async def test_stop_before_start() -> None:
    with nothing_left():
        server = local_server()
        server.request_stop()
        await server.stop()
        await bounded(server.serve_forever())
        with pytest.raises(ServerClosed):
            await server.start()


@on_each_loop
async def test_start_twice() -> None:
    async with local_server() as server:
        with pytest.raises(ServerClosed):
            await server.start()
        assert await fetch(server.port) == b"Hello, world!"
    with pytest.raises(ServerClosed):
        await server.start()


async def look_up_ended() -> None:
    """A look-up runs in a thread that nothing can interrupt, and may outlive a start that is given up."""
    await eventually_async(lambda: not server_threads(), "the look-up has ended, and nothing else runs")


@on_each_loop
async def test_start_twice_at_the_same_time() -> None:
    """A name takes time to look up, in which the server is neither new nor ready."""
    with nothing_left():
        server = Server(hello, host="localhost", port=0)
        results = await asyncio.gather(server.start(), server.start(), return_exceptions=True)
        assert [type(result) for result in results if result is not None] == [ServerClosed]
        await server.stop()
        await look_up_ended()


@on_each_loop
async def test_stop_while_starting() -> None:
    with nothing_left():
        server = Server(hello, host="localhost", port=0)
        starting = asyncio.create_task(server.start())
        await asyncio.sleep(0)
        await bounded(server.stop())
        await asyncio.gather(starting, return_exceptions=True)
        await look_up_ended()


@on_each_loop
async def test_a_cancelled_start_leaves_nothing() -> None:
    with nothing_left():
        server = Server(hello, host="localhost", port=0)
        starting = asyncio.create_task(server.start())
        await asyncio.sleep(0)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await server.stop()
        await look_up_ended()


@on_each_loop
async def test_twenty_times_in_one_process_leave_nothing() -> None:
    async def once() -> None:
        async with local_server(threads=2) as server:
            assert await fetch(server.port) == b"Hello, world!"
            idle = Client(("127.0.0.1", server.port))
            await in_thread(lambda: idle.get().body)
        idle.assert_ended()
        idle.sock.close()

    await once()  # the loop opens something when first used
    with nothing_left():
        for _ in range(20):
            await once()
            assert server_threads() == []
            assert asyncio.all_tasks() == {asyncio.current_task()}


@on_each_loop
async def test_a_stopped_server_is_garbage() -> None:
    servers = set()

    class Marked(Server):
        def __init__(self) -> None:
            super().__init__(hello, host="127.0.0.1", port=0)
            servers.add(id(self))

        def __del__(self) -> None:
            servers.discard(id(self))

    server = Marked()
    await server.start()
    assert await fetch(server.port) == b"Hello, world!"
    await server.stop()
    del server
    await asyncio.sleep(0)
    gc.collect()
    assert servers == set()


# -- what is not its own


@on_each_loop
async def test_nothing_of_the_process_is_changed() -> None:
    def state() -> dict[str, object]:
        root, own = logging.getLogger(), logging.getLogger("waitress_async")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            policy = asyncio.get_event_loop_policy()
        return {
            "signals": {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)},
            "logging": (root.level, list(root.handlers), own.level, list(own.handlers), own.propagate),
            "policy": policy,
            "executor": [thread for thread in threading.enumerate() if thread.name.startswith("asyncio_")],
            "task factory": asyncio.get_running_loop().get_task_factory(),
        }

    before = state()
    async with local_server() as server:
        assert await fetch(server.port) == b"Hello, world!"
        assert state() == before
    assert state() == before


@on_each_loop
async def test_the_app_runs_in_a_copy_of_the_context_of_the_start() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        found = variable.get()
        variable.set("changed by the app")
        start_response("200 OK", [])
        return [found.encode()]

    variable.set("set before the start")
    async with local_server(app, threads=1) as server:
        for _ in range(2):
            assert await fetch(server.port) == b"set before the start"
    assert variable.get() == "set before the start"


@on_each_loop
async def test_other_tasks_run_while_the_app_blocks() -> None:
    app = GatedApp()
    async with local_server(app, threads=1) as server:
        answer = asyncio.create_task(fetch(server.port, "/blocked"))
        await eventually_async(lambda: app.entered, "the app was called")
        began = time.monotonic()
        for _ in range(100):
            await asyncio.sleep(0)
        assert time.monotonic() - began < 5
        app.let_go()
        assert await answer == b"/blocked"


# -- beside other tasks, and in other people's hands


@on_each_loop
async def test_a_task_group_that_fails_beside_it_stops_it_gracefully() -> None:
    app = GatedApp()
    may_fail = asyncio.Event()
    answers: list[bytes] = []

    async def visit(port: int) -> None:
        answers.append(await fetch(port, "/in-flight"))

    async def fail() -> None:
        await may_fail.wait()
        raise LookupError

    with nothing_left():
        server = local_server(app)
        await server.start()
        visiting = asyncio.create_task(visit(server.port))
        await eventually_async(lambda: app.entered, "the app was called")

        async def group() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(server.serve_forever())
                tasks.create_task(fail())

        grouped = asyncio.create_task(group())
        may_fail.set()
        await eventually_async(server._runtime.connections.is_draining, "the stop has begun")
        assert not grouped.done()
        app.let_go()
        with pytest.raises(ExceptionGroup) as raised:
            await bounded(grouped)
        assert [type(error) for error in raised.value.exceptions] == [LookupError]
        await visiting
        assert answers == [b"/in-flight"]


@on_each_loop
async def test_two_in_a_task_group_of_which_one_is_stopped() -> None:
    with nothing_left():
        one, two = local_server(), local_server()
        async with asyncio.TaskGroup() as tasks:
            serving = [tasks.create_task(server.serve_forever()) for server in (one, two)]
            await eventually_async(lambda: one.addresses and two.addresses, "both have started")
            await bounded(one.stop())
            await serving[0]
            assert await fetch(two.port) == b"Hello, world!"
            assert not serving[1].done()
            two.request_stop()


@pytest.mark.parametrize("serve", [serve_forever, through_serve_async])
def test_under_asyncio_run_in_debug_mode_nothing_is_said(
    serve: Callable[[GatedApp, Callable[[int], object]], Coroutine[Any, Any, None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = GatedApp()
    app.let_go()

    async def main() -> None:
        ports: list[int] = []
        asyncio.get_running_loop().slow_callback_duration = 60  # a machine may be busy
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(serve(app, ports.append))
            await eventually_async(
                lambda: ports and "waitress_async-1" in server_threads(), "the server has started"
            )
            assert await fetch(ports[0], "/visited") == b"/visited"
            serving.cancel()

    caplog.set_level(logging.INFO)
    with nothing_left(), warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(main(), debug=True)
        gc.collect()
    assert {record.name for record in caplog.records} == {"waitress_async"}
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


async def test_on_the_loop_of_pytest_asyncio() -> None:
    with nothing_left():
        async with local_server() as server:
            assert await fetch(server.port) == b"Hello, world!"


@pytest.fixture
async def server_of_a_fixture() -> AsyncIterator[Server]:
    async with local_server() as server:
        yield server


async def test_from_an_async_fixture(server_of_a_fixture: Server) -> None:
    assert await fetch(server_of_a_fixture.port) == b"Hello, world!"
