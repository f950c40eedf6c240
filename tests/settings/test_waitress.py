"""All settings of waitress 3.0.2, and what it refuses."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterator
from itertools import combinations
from typing import Any, Literal

import pytest

from tests.settings.samples import BY_NAME
from waitress_async.errors import SettingsError
from waitress_async.settings import DECLARATIONS, Settings
from waitress_async.settings.casts import CommaList, Mode, Prefix
from waitress_async.settings.rules import PROXY_HEADERS
from waitress_async.wsgi.proxy_headers import PROXY_FIELDS

# Name, cast and default of each, as waitress has them.
WAITRESS: dict[str, tuple[str, object]] = {
    "host": ("str", "0.0.0.0"),
    "port": ("int", 8080),
    "ipv4": ("bool", True),
    "ipv6": ("bool", True),
    "listen": ("list", ["0.0.0.0:8080"]),
    "threads": ("int", 4),
    "trusted_proxy": ("str if true", None),
    "trusted_proxy_count": ("int", None),
    "trusted_proxy_headers": ("set", set()),
    "log_untrusted_proxy_headers": ("bool", False),
    "clear_untrusted_proxy_headers": ("bool", True),
    "url_scheme": ("str", "http"),
    "url_prefix": ("prefix", ""),
    "backlog": ("int", 1024),
    "recv_bytes": ("int", 8192),
    "send_bytes": ("int", 1),
    "outbuf_overflow": ("int", 1_048_576),
    "outbuf_high_watermark": ("int", 16_777_216),
    "inbuf_overflow": ("int", 524_288),
    "connection_limit": ("int", 100),
    "cleanup_interval": ("int", 30),
    "channel_timeout": ("int", 120),
    "log_socket_errors": ("bool", True),
    "max_request_header_size": ("int", 262_144),
    "max_request_body_size": ("int", 1_073_741_824),
    "expose_tracebacks": ("bool", False),
    "ident": ("str if true", "waitress"),
    "asyncore_loop_timeout": ("int", 1),
    "asyncore_use_poll": ("bool", False),
    "unix_socket": ("str", None),
    "unix_socket_perms": ("octal", 0o600),
    "sockets": ("sockets", []),
    "channel_request_lookahead": ("int", 0),
    "server_name": ("str", "waitress.invalid"),
}

TYPES: dict[str, object] = {
    "str": str,
    "str if true": str | None,
    "int": int,
    "bool": bool,
    "list": tuple[str, ...],
    "set": tuple[str, ...],
    "octal": Mode,
    "prefix": Prefix,
    "sockets": tuple[socket.socket, ...],
}

# What each cast makes of what: the same here and there.
CASTS: dict[str, list[tuple[object, object]]] = {
    "str": [("example.org", "example.org")],
    "str if true": [("*", "*"), ("", None), (None, None)],
    "int": [("5", 5), (" 5 ", 5), (5, 5), (5.0, 5)],
    "bool": [
        *[(text, True) for text in ("t", "true", "y", "yes", "on", "1", "TRUE", " Yes ", 1, True)],
        *[(text, False) for text in ("f", "false", "n", "no", "off", "0", "Off", "", 0, False, None)],
    ],
    "list": [("a:1 b\n c ", ["a:1", "b", "c"]), (["a:1", "b c"], ["a:1", "b", "c"]), ("", []), ((), [])],
    "set": [("forwarded", ["forwarded"]), ({"forwarded"}, ["forwarded"]), (" ", [])],
    "octal": [("600", 0o600), ("0o600", 0o600), ("0777", 0o777)],
    "prefix": [("/a", "/a"), ("a/", "/a"), (" //a/b// ", "/a/b"), ("", "")],
    "sockets": [([], [])],
}

# On purpose: a type that takes more, or less, than waitress's.
OTHER_TYPES: dict[str, object] = {
    "trusted_proxy": CommaList,  # networks, and several of them
    "trusted_proxy_headers": CommaList,  # with commas between them, as they are told elsewhere
    "trusted_proxy_count": int | None,  # that nothing is set can be said
    "url_scheme": Literal["http", "https"],
    "channel_timeout": float,
    "unix_socket": str | None,  # likewise
}

# On purpose: a default that is better here, or says in another way that nothing is set.
OTHER_DEFAULTS: dict[str, object] = {
    "ident": "waitress_async",
    "connection_limit": 0,  # as many as there can be descriptors
    "listen": (),  # which means host and port, whose defaults are the same address
    "trusted_proxy": (),
    "trusted_proxy_headers": (),
    "sockets": (),
}


CAST_CASES = [
    (name, given, expected)
    for name, (cast, _) in WAITRESS.items()
    for given, expected in CASTS[cast]
    if name != "url_scheme"  # which takes two texts only
]


@pytest.fixture
def bound() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def test_waitress_has_34_and_all_are_here() -> None:
    assert len(WAITRESS) == 34
    assert WAITRESS.keys() <= {declaration.name for declaration in DECLARATIONS}


@pytest.mark.parametrize("name", WAITRESS)
def test_type_and_default_are_those_of_waitress(name: str) -> None:
    cast, default = WAITRESS[name]
    assert BY_NAME[name].type == OTHER_TYPES.get(name, TYPES[cast])
    assert BY_NAME[name].default == OTHER_DEFAULTS.get(name, default)
    assert getattr(Settings(), name) == OTHER_DEFAULTS.get(name, default)


def test_only_what_differs_is_told_to_differ() -> None:
    assert all(TYPES[WAITRESS[name][0]] != other for name, other in OTHER_TYPES.items())
    assert all(WAITRESS[name][1] != other for name, other in OTHER_DEFAULTS.items())


@pytest.mark.parametrize(("name", "given", "expected"), CAST_CASES)
def test_a_cast_is_that_of_waitress(name: str, given: object, expected: object) -> None:
    value: Any = BY_NAME[name].convert(given)
    if name == "trusted_proxy":
        expected = [expected] if expected else []
    assert (list(value) if isinstance(value, tuple) else value) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"listen": "a:1", "host": "b"}, "host or port may not be set if listen is set."),
        ({"listen": "a:1", "port": 8080}, "host or port may not be set if listen is set."),
        ({"listen": "a:1", "sockets": []}, "socket may not be set if listen is set."),
        ({"sockets": [], "host": "b"}, "host or port may not be set if sockets is set."),
        ({"sockets": [], "port": 1}, "host or port may not be set if sockets is set."),
        ({"sockets": [], "unix_socket": "/a"}, "unix_socket may not be set if sockets is set"),
        ({"unix_socket": "/a", "host": "b"}, "unix_socket may not be set if host or port is set"),
        ({"unix_socket": "/a", "port": 1}, "unix_socket may not be set if host or port is set"),
        ({"unix_socket": "/a", "listen": "a:1"}, "unix_socket may not be set if listen is set"),
        ({"unix_socket": None, "host": "b"}, "unix_socket may not be set if host or port is set"),
        (
            {"listen": "a:1", "sockets": [], "unix_socket": "/a", "host": "b"},
            "host or port may not be set if listen is set.",
        ),
        ({"sockets": [], "unix_socket": "/a", "host": "b"}, "host or port may not be set if sockets is set."),
        ({"trusted_proxy_count": 2}, "trusted_proxy_count has no meaning without setting trusted_proxy"),
        (
            {"trusted_proxy_count": 2, "trusted_proxy": ""},
            "trusted_proxy_count has no meaning without setting trusted_proxy",
        ),
        (
            {"trusted_proxy_headers": "forwarded"},
            "trusted_proxy_headers has no meaning without setting trusted_proxy",
        ),
        ({"x": 1}, "Unknown adjustment 'x'"),
    ],
)
def test_settings_that_exclude_or_need_each_other(options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.from_keywords(**options)
    assert str(raised.value) == message


def test_the_ways_to_listen_exclude_each_other_but_for_host_and_port() -> None:
    values: dict[str, object] = {"host": "a", "port": 1, "listen": "a", "unix_socket": "/a", "sockets": ()}
    for size in range(len(values) + 1):
        for names in combinations(values, size):
            options = {name: values[name] for name in names}
            if len(names) < 2 or set(names) == {"host", "port"}:
                Settings.from_keywords(**options)
            else:
                with pytest.raises(SettingsError, match=" may not be set if "):
                    Settings.from_keywords(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"trusted_proxy": "*", "trusted_proxy_headers": "x-real-ip forwarded"},
            "trusted_proxy_headers: Received unknown trusted_proxy_headers value (x-real-ip) expected one of "
            "forwarded, x-forwarded-by, x-forwarded-for, x-forwarded-host, x-forwarded-port, "
            "x-forwarded-proto",
        ),
        (
            {"trusted_proxy": "*", "trusted_proxy_headers": "Forwarded x-forwarded-for"},
            "trusted_proxy_headers: The Forwarded proxy header and the X-Forwarded-{By,Host,Proto,Port,For} "
            "headers are mutually exclusive. Can't trust both!",
        ),
        (
            {"host": "a b"},
            "host: Invalid host/port specified. 'a b' is not an address or a host name",
        ),
        (
            {"listen": "a:b"},
            "listen: Invalid host/port specified. 'a:b' is not HOST, HOST:PORT, [IPV6], [IPV6]:PORT, "
            "unix:PATH, fd://NUMBER or systemd://NAME",
        ),
    ],
)
def test_values_that_waitress_refuses_too(options: dict[str, object], message: str) -> None:
    """With its text, and what tells more."""
    with pytest.raises(SettingsError) as raised:
        Settings.from_keywords(**options)
    assert str(raised.value) == message


@pytest.mark.parametrize(("one", "other"), [*combinations(["listen", "unix_socket", "sockets"], 2)])
def test_the_constructor_takes_one_place_only(one: str, other: str, bound: socket.socket) -> None:
    """Values are all that it knows, so those that are empty are not given."""
    given: dict[str, Any] = {"listen": ("a:1",), "unix_socket": "/a", "sockets": (bound,)}
    empty: dict[str, Any] = {"listen": (), "unix_socket": None, "sockets": ()}
    with pytest.raises(SettingsError, match=f"(?=.*{one[:6]})(?=.*{other[:6]}).* may not be set if "):
        Settings(**{one: given[one], other: given[other]})
    with pytest.raises(SettingsError, match=" may not be set if "):
        dataclasses.replace(Settings(**{one: given[one]}), **{other: given[other]})
    Settings(**{one: given[one], other: empty[other]}, port=81)


def test_the_proxy_headers_are_those_that_are_understood() -> None:
    """They are named by the settings and by what reads them, neither of which imports the other."""
    assert set(PROXY_HEADERS) == set(PROXY_FIELDS.values())
    for header, key in [(header, key) for key, header in PROXY_FIELDS.items()]:
        assert key == f"HTTP_{header.upper().replace('-', '_')}"


def test_sockets_must_be_streams(bound: socket.socket) -> None:
    assert Settings.from_keywords(sockets=[bound]).sockets == (bound,)
    with pytest.raises(SettingsError, match=r"^sockets: .* is not a list of sockets$"):
        Settings.from_keywords(sockets=bound)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        pytest.raises(SettingsError, match=r"^sockets: Only Internet or UNIX stream sockets may be used\. "),
    ):
        Settings.from_keywords(sockets=[bound, datagrams])


def test_what_waitress_drops_from_sockets_is_refused(bound: socket.socket) -> None:
    with pytest.raises(SettingsError, match=r"^sockets: 3 is not a socket$"):
        Settings.from_keywords(sockets=[bound, 3])


def test_sockets_may_be_mixed(bound: socket.socket) -> None:
    """waitress refuses that."""
    with socket.socket(socket.AF_UNIX) as unix:
        assert Settings(sockets=(bound, unix)).sockets == (bound, unix)


def test_one_family_at_least() -> None:
    """waitress takes both off for both on."""
    with pytest.raises(SettingsError, match=r"^ipv4, ipv6: one of the two must be on$"):
        Settings.from_keywords(ipv4=False, ipv6="no")


@pytest.mark.parametrize("root", ["/", "//", " / "])
def test_a_url_prefix_of_slashes_is_none(root: str) -> None:
    """waitress makes SCRIPT_NAME a slash, and PEP 3333 says that it is empty then."""
    assert Settings.from_keywords(url_prefix=root).url_prefix == ""


def test_what_does_nothing_is_told() -> None:
    names = [
        "recv_bytes", "send_bytes", "cleanup_interval", "log_socket_errors", "asyncore_loop_timeout",
        "asyncore_use_poll", "channel_request_lookahead",
    ]  # fmt: skip
    assert [declaration.name for declaration in DECLARATIONS if declaration.without_effect] == names
    assert Settings().without_effect == []
    assert Settings.from_keywords(send_bytes="18000", recv_bytes=8192).without_effect == ["send_bytes"]


def test_with_a_trusted_proxy_one_header_is_believed() -> None:
    assert Settings().believed_headers == frozenset()
    assert Settings.from_keywords(trusted_proxy="*").believed_headers == {"x-forwarded-proto"}
    given = Settings.from_keywords(trusted_proxy="*", trusted_proxy_headers="X-Forwarded-For")
    assert given.believed_headers == {"x-forwarded-for"}
