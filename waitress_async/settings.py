"""Every setting, declared once.

The fields of `Settings` are the declaration: keyword arguments, command-line flags and the table in the
README are all made from them. Each says in `used_by` which package reads it.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

from waitress_async.errors import SettingsError

T = TypeVar("T")

_A_YEAR = 365 * 24 * 3600  # timers overflow somewhere beyond; nobody waits so long


def setting(default: T, **about: Any) -> T:
    """Declare a field of `Settings`. The keywords are attributes of `Declaration`."""
    return dataclasses.field(default=default, metadata=about)


# Casts: what a caller may write -> the value of the field's type, or ValueError with the reason.


def _to_bool(value: object) -> bool:
    text = "" if value is None else str(value).strip().lower()
    if text in {"t", "true", "y", "yes", "on", "1"}:
        return True
    if text in {"", "f", "false", "n", "no", "off", "0"}:
        return False
    raise ValueError(f"{value!r} is neither true nor false")


def _to_int(value: object) -> int:
    if isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return int(value)
        except ValueError:
            pass
    raise ValueError(f"{value!r} is not a whole number")


def _to_optional_int(value: object) -> int | None:
    return None if value is None or value == "" else _to_int(value)


def _to_float(value: object) -> float:
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    raise ValueError(f"{value!r} is not a number")


def _to_str(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError(f"{value!r} is not a string")


def _to_optional_str(value: object) -> str | None:
    return None if value is None or value == "" else _to_str(value)


def _to_strings(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(value.split())
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(part for item in value for part in _to_str(item).split())
    raise ValueError(f"{value!r} is not a list of strings")


def _to_sockets(value: object) -> tuple[socket.socket, ...]:
    if not isinstance(value, list | tuple | set | frozenset):
        raise ValueError(f"{value!r} is not a list of sockets")
    for item in value:
        if not isinstance(item, socket.socket):
            raise ValueError(f"{item!r} is not a socket")
        if item.type != socket.SOCK_STREAM or item.family not in {socket.AF_INET, socket.AF_INET6}:
            raise ValueError(f"{item!r} is not an Internet stream socket")
    return tuple(value)


_CASTS: dict[object, Callable[[object], object]] = {
    bool: _to_bool,
    int: _to_int,
    int | None: _to_optional_int,
    float: _to_float,
    str: _to_str,
    str | None: _to_optional_str,
    tuple[str, ...]: _to_strings,
    tuple[socket.socket, ...]: _to_sockets,
}


# Checks: what a type and a range cannot say.

_LISTEN = re.compile(
    r"(?:\[(?P<ipv6>[^\x00-\x20\x7f\[\]]+)\]|(?P<name>[^\x00-\x20\x7f/:\[\]]+))(?::(?P<port>[0-9]{1,5}))?"
)
_PRINTABLE = re.compile(r"[!-~\xa1-\xff](?:[ -~\xa1-\xff]*[!-~\xa1-\xff])?")


def parse_listen(entry: str, default_port: int) -> tuple[str, int]:
    """Split one address of `listen` into host and port, without asking the name service.

    `entry` is `host`, `host:port`, `[ipv6]` or `[ipv6]:port`; `default_port` is the port of one that names
    none. The host comes without brackets, and may be `*` for every address of every family.

    Raises SettingsError for anything else.
    """
    match = _LISTEN.fullmatch(entry)
    port = int(match["port"] or default_port) if match else -1
    if match is None or port > 65535 or not _is_host(match):
        raise SettingsError(
            f"Invalid host/port specified. {entry!r} is not HOST, HOST:PORT, [IPV6] or [IPV6]:PORT"
        )
    return match["ipv6"] or match["name"], port


def _is_host(match: re.Match[str]) -> bool:
    try:
        if match["ipv6"]:
            address, _, _zone = match["ipv6"].partition("%")
            socket.inet_pton(socket.AF_INET6, address)
        else:
            match["name"].encode("idna")  # as getaddrinfo() will do
    except (OSError, ValueError):
        return False
    return True


def _as_listen(host: str) -> str:
    """The `listen` entry for `host`, which may be an IPv6 address with or without brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _check_host(host: str) -> None:
    match = _LISTEN.fullmatch(_as_listen(host))
    if match is None or match["port"] or not _is_host(match):
        raise ValueError(f"{host!r} is not an address or a host name")


def _check_listen(entries: tuple[str, ...]) -> None:
    for entry in entries:
        parse_listen(entry, 0)


def _check_printable(text: str | None) -> None:
    # These go into response headers and into environ, where a control character can split a line.
    if text is not None and not _PRINTABLE.fullmatch(text):
        raise ValueError(f"{text!r} is not printable Latin-1 text")


def _check_prefixes(prefixes: tuple[str, ...]) -> None:
    for prefix in prefixes:
        if not prefix.startswith("/"):
            raise ValueError(f"{prefix!r} does not begin with a slash")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one server. An instance is always valid.

    Values are cast as `Settings.from_keywords` says, and checked.

    Raises SettingsError, which names the setting, for a value of the wrong type or out of range.
    """

    host: str = setting(
        "0.0.0.0",
        check=_check_host,
        help="Address or name to listen on; * is every address of IPv4 and IPv6.",
        used_by="server",
    )
    port: int = setting(
        8080,
        minimum=0,
        maximum=65535,
        help="Port to listen on; 0 takes any free one.",
        used_by="server",
    )
    listen: tuple[str, ...] = setting(
        (),
        unit="host:port",
        check=_check_listen,
        help="Addresses to listen on instead of host and port: HOST:PORT or [IPV6]:PORT. "
        "Several are separated by spaces, or the flag is repeated.",
        used_by="server",
    )
    sockets: tuple[socket.socket, ...] = setting(
        (),
        keyword_only=True,
        help="Bound stream sockets to listen on instead of host, port and listen.",
        used_by="server",
    )
    backlog: int = setting(
        1024,
        unit="connections",
        minimum=1,
        maximum=65535,
        help="New connections that the system holds until they are accepted.",
        used_by="server",
    )
    threads: int = setting(
        4,
        unit="threads",
        minimum=1,
        help="Threads that run the app.",
        used_by="bridge",
    )
    spare_threads: int | None = setting(
        None,
        unit="threads",
        minimum=0,
        help="Extra threads that run requests while others wait for slow clients; none is 4 for each thread.",
        used_by="bridge",
    )
    max_queue: int = setting(
        4096,
        unit="requests",
        minimum=1,
        help="Requests that wait for a thread; beyond it they are answered 503.",
        used_by="bridge",
    )
    ident: str | None = setting(
        "waitress_async",
        check=_check_printable,
        help="Value of the Server header; empty sends none.",
        used_by="wsgi",
    )
    server_name: str = setting(
        "waitress.invalid",
        check=_check_printable,
        help="SERVER_NAME in the environ.",
        used_by="wsgi",
    )
    url_scheme: Literal["http", "https"] = setting(
        "http",
        help="wsgi.url_scheme in the environ.",
        used_by="wsgi",
    )
    inbuf_overflow: int = setting(
        524_288,
        unit="bytes",
        minimum=1,
        help="Request body from which on it goes to a temporary file; a smaller one stays in memory.",
        used_by="buffers",
    )
    outbuf_overflow: int = setting(
        1_048_576,
        unit="bytes",
        minimum=0,
        help="Unsent output of a response kept in memory; what is more goes to a temporary file.",
        used_by="bridge",
    )
    outbuf_high_watermark: int = setting(
        16_777_216,
        unit="bytes",
        minimum=1,
        help="Unsent output of a response above which the app waits for its client.",
        used_by="bridge",
    )
    buffer_memory: int = setting(
        268_435_456,
        unit="bytes",
        minimum=1,
        help="Bodies in memory, all requests and responses together; near it they go to disk sooner.",
        used_by="buffers",
    )
    tmp_dir: str | None = setting(
        None,
        unit="folder",
        help="Where temporary files are made; none is the system's place for them.",
        used_by="buffers",
    )
    spool_limit: int = setting(
        8_589_934_592,
        unit="bytes",
        minimum=0,
        help="Temporary files, all together; a request that does not fit is answered 507. 0 is no limit.",
        used_by="buffers",
    )
    spool_min_free: int = setting(
        67_108_864,
        unit="bytes",
        minimum=0,
        help="Space that temporary files leave free on their file system.",
        used_by="buffers",
    )
    stream_request_body: bool = setting(
        False,
        help="Call the app at the head of every request; wsgi.input then waits for the body.",
        used_by="server",
    )
    stream_request_prefix: tuple[str, ...] = setting(
        (),
        unit="path",
        check=_check_prefixes,
        help="Paths, with all below them, for which the app is called at the head of a request. "
        "Several are separated by spaces, or the flag is repeated.",
        used_by="server",
    )
    max_request_header_size: int = setting(
        262_144,
        unit="bytes",
        minimum=1,
        help="Request line and header fields together; beyond it 431.",
        used_by="http",
    )
    max_request_header_fields: int = setting(
        100,
        unit="fields",
        minimum=1,
        help="Header fields of a request; beyond it 431.",
        used_by="http",
    )
    max_request_target_size: int = setting(
        65_536,
        unit="bytes",
        minimum=1,
        help="Request target (path and query); beyond it 414.",
        used_by="http",
    )
    max_request_body_size: int = setting(
        1_073_741_824,
        unit="bytes",
        minimum=1,
        help="Request body; beyond it 413.",
        used_by="http",
    )
    connection_limit: int = setting(
        0,
        unit="connections",
        minimum=0,
        help="Connections open at once; at the limit no more are accepted until one closes. "
        "0 is what the limit on file descriptors allows, at most 10000.",
        used_by="server",
    )
    channel_timeout: float = setting(
        120.0,
        unit="seconds",
        minimum=0,
        maximum=_A_YEAR,
        help="Time after which an idle connection is closed; 0 is never.",
        used_by="server",
    )
    graceful_timeout: float = setting(
        30.0,
        unit="seconds",
        minimum=0,
        maximum=_A_YEAR,
        help="Time that requests in flight have to finish when the server stops.",
        used_by="server",
    )
    expose_tracebacks: bool = setting(
        False,
        help="Put the traceback of a failed app into the answer. For development only.",
        used_by="wsgi",
    )
    loop: Literal["auto", "uvloop", "asyncio"] = setting(
        "auto",
        help="Event loop of the command and of serve(); auto is uvloop where it is installed.",
        used_by="server",
    )

    def __post_init__(self) -> None:
        for declaration in DECLARATIONS:
            try:
                value = declaration.convert(getattr(self, declaration.name))
            except ValueError as error:
                raise SettingsError(f"{declaration.name}: {error}") from None
            object.__setattr__(self, declaration.name, value)

    @classmethod
    def from_keywords(cls, **options: object) -> Self:
        """Make settings of the keyword arguments of `serve()` and its kin.

        A string is cast to the setting's type: numbers in decimal; `true t yes y on 1` and `false f no n
        off 0`; lists are split at white space. A bool is not a number.

        Raises SettingsError for an unknown name (with the nearest known one), for a bad value, and for
        settings that exclude each other, whatever their values.
        """
        names = [declaration.name for declaration in DECLARATIONS]
        for name in options:
            if name not in names:
                nearest = difflib.get_close_matches(name, names, 1)
                hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
                raise SettingsError(f"Unknown adjustment {name!r}{hint}")
        for replacement, replaced in (
            ("listen", {"host", "port"}),
            ("listen", {"sockets"}),
            ("sockets", {"host", "port"}),
        ):
            if replacement in options and replaced & options.keys():
                raise SettingsError(
                    f"{' or '.join(sorted(replaced))} may not be set if {replacement} is set."
                )
        values: dict[str, Any] = options
        return cls(**values)

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Host and port of each address to bind when there are no `sockets`, as `parse_listen` gives them."""
        entries = self.listen or (_as_listen(self.host),)
        return tuple(parse_listen(entry, self.port) for entry in entries)

    def streams(self, path: str) -> bool:
        """Whether the app is to read the body of a request for `path` while it comes."""
        return self.stream_request_body or any(
            path == prefix or path.startswith(prefix.rstrip("/") + "/")
            for prefix in self.stream_request_prefix
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What is known of a setting apart from its value."""

    name: str
    type: Any  # as annotated in Settings
    default: object
    help: str  # plain text, one or more sentences
    used_by: str  # the package that acts by it
    unit: str = ""  # of the value, if it has one
    minimum: float | None = None
    maximum: float | None = None
    keyword_only: bool = False  # there is no way to write it as text
    check: Callable[[Any], object] | None = None  # raises ValueError with the reason

    @property
    def flag(self) -> str | None:
        """The command line's spelling, `--name` or `--name/--no-name`; None if it is keyword-only."""
        if self.keyword_only:
            return None
        flag = self.name.replace("_", "-")
        return f"--{flag}/--no-{flag}" if self.type is bool else f"--{flag}"

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that it may have, if they are few and fixed."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @property
    def default_text(self) -> str:
        """The default with its unit, for a reader."""
        if isinstance(self.default, bool):
            return "on" if self.default else "off"
        if self.default == () or self.default is None:
            return "none"
        value = f"{self.default:g}" if isinstance(self.default, float) else self.default
        return f"{value} {self.unit}".rstrip()

    def convert(self, value: object) -> object:
        """Cast `value`, which may be a string, to the setting's type and check it.

        Raises ValueError with the reason; it tells the value but not the setting's name.
        """
        if self.choices:
            if value not in self.choices:
                raise ValueError(f"{value!r} is not one of {', '.join(self.choices)}")
            return value
        converted: Any = _CASTS[self.type](value)
        if converted is None:
            return None
        if self.minimum is not None and converted < self.minimum:
            raise ValueError(f"{converted} is less than {self.minimum}")
        if self.maximum is not None and converted > self.maximum:
            raise ValueError(f"{converted} is more than {self.maximum}")
        if self.check is not None:
            self.check(converted)
        return converted


def _declarations() -> tuple[Declaration, ...]:
    types = get_type_hints(Settings)
    return tuple(
        Declaration(name=field.name, type=types[field.name], default=field.default, **field.metadata)
        for field in dataclasses.fields(Settings)
    )


DECLARATIONS: tuple[Declaration, ...] = _declarations()


def settings_table() -> str:
    """The settings as a Markdown table, one row each in the order of their declaration."""
    rows = ["| setting | flag | default | meaning |", "|---|---|---|---|"]
    for declaration in DECLARATIONS:
        flag = f"`{declaration.flag}`" if declaration.flag else "keyword only"
        rows.append(f"| `{declaration.name}` | {flag} | {declaration.default_text} | {declaration.help} |")
    return "\n".join(rows) + "\n"
