"""What stands between a request and the app: health, the redirect to https, proxies, gates. Loop's thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from waitress_async.errors import HTTPError, MalformedProxyHeader, PermanentRedirect
from waitress_async.http import Answer, Request
from waitress_async.server.gates import Hearing, Verdict
from waitress_async.server.proxies import Trust
from waitress_async.server.redirect import https_url
from waitress_async.server.runtime import Runtime
from waitress_async.wsgi import Environ, Environs


class Entrance:
    """That of one connection."""

    __slots__ = ("_base", "_redirect_port", "_runtime", "_trust")

    def __init__(
        self, runtime: Runtime, trust: Trust | None, base: Environ, redirect_port: int | None
    ) -> None:
        self._runtime = runtime
        self._trust = trust
        self._base = base
        self._redirect_port = redirect_port

    @classmethod
    def of(cls, runtime: Runtime, trust: Trust, environs: Environs, redirect_port: int | None) -> Self | None:
        """The entrance of a connection; None if nothing stands there, which costs nothing.

        `trust` is in its peer, `environs` makes those of its requests, and `redirect_port` where https is
        spoken, if all requests are sent there.
        """
        rewriting = trust if trust.rewrites else None
        if rewriting or runtime.gates or runtime.health or redirect_port is not None:
            return cls(runtime, rewriting, environs.base, redirect_port)
        return None

    def meet(
        self, request: Request, on_verdict: Callable[[Verdict], object]
    ) -> Request | Answer | HTTPError | Hearing:
        """The request, as it may go on; or its answer; or an error, after the answer of which the connection
        ends; or what comes to a verdict later, and calls `on_verdict` then."""
        runtime = self._runtime
        if runtime.health is not None and (answer := runtime.health.answer(request)) is not None:
            return answer
        if self._redirect_port is not None:
            return PermanentRedirect(https_url(request, runtime.settings.server_name, self._redirect_port))
        received = request.fields
        if self._trust is not None:
            base = self._base
            try:
                request = self._trust.apply(request, base["REMOTE_ADDR"], base["wsgi.url_scheme"])
            except MalformedProxyHeader as error:
                return error
        if runtime.gates is None:
            return request
        return runtime.gates.ask(request, received, self._base, runtime.connections.stamp, on_verdict)
