"""Sockets that a process is started with: by number, and as systemd passes them, in this very process."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ServeInThread
from tests.server.support import Client, hello, nothing_left, on_each_loop
from tests.server.test_listeners import has_ipv6
from tests.server.test_unix_listeners import UnixClient
from tests.server.test_unix_sockets import short_folder
from waitress_async import Server
from waitress_async.server.listeners import Address

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="descriptors are passed on POSIX only")

# Where descriptors begin here: from 3 on this process has its own.
FIRST = 700


@pytest.fixture
def folder() -> Iterator[str]:
    with short_folder() as folder:
        yield folder


Make = Callable[[str], socket.socket]


def ipv4(_folder: str) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    return sock


def ipv6(_folder: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6)
    sock.bind(("::1", 0))
    return sock


def unix(folder: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(f"{folder}/passed")
    return sock


def datagrams(_folder: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


MAKERS = [ipv4, pytest.param(ipv6, marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")), unix]


def connect(address: Address) -> Client:
    return UnixClient(address) if isinstance(address, str) else Client((address[0], address[1]))


def answers(address: Address) -> bool:
    with connect(address) as client:
        return client.get().body == b"Hello, world!"


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def inheritable(sock: socket.socket) -> int:
    """The number of a descriptor that a child would have, and that nobody here owns."""
    sock.set_inheritable(True)
    return sock.detach()


async def refusal(number: int, *others: str) -> tuple[int | None, str]:
    """Why a server cannot listen on a descriptor, but for its number. Nothing is left open."""
    server = Server(hello, listen=[f"fd://{number}", *others])
    with pytest.raises(OSError, match=f"^.*Cannot listen on fd://{number}: ") as caught:
        await server.start()
    assert caught.value.strerror is not None
    return caught.value.errno, caught.value.strerror.removeprefix(f"Cannot listen on fd://{number}: ")


# -- by number


@pytest.mark.parametrize("listening", [True, False], ids=["listening", "bound"])
@pytest.mark.parametrize("make", MAKERS)
def test_a_descriptor(serve_in_thread: ServeInThread, folder: str, make: Make, listening: bool) -> None:
    sock = make(folder)
    address = sock.getsockname()
    if listening:
        sock.listen()
    number = inheritable(sock)
    running = serve_in_thread(hello, listen=f"fd://{number}")
    assert running.server.addresses == [address]
    assert answers(address)
    assert not os.get_inheritable(number)
    running.stop()
    assert not is_open(number)
    assert make is not unix or os.listdir(folder) == ["passed"]  # the file is its maker's


def test_who_connected_before_is_served(serve_in_thread: ServeInThread, folder: str) -> None:
    sock = ipv4(folder)
    sock.listen()
    with connect(sock.getsockname()) as early:
        serve_in_thread(hello, listen=f"fd://{inheritable(sock)}")
        assert early.get().status == 200


def test_with_other_places_and_each_once(serve_in_thread: ServeInThread, folder: str) -> None:
    number = inheritable(unix(folder))
    places = f"127.0.0.1:0 fd://{number} unix:{folder}/own fd://{number} fd://00{number}"
    running = serve_in_thread(hello, listen=places)
    port = running.server.port
    assert running.server.addresses == [("127.0.0.1", port), f"{folder}/passed", f"{folder}/own"]
    assert all(map(answers, running.server.addresses))
    running.stop()
    assert os.listdir(folder) == ["passed"]


@on_each_loop
async def test_a_number_that_is_not_open() -> None:
    with socket.socket() as sock:
        number = fcntl.fcntl(sock, fcntl.F_DUPFD, FIRST)  # far from where others open theirs
        os.close(number)
    with nothing_left():
        assert await refusal(number) == (errno.EBADF, os.strerror(errno.EBADF))


@on_each_loop
async def test_a_file(tmp_path: Path) -> None:
    number = os.open(tmp_path, os.O_RDONLY)
    with nothing_left():
        assert await refusal(number, "127.0.0.1:0") == (errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
    os.close(number)  # it was left alone


@on_each_loop
async def test_a_socket_of_another_kind(folder: str) -> None:
    with datagrams(folder) as sock, nothing_left():
        reason = "it is not an Internet or unix stream socket"
        assert await refusal(sock.fileno(), "127.0.0.1:0") == (errno.EPROTOTYPE, reason)


@on_each_loop
async def test_a_connection() -> None:
    """As systemd passes it where Accept=yes, and as the loop has one to itself."""
    reason = "it is a connection (systemd passes those where Accept=yes)"
    one, other = socket.socketpair()
    with one, other, nothing_left():
        assert await refusal(one.fileno(), "127.0.0.1:0") == (errno.EPROTOTYPE, reason)
        assert one.send(b"it was left alone") == 17


@on_each_loop
async def test_a_socket_whose_port_is_in_use(folder: str) -> None:
    with nothing_left():
        late, early = ipv4(folder), socket.socket()
        early.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        early.bind(late.getsockname())
        early.listen()
        assert await refusal(inheritable(late)) == (errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        early.close()


# -- by systemd


Pass = Callable[..., list[Address]]


@pytest.fixture
def pass_sockets(monkeypatch: pytest.MonkeyPatch, folder: str) -> Iterator[Pass]:
    """`pass_sockets(name=make, ...)` passes sockets as systemd does. Returns their addresses."""
    passed: list[int] = []

    def make_all(**makers: Make) -> list[Address]:
        addresses: list[Address] = []
        for number, make in enumerate(makers.values(), FIRST):
            with make(folder) as sock:
                sock.listen() if sock.type == socket.SOCK_STREAM else None
                addresses.append(sock.getsockname())
                passed.append(os.dup2(sock.fileno(), number))
        monkeypatch.setattr("waitress_async.server.systemd._FIRST", FIRST)
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        monkeypatch.setenv("LISTEN_FDS", str(len(makers)))
        monkeypatch.setenv("LISTEN_FDNAMES", ":".join(name.partition("_")[0] for name in makers))
        return addresses

    yield make_all
    for number in filter(is_open, passed):
        os.close(number)


def test_all_that_systemd_passes(serve_in_thread: ServeInThread, pass_sockets: Pass, folder: str) -> None:
    addresses = pass_sockets(web=ipv4, admin=unix)
    running = serve_in_thread(hello, listen="systemd://")
    assert running.server.addresses == addresses
    assert all(map(answers, addresses))
    assert not os.get_inheritable(FIRST)
    assert not os.get_inheritable(FIRST + 1)
    running.stop()
    assert not is_open(FIRST)
    assert not is_open(FIRST + 1)
    assert os.listdir(folder) == ["passed"]


def test_those_of_a_name(serve_in_thread: ServeInThread, pass_sockets: Pass) -> None:
    first, _, second = pass_sockets(web=ipv4, admin=unix, web_2=ipv4)
    running = serve_in_thread(hello, listen="systemd://web")
    assert running.server.addresses == [first, second]
    assert answers(first)
    assert answers(second)
    running.stop()
    assert [is_open(FIRST + n) for n in range(3)] == [False, True, False]


def test_systemd_with_other_places_and_each_once(
    serve_in_thread: ServeInThread, pass_sockets: Pass, folder: str
) -> None:
    web, admin = pass_sockets(web=ipv4, admin=unix)
    places = f"systemd://admin 127.0.0.1:0 systemd:// fd://{FIRST} unix:{folder}/own systemd://web"
    running = serve_in_thread(hello, listen=places)
    addresses = running.server.addresses
    own = addresses.pop(1)
    assert own[0] == "127.0.0.1"
    assert addresses == [admin, web, f"{folder}/own"]
    assert all(map(answers, [own, *addresses]))
    running.stop()


def cannot_start(listen: str, reason: str) -> None:
    async def main() -> None:
        with pytest.raises(OSError, match=re.escape(reason) + "$"):
            await Server(hello, listen=listen).start()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("environ", "place", "reason"),
    [
        ({}, "systemd://api", "systemd has passed no such socket (it has passed: admin, web)"),
        ({}, "systemd://admi", "systemd has passed no such socket (it has passed: admin, web)"),
        ({"LISTEN_PID": "1"}, "systemd://", "systemd has passed no such socket (it has passed: none)"),
        ({"LISTEN_PID": "1"}, "systemd://web", "systemd has passed no such socket (it has passed: none)"),
        ({"LISTEN_FDS": "two"}, "systemd://", "LISTEN_FDS is 'two', which is not a number"),
        ({"LISTEN_FDS": "1"}, "systemd://", "LISTEN_FDNAMES has 2 names for 1 descriptors"),
    ],
)
def test_what_systemd_has_not_passed(
    pass_sockets: Pass, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], place: str, reason: str
) -> None:
    pass_sockets(web=ipv4, admin=unix)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with nothing_left():
        cannot_start(f"127.0.0.1:0 {place}", f"Cannot listen on {place}: {reason}")
    assert is_open(FIRST)
    assert is_open(FIRST + 1)


def test_without_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISTEN_PID", raising=False)
    reason = "systemd has passed no such socket (it has passed: none)"
    cannot_start("systemd://web", f"Cannot listen on systemd://web: {reason}")


def test_a_socket_of_another_kind_that_systemd_passes(pass_sockets: Pass) -> None:
    pass_sockets(web=ipv4, log=datagrams)
    cannot_start("systemd://", "Cannot listen on systemd://: it is not an Internet or unix stream socket")
    assert is_open(FIRST + 1)
    cannot_start("systemd://web", "Cannot listen on systemd://web: Bad file descriptor")  # taken over before


def test_nobody_takes_them_without_being_told(serve_in_thread: ServeInThread, pass_sockets: Pass) -> None:
    """That is the command's."""
    pass_sockets(web=ipv4)
    running = serve_in_thread(hello)
    assert running.server.addresses == [("127.0.0.1", running.server.port)]
    running.stop()
    assert is_open(FIRST)
