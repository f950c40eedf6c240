from __future__ import annotations

import dataclasses
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waitress_async.errors import SettingsError
from waitress_async.settings import (
    DECLARATIONS,
    Declaration,
    Settings,
    parse_listen,
    settings_table,
)

# A text for each setting, and the value it stands for: never the default.
SAMPLES: dict[str, tuple[str, object]] = {
    "host": ("::1", "::1"),
    "listen": ("localhost:80 [::1]:0\n*", ("localhost:80", "[::1]:0", "*")),
    "ident": ("a server", "a server"),
    "server_name": ("example.org", "example.org"),
    "url_scheme": ("https", "https"),
    "channel_timeout": ("2.5", 2.5),
    "graceful_timeout": ("0", 0.0),
    "expose_tracebacks": ("true", True),
    "loop": ("asyncio", "asyncio"),
    "spare_threads": ("3", 3),
    "tmp_dir": ("/var/tmp", "/var/tmp"),
    "stream_request_body": ("true", True),
    "stream_request_prefix": ("/up /files", ("/up", "/files")),
} | {d.name: (f" {d.default + 1}", d.default + 1) for d in DECLARATIONS if type(d.default) is int}

TEXTUAL = [d for d in DECLARATIONS if not d.keyword_only]
NUMBERS = [d for d in DECLARATIONS if d.type in (int, float)]

by_name = pytest.mark.parametrize("declaration", DECLARATIONS, ids=lambda d: d.name)
textual_by_name = pytest.mark.parametrize("declaration", TEXTUAL, ids=lambda d: d.name)
numbers_by_name = pytest.mark.parametrize("declaration", NUMBERS, ids=lambda d: d.name)


@pytest.fixture
def bound() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@by_name
def test_default_passes_its_own_declaration(declaration: Declaration) -> None:
    assert declaration.convert(declaration.default) == declaration.default
    assert getattr(Settings(), declaration.name) == declaration.default
    assert declaration.help.endswith(".")
    assert declaration.used_by


@textual_by_name
def test_keyword(declaration: Declaration) -> None:
    _, value = SAMPLES[declaration.name]
    settings = dataclasses.asdict(Settings.from_keywords(**{declaration.name: value}))
    assert settings == dataclasses.asdict(Settings()) | {declaration.name: value}
    assert value != declaration.default


@textual_by_name
def test_string(declaration: Declaration) -> None:
    text, value = SAMPLES[declaration.name]
    result = getattr(Settings.from_keywords(**{declaration.name: text}), declaration.name)
    assert result == value
    assert type(result) is type(value)


@by_name
def test_a_value_of_a_wrong_type_names_the_setting(declaration: Declaration) -> None:
    with pytest.raises(SettingsError, match=f"^{declaration.name}: <object object at .*> is n"):
        Settings.from_keywords(**{declaration.name: object()})


@numbers_by_name
def test_a_bool_is_not_a_number(declaration: Declaration) -> None:
    with pytest.raises(SettingsError, match=f"^{declaration.name}: True is not a (whole )?number$"):
        Settings.from_keywords(**{declaration.name: True})


@numbers_by_name
def test_numbers_have_a_minimum(declaration: Declaration) -> None:
    assert declaration.minimum is not None
    below = declaration.minimum - 1
    with pytest.raises(SettingsError, match=rf"^{declaration.name}: {below}(\.0)? is less than {below + 1}$"):
        Settings.from_keywords(**{declaration.name: below})
    Settings.from_keywords(**{declaration.name: str(declaration.minimum)})


@pytest.mark.parametrize("declaration", [d for d in NUMBERS if d.maximum], ids=lambda d: d.name)
def test_some_numbers_have_a_maximum(declaration: Declaration) -> None:
    assert declaration.maximum is not None
    with pytest.raises(SettingsError, match=f"^{declaration.name}: .* is more than {declaration.maximum}$"):
        Settings.from_keywords(**{declaration.name: declaration.maximum + 1})
    Settings.from_keywords(**{declaration.name: declaration.maximum})


@pytest.mark.parametrize("text", ["four", "", "4.0", "0x10", "1e3", None, 4.0, b"4"])
def test_what_is_not_a_whole_number(text: object) -> None:
    with pytest.raises(SettingsError, match=f"^threads: {re.escape(repr(text))} is not a whole number$"):
        Settings.from_keywords(threads=text)


@pytest.mark.parametrize("text", ["soon", "", "nan", "inf", float("inf"), 10**400, None])
def test_what_is_not_a_number(text: object) -> None:
    with pytest.raises(SettingsError, match=r"^channel_timeout: .* is not a number$"):
        Settings.from_keywords(channel_timeout=text)


@pytest.mark.parametrize("text", ["t", "true", "y", "yes", "on", "1", "TRUE", " yes ", 1, True])
def test_true(text: object) -> None:
    assert Settings.from_keywords(expose_tracebacks=text).expose_tracebacks is True


@pytest.mark.parametrize("text", ["f", "false", "n", "no", "off", "0", "Off", "", 0, False, None])
def test_false(text: object) -> None:
    assert Settings.from_keywords(expose_tracebacks=text).expose_tracebacks is False


def test_neither_true_nor_false() -> None:
    with pytest.raises(SettingsError, match=r"^expose_tracebacks: 'maybe' is neither true nor false$"):
        Settings.from_keywords(expose_tracebacks="maybe")


def test_choices() -> None:
    with pytest.raises(SettingsError, match=r"^loop: 'trio' is not one of auto, uvloop, asyncio$"):
        Settings.from_keywords(loop="trio")


@pytest.mark.parametrize("text", ["a\r\nSet-Cookie: b", "a\x00", " a", "a ", "a\tb", "\u20ac", "\x85"])
@pytest.mark.parametrize("name", ["ident", "server_name"])
def test_what_cannot_stand_in_a_header(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name}: .* is not printable Latin-1 text$"):
        Settings.from_keywords(**{name: text})


@pytest.mark.parametrize("nothing", ["", None])
def test_no_ident(nothing: str | None) -> None:
    assert Settings.from_keywords(ident=nothing).ident is None


def test_the_server_name_is_not_empty() -> None:
    with pytest.raises(SettingsError, match=r"^server_name: ''"):
        Settings.from_keywords(server_name="")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("thread", " (did you mean 'threads'?)"),
        ("max_request_bodysize", " (did you mean 'max_request_body_size'?)"),
        ("x", ""),
    ],
)
def test_unknown_names(name: str, hint: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.from_keywords(**{name: 1})
    assert str(raised.value) == f"Unknown adjustment '{name}'{hint}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"listen": "a:1", "host": "b"}, "host or port may not be set if listen is set."),
        ({"listen": "a:1", "port": 8080}, "host or port may not be set if listen is set."),
        ({"listen": "a:1", "sockets": []}, "sockets may not be set if listen is set."),
        ({"sockets": [], "host": "b"}, "host or port may not be set if sockets is set."),
        ({"sockets": [], "port": 1}, "host or port may not be set if sockets is set."),
    ],
)
def test_settings_that_exclude_each_other(options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.from_keywords(**options)
    assert str(raised.value) == message


def test_errors_are_value_errors() -> None:
    assert issubclass(SettingsError, ValueError)


def test_the_constructor_checks_too() -> None:
    with pytest.raises(SettingsError, match=r"^threads: 0 is less than 1$"):
        Settings(threads=0)
    with pytest.raises(SettingsError, match=r"^threads: 0 is less than 1$"):
        dataclasses.replace(Settings(), threads=0)


def test_settings_do_not_change() -> None:
    settings: Any = Settings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.threads = 8
    assert not hasattr(settings, "__dict__")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("localhost", ("localhost", 8080)),
        ("localhost:0", ("localhost", 0)),
        ("127.0.0.1:65535", ("127.0.0.1", 65535)),
        ("*", ("*", 8080)),
        ("*:80", ("*", 80)),
        ("[::1]", ("::1", 8080)),
        ("[::]:80", ("::", 80)),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80)),
        ("[::ffff:127.0.0.1]:80", ("::ffff:127.0.0.1", 80)),
        ("bücher.example:80", ("bücher.example", 80)),
    ],
)
def test_listen_addresses(entry: str, expected: tuple[str, int]) -> None:
    assert parse_listen(entry, 8080) == expected
    assert Settings.from_keywords(listen=[entry]).addresses == (expected,)


@pytest.mark.parametrize(
    "entry",
    [
        "",
        ":80",
        "localhost:",
        "localhost:http",
        "localhost:-1",
        "localhost:65536",
        "localhost:٨٠",
        "localhost:080808",
        "::1",
        "::1:80",
        "[::1",
        "[]:80",
        "[localhost]:80",
        "[::1%\x00]:80",
        "[::1]80",
        "http://localhost:80",
        "unix:/run/app",
        "/run/app",
        "a..b:80",
        "a" * 64,
        "a\x00b",
        "a b",
    ],
)
def test_what_is_not_a_listen_address(entry: str) -> None:
    with pytest.raises(SettingsError, match=r"^Invalid host/port specified\. .* is not HOST, HOST:PORT"):
        parse_listen(entry, 8080)


def test_a_bad_listen_entry_is_found_at_once() -> None:
    with pytest.raises(SettingsError, match=r"^listen: Invalid host/port specified\. 'b:c' is not"):
        Settings.from_keywords(listen="a:1 b:c")


@given(address=st.ip_addresses(), port=st.integers(0, 65535))
def test_any_ip_address(address: object, port: int) -> None:
    settings = Settings.from_keywords(host=str(address), port=port)
    assert settings.addresses == ((str(address), port),)
    entry = f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"
    assert Settings.from_keywords(listen=entry).addresses == settings.addresses


@given(entry=st.text(max_size=30))
def test_any_text_is_an_address_or_an_error(entry: str) -> None:
    try:
        host, port = parse_listen(entry, 8080)
    except SettingsError:
        return
    assert host in entry
    assert 0 <= port <= 65535


@pytest.mark.parametrize("host", ["[::1]", "::1"])
def test_a_host_may_have_brackets(host: str) -> None:
    assert Settings(host=host).addresses == (("::1", 8080),)


@pytest.mark.parametrize("host", ["", "localhost:80", "[::1]:80", ":", "a b", "1::2::3"])
def test_what_is_not_a_host(host: str) -> None:
    with pytest.raises(SettingsError, match=r"^host: .* is not an address or a host name$"):
        Settings(host=host)


def test_sockets_are_kept_as_they_are(bound: socket.socket) -> None:
    assert Settings.from_keywords(sockets=[bound]).sockets == (bound,)


def test_sockets_must_be_internet_streams(bound: socket.socket) -> None:
    with pytest.raises(SettingsError, match=r"^sockets: .* is not a list of sockets$"):
        Settings.from_keywords(sockets=bound)
    with pytest.raises(SettingsError, match=r"^sockets: 3 is not a socket$"):
        Settings.from_keywords(sockets=[bound, 3])
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        pytest.raises(SettingsError, match=r"^sockets: .* is not an Internet stream socket$"),
    ):
        Settings.from_keywords(sockets=[datagrams])


def test_flags() -> None:
    flags = {declaration.name: declaration.flag for declaration in DECLARATIONS}
    assert flags["sockets"] is None
    assert flags["expose_tracebacks"] == "--expose-tracebacks/--no-expose-tracebacks"
    assert flags["max_queue"] == "--max-queue"


def test_the_table_has_a_row_for_each_setting() -> None:
    header, rule, *rows = settings_table().splitlines()
    assert {line.count("|") for line in (header, rule, *rows)} == {5}
    assert [row.split("`")[1] for row in rows] == [declaration.name for declaration in DECLARATIONS]
    assert "| `threads` | `--threads` | 4 threads | Threads that run the app. |" in rows
    assert "| `channel_timeout` | `--channel-timeout` | 120 seconds |" in settings_table()


def test_the_readme_has_the_table_of_the_declaration() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    table = readme.split("compared in tests/test_settings.py -->\n")[1].split("<!-- end of settings -->")[0]
    assert table == settings_table()
