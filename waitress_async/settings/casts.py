"""From what a caller may write to a setting's value. Each raises ValueError with the reason."""

from __future__ import annotations

import inspect
import math
import os
import re
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, NewType

# Permissions of a file, written in octal.
Mode = NewType("Mode", int)

# The beginning of a path, "" or "/" and no slash at the end.
Prefix = NewType("Prefix", str)

# What a program has done at its beginning and its end, on the loop; and in each of the app's threads.
Lifespan = Callable[[], AbstractAsyncContextManager[Any]]
ThreadHook = Callable[[], object]

# What is asked about each request, on the loop.
Gate = Callable[[Any], Awaitable[Any]]

# A list of what holds no comma, such as addresses: commas separate too. None is the empty one.
CommaList = NewType("CommaList", tuple[str, ...])


class Secret(str):
    """Text that is not to be shown. Its repr, which logs, tracebacks and other objects' reprs have of it,
    tells nothing; to whoever uses it, it is a string."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


# What separates names of objects, which may be calls with commas and blanks in them: another name follows.
_BETWEEN_NAMES: Final = re.compile(r"[\s,]+(?=[^\W\d][\w.]*:)")

# The units of numbers, and how many of the smallest of its kind each is.
UNITS: Final[dict[str, dict[str, int]]] = {
    "bytes": {"B": 1}
    | {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)}
    | {f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", 1)},
    "seconds": {"ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000, "d": 86_400_000},
}

# What people write for them too, in lower case.
_SPELLINGS: Final = {
    **{unit.lower(): unit for units in UNITS.values() for unit in units},
    **dict.fromkeys(("byte", "bytes"), "B"),
    **dict.fromkeys(("sec", "second", "seconds"), "s"),
    **dict.fromkeys(("m", "minute", "minutes"), "min"),
    **dict.fromkeys(("hour", "hours"), "h"),
    **dict.fromkeys(("day", "days"), "d"),
}
_ONE: Final = {"bytes": 1, "seconds": 1000}  # in the smallest
_QUANTITY: Final = re.compile(r"([0-9]{1,20})(?:\.([0-9]{1,20}))? ?([a-z]+) ?")


def expand_units(text: str, unit: str) -> object:
    """The number that `text` is, such as 512KiB or 1h30m, in `unit`; `text` itself if it is nothing such.

    Raises ValueError for a number with another unit.
    """
    lower = text.strip().lower()
    parts = _QUANTITY.findall(lower)
    if not parts or _QUANTITY.sub("", lower):
        return text
    units = UNITS[unit]
    if any(_SPELLINGS.get(suffix) not in units for _, _, suffix in parts):
        raise ValueError(f"{text!r} is not in {unit}, whose units are {', '.join(units)}")
    # In whole numbers: 1.001 KB is 1001 bytes.
    places = max(len(decimals) for _, decimals, _ in parts)
    total = sum(
        int(whole + decimals.ljust(places, "0")) * units[_SPELLINGS[suffix]]
        for whole, decimals, suffix in parts
    )
    one = _ONE[unit] * 10**places
    return total / one if total % one else total // one


def in_bytes(number: int) -> str:
    """A number of bytes in the largest binary unit of which it is a whole number, for a reader."""
    for name in ("TiB", "GiB", "MiB", "KiB"):
        size = UNITS["bytes"][name]
        if number and not number % size:
            return f"{number // size} {name}"
    return f"{number} bytes"


def to_bool(value: object) -> bool:
    text = "" if value is None else str(value).strip().lower()
    if text in {"t", "true", "y", "yes", "on", "1"}:
        return True
    if text in {"", "f", "false", "n", "no", "off", "0"}:
        return False
    raise ValueError(f"{value!r} is neither true nor false")


def to_int(value: object) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return int(value)
        except ValueError:
            pass
    raise ValueError(f"{value!r} is not a whole number")


def to_optional_int(value: object) -> int | None:
    return None if value is None or value == "" else to_int(value)


def to_mode(value: object) -> Mode:
    """Permissions: text is octal, as waitress has it; a number is taken as it is."""
    try:
        mode = int(value, 8) if isinstance(value, str) else to_int(value)
    except ValueError:
        raise ValueError(f"{value!r} is not a file mode such as 600") from None
    if not 0 <= mode <= 0o777:
        raise ValueError(f"{value!r} is not a file mode such as 600: as a number, write 0o600")
    return Mode(mode)


def to_float(value: object) -> float:
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    raise ValueError(f"{value!r} is not a number")


def to_str(value: object) -> str:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(text, str):
        return text
    raise ValueError(f"{value!r} is not a string")


def to_optional_str(value: object) -> str | None:
    return None if value is None or value == "" else to_str(value)


def to_optional_secret(value: object) -> Secret | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return Secret(value)
    raise ValueError(f"{type(value).__name__} is not a string")  # and the value is not told


def to_prefix(value: object) -> Prefix:
    path = to_str("" if value is None else value).strip().strip("/")
    return Prefix(f"/{path}" if path else "")


def to_strings(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(value.split())
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(part for item in value for part in to_str(item).split())
    raise ValueError(f"{value!r} is not a list of strings")


def to_comma_list(value: object) -> CommaList:
    texts = () if value is None else to_strings(value)
    return CommaList(to_strings(" ".join(texts).replace(",", " ")))


def to_sockets(value: object) -> tuple[socket.socket, ...]:
    if not isinstance(value, list | tuple | set | frozenset):
        raise ValueError(f"{value!r} is not a list of sockets")
    families = {socket.AF_INET, socket.AF_INET6, getattr(socket, "AF_UNIX", socket.AF_INET)}
    for item in value:
        if not isinstance(item, socket.socket):
            raise ValueError(f"{item!r} is not a socket")
        if item.type != socket.SOCK_STREAM or item.family not in families:
            raise ValueError(f"Only Internet or UNIX stream sockets may be used. {item!r} is none")
    return tuple(value)


def to_ssl_context(value: object) -> ssl.SSLContext | None:
    if value is not None and not isinstance(value, ssl.SSLContext):
        raise ValueError(f"{value!r} is not an ssl.SSLContext")
    if value is not None and value.protocol is ssl.PROTOCOL_TLS_CLIENT:
        raise ValueError("it is a client's: make it with ssl.PROTOCOL_TLS_SERVER")
    return value


def to_lifespan(value: object) -> Lifespan | str | None:
    if hasattr(type(value), "__aenter__"):
        raise ValueError(f"{value!r} is a context manager: give the function that makes it")
    return to_hook(value)


def to_hook(value: object) -> Callable[[], Any] | str | None:
    """A function as it is, or the name of one, which is not looked for here."""
    if value is None or value == "":
        return None
    if callable(value):
        return value
    if isinstance(value, str):
        return value.strip()
    raise ValueError(f"{value!r} is neither a function nor the name of one")


def to_gates(value: object) -> tuple[Gate | str, ...]:
    """Functions as they are, or names of some, which are not looked for here."""
    if value is None:
        return ()
    gates: list[Gate | str] = []
    for item in value if isinstance(value, list | tuple) else [value]:
        if isinstance(item, str):
            gates += _BETWEEN_NAMES.split(item.strip(" \t\r\n,")) if item.strip() else []
        else:
            gates.append(_checked_gate(item))
    return tuple(gates)


def _checked_gate(gate: Any) -> Gate:
    is_object = callable(gate) and not isinstance(gate, type)  # whose method is not a class's own call
    if inspect.iscoroutinefunction(gate) or (is_object and inspect.iscoroutinefunction(gate.__call__)):
        checked: Gate = gate
        return checked
    raise ValueError(f"{gate!r} is no coroutine function: write it as `async def gate(request)`")


CASTS: Final[dict[object, Callable[[object], object]]] = {
    bool: to_bool,
    int: to_int,
    int | None: to_optional_int,
    Mode: to_mode,
    float: to_float,
    str: to_str,
    str | None: to_optional_str,
    Secret | None: to_optional_secret,
    Prefix: to_prefix,
    tuple[str, ...]: to_strings,
    CommaList: to_comma_list,
    tuple[socket.socket, ...]: to_sockets,
    ssl.SSLContext | None: to_ssl_context,
    Lifespan | str | None: to_lifespan,
    ThreadHook | str | None: to_hook,
    tuple[Gate | str, ...]: to_gates,
}
