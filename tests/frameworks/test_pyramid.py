"""Pyramid by `pserve`, and PasteDeploy's entry points: settings come as strings from an ini file."""

from __future__ import annotations

import signal
import socket
import sys
import tempfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import requests

from tests.frameworks.command import ROOT, TIMEOUT
from tests.frameworks.program import Program
from tests.server.support import eventually
from waitress_async import serve_paste
from waitress_async.server import paste_server_factory

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")

INI = ROOT / "examples" / "pyramid" / "development.ini"
GREETING = "Hello from Pyramid!"

PROXIED = {
    "X-Forwarded-For": "192.0.2.7",
    "X-Forwarded-Host": "shop.example",
    "X-Forwarded-Proto": "https",
}

# What is in the place of the example's [server:main]. Globals are no settings.
MUCH = """
[DEFAULT]
project = shop

[server:main]
use = egg:waitress-async
listen = 127.0.0.1:0
    127.0.0.1:0
threads = 2
backlog = 128
ipv6 = false
url_scheme = https
url_prefix = shop/
ident =
trusted_proxy = 127.0.0.0/8, ::1
trusted_proxy_count = 1
trusted_proxy_headers =
    x-forwarded-for
    x-forwarded-host
clear_untrusted_proxy_headers = true
channel_timeout = 2m
cleanup_interval = 30
inbuf_overflow = 512KiB
max_request_body_size = 8192
expose_tracebacks = no
asyncore_use_poll = true
"""


@pytest.fixture
def ini(tmp_path: Path) -> Path:
    """The example's file, of which the port alone is changed: any free one."""
    text = INI.read_text()
    assert text.count("6543") == 2
    path = tmp_path / "development.ini"
    path.write_text(text.replace("6543", "0"))
    return path


def pserve(ini: Path, *arguments: str) -> Program:
    # Without warnings: they are about pkg_resources, which Pyramid imports.
    return Program("-W", "ignore", "-m", "pyramid.scripts.pserve", str(ini), *arguments)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_pserve(ini: Path, session: requests.Session, number: signal.Signals) -> None:
    with pserve(ini) as program:
        url = program.serving()
        for _ in range(2):
            page = session.get(f"{url}/", headers=PROXIED, timeout=TIMEOUT)
            assert page.json() == {"greeting": GREETING, "url": f"{url}/", "client": "127.0.0.1"}
            assert page.headers["Server"] == "waitress_async"
        assert program.end(number) == (0, "", [])  # with a connection open, and idle


def test_pserve_behind_a_proxy(ini: Path, session: requests.Session) -> None:
    with pserve(ini, "--server-name", "proxied") as program:
        page = session.get(f"{program.serving()}/shop/", headers=PROXIED, timeout=TIMEOUT)
        assert page.json() == {
            "greeting": GREETING,
            "url": "https://shop.example/shop/",
            "client": "192.0.2.7",
        }
        assert program.end(signal.SIGTERM) == (0, "", [])


def test_many_settings_as_strings(ini: Path, session: requests.Session) -> None:
    head, _, rest = ini.read_text().partition("[server:main]")
    ini.write_text(head + MUCH + rest[rest.index("\n[") :])
    with pserve(ini) as program:
        first, second = program.serving(), program.serving()
        assert first != second
        for url in (first, second):
            assert url.startswith("http://127.0.0.1:")
            page = session.get(f"{url}/shop/", headers=PROXIED, timeout=TIMEOUT)
            assert page.json()["url"] == "https://shop.example/shop/"
            assert page.json()["client"] == "192.0.2.7"
            assert "Server" not in page.headers
            refused = session.post(f"{url}/shop/", data=b"x" * 8193, timeout=TIMEOUT)
            assert refused.status_code == 413
        status, out, lines = program.end(signal.SIGTERM)
    assert (status, out) == (0, "")
    (warning,) = lines
    assert warning.endswith("Settings that have no effect here: asyncore_use_poll")


def test_a_setting_that_does_not_exist_is_named(ini: Path) -> None:
    ini.write_text(ini.read_text().replace("threads = 8", "thread = 8"))
    reason = r"(?s)exit 1: .*: Unknown adjustment 'thread' \(did you mean 'threads'\?\)$"
    with pserve(ini, "--server-name", "proxied") as program, pytest.raises(AssertionError, match=reason):
        program.serving()


# -- the entry points

PROGRAM = """
import sys
from importlib.metadata import entry_points

def app(environ, start_response):
    start_response("200 OK", [])
    return [b"answer"]

settings = {"unix_socket": sys.argv[2], "unix_socket_perms": "600", "threads": "2", "ipv6": "true"}
(entry,) = entry_points(group=sys.argv[1], name="main", value=sys.argv[3])
if entry.group == "paste.server_runner":
    print(entry.load()(app, {"here": "/", "debug": "true"}, **settings))
else:
    print(entry.load()({"here": "/", "debug": "true"}, **settings)(app))
"""

ENTRIES = {
    "paste.server_runner": ("waitress_async:serve_paste", "0\n"),
    "paste.server_factory": ("waitress_async.server:paste_server_factory", "None\n"),
}


@pytest.mark.parametrize("group", ENTRIES)
def test_an_entry_point_serves(group: str) -> None:
    value, returned = ENTRIES[group]
    with tempfile.TemporaryDirectory(prefix="wa-") as folder:
        place = f"{folder}/s"
        with Program("-W", "error", "-c", PROGRAM, group, place, value) as program:
            eventually(lambda: Path(place).exists() or program.process.poll() is not None, "it listens")
            assert Path(place).stat().st_mode & 0o777 == 0o600
            with socket.socket(socket.AF_UNIX) as sock:
                eventually(lambda: sock.connect_ex(place) == 0, "it takes connections")
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert b"".join(iter(lambda: sock.recv(65_536), b"")).endswith(b"answer")
            assert program.end(signal.SIGTERM) == (0, returned, [])
        assert not Path(place).exists()


def test_the_entry_points_are_declared() -> None:
    found = {
        group: [entry.load() for entry in entry_points(group=group, name="main") if entry.value == value]
        for group, (value, _) in ENTRIES.items()
    }
    assert found == {
        "paste.server_runner": [serve_paste],
        "paste.server_factory": [paste_server_factory],
    }


def test_a_wrong_setting_is_told_when_it_is_loaded() -> None:
    """Not only when there is an app, which may take long to be made."""
    with pytest.raises(ValueError, match="threads: 'many' is not a whole number"):
        paste_server_factory({}, threads="many")
