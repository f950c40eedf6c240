"""A Pyramid app whose page says what it takes the request for. `main` is what development.ini names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyramid.config import Configurator

if TYPE_CHECKING:
    from pyramid.request import Request
    from pyramid.router import Router


def page(request: Request) -> dict[str, Any]:
    return {
        "greeting": request.registry.settings["greeting"],
        "url": request.url,
        "client": request.client_addr,
    }


def main(_global_config: dict[str, str], **settings: str) -> Router:
    config = Configurator(settings=settings)
    config.add_route("page", "/")
    config.add_view(page, route_name="page", renderer="json")
    return config.make_wsgi_app()
