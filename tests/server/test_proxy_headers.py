"""Headers of trusted proxies, over real connections: who is believed, what is refused, and what it costs."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

import waitress_async
from tests.conftest import ServeInThread
from tests.server.peers import X_FORWARDED, Peer, Recorder, ipv4_over_ipv6, linux_only, unix_place
from tests.server.support import hello, request
from tests.server.test_listeners import needs_ipv6
from tests.wsgi.logs import Log, strict_log
from waitress_async import Settings
from waitress_async.errors import MalformedProxyHeader
from waitress_async.http import Request
from waitress_async.server.proxies import Proxies

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

pytestmark = linux_only

WARNING = "WARNING waitress_async: "
TRUSTING: dict[str, object] = {"trusted_proxy": "127.0.0.1", "trusted_proxy_headers": X_FORWARDED}


@pytest.fixture(autouse=True)
def log() -> Iterator[Log]:
    with strict_log(logging.WARNING) as log:
        yield log


def relayed(client: str, *more: str, path: str = "/") -> bytes:
    """A request that a proxy relays for a client, with more header lines."""
    return request(path, "".join(f"{line}\r\n" for line in (f"X-Forwarded-For: {client}", *more)))


# -- who is trusted


def over_ipv4(serve_in_thread: ServeInThread, app: Recorder, **settings: object) -> Peer:
    return Peer(serve_in_thread(app, **settings), "127.0.0.9")


def over_ipv6(serve_in_thread: ServeInThread, app: Recorder, **settings: object) -> Peer:
    return Peer(serve_in_thread(app, host="::1", **settings), "::1")


def over_mapped_ipv4(serve_in_thread: ServeInThread, app: Recorder, **settings: object) -> Peer:
    return Peer(serve_in_thread(app, sockets=[ipv4_over_ipv6()], **settings), "127.0.0.9")


def over_unix(serve_in_thread: ServeInThread, app: Recorder, **settings: object) -> Peer:
    return Peer(serve_in_thread(app, listen=unix_place(), **settings))


OF_127_0_0_9 = ["127.0.0.9", "127.0.0.0/8", "127.0.0.8/31", "::ffff:127.0.0.9", "::ffff:127.0.0.8/127"]
IN_A_LIST = ["10.0.0.1, 127.0.0.9", "localhost ::1 127.0.0.8/29", "*"]
NOT_OF_IT = ["localhost", "127.0.0.8", "127.0.0.0/29", "::1", "::/0", "::127.0.0.9"]

WHO: dict[Callable[..., Peer], tuple[list[str], list[str]]] = {
    over_ipv4: (OF_127_0_0_9 + IN_A_LIST + ["0.0.0.0/0"], NOT_OF_IT),
    over_mapped_ipv4: (OF_127_0_0_9 + IN_A_LIST + ["0.0.0.0/0", "::ffff:0:0/96"], NOT_OF_IT),
    over_ipv6: (["::1", "::/64", "0:0:0:0:0:0:0:1", "*"], ["localhost", "127.0.0.1", "0.0.0.0/0", "::2"]),
    over_unix: (["localhost", "10.0.0.0/8,localhost", "*"], ["0.0.0.0/0 ::/0", "127.0.0.1", "::1"]),
}


@needs_ipv6
@pytest.mark.parametrize("way", WHO)
def test_who_is_trusted(serve_in_thread: ServeInThread, way: Callable[..., Peer]) -> None:
    app = Recorder()
    trusted, others = WHO[way]
    for proxy in (*trusted, *others):
        settings = {"trusted_proxy": proxy, "trusted_proxy_headers": X_FORWARDED}
        with way(serve_in_thread, app, threads=1, **settings) as peer:
            peer.send(relayed("192.0.2.1:81", "X-Forwarded-Proto: https"))
            assert peer.receive().status == 200
        seen = app.last()
        believed = seen["REMOTE_ADDR"], seen["REMOTE_PORT"], seen["wsgi.url_scheme"], seen["SERVER_PORT"]
        assert (believed == ("192.0.2.1", "81", "https", "443")) == (proxy in trusted), proxy
        assert ("HTTP_X_FORWARDED_FOR" in seen) == (proxy in trusted), proxy
        assert ("192.0.2.1" in repr(seen)) == (proxy in trusted), proxy


@pytest.mark.parametrize(
    ("count", "value", "client"),
    [
        (None, "203.0.113.66, 192.0.2.1", "192.0.2.1"),
        (1, "203.0.113.66, 192.0.2.1", "192.0.2.1"),
        (2, "203.0.113.66, 192.0.2.1, 10.0.0.1", "192.0.2.1"),
        (3, "192.0.2.1, 10.0.0.1", "192.0.2.1"),
    ],
)
def test_the_count_of_proxies(
    serve_in_thread: ServeInThread, count: int | None, value: str, client: str
) -> None:
    """Counted from the server, over all lines of the header. What is beyond is not seen."""
    app = Recorder()
    server = serve_in_thread(app, **TRUSTING, trusted_proxy_count=count)
    first, _, rest = value.partition(", ")
    with Peer(server) as proxy:
        for lines in ((value,), (first, f"X-Forwarded-For:{rest}")):
            proxy.send(relayed(*lines))
            assert proxy.receive().status == 200
            environ = app.last()
            assert environ["REMOTE_ADDR"] == environ["REMOTE_HOST"] == client
            assert environ["REMOTE_PORT"] == ""
            assert environ["HTTP_X_FORWARDED_FOR"] == value[value.index(client) :]
            assert "203.0.113.66" not in repr(environ)


def test_with_nothing_said_of_headers_the_scheme_alone_is_believed(
    serve_in_thread: ServeInThread, log: Log
) -> None:
    app = Recorder()
    server = serve_in_thread(app, trusted_proxy="127.0.0.1")
    log.take(WARNING + "trusted_proxy_headers is not set: only x-forwarded-proto is trusted")
    with Peer(server) as proxy:
        proxy.send(relayed("192.0.2.1", "X-Forwarded-Proto: https", "Forwarded: for=192.0.2.1"))
        assert proxy.receive().status == 200
    environ = app.last()
    assert (environ["wsgi.url_scheme"], environ["REMOTE_ADDR"]) == ("https", "127.0.0.1")
    assert "192.0.2.1" not in repr(environ)


def test_forwarded(serve_in_thread: ServeInThread) -> None:
    app = Recorder()
    server = serve_in_thread(app, trusted_proxy="127.0.0.1", trusted_proxy_headers="forwarded")
    value = 'for=203.0.113.66;a="b,c", For="[2001:db8::1]:81";HOST="shop.example:8443";proto=https;by=_p'
    with Peer(server) as proxy:
        for line in (
            f"Forwarded: {value}",
            f"Forwarded: {value.replace(', For', f'{chr(13)}{chr(10)}forwarded:For')}",
        ):
            proxy.send(request("/", line + "\r\n"))
            assert proxy.receive().status == 200
            environ = app.last()
            for key, told in {
                "REMOTE_ADDR": "2001:db8::1",
                "REMOTE_PORT": "81",
                "HTTP_HOST": "shop.example:8443",
                "SERVER_NAME": "shop.example",
                "SERVER_PORT": "8443",
                "wsgi.url_scheme": "https",
                "HTTP_FORWARDED": 'for="[2001:db8::1]:81";host="shop.example:8443";proto=https;by=_p',
            }.items():
                assert environ[key] == told
            assert "203.0.113.66" not in repr(environ)


# -- one connection of a proxy, and many clients


def clients_of(app: Recorder) -> list[tuple[str, str]]:
    return [(environ["REMOTE_ADDR"], environ["HTTP_X_FORWARDED_FOR"]) for environ in app.take()]


@pytest.mark.parametrize("pipelined", [False, True])
def test_each_request_has_the_client_it_was_relayed_for(
    serve_in_thread: ServeInThread, pipelined: bool
) -> None:
    """Though the requests are nearly the same, and are remembered by their bytes."""
    app = Recorder()
    server = serve_in_thread(app, **TRUSTING)
    order = [0, 0, 1, 0, 1, 1, *range(12), *reversed(range(12))]
    clients = [f"192.0.2.{100 + number}" for number in order]
    with Peer(server) as proxy:
        if pipelined:
            proxy.send(b"".join(map(relayed, clients)))
        for client in clients:
            if not pipelined:
                proxy.send(relayed(client))
            assert proxy.receive().status == 200
    assert clients_of(app) == [(client, client) for client in clients]


def test_a_request_without_headers_is_the_proxys_own(serve_in_thread: ServeInThread) -> None:
    """Even right after one of a client, and cut anywhere."""
    app = Recorder()
    server = serve_in_thread(app, **TRUSTING)
    with Peer(server) as proxy:
        for _ in range(3):
            for sent in (relayed("192.0.2.1"), request(), relayed("192.0.2.2"), request()):
                for part in (sent[:30], sent[30:]):
                    proxy.send(part)
                assert proxy.receive().status == 200
    told = [(environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) for environ in app.take()]
    own = ("127.0.0.1", proxy.port)
    assert told == [("192.0.2.1", ""), own, ("192.0.2.2", ""), own] * 3


def test_what_is_remembered_of_a_head_is_not_rewritten(serve_in_thread: ServeInThread) -> None:
    """The same head means the same again, though what was trusted of it is less than what came."""
    app = Recorder()
    server = serve_in_thread(app, **TRUSTING, log_untrusted_proxy_headers=False)
    sent = relayed(
        "203.0.113.66, 192.0.2.1",
        "X-Forwarded-Host: a.example, shop.example",
        "X-Forwarded-Port: 8443",
        "X-Forwarded-Proto: HTTPS",
    )
    with Peer(server) as proxy:
        for _ in range(4):
            proxy.send(sent)
            assert proxy.receive().status == 200
    first, *others = app.take()
    assert first["HTTP_HOST"] == "shop.example:8443"
    assert first["HTTP_X_FORWARDED_FOR"] == "192.0.2.1"
    assert others == [first] * 3


class Lines:
    """In the place of the log's thread."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, _level: int, message: str, *args: object) -> None:
        self.lines.append(message % args)


def head_of(fields: dict[str, str]) -> Request:
    """A request whose fields nothing can change."""
    frozen: Any = MappingProxyType(fields)
    return Request("GET", "/", "/", "", True, frozen, True, None, False, False)


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.0.0.2"])
@pytest.mark.parametrize("logged", [False, True])
def test_the_fields_of_a_request_are_not_changed(peer: str, logged: bool) -> None:
    log: Any = Lines()
    settings = Settings.from_keywords(**TRUSTING, log_untrusted_proxy_headers=logged)
    before = head_of({"HTTP_X_FORWARDED_FOR": "203.0.113.66, 192.0.2.1", "HTTP_FORWARDED": "for=192.0.2.1"})
    after = Proxies(settings, log).trust_in(peer).apply(before, peer, "http")
    assert before.fields["HTTP_X_FORWARDED_FOR"] == "203.0.113.66, 192.0.2.1"
    if peer == "127.0.0.1":
        assert after.fields["REMOTE_ADDR"] == after.fields["HTTP_X_FORWARDED_FOR"] == "192.0.2.1"
    assert ("HTTP_FORWARDED" in after.fields) is not logged  # else it is the memo that drops it


def test_a_peer_with_a_zone_can_be_told_of_in_the_log() -> None:
    """It holds a percent sign."""
    log: Any = Lines()
    settings = Settings.from_keywords(trusted_proxy="fe80::/10", trusted_proxy_headers="x-forwarded-port")
    with pytest.raises(MalformedProxyHeader):
        Proxies(settings, log).trust_in("fe80::1%eth0").apply(
            head_of({"HTTP_X_FORWARDED_PORT": "99999"}), "fe80::1%eth0", "http"
        )
    assert log.lines == [
        'Malformed proxy header "X-Forwarded-Port" from "fe80::1%eth0": not one port number value: 99999'
    ]


# -- what is malformed

MALFORMED = {
    "X-Forwarded-For": "192.0.2.1, unix:",
    "X-Forwarded-Host": "shop.example/",
    "X-Forwarded-Proto": "https, http",
    "X-Forwarded-Port": "443, 80",
    "X-Forwarded-By": "a b",
    "Forwarded": 'for="192.0.2.1',
}


@pytest.mark.parametrize("header", MALFORMED)
def test_a_malformed_header_is_refused(serve_in_thread: ServeInThread, log: Log, header: str) -> None:
    """With one line in the log. What was before it is served, what is behind it is not; others are."""
    app = Recorder()
    trusted = "forwarded" if header == "Forwarded" else X_FORWARDED
    server = serve_in_thread(app, trusted_proxy="127.0.0.1", trusted_proxy_headers=trusted)
    value = MALFORMED[header]
    for _ in range(2):
        with Peer(server) as proxy:
            proxy.send(request() + request("/", f"{header}: {value}\r\n") + request())
            assert proxy.receive().status == 200
            answer = proxy.receive()
            assert (answer.status, answer.reason, answer.closes) == (400, "Bad Request", True)
            assert answer.body.startswith(f'400 Bad Request\n\nHeader "{header}" malformed.'.encode())
            proxy.assert_ended()
        line = log.take(f'{WARNING}Malformed proxy header "{header}" from "127.0.0.1": ')
        assert line.endswith(f" value: {value}")
    assert len(app.take()) == 2
    with Peer(server, "127.0.0.9") as other:  # of whom nothing is believed, and so nothing can be malformed
        assert other.get("/", f"{header}: {value}\r\n").status == 200


def test_a_malformed_header_to_head_is_refused_without_a_body(
    serve_in_thread: ServeInThread, log: Log
) -> None:
    with Peer(serve_in_thread(hello, **TRUSTING)) as proxy:
        proxy.send(request("/", "X-Forwarded-Port: x\r\n", method="HEAD"))
        assert proxy.receive("HEAD").status == 400
        proxy.assert_ended()
    log.take(WARNING + "Malformed")


@pytest.mark.parametrize(
    ("value", "logged"),
    [
        ("\xe9\xff%s%n{}", r"\xe9\xff%s%n{}"),
        ("a\tb\\", r"a\tb\\"),
        ("'\"", r"\'" + '"'),
        ("\x9b31m\x85", r"\x9b31m\x85"),
        ("x" * 5_000 + "end", "x" * 200),
        ("\xff" * 5_000, r"\xff" * 200),
    ],
)
def test_what_is_logged_of_it_is_escaped_and_bounded(
    serve_in_thread: ServeInThread, log: Log, value: str, logged: str
) -> None:
    with Peer(serve_in_thread(hello, **TRUSTING)) as proxy:
        assert proxy.get("/", f"X-Forwarded-Port: {value}\r\n").status == 400
    prefix = (
        WARNING + 'Malformed proxy header "X-Forwarded-Port" from "127.0.0.1": not one port number value: '
    )
    assert log.take(prefix) == prefix + logged


def test_an_unknown_parameter_is_told_of_and_passed_on(serve_in_thread: ServeInThread, log: Log) -> None:
    app = Recorder()
    server = serve_in_thread(app, trusted_proxy="127.0.0.1", trusted_proxy_headers="forwarded")
    with Peer(server) as proxy:
        assert proxy.get("/", f"Forwarded: for=192.0.2.1;{'x' * 500}=y;Z%s=1\r\n").status == 200
        assert app.last()["REMOTE_ADDR"] == "192.0.2.1"
    assert log.take(WARNING + "Unknown Forwarded token: ") in (
        WARNING + "Unknown Forwarded token: z%s",
        WARNING + "Unknown Forwarded token: " + "x" * 200,
    )


BODIES = [0, 1, 70_000, 1_000_000, 8_000_000]


@pytest.mark.parametrize("framing", ["length", "chunked", "expect", "streamed"])
def test_the_refusal_arrives_whatever_body_comes_with_it(
    serve_in_thread: ServeInThread, log: Log, framing: str
) -> None:
    """The client sends all of it before it reads."""
    app = Recorder()
    server = serve_in_thread(app, **TRUSTING, stream_request_body=framing == "streamed")
    for size in BODIES:
        with Peer(server) as proxy:
            length = (
                f"Content-Length: {size}\r\n" if framing != "chunked" else "Transfer-Encoding: chunked\r\n"
            )
            expect = "Expect: 100-continue\r\n" if framing == "expect" else ""
            proxy.send(request("/", f"X-Forwarded-Port: x\r\n{length}{expect}", "POST"))
            if framing == "chunked" and size:
                proxy.send(b"%x\r\n" % size)
            block = bytes(min(size, 100_000))
            for _ in range(size // (len(block) or 1)):
                proxy.send(block)
            if framing == "chunked":
                proxy.send(b"\r\n0\r\n\r\n" if size else b"0\r\n\r\n")
            assert proxy.receive().status == 400  # and no 100 before it
            proxy.assert_ended()
        log.take(WARNING + 'Malformed proxy header "X-Forwarded-Port"')
    assert app.take() == []


# -- what is cleared, and what is said of it

ALL_SIX = {
    "Forwarded": "for=192.0.2.1",
    "X-Forwarded-For": "192.0.2.1",
    "X-Forwarded-Host": "shop.example",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Port": "8443",
    "X-Forwarded-By": "_proxy",
}


def cgi_name(header: str) -> str:
    return "HTTP_" + header.upper().replace("-", "_")


@pytest.mark.parametrize("clear", [False, True])
@pytest.mark.parametrize("logged", [False, True])
@pytest.mark.parametrize("believed", ["", "forwarded", "x-forwarded-for x-forwarded-proto", X_FORWARDED])
def test_what_is_not_believed_is_cleared_and_told_of(
    serve_in_thread: ServeInThread, log: Log, clear: bool, logged: bool, believed: str
) -> None:
    """As waitress does: what is not cleared is not told of either."""
    app = Recorder()
    settings: dict[str, object] = {"trusted_proxy": "127.0.0.1", "trusted_proxy_headers": believed}
    server = serve_in_thread(
        app,
        clear_untrusted_proxy_headers=clear,
        log_untrusted_proxy_headers=logged,
        **settings if believed else {},
    )
    sent = "".join(f"{name}: {value}\r\n" for name, value in ALL_SIX.items())
    for source in ("127.0.0.1", "127.0.0.9"):
        trusted = believed.split() if source == "127.0.0.1" else []
        with Peer(server, source) as peer:
            for _ in range(2):
                assert peer.get("/", sent).status == 200
                environ = app.last()
                assert (environ["REMOTE_ADDR"] == "192.0.2.1") == bool(trusted)
                for name in ALL_SIX:
                    assert (cgi_name(name) in environ) == (not clear or name.lower() in trusted), name
                if clear and logged:
                    removed = ", ".join(
                        sorted(name.lower() for name in ALL_SIX if name.lower() not in trusted)
                    )
                    line = f"{WARNING}Removed untrusted headers ({removed})."
                    log.take(line)
            assert peer.get().status == 200  # without any of them, and so without a line
            assert app.take()[0]["REMOTE_ADDR"] == source


# -- what it costs

PACKAGE = Path(waitress_async.__file__).parent
OF_PROXIES = ("server/proxies", "http/forwarded", "wsgi/proxy_headers", "http/proxy_protocol")


class Calls:
    """Calls of our functions, counted by module, in the threads that it was turned on in."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __call__(self, frame: FrameType, event: str, _arg: object) -> None:
        if event == "call" and (path := Path(frame.f_code.co_filename)).is_relative_to(PACKAGE):
            self.counts[path.relative_to(PACKAGE).with_suffix("").as_posix()] += 1


class Profiled:
    """An app whose first call has the calls of its own thread counted."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        sys.setprofile(self._calls)
        return hello(environ, start_response)


EVIL = "".join(f"{name}: {value}\r\n" for name, value in ALL_SIX.items())


@pytest.mark.parametrize("configured", [False, True])
def test_with_nothing_configured_nothing_of_it_runs(serve_in_thread: ServeInThread, configured: bool) -> None:
    """Neither on the loop nor in the app's thread; and names are dropped without a line being parsed."""
    calls = Calls()
    server = serve_in_thread(Profiled(calls), threads=1, **(TRUSTING if configured else {}))
    with Peer(server) as client, Peer(server) as warm:
        assert client.get().status == warm.get("/", EVIL).status == 200
        server.loop.call_soon_threadsafe(sys.setprofile, calls)
        assert client.get("/", f"Accept: */*\r\n{EVIL}").status == 200
        before = calls.counts.copy()
        for number in range(20):  # heads that differ, lines that do not
            assert (
                client.get("/", f"{'Accept: */*' if number % 2 else 'Accept: text/html'}\r\n{EVIL}").status
                == 200
            )
        made = calls.counts - before
        server.loop.call_soon_threadsafe(sys.setprofile, None)
        assert client.get().status == 200
    assert made["server/protocol"] >= 20
    assert made["wsgi/environ"] >= 20
    of_proxies = {name: made[name] for name in OF_PROXIES if made[name]}
    if configured:
        assert set(of_proxies) == {"server/proxies", "http/forwarded", "wsgi/proxy_headers"}
    else:
        assert of_proxies == {}
        assert made["http/fields"] <= 2  # the two of Accept
