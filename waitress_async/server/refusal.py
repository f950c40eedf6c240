"""What a gate returns to have a request answered without the app."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TypeVar

from waitress_async.http import Answer, HeadEncoder

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to a request that a gate does not let through. One can be made once and returned many times.

    `status` is a number, or text such as "401 Unauthorized", from 200 on; `headers` are pairs of str, checked
    as those that an app gives to start_response (PEP 3333); `body` is bytes, or text, which is sent in UTF-8
    and called text/plain if no header says what it is. Content-Length is the server's to add, and a HEAD
    request is answered without the body.

    Raises TypeError for what is of another type, ValueError for what HTTP does not allow.
    """

    status: int | str
    headers: Iterable[tuple[str, str]] = ()
    body: bytes | str = b""
    _answer: Answer = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        headers = [_checked_pair(header) for header in self.headers]
        names = {name.lower() for name, _ in headers}
        if "content-length" in names:
            raise ValueError("Content-Length is added by the server, and must not be among the headers")
        body = self.body
        if isinstance(body, str):
            body = body.encode()
            if body and "content-type" not in names:
                headers.append(("Content-Type", "text/plain; charset=utf-8"))
        elif not isinstance(body, bytes):
            raise TypeError(f"the body of a Refusal must be bytes or str, not {type(body).__name__}")
        head = HeadEncoder().encode(_status_line(self.status), headers)
        if body and not head.allows_body:
            raise ValueError(f"an answer with status {head.status} has no body")
        object.__setattr__(self, "headers", tuple(headers))
        object.__setattr__(self, "_answer", Answer(head, body))

    def as_answer(self) -> Answer:
        """What is sent."""
        return self._answer


def _checked_pair(header: T) -> T:
    if isinstance(header, tuple) and len(header) == 2 and all(isinstance(part, str) for part in header):
        return header
    raise TypeError(f"the headers of a Refusal must be tuples of two str, not {header!r:.200}")


def _status_line(status: int | str) -> str:
    if not isinstance(status, int):
        return status  # whatever it is: the encoder says what is wrong with it
    try:
        return f"{status:d} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status:d} "
