"""Listening sockets: made from settings, accepted from by the loop. Loop's thread, but for `look_up`."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from waitress_async.server.systemd import listen_fds
from waitress_async.server.unix_sockets import SocketFile, bind_unix, parse_owner
from waitress_async.settings import (
    DescriptorPlace,
    InternetPlace,
    Place,
    Settings,
    SystemdPlace,
    UnixPlace,
)

# Connections taken from one socket before the loop sees to other things.
_BATCH: Final = 64

InternetAddress = tuple[str, int] | tuple[str, int, int, int]

# Of a unix socket: its path, or @ and its abstract name; empty for a peer that has none.
Address = InternetAddress | str

# The addresses that a host means, where there are hosts.
LookedUp = dict[InternetPlace, list[tuple[socket.AddressFamily, InternetAddress]]]


@dataclass(frozen=True, slots=True)
class ListeningSocket:
    """A socket to accept from, what it is called in an error, and the file that is to go with it."""

    sock: socket.socket
    name: str
    file: SocketFile | None = None
    redirects: bool = False  # what comes is sent to https, and served there

    @property
    def address(self) -> Address:
        return address_of(self.sock.getsockname())

    def close(self) -> None:
        """Close it. A file of ours is removed first, while nobody else can have its inode. Twice is fine."""
        try:
            if self.file is not None and self.sock.fileno() >= 0:
                self.file.remove()
        except OSError:
            pass  # as after a change of user: it stays, and the next server finds that nobody listens on it
        finally:
            self.sock.close()


def look_up(settings: Settings) -> LookedUp:
    """The addresses of all hosts of the settings. Any thread: for a name it asks the name service, and waits.

    Raises OSError, whose `strerror` names the host, for one that means none.
    """
    families = [socket.AF_INET] if settings.ipv4 else []
    if settings.ipv6 and (not families or socket.has_dualstack_ipv6()):
        families.append(socket.AF_INET6)
    return {
        place: _addresses(place, families)
        for place in (*settings.places, *settings.redirect_places)
        if isinstance(place, InternetPlace)
    }


def _addresses(
    place: InternetPlace, families: list[socket.AddressFamily]
) -> list[tuple[socket.AddressFamily, InternetAddress]]:
    host = None if place.host == "*" else place.host
    try:
        found = socket.getaddrinfo(host, place.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise cannot_listen(format_address((place.host, place.port)), error) from error
    addresses = {  # a dict keeps their order, and each once
        (family, address): None for family, _, _, _, address in found if family in families
    }
    if not addresses:
        reason = f"it has no address of the families that are on ({' '.join(f.name for f in families)})"
        name = format_address((place.host, place.port))
        raise cannot_listen(name, OSError(errno.EADDRNOTAVAIL, reason))
    return list(addresses)  # type: ignore[arg-type]


def open_sockets(settings: Settings, looked_up: LookedUp) -> list[ListeningSocket]:
    """Listening, non-blocking sockets for all places of the settings.

    Raises OSError, whose `strerror` names the place, for one that cannot be had; nothing is left open
    then. Sockets and descriptors that are given are taken over, and closed with the server.
    """
    opened: list[ListeningSocket] = []
    try:
        for place in settings.redirect_places:
            _open(place, settings, looked_up, opened)
        opened[:] = [replace(listening, redirects=True) for listening in opened]
        if settings.sockets:
            given = dict.fromkeys(settings.sockets)  # each once
            opened.extend(ListeningSocket(sock, f"sockets[{n}]") for n, sock in enumerate(given))
        else:
            for place in settings.places:
                _open(place, settings, looked_up, opened)
        if all(listening.redirects for listening in opened):
            reason = "each of its sockets is one of redirect_listen"
            raise cannot_listen("what listen names", OSError(errno.EADDRINUSE, reason))
        for listening in opened:
            _listen(listening, settings.backlog)
    except BaseException:
        for listening in opened:
            listening.close()
        raise
    return opened


def _open(place: Place, settings: Settings, looked_up: LookedUp, opened: list[ListeningSocket]) -> None:
    """Add to `opened` the sockets of one place."""
    match place:
        case InternetPlace():
            _bind_all(looked_up[place], settings.reuse_port, opened)
        case UnixPlace(path):
            opened.append(_bind_unix(path, settings))
        case DescriptorPlace(number):
            _inherit(f"fd://{number}", number, opened)
        case SystemdPlace(name):
            for number in _passed_by_systemd(name):
                _inherit(f"systemd://{name}", number, opened)


def _bind_all(
    addresses: list[tuple[socket.AddressFamily, InternetAddress]],
    reuse_port: bool,
    opened: list[ListeningSocket],
) -> None:
    """Add to `opened` a socket for each address of a host that has none yet.

    Addresses that this machine has not are left out, unless they are all: "localhost" often has one of IPv6
    where IPv6 is off, as in containers.
    """
    bound = {listening.address for listening in opened if not listening.redirects}
    missing: list[OSError] = []
    for family, address in addresses:
        if address[1] and address in bound:
            continue
        try:
            opened.append(_bind(family, address, reuse_port))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
            missing.append(error)
    if len(missing) == len(addresses):
        raise missing[0]


def _bind(family: socket.AddressFamily, address: InternetAddress, reuse_port: bool) -> ListeningSocket:
    name = format_address(address)
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise cannot_listen(name, error) from error
    try:
        if os.name == "posix":  # elsewhere it would let others bind the same port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            if not hasattr(socket, "SO_REUSEPORT"):
                raise OSError(errno.EOPNOTSUPP, "reuse_port is not possible on this system")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise cannot_listen(name, error) from error
    return ListeningSocket(sock, name)


def _bind_unix(path: str, settings: Settings) -> ListeningSocket:
    name = format_address(path)
    try:
        owner = parse_owner(settings.unix_socket_owner) if settings.unix_socket_owner else None
        sock, file = bind_unix(path, permissions=settings.unix_socket_perms, owner=owner)
    except ValueError as error:
        raise cannot_listen(name, OSError(errno.EINVAL, f"unix_socket_owner: {error}")) from None
    except OSError as error:
        raise cannot_listen(name, error) from error
    sock.listen(settings.backlog)  # at once: to others that start, one that does not listen is a stale one
    return ListeningSocket(sock, name, file)


def _passed_by_systemd(name: str) -> list[int]:
    """The descriptors that systemd has passed to this process under `name`, or under any."""
    try:
        passed = listen_fds(os.environ, os.getpid())
    except ValueError as error:
        raise OSError(errno.EINVAL, f"Cannot listen on systemd://{name}: {error}") from None
    numbers = [number for passed_name, number in passed if name in ("", passed_name)]
    if not numbers:
        names = ", ".join(sorted({passed_name for passed_name, _ in passed})) or "none"
        reason = f"systemd has passed no such socket (it has passed: {names})"
        raise OSError(errno.ENOENT, f"Cannot listen on systemd://{name}: {reason}")
    return numbers


def _inherit(name: str, number: int, opened: list[ListeningSocket]) -> None:
    """Add to `opened` a socket that this process was started with, unless it is there under another name.

    Its file, if it has one, stays its maker's.
    """
    if any(listening.sock.fileno() == number for listening in opened):
        return
    try:
        sock = socket.socket(fileno=number)
        if reason := _why_not(sock):
            sock.detach()  # it may be somebody's, such as the loop's own
            raise OSError(errno.EPROTOTYPE, reason)
        sock.set_inheritable(False)
    except OSError as error:
        raise cannot_listen(name, error) from error
    opened.append(ListeningSocket(sock, name))


def _why_not(sock: socket.socket) -> str:
    """Why a socket is none to listen on; nothing if it is one."""
    families = {socket.AF_INET, socket.AF_INET6, getattr(socket, "AF_UNIX", socket.AF_INET)}
    if sock.type != socket.SOCK_STREAM or sock.family not in families:
        return "it is not an Internet or unix stream socket"
    try:
        sock.getpeername()
    except OSError:
        return ""
    return "it is a connection (systemd passes those where Accept=yes)"


def _listen(listening: ListeningSocket, backlog: int) -> None:
    sock = listening.sock
    try:
        if sock.family != getattr(socket, "AF_UNIX", None):
            # What is accepted inherits it. asyncio sets it only on sockets that name TCP as their protocol,
            # which accepted ones do not: pipelined answers waited 40 ms for an acknowledgement.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # systemd's listen already, with a backlog of theirs
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.listen(backlog)
    except OSError as error:
        raise cannot_listen(listening.name, error) from error
    sock.setblocking(False)


def cannot_listen(name: str, error: OSError) -> OSError:
    """What `open_sockets` raises for the place `name`."""
    return OSError(error.errno, f"Cannot listen on {name}: {error.strerror}")


def address_of(name: object) -> Address:
    """An address as `getsockname()` and `accept()` give it, with an abstract name as text."""
    if isinstance(name, bytes):
        return "@" + name[1:].decode("utf-8", "surrogateescape")
    address: Address = name  # type: ignore[assignment]
    return address


def format_address(address: Address) -> str:
    """`host:port` or `unix:path`. An IPv6 address is in brackets, with its zone (RFC 4007 section 11)."""
    if isinstance(address, str):
        return f"unix:{address}"
    host, port = address[:2]
    if len(address) == 4 and address[3]:
        host += f"%{_zone(address[3])}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _zone(index: int) -> str:
    """What an interface is called."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return str(index)


def url_of(address: Address, scheme: str) -> str:
    """`scheme://host:port`, or `unix:path`."""
    where = format_address(address)
    return where if isinstance(address, str) else f"{scheme}://{where}"


class Listener:
    """One listening socket, accepted from while it is resumed.

    The accepting is ours rather than `loop.create_server`'s: that can neither pause without closing
    the socket, nor keep to a connection limit exactly.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listening: ListeningSocket,
        make_room: Callable[[], bool],
        on_accept: Callable[[socket.socket, Address, Listener], bool],
        on_error: Callable[[OSError], object],
    ) -> None:
        """`make_room()` says whether somebody who waits may be accepted; `on_accept(sock, address, listener)`
        takes over who was, and says whether there is room for another; `on_error` is told why none could be.
        """
        self._loop = loop
        self._listening = listening
        self._make_room = make_room
        self._on_accept = on_accept
        self._on_error = on_error
        self._accepting = False
        self._task: asyncio.Task[None] | None = None  # that accepts, where the loop watches no descriptor
        self.address = listening.address
        self.redirects = listening.redirects

    def resume(self) -> None:
        """Accept what comes."""
        if self._accepting:
            return
        self._accepting = True
        try:
            self._loop.add_reader(self._listening.sock.fileno(), self._accept)
        except NotImplementedError:  # Windows' proactor
            self._task = self._loop.create_task(self._accept_by_loop())

    def pause(self) -> None:
        """Leave new connections to the system's backlog."""
        if not self._accepting:
            return
        self._accepting = False
        if self._task is None:
            self._loop.remove_reader(self._listening.sock.fileno())
        else:
            self._task.cancel()
            self._task = None

    def close(self) -> None:
        """Accept no more, and close the socket."""
        self.pause()
        self._listening.close()

    def accept_waiting(self, limit: int) -> int:
        """Accept those that have connected already, at most `limit`. Returns how many that were."""
        for count in range(limit):
            if self._accept_one() is None:
                return count
        return limit

    def _accept(self) -> None:
        """Somebody waits."""
        if self._make_room():
            for _ in range(_BATCH):
                if not self._accept_one():
                    return

    def _accept_one(self) -> bool | None:
        """Returns whether there is room for another; None if nobody could be accepted."""
        try:
            sock, address = self._listening.sock.accept()
        except ConnectionAbortedError:
            return True  # somebody else may wait
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            self._on_error(error)
            return None
        sock.setblocking(False)
        return self._on_accept(sock, address_of(address), self)

    async def _accept_by_loop(self) -> None:
        """Accept one at a time. That somebody waits is not known here, so nobody is asked to make room."""
        has_room = True
        while has_room:
            try:
                sock, address = await self._loop.sock_accept(self._listening.sock)
            except OSError as error:
                self._on_error(error)
                return
            has_room = self._on_accept(sock, address_of(address), self)
        self._accepting = False
        self._task = None
