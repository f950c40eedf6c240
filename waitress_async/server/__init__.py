"""asyncio only: listeners, protocol, exchange, sender, sweep, and the server that has them all."""

from waitress_async.server.run import run, serve, serve_async
from waitress_async.server.server import Server

__all__ = ["Server", "run", "serve", "serve_async"]
