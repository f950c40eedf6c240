"""TLS: contexts made of files, and made anew of them; what a handshake tells the app. Any thread."""

from __future__ import annotations

import errno
import os
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any, Final, Literal

from waitress_async.errors import SettingsError
from waitress_async.server.distinguished_names import name_text
from waitress_async.settings import Settings, parse_sni

Connection = ssl.SSLObject | ssl.SSLSocket

_VERIFY_MODES: Final = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}

# How PEM begins (RFC 7468), in its older and its encrypted forms too.
_CERTIFICATE: Final = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----")
_PRIVATE_KEY: Final = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )?PRIVATE KEY-----")

# What OpenSSL says of a key that is not the certificate's; the last, of one that is not even of its kind.
_NOT_ITS_KEY: Final = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})

# Bytes of a file that OpenSSL has refused, read to tell why.
_LOOKED_AT: Final = 1_048_576


class TLS:
    """What a server encrypts its connections with.

    `context` is for one connection: ask for it anew for the next, because `reload` puts another in its place.
    Connections keep the one that they began with. It takes TLS 1.2 and later, and agrees on http/1.1 with
    clients that ask (RFC 7301); one that offers other protocols only is served without an agreement.
    """

    context: ssl.SSLContext

    def __init__(
        self,
        *,
        certfile: str | None = None,
        keyfile: str | None = None,
        keyfile_password: str | None = None,
        ca_certs: str | None = None,
        client_verify: Literal["none", "optional", "required"] = "none",
        sni: Sequence[str] = (),
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Load all that the arguments name, which are settings that agree with each other.

        Paths are relative to the working directory of this moment, and stay what they are then. One password
        is for all keys that are encrypted; nobody is asked for one on a terminal. If there are revocation
        lists in `ca_certs`, a client's certificate is looked up in its authority's, which must be there and
        current. A client that cannot be verified is refused by "optional", too.

        Raises SettingsError for a file that holds the wrong thing, and OSError, whose `strerror` is the
        sentence, for one that cannot be read. Both name the file.
        """
        self._reloading = Lock()
        if ssl_context is not None:
            self._files: _Files | None = None
            self.context = ssl_context
            return
        assert certfile is not None
        self._files = _Files(
            default=_Pair.of(certfile, keyfile),
            by_name={
                name: _Pair.of(*paths, owner=f" of sni {name}") for name, paths in parse_sni(sni).items()
            },
            password=keyfile_password,
            ca_certs=_absolute(ca_certs) if ca_certs else None,
            verify_mode=_VERIFY_MODES[client_verify],
        )
        self.context = self._files.load()

    def reload(self) -> None:
        """Load all files anew, for the connections to come. Any thread: one waits for the other, so that what
        was read last is what is in force.

        It takes effect as a whole, or not at all: then it raises what the constructor raises, and what was
        loaded before goes on being used. SettingsError, too, for an `ssl_context` of the program's.
        """
        if self._files is None:
            raise SettingsError("ssl_context cannot be reloaded; the program may call its load_cert_chain()")
        # Another context, rather than other files for this one: there a handshake could meet the new
        # certificate with the old key, and a broken file would leave half of them. Nor can a context forget
        # anything: authorities, a certificate of another kind, or the keys of tickets, which let in clients
        # that were verified before.
        with self._reloading:
            self.context = self._files.load()


def load_tls(settings: Settings) -> TLS | None:
    """What the settings say of TLS, if they say that it is spoken. Reads files, and raises as `TLS` does."""
    if not settings.speaks_tls:
        return None
    return TLS(
        certfile=settings.certfile,
        keyfile=settings.keyfile,
        keyfile_password=settings.keyfile_password,
        ca_certs=settings.ca_certs,
        client_verify=settings.client_verify,
        sni=settings.sni,
        ssl_context=settings.ssl_context,
    )


def environ_of(connection: Connection) -> dict[str, str]:
    """What an environ tells of a connection, by mod_ssl's names. To be asked once, after the handshake.

    Always: HTTPS ("on"), SSL_PROTOCOL ("TLSv1.3"), SSL_CIPHER (by OpenSSL's name) and SSL_CLIENT_VERIFY:
    "SUCCESS" for a client with a certificate, which has been verified then, otherwise "NONE".

    With a client certificate: SSL_CLIENT_CERT, in PEM, and SSL_CLIENT_S_DN, its subject as text of RFC 2253
    in printable ASCII, as nginx has it. That one is missing if `ssl` cannot decode the certificate.
    """
    cipher = connection.cipher()
    environ = {
        "HTTPS": "on",
        "SSL_PROTOCOL": connection.version() or "",
        "SSL_CIPHER": cipher[0] if cipher else "",
        "SSL_CLIENT_VERIFY": "NONE",
    }
    certificate = connection.getpeercert(binary_form=True)
    if certificate:
        environ["SSL_CLIENT_VERIFY"] = "SUCCESS"
        environ["SSL_CLIENT_CERT"] = ssl.DER_cert_to_PEM_cert(certificate)
        try:
            decoded: dict[str, Any] = connection.getpeercert() or {}
        except (ssl.SSLError, ValueError):
            pass  # names that are no text, which OpenSSL does not mind
        else:
            environ["SSL_CLIENT_S_DN"] = name_text(decoded.get("subject", ()))
    return environ


# -- files


@dataclass(frozen=True, slots=True)
class _Pair:
    """Where a certificate and its key are read from. Absolute paths: a program may change its directory."""

    certfile: str
    keyfile: str  # the same if the key is there too
    owner: str  # what follows the path in an error

    @classmethod
    def of(cls, certfile: str, keyfile: str | None, owner: str = "") -> _Pair:
        return cls(_absolute(certfile), _absolute(keyfile or certfile), owner)

    @property
    def certificate(self) -> str:
        """What errors call the one file."""
        return f"certfile {self.certfile!a}{self.owner}"

    @property
    def key(self) -> str:
        """What errors call the other."""
        return self.certificate if self.keyfile == self.certfile else f"keyfile {self.keyfile!a}{self.owner}"


@dataclass(frozen=True, slots=True)
class _Files:
    """All that contexts are made of."""

    default: _Pair
    by_name: Mapping[str, _Pair]
    password: str | None = field(repr=False)
    ca_certs: str | None
    verify_mode: ssl.VerifyMode

    def load(self) -> ssl.SSLContext:
        """The context of `default`, which hands a connection over to another if the client names it."""
        context = self._context(self.default)
        if self.by_name:
            contexts = {name: self._context(pair) for name, pair in self.by_name.items()}
            context.sni_callback = partial(_choose, contexts)
        return context

    def _context(self, pair: _Pair) -> ssl.SSLContext:
        # All are alike: from the one that a connection is handed over to, OpenSSL takes certificate, ALPN and
        # authorities, but neither options nor whether to verify.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)  # or the system's
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        _load_pair(context, pair, self.password)
        if self.ca_certs is not None:
            _load_authorities(context, self.ca_certs)
        context.verify_mode = self.verify_mode
        return context


def _choose(
    contexts: Mapping[str, ssl.SSLContext], connection: Connection, name: str | None, _: object
) -> None:
    """Have a connection go on with the context of `name`, if there is one. OpenSSL asks, in the handshake."""
    if name is None:
        return
    name = name.lower()
    context = contexts.get(name) or contexts.get("*." + name.partition(".")[2])
    if context is not None:
        connection.context = context


def _load_pair(context: ssl.SSLContext, pair: _Pair, password: str | None) -> None:
    asked = False

    def give_password() -> bytes:
        nonlocal asked
        asked = True
        return (password or "").encode("utf-8", "surrogateescape")

    try:
        context.load_cert_chain(pair.certfile, pair.keyfile, give_password)  # without it, a terminal is asked
    except (OSError, ValueError) as error:
        _look_for(_CERTIFICATE, pair.certificate, pair.certfile, "certificate")
        _look_for(_PRIVATE_KEY, pair.key, pair.keyfile, "private key")
        raise SettingsError(_reason(pair, password, asked, error)) from error


def _reason(pair: _Pair, password: str | None, asked: bool, error: OSError | ValueError) -> str:
    """What is wrong with files that look like a certificate and its key. Often OpenSSL says but "PEM lib"."""
    word: str | None = getattr(error, "reason", None)
    if word in _NOT_ITS_KEY:
        return f"The key in {pair.key} is not that of the certificate in {pair.certificate}"
    if asked and password is None:
        return f"The key in {pair.key} is encrypted, and keyfile_password is not set"
    if asked and isinstance(error, ssl.SSLError):
        return f"keyfile_password does not open the key in {pair.key}"
    if asked:
        return f"keyfile_password: {error}"
    if not _holds_certificates(pair.certfile):
        return f"A certificate in {pair.certificate} is damaged"
    if word:
        return f"The certificate in {pair.certificate} cannot be used: {word.replace('_', ' ').lower()}"
    return f"The key in {pair.key} is damaged, or of a kind that OpenSSL does not know"


def _holds_certificates(path: str) -> bool:
    """Whether what looks like certificates can be read as such."""
    try:
        text = _beginning(path).decode("ascii", "backslashreplace")
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=text)
    except ssl.SSLError:
        return False
    return True


def _load_authorities(context: ssl.SSLContext, path: str) -> None:
    name = f"ca_certs {path!a}"
    try:
        context.load_verify_locations(path)
    except (OSError, ValueError) as error:
        _look_for(_CERTIFICATE, name, path, "certificate")
        raise SettingsError(f"A certificate in {name} is damaged") from error
    held = context.cert_store_stats()
    if not held["x509"]:
        raise SettingsError(f"{name} holds no certificate in PEM")
    if held["crl"]:  # of which OpenSSL would make no use
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def _look_for(pattern: re.Pattern[bytes], name: str, path: str, what: str) -> None:
    """Raise for a file that cannot be read, or has nothing in it that looks like `what`."""
    try:
        found = pattern.search(_beginning(path))
    except OSError as error:
        raise OSError(error.errno, f"Cannot read {name}: {error.strerror}") from error
    except ValueError as error:  # a null character
        raise OSError(errno.EINVAL, f"Cannot read {name}: {error}") from error
    if not found:
        raise SettingsError(f"{name} holds no {what} in PEM")


def _beginning(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_LOOKED_AT)


def _absolute(path: str) -> str:
    try:
        return os.path.join(os.getcwd(), path)
    except OSError:  # the directory is gone; who opens the path will see
        return path
