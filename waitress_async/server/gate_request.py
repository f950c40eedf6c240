"""A request as a gate sees it: its head, where it comes from, and what it may add. Loop's thread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from waitress_async.http import RepeatedFields, Request
from waitress_async.wsgi import Environ, path_below

_PREFIX: Final = "HTTP_"

# Fields whose CGI names have no prefix (RFC 3875 section 4.1.18).
_UNPREFIXED: Final = frozenset({"CONTENT_TYPE", "CONTENT_LENGTH"})


class RequestHeaders(Mapping[str, str]):
    """Header fields by name, in any case: `headers["Authorization"]`.

    The lines of a field that came on several are one value, joined by ", ", or Cookie by "; "; `get_all` has
    each. Iterated, it gives names in lower case. Names with an underscore are not there, for the server drops
    such fields, nor is Transfer-Encoding.
    """

    __slots__ = ("_fields", "_received")

    def __init__(self, fields: dict[str, str], received: dict[str, str]) -> None:
        """`fields` are those that the app will see, `received` the same before a trusted proxy's word."""
        self._fields = fields
        self._received = received

    def __getitem__(self, name: str) -> str:
        try:
            return self._fields[_cgi_name(name)]
        except KeyError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        for key in self._fields:
            if key.startswith(_PREFIX) or key in _UNPREFIXED:
                yield key.removeprefix(_PREFIX).replace("_", "-").lower()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def get_all(self, name: str) -> list[str]:
        """The value of each line of a field, in their order. Of one that a trusted proxy's word has changed,
        what came of it."""
        key = _cgi_name(name)
        value = self._fields.get(key)
        if value is None:
            return []
        received = self._received
        if isinstance(received, RepeatedFields) and key in received.lines and received[key] == value:
            return list(received.lines[key])
        return [value]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {', '.join(self)}>"  # and no values, of which some are secrets


def _cgi_name(name: str) -> str:
    """The key of a field in the environ; "", which none has, for a name that is none."""
    if "_" in name:
        return ""
    key = name.upper().replace("-", "_")
    return key if key in _UNPREFIXED else _PREFIX + key


class GateRequest:
    """The head of a request, before anything of its body is read. What a trusted proxy says is heeded."""

    __slots__ = ("_base", "_request", "environ", "headers", "state")

    def __init__(self, request: Request, received: dict[str, str], base: Environ, state: Any) -> None:
        """`received` are the fields as they came; `base` is the environ of the connection."""
        self._request = request
        self._base = base
        self.headers = RequestHeaders(request.fields, received)
        """The header fields."""
        self.state = state
        """What the lifespan has yielded; None without one."""
        self.environ: Environ = {}
        """What is to be added to the environ of the app. Gates that are asked later see it too."""

    @property
    def method(self) -> str:
        return self._request.method

    @property
    def target(self) -> str:
        """The request target as it came: path and query, percent-encoded; or a whole URL, or `*`."""
        return self._request.target

    @property
    def path(self) -> str:
        """The whole path, `url_prefix` included: percent-decoded bytes as latin-1, as in PATH_INFO."""
        return self._request.path

    @property
    def path_info(self) -> str:
        """The path below `url_prefix`: PATH_INFO, as the app will have it. One that is not below it is served
        too, as it is: so a rule for some paths looks at this, and not at `path`."""
        prefix: str = self._base["SCRIPT_NAME"]
        return path_below(prefix, self.path) if prefix else self.path

    @property
    def query(self) -> str:
        """What follows the question mark, as it came; "" if there is none."""
        return self._request.query

    @property
    def remote_addr(self) -> str:
        """The client's address, as in REMOTE_ADDR."""
        return self._told("REMOTE_ADDR")

    @property
    def remote_port(self) -> str:
        """The client's port, as in REMOTE_PORT; "" where it has none, or nobody tells."""
        return self._told("REMOTE_PORT")

    @property
    def scheme(self) -> str:
        """`http` or `https`, as in wsgi.url_scheme."""
        return self._told("wsgi.url_scheme")

    @property
    def has_body(self) -> bool:
        """Whether a body follows."""
        return self._request.has_body

    @property
    def content_length(self) -> int | None:
        """The size of the body in bytes; None without one, and for a chunked one, whose size nobody knows."""
        return self._request.content_length

    def _told(self, key: str) -> str:
        told = self._request.fields.get(key)
        value: str = self._base[key] if told is None else told
        return value

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.method} {self.path!r} from {self.remote_addr}>"
