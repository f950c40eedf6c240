"""Where a server can be told to listen: the entries of `listen`."""

from __future__ import annotations

import re
import socket
from typing import Final, NamedTuple

from waitress_async.errors import SettingsError


class InternetPlace(NamedTuple):
    """A host and a port to bind."""

    host: str  # a name, or an address without brackets; * is every address
    port: int


class UnixPlace(NamedTuple):
    """A unix socket to make."""

    path: str  # @name is an abstract one


class DescriptorPlace(NamedTuple):
    """A socket that this process was started with."""

    number: int


class SystemdPlace(NamedTuple):
    """The sockets that systemd has passed."""

    name: str  # its FileDescriptorName; empty for all of them


Place = InternetPlace | UnixPlace | DescriptorPlace | SystemdPlace

_INTERNET: Final = re.compile(
    r"(?:\[(?P<ipv6>[^\x00-\x20\x7f\[\]]+)\]|(?P<name>[^\x00-\x20\x7f/:\[\]]+))(?::(?P<port>[0-9]{1,5}))?"
)
_PORT_ALONE: Final = re.compile(r":?([0-9]{1,5})")
_DESCRIPTOR: Final = re.compile(r"fd://([0-9]{1,9})")
_SYSTEMD: Final = re.compile(r"systemd://([!-9;-~]{0,255})")
_UNIX: Final = "unix:"


def parse_listen(entry: str, default_port: int) -> Place:
    """What an entry of `listen` means, without asking the name service.

    `entry` is `host`, `host:port`, `[ipv6]`, `[ipv6]:port`, `unix:/path`, `unix:@abstract`, `fd://number`,
    `systemd://` or `systemd://name`; `default_port` is the port of a host that comes without one.

    Raises SettingsError for anything else.
    """
    if entry.startswith(_UNIX):
        check_unix_path(path := entry.removeprefix(_UNIX))
        return UnixPlace(path)
    if match := _DESCRIPTOR.fullmatch(entry):
        return DescriptorPlace(int(match[1]))
    if match := _SYSTEMD.fullmatch(entry):
        return SystemdPlace(match[1])
    match = _INTERNET.fullmatch(entry)
    port = int(match["port"] or default_port) if match else -1
    if match is None or port > 65535 or not _is_host(match):
        port_alone = _PORT_ALONE.fullmatch(entry)
        hint = f"; for a port alone write *:{port_alone[1]}, or set port instead" if port_alone else ""
        raise SettingsError(
            f"Invalid host/port specified. {entry!r} is not HOST, HOST:PORT, [IPV6], [IPV6]:PORT, "
            f"unix:PATH, fd://NUMBER or systemd://NAME{hint}"
        )
    return InternetPlace(match["ipv6"] or match["name"], port)


def as_listen(host: str) -> str:
    """The `listen` entry for `host`, which may be an IPv6 address with or without brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def check_host(host: str) -> None:
    """Raise ValueError if `host` is neither an address nor a name."""
    match = _INTERNET.fullmatch(as_listen(host))
    if match is None or match["port"] or not _is_host(match):
        raise ValueError(f"Invalid host/port specified. {host!r} is not an address or a host name")


def check_listen(entries: tuple[str, ...]) -> None:
    """Raise SettingsError, a ValueError, for an entry of `listen` that is none."""
    for entry in entries:
        parse_listen(entry, 0)


def check_unix_path(path: str | None) -> None:
    """Raise SettingsError, a ValueError, for what cannot be the path of a socket."""
    if path is not None and (not path.removeprefix("@") or "\0" in path):
        raise SettingsError(f"{path!r} is not a path, nor @ and a name")


def _is_host(match: re.Match[str]) -> bool:
    try:
        if match["ipv6"]:
            address, _, _zone = match["ipv6"].partition("%")
            socket.inet_pton(socket.AF_INET6, address)
        else:
            match["name"].encode("idna")  # as getaddrinfo() will do
            return not match["name"].isdigit()  # 8000 would be 0.0.31.64
    except (OSError, ValueError):
        return False
    return True
