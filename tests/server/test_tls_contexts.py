"""TLS contexts: real handshakes in memory, files that are broken and replaced, what an environ is told."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import errno
import functools
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtensionOID, NameOID
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.server.support import DEADLINE, in_thread, on_each_loop, settled
from waitress_async.errors import SettingsError
from waitress_async.server import load_tls
from waitress_async.server.tls import TLS, environ_of
from waitress_async.settings import Settings

PASSWORD = "sésame\udcff"  # as a variable of the environment may be

PKCS8, TRADITIONAL = serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL

CN, ORG, UNIT, COUNTRY = (
    NameOID.COMMON_NAME,
    NameOID.ORGANIZATION_NAME,
    NameOID.ORGANIZATIONAL_UNIT_NAME,
    NameOID.COUNTRY_NAME,
)

CLIENT_KEY = ec.generate_private_key(ec.SECP256R1())


# -- handshakes


def shake(
    server: ssl.SSLContext,
    client: ssl.SSLContext,
    name: str | None = None,
    session: ssl.SSLSession | None = None,
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """The two ends of a connection in memory. Raises what the first end to fail does."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(down, up, server_hostname=name, session=session),
        server.wrap_bio(up, down, server_side=True),
    )
    waiting = list(ends)
    for _ in range(5):  # a client that is sent a HelloRetryRequest needs four
        for end in list(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
    assert not waiting, "both ends wait for each other"
    return ends[1], ends[0]


def exchange(server: ssl.SSLObject, client: ssl.SSLObject) -> None:
    """A few bytes both ways. The client then has its session tickets, too."""
    client.write(b"up")
    assert server.read() == b"up"
    server.write(b"down")
    assert client.read() == b"down"


PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


class Authority:
    """Signs certificates with any subject, and lists of those that it has revoked."""

    def __init__(self, name: str) -> None:
        self.name = name_of((CN, name))
        self.key = ec.generate_private_key(ec.SECP256R1())
        limit = x509.BasicConstraints(ca=True, path_length=None)
        certificate = self._builder(self.name, self.key.public_key(), days=1).add_extension(
            limit, critical=True
        )
        self.pem = pem_of(certificate.sign(self.key, hashes.SHA256()))

    def _builder(self, subject: x509.Name, key: PublicKey, days: int) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=7))
            .not_valid_after(now + datetime.timedelta(days=days))
        )

    def issue(
        self,
        subject: x509.Name,
        *,
        days: int = 1,
        key: PublicKey | None = None,
        alternative_names: bytes | None = None,
    ) -> x509.Certificate:
        """With the key that all clients share, or another. The names are DER."""
        builder = self._builder(subject, key or CLIENT_KEY.public_key(), days)
        if alternative_names is not None:
            names = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, alternative_names)
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def revoke(self, certificate: x509.Certificate) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        revoked = (
            x509.RevokedCertificateBuilder()
            .serial_number(certificate.serial_number)
            .revocation_date(now)
            .build()
        )
        return (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.name)
            .last_update(now - datetime.timedelta(days=1))
            .next_update(now + datetime.timedelta(days=1))
            .add_revoked_certificate(revoked)
            .sign(self.key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )


def pem_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def name_of(*attributes: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    """One attribute after the other, of whatever length."""
    with warnings.catch_warnings(action="ignore"):
        return x509.Name([x509.NameAttribute(oid, value, _validate=False) for oid, value in attributes])


CLIENTS = Authority("clients")
SOMEBODY_ELSE = Authority("somebody else")

# The root of all servers' certificates.
ROOT = trustme.CA(key_type=trustme.KeyType.ECDSA)


class Client:
    """A client that trusts `ROOT`, whatever the name, and perhaps has a certificate."""

    def __init__(self, folder: Path, certificate: x509.Certificate | None = None) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = False
        ROOT.configure_trust(self.context)
        if certificate is not None:
            file = folder / "client.pem"
            file.write_bytes(pem_of(certificate) + key_pem(CLIENT_KEY))
            self.context.load_cert_chain(file)

    def of(self, tls: TLS, name: str | None = None) -> str:
        """The first name in the certificate that it is shown."""
        return shown(shake(tls.context, self.context, name)[1])


def shown(client: ssl.SSLObject) -> str:
    certificate: dict[str, Any] = client.getpeercert() or {}
    kind, name = certificate["subjectAltName"][0]
    assert kind == "DNS"
    return str(name)


def key_pem(key: Any, password: str | None = None, form: serialization.PrivateFormat = PKCS8) -> bytes:
    """`key` is of whatever kind."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password.encode("utf-8", "surrogateescape"))
    pem: bytes = key.private_bytes(serialization.Encoding.PEM, form, encryption)
    return pem


# -- files


@functools.cache
def issued(name: str, key_type: trustme.KeyType) -> tuple[bytes, bytes]:
    """A certificate with its root, and its key."""
    leaf = ROOT.issue_cert(name, key_type=key_type)
    chain = *(pem.bytes() for pem in leaf.cert_chain_pems), ROOT.cert_pem.bytes()
    return b"".join(chain), leaf.private_key_pem.bytes()


@dataclass
class Files:
    """Certificates and keys in a folder, as a server is given them."""

    folder: Path
    password: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.issue("default", "default.example")
        self.issue("other", "other.example")
        self.issue("spare", "spare.example")
        self.settings = {
            "certfile": str(self.certfile),
            "keyfile": str(self.keyfile),
            "sni": (f"other.example={self.folder / 'other.crt'},{self.folder / 'other.key'}",),
        }

    @property
    def certfile(self) -> Path:
        return self.folder / "default.crt"

    @property
    def keyfile(self) -> Path:
        return self.folder / "default.key"

    @property
    def ca_certs(self) -> Path:
        return self.folder / "clients.pem"

    def issue(self, file: str, name: str, key_type: trustme.KeyType = trustme.KeyType.ECDSA) -> None:
        """A certificate in `file`.crt, with its root behind it, and the key in `file`.key."""
        chain, key = issued(name, key_type)
        self.put(f"{file}.crt", chain)
        self.put(f"{file}.key", key)

    def put(self, file: str, content: bytes) -> None:
        """In one step, as whoever renews certificates should."""
        (self.folder / "new").write_bytes(content)
        (self.folder / "new").replace(self.folder / file)

    def encrypt(self, file: str, password: str, form: serialization.PrivateFormat) -> None:
        key = serialization.load_pem_private_key((self.folder / file).read_bytes(), None)
        self.put(file, key_pem(key, password, form))

    def verify_clients(self, mode: str = "required", authority: Authority = CLIENTS) -> None:
        self.ca_certs.write_bytes(authority.pem)
        self.settings.update(ca_certs=str(self.ca_certs), client_verify=mode)

    def load(self, **more: Any) -> TLS:
        options = {**self.settings, "keyfile_password": self.password, **more}
        tls = load_tls(Settings.from_keywords(**options))
        assert tls is not None
        return tls


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path)


# -- the protocol


def test_versions_before_1_2_are_refused(files: Files, client: Client) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        client.context.minimum_version = ssl.TLSVersion.TLSv1
        client.context.maximum_version = ssl.TLSVersion.TLSv1_1
        client.context.set_ciphers("DEFAULT:@SECLEVEL=0")
        tls = files.load()
        tls.context.set_ciphers("DEFAULT:@SECLEVEL=0")  # nothing but the version is in the way
        with pytest.raises(ssl.SSLError) as caught:
            shake(tls.context, client.context)
        assert caught.value.reason == "UNSUPPORTED_PROTOCOL"
        tls.context.minimum_version = ssl.TLSVersion.TLSv1
        assert shake(tls.context, client.context)[0].version() == "TLSv1.1"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", ["default.example", "other.example"])
def test_versions_from_1_2_on_are_taken(
    files: Files, client: Client, version: ssl.TLSVersion, name: str
) -> None:
    client.context.minimum_version = client.context.maximum_version = version
    server, end = shake(files.load().context, client.context, name)
    exchange(server, end)
    assert environ_of(server)["SSL_PROTOCOL"] == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]
    assert environ_of(server)["SSL_CIPHER"] == (end.cipher() or [""])[0] != ""


def test_what_invites_attacks_is_off(files: Files) -> None:
    options = files.load().context.options
    assert options & ssl.OP_NO_COMPRESSION
    assert options & ssl.OP_NO_RENEGOTIATION


@pytest.mark.parametrize("name", ["default.example", "other.example"])
@pytest.mark.parametrize(
    ("offered", "agreed"),
    [
        ([], None),
        (["http/1.1"], "http/1.1"),
        (["h2", "http/1.1"], "http/1.1"),
        (["h2"], None),  # and HTTP/1.1 is spoken all the same
    ],
)
def test_the_protocol_within_is_agreed_on(
    files: Files, client: Client, name: str, offered: list[str], agreed: str | None
) -> None:
    if offered:
        client.context.set_alpn_protocols(offered)
    server, end = shake(files.load().context, client.context, name)
    exchange(server, end)
    assert server.selected_alpn_protocol() == end.selected_alpn_protocol() == agreed


# -- which certificate


@pytest.mark.parametrize(
    ("asked_for", "given"),
    [
        (None, "default.example"),
        ("default.example", "default.example"),
        ("unknown.example", "default.example"),
        ("other.example", "other.example"),
        ("OTHER.Example", "other.example"),
        ("a.wild.example", "any.wild.example"),
        ("A.Wild.EXAMPLE", "any.wild.example"),
        ("one.wild.example", "one.wild.example"),
        ("a.b.wild.example", "default.example"),
        ("a.one.wild.example", "default.example"),
        ("wild.example", "default.example"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("example", "default.example"),
        ("_dmarc.example", "default.example"),
        (".".join(["a" * 63] * 3), "default.example"),
    ],
)
def test_the_certificate_is_that_of_the_name(
    files: Files, client: Client, asked_for: str | None, given: str
) -> None:
    names = {
        "other.example": "other.example",
        "*.Wild.example": "any.wild.example",
        "one.wild.EXAMPLE": "one.wild.example",
        "xn--bcher-kva.example": "xn--bcher-kva.example",
    }
    for name in names.values():
        files.issue(name, name)
    sni = [f"{entry}={files.folder / name}.crt,{files.folder / name}.key" for entry, name in names.items()]
    assert client.of(files.load(sni=tuple(sni)), asked_for) == given


def test_certificate_and_key_may_share_a_file(files: Files, client: Client) -> None:
    for file in ("default", "other"):
        parts = [(files.folder / f"{file}.{part}").read_bytes() for part in ("key", "crt")]
        files.put(f"{file}.pem", b"some text\n" + b"".join(parts))
    sni = (f"other.example={files.folder / 'other.pem'}",)
    tls = files.load(certfile=str(files.folder / "default.pem"), keyfile=None, sni=sni)
    assert client.of(tls) == "default.example"
    assert client.of(tls, "other.example") == "other.example"


def test_a_key_may_be_rsa(files: Files, client: Client) -> None:
    files.issue("default", "default.example", trustme.KeyType.RSA)
    assert client.of(files.load()) == "default.example"


def test_a_name_that_is_not_ascii_fails_its_handshake_only(
    files: Files, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python decodes the name itself, and tells this hook when it cannot."""
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda about: told.append((about.exc_value, about.object)))
    tls = files.load()
    hello, ignored = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        client.context.wrap_bio(ignored, hello, server_hostname="other.example").do_handshake()
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    received.write(hello.read().replace(b"other.example", b"\xf6ther.example"))
    with pytest.raises(ssl.SSLError) as caught:
        tls.context.wrap_bio(received, sent, server_side=True).do_handshake()
    assert caught.value.reason == "CALLBACK_FAILED"
    assert [(type(error), name) for error, name in told] == [(UnicodeDecodeError, b"\xf6ther.example")]
    assert client.of(tls, "other.example") == "other.example"


# -- files that are wrong

Harm = Callable[[Files], None]


def missing(file: str) -> Harm:
    return lambda files: (files.folder / file).unlink()


def containing(file: str, content: bytes) -> Harm:
    return lambda files: files.put(file, content)


def cut(file: str, size: int) -> Harm:
    return lambda files: files.put(file, (files.folder / file).read_bytes()[:size])


def damaged(file: str) -> Harm:
    """The base64 of its first block is invalid."""

    def harm(files: Files) -> None:
        lines = (files.folder / file).read_bytes().splitlines(keepends=True)
        files.put(file, b"".join([lines[0], b"!!!!" + lines[1][4:], *lines[2:]]))

    return harm


def swapped(one: str, other: str) -> Harm:
    def harm(files: Files) -> None:
        content = (files.folder / one).read_bytes()
        files.put(one, (files.folder / other).read_bytes())
        files.put(other, content)

    return harm


def encrypted(file: str, password: str = PASSWORD, form: serialization.PrivateFormat = PKCS8) -> Harm:
    return lambda files: files.encrypt(file, password, form)


def all_of(*harms: Harm) -> Harm:
    def harm(files: Files) -> None:
        for one in harms:
            one(files)

    return harm


def linked_to_itself(files: Files) -> None:
    files.certfile.unlink()
    files.certfile.symlink_to(files.certfile.name)


def made_a_directory(files: Files) -> None:
    files.certfile.unlink()
    files.certfile.mkdir()


def in_der(files: Files) -> None:
    certificate = x509.load_pem_x509_certificate(files.certfile.read_bytes())
    files.put("default.crt", certificate.public_bytes(serialization.Encoding.DER))


def of_another_kind(files: Files) -> None:
    files.issue("rsa", "default.example", trustme.KeyType.RSA)
    swapped("rsa.key", "default.key")(files)


def weak(files: Files) -> None:
    key = rsa.generate_private_key(65537, 1024)
    files.put("default.crt", pem_of(CLIENTS.issue(name_of((CN, "weak")), key=key.public_key())))
    files.put("default.key", key_pem(key))


def revocations_alone(files: Files) -> None:
    files.put("clients.pem", CLIENTS.revoke(CLIENTS.issue(name_of((CN, "x")))))


CERTFILE, KEYFILE, CA_CERTS = (
    f"{name} '{{0}}/{file}'"
    for name, file in (("certfile", "default.crt"), ("keyfile", "default.key"), ("ca_certs", "clients.pem"))
)
OTHER = "certfile '{0}/other.crt' of sni other.example"
OTHER_KEY = "keyfile '{0}/other.key' of sni other.example"
MISSING = os.strerror(errno.ENOENT)
DAMAGED = f"The key in {KEYFILE} is damaged, or of a kind that OpenSSL does not know"
MISMATCH = f"The key in {KEYFILE} is not that of the certificate in {CERTFILE}"
ENCRYPTED = f"The key in {KEYFILE} is encrypted, and keyfile_password is not set"
WRONG_PASSWORD = f"keyfile_password does not open the key in {KEYFILE}"


@dataclass(frozen=True)
class Fault:
    """Something done to good files, and what is said of it. {0} in the message is the folder."""

    name: str
    harm: Harm
    message: str
    kind: type[Exception] = SettingsError
    password: str | None = None


FAULTS = [
    Fault("missing", missing("default.crt"), f"Cannot read {CERTFILE}: {MISSING}", OSError),
    Fault("loop", linked_to_itself, f"Cannot read {CERTFILE}: {os.strerror(errno.ELOOP)}", OSError),
    Fault("directory", made_a_directory, f"Cannot read {CERTFILE}: {os.strerror(errno.EISDIR)}", OSError),
    Fault("empty", containing("default.crt", b""), f"{CERTFILE} holds no certificate in PEM"),
    Fault("DER", in_der, f"{CERTFILE} holds no certificate in PEM"),
    Fault("swapped", swapped("default.crt", "default.key"), f"{CERTFILE} holds no certificate in PEM"),
    Fault("damaged", damaged("default.crt"), f"A certificate in {CERTFILE} is damaged"),
    Fault("cut", cut("default.crt", 300), f"A certificate in {CERTFILE} is damaged"),
    Fault("chain cut", cut("default.crt", -100), f"A certificate in {CERTFILE} is damaged"),
    Fault("weak", weak, f"The certificate in {CERTFILE} cannot be used: ee key too small"),
    Fault("key missing", missing("default.key"), f"Cannot read {KEYFILE}: {MISSING}", OSError),
    Fault("key empty", containing("default.key", b"\n"), f"{KEYFILE} holds no private key in PEM"),
    Fault("key damaged", damaged("default.key"), DAMAGED),
    Fault("key cut", cut("default.key", 100), DAMAGED),
    Fault("another's key", swapped("default.key", "other.key"), MISMATCH),
    Fault("another kind of key", of_another_kind, MISMATCH),
    Fault("key encrypted", encrypted("default.key"), ENCRYPTED),
    Fault("key encrypted in the old way", encrypted("default.key", form=TRADITIONAL), ENCRYPTED),
    Fault("wrong password", encrypted("default.key", "another"), WRONG_PASSWORD, password=PASSWORD),
    Fault(
        "long password",
        encrypted("default.key"),
        "keyfile_password: password cannot be longer than 1024 bytes",
        password="a" * 1025,
    ),
    Fault(
        "another's key, encrypted",
        all_of(swapped("default.key", "other.key"), encrypted("default.key")),
        MISMATCH,
        password=PASSWORD,
    ),
    Fault("authorities missing", missing("clients.pem"), f"Cannot read {CA_CERTS}: {MISSING}", OSError),
    Fault("no authorities", containing("clients.pem", b""), f"{CA_CERTS} holds no certificate in PEM"),
    Fault("no authorities but lists", revocations_alone, f"{CA_CERTS} holds no certificate in PEM"),
    Fault("authorities damaged", damaged("clients.pem"), f"A certificate in {CA_CERTS} is damaged"),
    Fault("a name's missing", missing("other.crt"), f"Cannot read {OTHER}: {MISSING}", OSError),
    Fault(
        "another's key for a name",
        swapped("spare.key", "other.key"),
        f"The key in {OTHER_KEY} is not that of the certificate in {OTHER}",
    ),
    Fault(
        "a name's key encrypted",
        encrypted("other.key"),
        f"The key in {OTHER_KEY} is encrypted, and keyfile_password is not set",
    ),
]

each_fault = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))


def sentence(error: BaseException) -> str | None:
    return error.strerror if isinstance(error, OSError) else str(error)


@each_fault
def test_a_wrong_file_is_told(files: Files, fault: Fault) -> None:
    files.verify_clients()
    files.password = fault.password
    files.load()
    fault.harm(files)
    with pytest.raises(fault.kind) as caught:
        files.load()
    assert sentence(caught.value) == fault.message.format(files.folder)
    assert PASSWORD[:-1] not in str(caught.value)


@each_fault
def test_a_wrong_file_leaves_the_old_ones_in_force(files: Files, fault: Fault, tmp_path: Path) -> None:
    files.verify_clients()
    files.password = fault.password
    tls = files.load()
    client = Client(tmp_path, CLIENTS.issue(name_of((CN, "x"))))
    for file in ("default", "other"):  # a renewal in which one thing goes wrong
        files.issue(file, f"new-{file}.example")
    fault.harm(files)
    before = tls.context
    with pytest.raises(fault.kind) as caught:
        tls.reload()
    assert sentence(caught.value) == fault.message.format(files.folder)
    assert tls.context is before
    assert client.of(tls) == "default.example"
    assert client.of(tls, "other.example") == "other.example"
    for path in files.folder.glob("default.*"):
        path.rmdir() if path.is_dir() else path.unlink()
    for file in ("default", "other"):
        files.issue(file, f"new-{file}.example")
    files.verify_clients()
    tls.reload()
    assert client.of(tls) == "new-default.example"
    assert client.of(tls, "other.example") == "new-other.example"


def test_one_file_for_both_without_a_key(files: Files) -> None:
    with pytest.raises(SettingsError) as caught:
        files.load(keyfile=None)
    assert str(caught.value) == f"{CERTFILE.format(files.folder)} holds no private key in PEM"


@pytest.mark.parametrize(
    ("path", "told"),
    [("/a\0b", r"'/a\x00b': embedded null byte"), ("/a\nb\xff\udcff", rf"'/a\nb\xff\udcff': {MISSING}")],
)
def test_whatever_is_in_a_path_it_is_told_in_one_line(files: Files, path: str, told: str) -> None:
    with pytest.raises(OSError, match=re.escape(f"Cannot read certfile {told}")):
        files.load(certfile=path)


@pytest.mark.parametrize("form", [PKCS8, TRADITIONAL], ids=["PKCS8", "traditional"])
def test_encrypted_keys_are_opened(files: Files, client: Client, form: serialization.PrivateFormat) -> None:
    for file in ("default.key", "other.key"):
        files.encrypt(file, PASSWORD, form)
    tls = files.load(keyfile_password=PASSWORD)
    assert client.of(tls) == "default.example"
    assert client.of(tls, "other.example") == "other.example"
    assert PASSWORD[:-1] not in repr(vars(tls))


ON_A_TERMINAL = """
import os, ssl, sys
from waitress_async.server.tls import TLS

terminal, certfile, keyfile, who = sys.argv[1:]
os.open(terminal, os.O_RDWR)  # the first one that a session's leader opens is its own
os.close(os.open("/dev/tty", os.O_RDWR))
try:
    if who == "TLS":
        TLS(certfile=certfile, keyfile=keyfile)
    else:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certfile, keyfile)
except ValueError as error:
    print(error)
print("done", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no terminals")
@pytest.mark.parametrize("who", ["TLS", "ssl"])
def test_nobody_is_asked_for_a_password_on_the_terminal(files: Files, who: str) -> None:
    files.encrypt("default.key", "secret", PKCS8)
    ours, its = os.openpty()
    arguments = [os.ttyname(its), str(files.certfile), str(files.keyfile), who]
    if who == "ssl":
        os.write(ours, b"secret\n")
    with subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            told = []
            while (line := process.stdout.readline().strip()) not in ("done", ""):
                told.append(line)
            shown = b""
            os.set_blocking(ours, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    shown += os.read(ours, 1_000)
            process.communicate()
            assert process.returncode == 0
        finally:
            process.kill()
            os.close(ours)
            os.close(its)
    if who == "ssl":  # so this would be seen
        assert b"pass phrase" in shown
    else:
        assert shown == b""
        assert told == [ENCRYPTED.format(files.folder)]


# -- settings


def test_a_context_of_the_programs_is_used_as_it_is(files: Files, client: Client) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certfile, files.keyfile)
    tls = TLS(ssl_context=context)
    assert tls.context is context
    assert client.of(tls) == "default.example"
    with pytest.raises(SettingsError) as caught:
        tls.reload()
    assert str(caught.value) == "ssl_context cannot be reloaded; the program may call its load_cert_chain()"
    assert tls.context is context


def test_paths_stay_when_the_directory_changes(
    files: Files, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.verify_clients("optional")
    monkeypatch.chdir(tmp_path)
    tls = TLS(
        certfile="default.crt",
        keyfile="default.key",
        ca_certs="clients.pem",
        client_verify="optional",
        sni=("other.example=other.crt,other.key",),
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    files.issue("default", "new.example")
    tls.reload()
    assert client.of(tls) == "new.example"


def test_paths_are_told_where_the_directory_is_gone(
    files: Files, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert client.of(files.load()) == "default.example"  # by absolute paths
    with pytest.raises(OSError, match=f"Cannot read certfile 'default.crt': {MISSING}"):
        files.load(certfile="default.crt")


# -- new files


def test_connections_keep_what_they_began_with(files: Files, client: Client) -> None:
    tls = files.load()
    old = [shake(tls.context, client.context, name) for name in ("default.example", "other.example")]
    begun = tls.context  # a connection that is accepted, and has not said anything yet
    for file in ("default", "other"):
        files.issue(file, f"new-{file}.example")
    tls.reload()
    new = [shake(tls.context, client.context, name) for name in ("default.example", "other.example")]
    assert [shown(end) for _, end in new] == ["new-default.example", "new-other.example"]
    assert shown(shake(begun, client.context, "other.example")[1]) == "other.example"
    for server, end in (*old, *new):
        exchange(server, end)


def test_a_reload_amid_handshakes_fails_none(files: Files, client: Client) -> None:
    """Two threads connect without a pause while another replaces all files, now and then by broken ones."""
    tls = files.load()
    old = shake(tls.context, client.context)
    generations = 8
    served: list[set[str]] = [set(), set()]
    errors: list[BaseException] = []
    passed = [threading.Event() for _ in served]  # set after each handshake
    stopping = threading.Event()

    def connect(number: int) -> None:
        own = Client(files.folder)
        name = ("default.example", "other.example")[number]
        try:
            while not stopping.is_set():
                server, end = shake(tls.context, own.context, name)
                exchange(server, end)
                served[number].add(shown(end))
                passed[number].set()
        except BaseException as error:
            errors.append(error)
            passed[number].set()

    threads = [threading.Thread(target=connect, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        for generation in range(generations):
            for file in ("default", "other"):
                files.issue(file, f"{file}-{generation}.example")
            tls.reload()
            swapped("default.key", "other.key")(files)
            with pytest.raises(SettingsError):
                tls.reload()
            swapped("default.key", "other.key")(files)
            for event in passed:
                event.clear()
            for event in passed:
                assert event.wait(DEADLINE)
    finally:
        stopping.set()
        for thread in threads:
            thread.join(DEADLINE)
    assert errors == []
    for names, file in zip(served, ("default", "other"), strict=True):
        assert names <= {f"{file}.example", *(f"{file}-{number}.example" for number in range(generations))}
        assert len(names) > 1
    assert client.of(tls) == f"default-{generations - 1}.example"
    exchange(*old)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such pipes")
def test_of_two_reloads_the_later_is_in_force(files: Files, client: Client) -> None:
    """The first one has begun to read a key, from a pipe, when the second is asked for with newer files."""
    tls = files.load()
    files.issue("default", "early.example")
    early_key = files.keyfile.read_bytes()
    files.keyfile.unlink()
    os.mkfifo(files.keyfile)
    first, second = (threading.Thread(target=tls.reload, daemon=True) for _ in range(2))
    first.start()
    with files.keyfile.open("wb") as pipe:  # it has opened the other end
        files.issue("default", "latest.example")
        second.start()
        assert settled(second.is_alive)  # it waits for its turn
        assert client.of(tls) == "default.example"
        pipe.write(early_key)
    for thread in (first, second):
        thread.join(DEADLINE)
        assert not thread.is_alive()
    assert client.of(tls) == "latest.example"


def test_a_reload_forgets_whom_it_no_longer_trusts(files: Files, tmp_path: Path) -> None:
    """A ticket lets a client in that was verified before, so those of before are not taken any more."""
    files.verify_clients()
    tls = files.load()
    client = Client(tmp_path, CLIENTS.issue(name_of((CN, "x"))))
    server, end = shake(tls.context, client.context)
    exchange(server, end)
    server, again = shake(tls.context, client.context, session=end.session)
    assert again.session_reused
    assert environ_of(server)["SSL_CLIENT_S_DN"] == "CN=x"
    exchange(server, again)
    files.verify_clients(authority=SOMEBODY_ELSE)
    tls.reload()
    with pytest.raises(ssl.SSLError) as caught:
        shake(tls.context, client.context, session=again.session)
    assert caught.value.reason == "CERTIFICATE_VERIFY_FAILED"


def test_a_certificate_may_be_replaced_by_one_of_another_kind(files: Files, client: Client) -> None:
    """A context can hold one of each kind, and who asks for the old kind must not get that."""
    tls = files.load()
    files.issue("default", "rsa.example", trustme.KeyType.RSA)
    tls.reload()
    client.context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert client.of(tls) == "rsa.example"
    client.context.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    with pytest.raises(ssl.SSLError):
        client.of(tls)


# -- clients with certificates


def has_no_certificate(tmp_path: Path) -> Client:
    return Client(tmp_path)


def has_a_certificate(tmp_path: Path) -> Client:
    return Client(tmp_path, CLIENTS.issue(name_of((CN, "Somebody"))))


def has_one_of_others(tmp_path: Path) -> Client:
    return Client(tmp_path, SOMEBODY_ELSE.issue(name_of((CN, "Somebody"))))


def has_an_old_one(tmp_path: Path) -> Client:
    return Client(tmp_path, CLIENTS.issue(name_of((CN, "Somebody")), days=-1))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", ["default.example", "other.example"])
@pytest.mark.parametrize(
    ("mode", "make", "verified"),
    [
        ("none", has_no_certificate, "NONE"),
        ("none", has_a_certificate, "NONE"),
        ("none", has_one_of_others, "NONE"),
        ("optional", has_no_certificate, "NONE"),
        ("optional", has_a_certificate, "SUCCESS"),
        ("optional", has_one_of_others, "CERTIFICATE_VERIFY_FAILED"),
        ("optional", has_an_old_one, "CERTIFICATE_VERIFY_FAILED"),
        ("required", has_no_certificate, "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
        ("required", has_a_certificate, "SUCCESS"),
        ("required", has_one_of_others, "CERTIFICATE_VERIFY_FAILED"),
        ("required", has_an_old_one, "CERTIFICATE_VERIFY_FAILED"),
    ],
)
def test_clients_are_verified(
    files: Files,
    tmp_path: Path,
    mode: str,
    make: Callable[[Path], Client],
    verified: str,
    name: str,
    version: ssl.TLSVersion,
) -> None:
    if mode != "none":
        files.verify_clients(mode)
    tls, client = files.load(), make(tmp_path)
    client.context.minimum_version = client.context.maximum_version = version
    if verified not in ("NONE", "SUCCESS"):
        with pytest.raises(ssl.SSLError) as caught:
            shake(tls.context, client.context, name)
        assert caught.value.reason == verified
        return
    server, _ = shake(tls.context, client.context, name)
    environ = environ_of(server)
    assert environ["HTTPS"] == "on"
    assert environ["SSL_CLIENT_VERIFY"] == verified
    if verified == "SUCCESS":
        assert environ["SSL_CLIENT_S_DN"] == "CN=Somebody"
        pem = (tmp_path / "client.pem").read_bytes()
        assert environ["SSL_CLIENT_CERT"] == pem_of(x509.load_pem_x509_certificate(pem)).decode()
    assert set(environ) - {"SSL_CLIENT_S_DN", "SSL_CLIENT_CERT"} == {
        "HTTPS",
        "SSL_PROTOCOL",
        "SSL_CIPHER",
        "SSL_CLIENT_VERIFY",
    }
    assert len(environ) == (6 if verified == "SUCCESS" else 4)


def test_a_revoked_client_is_refused(files: Files, tmp_path: Path) -> None:
    files.verify_clients()
    tls = files.load()
    good, bad = (CLIENTS.issue(name_of((CN, name))) for name in ("good", "bad"))
    (tmp_path / "good").mkdir()
    (tmp_path / "bad").mkdir()
    clients = Client(tmp_path / "good", good), Client(tmp_path / "bad", bad)
    for client in clients:
        client.of(tls)
    files.put("clients.pem", CLIENTS.pem + CLIENTS.revoke(bad))
    tls.reload()
    for name in ("default.example", "other.example"):
        clients[0].of(tls, name)
        with pytest.raises(ssl.SSLError, match="certificate revoked"):
            clients[1].of(tls, name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clients")


@pytest.fixture(scope="module")
def verifying() -> ssl.SSLContext:
    """A server's, that asks for certificates by `CLIENTS`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ROOT.issue_cert("default.example").configure_cert(context)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=CLIENTS.pem.decode())
    return context


def environ_for(verifying: ssl.SSLContext, folder: Path, certificate: x509.Certificate) -> dict[str, str]:
    """What is told of a client with this certificate."""
    return environ_of(shake(verifying, Client(folder, certificate).context)[0])


WITHOUT_A_NAME = x509.ObjectIdentifier("1.3.6.1.4.1.55555.1")


def several(*attributes: tuple[x509.ObjectIdentifier, str]) -> x509.RelativeDistinguishedName:
    return x509.RelativeDistinguishedName(list(name_of(*attributes)))


SUBJECTS = {
    "CN=c,OU=b,O=a": name_of((ORG, "a"), (UNIT, "b"), (CN, "c")),
    "UID=u+O=o+CN=c,C=DE": x509.Name(
        [several((COUNTRY, "DE")), several((CN, "c"), (ORG, "o"), (NameOID.USER_ID, "u"))]
    ),
    r"CN=a\,b\+c\"d\\e\<f\>g\;h=i/j": name_of((CN, 'a,b+c"d\\e<f>g;h=i/j')),
    r"CN=\ a b\ ": name_of((CN, " a b ")),
    r"CN=\ \ ": name_of((CN, "  ")),
    r"CN=\ ": name_of((CN, " ")),
    r"CN=\#a#": name_of((CN, "#a#")),
    r"CN=M\C3\BCller \E2\82\AC \F0\9F\98\80": name_of((CN, "Müller € 😀")),
    r"CN=a\00b\0D\0Ac\09d\7F": name_of((CN, "a\0b\r\nc\td\x7f")),
    r"CN=a\0A": name_of((CN, "a\n")),
    r"CN=x\,O=admin,O=y": name_of((ORG, "y"), (CN, "x,O=admin")),
    "": x509.Name([]),
    "1.3.6.1.4.1.55555.1=#0C0161,CN=c": name_of((CN, "c"), (WITHOUT_A_NAME, "a")),
    f"1.3.6.1.4.1.55555.1=#0C82012C{'61' * 300}": name_of((WITHOUT_A_NAME, "a" * 300)),
    f"1.3.6.1.4.1.55555.1=#0C8180{'61' * 128}": name_of((WITHOUT_A_NAME, "a" * 128)),
    "1.3.6.1.4.1.55555.1=#0C00": name_of((WITHOUT_A_NAME, "")),
    f"1.3.6.1.4.1.55555.1=#0C7F{'61' * 127}": name_of((WITHOUT_A_NAME, "a" * 127)),
}


@pytest.mark.parametrize("text", SUBJECTS)
def test_a_subject_is_text_that_can_be_taken_apart(
    verifying: ssl.SSLContext, folder: Path, text: str
) -> None:
    certificate = CLIENTS.issue(SUBJECTS[text])
    assert environ_for(verifying, folder, certificate)["SSL_CLIENT_S_DN"] == text


# All that have a short name, and some that have none.
ATTRIBUTES = [
    f"{arc}.{number}"
    for arc, numbers in {
        "2.5.4": (3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 17, 18, 41, 42, 43, 44, 46, 65, 97, 98, 99),
        "0.9.2342.19200300.100.1": (1, 3, 25, 44),
        "1.3.6.1.4.1.311.60.2.1": (1, 2, 3),
        "1.2.840.113549.1.9": (1, 2),
    }.items()
    for number in numbers
]


# Text in other types than UTF8String, and what is no text.
IN_OLD_TYPES = [
    (CN, "Zoë", "BMPString"),
    (CN, "Zoë", "UniversalString"),
    (CN, "Zoe", "T61String"),
    (CN, "Zoe", "PrintableString"),
    (NameOID.X500_UNIQUE_IDENTIFIER, b"\0abc", "BitString"),
]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="compares with the command")
def test_a_subject_is_what_openssl_makes_of_it(verifying: ssl.SSLContext, folder: Path) -> None:
    """All names in one, to ask once."""
    types: Any = x509.name._ASN1Type  # cryptography keeps them to itself
    given: list[Any] = [(x509.ObjectIdentifier(oid), "ab", "UTF8String") for oid in ATTRIBUTES] + IN_OLD_TYPES
    named = [x509.NameAttribute(oid, text, types[kind], _validate=False) for oid, text, kind in given]
    rdns = [rdn for subject in SUBJECTS.values() for rdn in subject.rdns]
    rdns += [x509.RelativeDistinguishedName([attribute]) for attribute in named]
    certificate = CLIENTS.issue(x509.Name(rdns))
    command = ["openssl", "x509", "-noout", "-subject", "-nameopt", "RFC2253"]
    done = subprocess.run(command, input=pem_of(certificate), capture_output=True, check=True)
    told = done.stdout.decode("ascii").removeprefix("subject=").removesuffix("\n")
    assert told.startswith("x500UniqueIdentifier=#030400616263,CN=Zoe,")
    assert environ_for(verifying, folder, certificate)["SSL_CLIENT_S_DN"] == told


def test_what_an_attribute_is_called_cannot_break_the_value(verifying: ssl.SSLContext, folder: Path) -> None:
    """OpenSSL's name of this one has a comma in it."""
    certificate = CLIENTS.issue(name_of((x509.ObjectIdentifier("1.2.840.113549"), "a")))
    assert environ_for(verifying, folder, certificate)["SSL_CLIENT_S_DN"] == r"RSA Data Security\, Inc.=a"


def parse_name(text: str) -> list[str]:
    """The values of a name in the notation of RFC 4514, all of whose attributes are called CN."""
    values = []
    for part in re.findall(r"(?:^|,)((?:[^\\,]|\\.)*)", text):
        kind, _, value = part.partition("=")
        assert kind == "CN"
        plain = re.sub(
            rb"\\([0-9A-F]{2}|.)",
            lambda match: bytes.fromhex(match[1].decode()) if len(match[1]) == 2 else match[1],
            value.encode("ascii"),
        )
        values.append(plain.decode())
    return values


@settings(max_examples=30, deadline=None)
@example(["a", " ", "#"])
@example(["\\", "\\,CN=root", 'a"b'])
@given(st.lists(st.text(max_size=20), min_size=1, max_size=3))
def test_every_subject_can_be_read_back(verifying: ssl.SSLContext, folder: Path, values: list[str]) -> None:
    certificate = CLIENTS.issue(name_of(*((CN, value) for value in values)))
    told = environ_for(verifying, folder, certificate)["SSL_CLIENT_S_DN"]
    assert told.isascii()
    assert told.isprintable()
    assert parse_name(told) == values[::-1]


def test_a_certificate_that_ssl_cannot_decode_has_no_subject(verifying: ssl.SSLContext, folder: Path) -> None:
    """It has a URI in Latin-1, which OpenSSL takes and Python does not."""
    uri = b"\x86\x04a:b\xfc"
    certificate = CLIENTS.issue(name_of((CN, "c")), alternative_names=b"\x30" + bytes([len(uri)]) + uri)
    environ = environ_for(verifying, folder, certificate)
    assert environ["SSL_CLIENT_VERIFY"] == "SUCCESS"
    assert environ["SSL_CLIENT_CERT"] == pem_of(certificate).decode()
    assert "SSL_CLIENT_S_DN" not in environ


# -- on the loop


class Told(asyncio.Protocol):
    """What the environ of its connection would have; then it sends back what comes."""

    def __init__(self) -> None:
        self.environ: dict[str, str] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.environ = environ_of(transport.get_extra_info("ssl_object"))

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


@on_each_loop
async def test_a_loop_makes_transports_of_it(files: Files, tmp_path: Path) -> None:
    files.verify_clients()
    tls = files.load()
    client = Client(tmp_path, CLIENTS.issue(name_of((CN, "Somebody"))))
    names = []
    for name in ("default.example", "other.example"):
        ours, its = socket.socketpair()
        ours.setblocking(False)
        its.settimeout(DEADLINE)

        def connect(its: socket.socket = its, name: str = name) -> None:
            with client.context.wrap_socket(its, server_hostname=name) as end:
                end.sendall(b"ping")
                assert end.recv(4) == b"ping"
                names.append(end.getpeercert()["subjectAltName"][0][1])  # type: ignore[index]

        connected = asyncio.ensure_future(in_thread(connect))
        loop = asyncio.get_running_loop()
        protocol = Told()
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, ours, ssl=tls.context)  # noqa: B023
        await connected
        transport.abort()
        assert protocol.environ["SSL_CLIENT_S_DN"] == "CN=Somebody"
        assert protocol.environ["SSL_PROTOCOL"] == "TLSv1.3"
    assert names == ["default.example", "other.example"]
