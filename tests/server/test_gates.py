"""Gates over real connections: who is asked about what, and what becomes of those that are refused."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import LOOPS, RunningServer, ServeInThread
from tests.server.peers import Peer, Recorder, linux_only
from tests.server.support import (
    Client,
    GatedApp,
    bounded,
    echo,
    eventually,
    hello,
    in_thread,
    local_server,
    nothing_left,
    on_each_loop,
    request,
    server_has_read,
    small_listener,
)
from tests.server.test_deadlines import let_pass, sweep
from tests.server.test_tls import TLSClient
from tests.server.test_tls_contexts import Client as Trusting
from tests.server.test_tls_contexts import Files
from tests.wsgi.logs import Log, strict_log
from waitress_async import GateRequest, Refusal, SettingsError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

DENIED = Refusal(401, [("WWW-Authenticate", "Bearer")], "who are you?\n")

GIB = 1 << 30


@pytest.fixture(autouse=True)
def log() -> Iterator[Log]:
    """No test may leave a warning that it did not take."""
    with strict_log(logging.WARNING) as log:
        yield log


class Gate:
    """A gate that keeps what it is asked, and refuses paths that end in "denied"; with `waits`, not before
    `open`."""

    def __init__(self, *, waits: bool = False) -> None:
        self.asked: list[GateRequest] = []
        self.ended: list[str] = []  # how, by the name of the exception that ended it, or "said"
        self._waits = waits
        self._opened = asyncio.Semaphore(0)

    async def __call__(self, request: GateRequest) -> Refusal | None:
        self.asked.append(request)
        try:
            if self._waits:
                await self._opened.acquire()
        except BaseException as error:
            self.ended.append(type(error).__name__)
            raise
        self.ended.append("said")
        return DENIED if request.path.endswith("denied") else None

    @property
    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]

    def wait_asked(self, count: int = 1) -> None:
        eventually(lambda: len(self.asked) >= count, f"it is asked about {count} requests")

    def open(self, server: RunningServer) -> None:
        """Let one of those that wait have its answer."""
        server.loop.call_soon_threadsafe(self._opened.release)

    def wait_ended(self, *how: str) -> None:
        eventually(lambda: self.ended == [*how], f"its calls have ended so: {how}")


@pytest.fixture
def waiting(serve_in_thread: ServeInThread) -> Gate:
    return Gate(waits=True)


async def pass_all(_request: GateRequest) -> None:
    pass


def post(path: str = "/", headers: str = "", length: int = GIB) -> bytes:
    return request(path, f"Content-Length: {length}\r\n{headers}", method="POST")


# -- what a gate is told


class Told:
    """What it is told of each request, noted while it is asked."""

    def __init__(self) -> None:
        self.facts: list[dict[str, Any]] = []

    async def __call__(self, request: GateRequest) -> None:
        names = ("method", "target", "path", "query", "remote_addr", "remote_port", "scheme", "state")
        self.facts.append(
            {
                **{name: getattr(request, name) for name in names},
                "has_body": request.has_body,
                "content_length": request.content_length,
                "headers": dict(request.headers),
            }
        )


def test_a_gate_is_told_what_the_head_says(serve_in_thread: ServeInThread) -> None:
    gate = Told()

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[str]:
        yield "the state"

    server = serve_in_thread(echo, gates=[gate], lifespan=lifespan, url_prefix="/shop")
    with Client(server.address) as client:
        client.send(request("/shop/a%20b?c=%64", "X-One: 1\r\nX_Two: 2\r\n", method="PUT", body=b"body"))
        assert client.receive().body == b"/a b body"
        port = str(client.sock.getsockname()[1])
    assert gate.facts == [
        {
            "method": "PUT",
            "target": "/shop/a%20b?c=%64",
            "path": "/shop/a b",
            "query": "c=%64",
            "remote_addr": "127.0.0.1",
            "remote_port": port,
            "scheme": "http",
            "state": "the state",
            "has_body": True,
            "content_length": 4,
            "headers": {"host": "localhost", "x-one": "1", "content-length": "4"},
        }
    ]


@pytest.mark.parametrize("prefix", ["", "/shop"])
def test_path_info_is_what_the_app_has(serve_in_thread: ServeInThread, prefix: str) -> None:
    """Also of what is not below `url_prefix`, which is served too."""
    gate, app = Gate(), Recorder()
    server = serve_in_thread(app, gates=[gate], url_prefix=prefix)
    with Client(server.address) as client:
        for path in ("/shop/a%20b", "/a%20b", "/shop", "/shopping", "//shop/a", "http://localhost/shop/a"):
            assert client.get(path).status == 200
            assert gate.asked.pop().path_info == app.last()["PATH_INFO"]
        client.send(request("*", method="OPTIONS"))
        assert client.receive().status == 200
        assert gate.asked.pop().path_info == app.last()["PATH_INFO"] == ""


def test_headers_are_found_in_any_case_and_line_by_line(serve_in_thread: ServeInThread) -> None:
    gate = Gate()
    server = serve_in_thread(hello, gates=[gate])
    fields = "X-A: 1, 2\r\nCookie: a=b\r\nx-a: 3\r\nContent-Type: text/x\r\nX-B:\r\ncookie: c=d\r\n"
    with Client(server.address) as client:
        for _ in range(2):  # the same again, which the server remembers
            client.get("/", fields)
            headers = gate.asked.pop().headers
            assert headers["X-A"] == headers["x-a"] == "1, 2, 3"
            assert headers.get_all("X-a") == ["1, 2", "3"]
            assert headers["COOKIE"] == "a=b; c=d"
            assert headers.get_all("Cookie") == ["a=b", "c=d"]
            assert headers.get_all("content-TYPE") == ["text/x"]
            assert (headers["x-b"], "x-b" in headers, headers.get("x-c")) == ("", True, None)
            assert headers.get_all("x-c") == []
            assert "X_A" not in headers  # which is how a client might try to pass for X-A
            assert sorted(headers) == ["content-type", "cookie", "host", "x-a", "x-b"]
            assert len(headers) == 5
            with pytest.raises(KeyError, match="X-C"):
                headers["X-C"]
        client.get("/", "X-A: 4\r\n")
        assert gate.asked.pop().headers.get_all("x-a") == ["4"]


def test_secrets_are_in_no_repr(serve_in_thread: ServeInThread) -> None:
    gate = Gate()
    server = serve_in_thread(hello, gates=[gate])
    with Client(server.address) as client:
        client.get("/a?token=secret", "Authorization: secret\r\n")
    (asked,) = gate.asked
    assert repr(asked) == "<GateRequest: GET '/a' from 127.0.0.1>"
    assert repr(asked.headers) == "<RequestHeaders: host, authorization>"


@linux_only
def test_what_a_trusted_proxy_says_is_heeded(serve_in_thread: ServeInThread, log: Log) -> None:
    gate = Told()
    lines = Gate()
    server = serve_in_thread(
        hello,
        gates=[gate, lines],
        trusted_proxy="127.0.0.2",
        trusted_proxy_headers="x-forwarded-for x-forwarded-proto",
    )
    told = "X-Forwarded-For: 10.9.9.9\r\nX-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\n"
    for source, expected in (
        ("127.0.0.2", ("192.0.2.7", "", "https")),
        ("127.0.0.3", ("127.0.0.3", None, "http")),
    ):
        peer = Peer(server, source)
        with peer:
            assert peer.get("/", told + "X-A: 1\r\nX-A: 2\r\n").status == 200
            facts = gate.facts.pop()
            assert facts["remote_addr"] == expected[0]
            assert facts["remote_port"] == (peer.port if expected[1] is None else expected[1])
            assert facts["scheme"] == expected[2]
            headers = lines.asked.pop().headers
            assert headers.get_all("x-a") == ["1", "2"]
            assert headers.get_all("x-forwarded-for") == (["192.0.2.7"] if source == "127.0.0.2" else [])
    with Peer(server, "127.0.0.2") as peer:
        assert peer.get("/", "X-Forwarded-For: nonsense\r\n").status == 400
    log.take("WARNING waitress_async: Malformed proxy header")
    assert gate.facts == []  # there is nothing to be asked about


# -- what comes of it


def test_a_refusal_is_the_answer_and_the_app_is_not_called(serve_in_thread: ServeInThread) -> None:
    app = Recorder()
    server = serve_in_thread(app, gates=[Gate()])
    with Client(server.address) as client:
        for _ in range(2):  # on one connection
            denied = client.get("/denied")
            assert (denied.status, denied.reason, denied.body) == (401, "Unauthorized", b"who are you?\n")
            assert denied.headers["www-authenticate"] == "Bearer"
            assert denied.headers["content-type"] == "text/plain; charset=utf-8"
            assert denied.headers["server"] == "waitress_async"
            assert "date" in denied.headers
            assert not denied.closes
        client.send(request("/denied", method="HEAD"))
        head = client.receive("HEAD")
        assert (head.status, head.headers["content-length"], head.closes) == (401, "13", False)
        assert app.take() == []
        assert client.get("/").body == b"recorded"
    with Client(server.address) as client:
        client.send(b"GET /denied HTTP/1.0\r\n\r\n")
        assert client.receive().status == 401
        client.assert_ended()


def test_gates_are_asked_in_order_until_one_refuses(serve_in_thread: ServeInThread) -> None:
    first, second, third = Gate(), Gate(), Gate()

    async def teapot(request: GateRequest) -> Refusal | None:
        return Refusal("418 I'm a teapot") if request.path == "/tea" else None

    server = serve_in_thread(hello, gates=[first, teapot, second, third])
    with Client(server.address) as client:
        assert [client.get(path).status for path in ("/tea", "/denied", "/")] == [418, 401, 200]
    assert first.paths == ["/tea", "/denied", "/"]
    assert second.paths == third.paths == ["/"]


def test_what_gates_add_is_in_the_environ_of_their_request_alone(serve_in_thread: ServeInThread) -> None:
    app = Recorder()
    user = object()

    async def add(request: GateRequest) -> None:
        if request.path == "/added":
            request.environ.update({"REMOTE_USER": "rose", "shop.user": user, "HTTP_X_USER": "rose"})

    async def add_more(request: GateRequest) -> None:
        request.environ["shop.more"] = [*request.environ]

    server = serve_in_thread(app, gates=[add, add_more])
    with Client(server.address) as client:
        client.get("/added", "X-User: forged\r\nX-Other: kept\r\n")
        environ = app.last()
        assert environ["REMOTE_USER"] == environ["HTTP_X_USER"] == "rose"
        assert environ["shop.user"] is user
        assert environ["shop.more"] == ["REMOTE_USER", "shop.user", "HTTP_X_USER"]
        assert (environ["HTTP_X_OTHER"], environ["PATH_INFO"]) == ("kept", "/added")
        client.get("/", "X-User: forged\r\nX-Other: kept\r\n")  # the very section that is remembered
        environ = app.last()
        assert environ["HTTP_X_USER"] == "forged"
        assert "REMOTE_USER" not in environ
        assert "shop.user" not in environ
        assert environ["shop.more"] == []


variable = contextvars.ContextVar("variable", default="")


def test_they_run_in_a_copy_of_the_apps_context(serve_in_thread: ServeInThread) -> None:
    """What the lifespan has set is there. What a gate sets the next one has, and nobody else."""
    seen: list[str] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        variable.set("lifespan")
        yield

    async def sets(_request: GateRequest) -> None:
        seen.append(variable.get())
        variable.set("gate")

    async def sees(_request: GateRequest) -> None:
        seen.append(variable.get())

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        return [variable.get().encode()]

    server = serve_in_thread(app, gates=[sets, sees], lifespan=lifespan)
    with Client(server.address) as client:
        assert [client.get().body for _ in range(2)] == [b"lifespan"] * 2
    assert seen == ["lifespan", "gate"] * 2


def test_all_kinds_of_coroutine_functions(serve_in_thread: ServeInThread) -> None:
    gate = Gate()

    class Gates:
        async def method(self, request: GateRequest) -> Refusal | None:
            return await gate(request)

        @staticmethod
        async def static(shop: str, request: GateRequest) -> Refusal | None:
            return Refusal(403, body=shop) if request.path == "/shop" else None

    server = serve_in_thread(hello, gates=[Gates().method, functools.partial(Gates.static, "closed"), gate])
    with Client(server.address) as client:
        assert client.get("/shop").body == b"closed"
        assert client.get("/").status == 200
    assert gate.paths == ["/shop", "/", "/"]


# -- bodies


@contextmanager
def upload(server: RunningServer, head: bytes) -> Iterator[Client]:
    with Client(server.address, send_buffer=65_536) as client:
        client.send(head)
        yield client


CHUNKED = request("/denied", "Transfer-Encoding: chunked\r\n", method="POST")
UPLOADS = {
    "length": post("/denied"),
    "expect": post("/denied", "Expect: 100-continue\r\n"),
    "chunked": CHUNKED,
    "chunked, expect": CHUNKED.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"),
}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", UPLOADS)
def test_a_refused_upload_is_not_waited_for(
    serve_in_thread: ServeInThread, waiting: Gate, kind: str, streamed: bool
) -> None:
    """And no 100 (Continue) is sent for it. The answer can be read, though some of the body has come."""
    server = serve_in_thread(hello, gates=[waiting], stream_request_body=streamed)
    with upload(server, UPLOADS[kind]) as client:
        waiting.wait_asked()
        if "expect" not in kind:
            client.send(b"10000\r\n" + bytes(30_000))
            server_has_read(server)  # whose probe is malformed: no gate is asked
        waiting.open(server)
        answer = client.receive()
        assert (answer.status, answer.closes) == (401, True)
        client.assert_ended()


@pytest.mark.parametrize("head", [post("/"), CHUNKED], ids=["length", "chunked"])
def test_while_it_is_asked_little_of_the_body_is_read_and_none_taken(
    serve_in_thread: ServeInThread, waiting: Gate, head: bytes
) -> None:
    server = serve_in_thread(hello, gates=[waiting], gate_timeout=0, sockets=[small_listener()])
    with upload(server, head) as client:
        waiting.wait_asked()
        sent = client.send_until_blocked(b"10000\r\n" + bytes(65_536) + b"\r\n", 20_000_000)
        memory = server.server._runtime.memory
        assert 65_536 <= memory.used < 1_000_000  # what was read, and is counted
        assert sent < 2_000_000  # the rest is with the system
        (protocol,) = server.server._runtime.connections._protocols
        assert protocol._exchange is None
        client.reset()
    waiting.wait_ended("CancelledError")
    eventually(lambda: memory.used == 0, "nothing is counted")


def test_what_waits_behind_gates_is_no_more_than_memory_may_hold(
    serve_in_thread: ServeInThread, waiting: Gate
) -> None:
    """And all of it comes to its end, in turns."""
    settings = {"gate_timeout": 0, "buffer_memory": 1, "sockets": [small_listener()]}
    server = serve_in_thread(echo, gates=[waiting], **settings)
    memory = server.server._runtime.memory
    size = 1_000_000
    with ExitStack() as uploads:
        clients = [uploads.enter_context(upload(server, post(length=size))) for _ in range(3)]
        waiting.wait_asked(3)
        sent = [clients[0].send_until_blocked(bytes(size), size)]
        used = memory.used
        assert used > 1
        sent += [client.send_until_blocked(bytes(size), size) for client in clients[1:]]
        assert memory.used == used
        for client, already in zip(clients, sent, strict=True):
            waiting.open(server)
            client.send(bytes(size - already))
        for client in clients:
            assert client.receive().body == b"/ " + bytes(size)
    eventually(lambda: memory.used == 0, "nothing is counted")


BODY = b"0123456789" * 10_000
SENT = {
    "length": (post("/up", length=len(BODY)), BODY),
    "expect": (post("/up", "Expect: 100-continue\r\n", len(BODY)), BODY),
    "chunked": (
        request("/up", "Transfer-Encoding: chunked\r\n", method="POST"),
        b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    ),
}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", SENT)
def test_an_upload_that_is_let_through_is_whole(
    serve_in_thread: ServeInThread, waiting: Gate, kind: str, streamed: bool
) -> None:
    head, body = SENT[kind]
    server = serve_in_thread(echo, gates=[waiting], stream_request_body=streamed)
    with Client(server.address) as client:
        client.send(head)
        waiting.wait_asked()
        if kind == "expect":
            server_has_read(server)
            client.sock.setblocking(False)
            with pytest.raises(BlockingIOError):  # it is not asked for the body before the gate has decided
                client.sock.recv(1)
            client.sock.settimeout(20)
            waiting.open(server)
            assert client.receive().status == 100
            client.send(body)
        else:
            client.send(body[:50_000])
            server_has_read(server)
            waiting.open(server)
            client.send(body[50_000:])
        assert client.receive().body == b"/up " + BODY
        waiting.open(server)
        assert client.get("/denied").status == 401  # the connection is in order


def test_a_small_body_that_is_refused_leaves_the_connection(serve_in_thread: ServeInThread) -> None:
    server = serve_in_thread(echo, gates=[Gate()])
    with Client(server.address) as client:
        for _ in range(2):
            client.send(request("/denied", method="POST", body=b"a small body"))
            denied = client.receive()
            assert (denied.status, denied.closes) == (401, False)
        client.send(request("/", method="POST", body=b"another"))
        assert client.receive().body == b"/ another"


# -- order


def test_pipelined_requests_are_asked_about_one_after_the_other(
    serve_in_thread: ServeInThread, waiting: Gate
) -> None:
    server = serve_in_thread(echo, gates=[waiting])
    paths = ["/1", "/2-denied", "/3", "/4-denied"]
    with Client(server.address) as client:
        client.send(b"".join(request(path, method="POST", body=path.encode()) for path in paths))
        for number, path in enumerate(paths, 1):
            waiting.wait_asked(number)
            server_has_read(server)
            assert waiting.paths == paths[:number]
            waiting.open(server)
            answer = client.receive()
            if path.endswith("denied"):
                assert answer.status == 401
            else:
                assert answer.body == f"{path} {path}".encode()


def test_who_waits_holds_up_nobody_else(serve_in_thread: ServeInThread) -> None:
    gate = Gate(waits=True)

    async def slow(request: GateRequest) -> Refusal | None:
        return await gate(request) if request.path == "/slow" else None

    server = serve_in_thread(hello, gates=[slow], threads=1)
    with Client(server.address) as client, Client(server.address) as other:
        client.send(request("/slow"))
        gate.wait_asked()
        assert [other.get().status for _ in range(3)] == [200] * 3
        gate.open(server)
        assert client.receive().status == 200


# -- time


def test_gates_have_their_time_and_then_it_is_503(
    serve_in_thread: ServeInThread, waiting: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "waitress_async")
    app = Recorder()
    server = serve_in_thread(
        app, gates=[pass_all, waiting], gate_timeout=3_600, channel_timeout=0, linger_timeout=0.2
    )
    with Client(server.address) as client:
        for count in (1, 2):
            client.send(request())
            waiting.wait_asked(count)
            sweep(server, 3_599)
            assert len(waiting.ended) == count - 1
            let_pass(server, 2)
            late = client.receive()
            assert (late.status, late.closes) == (503, False)
            assert b"(setting: gate_timeout)" in late.body
            assert late.headers["retry-after"] == "1"
            waiting.wait_ended(*["CancelledError"] * count)
        waiting.open(server)
        assert client.get().body == b"recorded"
    assert len(app.take()) == 1
    told = [message for message in caplog.messages if message.startswith("gate_timeout: ")]
    assert len(told) == 2


def test_it_is_over_in_time_by_itself(serve_in_thread: ServeInThread, waiting: Gate) -> None:
    server = serve_in_thread(hello, gates=[waiting], gate_timeout=0.1)
    with Client(server.address) as client:
        client.send(post())
        assert client.receive().status == 503
        client.assert_ended()


def test_a_gate_may_take_any_time(serve_in_thread: ServeInThread, waiting: Gate) -> None:
    server = serve_in_thread(hello, gates=[waiting], gate_timeout=0)
    with Client(server.address) as client:
        client.send(request())
        waiting.wait_asked()
        sweep(server, 1e6)
        waiting.open(server)
        assert client.receive().status == 200


@pytest.mark.parametrize("head", [request(), post("/", length=5)], ids=["no body", "body"])
def test_what_a_gate_takes_is_not_the_clients_time(
    serve_in_thread: ServeInThread, waiting: Gate, head: bytes
) -> None:
    server = serve_in_thread(
        echo,
        gates=[waiting],
        gate_timeout=0,
        header_timeout=1,
        channel_timeout=1,
        queue_timeout=1,
        body_min_rate=1e9,
        min_rate_grace=1,
    )
    with Client(server.address) as client:
        client.send(head)
        waiting.wait_asked()
        sweep(server, *[0.9] * 20)
        waiting.open(server)
        if head != request():
            client.send(b"12345")
        assert client.receive().status == 200


def test_a_gate_that_does_not_care_for_its_end(
    serve_in_thread: ServeInThread, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client is answered all the same, and the stop says which gate goes on."""
    monkeypatch.setattr("waitress_async.server.server._UNWIND_TIMEOUT", 0.05)
    over = asyncio.Event()

    async def stubborn(_request: GateRequest) -> None:
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                pass

    server = serve_in_thread(hello, gates=[stubborn], gate_timeout=3_600)
    with Client(server.address) as client:
        client.send(request("/for\x7fever"))
        assert client.receive().status == 400
    with Client(server.address) as client:
        client.send(request("/for%1bever"))
        tasks = server.server._runtime.tasks
        eventually(lambda: len(tasks._tasks) == 1, "it is asked")
        sweep(server, 3_601)
        assert client.receive().status == 503
    server.server.request_stop(0)
    line = log.take("WARNING waitress_async: It goes on though it was cancelled: ")
    assert "stubborn" in line
    assert line.endswith(r" for /for\x1bever")
    server.loop.call_soon_threadsafe(over.set)


def test_no_other_is_asked_when_one_does_not_care_for_its_end(
    serve_in_thread: ServeInThread, waiting: Gate
) -> None:
    async def stubborn(request: GateRequest) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await waiting(request)

    other = Gate()
    server = serve_in_thread(hello, gates=[stubborn, other], gate_timeout=3_600)
    with Client(server.address) as client:
        client.send(request())
        waiting.wait_asked()
        sweep(server, 3_601)
        assert client.receive().status == 503
    client = Client(server.address)
    client.send(request())
    waiting.wait_asked(2)
    client.reset()
    waiting.wait_ended("CancelledError", "CancelledError")
    eventually(lambda: not server.server._runtime.tasks._tasks, "no task is left")
    assert other.asked == []


@pytest.mark.parametrize("loop_factory", LOOPS.values(), ids=LOOPS)
def test_one_that_is_left_to_itself_ends_with_its_loop(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is said of that but what asyncio says of every such task."""
    monkeypatch.setattr("waitress_async.server.server._UNWIND_TIMEOUT", 0.05)
    monkeypatch.setattr("waitress_async.server.server._END_TIMEOUT", 0.05)
    unraisable: list[object] = []
    gc.collect()  # what others have left
    monkeypatch.setattr("sys.unraisablehook", lambda args: unraisable.append(args.exc_value))
    told: list[str] = []
    asked = asyncio.Event()

    async def stubborn(_request: GateRequest) -> None:
        asked.set()
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, said: told.append(said["message"]))
        server = local_server(hello, gates=[stubborn])
        await server.start()
        with Client(("127.0.0.1", server.port)) as client:
            client.send(request())
            await bounded(asked.wait())
            await server.stop(0)

    loop = loop_factory()
    loop.run_until_complete(main())
    loop.close()
    del loop
    gc.collect()
    log.take("WARNING waitress_async: It goes on though it was cancelled: ")
    assert unraisable == []
    assert told == ["Task was destroyed but it is pending!"]


# -- clients that leave


def test_a_reset_cancels_it(serve_in_thread: ServeInThread, waiting: Gate) -> None:
    app = Recorder()
    server = serve_in_thread(app, gates=[waiting], gate_timeout=0)
    with nothing_left():
        for _ in range(3):
            client = Client(server.address)
            client.send(request())
            waiting.wait_asked()
            client.reset()
            waiting.wait_ended("CancelledError")
            waiting.asked.clear()
            waiting.ended.clear()
        eventually(lambda: not server.server._runtime.tasks._tasks, "no task is left")
        eventually(lambda: not len(server.server._runtime.connections), "no connection is left")
    assert app.take() == []


def test_a_reset_is_seen_while_nothing_is_read(serve_in_thread: ServeInThread, waiting: Gate) -> None:
    server = serve_in_thread(hello, gates=[waiting], gate_timeout=0, sockets=[small_listener()])
    with upload(server, post()) as client:
        waiting.wait_asked()
        client.send_until_blocked(bytes(65_536), 20_000_000)
        client.reset()
    waiting.wait_ended("CancelledError")


def test_who_has_said_all_is_answered(serve_in_thread: ServeInThread, waiting: Gate) -> None:
    server = serve_in_thread(hello, gates=[waiting])
    for path, status in (("/", 200), ("/denied", 401)):
        with Client(server.address) as client:
            client.send(request(path))
            client.half_close()
            waiting.wait_asked()
            server_has_read(server)
            waiting.open(server)
            assert client.receive().status == status
            client.assert_ended()


def test_the_end_of_tls_cancels_it(serve_in_thread: ServeInThread, waiting: Gate, tmp_path: Path) -> None:
    """There is no half of it that could be closed."""
    server = serve_in_thread(hello, gates=[waiting], gate_timeout=0, **Files(tmp_path).settings)
    with TLSClient(server.address, Trusting(tmp_path).context) as client:
        client.send(request())
        waiting.wait_asked()
        assert waiting.asked[0].scheme == "https"
        client.sock.unwrap().close()
    waiting.wait_ended("CancelledError")


def test_over_tls_too(serve_in_thread: ServeInThread, tmp_path: Path) -> None:
    server = serve_in_thread(echo, gates=[Gate()], linger_timeout=0.1, **Files(tmp_path).settings)
    with TLSClient(server.address, Trusting(tmp_path).context) as client:
        assert client.get("/denied").status == 401
        client.send(request("/", method="POST", body=BODY))
        assert client.receive().body == b"/ " + BODY
        client.send(post("/denied"))
        assert client.receive().status == 401
        client.assert_ended()


# -- gates that fail


async def raises_lookup_error(_request: GateRequest) -> None:
    raise LookupError("no such shop")


async def exits(_request: GateRequest) -> None:
    raise SystemExit(3)


async def interrupts(_request: GateRequest) -> None:
    raise KeyboardInterrupt


async def ends_a_generator(_request: GateRequest) -> None:
    raise GeneratorExit


async def group(_request: GateRequest) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(raises_lookup_error(_request))


async def returns_true(_request: GateRequest) -> Any:
    return True


async def returns_the_class(_request: GateRequest) -> Any:
    return Refusal


async def malformed(_request: GateRequest) -> Refusal:
    return Refusal(401, [("Location", "/a\r\nSet-Cookie: b")])


def adds(entries: dict[Any, object]) -> Callable[[GateRequest], Awaitable[None]]:
    async def gate(request: GateRequest) -> None:
        request.environ.update(entries)

    return gate


FAILING: dict[str, tuple[Callable[[GateRequest], Awaitable[Any]], str]] = {
    "exception": (raises_lookup_error, "LookupError: no such shop"),
    "exit": (exits, "SystemExit: 3"),
    "interrupt": (interrupts, "KeyboardInterrupt"),
    "generator exit": (ends_a_generator, "GeneratorExit"),
    "group": (group, "LookupError: no such shop"),
    "true": (returns_true, "TypeError: a gate returns None or a Refusal, and not True"),
    "class": (returns_the_class, "TypeError: a gate returns None or a Refusal, and not <class"),
    "splitting": (malformed, "ValueError: the value of header Location must be"),
    "key": (adds({1: "a"}), "TypeError: the keys of environ are str, and not 1"),
    "wsgi": (adds({"wsgi.input": 1}), "ValueError: 'wsgi.input' is the server's"),
    "ours": (adds({"waitress_async.state": 1}), "ValueError: 'waitress_async.state' is the server's"),
    "method": (adds({"REQUEST_METHOD": "HEAD"}), "ValueError: 'REQUEST_METHOD' is the server's"),
    "path": (adds({"PATH_INFO": "/"}), "ValueError: 'PATH_INFO' is the server's"),
    "length": (adds({"CONTENT_LENGTH": "1"}), "ValueError: 'CONTENT_LENGTH' is the server's"),
    "object": (adds({"REMOTE_USER": 1}), "TypeError: environ['REMOTE_USER'] must be a str, not int"),
}


@pytest.mark.parametrize("failing", FAILING)
def test_a_gate_that_fails_is_a_500_with_a_traceback(
    serve_in_thread: ServeInThread, log: Log, failing: str
) -> None:
    app = Recorder()
    gate, error = FAILING[failing]

    async def sometimes(request: GateRequest) -> Refusal | None:
        refusal: Refusal | None = await gate(request) if request.path != "/" else None
        return refusal

    server = serve_in_thread(app, gates=[sometimes])
    with Client(server.address) as client:
        failed = client.get("/%1bx")
        assert (failed.status, failed.closes) == (500, False)
        assert b"shop" not in failed.body
        assert app.take() == []
        line = log.take("ERROR waitress_async: Exception in the gate ")
        assert re.search(r"\.sometimes for /\\x1bx\n", line)
        assert error in line
        assert client.get("/").body == b"recorded"
        client.send(post("/large"))
        assert client.receive().status == 500
        log.take("ERROR waitress_async: Exception in the gate ")
        client.assert_ended()


def test_a_gate_that_cancels_itself(serve_in_thread: ServeInThread, log: Log) -> None:
    async def cancels(request: GateRequest) -> None:
        if request.path == "/raised":
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    server = serve_in_thread(hello, gates=[cancels])
    with Client(server.address) as client:
        for path in ("/raised", "/cancelled"):
            assert client.get(path).status == 500
            line = log.take("ERROR waitress_async: Cancelled, and not by the server: ")
            assert line.endswith(f"cancels for {path}")


def test_what_fails_while_it_is_cancelled_is_told(
    serve_in_thread: ServeInThread, log: Log, waiting: Gate
) -> None:
    async def untidy(request: GateRequest) -> None:
        try:
            await waiting(request)
        finally:
            raise LookupError("untidy")

    server = serve_in_thread(hello, gates=[untidy])
    client = Client(server.address)
    client.send(request())
    waiting.wait_asked()
    client.reset()
    assert "LookupError: untidy" in log.take("ERROR waitress_async: Exception in the gate ")


# -- the stop


def test_a_stop_waits_for_gates_and_the_requests_behind_them(
    serve_in_thread: ServeInThread, waiting: Gate
) -> None:
    app = GatedApp()
    server = serve_in_thread(app, gates=[waiting])
    with Client(server.address) as client, Client(server.address) as denied, Client(server.address) as idle:
        assert idle.sock
        client.send(request("/served"))
        denied.send(request("/denied"))
        waiting.wait_asked(2)
        server.server.request_stop()
        idle.assert_ended()  # those are closed after the others had time to be mistaken for such
        waiting.open(server)
        waiting.open(server)
        assert denied.receive().closes
        app.wait_entered()
        app.let_go()
        answer = client.receive()
        assert (answer.body, answer.closes) == (b"/served", True)
    server.stop()


def test_a_stop_waits_for_what_a_cancelled_gate_has_to_do(
    serve_in_thread: ServeInThread, waiting: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("waitress_async.server.server._UNWIND_TIMEOUT", 0.01)
    tidied = asyncio.Event()

    async def tidy(request: GateRequest) -> None:
        try:
            await waiting(request)
        finally:
            await tidied.wait()

    server = serve_in_thread(hello, gates=[tidy], gate_timeout=0)
    with Client(server.address) as client:
        client.send(request())
        waiting.wait_asked()
        client.reset()
    waiting.wait_ended("CancelledError")
    server.server.request_stop()
    server.thread.join(0.3)
    assert server.thread.is_alive()
    server.loop.call_soon_threadsafe(tidied.set)
    server.stop()  # and nothing is said of it


def test_a_stop_that_has_no_time_cancels_them(serve_in_thread: ServeInThread, waiting: Gate) -> None:
    server = serve_in_thread(hello, gates=[waiting])
    with Client(server.address) as client:
        client.send(request())
        waiting.wait_asked()
        server.server.request_stop(0)
        server.thread.join(20)
        assert waiting.ended == ["CancelledError"]
        with pytest.raises((ConnectionResetError, AssertionError)):
            client.receive()


@on_each_loop
async def test_the_end_of_the_program_leaves_no_gate() -> None:
    gate = Gate(waits=True)
    server = local_server(hello, gates=[gate])
    await server.start()

    def run() -> None:
        with Client(("127.0.0.1", server.port)) as client:
            client.send(request())
            gate.wait_asked()

    await in_thread(run)
    await server.stop(0)
    assert gate.ended == ["CancelledError"]


# -- without gates


def test_without_gates_there_is_no_entrance(serve_in_thread: ServeInThread) -> None:
    for settings in ({}, {"gates": [pass_all]}):
        server = serve_in_thread(hello, **settings)
        with Client(server.address) as client:
            assert client.get().status == 200
            (protocol,) = server.server._runtime.connections._protocols
            assert (protocol._entrance is None) is (not settings)


# -- what is no gate


def not_async(_request: GateRequest) -> None:
    pass


async def generator(_request: GateRequest) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize("gate", [not_async, generator, lambda request: request, 3, Gate, object()])
def test_what_is_no_coroutine_function_is_refused_at_the_start(gate: object) -> None:
    with pytest.raises(SettingsError, match=r"^gates: .* is no coroutine function: write it as"):
        local_server(hello, gates=[pass_all, gate])


def test_names_are_the_commands() -> None:
    with pytest.raises(
        SettingsError, match=r"^gates: 'shop:gate' is a name, which the command alone looks up"
    ):
        local_server(hello, gates=[pass_all, "shop:gate"])


def test_one_gate_needs_no_list(serve_in_thread: ServeInThread) -> None:
    server = serve_in_thread(hello, gates=Gate())
    with Client(server.address) as client:
        assert client.get("/denied").status == 401


# -- refusals


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (403, b"HTTP/1.1 403 Forbidden\r\n"),
        ("403 No", b"HTTP/1.1 403 No\r\n"),
        ("403", b"HTTP/1.1 403 \r\n"),
        (299, b"HTTP/1.1 299 \r\n"),
    ],
)
def test_the_status_line(status: int | str, line: bytes) -> None:
    assert Refusal(status).as_answer().head.status_line == line


def test_what_a_refusal_holds() -> None:
    refusal = Refusal(302, iter([("Location", "/login")]), "zum Käse")
    assert refusal.headers == (("Location", "/login"), ("Content-Type", "text/plain; charset=utf-8"))
    assert refusal.as_answer().body == "zum Käse".encode()
    assert Refusal(400, [("content-type", "text/html")], "<p>").headers == (("content-type", "text/html"),)
    assert Refusal(400, body=b"bytes").headers == ()
    assert Refusal(204) == Refusal(204)
    assert "zum K" in repr(refusal)
    with pytest.raises(AttributeError):
        refusal.status = 200  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((100,), ValueError, "status must be three digits from 200 on"),
        ((True,), ValueError, "status must be"),
        ((-400,), ValueError, "status must be"),
        (("four",), ValueError, "status must be"),
        (("200 a\r\nb",), ValueError, "status must be"),
        ((None,), TypeError, "status must be a str, not NoneType"),
        ((400, [("a b", "c")]), ValueError, "a header name must be a token"),
        ((400, [("a", "b\r\nc")]), ValueError, "the value of header a"),
        ((400, [("Connection", "close")]), ValueError, "hop-by-hop"),
        ((400, [("Transfer-Encoding", "chunked")]), ValueError, "hop-by-hop"),
        ((400, [("content-length", "3")], "abc"), ValueError, "Content-Length is added by the server"),
        ((400, {"Location": "/"}), TypeError, "must be tuples of two str"),
        ((400, [["Location", "/"]]), TypeError, "must be tuples of two str"),
        ((400, [("Location", 1)]), TypeError, "must be tuples of two str"),
        ((400, [], ["abc"]), TypeError, "must be bytes or str, not list"),
        ((204, [], "abc"), ValueError, "an answer with status 204 has no body"),
        ((304, [], b"abc"), ValueError, "an answer with status 304 has no body"),
    ],
)
def test_what_a_refusal_must_not_hold(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        Refusal(*arguments)


@pytest.mark.parametrize("status", [204, 304])
def test_a_refusal_without_a_body(serve_in_thread: ServeInThread, status: int) -> None:
    async def gate(_request: GateRequest) -> Refusal:
        return Refusal(status)

    server = serve_in_thread(hello, gates=[gate])
    with Client(server.address) as client:
        for _ in range(2):
            answer = client.get()
            assert (answer.status, answer.closes) == (status, False)
            assert "content-length" not in answer.headers
