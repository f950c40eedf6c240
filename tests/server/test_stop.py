"""The graceful stop: what is under way is finished, what is idle closed, what is stuck cut and named."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.conftest import LOOPS, RunningServer, ServeInThread
from tests.server.support import (
    DEADLINE,
    Client,
    GatedApp,
    StreamingApp,
    bounded,
    eventually,
    eventually_async,
    fetch,
    hello,
    in_thread,
    local_server,
    nothing_left,
    on_each_loop,
    request,
    server_has_read,
    server_threads,
    settled,
    small_listener,
)
from tests.server.test_unix_sockets import short_folder
from waitress_async import Server

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

Connect = Callable[[RunningServer], Client]


def refuses(address: tuple[str, int]) -> bool:
    try:
        with Client(address):
            return False
    except (ConnectionRefusedError, ConnectionResetError):  # the latter while the listener closes
        return True


def test_a_request_in_flight_is_finished_and_an_idle_connection_closed_at_once(
    serve_in_thread: ServeInThread, gated: GatedApp, connect: Connect
) -> None:
    server = serve_in_thread(gated)
    idle, untouched, busy = connect(server), connect(server), connect(server)
    gated.let_go()
    assert idle.get("/idle").body == b"/idle"
    busy.send(request("/busy"))
    gated.wait_entered(2)
    server.server.request_stop()
    idle.assert_ended()
    untouched.assert_ended()
    eventually(lambda: refuses(server.address), "new connections are refused")
    assert gated.done == ["/idle"]
    gated.let_go()
    response = busy.receive()
    assert response.body == b"/busy"
    assert response.closes
    busy.assert_ended()
    server.stop()


def test_requests_in_the_queue_are_served(
    serve_in_thread: ServeInThread, gated: GatedApp, connect: Connect
) -> None:
    server = serve_in_thread(gated, threads=1)
    clients = [connect(server) for _ in range(4)]
    for number, client in enumerate(clients):
        client.send(request(f"/{number}"))
    gated.wait_entered()
    server_has_read(server)
    server.server.request_stop()
    gated.let_go(4)
    assert {client.receive().body for client in clients} == {b"/0", b"/1", b"/2", b"/3"}


def test_a_request_half_received_is_waited_for(serve_in_thread: ServeInThread, connect: Connect) -> None:
    server = serve_in_thread(hello)
    idle, client = connect(server), connect(server)
    assert idle.get().status == 200
    client.send(request("/", "Content-Length: 4\r\n", method="POST") + b"bo")
    server_has_read(server)
    server.server.request_stop()
    idle.assert_ended()
    client.send(b"dy")
    response = client.receive()
    assert response.status == 200
    assert response.closes


def test_a_stream_under_way_is_finished_and_then_closed(
    serve_in_thread: ServeInThread, connect: Connect
) -> None:
    app = StreamingApp(chunk=bytes(10_000), length=2_000_000)
    server = serve_in_thread(app, outbuf_high_watermark=65_536, sockets=[small_listener()])
    idle, client = connect(server), connect(server)
    client.send(request())
    settled(lambda: app.written)
    server.server.request_stop()
    idle.assert_ended()
    response = client.receive()
    assert len(response.body) == 2_000_000
    client.assert_ended()


def test_a_pipelined_request_behind_the_last_answer_is_not_served(
    serve_in_thread: ServeInThread, gated: GatedApp, connect: Connect
) -> None:
    server = serve_in_thread(gated)
    idle, client = connect(server), connect(server)
    client.send(request("/1") + request("/2"))
    gated.wait_entered()
    server.server.request_stop()
    idle.assert_ended()
    gated.let_go(2)
    response = client.receive()
    assert (response.body, response.closes) == (b"/1", True)
    client.assert_ended()
    assert gated.entered == ["/1"]


def test_a_connection_whose_last_answer_is_taken_during_the_stop_is_closed_then(
    serve_in_thread: ServeInThread, connect: Connect
) -> None:
    """Its answer was written before, and does not say that it is the last; most of it is still to be sent."""
    size = 250_000  # the transport takes it whole, and the system does not

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        return [bytes(size if environ["PATH_INFO"] == "/large" else 1)]

    server = serve_in_thread(
        app,
        graceful_timeout=1_000,
        channel_timeout=0,
        linger_timeout=0.2,  # sweeps come often
        sockets=[small_listener()],
    )
    idle = connect(server)
    assert idle.get().status == 200
    with Client(server.address, receive_buffer=4_096) as slow:
        slow.send(request("/large"))
        eventually(lambda: server.server._runtime.responses == 2, "it is written")
        server.server.request_stop()
        idle.assert_ended()
        response = slow.receive()
        assert (len(response.body), response.closes) == (size, False)
        slow.assert_ended()
        server.thread.join(DEADLINE)
        assert not server.thread.is_alive()


# -- the deadline


@on_each_loop
async def test_the_deadline_cuts_and_names_the_stuck_thread(caplog: pytest.LogCaptureFixture) -> None:
    app = GatedApp()
    server = local_server(app, threads=2, graceful_timeout=0.2)
    await server.start()
    with Client(("127.0.0.1", server.port)) as client:
        client.send(request("/stuck"))
        await eventually_async(lambda: app.entered, "the app was called")
        began = time.monotonic()
        await bounded(server.stop())
        assert 0.2 <= time.monotonic() - began < 10
        with pytest.raises((ConnectionError, AssertionError)):
            client.receive()
    (name,) = server_threads()
    (record,) = [record for record in caplog.records if "still running" in record.getMessage()]
    assert record.levelno == logging.WARNING
    assert record.getMessage().endswith(f": {name}")
    app.let_go()
    await eventually_async(lambda: not server_threads(), "the thread has ended")
    assert app.done == ["/stuck"]


@on_each_loop
async def test_the_deadline_releases_a_thread_that_waits_for_its_client() -> None:
    app = StreamingApp()
    with nothing_left():
        sock = small_listener()
        address = sock.getsockname()
        server = Server(app, sockets=[sock], outbuf_high_watermark=65_536)
        await server.start()
        with Client(address, receive_buffer=65_536) as client:
            client.send(request())
            await eventually_async(lambda: app.written > 65_536, "it is above the watermark")
            await bounded(server.stop(timeout=0.1))
            assert app.closed.is_set()
            assert server_threads() == []


@on_each_loop
async def test_a_stop_of_zero_seconds_cuts_at_once() -> None:
    app = GatedApp()
    server = local_server(app, threads=1)
    await server.start()
    with Client(("127.0.0.1", server.port)) as client:
        client.send(request())
        await eventually_async(lambda: app.entered, "the app was called")
        stopping = asyncio.create_task(server.stop(0))
        await in_thread(lambda: _assert_cut(client))
        app.let_go()
        await bounded(stopping)
    assert server_threads() == []


def _assert_cut(client: Client) -> None:
    try:
        assert client.rest() == b""
    except ConnectionError:
        pass


@pytest.mark.parametrize("client_stays", [True, False], ids=["the client waits", "the client is gone"])
@on_each_loop
async def test_a_second_stop_shortens_the_first(client_stays: bool) -> None:
    """This is what a second signal does."""
    app = GatedApp()
    server = local_server(app, threads=1, graceful_timeout=60)
    await server.start()
    client = Client(("127.0.0.1", server.port))
    client.send(request("/stuck"))
    await eventually_async(lambda: app.entered, "the app was called")
    if not client_stays:
        client.reset()
    first = asyncio.create_task(server.stop())
    await asyncio.sleep(0.05)
    assert not first.done()
    second = asyncio.create_task(server.stop(0))
    _, late = await asyncio.wait([first, second], timeout=8)
    client.sock.close()
    app.let_go()
    await asyncio.gather(first, second)
    await eventually_async(lambda: not server_threads(), "the thread has ended")
    assert not late, "the stop was not shortened"


@on_each_loop
async def test_a_later_deadline_does_not_lengthen_a_stop() -> None:
    app = GatedApp()
    server = local_server(app, threads=1)
    await server.start()
    with Client(("127.0.0.1", server.port)) as client:
        client.send(request("/stuck"))
        await eventually_async(lambda: app.entered, "the app was called")
        await bounded(asyncio.gather(server.stop(0.1), server.stop(1_000)))
    app.let_go()
    await eventually_async(lambda: not server_threads(), "the thread has ended")


@on_each_loop
async def test_another_stop_just_when_the_deadline_comes() -> None:
    """asyncio's timeout has expired then, and what it holds up does not know yet."""
    app = GatedApp()
    server = local_server(app, threads=1)
    await server.start()
    with Client(("127.0.0.1", server.port)) as client:
        client.send(request("/stuck"))
        await eventually_async(lambda: app.entered, "the app was called")
        first = asyncio.create_task(server.stop(1_000))
        await eventually_async(lambda: server._deadline, "there is a deadline")
        deadline = server._deadline
        assert deadline is not None
        deadline.reschedule(0)
        await asyncio.sleep(0)
        assert deadline.expired()
        assert server._deadline is deadline
        app.let_go()
        await server.stop(0)  # now, and not in a turn of its own
        await first
    assert server_threads() == []


@on_each_loop
async def test_only_a_shorter_stop_ends_the_delay() -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        return [str(environ["waitress_async.shutting_down"]()).encode()]

    server = local_server(app, drain_delay=1_000, graceful_timeout=30)
    await server.start()
    stops = [asyncio.create_task(server.stop())]
    for timeout in (None, 30, 1_000):
        stops.append(asyncio.create_task(server.stop(timeout)))
        assert await fetch(server.port) == b"False"
    await bounded(asyncio.gather(*stops, server.stop(20)))


@on_each_loop
async def test_connections_that_arrive_while_it_stops_do_not_hold_it() -> None:
    """Some are accepted, and on their way to a transport, when the stop begins."""

    async def race(turns: int) -> None:
        server = local_server(graceful_timeout=60)
        await server.start()
        clients = [Client(("127.0.0.1", server.port)) for _ in range(5)]
        for _ in range(turns):
            await asyncio.sleep(0)
        clients[0].reset()
        await bounded(server.stop())
        for client in clients:
            client.sock.close()

    with nothing_left():
        for turns in range(8):
            await race(turns)


@on_each_loop
async def test_connections_that_arrive_while_it_is_cut_leave_no_socket() -> None:
    with nothing_left():
        for turns in range(8):
            server = local_server()
            await server.start()
            clients = [Client(("127.0.0.1", server.port)) for _ in range(5)]
            for _ in range(turns):
                await asyncio.sleep(0)
            await bounded(server.stop(0))
            for client in clients:
                client.sock.close()


@on_each_loop
async def test_the_thread_of_the_log_outlives_no_server(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "waitress_async")
    with nothing_left():
        server = local_server()
        await server.start()
        await server.stop()
    assert f"Serving on {server.url}" in caplog.text


def test_cancelling_the_stop_does_not_undo_it(serve_in_thread: ServeInThread, gated: GatedApp) -> None:
    server = serve_in_thread(gated)
    done: list[bool] = []
    tasks: list[asyncio.Task[None]] = []

    async def cancelled_stop() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server.server.stop(), 0.05)
        done.append(True)

    with Client(server.address) as client:
        client.send(request("/busy"))
        gated.wait_entered()
        server.loop.call_soon_threadsafe(lambda: tasks.append(server.loop.create_task(cancelled_stop())))
        eventually(lambda: done, "the stop was cancelled")
        assert refuses(server.address)
        gated.let_go()
        assert client.receive().body == b"/busy"
    server.thread.join(10)
    assert not server.thread.is_alive()


@pytest.mark.parametrize("loop", LOOPS)
def test_a_stop_that_the_end_of_the_loop_cancels_leaves_no_thread(loop: str) -> None:
    """asyncio.run() cancels every task when its main one returns, that of a stop under way too."""
    app = GatedApp()
    server = local_server(app, threads=1)

    async def main() -> None:
        await server.start()
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request("/held"))
        await eventually_async(lambda: app.entered, "the app was called")
        server.request_stop()
        await asyncio.sleep(0)
        writer.close()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())
    app.let_go()
    eventually(lambda: not server_threads(), "every thread has ended")


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no unix sockets")
@pytest.mark.parametrize("loop", LOOPS)
def test_a_stop_that_is_cancelled_in_its_delay_listens_no_more(
    loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And leaves no file behind, at which others would find nobody."""
    caplog.set_level(logging.INFO, "waitress_async")

    async def main(server: Server) -> None:
        await server.start()
        server.request_stop()
        await eventually_async(
            lambda: "Serving on for 1000 seconds" in caplog.messages, "the delay has begun"
        )

    with short_folder() as folder, nothing_left():
        server = Server(hello, listen=f"unix:{folder}/s 127.0.0.1:0", drain_delay=1_000)
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(main(server))
        assert os.listdir(folder) == []
        eventually(lambda: not server_threads(), "every thread has ended")
