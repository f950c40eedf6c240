"""HAProxy in front, which says by the PROXY protocol whose connections it relays."""

from __future__ import annotations

import hashlib
import http.client
import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import LOOPS
from tests.frameworks.relay import (
    CLIENTS,
    TIMEOUT,
    Accepting,
    Shop,
    Visitor,
    find,
    listener,
    needs,
    running,
    serving,
)
from tests.server.peers import proxy_v1
from tests.server.support import eventually
from tests.server.test_listeners import has_ipv6, needs_ipv6
from tests.wsgi.logs import Log

pytestmark = needs("haproxy")

CONFIGURATION = """\
global
    stats socket fd@{stats} level admin
defaults
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    timeout check 5s
    option http-no-delay
    default-server check inter 20ms rise 2 fall 2 pool-low-conn 100
"""


@dataclass(frozen=True)
class Way:
    """How HAProxy is told of a server, and what that is told of HAProxy."""

    mode: str
    server: str  # the options of its line; {port} is that of the server
    proxy_protocol: str


WAYS = {
    "v1": Way("mode http", "send-proxy check-send-proxy", "v1"),
    "v2": Way("mode http", "send-proxy-v2 check-send-proxy", "v2"),
    "bare checks": Way("mode http", "send-proxy-v2 check port {port}", "v2"),
    "HTTP checks": Way("mode http\n    option httpchk GET /health", "send-proxy check-send-proxy", "auto"),
    "tcp": Way("mode tcp", "send-proxy-v2 proxy-v2-options unique-id,crc32c check-send-proxy", "auto"),
}

each_way = pytest.mark.parametrize("way", WAYS)


@dataclass
class Balancer:
    """HAProxy, with a server of ours for each of the ways."""

    shop: Shop
    addresses: dict[str, tuple[str, int]]  # that HAProxy listens on
    ipv6_ports: dict[str, int]  # and on ::1
    servers: dict[str, Accepting]
    folder: Path

    def say(self, command: str) -> str:
        """Ask HAProxy itself something."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect(f"{self.folder}/stats")
            sock.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: sock.recv(65_536), b"")).decode()

    def check_again(self, way: str) -> None:
        """Have it think that the server is down until some checks have succeeded."""

        def came_up() -> int:
            return (self.folder / "output").read_text().count(f"Server {name_of(way)}/ours is UP")

        before = came_up()
        self.say(f"set server {name_of(way)}/ours health down")
        eventually(lambda: came_up() > before, "the checks succeed")


@pytest.fixture(scope="module", params=LOOPS)
def balancer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    program = find("haproxy")
    assert program is not None
    folder = tmp_path_factory.mktemp("haproxy")
    shop = Shop()
    stats = listener(f"{folder}/stats")
    configuration = CONFIGURATION.format(stats=stats.fileno())
    servers = {way: listener() for way in WAYS}
    frontends = {way: listener() for way in WAYS}
    ipv6_frontends = {way: listener("::1") for way in WAYS if has_ipv6()}
    addresses = {way: sock.getsockname() for way, sock in frontends.items()}
    ipv6_ports = {way: sock.getsockname()[1] for way, sock in ipv6_frontends.items()}
    with ExitStack() as stack:
        for name, way in WAYS.items():
            port = servers[name].getsockname()[1]
            bound = [sockets[name] for sockets in (frontends, ipv6_frontends) if name in sockets]
            binds = "".join(f"    bind fd@{sock.fileno()}\n" for sock in bound)
            configuration += (
                f"listen {name_of(name)}\n{binds}    {way.mode}\n"
                f"    server ours 127.0.0.1:{port} {way.server.format(port=port)}\n"
            )
            settings = {"proxy_protocol": way.proxy_protocol, "proxy_protocol_from": "127.0.0.1"}
            stack.enter_context(serving(shop, request.param, sockets=[servers[name]], **settings))
        (folder / "haproxy.cfg").write_text(configuration)
        taken_over = [stats, *frontends.values(), *ipv6_frontends.values()]
        command = [program, "-db", "-f", "haproxy.cfg"]
        stack.enter_context(running(command, folder, taken_over))
        yield Balancer(shop, addresses, ipv6_ports, servers, folder)


def name_of(way: str) -> str:
    """As HAProxy may have it."""
    return way.replace(" ", "-")


@each_way
def test_the_client_is_known(balancer: Balancer, way: str) -> None:
    address = balancer.addresses[way]
    for source in CLIENTS:
        with closing(Visitor(address, source)) as client:
            seen = client.ask("/a?b=c", {"Host": "shop.example", "X-Forwarded-For": "203.0.113.66"})
            assert (seen["REMOTE_ADDR"], int(seen["REMOTE_PORT"])) == client.name
            assert seen["SERVER_PORT"] == str(address[1])  # HAProxy's, which the client has connected to
            assert (seen["HTTP_HOST"], seen["wsgi.url_scheme"]) == ("shop.example", "http")
            assert (seen["PATH_INFO"], seen["QUERY_STRING"]) == ("/a", "b=c")
            assert "203.0.113.66" not in repr(seen)


@needs_ipv6
@each_way
def test_a_client_of_ipv6_is_known(balancer: Balancer, way: str) -> None:
    with closing(Visitor(("::1", balancer.ipv6_ports[way]))) as client:
        seen = client.ask()
        assert (seen["REMOTE_ADDR"], int(seen["REMOTE_PORT"])) == client.name
        assert client.name[0] == "::1"


@each_way
def test_many_requests_of_several_clients(balancer: Balancer, way: str) -> None:
    """Each client has one connection to HAProxy, and HAProxy keeps one for it to the server."""
    with ExitStack() as stack:
        clients = [
            stack.enter_context(closing(Visitor(balancer.addresses[way], source))) for source in CLIENTS * 2
        ]
        before = balancer.servers[way].accepted
        for _ in range(25):
            for client in clients:
                seen = client.ask()
                assert (seen["REMOTE_ADDR"], int(seen["REMOTE_PORT"])) == client.name
        if way == "bare checks":  # which are over before they can be accepted
            assert balancer.servers[way].accepted == before + len(clients)


@each_way
@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload(balancer: Balancer, way: str, chunked: bool) -> None:
    body = random.Random(1).randbytes(3_000_000)
    with closing(Visitor(balancer.addresses[way], CLIENTS[0])) as client:
        for _ in range(2):
            assert client.upload(body, chunked=chunked) == hashlib.sha256(body).hexdigest()


@each_way
def test_a_streamed_response(balancer: Balancer, way: str) -> None:
    """What is there is passed on before there is more."""
    with closing(Visitor(balancer.addresses[way], CLIENTS[0])) as client:
        client.request("GET", "/stream")
        answer = client.getresponse()
        assert answer.read(6) == b"first "
        balancer.shop.let_go()
        assert answer.read() == b"second"


@each_way
def test_a_response_that_is_cut(balancer: Balancer, log: Log, way: str) -> None:
    """Nobody takes it for a whole one."""
    with closing(Visitor(balancer.addresses[way], CLIENTS[0])) as client:
        client.request("GET", "/cut")
        with pytest.raises(http.client.IncompleteRead):
            client.getresponse().read()
    log.take("ERROR waitress_async: Exception while serving /cut")


@each_way
def test_checks_make_no_noise(balancer: Balancer, way: str) -> None:
    """No line in the log (which the fixture `log` looks at), whatever they say of themselves."""
    checks = len(balancer.shop.checks)
    accepted = balancer.servers[way].accepted
    balancer.check_again(way)
    if way != "bare checks":
        eventually(lambda: balancer.servers[way].accepted >= accepted + 2, "the server has seen them")
    if way == "HTTP checks":
        assert len(balancer.shop.checks) >= checks + 2
        assert set(balancer.shop.checks) == {"127.0.0.1"}  # HAProxy's own requests


def test_a_client_cannot_add_a_header_of_its_own(balancer: Balancer) -> None:
    """Behind HAProxy's it is no HTTP."""
    with socket.create_connection(balancer.addresses["tcp"], TIMEOUT) as sock:
        sock.sendall(proxy_v1("203.0.113.66") + b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert sock.recv(65_536).startswith(b"HTTP/1.1 400 ")


@each_way
def test_others_are_served_without_a_header_and_not_with_one(balancer: Balancer, way: str) -> None:
    """Who comes around HAProxy is who he is."""
    address = balancer.servers[way].getsockname()
    with closing(Visitor(address, CLIENTS[0])) as client:
        assert client.ask()["REMOTE_ADDR"] == CLIENTS[0]
    with socket.create_connection(address, TIMEOUT, source_address=(CLIENTS[0], 0)) as sock:
        sock.sendall(proxy_v1("203.0.113.66") + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert sock.recv(65_536).startswith(b"HTTP/1.1 400 ")
