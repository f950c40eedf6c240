"""Where a server listens: one address or several, IPv4 and IPv6, its own sockets or given ones."""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ServeInThread
from tests.server.support import DEADLINE, Client, hello, local_server, nothing_left, on_each_loop
from tests.server.test_unix_sockets import short_folder
from waitress_async import Server, ServerClosed, Settings
from waitress_async.server import listeners
from waitress_async.server.listeners import ListeningSocket, format_address, look_up, open_sockets

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


@pytest.fixture
def free() -> int:
    """A port that nobody uses, of no family."""
    with bound(socket.AF_INET6, "::") if has_ipv6() else bound(host="0.0.0.0") as sock:
        port: int = sock.getsockname()[1]
        return port


def bound(family: int = socket.AF_INET, host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    return sock


def internet_addresses(server: Server) -> list[tuple[str, int]]:
    return [address[:2] for address in server.addresses if not isinstance(address, str)]


def ask(host: str, port: int) -> bytes:
    with Client((host, port)) as client:
        return client.get().body


def test_any_port(serve_in_thread: ServeInThread) -> None:
    server = serve_in_thread(where).server
    ((host, port),) = internet_addresses(server)
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
    for host, port in internet_addresses(server):
        assert ask(host, port) == f"{port} {host}".encode()
    assert server.port == server.addresses[0][1]


def test_the_same_address_twice_is_bound_once(serve_in_thread: ServeInThread, free: int) -> None:
    places = f"127.0.0.1:{free} 127.0.0.1:{free} localhost:{free}"
    server = serve_in_thread(where, listen=places, ipv6=False).server
    assert server.addresses == [("127.0.0.1", free)]
    assert ask("127.0.0.1", free) == f"{free} 127.0.0.1".encode()


@needs_ipv6
def test_ipv4_and_ipv6_share_a_port(serve_in_thread: ServeInThread, free: int) -> None:
    server = serve_in_thread(where, listen=f"[::1]:{free} 127.0.0.1:{free}").server
    assert internet_addresses(server) == [("::1", free), ("127.0.0.1", free)]
    for host in ("::1", "127.0.0.1"):
        assert ask(host, free) == f"{free} {host}".encode()


@needs_ipv6
@pytest.mark.parametrize(
    ("families", "hosts"),
    [({}, {"0.0.0.0", "::"}), ({"ipv4": False}, {"::"}), ({"ipv6": "false"}, {"0.0.0.0"})],
)
def test_a_star_is_every_address(
    serve_in_thread: ServeInThread, free: int, families: dict[str, object], hosts: set[str]
) -> None:
    server = serve_in_thread(where, host="*", port=free, **families).server
    assert set(internet_addresses(server)) == {(host, free) for host in hosts}
    for any_host, host in (("0.0.0.0", "127.0.0.1"), ("::", "::1")):
        if any_host in hosts:  # and not the other one's clients, under a name such as ::ffff:127.0.0.1
            assert ask(host, free) == f"{free} {host}".encode()
        else:
            with pytest.raises(ConnectionRefusedError):
                ask(host, free)


@on_each_loop
async def test_an_address_of_a_family_that_is_off_is_named() -> None:
    with nothing_left(), pytest.raises(OSError, match=r"127\.0\.0\.1:0: .*AF_INET6"):
        await local_server(ipv4=False).start()


# -- one port, several servers


def named(name: bytes) -> Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]:
    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [name]

    return app


needs_reuse_port = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the last server has all")


@needs_reuse_port
def test_a_port_is_shared_by_those_who_want_to(serve_in_thread: ServeInThread) -> None:
    port = serve_in_thread(named(b"one"), reuse_port=True).server.port
    serve_in_thread(named(b"two"), reuse_port=True, port=port)
    answers: set[bytes] = set()
    for _ in range(1000):  # each goes to one of the two, by a hash
        answers.add(ask("127.0.0.1", port))
        if len(answers) == 2:
            break
    assert answers == {b"one", b"two"}


@needs_reuse_port
@pytest.mark.parametrize("sharing", [(False, False), (True, False), (False, True)])
@on_each_loop
async def test_a_port_is_shared_by_nobody_else(sharing: tuple[bool, bool]) -> None:
    first, second = sharing
    with nothing_left():
        async with local_server(reuse_port=first) as server:
            with pytest.raises(OSError, match=f"^.*Cannot listen on 127.0.0.1:{server.port}: .* in use$"):
                await local_server(reuse_port=second, port=server.port).start()


# -- sockets that are given


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


@needs_ipv6
def test_a_given_socket_for_both_families(serve_in_thread: ServeInThread) -> None:
    """As systemd makes them of a port alone. A peer is named as the system names it."""
    sock = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    port = serve_in_thread(where, sockets=[sock]).server.port
    assert ask("127.0.0.1", port) == f"{port} ::ffff:127.0.0.1".encode()
    assert ask("::1", port) == f"{port} ::1".encode()


def test_a_socket_that_is_given_twice(serve_in_thread: ServeInThread) -> None:
    sock = bound()
    running = serve_in_thread(where, sockets=[sock, sock])
    assert len(running.server.addresses) == 1
    assert ask(*running.address) == f"{running.server.port} 127.0.0.1".encode()
    running.stop()


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda sock, port: sock.close(), errno.EBADF),
        (lambda sock, port: sock.connect(("127.0.0.1", port)), errno.EINVAL),
    ],
    ids=["closed", "connected"],
)
@on_each_loop
async def test_a_given_socket_of_no_use_is_named_by_its_place(
    used: int, spoil: Callable[[socket.socket, int], None], code: int
) -> None:
    with nothing_left():
        sockets = [bound(), bound()]
        spoil(sockets[1], used)
        with pytest.raises(OSError, match=r"Cannot listen on sockets\[1\]: ") as caught:
            await Server(hello, sockets=sockets).start()
        assert caught.value.errno == code


@on_each_loop
async def test_a_given_socket_whose_port_is_in_use() -> None:
    with nothing_left():
        late, early = bound(), socket.socket()
        early.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        early.bind(late.getsockname())
        early.listen()
        with pytest.raises(OSError, match=r"Cannot listen on sockets\[0\]: Address already in use"):
            await Server(hello, sockets=[late]).start()
        early.close()


# -- names, and how addresses are told


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({"host": "0.0.0.0"}, "http://127.0.0.1:{port}"),
        pytest.param({"host": "::"}, "http://[::1]:{port}", marks=needs_ipv6),
        ({"host": "127.0.0.1", "url_scheme": "https"}, "http://127.0.0.1:{port}"),  # a proxy speaks the other
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
    for host, port in internet_addresses(server):
        assert ask(host, port) == b"Hello, world!"


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("127.0.0.1", 80), "127.0.0.1:80"),
        (("::1", 80), "[::1]:80"),
        (("::1", 80, 0, 0), "[::1]:80"),
        (("fe80::1", 80, 0, 2**31 - 1), "[fe80::1%2147483647]:80"),  # an interface that is gone
        ("/run/shop.sock", "unix:/run/shop.sock"),
        ("@shop", "unix:@shop"),
        ("", "unix:"),
    ],
)
def test_an_address_as_text(address: Any, text: str) -> None:
    assert format_address(address) == text


# -- in a network of one's own


# What each script begins with. The loopback is down in a new network.
NETWORK = """
import asyncio, fcntl, json, socket, struct, sys, time
from waitress_async import Server

def app(environ, start_response):
    start_response("200 OK", [])
    return [environ["REMOTE_ADDR"].encode()]

async def ask(address):
    reader, writer = await asyncio.open_connection(*address[:2])
    writer.write(b"GET / HTTP/1.0\\r\\n\\r\\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer.partition(b"\\r\\n\\r\\n")[2].decode()

async def attempt(**settings):
    try:
        async with Server(app, **settings) as server:
            return [[*address] for address in server.addresses]
    except OSError as error:
        return [error.errno, error.strerror]

with socket.socket() as sock:
    fcntl.ioctl(sock, 0x8914, struct.pack("16sh22x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS: up, running
"""


@functools.cache
def own_network() -> list[str]:
    """A command that runs another one in network and mount namespaces of its own, or a reason why not."""
    program = shutil.which("unshare")
    if program is None:
        pytest.skip("unshare is not installed")
    command = [program, "--net", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if subprocess.run([*command, "true"], check=False, capture_output=True, timeout=DEADLINE).returncode:
        pytest.skip("this user may not make network namespaces")
    return command


def run_in_own_network(script: str, tmp_path: Path) -> Any:
    """What a script prints, in JSON. There "localhost" has an address of IPv4 and one of IPv6."""
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    inside = ["sh", "-c", 'mount --bind "$1" /etc/hosts && shift && exec "$@"', "sh", str(tmp_path / "hosts")]
    done = subprocess.run(
        [*own_network(), *inside, sys.executable, "-W", "error", "-c", NETWORK + script],
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_ipv6
def test_an_address_with_a_zone(tmp_path: Path) -> None:
    script = """
index = socket.if_nametoindex("lo")
with socket.socket(socket.AF_INET6) as sock:
    address = socket.inet_pton(socket.AF_INET6, "fe80::1")
    fcntl.ioctl(sock, 0x8916, address + struct.pack("Ii", 64, index))  # SIOCSIFADDR
    while True:  # for a moment it is only tentative
        try:
            sock.bind(("fe80::1", 0, 0, index))
            break
        except OSError:
            time.sleep(0.001)

async def main():
    async with Server(app, listen="[fe80::1%lo]:0") as server:
        peer = await ask((f"fe80::1%{index}", server.port))
        in_use = await attempt(listen=f"[fe80::1%lo]:{server.port}")
    return index, server.addresses, peer, in_use

print(json.dumps(asyncio.run(main())))
"""
    index, (address,), peer, (code, reason) = run_in_own_network(script, tmp_path)
    port = address[1]
    assert address == ["fe80::1", port, 0, index]
    assert peer == "fe80::1"
    assert (code, reason) == (
        errno.EADDRINUSE,
        f"Cannot listen on [fe80::1%lo]:{port}: Address already in use",
    )


@needs_ipv6
def test_a_name_with_two_addresses(tmp_path: Path) -> None:
    script = """
async def main():
    families = {"both": {}, "ipv4": {"ipv6": False}, "ipv6": {"ipv4": False}}
    found = {name: await attempt(host="localhost", port=5000, **off) for name, off in families.items()}
    found["twice"] = await attempt(listen="localhost:5000 127.0.0.1:5000 [::1]:5000")
    async with Server(app, host="localhost", port=5000) as server:
        found["peers"] = [await ask(address) for address in server.addresses]
    with open("/proc/sys/net/ipv6/conf/all/disable_ipv6", "w") as file:
        file.write("1")
    found["off"] = await attempt(host="localhost", port=5000)
    found["off, and alone"] = await attempt(listen="127.0.0.1:5000 [::1]:5000")
    found["off, and alone by name"] = await attempt(host="localhost", ipv4=False)
    return found

print(json.dumps(asyncio.run(main())))
"""
    found = run_in_own_network(script, tmp_path)
    ipv4, ipv6 = ["127.0.0.1", 5000], ["::1", 5000, 0, 0]
    assert sorted(found["both"]) == sorted(found["twice"]) == [ipv4, ipv6]
    assert (found["ipv4"], found["ipv6"]) == ([ipv4], [ipv6])
    assert sorted(found["peers"]) == ["127.0.0.1", "::1"]
    # Where IPv6 is off, as in many containers, the name still has an address of it.
    assert found["off"] == [ipv4]
    for name, port in (("off, and alone", 5000), ("off, and alone by name", 8080)):
        code, reason = found[name]
        assert code == errno.EADDRNOTAVAIL
        assert reason.startswith(f"Cannot listen on [::1]:{port}: ")


# -- what cannot be had


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


def test_answers_are_not_held_back_for_an_acknowledgement(serve_in_thread: ServeInThread) -> None:
    """asyncio does not see to that itself for sockets that were accepted by somebody else."""
    running = serve_in_thread(hello)
    with Client(running.address) as client:
        assert client.get().status == 200
        (protocol,) = running.server._runtime.connections._protocols
        sock = protocol._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


# -- where plain HTTP is sent to https


def opened(listen: str, redirect_listen: str) -> list[ListeningSocket]:
    settings = Settings.from_keywords(
        listen=listen, redirect_listen=redirect_listen, ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    )
    return open_sockets(settings, look_up(settings))


def close(listening: list[ListeningSocket]) -> None:
    for one in listening:
        one.close()


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no unix sockets")
def test_a_place_to_redirect_that_cannot_be_had_leaves_no_other_open(used: int) -> None:
    with short_folder() as folder, nothing_left():
        with pytest.raises(OSError, match=f"Cannot listen on 127.0.0.1:{used}: ") as caught:
            opened(f"127.0.0.1:0 unix:{folder}/a", f"unix:{folder}/b 127.0.0.1:0 127.0.0.1:{used}")
        assert caught.value.errno == errno.EADDRINUSE
        assert os.listdir(folder) == []


def test_a_place_to_listen_that_cannot_be_had_leaves_none_to_redirect_open(used: int) -> None:
    with nothing_left(), pytest.raises(OSError, match=f"Cannot listen on 127.0.0.1:{used}: "):
        opened(f"127.0.0.1:{used}", "127.0.0.1:0")


@pytest.mark.skipif(os.name != "posix", reason="descriptors are passed on POSIX only")
def test_a_descriptor_to_redirect_is_not_listened_on_as_well() -> None:
    """It would be closed by the one, and then by the other, when it is somebody else's."""
    with nothing_left():
        first, second = bound().detach(), bound().detach()
        listening = opened(f"fd://{first} fd://{second}", f"fd://{first}")
        assert [(one.sock.fileno(), one.redirects) for one in listening] == [(first, True), (second, False)]
        close(listening)


@pytest.mark.skipif(os.name != "posix", reason="descriptors are passed on POSIX only")
def test_of_all_that_systemd_passes_one_may_be_to_redirect(monkeypatch: pytest.MonkeyPatch) -> None:
    with nothing_left():
        https, http = bound().detach(), bound().detach()
        monkeypatch.setattr(
            listeners, "listen_fds", lambda _environ, _pid: [("https", https), ("http", http)]
        )
        listening = opened("systemd://", "systemd://http")
        assert [(one.sock.fileno(), one.redirects) for one in listening] == [(http, True), (https, False)]
        close(listening)


def test_a_port_is_not_for_both() -> None:
    """Of one that is silently left out nobody would know which."""
    with bound() as sock:
        port = sock.getsockname()[1]
    with nothing_left(), pytest.raises(OSError, match=f"Cannot listen on 127.0.0.1:{port}: ") as caught:
        opened(f"127.0.0.1:{port}", f"127.0.0.1:{port}")
    assert caught.value.errno == errno.EADDRINUSE


def test_what_is_all_redirected_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        place = f"fd://{sock.detach()}"
    with pytest.raises(OSError, match="each of its sockets is one of redirect_listen"):
        opened(place, place)
