"""Where a request that came by plain HTTP is sent on to."""

from __future__ import annotations

from typing import Final

from waitress_async.http import Request

_HTTPS_PORT: Final = 443


def https_url(request: Request, server_name: str, port: int) -> str:
    """What `request` asks for, by https at `port`; of `server_name`, if it does not say of whom.

    A target in absolute form has become the Host field already (RFC 9112 section 3.2.2).
    """
    host = request.fields.get("HTTP_HOST") or server_name
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    authority = name if port == _HTTPS_PORT else f"{name}:{port}"
    return f"https://{authority}{_origin_form(request)}"


def _origin_form(request: Request) -> str:
    """The target without what comes before its path (RFC 9112 section 3.2.1)."""
    target = request.target
    if not target.startswith("/"):
        _, is_absolute, rest = target.partition("://")
        target = rest[len(request.fields["HTTP_HOST"]) :] if is_absolute else target.lstrip("*")
    return target if target.startswith("/") else f"/{target}"
