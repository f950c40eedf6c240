"""An asyncio-native WSGI server with async buffer streams."""

from waitress_async.errors import (
    AppImportError,
    ClientDisconnected,
    ServerClosed,
    SettingsError,
    WaitressAsyncError,
)
from waitress_async.server import Server, serve, serve_async
from waitress_async.settings import Settings

__version__ = "0.1.0"

__all__ = [
    "AppImportError",
    "ClientDisconnected",
    "Server",
    "ServerClosed",
    "Settings",
    "SettingsError",
    "WaitressAsyncError",
    "__version__",
    "serve",
    "serve_async",
]
