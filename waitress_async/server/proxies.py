"""Whose word is taken for where a request comes from: the headers of trusted proxies. Loop's thread."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Final

from waitress_async.bridge import LogThread
from waitress_async.errors import MalformedProxyHeader
from waitress_async.http import HeadMemo, Request
from waitress_async.settings import Peers, Settings
from waitress_async.wsgi import PROXY_FIELDS, ProxyHeaders

# Characters of a header that are put into a log line.
_LOGGED: Final = 200


@dataclass(frozen=True, slots=True)
class Trust:
    """What the proxy headers of some peers are worth. Shared by all connections of those."""

    memo: HeadMemo  # which drops what nobody is to see
    believed: ProxyHeaders | None
    cleared: frozenset[str]  # CGI names that are taken out with a warning
    log: LogThread

    @property
    def rewrites(self) -> bool:
        """Whether `apply` may change anything."""
        return self.believed is not None or bool(self.cleared)

    def apply(self, request: Request, peer: str, scheme: str) -> Request:
        """The request as the proxy at the address `peer` tells it. Logs and raises MalformedProxyHeader.

        `scheme` is the wsgi.url_scheme of the connection.
        """
        fields = request.fields
        if removed := self.cleared & fields.keys():
            fields = {name: value for name, value in fields.items() if name not in removed}
            names = ", ".join(sorted(PROXY_FIELDS[name] for name in removed))
            self._warn("Removed untrusted headers (%s). They should be removed upstream.", names)
        if self.believed is not None:
            try:
                fields = self.believed.apply(fields, self._warn, scheme)
            except MalformedProxyHeader as error:
                self._warn(
                    'Malformed proxy header "%s" from "%s": %s value: %s',
                    error.header,
                    peer,
                    error.fault,
                    error.value,
                )
                raise
        return replace(request, fields=fields)

    def _warn(self, message: str, *values: str) -> None:
        self.log.log(logging.WARNING, message, *(ascii(value[:_LOGGED])[1:-1] for value in values))


class Proxies:
    """The proxies of one server, and what is believed of them."""

    def __init__(self, settings: Settings, log: LogThread) -> None:
        names = settings.believed_headers
        believed = frozenset(name for name, header in PROXY_FIELDS.items() if header in names)
        self._peers = Peers.parse(settings.trusted_proxy)
        self._others = _trust(None, frozenset(PROXY_FIELDS), settings, log)
        self._trusted = self._others
        if self._peers:
            headers = ProxyHeaders(names, settings.trusted_proxy_count or 1)
            self._trusted = _trust(headers, frozenset(PROXY_FIELDS) - believed, settings, log)

    def trust_in(self, peer: str) -> Trust:
        """`peer` is a connection's REMOTE_ADDR."""
        return self._trusted if peer in self._peers else self._others


def _trust(
    believed: ProxyHeaders | None, others: frozenset[str], settings: Settings, log: LogThread
) -> Trust:
    if not settings.clear_untrusted_proxy_headers:
        others = frozenset()
    told = settings.log_untrusted_proxy_headers
    return Trust(
        memo=HeadMemo(dropped=frozenset() if told else others),
        believed=believed,
        cleared=others if told else frozenset(),
        log=log,
    )
