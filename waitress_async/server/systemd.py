"""What systemd passes in, and what it wants to be told: sd_listen_fds(3) and sd_notify(3). Any thread."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from typing import Final

from waitress_async.server.unix_sockets import unix_address

# SD_LISTEN_FDS_START of sd_listen_fds(3).
_FIRST: Final = 3

# More descriptors than this are not believed.
_MOST: Final = 1024

# Characters of a descriptor's name (FileDescriptorName= of systemd.socket(5)).
_LONGEST_NAME: Final = 255

# Characters of an assignment. systemd drops a datagram of more than 4,096 bytes.
_LONGEST_ASSIGNMENT: Final = 500

# Digits of a number: none of them is wider than 64 bits.
_DIGITS: Final = 20


def listen_fds(environ: Mapping[str, str], pid: int) -> list[tuple[str, int]]:
    """The (name, descriptor) pairs that were passed to the process `pid`, none if they are for another one.

    A descriptor without a name is "unknown". The descriptors are not looked at: they may be closed, or no
    sockets, and are inherited by child processes until the caller changes that.

    Raises ValueError, with the reason, for variables that are malformed.
    """
    if "LISTEN_PID" not in environ or "LISTEN_FDS" not in environ:
        return []
    if _number(environ, "LISTEN_PID") != pid:
        return []
    count = _number(environ, "LISTEN_FDS")
    if not 1 <= count <= _MOST:
        raise ValueError(f"LISTEN_FDS is {count}, and must be between 1 and {_MOST}")
    names = environ["LISTEN_FDNAMES"].split(":") if "LISTEN_FDNAMES" in environ else []
    if len(names) > count:
        raise ValueError(f"LISTEN_FDNAMES has {len(names)} names for {count} descriptors")
    for name in names:
        if len(name) > _LONGEST_NAME or not (name.isascii() and name.isprintable()):
            raise ValueError(f"LISTEN_FDNAMES holds a malformed name: {name[:_LONGEST_NAME]!a}")
    names += [""] * (count - len(names))
    return [(name or "unknown", descriptor) for descriptor, name in enumerate(names, _FIRST)]


class Notifier:
    """Tells the service manager about this process (sd_notify(3)).

    `watchdog_interval` is the time between two calls of `feed_watchdog`, in seconds; None if nobody watches.
    """

    def __init__(self, address: bytes, watchdog_interval: float | None) -> None:
        """`address` is the manager's, as `unix_address` gives it."""
        self._address = address
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.setblocking(False)
        self.watchdog_interval = watchdog_interval

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], pid: int) -> Notifier | None:
        """None if there is no manager, or one that is spoken to by vsock, as in virtual machines.

        Raises ValueError, with the reason, for variables that are malformed.
        """
        path = environ.get("NOTIFY_SOCKET", "")
        if not path or path.startswith("vsock") or not hasattr(socket, "AF_UNIX"):
            return None
        if not path.startswith(("/", "@")):
            raise ValueError("NOTIFY_SOCKET is neither an absolute path nor an abstract name")
        try:
            address = unix_address(path)
        except OSError as error:
            raise ValueError(f"NOTIFY_SOCKET cannot be used: {error.strerror}") from error
        return cls(address, _watchdog_interval(environ, pid))

    def notify(self, *assignments: str) -> None:
        """Send assignments such as "READY=1" in one datagram.

        In each, what cannot be printed, such as line ends, becomes a space, and only 500 characters are sent.
        It does not wait and does not fail: a manager that is gone, or reads nothing, is not told.
        """
        try:
            self._sock.sendto("\n".join(map(_one_line, assignments)).encode(), self._address)
        except OSError:
            pass

    def ready(self, status: str) -> None:
        """The service has started, or has reloaded its configuration."""
        self.notify("READY=1", f"STATUS={status}")

    def reloading(self, status: str) -> None:
        """A reload has begun; `ready` ends it. The time is for `Type=notify-reload` (systemd.service(5))."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self.notify("RELOADING=1", f"MONOTONIC_USEC={now}", f"STATUS={status}")

    def stopping(self, status: str) -> None:
        """The service has begun to stop."""
        self.notify("STOPPING=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        """What the service does now, for people."""
        self.notify(f"STATUS={text}")

    def feed_watchdog(self) -> None:
        """The service is alive."""
        self.notify("WATCHDOG=1")

    def close(self) -> None:
        """Tell nothing any more."""
        self._sock.close()


def _watchdog_interval(environ: Mapping[str, str], pid: int) -> float | None:
    """Half of what the watchdog allows, as sd_watchdog_enabled(3) recommends, in seconds."""
    if "WATCHDOG_USEC" not in environ:
        return None
    if "WATCHDOG_PID" in environ and _number(environ, "WATCHDOG_PID") != pid:
        return None
    allowed = _number(environ, "WATCHDOG_USEC")
    if not allowed:
        raise ValueError("WATCHDOG_USEC is 0")
    return allowed / 2_000_000


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ[name]
    if len(text) > _DIGITS or not (text.isascii() and text.isdigit()):
        raise ValueError(f"{name} is {text[:40]!a}, which is not a number")
    return int(text)


def _one_line(assignment: str) -> str:
    cut = assignment[:_LONGEST_ASSIGNMENT]
    return "".join(character if character.isprintable() else " " for character in cut)
