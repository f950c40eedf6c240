"""What a connection tells its owner: the vocabulary between bytes and exchanges."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class RepeatedFields(dict[str, str]):
    """The fields of a request of which some came on several lines (RFC 9110 section 5.3). Most have none."""

    __slots__ = ("lines",)

    def __init__(self, fields: dict[str, str]) -> None:
        super().__init__(fields)
        self.lines: dict[str, list[str]] = {}
        """The values of such fields, each line by itself, in their order."""

    def add_line(self, key: str, value: str) -> None:
        """Add another line to a field."""
        self.lines.setdefault(key, [self[key]]).append(value)
        self[key] += ("; " if key == "HTTP_COOKIE" else ", ") + value


@dataclass(slots=True)
class Request:
    """A request head (RFC 9112 sections 3 and 5), checked and ready for a CGI-like environ.

    `fields` maps CGI names (`HTTP_HOST`, `CONTENT_TYPE`, ...) to latin-1 decoded values; repeated
    fields are joined (Cookie with `"; "`, others with `", "`), and `RepeatedFields` tells their lines.
    Fields whose names hold `_`, and `Proxy`, have been dropped; `Transfer-Encoding` is consumed by the
    framing.

    Not frozen, because freezing costs more than all the rest of making one; treat it as if it were.
    """

    method: str
    target: str  # as it came, ASCII
    path: str  # percent-decoded bytes as latin-1 (PEP 3333); "" for the asterisk form
    query: str
    http_11: bool
    fields: dict[str, str]
    keep_alive: bool  # what the client asked for
    content_length: int | None  # None without a body, and for a chunked one
    chunked: bool
    expect_continue: bool
    may_repeat: bool = field(
        default=False, compare=False
    )  # its connection keeps it, and gives it again for the same bytes

    @property
    def has_body(self) -> bool:
        """Whether `Data` and `END_OF_MESSAGE` follow; without a body the head is the whole request."""
        return self.chunked or bool(self.content_length)


@dataclass(frozen=True, slots=True)
class Data:
    """Some bytes of the body, decoded: never empty, cut anywhere."""

    data: bytes


class Signal(enum.Enum):
    """Events that carry nothing."""

    NEED_DATA = "nothing more can be said before receive_data()"
    END_OF_MESSAGE = "the request's body is complete"
    PAUSED = "the next request waits until this one is answered"
    CLOSED = "no further request will come"


NEED_DATA = Signal.NEED_DATA
END_OF_MESSAGE = Signal.END_OF_MESSAGE
PAUSED = Signal.PAUSED
CLOSED = Signal.CLOSED

Event = Request | Data | Signal
