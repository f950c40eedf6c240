"""Calls of WSGI apps without a server: a sink that records, and an environ made as the server makes it."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from io import BytesIO, StringIO
from typing import TYPE_CHECKING, BinaryIO, TextIO

from waitress_async.buffers import SpooledBody
from waitress_async.errors import ClientDisconnected
from waitress_async.http import HeadEncoder, Request, ResponseHead
from waitress_async.wsgi import (
    Environ,
    Environs,
    add_complete_body,
    connection_environ,
    run_application,
    server_environ,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

EMPTY = object()  # what stands for the reader of a request without a body

TEXT = [("Content-Type", "text/plain")]


@dataclass
class HandedOver:
    """What `finish_file` was given."""

    descriptor: int
    offset: int
    count: int
    close: Callable[[], object]

    def read(self) -> bytes:
        """The bytes, as a server reads them: by position."""
        content = b""
        while data := os.pread(self.descriptor, self.count - len(content), self.offset + len(content)):
            content += data
        return content


@dataclass
class RecordingSink:
    """Keeps what it is given. What breaks the contract of `Sink` is noted, for a raise would be answered as
    the app's."""

    client_leaves_after: int | None = None  # calls of `write`
    head: ResponseHead | None = None
    length: int | None = None
    hints: list[bytes] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)
    file: HandedOver | None = None
    calls: list[str] = field(default_factory=list)
    breaches: list[str] = field(default_factory=list)

    def hint(self, response: bytes) -> None:
        self._note("hint", wanted=self.head is None)
        self.hints.append(response)

    def begin(self, head: ResponseHead, length: int | None) -> None:
        self._note("begin", wanted=self.head is None)
        self.head = head
        self.length = length

    def write(self, data: bytes) -> None:
        self._note("write", wanted=self.head is not None and bool(data))
        if self.is_closed():
            raise ClientDisconnected("the client is gone")
        self.chunks.append(data)

    def finish(self, chunks: Sequence[bytes]) -> None:
        self._note("finish", wanted=self.head is not None)
        self.chunks.extend(filter(None, chunks))

    def answer(self, head: ResponseHead, body: bytes) -> None:
        self.begin(head, len(body))
        self.finish((body,))

    def finish_file(self, descriptor: int, offset: int, count: int, close: Callable[[], object]) -> None:
        self._note("finish_file", wanted=self.head is not None)
        self.file = HandedOver(descriptor, offset, count, close)
        self.chunks.append(self.file.read())

    def abort(self) -> None:
        self._note("abort", wanted=True)

    def can_go_on(self) -> bool:
        return True

    def finish_async(self, iterable: AsyncIterable[bytes], context: Context, path: str) -> None:
        self._note("finish_async", wanted=self.head is not None)

    def discard_async(self, iterable: AsyncIterable[bytes], context: Context, path: str) -> None:
        self.calls.append("discard_async")

    def is_closed(self) -> bool:
        return self.client_leaves_after is not None and self.calls.count("write") > self.client_leaves_after

    def _note(self, name: str, *, wanted: bool) -> None:
        if not wanted or self.ended:
            self.breaches.append(f"{name} after {self.calls}")
        self.calls.append(name)

    # -- what a client would see

    @property
    def ended(self) -> bool:
        return self.whole or "abort" in self.calls

    @property
    def whole(self) -> bool:
        """Whether the response has a proper end."""
        return "finish" in self.calls or "finish_file" in self.calls

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def status(self) -> str:
        assert self.head is not None, f"no response was begun: {self.calls}"
        return self.head.status_line.decode("latin-1").removeprefix("HTTP/1.1 ").removesuffix("\r\n")

    @property
    def fields(self) -> list[tuple[str, str]]:
        assert self.head is not None
        lines = self.head.fields.decode("latin-1").split("\r\n")
        assert lines.pop() == ""
        return [(name, value) for name, _, value in (line.partition(": ") for line in lines)]

    @property
    def content_length(self) -> int | None:
        """What the server will say of the body's length."""
        assert self.head is not None
        return self.length if self.head.content_length is None else self.head.content_length


def make_request(method: str = "GET", path: str = "/", **fields: str) -> Request:
    return Request(
        method=method,
        target="/",
        path=path,
        query="",
        http_11=True,
        fields={"HTTP_HOST": "localhost", **fields},
        keep_alive=True,
        content_length=None,
        chunked=False,
        expect_continue=False,
    )


def make_environ(
    request: Request | None = None,
    body: BinaryIO | None = None,
    *,
    body_length: int | None = None,
    errors: TextIO | None = None,
    client_disconnected: Callable[[], bool] = bool,
    script_name: str = "",
) -> Environ:
    """The environ; that of a complete body if `body_length` is given."""
    server = server_environ(
        server_name="localhost",
        script_name=script_name,
        server_software="waitress_async",
        shutting_down=bool,
        state=None,
        from_thread=None,
        empty_body=EMPTY,
    )
    connection = connection_environ(
        server_port="8080",
        url_scheme="http",
        remote_addr="192.0.2.7",
        remote_port="4711",
        errors=errors or StringIO(),
    )
    body = body or BytesIO()
    environ = Environs(server, connection).make(request or make_request(), body, client_disconnected, print)
    if body_length is not None:
        add_complete_body(environ, SpooledBody(body, None, body_length))
    return environ


def call(
    app: WSGIApplication,
    method: str = "GET",
    *,
    path: str = "/",
    sink: RecordingSink | None = None,
    expose_tracebacks: bool = False,
) -> RecordingSink:
    """Call the app as the server does; the sink has then had a response, in order, and closed its file."""
    sink = sink or RecordingSink()
    environ = make_environ(make_request(method, path))
    run_application(app, environ, sink, HeadEncoder(), expose_tracebacks=expose_tracebacks)
    assert sink.breaches == []
    assert sink.ended
    if sink.file is not None:
        sink.file.close()
    return sink


def answering(
    result: Iterable[bytes],
    status: str = "200 OK",
    headers: Iterable[tuple[str, str]] = (),
    *,
    length: int | None = None,
) -> WSGIApplication:
    """An app that starts its response and returns `result`. `length`: the Content-Length that it declares."""
    fields = [*TEXT, *headers]
    if length is not None:
        fields.append(("Content-Length", str(length)))

    def app(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response(status, fields)
        return result

    return app


class Chunks:
    """An iterable with a `close()` that counts its calls and the threads they are made in.

    `raising` comes after the chunks, `on_close` out of `close()`.
    """

    def __init__(
        self,
        *chunks: bytes,
        raising: BaseException | None = None,
        on_close: BaseException | None = None,
    ) -> None:
        self.chunks = chunks
        self.raising = raising
        self.on_close = on_close
        self.taken = 0
        self.closed_in: list[int] = []

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.chunks:
            self.taken += 1
            yield chunk
        if self.raising is not None:
            raise self.raising

    def close(self) -> None:
        self.closed_in.append(threading.get_ident())
        if self.on_close is not None:
            raise self.on_close


class SizedChunks(Chunks):
    """One that says how many chunks it has, truly or not."""

    def __init__(self, size: int, *chunks: bytes) -> None:
        super().__init__(*chunks)
        self.size = size

    def __len__(self) -> int:
        return self.size
