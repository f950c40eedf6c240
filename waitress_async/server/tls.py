"""TLS: contexts made of files, and made anew of them; what a handshake tells the app. Any thread."""

from __future__ import annotations

import errno
import os
import re
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from waitress_async.errors import SettingsError

Connection = ssl.SSLObject | ssl.SSLSocket

_VERIFY_MODES: Final = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}

# A host name as a client sends it (RFC 6066 section 3): in ASCII, without a dot at its end.
_SERVER_NAME: Final = re.compile(r"(?=.{1,253}\Z)(?:\*\.)?[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")

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
        """Load all that the arguments name. Paths are relative to the working directory of this moment.

        `certfile`: PEM, the server's certificate first, then those that lead to its root.
        `keyfile`: PEM; none if the key is in `certfile`.
        `keyfile_password`: for all keys that are encrypted. Nobody is asked for one on a terminal.
        `ca_certs`: PEM, the authorities of the clients. If there are revocation lists in it, a client's
        certificate is looked up in its authority's, which must be there and current.
        `client_verify`: whether a client may ("optional") or must ("required") have a certificate. One that
        cannot be verified is refused by both.
        `sni`: entries `name=certfile,keyfile`, or `name=certfile`, for clients that ask for `name`. `*.name`
        is for what has one label more, and no entry of its own. All others get `certfile`.
        `ssl_context`: instead of all that, and used as it is.

        Raises SettingsError for arguments that contradict each other, and for a file that holds the wrong
        thing; OSError, whose `strerror` is the sentence, for one that cannot be read. Both name the file.
        """
        values = {
            "certfile": certfile,
            "keyfile": keyfile,
            "keyfile_password": keyfile_password,
            "ca_certs": ca_certs,
            "client_verify": client_verify != "none",
            "sni": sni,
        }
        given = [name for name, value in values.items() if value]
        self._files: _Files | None = None
        if ssl_context is not None:
            _check_context(ssl_context, given)
            self.context = ssl_context
            return
        if not certfile:
            raise SettingsError(f"{given[0] if given else 'TLS'} has no meaning without setting certfile")
        if ca_certs and client_verify == "none":
            raise SettingsError("ca_certs has no meaning without setting client_verify")
        if not ca_certs and client_verify != "none":
            raise SettingsError(f"client_verify cannot be {client_verify} without setting ca_certs")
        self._files = _Files(
            default=_Pair.of(certfile, keyfile),
            by_name=_parse_sni(sni),
            password=keyfile_password or None,
            ca_certs=_absolute(ca_certs) if ca_certs else None,
            verify_mode=_VERIFY_MODES[client_verify],
        )
        self.context = self._files.load()

    def reload(self) -> None:
        """Load all files anew, for the connections to come. Any thread, one at a time.

        It takes effect as a whole, or not at all: then it raises what the constructor raises, and what was
        loaded before goes on being used. SettingsError, too, for an `ssl_context` of the program's.
        """
        if self._files is None:
            raise SettingsError("ssl_context cannot be reloaded; the program may call its load_cert_chain()")
        # Another context, rather than other files for this one: there a handshake could meet the new
        # certificate with the old key, and a broken file would leave half of them. Nor can a context forget
        # anything: authorities, a certificate of another kind, or the keys of tickets, which let in clients
        # that were verified before.
        self.context = self._files.load()


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
            environ["SSL_CLIENT_S_DN"] = _name_text(decoded.get("subject", ()))
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
            context.sni_callback = _Choice({name: self._context(pair) for name, pair in self.by_name.items()})
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


class _Choice:
    """Which context a connection goes on with. OpenSSL asks, during the handshake."""

    def __init__(self, contexts: Mapping[str, ssl.SSLContext]) -> None:
        self._contexts = contexts

    def __call__(self, connection: Connection, name: str | None, _: object) -> None:
        if name is None:
            return
        name = name.lower()
        context = self._contexts.get(name) or self._contexts.get("*." + name.partition(".")[2])
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


# -- settings


def _check_context(context: ssl.SSLContext, given: list[str]) -> None:
    if given:
        raise SettingsError(f"{given[0]} may not be set if ssl_context is set")
    if context.protocol is ssl.PROTOCOL_TLS_CLIENT:
        raise SettingsError("ssl_context is a client's: make it with ssl.PROTOCOL_TLS_SERVER")


def _parse_sni(entries: Iterable[str]) -> dict[str, _Pair]:
    pairs: dict[str, _Pair] = {}
    for entry in entries:
        name, _, paths = (part.strip() for part in entry.partition("="))
        certfile, comma, keyfile = (part.strip() for part in paths.partition(","))
        name = name.lower()
        if not certfile or bool(comma) != bool(keyfile) or "," in keyfile:
            raise SettingsError(f"sni: {entry!a} is not NAME=CERTFILE,KEYFILE or NAME=CERTFILE")
        if not _SERVER_NAME.fullmatch(name):
            raise SettingsError(f"sni: {name!a} is not a host name or *.NAME in ASCII (xn--... for others)")
        if name in pairs:
            raise SettingsError(f"sni: {name} is there twice")
        pairs[name] = _Pair.of(certfile, keyfile, f" of sni {name}")
    return pairs


# -- the subject of a certificate

# What OpenSSL writes, in RFC 2253's footsteps, where `ssl` has another name.
_SHORT_NAMES: Final = {
    "commonName": "CN",
    "countryCode3c": "c3",
    "countryCode3n": "n3",
    "countryName": "C",
    "domainComponent": "DC",
    "givenName": "GN",
    "jurisdictionCountryName": "jurisdictionC",
    "jurisdictionLocalityName": "jurisdictionL",
    "jurisdictionStateOrProvinceName": "jurisdictionST",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "rfc822Mailbox": "mail",
    "stateOrProvinceName": "ST",
    "streetAddress": "street",
    "surname": "SN",
    "uniqueIdentifier": "uid",
    "userId": "UID",
}

_SPECIAL: Final = re.compile(r'[,+"\\<>;]|[^ -~]|\A[ #]| \Z')

_BIT_STRING: Final = 3
_UTF8_STRING: Final = 12


def _name_text(names: tuple[tuple[tuple[str, str | bytes], ...], ...]) -> str:
    """A distinguished name as `ssl` has it, as text of RFC 2253: from the last to the first."""
    return ",".join("+".join(_attribute_text(*pair) for pair in reversed(name)) for name in reversed(names))


def _attribute_text(kind: str, value: str | bytes) -> str:
    kind = _SPECIAL.sub(_escape, _SHORT_NAMES.get(kind, kind))
    if isinstance(value, bytes):  # a string of bits, as many as there is room for
        return f"{kind}=#{_der(_BIT_STRING, bytes(1) + value)}"
    if kind[0].isdigit():  # section 2.4: what has no name is encoded; how it was, `ssl` does not tell
        return f"{kind}=#{_der(_UTF8_STRING, value.encode())}"
    return f"{kind}={_SPECIAL.sub(_escape, value)}"


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    if " " <= character <= "~":
        return "\\" + character
    return "".join(f"\\{byte:02X}" for byte in character.encode())


def _der(tag: int, content: bytes) -> str:
    """Hexadecimal of an encoded value (X.690 section 8.1)."""
    size = len(content)
    length = size.to_bytes((size.bit_length() + 7) // 8 or 1)
    if size >= 0x80:
        length = bytes([0x80 | len(length)]) + length
    return (bytes([tag]) + length + content).hex().upper()
