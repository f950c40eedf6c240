"""PasteDeploy's entry points: `use = egg:waitress-async` in a `[server:main]`, whose settings are strings.

PasteDeploy takes the factory where a distribution has both under one name; other readers of such files know
the runner alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from waitress_async.server.run import run, serve
from waitress_async.server.server import Server
from waitress_async.settings import Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


def serve_paste(app: WSGIApplication, global_conf: Mapping[str, str], **options: object) -> int:
    """A `paste.server_runner`: `serve(app, **options)`, and 0. `global_conf` is not looked at."""
    serve(app, **options)
    return 0


def paste_server_factory(
    global_conf: Mapping[str, str], **options: object
) -> Callable[[WSGIApplication], None]:
    """A `paste.server_factory`: a function that serves the app it is given, as `serve` does.

    Raises SettingsError (a ValueError) before there is an app, which may take long to be made.
    """
    settings = Settings.from_keywords(**options)

    def serve_app(app: WSGIApplication) -> None:
        run(Server(app, settings), settings)

    return serve_app
