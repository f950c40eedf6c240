"""What the headers of a trusted proxy do to an environ: who the client is, and what it connected to."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from waitress_async.errors import MalformedProxyHeader
from waitress_async.http.forwarded import (
    Node,
    format_forwarded,
    last_entries,
    parse_address,
    parse_forwarded,
    parse_node,
    unquote,
)
from waitress_async.http.grammar import is_authority

T = TypeVar("T")

Warn = Callable[[str, str], object]

# CGI name -> field name, of all that is removed from what others than a trusted proxy send.
PROXY_FIELDS: Final[dict[str, str]] = {
    "HTTP_FORWARDED": "forwarded",
    "HTTP_X_FORWARDED_FOR": "x-forwarded-for",
    "HTTP_X_FORWARDED_HOST": "x-forwarded-host",
    "HTTP_X_FORWARDED_PROTO": "x-forwarded-proto",
    "HTTP_X_FORWARDED_PORT": "x-forwarded-port",
    "HTTP_X_FORWARDED_BY": "x-forwarded-by",
}

_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}

_PORT: Final = re.compile(r"[0-9]{1,5}+")


class _Host(NamedTuple):
    name: str  # IPv6 in brackets, as Host and SERVER_NAME (RFC 3875 section 4.1.14) have it
    port: str  # "" if none is told


class _Told(NamedTuple):
    """What the headers tell of a request; None and "" where they tell nothing."""

    client: Node | None = None
    host: _Host | None = None
    scheme: str = ""
    port: str = ""


@dataclass(frozen=True, slots=True)
class ProxyHeaders:
    """Which headers of a trusted proxy are believed, and how far."""

    trusted: frozenset[str]  # of the values of PROXY_FIELDS: "forwarded" alone, or any of the others
    count: int  # proxies that are trusted, and so entries of a list, counted from its right end; 1 or more

    def apply(self, fields: Mapping[str, str], warn: Warn, scheme: str = "http") -> dict[str, str]:
        """A copy of a request's fields, with what the trusted ones tell.

        `fields` maps CGI names to latin-1 text, the lines of each name joined by commas, and came from a
        trusted proxy. `scheme` is that of the connection, for requests of which no other is told. `warn`
        is called with a format and its argument, at most once.

        The trusted headers are rewritten to what was trusted of them. Where they tell something, HTTP_HOST
        is replaced, and REMOTE_ADDR, REMOTE_HOST, REMOTE_PORT, SERVER_NAME, SERVER_PORT and
        wsgi.url_scheme are added, to be laid over those of the connection. REMOTE_PORT is "" for a client
        whose port is not told: it must not seem to have the proxy's.

        Raises MalformedProxyHeader. Any thread may call it.
        """
        environ = dict(fields)
        if fields.keys().isdisjoint(PROXY_FIELDS):
            return environ
        if "forwarded" in self.trusted:
            told = self._read_forwarded(environ, warn)
        else:
            told = self._read_x_forwarded(environ)
        _lay_over(environ, told, scheme)
        return environ

    def _read_forwarded(self, environ: dict[str, str], warn: Warn) -> _Told:
        """Of each parameter the oldest value: those who come after the first proxy know but that proxy."""
        value = environ.get("HTTP_FORWARDED")
        if not value:
            return _Told()
        elements = parse_forwarded(value, self.count)
        client = host = scheme = None
        unknown = ""
        for element in reversed(elements):
            for name, text in element.items():
                if name == "for":
                    client = _understood(parse_node(text), "HTTP_FORWARDED", "for is no node", value)
                elif name == "by":
                    _understood(parse_node(text), "HTTP_FORWARDED", "by is no node", value)
                elif name == "host":
                    host = _understood(_parse_host(text), "HTTP_FORWARDED", "host is no host", value)
                elif name == "proto":
                    scheme = _understood(
                        _parse_scheme(text), "HTTP_FORWARDED", "proto is neither http nor https", value
                    )
                else:
                    unknown = name
        environ["HTTP_FORWARDED"] = format_forwarded(elements)
        if unknown:
            warn("Unknown Forwarded token: %s", unknown)
        return _Told(client, host, scheme or "")

    def _read_x_forwarded(self, environ: dict[str, str]) -> _Told:
        client = self._oldest(environ, "HTTP_X_FORWARDED_FOR", parse_address, "an entry is no address")
        host = self._oldest(environ, "HTTP_X_FORWARDED_HOST", _parse_host, "an entry is no host")
        self._oldest(environ, "HTTP_X_FORWARDED_BY", _parse_name, "an entry is no address and no host")
        scheme = self._only(environ, "HTTP_X_FORWARDED_PROTO", _parse_scheme, "neither http nor https")
        port = self._only(environ, "HTTP_X_FORWARDED_PORT", _parse_port, "not one port number")
        return _Told(client, host, scheme or "", port or "")

    def _oldest(
        self, environ: dict[str, str], key: str, parse: Callable[[str], T | None], reason: str
    ) -> T | None:
        """The leftmost of a list's trusted entries. All of them must be well-formed."""
        value = environ.get(key)
        if not value or PROXY_FIELDS[key] not in self.trusted:
            return None
        entries = last_entries(value, self.count)
        parsed = [_understood(parse(entry), key, reason, value) for entry in entries]
        environ[key] = ", ".join(entries)
        return parsed[0]

    def _only(
        self, environ: dict[str, str], key: str, parse: Callable[[str], str | None], reason: str
    ) -> str | None:
        """The value of a field that is no list: of two it could not be known which is whose."""
        value = environ.get(key)
        if not value or PROXY_FIELDS[key] not in self.trusted:
            return None
        environ[key] = parsed = _understood(parse(unquote(value)), key, reason, value)
        return parsed


def _lay_over(environ: dict[str, str], told: _Told, scheme: str) -> None:
    """Set the keys of which something is told.

    A host's own port is the best witness of SERVER_PORT, then X-Forwarded-Port, then the scheme. The
    Host field has no say in this: it may well be the proxy's name for us.
    """
    client, host, told_scheme, port = told
    if client is not None:
        environ["REMOTE_ADDR"] = environ["REMOTE_HOST"] = client.name
        environ["REMOTE_PORT"] = client.port
    if told_scheme:
        environ["wsgi.url_scheme"] = scheme = told_scheme
        port = port or _DEFAULT_PORTS[scheme]
    if host is not None:
        environ["SERVER_NAME"] = environ["HTTP_HOST"] = host.name
        if host.port or (port and port != _DEFAULT_PORTS.get(scheme)):
            port = host.port or port
            environ["HTTP_HOST"] += ":" + port
    if port:
        environ["SERVER_PORT"] = port


def _understood(parsed: T | None, key: str, reason: str, value: str) -> T:
    if parsed is None:
        raise MalformedProxyHeader(PROXY_FIELDS[key].title(), reason, value)
    return parsed


def _parse_host(text: str) -> _Host | None:
    """The host and port of an authority with a host (RFC 9110 section 4.2.1)."""
    if not is_authority(text.encode("latin-1")):
        return None
    colon = text.find(":", text.find("]") + 1)
    name, port = (text, "") if colon < 0 else (text[:colon], text[colon + 1 :])
    return _Host(name, port and str(int(port))) if name else None


def _parse_name(text: str) -> Node | _Host | None:
    """How a proxy calls itself in X-Forwarded-By, which nothing defines."""
    return parse_address(text) or _parse_host(text)


def _parse_scheme(text: str) -> str | None:
    scheme = text.lower()
    return scheme if scheme in _DEFAULT_PORTS else None


def _parse_port(text: str) -> str | None:
    return str(int(text)) if _PORT.fullmatch(text) and int(text) <= 65535 else None
