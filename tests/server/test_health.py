"""The two paths that the server answers itself, whatever its threads do."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import RunningServer, ServeInThread
from tests.server.peers import Recorder, linux_only
from tests.server.support import (
    DEADLINE,
    Client,
    GatedApp,
    echo,
    eventually,
    hello,
    request,
    server_has_read,
)
from tests.server.test_deadlines import let_pass, sweep
from tests.server.test_tls_contexts import Files
from tests.wsgi.logs import Log, strict_log
from waitress_async import GateRequest, Refusal, Settings, SettingsError

PATHS = {"live_path": "/-/live", "ready_path": "/-/ready"}
LIVE, READY = PATHS.values()

NO_DEADLINES: dict[str, object] = {
    "queue_timeout": 0,
    "channel_timeout": 0,
    "header_timeout": 0,
    "linger_timeout": 0.2,
}


@pytest.fixture(autouse=True)
def log() -> Iterator[Log]:
    """Nothing is logged for those who ask."""
    with strict_log(logging.WARNING) as log:
        yield log


def ask(server: RunningServer, path: str) -> tuple[int, bytes]:
    """As a balancer does: on a connection of its own."""
    with Client(server.address) as client:
        answer = client.get(path)
        return answer.status, answer.body


def test_both_are_ok_and_the_app_is_not_called(serve_in_thread: ServeInThread) -> None:
    app = Recorder()
    server = serve_in_thread(app, **PATHS)
    with Client(server.address) as client:
        for path in PATHS.values():
            for query in ("", "?from=balancer"):
                answer = client.get(path + query)
                assert (answer.status, answer.body, answer.closes) == (200, b"ok\n", False)
                assert answer.headers["content-type"] == "text/plain"
                assert answer.headers["cache-control"] == "no-store"
            client.send(request(path, method="HEAD"))
            head = client.receive("HEAD")
            assert (head.status, head.headers["content-length"]) == (200, "3")
        client.send(b"GET /-/live HTTP/1.0\r\n\r\n")
        assert client.receive().status == 200
        client.assert_ended()
    assert app.take() == []


def test_other_paths_are_the_apps(serve_in_thread: ServeInThread) -> None:
    server = serve_in_thread(echo, live_path=LIVE, url_prefix="/shop")
    with Client(server.address) as client:
        for path in ("/", "/-/live/", "/-/livelier", "/shop/-/live", READY, "/-/LIVE"):
            assert client.get(path).body.endswith(b" ")
        assert client.get(LIVE).body == b"ok\n"
    server = serve_in_thread(echo)
    assert ask(server, LIVE) == (200, b"/-/live ")


@pytest.mark.parametrize("path", PATHS.values())
def test_only_get_and_head_are_allowed(serve_in_thread: ServeInThread, path: str) -> None:
    server = serve_in_thread(hello, **PATHS)
    with Client(server.address) as client:
        for method in ("POST", "OPTIONS", "DELETE"):
            client.send(request(path, method=method, body=b"a small body"))
            answer = client.receive()
            assert (answer.status, answer.headers["allow"], answer.closes) == (405, "GET, HEAD", False)
        assert client.get(path).status == 200


def test_a_body_is_not_waited_for(serve_in_thread: ServeInThread) -> None:
    server = serve_in_thread(hello, **PATHS)
    for more in ("Content-Length: 1000000000\r\n", "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n"):
        with Client(server.address) as client:
            client.send(request(READY, more))
            answer = client.receive()
            assert (answer.status, answer.closes) == (200, True)
            client.assert_ended()


def test_they_are_answered_when_every_thread_is_stuck_and_the_queue_is_full(
    serve_in_thread: ServeInThread, gated: GatedApp
) -> None:
    server = serve_in_thread(gated, threads=2, max_queue=1, spare_threads=0, **PATHS)
    with Client(server.address) as first, Client(server.address) as second, Client(server.address) as third:
        for count, client in enumerate((first, second), 1):
            client.send(request("/stuck"))
            gated.wait_entered(count)
        third.send(request("/queued"))
        server_has_read(server)
        assert ask(server, "/one-too-many")[0] == 503
        assert ask(server, LIVE) == ask(server, READY) == (200, b"ok\n")
        gated.let_go(3)
        assert [client.receive().status for client in (first, second, third)] == [200] * 3


def test_it_is_not_ready_while_a_request_has_waited_too_long(
    serve_in_thread: ServeInThread, gated: GatedApp
) -> None:
    server = serve_in_thread(gated, threads=1, ready_max_queue_age=100, **PATHS, **NO_DEADLINES)
    with (
        Client(server.address) as running,
        Client(server.address) as waiting,
        Client(server.address) as young,
    ):
        running.send(request("/running"))
        gated.wait_entered()
        let_pass(server, 1_000)
        assert ask(server, READY)[0] == 200  # what has its thread may take its time
        waiting.send(request("/waiting"))
        server_has_read(server)
        let_pass(server, 90)
        young.send(request("/young"))
        server_has_read(server)
        assert ask(server, READY)[0] == 200
        let_pass(server, 20)
        assert ask(server, READY) == (503, b"requests wait too long for a thread\n")
        assert ask(server, LIVE) == (200, b"ok\n")
        gated.let_go()
        gated.wait_entered(2)
        eventually(lambda: ask(server, READY)[0] == 200, "the next one has not waited so long")
        let_pass(server, 90)
        assert ask(server, READY)[0] == 503
        gated.let_go(2)
        assert [client.receive().status for client in (running, waiting, young)] == [200] * 3


def test_it_is_seen_in_time_by_itself(serve_in_thread: ServeInThread, gated: GatedApp) -> None:
    server = serve_in_thread(gated, threads=1, ready_max_queue_age=0.2, **PATHS)
    with Client(server.address) as running, Client(server.address) as waiting:
        for client in (running, waiting):
            client.send(request())
        gated.wait_entered()
        eventually(lambda: ask(server, READY)[0] == 503, "it has waited too long")
        gated.let_go(2)
        eventually(lambda: ask(server, READY)[0] == 200, "none waits any more")


def test_a_queue_may_be_of_any_age(serve_in_thread: ServeInThread, gated: GatedApp) -> None:
    server = serve_in_thread(gated, threads=1, ready_max_queue_age=0, **PATHS, **NO_DEADLINES)
    with Client(server.address) as running, Client(server.address) as waiting:
        for client in (running, waiting):
            client.send(request())
        gated.wait_entered()
        server_has_read(server)
        sweep(server, 1e6)
        assert ask(server, READY) == (200, b"ok\n")
        gated.let_go(2)
        assert running.receive().status == waiting.receive().status == 200


def test_who_asks_often_has_the_queue_looked_at_once_a_sweep(
    serve_in_thread: ServeInThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve_in_thread(hello, **PATHS)
    connections = server.server._runtime.connections
    looked = 0

    class Protocols(set):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[object]:
            nonlocal looked
            looked += 1
            return super().__iter__()

    monkeypatch.setattr(connections, "_protocols", Protocols())
    clock = connections.clock
    with Client(server.address) as client:
        client.send(request(READY) * 100)
        assert [client.receive().status for _ in range(100)] == [200] * 100
    sweeps = (connections.clock - clock) / connections._sweep_interval
    assert looked <= 2 * (sweeps + 2)


# -- the stop


def test_during_the_delay_of_a_stop_it_lives_and_is_not_ready(serve_in_thread: ServeInThread) -> None:
    """That is how balancers learn of it, while all others are still served."""
    server = serve_in_thread(hello, drain_delay=1_000, **PATHS)
    assert ask(server, READY)[0] == 200
    server.server.request_stop()
    eventually(lambda: ask(server, READY) == (503, b"stopping\n"), "it says that it stops")
    assert ask(server, LIVE) == (200, b"ok\n")
    assert ask(server, "/")[0] == 200
    server.server.request_stop(1)
    server.thread.join(DEADLINE)
    assert not server.thread.is_alive()


def test_on_a_connection_that_is_drained(serve_in_thread: ServeInThread, gated: GatedApp) -> None:
    """Requests that were on their way are answered, with the last answer of their connection."""
    server = serve_in_thread(gated, **PATHS)
    with Client(server.address) as client:
        client.send(request() + request(READY))
        gated.wait_entered()
        server.server.request_stop()
        eventually(server.server._runtime.connections.is_draining, "it drains")
        gated.let_go()
        assert client.receive().closes
        client.assert_ended()


# -- what else stands before the app


def test_gates_are_not_asked_about_them(serve_in_thread: ServeInThread) -> None:
    async def closed(_request: GateRequest) -> Refusal:
        return Refusal(503, body="closed for maintenance")

    server = serve_in_thread(hello, gates=[closed], **PATHS)
    assert ask(server, "/") == (503, b"closed for maintenance")
    assert ask(server, LIVE) == ask(server, READY) == (200, b"ok\n")


@linux_only
def test_nor_what_a_proxy_says_of_them(serve_in_thread: ServeInThread) -> None:
    server = serve_in_thread(
        hello, trusted_proxy="*", trusted_proxy_headers="x-forwarded-for", ready_path=READY
    )
    with Client(server.address) as client:
        assert client.get(READY, "X-Forwarded-For: ?\r\n").status == 200


def test_where_all_else_is_redirected_they_are_answered(
    serve_in_thread: ServeInThread, tmp_path: Path
) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    files = Files(tmp_path)
    serve_in_thread(hello, redirect_listen=[f"127.0.0.1:{port}"], **files.settings, **PATHS)
    with Client(("127.0.0.1", port)) as client:
        assert client.get(LIVE).status == client.get(READY).status == 200
        assert client.get("/").status == 308


# -- settings


def refused(**settings: object) -> str:
    with pytest.raises(SettingsError) as raised:
        Settings.from_keywords(**settings)
    return str(raised.value)


def test_paths_that_are_none() -> None:
    for name in PATHS:
        for path in ("live", "/live?x"):
            assert (
                refused(**{name: path})
                == f"{name}: {path!r} is no path: it begins with a slash, and has no query"
            )
    assert refused(live_path="/up", ready_path="/up") == "live_path, ready_path: /up cannot be both"


def test_an_escaped_path_is_the_same(serve_in_thread: ServeInThread) -> None:
    server = serve_in_thread(hello, live_path="/a b")
    with Client(server.address) as client:
        assert client.get("/a%20b").body == b"ok\n"
