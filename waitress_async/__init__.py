"""An asyncio-native WSGI server with async buffer streams."""

from waitress_async.errors import (
    AppImportError,
    ClientDisconnected,
    LifespanError,
    NotWSGIError,
    ServerClosed,
    SettingsError,
    WaitressAsyncError,
)
from waitress_async.server import (
    BlockingServer,
    Gate,
    GateRequest,
    Refusal,
    Server,
    create_server,
    serve,
    serve_async,
    serve_paste,
)
from waitress_async.settings import Settings

__version__ = "0.1.0"

__all__ = [
    "AppImportError",
    "BlockingServer",
    "ClientDisconnected",
    "Gate",
    "GateRequest",
    "LifespanError",
    "NotWSGIError",
    "Refusal",
    "Server",
    "ServerClosed",
    "Settings",
    "SettingsError",
    "WaitressAsyncError",
    "__version__",
    "create_server",
    "serve",
    "serve_async",
    "serve_paste",
]
