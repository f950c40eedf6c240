"""TLS by the command: certificates, new ones on SIGHUP, broken ones, and plain HTTP that is sent to https."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import socket
import ssl
import sys
from pathlib import Path

import pytest
import requests
import trustme

from tests.frameworks.command import TIMEOUT, Command, Start

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")

AUTHORITY = trustme.CA(key_type=trustme.KeyType.ECDSA)

APP = """\
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["wsgi.url_scheme"].encode()]
"""


class Site:
    """An app and a certificate in a folder, and the command that serves it."""

    def __init__(self, folder: Path, start: Start) -> None:
        self.folder = folder
        self._start = start
        (folder / "shop.py").write_text(APP)
        AUTHORITY.cert_pem.write_to_path(folder / "authority.pem")
        self.issue("first.example")

    def issue(self, name: str) -> None:
        """A new certificate and its key, each put in place in one step."""
        leaf = AUTHORITY.issue_cert(name, "127.0.0.1", key_type=trustme.KeyType.ECDSA)
        for file, pem in [
            ("cert.pem", b"".join(one.bytes() for one in leaf.cert_chain_pems)),
            ("key.pem", leaf.private_key_pem.bytes()),
        ]:
            (self.folder / "new").write_bytes(pem)
            (self.folder / "new").replace(self.folder / file)

    def start(self, *arguments: str) -> Command:
        return self._start(
            "--certfile=cert.pem", "--keyfile=key.pem", *arguments, "shop:app", cwd=self.folder
        )

    def serving(self, *arguments: str) -> tuple[Command, str]:
        command = self.start(*arguments)
        url = re.sub("^.* INFO waitress_async: Serving on ", "", command.line() or "")
        assert re.fullmatch(r"https://127\.0\.0\.1:[0-9]+", url), url
        return command, url

    def get(self, url: str, session: requests.Session | None = None) -> requests.Response:
        file = str(self.folder / "authority.pem")
        return (session or requests).get(url, verify=file, timeout=TIMEOUT, allow_redirects=False)

    def shown(self, url: str) -> str:
        """The name in the certificate that the server shows."""
        context = ssl.create_default_context(cafile=self.folder / "authority.pem")
        port = int(url.rpartition(":")[2])
        with (
            socket.create_connection(("127.0.0.1", port), TIMEOUT) as sock,
            context.wrap_socket(sock, server_hostname="127.0.0.1") as client,
        ):
            names = (client.getpeercert() or {})["subjectAltName"]
            return str(names[0][1])


@pytest.fixture
def site(tmp_path: Path, start: Start) -> Site:
    return Site(tmp_path, start)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_certificates_are_loaded_anew_on_sighup(site: Site, session: requests.Session, loop: str) -> None:
    command, url = site.serving(f"--loop={loop}")
    assert site.get(url, session).text == "https"
    assert site.shown(url) == "first.example"

    site.issue("second.example")
    command.signal(signal.SIGHUP)
    assert (command.line() or "").endswith(
        "INFO waitress_async: Certificates are loaded anew, for new connections"
    )
    assert site.shown(url) == "second.example"
    assert site.get(url, session).text == "https"  # by the connection of before

    (site.folder / "cert.pem").write_text("-----BEGIN CERTIFICATE-----\nbroken\n")
    command.signal(signal.SIGHUP)
    line = command.line() or ""
    assert " ERROR waitress_async: Certificates stay as they are: " in line
    assert "cert.pem" in line
    assert site.shown(url) == "second.example"

    (site.folder / "cert.pem").unlink()
    command.signal(signal.SIGHUP)
    assert "No such file" in (command.line() or "")

    site.issue("third.example")
    command.signal(signal.SIGHUP)
    assert "loaded anew" in (command.line() or "")
    assert site.shown(url) == "third.example"
    command.signal(signal.SIGTERM)
    status, lines = command.ended()
    assert status == 0
    assert not [line for line in lines if " INFO " not in line]


def hello(name: str = "first.example") -> bytes:
    """What a client sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(received, sent, server_hostname=name).do_handshake()
    return sent.read()


def of_no_ascii() -> list[bytes]:
    """Hellos that ask for a name that is not ASCII, or is no name."""
    names = [
        b"\xf6irst.example",
        b"\xff" * 13,
        "bücher.examp".encode(),
        b"first\0example",
        b"\0" * 13,
        b"." * 13,
    ]
    assert {len(name) for name in names} == {13}
    return [hello().replace(b"first.example", name) for name in names]


def altered(count: int) -> list[bytes]:
    """Hellos in which a few bytes are others, or some are missing or too many."""
    chance = random.Random(6)
    result = []
    for _ in range(count):
        data = bytearray(hello())
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(5, len(data))
            data[at : at + chance.choice([0, 1, 1, 1, 2])] = chance.randbytes(chance.choice([0, 1, 1, 1, 3]))
        result.append(bytes(data))
    return result


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_clients_that_break_tls_leave_no_traceback(site: Site, loop: str) -> None:
    """Python itself would write one, of a name that is not ASCII, to whoever chooses certificates by it."""
    command, url = site.serving(f"--loop={loop}", "--sni=second.example=cert.pem,key.pem")
    address = ("127.0.0.1", int(url.rpartition(":")[2]))
    for data in [*of_no_ascii(), *altered(150), b"GET / HTTP/1.1\r\n\r\n", bytes(1_000)]:
        with socket.create_connection(address, TIMEOUT) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(65_536):
                    pass
    assert site.get(url).text == "https"
    command.signal(signal.SIGTERM)
    status, lines = command.ended()
    assert status == 0
    assert any(" INFO waitress_async: TLS handshake: 127.0.0.1:" in line for line in lines)
    assert [line for line in lines if " INFO waitress_async: " not in line] == []


def test_plain_http_is_sent_to_https(site: Site) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command, url = site.serving(f"--redirect-listen=127.0.0.1:{port}")
    answer = site.get(f"http://127.0.0.1:{port}/a?b=c")
    assert (answer.status_code, answer.headers["Location"]) == (308, f"{url}/a?b=c")
    assert site.get(answer.headers["Location"]).text == "https"
    assert command.process.poll() is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--certfile=missing.pem"],
            "Error: Cannot read certfile .*missing.pem.*: No such file or directory",
        ),
        (["--certfile=shop.py"], "Error: certfile .*shop.py.* holds no certificate in PEM"),
        (
            ["--keyfile=other.pem"],
            "Error: The key in .*other.pem.* is not that of the certificate in .*cert.pem.*",
        ),
        (["--ca-certs=authority.pem"], "Error: ca_certs has no meaning without .*"),
        (["--sni=a.example=missing.pem"], "Error: Cannot read certfile .*missing.pem.*"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(site: Site, arguments: list[str], said: str) -> None:
    key = AUTHORITY.issue_cert("other.example", key_type=trustme.KeyType.ECDSA).private_key_pem
    key.write_to_path(site.folder / "other.pem")
    status, lines = site.start(*arguments).ended()
    assert status in (1, 2)
    assert [line for line in lines if "Traceback" in line] == []
    assert re.fullmatch(said, lines[-1]), lines
    assert not [line for line in lines[:-1] if line and not line.startswith(("Usage: ", "Try "))], lines


def test_a_redirect_needs_a_certificate(start: Start, site: Site) -> None:
    status, lines = start("--redirect-listen=127.0.0.1:0", "shop:app", cwd=site.folder).ended()
    assert status == 2
    assert lines[-1] == "Error: redirect_listen has no meaning unless certfile or ssl_context is set"
