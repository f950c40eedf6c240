from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waitress_async.errors import SettingsError
from waitress_async.settings import (
    DescriptorPlace,
    InternetPlace,
    Place,
    Settings,
    SystemdPlace,
    UnixPlace,
)
from waitress_async.settings.places import parse_listen


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        ("localhost", InternetPlace("localhost", 8080)),
        ("localhost:0", InternetPlace("localhost", 0)),
        ("127.0.0.1:65535", InternetPlace("127.0.0.1", 65535)),
        ("*", InternetPlace("*", 8080)),
        ("*:80", InternetPlace("*", 80)),
        ("[::1]", InternetPlace("::1", 8080)),
        ("[::]:80", InternetPlace("::", 80)),
        ("[fe80::1%eth0]:80", InternetPlace("fe80::1%eth0", 80)),
        ("[::ffff:127.0.0.1]:80", InternetPlace("::ffff:127.0.0.1", 80)),
        ("bücher.example:80", InternetPlace("bücher.example", 80)),
        ("fd:80", InternetPlace("fd", 80)),
        ("systemd", InternetPlace("systemd", 8080)),
        ("unix:/run/app.sock", UnixPlace("/run/app.sock")),
        ("unix:app.sock", UnixPlace("app.sock")),
        ("unix:/run/a:80", UnixPlace("/run/a:80")),
        ("unix:@app", UnixPlace("@app")),
        ("fd://3", DescriptorPlace(3)),
        ("fd://0", DescriptorPlace(0)),
        ("systemd://", SystemdPlace("")),
        ("systemd://web.socket", SystemdPlace("web.socket")),
    ],
)
def test_entries(entry: str, place: Place) -> None:
    assert parse_listen(entry, 8080) == place
    assert type(parse_listen(entry, 8080)) is type(place)
    assert Settings.from_keywords(listen=[entry]).places == (place,)


@pytest.mark.parametrize(
    "entry",
    [
        "",
        ":",
        ":80",
        "80",
        "8000:80",
        "\uff18\uff10",
        "localhost:",
        "localhost:http",
        "localhost:-1",
        "localhost:65536",
        "localhost:\u0668\u0660",
        "localhost:080808",
        "::1",
        "::1:80",
        "[::1",
        "[]:80",
        "[localhost]:80",
        "[127.0.0.1]:80",
        "[::1%\x00]:80",
        "[::1]80",
        "http://localhost:80",
        "/run/app",
        "a..b:80",
        "a" * 64,
        "a\x00b",
        "a b",
        "a\n",
        "fd://",
        "fd://-1",
        "fd://three",
        "fd://1234567890",
        "FD://3",
        "systemd://a:b",
        "systemd://a b",
        "systemd://é",
        "systemd://" + "a" * 256,
    ],
)
def test_what_is_no_entry(entry: str) -> None:
    with pytest.raises(SettingsError, match=r"^Invalid host/port specified\. .* is not HOST, HOST:PORT"):
        parse_listen(entry, 8080)


@pytest.mark.parametrize("path", ["", "@", "a\0b", "@\0"])
def test_what_is_no_path_of_a_socket(path: str) -> None:
    with pytest.raises(SettingsError, match=r"is not a path, nor @ and a name$"):
        parse_listen(f"unix:{path}", 8080)
    if path:
        with pytest.raises(SettingsError, match=r"^unix_socket: .* is not a path, nor @ and a name$"):
            Settings.from_keywords(unix_socket=path)


@pytest.mark.parametrize("entry", ["8000", ":8000"])
def test_a_port_alone_gets_a_hint(entry: str) -> None:
    """As a number alone it would be an address, 0.0.31.64."""
    with pytest.raises(SettingsError, match=r"; for a port alone write \*:8000, or set port instead$"):
        parse_listen(entry, 8080)
    with pytest.raises(SettingsError, match=r" or systemd://NAME$"):
        parse_listen(f"a:{entry}:", 8080)


def test_a_bad_entry_is_found_at_once_and_named() -> None:
    with pytest.raises(SettingsError, match=r"^listen: Invalid host/port specified\. 'b:c' is not"):
        Settings.from_keywords(listen="a:1 b:c")


@given(address=st.ip_addresses(), port=st.integers(0, 65535))
def test_any_ip_address(address: object, port: int) -> None:
    expected = (InternetPlace(str(address), port),)
    assert Settings.from_keywords(host=str(address), port=port).places == expected
    entry = f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"
    assert Settings.from_keywords(listen=entry).places == expected


ENTRIES = st.builds(
    "".join,
    st.lists(
        st.sampled_from(["unix:", "fd://", "systemd://", "@", "[", "]", "::1", ":", "80", "a", "%"]),
        max_size=6,
    ),
)


@given(entry=st.text(max_size=30) | ENTRIES)
def test_any_text_is_a_place_or_an_error(entry: str) -> None:
    try:
        place = parse_listen(entry, 8080)
    except SettingsError:
        return
    match place:
        case InternetPlace(host, port):
            assert host in entry
            assert 0 <= port <= 65535
        case UnixPlace(path):
            assert entry == f"unix:{path}"
        case DescriptorPlace(number):
            assert int(entry.removeprefix("fd://")) == number
        case SystemdPlace(name):
            assert entry == f"systemd://{name}"


def test_the_default_is_host_and_port() -> None:
    assert Settings().places == (InternetPlace("0.0.0.0", 8080),)
    assert Settings(port=80).places == (InternetPlace("0.0.0.0", 80),)
    assert Settings(host="*").places == (InternetPlace("*", 8080),)


@pytest.mark.parametrize("host", ["[::1]", "::1"])
def test_a_host_may_have_brackets(host: str) -> None:
    assert Settings(host=host).places == (InternetPlace("::1", 8080),)


@pytest.mark.parametrize(
    "host", ["", "8000", "localhost:80", "[::1]:80", ":", "a b", "1::2::3", "unix:/a", "fd://3"]
)
def test_what_is_not_a_host(host: str) -> None:
    with pytest.raises(SettingsError, match=r"^host: .* is not an address or a host name$"):
        Settings(host=host)


def test_a_unix_socket_is_the_only_place() -> None:
    assert Settings(unix_socket="/run/app").places == (UnixPlace("/run/app"),)


def test_kinds_may_be_mixed_and_each_place_counts_once() -> None:
    settings = Settings.from_keywords(
        listen="a:1 unix:/b fd://3 a:1 systemd:// unix:/b fd://3 a:2 systemd://"
    )
    assert settings.places == (
        InternetPlace("a", 1),
        UnixPlace("/b"),
        DescriptorPlace(3),
        SystemdPlace(""),
        InternetPlace("a", 2),
    )


def test_any_free_port_may_be_asked_for_twice() -> None:
    assert Settings.from_keywords(listen="a:0 a:0").places == (InternetPlace("a", 0), InternetPlace("a", 0))
