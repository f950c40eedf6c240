"""For each setting a text and the value that it stands for, which is never the default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from waitress_async.settings import COMMAND_DECLARATIONS, DECLARATIONS, Declaration
from waitress_async.settings.casts import Secret

ALL: Final[tuple[Declaration, ...]] = (*DECLARATIONS, *COMMAND_DECLARATIONS)
TEXTUAL: Final = [declaration for declaration in ALL if not declaration.keyword_only]
BY_NAME: Final[Mapping[str, Declaration]] = {declaration.name: declaration for declaration in ALL}

_BOOLS: Final = {True: ("Yes", True), False: ("off", False)}

SAMPLES: Final[Mapping[str, tuple[str, object]]] = {
    **{d.name: (f" {d.default + 1}", d.default + 1) for d in TEXTUAL if isinstance(d.default, int)},
    **{d.name: _BOOLS[not d.default] for d in TEXTUAL if d.type is bool},
    "host": ("::1", "::1"),
    "listen": (
        "localhost:80 [::1]:0\nunix:/run/app fd://3",
        ("localhost:80", "[::1]:0", "unix:/run/app", "fd://3"),
    ),
    "unix_socket": ("/run/app.sock", "/run/app.sock"),
    "unix_socket_perms": ("660", 0o660),
    "unix_socket_owner": ("www-data:", "www-data:"),
    "trusted_proxy": ("10.0.0.0/8, ::1 localhost", ("10.0.0.0/8", "::1", "localhost")),
    "trusted_proxy_count": ("2", 2),
    "trusted_proxy_headers": ("x-forwarded-for X-Forwarded-Proto", ("x-forwarded-for", "X-Forwarded-Proto")),
    "proxy_protocol": ("v2", "v2"),
    "proxy_protocol_from": ("*", ("*",)),
    "proxy_protocol_timeout": ("500ms", 0.5),
    "certfile": ("cert.pem", "cert.pem"),
    "keyfile": ("key.pem", "key.pem"),
    "keyfile_password": ("a secret", Secret("a secret")),
    "ca_certs": ("ca.pem", "ca.pem"),
    "client_verify": ("optional", "optional"),
    "sni": ("a.example=a.pem *.b.example=b.pem,b.key", ("a.example=a.pem", "*.b.example=b.pem,b.key")),
    "tls_handshake_timeout": ("1m", 60.0),
    "redirect_listen": ("*:80 [::1]:8080", ("*:80", "[::1]:8080")),
    "spare_threads": ("3", 3),
    "max_streams": ("500", 500),
    "thread_init": ("shop.pools:connect", "shop.pools:connect"),
    "thread_exit": ("shop.pools:disconnect", "shop.pools:disconnect"),
    "lifespan": (" shop.web:lifespan('prod')", "shop.web:lifespan('prod')"),
    "gates": (
        "shop.gates:Limit(10, 'a b') shop.gates:is_open,shop.gates:is_known",
        ("shop.gates:Limit(10, 'a b')", "shop.gates:is_open", "shop.gates:is_known"),
    ),
    "gate_timeout": ("1500 ms", 1.5),
    "live_path": ("/-/live", "/-/live"),
    "ready_path": ("/-/ready", "/-/ready"),
    "ready_max_queue_age": ("0", 0.0),
    "ident": ("a server", "a server"),
    "server_name": ("example.org", "example.org"),
    "url_scheme": ("https", "https"),
    "url_prefix": ("shop/", "/shop"),
    "max_request_body_size": ("1.5 MiB", 1_572_864),
    "tmp_dir": ("/var/tmp", "/var/tmp"),
    "stream_request_prefix": ("/up /files", ("/up", "/files")),
    "drain_delay": ("5", 5.0),
    "header_timeout": ("10 s", 10.0),
    "body_min_rate": ("0", 0.0),
    "response_min_rate": ("1e3", 1000.0),
    "min_rate_grace": ("2.5", 2.5),
    "queue_timeout": ("1m", 60.0),
    "linger_timeout": ("0", 0.0),
    "channel_timeout": ("1m30s", 90.0),
    "graceful_timeout": ("0", 0.0),
    "loop": ("asyncio", "asyncio"),
    "app": ("wsgiref.simple_server:demo_app", "wsgiref.simple_server:demo_app"),
    "app_dir": ("src", "src"),
    "log_level": ("WARNING", "warning"),
    "log_config": ("logging.toml", "logging.toml"),
    "switch_interval": ("2ms", 0.002),
}

# What must be set too, so that a setting may be.
COMPANIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "trusted_proxy_count": ("trusted_proxy",),
    "trusted_proxy_headers": ("trusted_proxy",),
    **dict.fromkeys(("keyfile", "keyfile_password", "sni", "redirect_listen"), ("certfile",)),
    "ca_certs": ("certfile", "client_verify"),
    "client_verify": ("certfile", "ca_certs"),
}


def flags_of(name: str, value: object) -> list[str]:
    """The flags that give a setting a value, which is a bool or text."""
    on, _, off = str(BY_NAME[name].flag).partition("/")
    if BY_NAME[name].type is bool:
        return [on if value else off]
    return [f"{on}={value}"]
