"""Who is not trusted cannot make a request look as if it came from elsewhere, whatever is sent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle

import pytest

from tests.conftest import LOOPS, RunningServer, ServeInThread
from tests.server.peers import (
    LOCAL,
    UNKNOWN,
    X_FORWARDED,
    Environ,
    Peer,
    Recorder,
    ipv4_over_ipv6,
    linux_only,
    proxy_v1,
    proxy_v2,
    proxy_v2_raw,
    unix_place,
)
from tests.server.support import request
from tests.server.test_listeners import needs_ipv6
from tests.wsgi.logs import Log, strict_log

pytestmark = linux_only

# What is pretended. None of it may be in the `repr` of any environ.
EVIL = {
    "Forwarded": 'for=203.0.113.66;host=evil.example;proto=https;by="_evil"',
    "X-Forwarded-For": "203.0.113.66",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Port": "4666",
    "X-Forwarded-By": "_evil",
}
MARKS = ("203.0.113.66", "evil", "https", "'4666'")

ALL = tuple(EVIL)
X_ALONE = ALL[1:]

REMOVED = "WARNING waitress_async: Removed untrusted headers ("


@pytest.fixture(autouse=True)
def log() -> Iterator[Log]:
    with strict_log(logging.WARNING) as log:
        yield log


# -- configurations


@dataclass(frozen=True)
class Configuration:
    """A server, and a peer of it that is not trusted with some headers."""

    settings: dict[str, object]
    source: str = "127.0.0.9"  # of the peer; "" for a unix socket
    preamble: bytes = b""  # what a proxy before it sends first
    names: tuple[str, ...] = ALL
    remote: str = "127.0.0.9"
    is_logged: bool = False
    make_settings: Callable[[], dict[str, object]] = field(default=dict)

    def serve(self, serve_in_thread: ServeInThread, app: Recorder) -> RunningServer:
        return serve_in_thread(app, **self.settings, **self.make_settings())


def trusting(proxy: str, headers: str = X_FORWARDED, **others: object) -> dict[str, object]:
    return {"trusted_proxy": proxy, "trusted_proxy_headers": headers, **others}


def on_a_unix_socket() -> dict[str, object]:
    return {"listen": unix_place()}


def on_a_mapped_socket() -> dict[str, object]:
    return {"sockets": [ipv4_over_ipv6()]}


CLIENT = "192.0.2.7"  # of a proxy that sends a PROXY header
PROXIED = {"proxy_protocol": "auto", "proxy_protocol_from": "127.0.0.9"}

CONFIGURATIONS = {
    "nothing is configured": Configuration({}),
    "another address": Configuration(trusting("127.0.0.2")),
    "networks around it": Configuration(trusting("127.0.0.0/29 127.0.0.10/31 ::/0")),
    "another address, with forwarded": Configuration(
        trusting("127.0.0.2", "forwarded", trusted_proxy_count=3)
    ),
    "unix sockets are trusted": Configuration(trusting("localhost")),
    "a unix socket, and addresses are trusted": Configuration(
        trusting("0.0.0.0/0 ::/0"), source="", remote="localhost", make_settings=on_a_unix_socket
    ),
    "mapped, and others are trusted": Configuration(
        trusting("127.0.0.2 ::1 ::/95 localhost"), remote="::ffff:127.0.0.9", make_settings=on_a_mapped_socket
    ),
    "IPv6, and IPv4 is trusted": Configuration(
        trusting("0.0.0.0/0 ::ffff:0:0/96 localhost", host="::1"), source="::1", remote="::1"
    ),
    "logged": Configuration({"log_untrusted_proxy_headers": True}, is_logged=True),
    "logged, beside a trusted one": Configuration(
        trusting("127.0.0.2", log_untrusted_proxy_headers=True), is_logged=True
    ),
    "trusted, with forwarded alone": Configuration(trusting("127.0.0.9", "forwarded"), names=X_ALONE),
    "trusted, with all but forwarded": Configuration(trusting("127.0.0.9"), names=("Forwarded",)),
    "trusted, with x-forwarded-by": Configuration(trusting("*", "x-forwarded-by"), names=ALL[:-1]),
    "behind a PROXY header of a trusted address": Configuration(
        trusting("127.0.0.9", **PROXIED), preamble=proxy_v1(CLIENT), remote=CLIENT
    ),
    "behind a PROXY header that tells nothing": Configuration(
        trusting(CLIENT, **PROXIED), preamble=LOCAL
    ),
}  # fmt: skip


def each_of(configurations: dict[str, Configuration]) -> pytest.MarkDecorator:
    """One after the other, on either loop in turn: nothing of this is the loop's business."""
    return pytest.mark.parametrize(
        ("configuration", "loop_factory"),
        [
            pytest.param(configuration, loop, id=name, marks=needs_ipv6 if "IPv6" in name else ())
            for (name, configuration), loop in zip(configurations.items(), cycle(LOOPS), strict=False)
        ],
        indirect=["loop_factory"],
    )


# -- what is tried


@dataclass(frozen=True)
class Attack:
    """What is sent, and the requests without deceit in them that it must look like to the app."""

    sent: bytes
    looks_like: bytes
    refused: bool = False  # after these, with a 400


WAYS: dict[str, Callable[[str, str], str]] = {
    "as it is": lambda name, value: f"{name}: {value}\r\n",
    "in lower case": lambda name, value: f"{name.lower()}: {value}\r\n",
    "in upper case": lambda name, value: f"{name.upper()}:{value}\r\n",
    "in any case": lambda name, value: f"{name.swapcase().replace('A', 'a')}: {value}\r\n",
    "padded": lambda name, value: f"{name}:\t  {value} \t\r\n",
    "several lines": lambda name, value: f"{name}: {value}\r\n" * 3,
    "in several cases": lambda name, value: f"{name}: {value}\r\n{name.lower()}: {value}\r\n",
    "a list": lambda name, value: f"{name}: {value}, {value},,\r\n",
    "quoted": lambda name, value: f'{name}: "{value}"\r\n',
    "an open quote": lambda name, value: f'{name}: "{value}\r\n',
    "empty first": lambda name, value: f"{name}:\r\n{name}: {value}\r\n",
    "with underscores": lambda name, value: f"{name.replace('-', '_')}: {value}\r\n" * ("-" in name),
    "with one underscore": lambda name, value: f"{name.replace('-', '_', 1)}: {value}\r\n" * ("-" in name),
    "with one more underscore": lambda name, value: f"{name}_: {value}\r\n_{name}: {value}\r\n",
    "as CGI has it": lambda name, value: f"HTTP_{name.replace('-', '_').upper()}: {value}\r\n",
    "obs-text": lambda name, value: f"{name}: \xa0{value}\x85\xff\r\n",
    "named by Connection": lambda name, value: f"{name}: {value}\r\n",
    "too long to be remembered": lambda name, value: f"{name}: {value}{' ' * 600},{value}\r\n",
}

REFUSED_WAYS: dict[str, Callable[[str, str], str]] = {
    "a space before the colon": lambda name, value: f"{name} : {value}\r\n",
    "a tab before the colon": lambda name, value: f"{name}\t: {value}\r\n",
    "a space before the name": lambda name, value: f" {name}: {value}\r\n",
    "folded": lambda name, value: f"X: y\r\n {name}: {value}\r\n",
    "a value folded": lambda name, value: f"{name}:\r\n {value}\r\n",
    "obs-text behind the name": lambda name, value: f"{name}\xa0: {value}\r\n",
    "obs-text before the name": lambda name, value: f"\x85{name}: {value}\r\n",
    "a vertical tab": lambda name, value: f"{name}\x0b: {value}\r\n",
    "a NUL": lambda name, value: f"{name}: \0{value}\r\n",
    "a bare LF": lambda name, value: f"X: y\n{name}: {value}\r\n",
    "a bare CR": lambda name, value: f"X: y\r{name}: {value}\r\n",
    "no colon": lambda name, value: f"{name} {value}\r\n",
}

PLAIN = request("/plain")
CHUNKED = "Transfer-Encoding: chunked\r\n"


def attacks(names: tuple[str, ...]) -> Iterator[tuple[str, Attack]]:
    """All that is tried with the headers of these names."""
    for way, lines in WAYS.items():
        others = "Connection: keep-alive, x-forwarded-for, forwarded\r\n" if "Connection" in way else ""
        sent = [request("/plain", lines(name, EVIL[name]) + others) for name in names]
        yield way, Attack(b"".join(sent), request("/plain", others) * len(sent))
    for way, lines in REFUSED_WAYS.items():
        for name in names:
            spoofed = request("/evil", lines(name, EVIL[name]))
            yield f"{way}, {name}", Attack(PLAIN + spoofed + PLAIN, PLAIN, refused=True)
    every = "".join(f"{name}: {EVIL[name]}\r\n" for name in names)
    fields = every.encode()
    for what, plain in REQUESTS.items():
        head, _, body = plain.partition(b"\r\n\r\n")
        line, _, rest = head.partition(b"\r\n")
        spoofed = b"%b\r\n%b\r\n%b" % (head, fields, body)
        yield what, Attack(spoofed, plain)
        yield f"{what}, first", Attack(b"%b\r\n%b%b\r\n\r\n%b" % (line, fields, rest, body), plain)
        yield f"{what}, after others", Attack(PLAIN * 3 + spoofed, PLAIN * 3 + plain)
        if not what.startswith("closing"):
            yield f"{what}, before others", Attack(spoofed + PLAIN * 3, plain + PLAIN * 3)
            yield f"{what}, again and again", Attack(spoofed * 3, plain * 3)
    chunked = request("/plain", CHUNKED, "POST")
    plain = chunked + b"4\r\nbody\r\n0\r\n\r\n"
    in_trailers = plain[:-2] + fields + b"\r\n"
    yield "in trailers", Attack(in_trailers * 2 + PLAIN, plain * 2 + PLAIN)
    extension = b'4;x-forwarded-for=203.0.113.66;forwarded="for=203.0.113.66"\r\n'
    yield "in an extension", Attack(plain.replace(b"4\r\n", extension, 1) + PLAIN, plain + PLAIN)


REQUESTS = {
    "all": PLAIN,
    "closing, 1.0": b"GET /plain HTTP/1.0\r\nA: b\r\n\r\n",
    "1.0": b"GET /plain HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "with a query": request("/plain?a=b"),
    "an absolute target": b"GET http://localhost:1/plain HTTP/1.1\r\nHost: a\r\n\r\n",
    "OPTIONS": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "HEAD": request("/plain", method="HEAD"),
    "closing": request("/plain", "Connection: close\r\n"),
    "a body": request("/plain", method="POST", body=b"body"),
    "a body, in chunks": request("/plain", CHUNKED, "POST") + b"4\r\nbody\r\n0\r\n\r\n",
    "a large head": request("/plain", f"X: {'x' * 3_000}\r\n"),
}


class Target:
    """A server of one configuration, and what its app sees of one connection."""

    def __init__(self, configuration: Configuration, serve_in_thread: ServeInThread) -> None:
        self._configuration = configuration
        self._app = Recorder()
        self._server = configuration.serve(serve_in_thread, self._app)
        self._looks: dict[bytes, list[Environ]] = {}

    def look_of(self, sent: bytes) -> list[Environ]:
        """The environs of requests without deceit."""
        if sent not in self._looks:
            statuses, self._looks[sent] = self.visit(sent)
            assert statuses == [200] * len(self._looks[sent])
        return self._looks[sent]

    def visit(self, *sent: bytes, refused: bool = False) -> tuple[list[int], list[Environ]]:
        configuration = self._configuration
        with Peer(self._server, configuration.source) as peer:
            port = "56324" if configuration.remote == CLIENT else peer.port
            say = peer.say_until_refused if refused else peer.say_all
            statuses = say(configuration.preamble, *sent)
        environs = self._app.take()
        for environ in environs:
            assert environ["REMOTE_ADDR"] == environ["REMOTE_HOST"] == configuration.remote
            assert environ.pop("REMOTE_PORT") == port
        return statuses, environs

    def withstands(self, name: str, attack: Attack, *cuts: bytes) -> None:
        looks = self.look_of(attack.looks_like) if attack.looks_like else []
        statuses, environs = self.visit(*(cuts or (attack.sent,)), refused=attack.refused)
        assert environs == looks, name
        assert statuses == [200] * len(looks) + [400] * attack.refused, name
        found = [mark for mark in MARKS if any(mark in repr(environ) for environ in environs)]
        assert found == [], name


@each_of(CONFIGURATIONS)
def test_no_header_gets_through(
    serve_in_thread: ServeInThread, log: Log, configuration: Configuration
) -> None:
    """The app sees what it would see without it, in the whole environ."""
    target = Target(configuration, serve_in_thread)
    for name, attack in attacks(configuration.names):
        target.withstands(name, attack)
    if configuration.is_logged:
        removed = [line for line in log.lines if line.startswith(REMOVED)]
        assert len(removed) > len(WAYS) * len(ALL) / 2
        for line in removed:
            log.take(line)


SPOOFED = request("/plain", "".join(f"{name}: {EVIL[name]}\r\n" for name in X_ALONE))


def test_what_a_trusted_peer_said_is_not_remembered_for_others(serve_in_thread: ServeInThread) -> None:
    """The very same bytes, in turn, on connections that stay open beside each other."""
    app = Recorder()
    server = serve_in_thread(app, **trusting("127.0.0.2"))
    with Peer(server, "127.0.0.2") as proxy, Peer(server, "127.0.0.9") as other:
        for _ in range(3):
            for peer, told in (
                (proxy, ("203.0.113.66", "", "https", "evil.example", "4666")),
                (other, ("127.0.0.9", other.port, "http", "waitress.invalid", str(server.server.port))),
            ):
                peer.send(SPOOFED * 2)
                assert peer.receive().status == peer.receive().status == 200
                first, second = app.take()
                assert first == second
                assert told == (
                    first["REMOTE_ADDR"],
                    first["REMOTE_PORT"],
                    first["wsgi.url_scheme"],
                    first["SERVER_NAME"],
                    first["SERVER_PORT"],
                )


def test_headers_that_are_left_to_the_app_change_nothing_else(serve_in_thread: ServeInThread) -> None:
    """Without `clear_untrusted_proxy_headers` the app sees them, as it sees any other."""
    app = Recorder()
    server = serve_in_thread(app, **trusting("127.0.0.2", clear_untrusted_proxy_headers=False))
    with Peer(server, "127.0.0.9") as other:
        other.send(PLAIN + request("/plain", "".join(f"{name}: {EVIL[name]}\r\n" for name in ALL)))
        assert other.receive().status == other.receive().status == 200
    plain, spoofed = app.take()
    fields = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in EVIL.items()}
    assert spoofed == plain | fields


# -- the PROXY protocol

PRETENDED = "203.0.113.66"

HEADERS = {
    "v1": proxy_v1(PRETENDED),
    "v1, IPv6": proxy_v1("2001:db8::4666", "::1"),
    "v1, UNKNOWN": UNKNOWN,
    "v1, UNKNOWN with addresses": b"PROXY UNKNOWN 203.0.113.66 203.0.113.66 4666 4666\r\n",
    "v2": proxy_v2(PRETENDED),
    "v2, IPv6": proxy_v2("2001:db8::4666", "::1", tlvs=[(0x04, b"evil"), (0x01, b"h2")]),
    "v2, LOCAL": LOCAL,
    "v2, unix": proxy_v2_raw(0x21, 0x31, b"/evil".ljust(216, b"\0")),
}

TELLER = "127.0.0.8"  # the peer that a PROXY header is taken from, where there is one

WITHOUT = {
    "nothing is configured": Configuration({}),
    "it is off, from everybody": Configuration({"proxy_protocol": "off", "proxy_protocol_from": "*"}),
    "v1, from another": Configuration({"proxy_protocol": "v1", "proxy_protocol_from": TELLER}),
    "v2, from another": Configuration({"proxy_protocol": "v2", "proxy_protocol_from": TELLER}),
    "auto, from networks around it": Configuration(
        {"proxy_protocol": "auto", "proxy_protocol_from": "127.0.0.0/29 127.0.0.10/31 ::/0"}
    ),
    "auto, from unix sockets": Configuration({"proxy_protocol": "auto", "proxy_protocol_from": "localhost"}),
    "auto, from a peer that is trusted with headers": Configuration(
        trusting(TELLER, proxy_protocol="auto", proxy_protocol_from=TELLER)
    ),
    "auto, on a unix socket, from addresses": Configuration(
        {"proxy_protocol": "auto", "proxy_protocol_from": "0.0.0.0/0 ::/0"},
        source="",
        remote="localhost",
        make_settings=on_a_unix_socket,
    ),
    "auto, mapped, from others": Configuration(
        {"proxy_protocol": "auto", "proxy_protocol_from": f"{TELLER} ::1 ::/95"},
        remote="::ffff:127.0.0.9",
        make_settings=on_a_mapped_socket,
    ),
    # Those below do begin with a header that is wanted. Nothing else on the connection is one.
    "v1, behind one": Configuration(
        {"proxy_protocol": "v1", "proxy_protocol_from": "*"}, preamble=proxy_v1(CLIENT), remote=CLIENT
    ),
    "auto, behind one of v2": Configuration(
        {"proxy_protocol": "auto", "proxy_protocol_from": "*"}, preamble=proxy_v2(CLIENT), remote=CLIENT
    ),
    "auto, behind LOCAL": Configuration(
        {"proxy_protocol": "auto", "proxy_protocol_from": "*"}, preamble=LOCAL
    ),
}  # fmt: skip


def proxy_attacks(header: bytes) -> Iterator[tuple[str, Attack, tuple[bytes, ...]]]:
    """What is tried with a PROXY header, and the pieces in which it is sent."""
    chunked = request("/plain", CHUNKED, "POST")
    evil = header + request("/evil")
    refused = Attack(evil, b"", refused=True)
    yield "at the start", refused, ()
    yield "at the start, apart", refused, (header, request("/evil"))
    yield "at the start, in two", refused, (evil[:9], evil[9:])
    yield "twice", Attack(header + evil, b"", refused=True), (header, evil)
    yield "after empty lines", Attack(b"\r\n\r\n" + evil, b"", refused=True), ()
    yield "after a request", Attack(PLAIN + evil, PLAIN, refused=True), (PLAIN, evil)
    yield "after three", Attack(PLAIN * 3 + evil, PLAIN * 3, refused=True), ()
    yield "after a body", Attack(REQUESTS["a body"] + evil, REQUESTS["a body"], refused=True), ()
    yield "as a chunk's size", Attack(chunked + evil, b"", refused=True), ()
    # An empty line, with which those of version 2 begin, is the end of both.
    ends = header.startswith(b"\r\n")
    bodiless = chunked + b"0\r\n\r\n"
    yield "as a trailer", Attack(bodiless[:-2] + evil, bodiless * ends, refused=True), ()
    yield "as a field", Attack(PLAIN[:-2] + evil, PLAIN * ends, refused=True), ()


@each_of(WITHOUT)
def test_no_proxy_header_gets_through(serve_in_thread: ServeInThread, configuration: Configuration) -> None:
    """None is taken but one at the very start, from a peer that is to send it: others are no HTTP."""
    target = Target(configuration, serve_in_thread)
    for what, header in HEADERS.items():
        for where, attack, pieces in proxy_attacks(header):
            target.withstands(f"{what}, {where}", attack, *pieces)
        for framing, body in (
            (f"Content-Length: {len(header)}\r\n", header),
            (CHUNKED, b"%x\r\n%b\r\n0\r\n\r\n" % (len(header), header)),
        ):
            head = request("/plain", framing, "POST")
            statuses, (environ, behind) = target.visit(head + body + PLAIN)
            assert environ.pop("body") == header
            assert [behind] == target.look_of(PLAIN)
            assert statuses == [200, 200]
            harmless = b"x" * len(header)
            _, (expected,) = target.visit(head + body.replace(header, harmless))
            assert expected.pop("body") == harmless
            assert environ == expected
