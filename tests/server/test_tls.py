"""TLS through the whole server: answers, certificates, clients that break it, and what is left of them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest

from tests.conftest import RunningServer, ServeInThread
from tests.server import test_tls_contexts as contexts
from tests.server.peers import linux_only, proxy_v2, unix_place
from tests.server.support import (
    DEADLINE,
    Client,
    GatedApp,
    Response,
    StreamingApp,
    echo,
    eventually,
    eventually_async,
    hello,
    in_thread,
    local_server,
    nothing_left,
    on_each_loop,
    request,
    settled,
    small_listener,
    temporary_files,
)
from tests.server.test_async_bodies import Steps, chunk, numbers
from tests.server.test_async_bodies import head as head_of
from tests.server.test_deadlines import Clock, Gate
from tests.server.test_tls_contexts import CLIENTS, SOMEBODY_ELSE, Files, name_of
from tests.wsgi.logs import Log, strict_log
from waitress_async.errors import SettingsError
from waitress_async.server.peer_state import is_full
from waitress_async.server.protocol import HTTPProtocol

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

T = TypeVar("T")

NAME = "default.example"  # of the certificate that `Files` has at first
RENEWED = "spare.example"  # of the one that it has ready

SIZE = 230_000


def large(_environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """An answer that asyncio takes whole, and the system does not."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [bytes(SIZE)]


# -- servers


@pytest.fixture(autouse=True)
def log() -> Iterator[Log]:
    """No test may leave a warning, of asyncio's neither, that it did not take."""
    with strict_log(logging.WARNING) as log:
        yield log


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


class Serve(Protocol):
    def __call__(self, app: WSGIApplication = hello, **settings: object) -> RunningServer: ...


@pytest.fixture
def serve(serve_in_thread: ServeInThread, files: Files) -> Serve:
    """`serve(app, **settings)` starts a server with the certificates in `files`."""

    def start(app: WSGIApplication = hello, **settings: object) -> RunningServer:
        return serve_in_thread(app, **{**files.settings, **settings})

    return start


def count(server: RunningServer) -> int:
    """The connections that the server counts."""
    return len(server.server._runtime.connections)


def wait_swept(server: RunningServer, seconds: float) -> None:
    """Wait until the server's sweeps have counted so many seconds more."""
    connections = server.server._runtime.connections
    until = connections.clock + seconds
    eventually(lambda: connections.clock >= until, "sweeps go on")


def put_renewed(files: Files) -> None:
    """The other certificate, and its key, in the place of the first."""
    for kind in ("crt", "key"):
        files.put(f"default.{kind}", (files.folder / f"spare.{kind}").read_bytes())


# -- clients


class TLSClient(Client):
    """A client that tells the end of TLS from a truncation: that is an SSLEOFError."""

    sock: ssl.SSLSocket

    def __init__(
        self,
        address: tuple[str, int],
        context: ssl.SSLContext,
        name: str | None = NAME,
        before: bytes = b"",
        **options: Any,
    ) -> None:
        super().__init__(address, **options)
        plain: socket.socket = self.sock
        try:
            plain.sendall(before)
            self.sock = context.wrap_socket(plain, server_hostname=name, suppress_ragged_eofs=False)
        except BaseException:
            plain.close()
            raise

    @property
    def shown(self) -> str:
        """The name in the server's certificate."""
        names: Any = (self.sock.getpeercert() or {})["subjectAltName"]
        return str(names[0][1])


class Connect(Protocol):
    def __call__(self, server: RunningServer, name: str | None = NAME, **options: Any) -> TLSClient: ...


@pytest.fixture
def trust(tmp_path: Path) -> ssl.SSLContext:
    return contexts.Client(tmp_path).context


@pytest.fixture
def connect(serve_in_thread: ServeInThread, trust: ssl.SSLContext) -> Iterator[Connect]:
    """`connect(server)` gives a client after its handshake, which is closed before the server is stopped."""
    with contextlib.ExitStack() as stack:

        def make(server: RunningServer, name: str | None = NAME, **options: Any) -> TLSClient:
            context = options.pop("context", trust)
            return stack.enter_context(TLSClient(server.address, context, name, **options))

        yield make


class InMemory:
    """TLS by hand, for clients that do with it what none should."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname=NAME)

    def hello(self) -> bytes:
        """The ClientHello."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self._out.read()

    def run(self, sock: socket.socket, step: Callable[[], T]) -> T:
        """Do `step`, and whatever else has to be sent and received for it."""
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                sock.sendall(self._out.read())
                data = sock.recv(65_536)
                if not data:
                    raise EOFError("the server has closed") from None
                self._in.write(data)
            else:
                sock.sendall(self._out.read())
                return result

    def send_close_notify(self, sock: socket.socket) -> None:
        with contextlib.suppress(ssl.SSLError):  # which says that there is more to read
            self.tls.unwrap()
        sock.sendall(self._out.read())


# -- answers


def test_requests_and_answers(serve: Serve, connect: Connect) -> None:
    server = serve(echo)
    assert server.url == f"https://127.0.0.1:{server.server.port}"
    client = connect(server)
    assert client.sock.version() == "TLSv1.3"
    for path in ("/a", "/b"):  # over one connection
        answer = client.get(path)
        assert (answer.status, answer.body) == (200, path.encode() + b" ")
    client.send(b"".join(request(f"/{n}", method="POST", body=b"%d" % n) for n in range(50)))
    for n in range(50):
        assert client.receive().body == b"/%d %d" % (n, n)
    client.send(request("/", method="HEAD"))
    assert client.receive("HEAD").status == 200


def test_older_clients_are_served(serve: Serve, connect: Connect, trust: ssl.SSLContext) -> None:
    trust.maximum_version = ssl.TLSVersion.TLSv1_2
    client = connect(serve())
    assert client.sock.version() == "TLSv1.2"
    assert client.get().status == client.get().status == 200


@pytest.mark.parametrize("settings", [{}, {"inbuf_overflow": 65_536}, {"stream_request_body": True}])
def test_large_request_bodies(serve: Serve, connect: Connect, settings: dict[str, object]) -> None:
    client = connect(serve(echo, **settings))
    body = random.Random(1).randbytes(3_000_000)
    for _ in range(2):
        client.send(request("/u", method="POST", body=body))
        assert client.receive().body == b"/u " + body
    client.send(request("/u", "Expect: 100-continue\r\nContent-Length: 5\r\n", method="PUT"))
    assert client.receive().status == 100
    client.send(b"hello")
    assert client.receive().body == b"/u hello"
    eventually(lambda: temporary_files() == 0, "nothing is left on disk")


def test_files_are_sent(serve: Serve, connect: Connect, tmp_path: Path) -> None:
    content = random.Random(2).randbytes(2_000_000)
    (tmp_path / "file").write_bytes(content)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"]((tmp_path / "file").open("rb"))
        return wrapped

    client = connect(serve(app))
    for _ in range(2):
        assert client.get().body == content


def test_a_slow_reader_holds_the_app_back(serve: Serve, connect: Connect) -> None:
    app = StreamingApp(bytes(65_536), length=30_000_000)
    server = serve(app, sockets=[small_listener()], outbuf_high_watermark=262_144)
    client = connect(server, receive_buffer=65_536)
    client.send(request())
    assert settled(lambda: app.written) < 10_000_000
    assert client.receive().body == bytes(app.written)
    assert app.written >= 30_000_000


HTTP_1_0 = b"GET / HTTP/1.0\r\n\r\n"


def test_a_body_without_a_length_ends_by_the_end_of_tls(serve: Serve, connect: Connect) -> None:
    server = serve(StreamingApp(b"x" * 1_000, length=100_000), linger_timeout=30)
    client = connect(server)
    client.send(HTTP_1_0)
    assert client.receive().body == b"x" * 100_000  # a truncation would have raised


def test_a_body_ends_whole_however_slowly_it_is_read(serve: Serve, connect: Connect) -> None:
    app = StreamingApp(b"x" * 65_536, length=1_000_000)
    server = serve(app, sockets=[small_listener()], linger_timeout=0.1)
    client = connect(server, receive_buffer=16_384)
    client.send(HTTP_1_0)
    assert app.closed.wait(DEADLINE)  # all is written, and the end of the connection is due
    wait_swept(server, 0.5)
    assert len(client.receive().body) == app.written


def test_a_body_that_fails_does_not_end_like_a_whole_one(serve: Serve, connect: Connect, log: Log) -> None:
    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"some"
        raise ValueError("and no more")

    client = connect(serve(app))
    client.send(HTTP_1_0)
    with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
        client.receive()
    log.take("ERROR waitress_async: Exception while serving /")


def test_a_refused_request_is_answered_though_its_body_is_not_read(serve: Serve, connect: Connect) -> None:
    client = connect(serve(echo, max_request_body_size=1_000, linger_timeout=0.5))
    client.send(request("/", "Content-Length: 4000000\r\n", method="POST"))
    for _ in range(40):
        client.send(bytes(100_000))
    assert client.receive().status == 413
    client.assert_ended()


def test_the_end_comes_at_once_where_it_was_asked_for(serve: Serve, connect: Connect) -> None:
    server = serve(echo, linger_timeout=1_000, stream_request_prefix=["/streamed"])
    for path in ("/", "/streamed"):
        client = connect(server)
        client.send(request(path, "Connection: close\r\n", method="POST", body=b"abc"))
        assert client.receive().closes
        client.assert_ended()
    client = connect(server)
    client.send(request("/", "Connection: close\r\n"))
    assert client.receive().closes
    client.assert_ended()


def test_sweeps_go_on_after_a_client_that_does_not_answer_the_end(serve: Serve, connect: Connect) -> None:
    server = serve(linger_timeout=0.1, channel_timeout=0.1)
    refused, idle = connect(server), connect(server)
    refused.send(b"nonsense\r\n\r\n")
    assert refused.receive().status == 400
    assert idle.get().status == 200
    eventually(lambda: count(server) == 0, "both are gone, though they have not closed")
    refused.assert_ended()
    idle.assert_ended()
    connect(server)
    wait_swept(server, 0.5)


# -- what the app sees


def show(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    keys = sorted(key for key in environ if key.startswith("SSL_") or key in ("HTTPS", "wsgi.url_scheme"))
    keys += ["REMOTE_ADDR", "SERVER_PORT"]
    return ["\n".join(f"{key}={environ[key]!r}" for key in keys).encode()]


def shown(answer: Response) -> dict[str, str]:
    lines = (line.partition("=") for line in answer.body.decode().splitlines())
    return {key: value.strip("'") for key, _, value in lines}


def test_the_environ(serve: Serve, connect: Connect) -> None:
    server = serve(show)
    client = connect(server)
    for _ in range(2):
        assert shown(client.get()) == {
            "HTTPS": "on",
            "SSL_CIPHER": (client.sock.cipher() or ("",))[0],
            "SSL_CLIENT_VERIFY": "NONE",
            "SSL_PROTOCOL": "TLSv1.3",
            "wsgi.url_scheme": "https",
            "REMOTE_ADDR": "127.0.0.1",
            "SERVER_PORT": str(server.server.port),
        }


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("mode", ["optional", "required"])
def test_certificates_of_clients(
    serve: Serve, connect: Connect, files: Files, tmp_path: Path, mode: str, version: ssl.TLSVersion
) -> None:
    files.verify_clients(mode)
    server = serve(show)
    ada = contexts.Client(tmp_path, CLIENTS.issue(name_of((contexts.CN, "Ada")))).context
    nobody = contexts.Client(tmp_path).context
    stranger = contexts.Client(tmp_path, SOMEBODY_ELSE.issue(name_of((contexts.CN, "Eve")))).context
    for context in (ada, nobody, stranger):
        context.maximum_version = version
    environ = shown(connect(server, context=ada).get())
    assert environ["SSL_CLIENT_VERIFY"] == "SUCCESS"
    assert environ["SSL_CLIENT_S_DN"] == "CN=Ada"
    assert environ["SSL_CLIENT_CERT"].startswith("-----BEGIN CERTIFICATE-----")
    with pytest.raises((ssl.SSLError, ConnectionResetError, BrokenPipeError)):
        connect(server, context=stranger).get()
    if mode == "optional":
        environ = shown(connect(server, context=nobody).get())
        assert environ["SSL_CLIENT_VERIFY"] == "NONE"
        assert "SSL_CLIENT_CERT" not in environ
    else:
        with pytest.raises((ssl.SSLError, ConnectionResetError, BrokenPipeError)):
            connect(server, context=nobody).get()


def test_a_name_chooses_the_certificate(serve: Serve, connect: Connect) -> None:
    server = serve()
    for name, certificate in [("other.example", "other.example"), ("what.example", NAME), (None, NAME)]:
        client = connect(server, name)
        assert client.shown == certificate
        assert client.get().status == 200


def test_a_context_of_the_program(serve_in_thread: ServeInThread, files: Files, connect: Connect) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certfile, files.keyfile)
    server = serve_in_thread(show, ssl_context=context)
    client = connect(server)
    assert shown(client.get())["HTTPS"] == "on"
    with pytest.raises(SettingsError, match="ssl_context"):
        server.server.reload_tls()
    context.load_cert_chain(files.folder / "spare.crt", files.folder / "spare.key")
    assert connect(server).shown == RENEWED
    assert client.get().status == 200


# -- new certificates


def test_new_certificates_are_for_new_connections(
    serve: Serve, connect: Connect, files: Files, gated: GatedApp
) -> None:
    server = serve(gated)
    idle, busy = connect(server), connect(server)
    gated.let_go()
    assert idle.get("/0").status == 200
    busy.send(request("/busy"))
    gated.wait_entered(2)
    put_renewed(files)
    server.server.reload_tls()
    late = connect(server)
    assert late.shown == RENEWED
    gated.let_go(3)
    assert busy.receive().body == b"/busy"
    assert idle.get("/1").body == b"/1"
    assert late.get("/2").body == b"/2"
    assert idle.shown == busy.shown == NAME


def test_a_handshake_goes_on_with_what_it_began_with(
    serve: Serve, files: Files, trust: ssl.SSLContext
) -> None:
    server = serve()
    client = InMemory(trust)
    with socket.create_connection(server.address, DEADLINE) as sock:
        first = client.hello()
        sock.sendall(first[:50])
        eventually(lambda: count(server) == 1, "it is accepted")
        arrivals = server.server._runtime.connections._arrivals
        eventually(lambda: all(one.protocol for one in arrivals), "its handshake has begun")
        put_renewed(files)
        server.server.reload_tls()
        sock.sendall(first[50:])
        client.run(sock, client.tls.do_handshake)
        certificate: Any = client.tls.getpeercert()
        assert certificate["subjectAltName"][0][1] == NAME


def test_a_broken_file_leaves_what_was_there(
    serve: Serve, connect: Connect, files: Files, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "waitress_async")
    server = serve()

    def reload() -> None:
        asyncio.run_coroutine_threadsafe(server.server.reload(), server.loop).result(DEADLINE)

    files.put("default.crt", b"-----BEGIN CERTIFICATE-----\nbroken\n")
    with pytest.raises(SettingsError, match=r"default\.crt"):
        server.server.reload_tls()
    reload()
    assert "default.crt" in log.take("ERROR waitress_async: Certificates stay as they are: ")
    files.certfile.unlink()
    with pytest.raises(OSError, match="No such file"):
        server.server.reload_tls()
    reload()
    assert "No such file" in log.take("ERROR waitress_async: Certificates stay as they are: ")
    assert connect(server).shown == NAME
    put_renewed(files)
    reload()
    assert connect(server).shown == RENEWED
    eventually(lambda: "Certificates are loaded anew" in caplog.text, "the log says so")


def test_before_the_start_there_is_nothing_old_to_reload(files: Files) -> None:
    local_server(**files.settings).reload_tls()


def test_without_tls_there_is_nothing_to_reload(serve_in_thread: ServeInThread) -> None:
    server = serve_in_thread(hello)
    with pytest.raises(SettingsError, match="does not speak TLS"):
        server.server.reload_tls()
    asyncio.run_coroutine_threadsafe(server.server.reload(), server.loop).result(DEADLINE)


# -- clients that break it


class Lines:
    """What is logged from INFO on, by anyone, after the server has started."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        self._caplog = caplog

    def begin(self) -> None:
        self._caplog.clear()

    @property
    def texts(self) -> list[str]:
        return [
            f"{record.levelname} {record.getMessage()}"
            for record in list(self._caplog.records)
            if not record.getMessage().startswith("Executing ")
        ]


def send_hello_in_part(context: ssl.SSLContext, sock: socket.socket) -> None:
    sock.sendall(InMemory(context).hello()[:100])


def send_plain(_context: ssl.SSLContext, sock: socket.socket) -> None:
    sock.sendall(request())


def send_garbage(_context: ssl.SSLContext, sock: socket.socket) -> None:
    sock.sendall(random.Random(3).randbytes(10_000))


def send_damaged_hello(context: ssl.SSLContext, sock: socket.socket) -> None:
    data = bytearray(InMemory(context).hello())
    data[9:40] = bytes(31)
    sock.sendall(data)


def say_nothing(_context: ssl.SSLContext, _sock: socket.socket) -> None:
    pass


def end_in_the_middle(context: ssl.SSLContext, sock: socket.socket) -> None:
    send_hello_in_part(context, sock)
    sock.shutdown(socket.SHUT_WR)


def end_after_hello(context: ssl.SSLContext, sock: socket.socket) -> None:
    sock.sendall(InMemory(context).hello())
    sock.recv(1)
    sock.shutdown(socket.SHUT_WR)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def reset_in_the_middle(context: ssl.SSLContext, sock: socket.socket) -> None:
    send_hello_in_part(context, sock)
    reset(sock)


def reset_after_hello(context: ssl.SSLContext, sock: socket.socket) -> None:
    sock.sendall(InMemory(context).hello())
    sock.recv(1)
    reset(sock)


def speak_an_old_version(context: ssl.SSLContext, sock: socket.socket) -> None:
    data = bytearray(InMemory(context).hello())
    # Of the versions that are offered none is known any more.
    at = data.index(b"\x03\x04\x03\x03", 40) if b"\x03\x04\x03\x03" in data[40:] else 0
    assert at
    data[at : at + 4] = b"\x03\x02\x03\x01"
    sock.sendall(data)


def refuse_the_certificate(context: ssl.SSLContext, sock: socket.socket) -> None:
    distrusting = InMemory(ssl.create_default_context())
    with pytest.raises(ssl.SSLCertVerificationError):
        distrusting.run(sock, distrusting.tls.do_handshake)
    sock.sendall(distrusting._out.read())


def break_it_later(context: ssl.SSLContext, sock: socket.socket) -> None:
    client = InMemory(context)
    client.run(sock, client.tls.do_handshake)
    sock.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))  # a record that nobody has encrypted


def reset_later(context: ssl.SSLContext, sock: socket.socket) -> None:
    client = InMemory(context)
    client.run(sock, client.tls.do_handshake)
    reset(sock)


def end_without_a_word(context: ssl.SSLContext, sock: socket.socket) -> None:
    client = InMemory(context)
    client.run(sock, client.tls.do_handshake)
    client.run(sock, lambda: client.tls.write(request()))
    client.run(sock, lambda: client.tls.read(65_536))
    sock.shutdown(socket.SHUT_WR)


BREAKS = [
    send_hello_in_part,
    send_plain,
    send_garbage,
    send_damaged_hello,
    say_nothing,
    end_in_the_middle,
    end_after_hello,
    reset_in_the_middle,
    reset_after_hello,
    speak_an_old_version,
    refuse_the_certificate,
    break_it_later,
    reset_later,
    end_without_a_word,
]


OF_HANDSHAKES = "INFO (TLS handshake|tls_handshake_timeout): "


def test_clients_that_break_tls(
    serve: Serve, trust: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    lines = Lines(caplog)
    server = serve(tls_handshake_timeout=0.1)
    eventually(lambda: "Serving on" in caplog.text, "it says so")
    lines.begin()
    for break_tls in BREAKS:
        with nothing_left(), socket.create_connection(server.address, DEADLINE) as sock:
            break_tls(trust, sock)
            eventually(lambda: count(server) == 0, f"{break_tls.__name__} is cut")
            with TLSClient(server.address, trust) as another:
                assert another.get().status == 200
            eventually(lambda: count(server) == 0, "it has closed")
    server.stop()  # from then on all is logged
    told = [line for line in lines.texts if re.match(rf"{OF_HANDSHAKES}127\.0\.0\.1:", line)]
    assert 0 < len(told) <= len(BREAKS)
    peers = [line.split(": ")[1] for line in told]
    assert len(set(peers)) == len(peers)  # a line for each, at most
    others = [line for line in lines.texts if line not in told]
    assert not [line for line in others if not re.match("INFO (Stop|Listen|Closed)", line)]


def test_many_half_handshakes_harm_nobody(
    serve: Serve, connect: Connect, trust: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    lines = Lines(caplog)
    server = serve(tls_handshake_timeout=4, connection_limit=1_000, backlog=1_000)
    first = connect(server)
    eventually(lambda: "Serving on" in caplog.text, "it says so")
    lines.begin()
    with contextlib.ExitStack() as stack:
        for number in range(200):
            sock = stack.enter_context(socket.create_connection(server.address, DEADLINE))
            sock.sendall(InMemory(trust).hello()[: None if number % 2 else 100])
        eventually(lambda: count(server) == 201, "all are accepted")
        assert first.get().status == 200
        assert connect(server).get().status == 200
        assert count(server) == 202
        eventually(lambda: count(server) == 2, "they are cut, and no others")
        assert first.get().status == 200
    eventually(lambda: lines.texts, "the log's thread has said so")
    assert 1 <= len(lines.texts) <= 10
    assert all(re.match(OF_HANDSHAKES, line) for line in lines.texts)


def test_a_handshake_that_takes_too_long(
    serve: Serve, trust: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    lines = Lines(caplog)
    server = serve(tls_handshake_timeout=0.1)
    eventually(lambda: "Serving on" in caplog.text, "it says so")
    lines.begin()
    names = []
    for break_tls in (say_nothing, send_hello_in_part):
        with socket.create_connection(server.address, DEADLINE) as sock:
            break_tls(trust, sock)
            names.append(f"127.0.0.1:{sock.getsockname()[1]}")
            assert sock.recv(1) == b""
    expected = [f"INFO tls_handshake_timeout: {name}: its TLS handshake is not complete" for name in names]
    eventually(lambda: lines.texts == expected, "the log says so")


def test_a_server_that_stood_still_cuts_no_handshake(
    serve: Serve, serve_in_thread: ServeInThread, trust: ssl.SSLContext
) -> None:
    """What its clients sent meanwhile is in time."""
    server = serve(tls_handshake_timeout=0.4)
    client = InMemory(trust)
    gate = Gate()
    with socket.create_connection(server.address, DEADLINE) as sock:
        first = client.hello()
        sock.sendall(first[:50])
        arrivals = server.server._runtime.connections._arrivals
        eventually(lambda: [one.protocol for one in arrivals if one.protocol], "its handshake has begun")
        server.loop.call_soon_threadsafe(gate.around(bool))
        assert gate.reached.acquire(timeout=DEADLINE)
        Clock(serve_in_thread, 0.5).wait()
        sock.sendall(first[50:])
        gate.open()
        client.run(sock, client.tls.do_handshake)
        client.run(sock, lambda: client.tls.write(request()))
        assert client.run(sock, lambda: client.tls.read(12)) == b"HTTP/1.1 200"


# -- ends


def test_who_ends_tls_is_gone(serve: Serve, gated: GatedApp, trust: ssl.SSLContext) -> None:
    """asyncio's TLS has no half that stays open."""
    server = serve(gated)
    client = InMemory(trust)
    with socket.create_connection(server.address, DEADLINE) as sock:
        client.run(sock, client.tls.do_handshake)
        client.run(sock, lambda: client.tls.write(request("/half")))
        gated.wait_entered()
        client.send_close_notify(sock)
        eventually(lambda: count(server) == 0, "the server has closed")
        gated.let_go()


def test_who_ends_tls_still_gets_what_is_written(
    serve: Serve, connect: Connect, trust: ssl.SSLContext
) -> None:
    server = serve(StreamingApp(b"x" * 30_000, length=30_000))
    client = InMemory(trust)
    with socket.create_connection(server.address, DEADLINE) as sock:
        client.run(sock, client.tls.do_handshake)
        client.run(sock, lambda: client.tls.write(request()))
        eventually(lambda: server.server._runtime.responses == 1, "it is answered")
        client.send_close_notify(sock)
        received = b""
        with contextlib.suppress(EOFError, ssl.SSLZeroReturnError):
            while data := client.run(sock, lambda: client.tls.read(65_536)):
                received += data
        assert received.count(b"x") >= 30_000
    eventually(lambda: count(server) == 0, "the server has closed")


@pytest.mark.parametrize("ends", ["by a word", "by a FIN", "by a reset"])
def test_a_client_that_leaves_a_stream(serve: Serve, trust: ssl.SSLContext, ends: str) -> None:
    """The app is told, and asyncio does not warn of writes into the void."""
    app = StreamingApp(b"x" * 100)
    server = serve(app)
    client = InMemory(trust)
    with socket.create_connection(server.address, DEADLINE) as sock:
        client.run(sock, client.tls.do_handshake)
        client.run(sock, lambda: client.tls.write(request()))
        client.run(sock, lambda: client.tls.read(65_536))
        if ends == "by a word":
            client.send_close_notify(sock)
        elif ends == "by a FIN":
            sock.shutdown(socket.SHUT_WR)
        else:
            reset(sock)
        if ends != "by a reset":
            with contextlib.suppress(OSError):
                while sock.recv(65_536):
                    pass
        assert app.closed.wait(DEADLINE)
        eventually(lambda: count(server) == 0, "the server has closed")


def test_nothing_is_written_to_a_client_that_has_left_and_is_still_sent_to(
    serve: Serve, trust: ssl.SSLContext
) -> None:
    """asyncio sends it what it holds before it tells of the end, and warns of what is written meanwhile."""
    may_write = threading.Semaphore(0)
    written = 0
    ended = False

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        nonlocal written, ended
        start_response("200 OK", [("Content-Type", "text/plain")])
        try:
            while may_write.acquire(timeout=DEADLINE):
                yield bytes(4_000)
                written += 1
        finally:
            ended = True

    server = serve(app, sockets=[small_listener()])
    client = InMemory(trust)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        sock.settimeout(DEADLINE)
        sock.connect(server.address)
        client.run(sock, client.tls.do_handshake)
        client.run(sock, lambda: client.tls.write(request()))
        eventually(lambda: bool(protocols(server)), "it is connected")
        (protocol,) = protocols(server)

        def write(times: int) -> None:
            for _ in range(times):
                before = written
                may_write.release()
                eventually(lambda: ended or written > before, "the app has written")  # noqa: B023
                turns(server, 1)

        while not is_full(protocol._transport):
            write(1)
        write(30)  # of which the system takes about a half, asyncio the rest
        assert not protocol._sender.paused
        assert is_full(protocol._transport)
        sock.shutdown(socket.SHUT_WR)
        turns(server, 10)
        write(10)
        with contextlib.suppress(OSError):
            while sock.recv(65_536):
                pass
        eventually(lambda: count(server) == 0, "the server has closed")
    may_write.release()
    eventually(lambda: ended, "the app is told")


def turns(server: RunningServer, number: int) -> None:
    """Wait until the server's loop has gone round so often."""
    for _ in range(number):
        done = threading.Event()
        server.loop.call_soon_threadsafe(done.set)
        assert done.wait(DEADLINE)


@pytest.mark.parametrize("ends", ["by a word", "by a FIN", "by a reset"])
def test_a_client_that_leaves_while_it_is_not_read_from(
    serve: Serve, trust: ssl.SSLContext, ends: str
) -> None:
    """Its body waits for the app, which meanwhile streams an answer."""
    app = StreamingApp(b"x")
    server = serve(app, stream_request_body=True)
    client = InMemory(trust)
    with socket.create_connection(server.address, DEADLINE) as sock:
        client.run(sock, client.tls.do_handshake)
        client.run(sock, lambda: client.tls.write(request("/", "Content-Length: 9000000\r\n", "POST")))
        for _ in range(40):
            client.run(sock, lambda: client.tls.write(bytes(10_000)))
        eventually(lambda: any(one._reading_paused for one in protocols(server)), "reading is paused")
        eventually(lambda: app.written, "the app has begun")
        if ends == "by a word":
            client.send_close_notify(sock)
            sock.shutdown(socket.SHUT_WR)
        elif ends == "by a FIN":
            sock.shutdown(socket.SHUT_WR)
        else:
            reset(sock)
        assert app.closed.wait(DEADLINE)
        eventually(lambda: count(server) == 0, "the server has closed")


def protocols(server: RunningServer) -> list[HTTPProtocol]:
    return list(server.server._runtime.connections._protocols)


# -- the stop


def test_a_stop_waits_for_nobody_idle(
    serve: Serve, connect: Connect, trust: ssl.SSLContext, gated: GatedApp
) -> None:
    server = serve(gated, graceful_timeout=1_000, linger_timeout=1_000, tls_handshake_timeout=1_000)
    idle, busy = connect(server), connect(server)
    gated.let_go()
    assert idle.get().status == 200
    busy.send(request("/busy"))
    gated.wait_entered(2)
    with (
        socket.create_connection(server.address, DEADLINE) as silent,
        socket.create_connection(server.address, DEADLINE) as half,
    ):
        send_hello_in_part(trust, half)
        eventually(lambda: count(server) == 4, "all are accepted")
        server.server.request_stop()
        idle.assert_ended()
        gated.let_go()
        answer = busy.receive()
        assert (answer.body, answer.closes) == (b"/busy", True)
        busy.assert_ended()
        busy.sock.close()
        server.stop()
        assert silent.recv(1) == half.recv(1) == b""


def test_a_stop_cuts_what_is_left(serve: Serve, connect: Connect, log: Log) -> None:
    app = StreamingApp()
    server = serve(app, graceful_timeout=0.1)
    client = connect(server)
    client.send(request())
    client.sock.recv(1)
    server.server.request_stop()
    with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
        client.rest()
    server.stop()
    assert app.closed.is_set()


def test_a_stop_waits_for_an_answer_and_not_for_what_comes_after_it(serve: Serve, connect: Connect) -> None:
    """It was written before the stop, and lies with asyncio below TLS."""
    server = serve(
        large,
        graceful_timeout=1_000,
        channel_timeout=0,
        linger_timeout=0.2,  # sweeps come often
        sockets=[small_listener()],
    )
    idle, slow = connect(server), connect(server, receive_buffer=4_096)
    slow.send(request())
    eventually(lambda: server.server._runtime.responses == 1, "it is written")
    server.server.request_stop()
    idle.assert_ended()
    answer = slow.receive()
    assert (len(answer.body), answer.closes) == (SIZE, False)
    slow.assert_ended()
    server.thread.join(DEADLINE)
    assert not server.thread.is_alive()


@on_each_loop
async def test_embedded(tmp_path: Path) -> None:
    files, context = Files(tmp_path), contexts.Client(tmp_path).context
    held: list[TLSClient] = []

    def visit(address: tuple[str, int]) -> None:
        for _ in range(3):
            client = TLSClient(address, context)
            assert client.get().status == 200
            held.append(client)
        held.pop(0).sock.close()

    async with local_server(hello, **files.settings) as server:
        await in_thread(lambda: visit(("127.0.0.1", server.port)))
        await eventually_async(lambda: len(server._runtime.connections) == 2, "one has closed")
    for client in held:
        client.assert_ended()
        client.sock.close()


# -- bounds


def test_at_the_limit_idle_connections_make_room(serve: Serve, connect: Connect) -> None:
    server = serve(connection_limit=3, linger_timeout=1_000)
    clients = [connect(server) for _ in range(8)]  # none of which closes, or reads
    assert clients[-1].get().status == 200
    assert count(server) <= 3


def test_at_the_limit_half_handshakes_make_room(
    serve: Serve, connect: Connect, trust: ssl.SSLContext, log: Log
) -> None:
    server = serve(connection_limit=5, tls_handshake_timeout=1_000)
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            sock = stack.enter_context(socket.create_connection(server.address, DEADLINE))
            send_hello_in_part(trust, sock)
        eventually(lambda: count(server) == 5, "all are accepted")
        assert connect(server).get().status == 200
        assert connect(server).get().status == 200
    for line in log.lines:
        log.take(line if line.startswith("WARNING waitress_async: total open connections") else "another")


def test_a_late_head(serve: Serve, connect: Connect) -> None:
    server = serve(header_timeout=0.1, linger_timeout=0.1)
    client = connect(server)
    client.send(b"GET / HTTP/1.1\r\n")
    assert client.receive().status == 408
    client.assert_ended()
    connect(server).assert_ended()  # and one that says nothing


def test_a_body_that_is_too_slow(serve: Serve, connect: Connect) -> None:
    server = serve(echo, body_min_rate=1_000_000, min_rate_grace=0.1, linger_timeout=0.1)
    client = connect(server)
    client.send(request("/", "Content-Length: 10\r\n", "POST") + b"abc")
    assert client.receive().status == 408
    client.assert_ended()


def test_a_reader_that_is_too_slow(serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "waitress_async")
    app = StreamingApp(bytes(65_536))
    server = serve(app, response_min_rate=1_000_000, min_rate_grace=0.1, sockets=[small_listener()])
    client = connect(server, receive_buffer=16_384)
    client.send(request())
    assert app.closed.wait(DEADLINE)
    eventually(lambda: count(server) == 0, "it is cut")
    eventually(lambda: "response_min_rate: 127.0.0.1:" in caplog.text, "the log says so")


def test_a_reader_of_a_slow_stream_is_not_too_slow(serve: Serve, connect: Connect) -> None:
    """It takes all there is, though there is little, and something new at each sweep."""
    steps = Steps()

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        start_response("200 OK", [])
        return numbers(steps, 12)

    server = serve(app, response_min_rate=1_000_000_000, min_rate_grace=0.1)
    client = connect(server)
    client.send(request())
    assert head_of(client)
    for number in range(12):
        steps.go()
        assert chunk(client) == b"%d;" % number
        wait_swept(server, 0.01)
    assert chunk(client) == b""


def test_a_reader_of_the_last_bytes_that_is_too_slow(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """All is written, and lies with asyncio below TLS."""
    caplog.set_level(logging.INFO, "waitress_async")

    server = serve(large, response_min_rate=1_000_000, min_rate_grace=0.1, sockets=[small_listener()])
    client = connect(server, receive_buffer=4_096)
    client.send(request("/", "Connection: close\r\n"))
    eventually(lambda: server.server._runtime.responses == 1, "it is written")
    eventually(lambda: count(server) == 0, "it is cut")
    eventually(lambda: "response_min_rate: 127.0.0.1:" in caplog.text, "the log says so")


def test_all_is_sent_when_two_sweeps_in_a_row_find_room(serve: Serve, connect: Connect) -> None:
    """Once there may be room when asyncio is about to fill it."""
    server = serve(large, sockets=[small_listener()])
    connections = server.server._runtime.connections
    client = connect(server, receive_buffer=4_096)
    eventually(lambda: protocols(server), "it is known")
    (protocol,) = protocols(server)

    found: list[bool] = []  # whether there is something unsent, twice for each sweep

    def sweep() -> None:
        connections.stop_sweeping()  # there are no others
        connections.clock += 1
        found.extend(bool(protocol._unsent()) for _ in range(2))

    def look(sweeps: int) -> list[bool]:
        found.clear()
        for number in range(1, sweeps + 1):
            server.loop.call_soon_threadsafe(sweep)
            eventually(lambda: len(found) == 2 * number, "it has looked")  # noqa: B023
        return found

    assert look(1) == [False] * 2  # nothing is written yet
    for _ in range(2):
        client.send(request())
        eventually(lambda: is_full(protocol._transport), "it is written")
        assert look(3) == [True] * 6
        assert len(client.receive().body) == SIZE
        assert look(3) == [True] * 2 + [False] * 4


def test_an_idle_connection_is_ended_cleanly(serve: Serve, connect: Connect) -> None:
    server = serve(channel_timeout=0.1, linger_timeout=1_000)
    client = connect(server)
    assert client.get().status == 200
    client.assert_ended()
    eventually(lambda: count(server) == 0, "it is gone, though the client has not closed")


def test_nothing_is_left_of_connections(serve: Serve, trust: ssl.SSLContext) -> None:
    server = serve(echo)

    def visit(number: int) -> None:
        with TLSClient(server.address, trust) as client:
            client.send(request("/", "Connection: close\r\n" if number % 3 else "", "POST", b"a" * 100))
            assert client.receive().status == 200
            if number % 2:
                client.assert_ended() if number % 3 else client.reset()

    def left() -> int:
        eventually(lambda: count(server) == 0, "all are gone")
        eventually(lambda: not server.server._runtime.connections._arrivals, "and have arrived")
        settled(lambda: len(gc.get_objects()) // 1_000)
        gc.collect()
        kinds = ("HTTPProtocol", "SSLObject", "SSLProtocol", "_SSLSocket", "Arrival", "TransportSocket")
        return sum(type(one).__name__ in kinds for one in gc.get_objects())

    for number in range(6):
        visit(number)
    before = left()
    for number in range(300):
        visit(number)
    assert left() <= before
    runtime = server.server._runtime
    assert runtime.memory.used == 0
    assert not runtime.connections._hosts


# -- other ways to arrive


@linux_only
def test_a_proxy_header_comes_before_tls(serve: Serve, connect: Connect) -> None:
    server = serve(show, proxy_protocol="v2", proxy_protocol_from=["127.0.0.1"])
    client = connect(server, before=proxy_v2("192.0.2.7", "192.0.2.1", (1234, 443)))
    environ = shown(client.get())
    assert (environ["REMOTE_ADDR"], environ["SERVER_PORT"]) == ("192.0.2.7", "443")
    assert environ["HTTPS"] == "on"


@linux_only
def test_a_unix_socket(serve: Serve, trust: ssl.SSLContext) -> None:
    place = unix_place()
    server = serve(show, listen=[place])
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(DEADLINE)
        plain.connect(place.replace("unix:@", "\0"))
        client = InMemory(trust)
        client.run(plain, client.tls.do_handshake)
        client.run(plain, lambda: client.tls.write(request("/", "Connection: close\r\n")))
        answer = b""
        while data := client.run(plain, lambda: client.tls.read(65_536)):
            answer += data
    assert b"HTTPS='on'" in answer
    assert b"SERVER_PORT='443'" in answer
    eventually(lambda: count(server) == 0, "it has closed")


# -- plain HTTP that is sent to https


@pytest.fixture
def redirecting(serve: Serve) -> tuple[RunningServer, tuple[str, int]]:
    """A server, and where it redirects."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    server = serve(echo, redirect_listen=[f"127.0.0.1:{port}"], server_name="fallback.example")
    return server, ("127.0.0.1", port)


REDIRECTS = [
    ("GET / HTTP/1.1\r\nHost: a.example", "https://a.example:PORT/"),
    ("GET / HTTP/1.1\r\nHost: a.example:8080", "https://a.example:PORT/"),
    ("GET / HTTP/1.1\r\nHost: a.example:", "https://a.example:PORT/"),
    ("GET / HTTP/1.1\r\nHost: 192.0.2.1:80", "https://192.0.2.1:PORT/"),
    ("GET / HTTP/1.1\r\nHost: [2001:db8::1]", "https://[2001:db8::1]:PORT/"),
    ("GET / HTTP/1.1\r\nHost: [2001:db8::1]:80", "https://[2001:db8::1]:PORT/"),
    ("GET /a/b?c=d&e HTTP/1.1\r\nHost: a.example", "https://a.example:PORT/a/b?c=d&e"),
    ("GET //evil.example/ HTTP/1.1\r\nHost: a.example", "https://a.example:PORT//evil.example/"),
    ("GET http://b.example:81/x?y HTTP/1.1\r\nHost: a.example", "https://b.example:PORT/x?y"),
    ("GET http://b.example HTTP/1.1\r\nHost: a.example", "https://b.example:PORT/"),
    ("GET http://b.example?q HTTP/1.1\r\nHost: a.example", "https://b.example:PORT/?q"),
    ("OPTIONS * HTTP/1.1\r\nHost: a.example", "https://a.example:PORT/"),
    ("GET /x HTTP/1.0", "https://fallback.example:PORT/x"),
    ("GET /x HTTP/1.1\r\nHost: ", "https://fallback.example:PORT/x"),
    ("HEAD /x HTTP/1.1\r\nHost: a.example", "https://a.example:PORT/x"),
    ("GET /%0d%0aSet-Cookie:x HTTP/1.1\r\nHost: a.example", "https://a.example:PORT/%0d%0aSet-Cookie:x"),
    ("GET /\"<>'\\{}|^` HTTP/1.1\r\nHost: a.example", "https://a.example:PORT/\"<>'\\{}|^`"),
]


def test_redirects(redirecting: tuple[RunningServer, tuple[str, int]]) -> None:
    server, address = redirecting
    for head, location in REDIRECTS:
        with Client(address) as client:
            client.send(f"{head}\r\n\r\n".encode("latin-1"))
            answer = client.receive(head.partition(" ")[0])
            assert answer.status == 308
            assert answer.headers["location"] == location.replace("PORT", str(server.server.port))
            assert answer.closes
            client.assert_ended()


NO_REQUESTS = [
    "GET /\xff\xe9 HTTP/1.1\r\nHost: a.example",
    "GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example",
    "GET / HTTP/1.1\r\nHost: a.example/x",
    "GET / HTTP/1.1\r\nHost: a.example\rSet-Cookie: x",
    "GET / HTTP/1.1\r\nHost: me@a.example",
    "GET / HTTP/1.1",
    "GET /\rx HTTP/1.1\r\nHost: a.example",
]


def test_what_is_no_request_is_not_redirected(redirecting: tuple[RunningServer, tuple[str, int]]) -> None:
    for head in NO_REQUESTS:
        with Client(redirecting[1]) as client:
            client.send(f"{head}\r\n\r\n".encode("latin-1"))
            answer = client.receive()
            assert answer.status == 400, head
            assert "location" not in answer.headers


def test_a_redirect_does_not_wait_for_the_body(
    redirecting: tuple[RunningServer, tuple[str, int]],
) -> None:
    with Client(redirecting[1]) as client:
        client.send(request("/x", "Content-Length: 4000000\r\nExpect: 100-continue\r\n", "POST"))
        answer = client.receive()
        assert (answer.status, answer.closes) == (308, True)
    with Client(redirecting[1]) as client:
        client.send(request("/x", "Content-Length: 4000000\r\n", "POST") + bytes(4_000_000))
        assert client.receive().status == 308
        client.assert_ended()


def test_only_plain_listeners_redirect(
    redirecting: tuple[RunningServer, tuple[str, int]], connect: Connect
) -> None:
    server, address = redirecting
    assert server.server.addresses == [server.address]
    with Client(address) as plain:
        plain.send(request("/1") + request("/2"))
        assert plain.receive().status == 308
        plain.assert_ended()
    assert connect(server).get("/x").body == b"/x "
