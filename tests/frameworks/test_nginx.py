"""nginx in front, which says by header fields whose requests it relays."""

from __future__ import annotations

import hashlib
import http.client
import os
import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass

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
from tests.server.test_listeners import has_ipv6, needs_ipv6
from tests.wsgi.logs import Log

pytestmark = needs("nginx")

CONFIGURATION = """\
daemon off;
{user}
worker_processes 1;
pid nginx.pid;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_max_body_size 64m;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    proxy_buffering off;

    map $remote_addr $forwarded_for {{
        ~^[0-9.]+$  $remote_addr;
        ~:.*:       '"[$remote_addr]"';
        default     unknown;
    }}

    upstream over_unix {{ server unix:{folder}/unix; keepalive 8; }}
    upstream over_tcp {{ server 127.0.0.1:{tcp}; keepalive 8; }}

    server {{
        {listen_unix}
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $http_host;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Host $http_host;
        proxy_set_header X-Forwarded-Proto https;
        proxy_set_header X-Forwarded-Port $server_port;
        location / {{ proxy_pass http://over_unix; }}
        location /1.0/ {{ proxy_pass http://over_unix/; proxy_http_version 1.0; }}
    }}
    server {{
        {listen_tcp}
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $http_host;
        proxy_set_header Forwarded "for=$forwarded_for;proto=https";
        location / {{ proxy_pass http://over_tcp; }}
        location /1.0/ {{ proxy_pass http://over_tcp/; proxy_http_version 1.0; }}
    }}
}}
"""

# How it reaches the server -> what that is told of it.
WAYS: dict[str, dict[str, object]] = {
    "unix": {
        "trusted_proxy": "localhost",
        # Those that nginx sets: what it passes on of a client must not be believed.
        "trusted_proxy_headers": "x-forwarded-for x-forwarded-host x-forwarded-proto x-forwarded-port",
    },
    "tcp": {"trusted_proxy": "127.0.0.1", "trusted_proxy_headers": "forwarded"},
}

each_way = pytest.mark.parametrize("way", WAYS)


@dataclass
class Front:
    """nginx, with a server of ours for each of the ways."""

    shop: Shop
    addresses: dict[str, tuple[str, int]]  # that nginx listens on
    ipv6_ports: dict[str, int]  # and on ::1
    paths: dict[str, str]  # and on unix sockets
    servers: dict[str, Accepting]


@pytest.fixture(scope="module", params=LOOPS)
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    program = find("nginx")
    assert program is not None
    folder = tmp_path_factory.mktemp("nginx")
    shop = Shop()
    servers = {"unix": listener(f"{folder}/unix"), "tcp": listener()}
    frontends = {way: listener() for way in WAYS}
    ipv6_frontends = {way: listener("::1") for way in WAYS if has_ipv6()}
    unix_frontends = {way: listener(f"{folder}/front-{way}") for way in WAYS}
    addresses = {way: sock.getsockname() for way, sock in frontends.items()}
    ipv6_ports = {way: sock.getsockname()[1] for way, sock in ipv6_frontends.items()}
    paths = {way: sock.getsockname() for way, sock in unix_frontends.items()}
    listen = {
        way: f"listen 127.0.0.1:{addresses[way][1]}; listen unix:{paths[way]};"
        + (f" listen [::1]:{ipv6_ports[way]};" if way in ipv6_ports else "")
        for way in WAYS
    }
    configuration = CONFIGURATION.format(
        user="user root;" if os.geteuid() == 0 else "",  # for its workers, who write into the folder
        folder=folder,
        tcp=servers["tcp"].getsockname()[1],
        listen_unix=listen["unix"],
        listen_tcp=listen["tcp"],
    )
    (folder / "nginx.conf").write_text(configuration)
    sockets = [*frontends.values(), *ipv6_frontends.values(), *unix_frontends.values()]
    inherited = "".join(f"{sock.fileno()};" for sock in sockets)
    command = [program, "-p", str(folder), "-c", "nginx.conf", "-e", "error.log"]
    with ExitStack() as stack:
        for way, settings in WAYS.items():
            stack.enter_context(serving(shop, request.param, sockets=[servers[way]], **settings))
        stack.enter_context(running(command, folder, sockets, NGINX=inherited))
        yield Front(shop, addresses, ipv6_ports, paths, servers)


EVIL = {
    "Forwarded": 'for=203.0.113.66;host=evil.example;by="_evil"',
    "X-Forwarded-For": "203.0.113.66, 203.0.113.66",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "http",
    "X-Forwarded-Port": "4666",
    "X-Forwarded-By": "_evil",
    "X_Forwarded_For": "203.0.113.66",
}


@each_way
@pytest.mark.parametrize("version", ["", "/1.0"])
def test_the_client_is_known(front: Front, way: str, version: str) -> None:
    """Whatever it says itself."""
    address = front.addresses[way]
    for source in CLIENTS:
        with closing(Visitor(address, source)) as client:
            for headers in ({}, EVIL):
                seen = client.ask(f"{version}/a?b=c", {"Host": "shop.example", **headers})
                assert (seen["REMOTE_ADDR"], seen["REMOTE_PORT"]) == (source, "")
                assert (seen["HTTP_HOST"].partition(":")[0], seen["wsgi.url_scheme"]) == (
                    "shop.example",
                    "https",
                )
                assert (seen["PATH_INFO"], seen["QUERY_STRING"]) == ("/a", "b=c")
                assert "203.0.113.66" not in repr(seen)
                assert "evil" not in repr(seen)
                if way == "unix":
                    assert seen["HTTP_X_FORWARDED_FOR"] == source
                    assert (seen["SERVER_NAME"], seen["SERVER_PORT"]) == ("shop.example", str(address[1]))
                    assert seen["HTTP_HOST"] == f"shop.example:{address[1]}"
                else:
                    assert seen["HTTP_FORWARDED"] == f"for={source};proto=https"
                    assert (seen["SERVER_NAME"], seen["SERVER_PORT"]) == ("waitress.invalid", "443")


@needs_ipv6
@each_way
def test_a_client_of_ipv6_is_known(front: Front, way: str) -> None:
    with closing(Visitor(("::1", front.ipv6_ports[way]))) as client:
        assert client.ask()["REMOTE_ADDR"] == "::1"


def get(host: str = "shop.example") -> bytes:
    """A request that no client library sends: over a unix socket, or for a strange host."""
    return f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()


def answer_of(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65_536), b""))


def test_a_client_that_has_no_address(front: Front, log: Log) -> None:
    """nginx calls a client on a unix socket "unix:". That is no address, and is not taken for one."""
    for way, status in (("unix", b"400"), ("tcp", b"200")):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect(front.paths[way])
            sock.sendall(get())
            answer = answer_of(sock)
        assert answer.startswith(b"HTTP/1.1 %b " % status)
    line = 'Malformed proxy header "X-Forwarded-For" from "localhost": an entry is no address value: unix:'
    log.take(f"WARNING waitress_async: {line}")
    assert b'"REMOTE_ADDR": "unknown"' in answer


@each_way
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ('x",for="203.0.113.66', b"400"),
        ('"', b"400"),
        ("x\\", b"400"),
        ("x,for=203.0.113.66", b"200"),  # a name, by RFC 3986
        ("x;for=203.0.113.66", b"200"),
    ],
)
def test_a_host_that_would_be_more_than_that(front: Front, way: str, host: str, status: bytes) -> None:
    """nginx passes on nearly anything, in all headers that it is told to make of it."""
    with socket.create_connection(front.addresses[way], TIMEOUT) as sock:
        sock.sendall(get(host))
        answer = answer_of(sock)
    assert answer.startswith(b"HTTP/1.1 %b " % status)
    assert (b'"REMOTE_ADDR": "127.0.0.1"' in answer) == (status == b"200")


@each_way
def test_many_requests_of_several_clients(front: Front, way: str) -> None:
    """nginx relays them over one connection, and each has its own client."""
    with ExitStack() as stack:
        address = front.addresses[way]
        clients = [stack.enter_context(closing(Visitor(address, source))) for source in CLIENTS * 2]
        before = front.servers[way].accepted
        for _ in range(25):
            for client in clients:
                assert client.ask()["REMOTE_ADDR"] == client.name[0]
        assert front.servers[way].accepted <= before + 2


@each_way
@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload(front: Front, way: str, chunked: bool) -> None:
    body = random.Random(1).randbytes(3_000_000)
    with closing(Visitor(front.addresses[way], CLIENTS[0])) as client:
        for _ in range(2):
            assert client.upload(body, chunked=chunked) == hashlib.sha256(body).hexdigest()


@each_way
@pytest.mark.parametrize("version", ["", "/1.0"])
def test_a_streamed_response(front: Front, way: str, version: str) -> None:
    """What is there is passed on before there is more (with `proxy_buffering off`)."""
    with closing(Visitor(front.addresses[way], CLIENTS[0])) as client:
        client.request("GET", f"{version}/stream")
        answer = client.getresponse()
        assert answer.read(6) == b"first "
        front.shop.let_go()
        assert answer.read() == b"second"


@each_way
@pytest.mark.parametrize("version", ["", "/1.0"])
def test_a_response_that_is_cut(front: Front, log: Log, way: str, version: str) -> None:
    """Nobody takes it for a whole one; but with HTTP/1.0 over a unix socket there is no way to say so."""
    with closing(Visitor(front.addresses[way], CLIENTS[0])) as client:
        client.request("GET", f"{version}/cut")
        answer = client.getresponse()
        if (way, version) == ("unix", "/1.0"):
            assert answer.read() == b"first "
        else:
            with pytest.raises(http.client.IncompleteRead):
                answer.read()
    log.take("ERROR waitress_async: Exception while serving /cut")
