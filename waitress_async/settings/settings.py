"""Every setting of a server, declared once.

The fields of `Settings` are the declaration: keyword arguments, flags, environment variables, keys of
files and docs/settings.md are all made from them.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Self

from waitress_async.errors import SettingsError
from waitress_async.settings.casts import CommaList, Gate, Lifespan, Mode, Prefix, Secret, ThreadHook
from waitress_async.settings.command import COMMAND_DECLARATIONS
from waitress_async.settings.declaration import (
    Declaration,
    check_names,
    convert_fields,
    declarations_of,
    setting,
)
from waitress_async.settings.peers import UNIX_PEER, Peers
from waitress_async.settings.places import (
    InternetPlace,
    Place,
    UnixPlace,
    as_listen,
    check_host,
    check_listen,
    check_unix_path,
    parse_listen,
)
from waitress_async.settings.rules import (
    check_exclusions,
    check_families,
    check_health,
    check_health_path,
    check_lifespan,
    check_one_place,
    check_prefix,
    check_prefixes,
    check_printable,
    check_proxy_headers,
    check_proxy_settings,
    check_tls,
)
from waitress_async.settings.sni import parse_sni
from waitress_async.settings.sources import Given, read_sources

_A_YEAR: Final = 365 * 24 * 3600  # timers overflow somewhere beyond; nobody waits so long

# Sections of the reference.
_LISTENING: Final = "Where it listens"
_PROXIES: Final = "Behind proxies"
_TLS: Final = "TLS"
_THREADS: Final = "Threads"
_APP: Final = "What the app sees"
_BEFORE: Final = "Before the app"
_BODIES: Final = "Bodies"
_BOUNDS: Final = "Bounds"
_TIME: Final = "Time, and the loop"
_NONE: Final = "Taken from waitress, without effect"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one server. An instance is always valid.

    Values are cast as `Settings.from_keywords` says, and checked.

    Raises SettingsError, which names the setting, for a value of the wrong type or out of range.
    """

    host: str = setting(
        "0.0.0.0",
        check=check_host,
        help="Address or name to listen on; * is every address of IPv4 and IPv6.",
        section=_LISTENING,
    )
    port: int = setting(
        8080,
        minimum=0,
        maximum=65535,
        help="Port to listen on; 0 takes any free one.",
        section=_LISTENING,
    )
    listen: tuple[str, ...] = setting(
        (),
        unit="host:port",
        check=check_listen,
        help="Where to listen instead of host and port: HOST:PORT, [IPV6]:PORT, unix:PATH, unix:@NAME "
        "(abstract), fd://NUMBER, systemd:// (all sockets passed by systemd) or systemd://NAME. "
        "Several are separated by spaces, or the flag is repeated.",
        section=_LISTENING,
    )
    ipv4: bool = setting(
        True,
        help="Whether a name or * in host or listen means its IPv4 addresses.",
        section=_LISTENING,
    )
    ipv6: bool = setting(
        True,
        help="Whether a name or * in host or listen means its IPv6 addresses.",
        section=_LISTENING,
    )
    unix_socket: str | None = setting(
        None,
        unit="path",
        check=check_unix_path,
        help="Unix socket to listen on instead of host and port; @NAME is an abstract one.",
        section=_LISTENING,
    )
    unix_socket_perms: Mode = setting(
        Mode(0o600),
        unit="octal",
        help="Permissions of the unix sockets that are made.",
        section=_LISTENING,
    )
    unix_socket_owner: str | None = setting(
        None,
        unit="user:group",
        help="Owner of the unix sockets that are made: USER, USER:GROUP or :GROUP, by name or number.",
        section=_LISTENING,
    )
    sockets: tuple[socket.socket, ...] = setting(
        (),
        keyword_only=True,
        help="Bound stream sockets to listen on, Internet or unix, instead of all other places.",
        section=_LISTENING,
    )
    reuse_port: bool = setting(
        False,
        help="Let other processes bind the same port; the system shares connections among them.",
        section=_LISTENING,
    )
    backlog: int = setting(
        1024,
        unit="connections",
        minimum=1,
        maximum=65535,
        help="New connections that the system holds until they are accepted.",
        section=_LISTENING,
    )
    trusted_proxy: CommaList = setting(
        CommaList(()),
        unit="peers",
        check=Peers.parse,
        help="Peers whose proxy headers are believed: addresses, networks (10.0.0.0/8), * for all, "
        "localhost for unix sockets. Several are separated by spaces or commas.",
        section=_PROXIES,
    )
    trusted_proxy_count: int | None = setting(
        None,
        unit="hops",
        minimum=1,
        help="Proxies in a row that are trusted, counted from this server; none is 1.",
        section=_PROXIES,
    )
    trusted_proxy_headers: CommaList = setting(
        CommaList(()),
        unit="headers",
        check=check_proxy_headers,
        help="Headers that are believed: forwarded, or any of x-forwarded-for, x-forwarded-host, "
        "x-forwarded-proto, x-forwarded-port, x-forwarded-by. With a trusted_proxy, none means "
        "x-forwarded-proto. Several are separated by spaces or commas.",
        section=_PROXIES,
    )
    clear_untrusted_proxy_headers: bool = setting(
        True,
        help="Keep from the app those of the six headers that are not believed.",
        section=_PROXIES,
    )
    log_untrusted_proxy_headers: bool = setting(
        False,
        help="Log a warning when such a header is kept from the app.",
        section=_PROXIES,
    )
    proxy_protocol: Literal["off", "v1", "v2", "auto"] = setting(
        "off",
        help="PROXY header that begins each connection from proxy_protocol_from; auto is either version.",
        section=_PROXIES,
    )
    proxy_protocol_from: CommaList = setting(
        CommaList(("127.0.0.0/8", "::1", UNIX_PEER)),
        unit="peers",
        check=Peers.parse,
        help="Peers that send a PROXY header, written as in trusted_proxy. From all others none is accepted.",
        section=_PROXIES,
    )
    proxy_protocol_timeout: float = setting(
        5.0,
        unit="seconds",
        minimum=0,
        maximum=_A_YEAR,
        help="Time from accept until the PROXY header is complete; 0 is no limit.",
        section=_PROXIES,
    )
    certfile: str | None = setting(
        None,
        unit="file",
        help="Certificate, with those that sign it, in PEM; with it all listeners speak TLS, but for those "
        "of redirect_listen.",
        section=_TLS,
    )
    keyfile: str | None = setting(
        None,
        unit="file",
        help="Its private key; none is the one in certfile.",
        section=_TLS,
    )
    keyfile_password: Secret | None = setting(
        None,
        unit="password",
        help="Password of the private keys, if they are encrypted. Better not by the flag, which others can "
        "see in the list of processes.",
        section=_TLS,
    )
    ca_certs: str | None = setting(
        None,
        unit="file",
        help="Certificates in PEM by which those of clients are verified.",
        section=_TLS,
    )
    client_verify: Literal["none", "optional", "required"] = setting(
        "none",
        help="Whether clients are asked for a certificate, and must have one.",
        section=_TLS,
    )
    sni: tuple[str, ...] = setting(
        (),
        unit="name=cert,key",
        check=parse_sni,
        help="Certificates for other names, which may be wildcards such as *.example.org. "
        "Several are separated by spaces, or the flag is repeated.",
        section=_TLS,
    )
    ssl_context: ssl.SSLContext | None = setting(
        None,
        keyword_only=True,
        help="A context that is used as it is, instead of certfile and what belongs to it.",
        section=_TLS,
    )
    tls_handshake_timeout: float = setting(
        30.0,
        unit="seconds",
        minimum=0,
        maximum=_A_YEAR,
        help="Time for the TLS handshake; 0 is any time.",
        section=_TLS,
    )
    redirect_listen: tuple[str, ...] = setting(
        (),
        unit="host:port",
        check=check_listen,
        help="Where plain HTTP is answered with a redirect to https, written as in listen; port 80 if none "
        "is given.",
        section=_TLS,
    )
    threads: int = setting(
        4,
        unit="threads",
        minimum=1,
        help="Threads that run the app.",
        section=_THREADS,
    )
    spare_threads: int | None = setting(
        None,
        unit="threads",
        minimum=0,
        help="Extra threads that run requests while others wait for slow clients; none is 4 for each thread.",
        section=_THREADS,
    )
    max_queue: int = setting(
        4096,
        unit="requests",
        minimum=1,
        help="Requests that wait for a thread; beyond it they are answered 503.",
        section=_THREADS,
    )
    max_streams: int = setting(
        10_000,
        unit="responses",
        minimum=0,
        help="Responses that go on from an async iterable; beyond it they are answered 503. 0 is any number.",
        section=_THREADS,
    )
    thread_init: ThreadHook | str | None = setting(
        None,
        unit="module:object",
        help="Function without arguments that each thread of the app calls when it starts.",
        section=_THREADS,
    )
    thread_exit: ThreadHook | str | None = setting(
        None,
        unit="module:object",
        help="Function without arguments that each thread of the app calls before it ends.",
        section=_THREADS,
    )
    ident: str | None = setting(
        "waitress_async",
        check=check_printable,
        help="Value of the Server header; empty sends none.",
        section=_APP,
    )
    server_name: str = setting(
        "waitress.invalid",
        check=check_printable,
        help="SERVER_NAME in the environ.",
        section=_APP,
    )
    url_scheme: Literal["http", "https"] = setting(
        "http",
        help="wsgi.url_scheme in the environ; with TLS that is https, whatever this says.",
        section=_APP,
    )
    url_prefix: Prefix = setting(
        Prefix(""),
        unit="path",
        check=check_prefix,
        help="SCRIPT_NAME in the environ, taken from the front of PATH_INFO where it stands there.",
        section=_APP,
    )
    expose_tracebacks: bool = setting(
        False,
        help="Put the traceback of a failed app into the answer. For development only.",
        section=_APP,
    )
    lifespan: Lifespan | str | None = setting(
        None,
        check=check_lifespan,
        unit="module:object",
        help="Function without arguments that returns an async context manager. It is entered on the loop "
        "before the server listens, and left after the last request; the app has what it yields as "
        "waitress_async.state.",
        section=_APP,
    )
    gates: tuple[Gate | str, ...] = setting(
        (),
        unit="module:object",
        flag_name="gate",
        help="Coroutine functions that are asked on the loop about each request, at its head, one after the "
        "other: each returns None, or a Refusal, which is answered. Several are separated by spaces or "
        "commas, or the flag is repeated.",
        section=_BEFORE,
    )
    gate_timeout: float = setting(
        10.0,
        unit="seconds",
        minimum=0,
        maximum=_A_YEAR,
        help="Time for all gates of a request together; then 503. 0 is any time.",
        section=_BEFORE,
    )
    live_path: str | None = setting(
        None,
        unit="path",
        check=check_health_path,
        help="Path that the server itself answers, with 200 as long as it serves at all.",
        section=_BEFORE,
    )
    ready_path: str | None = setting(
        None,
        unit="path",
        check=check_health_path,
        help="Path that the server itself answers, with 200 while it should be sent requests, and with 503 "
        "when it stops or is behind.",
        section=_BEFORE,
    )
    ready_max_queue_age: float = setting(
        10.0,
        unit="seconds",
        minimum=0,
        maximum=_A_YEAR,
        help="ready_path is answered 503 while a request has waited longer than this for a thread; 0 is any "
        "time.",
        section=_BEFORE,
    )
    inbuf_overflow: int = setting(
        524_288,
        unit="bytes",
        minimum=1,
        help="Request body from which on it goes to a temporary file; a smaller one stays in memory.",
        section=_BODIES,
    )
    outbuf_overflow: int = setting(
        1_048_576,
        unit="bytes",
        minimum=0,
        help="Unsent output of a response kept in memory; what is more goes to a temporary file.",
        section=_BODIES,
    )
    outbuf_high_watermark: int = setting(
        16_777_216,
        unit="bytes",
        minimum=1,
        help="Unsent output of a response above which the app waits for its client.",
        section=_BODIES,
    )
    buffer_memory: int = setting(
        268_435_456,
        unit="bytes",
        minimum=1,
        help="Bodies in memory, all requests and responses together; near it they go to disk sooner.",
        section=_BODIES,
    )
    tmp_dir: str | None = setting(
        None,
        unit="folder",
        help="Where temporary files are made; none is the system's place for them.",
        section=_BODIES,
    )
    spool_limit: int = setting(
        8_589_934_592,
        unit="bytes",
        minimum=0,
        help="Temporary files, all together; a request that does not fit is answered 507. 0 is no limit.",
        section=_BODIES,
    )
    spool_min_free: int = setting(
        67_108_864,
        unit="bytes",
        minimum=0,
        help="Space that temporary files leave free on their file system.",
        section=_BODIES,
    )
    stream_request_body: bool = setting(
        False,
        help="Call the app at the head of every request; wsgi.input then waits for the body.",
        section=_BODIES,
    )
    stream_request_prefix: tuple[str, ...] = setting(
        (),
        unit="path",
        check=check_prefixes,
        help="Paths, with all below them, for which the app is called at the head of a request. "
        "Several are separated by spaces, or the flag is repeated.",
        section=_BODIES,
    )
    max_request_header_size: int = setting(
        262_144,
        unit="bytes",
        minimum=1,
        help="Request line and header fields together; beyond it 431.",
        section=_BOUNDS,
    )
    max_request_header_fields: int = setting(
        100,
        unit="fields",
        minimum=1,
        help="Header fields of a request; beyond it 431.",
        section=_BOUNDS,
    )
    max_request_target_size: int = setting(
        65_536,
        unit="bytes",
        minimum=1,
        help="Request target (path and query); beyond it 414.",
        section=_BOUNDS,
    )
    max_request_body_size: int = setting(
        1_073_741_824,
        unit="bytes",
        minimum=1,
        help="Request body; beyond it 413.",
        section=_BOUNDS,
    )
    connection_limit: int = setting(
        0,
        unit="connections",
        minimum=0,
        help="Connections open at once; at the limit the longest idle ones are closed for new ones. "
        "0 is what the limit on file descriptors allows, at most 10000.",
        section=_BOUNDS,
    )
    connection_limit_per_host: int = setting(
        0,
        unit="connections",
        minimum=0,
        help="Connections that one address may have open at once, more are closed at once; 0 is any number.",
        section=_BOUNDS,
    )
    max_requests_per_connection: int = setting(
        0,
        unit="requests",
        minimum=0,
        help="Requests after which a connection is closed; 0 is any number.",
        section=_BOUNDS,
    )
    header_timeout: float = setting(
        30.0,
        unit="seconds",
        minimum=0,
        maximum=_A_YEAR,
        help="Time for a request's head from its first byte on, and then 408; and from accept to that byte, "
        "and then a close. 0 is any time.",
        section=_TIME,
    )
    body_min_rate: float = setting(
        240.0,
        unit="bytes/second",
        minimum=0,
        help="Rate at which a request's body must come while it is waited for; else 408. 0 is any rate.",
        section=_TIME,
    )
    response_min_rate: float = setting(
        240.0,
        unit="bytes/second",
        minimum=0,
        help="Rate at which a client must take a response while there is some to send; else it is cut. "
        "0 is any rate.",
        section=_TIME,
    )
    min_rate_grace: float = setting(
        5.0,
        unit="seconds",
        minimum=0.1,
        maximum=_A_YEAR,
        help="Time that a client has in hand at first, for the two rates. One that is faster than it must be "
        "saves up to six times this.",
        section=_TIME,
    )
    channel_timeout: float = setting(
        120.0,
        unit="seconds",
        minimum=0,
        maximum=_A_YEAR,
        help="Time between two requests after which a connection is closed; 0 is never.",
        section=_TIME,
    )
    queue_timeout: float = setting(
        30.0,
        unit="seconds",
        minimum=0,
        maximum=_A_YEAR,
        help="Time that a request may wait for a thread; then 503. 0 is any time.",
        section=_TIME,
    )
    linger_timeout: float = setting(
        2.0,
        unit="seconds",
        minimum=0,
        maximum=_A_YEAR,
        help="Time for which a connection that is over is read on, so that a reset does not destroy the "
        "last answer; 0 is none.",
        section=_TIME,
    )
    drain_delay: float = setting(
        0.0,
        unit="seconds",
        minimum=0,
        maximum=_A_YEAR,
        help="Time for which a server that is told to stop serves on as if nothing was, before it begins to.",
        section=_TIME,
    )
    graceful_timeout: float = setting(
        30.0,
        unit="seconds",
        minimum=0,
        maximum=_A_YEAR,
        help="Time that requests in flight have to finish when the server stops, after drain_delay.",
        section=_TIME,
    )
    loop: Literal["auto", "uvloop", "asyncio"] = setting(
        "auto",
        help="Event loop of the command and of serve(); auto is uvloop where it is installed.",
        section=_TIME,
    )
    recv_bytes: int = setting(
        8192,
        unit="bytes",
        without_effect=True,
        help="The event loop reads what is there.",
        section=_NONE,
    )
    send_bytes: int = setting(
        1,
        unit="bytes",
        without_effect=True,
        help="Output is sent at once, and what comes meanwhile goes together.",
        section=_NONE,
    )
    cleanup_interval: int = setting(
        30,
        unit="seconds",
        without_effect=True,
        help="Connections are looked at once a second at the least.",
        section=_NONE,
    )
    log_socket_errors: bool = setting(
        True,
        without_effect=True,
        help="A client that is gone is never a traceback.",
        section=_NONE,
    )
    asyncore_loop_timeout: int = setting(
        1,
        unit="seconds",
        without_effect=True,
        help="There is no asyncore here.",
        section=_NONE,
    )
    asyncore_use_poll: bool = setting(
        False,
        without_effect=True,
        help="There is no asyncore here.",
        section=_NONE,
    )
    channel_request_lookahead: int = setting(
        0,
        unit="requests",
        without_effect=True,
        help="While the app runs a reset is always seen; a mere close of TCP, which looks like a half-close, "
        "when something is sent.",
        section=_NONE,
    )

    def __post_init__(self) -> None:
        convert_fields(self, DECLARATIONS)
        check_one_place(self.listen, self.unix_socket, self.sockets)
        check_families(self.ipv4, self.ipv6)
        check_proxy_settings(self.trusted_proxy, self.trusted_proxy_count, self.trusted_proxy_headers)
        check_tls(
            self.certfile,
            self.ssl_context,
            keyfile=self.keyfile,
            keyfile_password=self.keyfile_password,
            ca_certs=self.ca_certs,
            client_verify=self.client_verify,
            sni=self.sni,
        )
        check_health(self.live_path, self.ready_path)
        if self.redirect_listen and not self.speaks_tls:
            raise SettingsError("redirect_listen has no meaning unless certfile or ssl_context is set")

    @classmethod
    def from_keywords(cls, **options: object) -> Self:
        """Make settings of the keyword arguments of `serve()` and its kin.

        A string is cast to the setting's type: numbers in decimal, with a unit if the setting has one
        (`512KiB`, `2m`); `true t yes y on 1` and `false f no n off 0`; permissions in octal; lists are split
        at white space, those of peers and headers at commas too. A bool is not a number.

        Raises SettingsError for an unknown name (with the nearest known one), for a bad value, and for
        settings that exclude each other, whatever their values.
        """
        check_names(options, NAMES)
        check_exclusions(options)
        values: dict[str, Any] = options
        return cls(**values)

    @classmethod
    def load(
        cls,
        *,
        config: str | None = None,
        directory: str | Path = ".",
        environ: Mapping[str, str] = os.environ,
        **options: object,
    ) -> Self:
        """Make settings as the command does: of files in `directory`, of `environ`, and then of keywords.

        The order is told by `read_sources`; `config` is a file instead of waitress_async.toml. What is the
        command's own (the application, the log) is passed over. Reads files.

        Raises SettingsError, which names the file or the variable.
        """
        check_names(options, NAMES)
        given = read_sources(
            (*DECLARATIONS, *COMMAND_DECLARATIONS),
            directory=Path(directory),
            config=config,
            environ=environ,
            keywords={name: Given(value, "keyword") for name, value in options.items()},
        )
        return cls.from_keywords(**{name: given[name].value for name in NAMES if name in given})

    def load_objects(self, load: Callable[[str, str], Any]) -> Self:
        """These settings, with the functions that they name: those of `load(name, setting)`.

        Raises SettingsError for what is none.
        """
        loaded: dict[str, Any] = {}
        for key, value in self._objects.items():
            if isinstance(value, tuple):
                loaded[key] = tuple(_load_one(load, key, one) for one in value)
            else:
                loaded[key] = _load_one(load, key, value)
        return replace(self, **loaded)

    def check_loaded(self) -> None:
        """Raise SettingsError if one of them is still the name of an object."""
        for key, value in self._objects.items():
            for one in value if isinstance(value, tuple) else (value,):
                if isinstance(one, str):
                    raise SettingsError(
                        f"{key}: {one!r} is a name, which the command alone looks up: "
                        "give the function itself"
                    )

    @property
    def _objects(self) -> dict[str, Any]:
        """What is, or names, objects of the program's: one of them, or several in a tuple, by setting."""
        return {d.name: getattr(self, d.name) for d in DECLARATIONS if d.unit == "module:object"}

    @property
    def speaks_tls(self) -> bool:
        """Whether the listeners do, but for those of redirect_listen."""
        return self.certfile is not None or self.ssl_context is not None

    @property
    def redirect_places(self) -> tuple[Place, ...]:
        """Where to listen for plain HTTP that is redirected."""
        return tuple(parse_listen(entry, 80) for entry in self.redirect_listen)

    @property
    def places(self) -> tuple[Place, ...]:
        """Where to listen when there are no `sockets`, each place once."""
        if self.unix_socket is not None:
            return (UnixPlace(self.unix_socket),)
        entries = self.listen or (as_listen(self.host),)
        places = [parse_listen(entry, self.port) for entry in entries]
        any_port = [place for place in places if isinstance(place, InternetPlace) and not place.port]
        return tuple(place for n, place in enumerate(places) if place in any_port or place not in places[:n])

    @property
    def believed_headers(self) -> frozenset[str]:
        """The proxy headers that are believed, in lower case, when a trusted proxy sends them."""
        if not self.trusted_proxy:
            return frozenset()
        return frozenset(map(str.lower, self.trusted_proxy_headers)) or frozenset({"x-forwarded-proto"})

    @property
    def without_effect(self) -> list[str]:
        """The names of those that are set to something, and do nothing here."""
        return [d.name for d in DECLARATIONS if d.without_effect and getattr(self, d.name) != d.default]

    def streams(self, path: str) -> bool:
        """Whether the app is to read the body of a request for `path` while it comes."""
        for prefix in self.stream_request_prefix:
            if path == prefix or path.startswith(prefix.rstrip("/") + "/"):
                return True
        return self.stream_request_body


def _load_one(load: Callable[[str, str], Any], setting: str, value: object) -> object:
    """What `value` names, if it is a name. Raises SettingsError if that is no function."""
    if not isinstance(value, str):
        return value
    loaded = load(value, setting)
    if not callable(loaded):
        raise SettingsError(f"{setting}: {value!r} is no function, but {loaded!r}")
    return loaded


DECLARATIONS: Final[tuple[Declaration, ...]] = declarations_of(Settings)
NAMES: Final[tuple[str, ...]] = tuple(declaration.name for declaration in DECLARATIONS)
