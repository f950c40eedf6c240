"""What settings exclude or need each other, and checks that a type and a range cannot say.

The texts that waitress has are its own, for who looks for them.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from waitress_async.errors import SettingsError

# Whoever gives one of the left says where to listen, and may not also give one of the right.
EXCLUSIONS: Final[tuple[tuple[str, frozenset[str], str], ...]] = (
    ("listen", frozenset({"host", "port"}), "host or port may not be set if listen is set."),
    ("listen", frozenset({"sockets"}), "socket may not be set if listen is set."),
    ("sockets", frozenset({"host", "port"}), "host or port may not be set if sockets is set."),
    ("sockets", frozenset({"unix_socket"}), "unix_socket may not be set if sockets is set"),
    ("unix_socket", frozenset({"host", "port"}), "unix_socket may not be set if host or port is set"),
    ("unix_socket", frozenset({"listen"}), "unix_socket may not be set if listen is set"),
)

# All that say where to listen.
LISTENING: Final = frozenset(name for one, others, _ in EXCLUSIONS for name in (one, *others))

PROXY_HEADERS: Final = frozenset(
    {
        "forwarded",
        "x-forwarded-by",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
    }
)

_PRINTABLE: Final = re.compile(r"[!-~\xa1-\xff](?:[ -~\xa1-\xff]*[!-~\xa1-\xff])?")


def check_exclusions(names: Collection[str]) -> None:
    """Raise SettingsError if two of `names` exclude each other."""
    for one, others, message in EXCLUSIONS:
        if one in names and not others.isdisjoint(names):
            raise SettingsError(message)


def excluded_by(names: Collection[str]) -> set[str]:
    """The settings that may not stand beside one of `names`."""
    excluded: set[str] = set()
    for one, others, _ in EXCLUSIONS:
        if one in names:
            excluded |= others
        if not others.isdisjoint(names):
            excluded.add(one)
    return excluded


def check_one_place(listen: object, unix_socket: object, sockets: object) -> None:
    """As `check_exclusions`, where only values are known. Host and port always have one."""
    values = {"listen": listen, "unix_socket": unix_socket, "sockets": sockets}
    check_exclusions([name for name, value in values.items() if value])


def check_families(ipv4: bool, ipv6: bool) -> None:
    if not (ipv4 or ipv6):
        raise SettingsError("ipv4, ipv6: one of the two must be on")


def check_proxy_settings(proxy: tuple[str, ...], count: int | None, headers: tuple[str, ...]) -> None:
    if count is not None and not proxy:
        raise SettingsError("trusted_proxy_count has no meaning without setting trusted_proxy")
    if headers and not proxy:
        raise SettingsError("trusted_proxy_headers has no meaning without setting trusted_proxy")


def check_proxy_headers(headers: tuple[str, ...]) -> None:
    names = {header.lower() for header in headers}
    if unknown := names - PROXY_HEADERS:
        raise ValueError(
            f"Received unknown trusted_proxy_headers value ({', '.join(sorted(unknown))}) "
            f"expected one of {', '.join(sorted(PROXY_HEADERS))}"
        )
    if "forwarded" in names and len(names) > 1:
        raise ValueError(
            "The Forwarded proxy header and the X-Forwarded-{By,Host,Proto,Port,For} headers are mutually "
            "exclusive. Can't trust both!"
        )


def check_tls(
    certfile: str | None, ssl_context: object, *, ca_certs: str | None, client_verify: str, **others: object
) -> None:
    """`others`, as those before them, belong to `certfile`."""
    values = {**others, "ca_certs": ca_certs, "client_verify": client_verify != "none"}
    given = [name for name, value in values.items() if value]
    if ssl_context is not None and (certfile or given):
        raise SettingsError(f"{', '.join(given) or 'certfile'} may not be set if ssl_context is set")
    if given and not (certfile or ssl_context):
        raise SettingsError(f"{', '.join(given)} has no meaning unless certfile is set")
    if ca_certs and client_verify == "none":
        raise SettingsError("ca_certs has no meaning without setting client_verify")
    if not ca_certs and client_verify != "none":
        raise SettingsError(f"client_verify cannot be {client_verify} without setting ca_certs")


def check_lifespan(lifespan: object) -> None:
    if lifespan in ("auto", "on", "off"):
        raise ValueError(f"{lifespan!r} is uvicorn's, for ASGI apps: here it is a function, module:object")


def check_health_path(path: str | None) -> None:
    if path and (not path.startswith("/") or "?" in path):
        raise ValueError(f"{path!r} is no path: it begins with a slash, and has no query")


def check_health(live: str | None, ready: str | None) -> None:
    if live is not None and live == ready:
        raise SettingsError(f"live_path, ready_path: {live} cannot be both")


def check_printable(text: str | None) -> None:
    # These go into response headers and into environ, where a control character can split a line.
    if text is not None and not _PRINTABLE.fullmatch(text):
        raise ValueError(f"{text!r} is not printable Latin-1 text")


def check_prefixes(prefixes: tuple[str, ...]) -> None:
    for prefix in prefixes:
        if not prefix.startswith("/"):
            raise ValueError(f"{prefix!r} does not begin with a slash")


def check_prefix(prefix: str) -> None:
    if prefix:
        check_printable(prefix)
