"""PEP 3333: environ, start_response, write, iteration, close. No asyncio and no threads here."""

from waitress_async.wsgi.application import Sink, run_application
from waitress_async.wsgi.environ import (
    Environ,
    add_complete_body,
    add_streamed_body,
    base_environ,
    request_environ,
)

__all__ = [
    "Environ",
    "Sink",
    "add_complete_body",
    "add_streamed_body",
    "base_environ",
    "request_environ",
    "run_application",
]
