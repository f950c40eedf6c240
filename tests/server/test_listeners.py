"""Where a server listens: one address or several, IPv4 and IPv6, its own sockets or given ones."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import pytest

from tests.conftest import ServeInThread
from tests.server.support import Client, hello, local_server, nothing_left, on_each_loop
from waitress_async import Server, ServerClosed

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


def where(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The port a request came to, a space, and the address it came from."""
    start_response("200 OK", [])
    return [f"{environ['SERVER_PORT']} {environ['REMOTE_ADDR']}".encode()]


@pytest.fixture
def used() -> Iterator[int]:
    """A port that is listened on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        yield port


def bound(family: int = socket.AF_INET, host: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(family)
    sock.bind((host, 0))
    return sock


def ask(host: str, port: int) -> bytes:
    with Client((host, port)) as client:
        return client.get().body


def test_any_port(serve_in_thread: ServeInThread) -> None:
    server = serve_in_thread(where).server
    ((host, port),) = server.addresses  # type: ignore[misc]
    assert host == "127.0.0.1"
    assert port == server.port > 0
    assert server.url == f"http://127.0.0.1:{port}"
    assert ask(host, port) == f"{port} 127.0.0.1".encode()


@needs_ipv6
def test_ipv6(serve_in_thread: ServeInThread) -> None:
    server = serve_in_thread(where, host="::1").server
    assert server.addresses[0][:2] == ("::1", server.port)
    assert server.url == f"http://[::1]:{server.port}"
    assert ask("::1", server.port) == f"{server.port} ::1".encode()


@needs_ipv6
def test_several_listeners(serve_in_thread: ServeInThread) -> None:
    server = serve_in_thread(where, listen="127.0.0.1:0 [::1]:0 127.0.0.1:0").server
    assert [address[0] for address in server.addresses] == ["127.0.0.1", "::1", "127.0.0.1"]
    assert len({address[1] for address in server.addresses}) == 3
    for host, port in (address[:2] for address in server.addresses):
        assert ask(host, port) == f"{port} {host}".encode()
    assert server.port == server.addresses[0][1]


def test_given_sockets(serve_in_thread: ServeInThread) -> None:
    sockets = [bound(), bound()]
    ports = [sock.getsockname()[1] for sock in sockets]
    running = serve_in_thread(where, sockets=sockets)
    assert [address[1] for address in running.server.addresses] == ports
    for port in ports:
        assert ask("127.0.0.1", port) == f"{port} 127.0.0.1".encode()
    running.stop()
    assert [sock.fileno() for sock in sockets] == [-1, -1]  # they were taken over


def test_a_given_socket_that_listens_already(serve_in_thread: ServeInThread) -> None:
    sock = bound()
    sock.listen()
    with Client(sock.getsockname()) as early:  # before the server is there
        early.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        serve_in_thread(where, sockets=[sock])
        assert early.receive().status == 200


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({"host": "0.0.0.0"}, "http://127.0.0.1:{port}"),
        pytest.param({"host": "::"}, "http://[::1]:{port}", marks=needs_ipv6),
        ({"host": "127.0.0.1", "url_scheme": "https"}, "https://127.0.0.1:{port}"),
    ],
)
def test_a_url_is_one_that_this_machine_can_use(
    serve_in_thread: ServeInThread, settings: dict[str, object], url: str
) -> None:
    server = serve_in_thread(hello, port=0, **settings).server
    assert server.url == url.format(port=server.port)


def test_a_name_is_looked_up(serve_in_thread: ServeInThread) -> None:
    server = serve_in_thread(hello, host="localhost").server
    assert {address[0] for address in server.addresses} <= {"127.0.0.1", "::1"}
    for host, port in (address[:2] for address in server.addresses):
        assert ask(host, port) == b"Hello, world!"


@on_each_loop
async def test_a_port_in_use_is_named_and_nothing_is_left(used: int) -> None:
    with nothing_left():
        server = local_server(port=used)
        with pytest.raises(OSError, match=f"127.0.0.1:{used}") as caught:
            await server.start()
        assert caught.value.errno == errno.EADDRINUSE
        assert server.addresses == []
        with pytest.raises(ServerClosed):
            server.port  # noqa: B018
        await server.stop()


@on_each_loop
async def test_the_last_of_several_in_use_leaves_none_of_them_open(used: int) -> None:
    free = bound()
    free_port = free.getsockname()[1]
    free.close()
    with nothing_left():
        with pytest.raises(OSError, match=str(used)):
            await Server(hello, listen=f"127.0.0.1:{free_port} 127.0.0.1:{used}").start()
        bound_again = socket.create_server(("127.0.0.1", free_port))
        bound_again.close()


@on_each_loop
async def test_async_with_and_serve_forever_pass_the_error_on(used: int) -> None:
    enter: list[Callable[[], object]] = []
    with nothing_left():
        with pytest.raises(OSError, match=str(used)):
            async with local_server(port=used):
                enter.append(lambda: None)
        with pytest.raises(OSError, match=str(used)):
            await local_server(port=used).serve_forever()
    assert enter == []


@on_each_loop
async def test_a_name_that_does_not_exist_is_named() -> None:
    with nothing_left(), pytest.raises(OSError, match=r"no-such-host\.invalid"):
        await Server(hello, host="no-such-host.invalid", port=0).start()


@on_each_loop
async def test_a_port_is_free_again_after_the_stop() -> None:
    port = 0
    for _ in range(3):
        async with local_server(port=port) as server:
            assert port in (0, server.port)
            port = server.port
