"""Connections that begin with a PROXY header: what is made of it, and of all that is none."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.conftest import ServeInThread
from tests.server.peers import (
    LOCAL,
    SIGNATURE,
    UNKNOWN,
    X_FORWARDED,
    Peer,
    Recorder,
    ipv4_over_ipv6,
    linux_only,
    proxy_v1,
    proxy_v2,
    proxy_v2_raw,
    statuses,
    unix_place,
)
from tests.server.support import (
    Client,
    bounded,
    eventually,
    held,
    hello,
    local_server,
    needs_proc,
    on_each_loop,
    request,
    settled,
)
from tests.server.test_connection_limit import is_silent
from tests.server.test_listeners import needs_ipv6
from tests.wsgi.logs import Log, strict_log
from waitress_async.errors import ProxyProtocolError
from waitress_async.http import ProxiedAddresses, ProxyHeaderReader
from waitress_async.server import deadlines

pytestmark = linux_only

TLS_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    monkeypatch.setattr(deadlines, "_LINES", 1_000)
    with strict_log(logging.WARNING) as log:
        yield log


def closed_line(peer: Peer) -> str:
    return f"WARNING waitress_async: PROXY header: {peer.address}:{peer.port}: "


def late_line(peer: Peer) -> str:
    who = f"{peer.address}:{peer.port}"
    return f"WARNING waitress_async: proxy_protocol_timeout: {who}: its PROXY header is not complete"


# -- what is made of a header

HEADERS: list[tuple[str, bytes, tuple[str, str, str] | None]] = [
    ("v1", proxy_v1("192.0.2.1"), ("192.0.2.1", "56324", "443")),
    ("v1", proxy_v1("2001:DB8:0::1", "::1", (1, 65535)), ("2001:db8::1", "1", "65535")),
    ("v1", UNKNOWN, None),
    ("v1", b"PROXY UNKNOWN 203.0.113.66 203.0.113.66 1 2\r\n", None),
    ("v2", proxy_v2("192.0.2.1", ports=(0, 80)), ("192.0.2.1", "0", "80")),
    ("v2", proxy_v2("2001:db8::1", "::1"), ("2001:db8::1", "56324", "443")),
    ("v2", proxy_v2("::ffff:192.0.2.1", "::1"), ("::ffff:192.0.2.1", "56324", "443")),
    ("v2", proxy_v2("192.0.2.1", tlvs=[(1, b"h2"), (4, bytes(3_000))]), ("192.0.2.1", "56324", "443")),
    ("v2", LOCAL, None),
    ("v2", proxy_v2_raw(0x20, 0x11, bytes(12)), None),
    ("v2", proxy_v2_raw(0x21, 0x00), None),
    ("v2", proxy_v2_raw(0x21, 0x31, b"/a/client".ljust(216, b"\0")), None),
]


def deliver(peer: Peer, way: str, header: bytes, rest: bytes) -> None:
    """Send both; `way` says how."""
    if way == "together":
        peer.send(header + rest)
    elif way == "apart":
        peer.send(header)
        peer.send(rest)
    elif way == "by bytes":
        for at in range(len(header) + 10):
            peer.send((header + rest)[at : at + 1])
        peer.send(rest[10:])
    else:
        middle = len(header) // 2
        for part in (header[:middle], header[middle:-1], header[-1:] + rest[:1], rest[1:]):
            peer.send(part)


@pytest.mark.parametrize("way", ["together", "apart", "in pieces", "by bytes"])
def test_a_header_says_who_the_client_is(serve_in_thread: ServeInThread, way: str) -> None:
    """Of the whole connection, whose requests are answered as on any other."""
    app = Recorder()
    servers = {
        setting: serve_in_thread(app, proxy_protocol=setting, threads=1) for setting in ("v1", "v2", "auto")
    }
    for version, header, told in HEADERS:
        for setting in (version, "auto"):
            server = servers[setting]
            with Peer(server) as peer:
                deliver(peer, way, header, request("/first"))
                assert peer.receive().body == b"recorded"
                peer.send(request("/second") + request("/third", method="POST", body=b"body"))
                assert peer.receive().status == peer.receive().status == 200
                own = ("127.0.0.1", peer.port, str(server.server.port))
            environs = app.take()
            assert [environ["PATH_INFO"] for environ in environs] == ["/first", "/second", "/third"]
            for environ in environs:
                assert environ["REMOTE_ADDR"] == environ["REMOTE_HOST"]
                ends = environ["REMOTE_ADDR"], environ["REMOTE_PORT"], environ["SERVER_PORT"]
                assert ends == (told or own)
                assert environ["wsgi.url_scheme"] == "http"
            assert environs[2]["body"] == b"body"


def on_ipv6(serve_in_thread: ServeInThread, app: Recorder, **settings: object) -> Peer:
    return Peer(serve_in_thread(app, host="::1", proxy_protocol_from="::1", **settings))


def on_mapped_ipv4(serve_in_thread: ServeInThread, app: Recorder, **settings: object) -> Peer:
    server = serve_in_thread(app, sockets=[ipv4_over_ipv6()], proxy_protocol_from="127.0.0.9", **settings)
    return Peer(server, "127.0.0.9")


def on_a_unix_socket(serve_in_thread: ServeInThread, app: Recorder, **settings: object) -> Peer:
    return Peer(serve_in_thread(app, listen=unix_place(), proxy_protocol_from="localhost", **settings))


@needs_ipv6
@pytest.mark.parametrize(
    ("way", "remote"),
    [(on_ipv6, "::1"), (on_mapped_ipv4, "::ffff:127.0.0.9"), (on_a_unix_socket, "localhost")],
)
def test_other_kinds_of_sockets(
    serve_in_thread: ServeInThread, way: Callable[..., Peer], remote: str
) -> None:
    app = Recorder()
    for header, seen in (
        (proxy_v1("192.0.2.1"), "192.0.2.1"),
        (proxy_v2("2001:db8::1", "::1"), "2001:db8::1"),
        (UNKNOWN, remote),
        (LOCAL, remote),
    ):
        with way(serve_in_thread, app, proxy_protocol="auto", threads=1) as peer:
            peer.send(header + request() * 2)
            assert peer.receive().status == peer.receive().status == 200
            port = "56324" if seen != remote else peer.port
        for environ in app.take():
            assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == (seen, port)


def test_an_upload_behind_a_header(serve_in_thread: ServeInThread) -> None:
    """In the segment of the header begins a body that goes to disk, and a chunked one follows."""
    app = Recorder()
    server = serve_in_thread(app, proxy_protocol="v2", inbuf_overflow=100_000)
    body = random.Random(1).randbytes(2_000_000)
    with Peer(server) as peer:
        peer.send(proxy_v2("192.0.2.1") + request("/", method="POST", body=body))
        assert peer.receive().status == 200
        peer.send(request("/", "Transfer-Encoding: chunked\r\n", "POST"))
        peer.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        assert peer.receive().status == 200
    for environ in app.take():
        assert environ["body"] == body
        assert environ["REMOTE_ADDR"] == "192.0.2.1"


def test_proxies_are_trusted_by_the_address_that_a_header_tells(serve_in_thread: ServeInThread) -> None:
    """And not by the one that the connection is from."""
    app = Recorder()
    server = serve_in_thread(
        app,
        proxy_protocol="auto",
        trusted_proxy="10.0.0.0/8 127.0.0.9",
        trusted_proxy_headers=X_FORWARDED,
    )
    for header, believed in (
        (proxy_v1("10.1.2.3"), True),
        (proxy_v2("::ffff:10.1.2.3", "::1"), True),
        (proxy_v1("192.0.2.1"), False),
        (LOCAL, True),
    ):
        with Peer(server, "127.0.0.9") as peer:
            peer.send(header + request("/", "X-Forwarded-For: 198.51.100.1\r\n"))
            assert peer.receive().status == 200
        assert (app.last()["REMOTE_ADDR"] == "198.51.100.1") == believed


def test_some_peers_send_one_and_all_others_do_not(serve_in_thread: ServeInThread) -> None:
    """On one listener, beside each other."""
    app = Recorder()
    server = serve_in_thread(app, proxy_protocol="v1", proxy_protocol_from="127.0.0.8/31")
    with Peer(server, "127.0.0.9") as proxy, Peer(server, "127.0.0.10") as other:
        other.send(request())
        assert other.receive().status == 200
        proxy.send(proxy_v1("192.0.2.1") + request())
        assert proxy.receive().status == 200
        other.send(request())
        assert other.receive().status == 200
    assert [environ["REMOTE_ADDR"] for environ in app.take()] == ["127.0.0.10", "192.0.2.1", "127.0.0.10"]


# -- what is none

MISSING = {
    setting: f"The connection does not begin with a PROXY header of version {versions}."
    for setting, versions in {"v1": "1", "v2": "2", "auto": "1 or 2"}.items()
}
OTHER_KIND = "The PROXY header of version {} is of no accepted kind."
TOO_LONG = "The PROXY header is longer than 4096 bytes."
BAD = "The {} in the PROXY header is malformed."
BAD_LINE = "The line of the PROXY header is malformed, or longer than 107 bytes."
ENDED = "The connection was closed before the end of its PROXY header."

WRONG: list[tuple[str, bytes, str]] = [
    *((setting, request(), MISSING[setting]) for setting in MISSING),
    *((setting, TLS_HELLO, MISSING[setting]) for setting in MISSING),
    *((setting, b"\0", MISSING[setting]) for setting in MISSING),
    ("v1", proxy_v2("192.0.2.1") + request(), MISSING["v1"]),
    ("v2", proxy_v1("192.0.2.1") + request(), MISSING["v2"]),
    ("auto", b"\r\n" + proxy_v1("192.0.2.1") + request(), MISSING["auto"]),
    ("auto", b"proxy tcp4 192.0.2.1 192.0.2.1 1 1\r\n" + request(), MISSING["auto"]),
    ("auto", b"PROXY UDP4 192.0.2.1 192.0.2.1 1 1\r\n" + request(), OTHER_KIND.format(1)),
    ("auto", SIGNATURE + b"\x21\x12\0\x0c" + bytes(12) + request(), OTHER_KIND.format(2)),
    ("auto", SIGNATURE + b"\x11\x11\0\x0c" + bytes(12) + request(), OTHER_KIND.format(2)),
    ("auto", SIGNATURE + b"\x21\x11\xff\xff" + bytes(60_000), TOO_LONG),
    ("v1", b"PROXY TCP4 192.0.2.256 192.0.2.1 1 1\r\n", BAD.format("source address")),
    ("v1", b"PROXY TCP4 192.0.2.1 192.0.2.1 1 1\n" + request(), BAD.format("destination port")),
    ("v1", b"PROXY UNKNOWN " + b"x" * 100_000, BAD_LINE),
]  # fmt: skip


@contextmanager
def may_be_reset() -> Iterator[None]:
    """The server does not read what it does not want, and closing is a reset then."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN):
            raise


@pytest.mark.parametrize("half_closed", [False, True])
def test_what_is_none_closes_the_connection(
    serve_in_thread: ServeInThread, log: Log, half_closed: bool
) -> None:
    """Without an answer, and with one line that holds nothing of it."""
    app = Recorder()
    servers = {setting: serve_in_thread(app, proxy_protocol=setting) for setting in MISSING}
    for setting, sent, reason in WRONG:
        with Peer(servers[setting]) as peer:
            with may_be_reset():
                peer.send(sent)
                if half_closed:
                    peer.half_close()
                assert peer.rest() == b""
            assert log.take(closed_line(peer)) == closed_line(peer) + reason
    assert app.take() == []


PREFIXES = [b"", b"P", proxy_v1("192.0.2.1")[:-1], SIGNATURE[:5], proxy_v2("192.0.2.1")[:-1]]


@pytest.mark.parametrize("sent", PREFIXES)
def test_a_connection_that_ends_before_its_header_does(
    serve_in_thread: ServeInThread, log: Log, sent: bytes
) -> None:
    server = serve_in_thread(hello, proxy_protocol="auto")
    with Peer(server) as peer:
        peer.send(sent)
        peer.half_close()
        peer.assert_ended()
        assert log.take(closed_line(peer)) == closed_line(peer) + ENDED


@needs_proc
@pytest.mark.parametrize("sent", [b"", b"PROXY TCP4 ", proxy_v1("192.0.2.1")])
def test_a_reset_is_no_news(serve_in_thread: ServeInThread, sent: bytes) -> None:
    """As of any client that leaves. The balancer's own checks may well end so."""
    server = serve_in_thread(hello, proxy_protocol="auto")
    before = held()
    for _ in range(3):
        for peer in [Peer(server) for _ in range(5)]:
            peer.send(sent)
            peer.reset()
        with Peer(server) as last:
            last.send(proxy_v1("192.0.2.1") + request())
            assert last.receive().status == 200
    eventually(lambda: held() == before, "all are closed")


def test_a_header_and_then_nothing(serve_in_thread: ServeInThread) -> None:
    """It is a connection like any other from then on, on which nothing needs to be said."""
    server = serve_in_thread(hello, proxy_protocol="auto", proxy_protocol_timeout=0.001)
    for header in (proxy_v1("192.0.2.1"), LOCAL):
        with Peer(server) as peer:
            peer.send(header)
            peer.half_close()
            peer.assert_ended()


def test_a_peer_on_a_unix_socket_cannot_write_to_the_log(serve_in_thread: ServeInThread, log: Log) -> None:
    """Its name is its own choice."""
    server = serve_in_thread(hello, proxy_protocol="v1", listen=unix_place())
    with tempfile.TemporaryDirectory(prefix="wa-") as folder:
        name = os.fsencode(folder) + b"/\n\x1b[31m\xff%s"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(name)
            sock.connect("\0" + str(server.server.addresses[0])[1:])
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
        line = log.take(f"WARNING waitress_async: PROXY header: unix:{folder}/")
    assert line.endswith(rf"{folder}/\n\x1b[31m\udcff%s: {ENDED}")


# -- time


def trickle_in(peer: Peer) -> None:
    """Send a byte now and then, until it cannot be sent."""
    pause = threading.Event()
    while not pause.wait(0.01):
        peer.send(b"x")


def test_a_header_has_to_come_in_time(serve_in_thread: ServeInThread, log: Log) -> None:
    """However it trickles in. Those who sent theirs, or need not, have all the time in the world."""
    server = serve_in_thread(
        hello, proxy_protocol="auto", proxy_protocol_from="127.0.0.1", proxy_protocol_timeout=0.2
    )
    with ExitStack() as stack:
        done, other = (stack.enter_context(Peer(server, source)) for source in ("127.0.0.1", "127.0.0.9"))
        done.send(LOCAL)
        slow = [stack.enter_context(Peer(server)) for _ in PREFIXES]
        for peer, sent in zip(slow, PREFIXES, strict=True):
            peer.send(sent)
        trickle = stack.enter_context(Peer(server))
        trickle.send(SIGNATURE + b"\x20\x00\x0f\x00")  # 3840 bytes to come
        with pytest.raises(ConnectionError):
            trickle_in(trickle)
        for peer in slow:
            peer.assert_ended()
            log.take(late_line(peer))
        log.take(late_line(trickle))
        for peer in (done, other):
            peer.send(request())
            assert peer.receive().status == 200


def test_without_a_limit_a_header_may_take_its_time(serve_in_thread: ServeInThread) -> None:
    server = serve_in_thread(
        hello,
        proxy_protocol="auto",
        proxy_protocol_timeout=0,
        proxy_protocol_from="127.0.0.1",
        linger_timeout=0.2,  # sweeps come that often
    )
    with Peer(server) as slow, Peer(server, "127.0.0.9") as other:
        slow.send(b"PROXY TCP4 ")
        assert is_silent(slow)  # for several sweeps
        assert other.get().status == 200
        slow.send(proxy_v1("192.0.2.1")[11:] + request())
        assert slow.receive().status == 200


# -- what waits for its header


@needs_proc
def test_those_who_wait_are_counted_and_leave_nothing(serve_in_thread: ServeInThread, log: Log) -> None:
    """At the limit they make room for who comes, as idle connections do."""
    server = serve_in_thread(
        hello,
        proxy_protocol="auto",
        proxy_protocol_from="127.0.0.1",
        proxy_protocol_timeout=0.8,
        connection_limit=3,
    )
    connections = server.server._runtime.connections
    before = held()
    with ExitStack() as stack:
        first = stack.enter_context(Peer(server))
        eventually(lambda: connections.clock > 0, "a sweep came")  # so it has waited for the longest
        waiting = [stack.enter_context(Peer(server)) for _ in range(2)]
        for peer, sent in zip(waiting, (b"PROXY", SIGNATURE), strict=True):
            peer.send(sent)
        eventually(
            lambda: all(connections.clock > one.since for one in set(connections._arrivals)), "another"
        )
        with Peer(server, "127.0.0.9") as other:
            assert other.get().status == 200
            first.assert_ended()
            for peer in waiting:
                peer.assert_ended()
                log.take(late_line(peer))
            clients = [stack.enter_context(Peer(server, "127.0.0.9")) for _ in range(2)]
            for client in (other, *clients, other):
                assert client.get().status == 200  # there is room for three again
    eventually(lambda: held() == before, "all are closed")


def test_a_stop_does_not_wait_for_headers(serve_in_thread: ServeInThread) -> None:
    """And says nothing of them; but a request under way has its time."""
    app = Recorder()
    server = serve_in_thread(
        app, proxy_protocol="auto", proxy_protocol_timeout=0, graceful_timeout=600, channel_timeout=0
    )
    with ExitStack() as stack:
        waiting = [stack.enter_context(Peer(server)) for _ in PREFIXES]
        for peer, sent in zip(waiting, PREFIXES, strict=True):
            peer.send(sent)
        busy = stack.enter_context(Peer(server))
        busy.send(LOCAL + request())
        assert busy.receive().status == 200
        server.stop()
        for peer in waiting:
            peer.assert_ended()


@on_each_loop
async def test_a_stop_right_after_an_accept() -> None:
    """Whether the connection has come to wait for its header by then, or not yet."""
    for turns in range(8):
        server = local_server(proxy_protocol="v1", proxy_protocol_timeout=0, graceful_timeout=600)
        await server.start()
        with Client(("127.0.0.1", server.port)) as client:
            for _ in range(turns):
                await asyncio.sleep(0)
            await bounded(server.stop())
            with suppress(ConnectionResetError):  # if it was not accepted any more
                client.assert_ended()


class Counting(socket.socket):
    """A socket that counts the reads of those that it accepts."""

    reads = 0
    parent: Counting | None = None

    def accept(self) -> tuple[socket.socket, object]:
        sock, address = super().accept()
        counting = Counting(fileno=sock.detach())
        counting.parent = self
        return counting, address

    def recv(self, *arguments: int) -> bytes:
        assert self.parent is not None
        self.parent.reads += 1
        return super().recv(*arguments)


def test_the_loop_does_not_spin_while_a_header_is_incomplete(serve_in_thread: ServeInThread) -> None:
    """What was read of it is not read again, and what is not there is waited for."""
    listener = Counting()
    listener.bind(("127.0.0.1", 0))
    server = serve_in_thread(
        hello,
        proxy_protocol="v1",
        proxy_protocol_from="127.0.0.1",
        proxy_protocol_timeout=0,
        sockets=[listener],
    )
    header = proxy_v1("192.0.2.1")
    with Peer(server) as slow:
        for at, byte in enumerate(header[:-1]):
            slow.send(bytes([byte]))
            eventually(lambda at=at: listener.reads >= 2 * at, "it was read")  # type: ignore[misc]
        reads = settled(lambda: listener.reads)
        assert reads <= 4 * len(
            header
        )  # a look at what is there, the reading of it, a look in vain, and one more
        for _ in range(20):
            with Peer(server, "127.0.0.9") as other:
                assert other.get("/", "Connection: close\r\n").status == 200
        before = listener.reads
        slow.send(header[-1:] + request())
        assert slow.receive().status == 200
    assert reads <= before


# -- anything at all


def what_is_read(sent: bytes) -> tuple[bool, ProxiedAddresses | None]:
    """Whether there is a header at the start of this, and what it says."""
    reader = ProxyHeaderReader((1, 2))
    try:
        reader.take(sent)
    except ProxyProtocolError:
        return False, None
    return reader.complete, reader.addresses


def mutilated(chance: random.Random) -> bytes:
    """A header with a request behind it, and perhaps something wrong with them."""
    sent = bytearray(chance.choice(HEADERS)[1] + request())
    for _ in range(chance.choice((0, 1, 1, 2))):
        at = chance.randrange(min(len(sent), 60))
        match chance.randrange(4):
            case 0:
                sent[at] = chance.randrange(256)
            case 1:
                del sent[at : at + chance.randrange(4)]
            case 2:
                sent[at:at] = chance.randbytes(chance.randrange(4))
            case 3:
                del sent[at:]
    return bytes(sent)


@needs_proc
def test_whatever_is_sent_is_either_answered_or_told_of(serve_in_thread: ServeInThread, log: Log) -> None:
    """Once each, and nothing is left of any."""
    app = Recorder()
    server = serve_in_thread(app, proxy_protocol="auto")
    before = held()
    chance = random.Random(5)
    for _ in range(150):
        sent = mutilated(chance)
        is_header, addresses = what_is_read(sent)
        with Peer(server) as peer:
            answers = say_in_pieces(peer, sent, chance)
            if not is_header:
                assert answers == b""
                log.take(closed_line(peer))
                continue
        for environ in app.take():
            told = (addresses.source[0], str(addresses.source[1])) if addresses else ("127.0.0.1", peer.port)
            assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == told
            assert 200 in statuses(answers)
    eventually(lambda: held() == before, "all are closed")
    assert app.take() == []


def say_in_pieces(peer: Peer, sent: bytes, chance: random.Random) -> bytes:
    """What is answered to it."""
    answers = b""
    with may_be_reset():
        while sent:
            size = chance.choice((1, 5, 20, 500))
            peer.send(sent[:size])
            sent = sent[size:]
        peer.half_close()
        answers += peer.rest()
    return answers
