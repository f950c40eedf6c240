"""What gunicorn and uvicorn call their options, and what to write here instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Option:
    """An option of another server, which has no setting of its name here."""

    of: Literal["gunicorn", "uvicorn", "both"]
    names: tuple[str, ...]  # all its spellings as a flag and as a key, with underscores
    here: str = ""  # the setting in its place, of a server or of the command; empty if there is none
    remark: str = ""  # what else there is to know; never empty without a setting

    def advice(self, spell: Callable[[str], str]) -> str:
        """What to do instead, in a few words. `spell` makes of a setting's name what is to be written."""
        return ", ".join(filter(None, (f"here it is {spell(self.here)}" if self.here else "", self.remark)))


_ONE_PROCESS: Final = "a server is one process: raise threads, or start several with reuse_port"
_NO_RECYCLING: Final = "no process is recycled: the service manager can restart it"
_NO_RELOADER: Final = "there is no reloader: for development, watchfiles 'waitress-async shop.web:app'"
_NO_ACCESS_LOG: Final = "there is no access log: the proxy in front or a WSGI middleware can write one"
_MANAGER: Final = "the service manager does it, such as systemd"
_FRONT: Final = "an answer has what the app gives it: a WSGI middleware can add more"
_CERT_REQS: Final = "0 is none, 1 is optional, 2 is required"
_CONTEXT: Final = "for others a program gives an ssl_context"
_NO_HTTP2: Final = "HTTP/1.1 is spoken: a proxy in front can speak HTTP/2"
_NO_ASGI: Final = "it is about ASGI, and this server runs WSGI apps"

OPTIONS: Final[tuple[Option, ...]] = (
    # Where it listens.
    Option("gunicorn", ("bind", "b"), "listen"),
    Option("uvicorn", ("uds",), "unix_socket"),
    Option("uvicorn", ("fd",), "listen", "as fd://NUMBER"),
    Option(
        "gunicorn", ("umask", "m"), "unix_socket_perms", "of unix sockets; of files it is as it was found"
    ),
    # Processes and threads.
    Option("both", ("workers", "w"), remark=_ONE_PROCESS),
    Option("gunicorn", ("worker_class", "k"), remark="there is one kind: threads behind an event loop"),
    Option("gunicorn", ("worker_connections",), "connection_limit"),
    Option(
        "uvicorn",
        ("limit_concurrency",),
        "max_queue",
        "beyond it 503; connections are bounded by connection_limit",
    ),
    Option("gunicorn", ("max_requests", "max_requests_jitter"), remark=_NO_RECYCLING),
    Option("uvicorn", ("limit_max_requests", "limit_max_requests_jitter"), remark=_NO_RECYCLING),
    Option(
        "gunicorn", ("preload_app", "preload"), remark="the app is always imported before anything is served"
    ),
    # Time.
    Option("gunicorn", ("timeout", "t"), remark="a request may take its time: no thread is killed"),
    Option("uvicorn", ("timeout_worker_healthcheck",), remark=_ONE_PROCESS),
    Option("gunicorn", ("keepalive", "keep_alive"), "channel_timeout"),
    Option("uvicorn", ("timeout_keep_alive",), "channel_timeout"),
    Option("uvicorn", ("timeout_graceful_shutdown",), "graceful_timeout"),
    # The app.
    Option("gunicorn", ("wsgi_app",), "app"),
    Option("uvicorn", ("factory",), "call"),
    Option("gunicorn", ("chdir", "pythonpath"), "app_dir", "for imports; the working directory stays"),
    Option("both", ("reload",), remark=_NO_RELOADER),
    Option("gunicorn", ("reload_engine", "reload_extra_files", "reload_extra_file"), remark=_NO_RELOADER),
    Option("uvicorn", ("reload_dir", "reload_dirs", "reload_delay"), remark=_NO_RELOADER),
    Option(
        "uvicorn",
        ("reload_include", "reload_includes", "reload_exclude", "reload_excludes"),
        remark=_NO_RELOADER,
    ),
    Option("gunicorn", ("raw_env", "env", "e"), remark="set variables where the command is started"),
    Option(
        "uvicorn", ("env_file",), remark="set variables where the command is started, as by EnvironmentFile="
    ),
    Option("both", ("root_path",), "url_prefix"),
    Option("uvicorn", ("interface", "ws", "http"), remark=_NO_ASGI),
    Option(
        "gunicorn", ("paste", "paster"), remark="it is pserve's: use = egg:waitress-async in [server:main]"
    ),
    # Proxies.
    Option(
        "both", ("forwarded_allow_ips",), "trusted_proxy", "and name the headers in trusted_proxy_headers"
    ),
    Option("uvicorn", ("proxy_headers",), "trusted_proxy", "and name the headers in trusted_proxy_headers"),
    Option("gunicorn", ("secure_scheme_headers", "forwarder_headers"), "trusted_proxy_headers"),
    Option("gunicorn", ("proxy_allow_ips", "proxy_allow_from"), "proxy_protocol_from"),
    # TLS.
    Option("uvicorn", ("ssl_certfile",), "certfile"),
    Option("uvicorn", ("ssl_keyfile",), "keyfile"),
    Option("uvicorn", ("ssl_keyfile_password",), "keyfile_password"),
    Option("uvicorn", ("ssl_ca_certs",), "ca_certs", "with client_verify"),
    Option("gunicorn", ("cert_reqs",), "client_verify", _CERT_REQS),
    Option("uvicorn", ("ssl_cert_reqs",), "client_verify", _CERT_REQS),
    Option("both", ("ssl_version",), remark=f"it is TLS 1.2 and up: {_CONTEXT}"),
    Option("gunicorn", ("ciphers",), remark=f"they are those of Python's ssl: {_CONTEXT}"),
    Option("uvicorn", ("ssl_ciphers",), remark=f"they are those of Python's ssl: {_CONTEXT}"),
    Option("uvicorn", ("ssl_context_factory",), "ssl_context", "which is a context, for programs"),
    Option(
        "gunicorn",
        ("do_handshake_on_connect",),
        remark="handshakes are on the event loop, within tls_handshake_timeout",
    ),
    Option("gunicorn", ("suppress_ragged_eofs",), remark="they always are"),
    Option("gunicorn", ("http_protocols", "http2_cleartext"), remark=_NO_HTTP2),
    Option("gunicorn", ("http2_max_concurrent_streams", "http2_initial_window_size"), remark=_NO_HTTP2),
    Option("gunicorn", ("http2_max_frame_size", "http2_max_header_list_size"), remark=_NO_HTTP2),
    # Bounds and files.
    Option("gunicorn", ("limit_request_line",), "max_request_target_size"),
    Option("gunicorn", ("limit_request_fields",), "max_request_header_fields"),
    Option("gunicorn", ("limit_request_field_size",), "max_request_header_size", "of all fields together"),
    Option("uvicorn", ("h11_max_incomplete_event_size",), "max_request_header_size"),
    Option("gunicorn", ("worker_tmp_dir",), remark="there is no heartbeat file; tmp_dir is for bodies"),
    Option("gunicorn", ("tmp_upload_dir",), "tmp_dir"),
    Option("gunicorn", ("sendfile",), remark="it is used where the system has it"),
    # Headers.
    Option("uvicorn", ("server_header",), "ident", "empty sends none"),
    Option("uvicorn", ("date_header",), remark="it is always sent"),
    Option("uvicorn", ("header", "headers"), remark=_FRONT),
    # Logs.
    Option("uvicorn", ("access_log",), remark=_NO_ACCESS_LOG),
    Option("gunicorn", ("accesslog", "access_logfile"), remark=_NO_ACCESS_LOG),
    Option("gunicorn", ("access_log_format", "access_logformat"), remark=_NO_ACCESS_LOG),
    Option("gunicorn", ("errorlog", "error_logfile", "log_file"), "log_config", "without it stderr"),
    Option("gunicorn", ("loglevel",), "log_level"),
    Option("gunicorn", ("logconfig", "logconfig_dict", "log_config_json", "logconfig_json"), "log_config"),
    Option("gunicorn", ("logger_class", "syslog", "log_syslog", "capture_output"), "log_config"),
    Option("uvicorn", ("use_colors",), "log_config"),
    # The process.
    Option("gunicorn", ("c",), remark="write --config, for a file in TOML"),
    Option("gunicorn", ("daemon", "D"), remark=f"it stays in the foreground: {_MANAGER}"),
    Option("gunicorn", ("pidfile", "pid", "p"), remark=_MANAGER),
    Option(
        "gunicorn", ("user", "u", "group", "g"), remark=f"{_MANAGER}; a unix socket has unix_socket_owner"
    ),
    Option("gunicorn", ("proc_name", "name", "n"), remark=_MANAGER),
)


def option_called(name: str) -> Option | None:
    """The option of another server that `name` stands for: a key, or a flag without its leading dashes."""
    plain = name.replace("-", "_")
    for candidate in (plain, plain.removeprefix("no_")):
        for option in OPTIONS:
            if candidate in option.names:
                return option
    return None


def options_reference() -> str:
    """The options as a Markdown table."""
    rows = [
        f"| {' '.join(f'`{name}`' for name in option.names)} | {option.of} "
        f"| {f'`{option.here}`' if option.here else 'none'} | {option.remark} |"
        for option in OPTIONS
    ]
    return "\n".join(["| option | of | here | |", "|---|---|---|---|", *rows]) + "\n"
