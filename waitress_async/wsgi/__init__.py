"""PEP 3333: environ, start_response, write, iteration, close. No asyncio and no threads here."""

from waitress_async.wsgi.application import Sink, run_application
from waitress_async.wsgi.environ import (
    Environ,
    Environs,
    add_complete_body,
    add_streamed_body,
    connection_environ,
    logged_path,
    path_below,
    server_environ,
)
from waitress_async.wsgi.proxy_headers import PROXY_FIELDS, ProxyHeaders
from waitress_async.wsgi.recognition import check_application, check_factory

__all__ = [
    "PROXY_FIELDS",
    "Environ",
    "Environs",
    "ProxyHeaders",
    "Sink",
    "add_complete_body",
    "add_streamed_body",
    "check_application",
    "check_factory",
    "connection_environ",
    "logged_path",
    "path_below",
    "run_application",
    "server_environ",
]
