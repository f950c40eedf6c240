"""asyncio only: listeners, protocol, exchange, sender, sweep, and the server that has them all."""

from waitress_async.server.blocking import BlockingServer, create_server
from waitress_async.server.gate_request import GateRequest
from waitress_async.server.gates import Gate
from waitress_async.server.paste import paste_server_factory, serve_paste
from waitress_async.server.refusal import Refusal
from waitress_async.server.run import run, serve, serve_async
from waitress_async.server.server import Server
from waitress_async.server.systemd import Notifier, listen_fds
from waitress_async.server.tls import load_tls

__all__ = [
    "BlockingServer",
    "Gate",
    "GateRequest",
    "Notifier",
    "Refusal",
    "Server",
    "create_server",
    "listen_fds",
    "load_tls",
    "paste_server_factory",
    "run",
    "serve",
    "serve_async",
    "serve_paste",
]
