"""Any app's response on the wire, read by the standard library's client, against a model of PEP 3333."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.wsgi.calling import RecordingSink, SizedChunks, make_environ
from tests.wsgi.logs import Log
from waitress_async.http import Connection, DefaultFields, HeadEncoder, HeadMemo, Limits, Request
from waitress_async.wsgi import Environ, run_application

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse


@dataclass(frozen=True)
class Case:
    """An app, and how it is asked."""

    method: str
    version: str
    status: int
    shape: str
    written: list[bytes]
    chunks: list[bytes]
    surplus: int | None  # how much more than there is the app declares; None: it declares nothing

    @property
    def content(self) -> bytes:
        return b"".join(self.written + self.chunks)

    @property
    def declared(self) -> int | None:
        return None if self.surplus is None else max(len(self.content) + self.surplus, 0)

    @property
    def bodiless(self) -> bool:
        return self.method == "HEAD" or self.status in (204, 304)

    def __call__(self, _environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        headers = [("Content-Type", "text/plain")]
        if self.declared is not None:
            headers.append(("Content-Length", str(self.declared)))
        write = start_response(f"{self.status} Reason", headers)
        for data in self.written:
            write(data)
        return self.shaped()

    def shaped(self) -> Iterable[bytes]:
        if self.shape == "list":
            return self.chunks
        if self.shape == "tuple":
            return tuple(self.chunks)
        if self.shape == "sized":
            return SizedChunks(len(self.chunks), *self.chunks)
        return self.generated()

    def generated(self) -> Iterator[bytes]:
        yield from self.chunks


CHUNKS = st.lists(st.one_of(st.binary(max_size=5), st.just(b""), st.just(b"x" * 70_000)), max_size=4)
CASES = st.builds(
    Case,
    method=st.sampled_from(["GET", "HEAD", "POST"]),
    version=st.sampled_from(["HTTP/1.1", "HTTP/1.0"]),
    status=st.sampled_from([200, 204, 304, 404, 500]),
    shape=st.sampled_from(["list", "tuple", "sized", "generator"]),
    written=st.one_of(st.just([]), CHUNKS),
    chunks=CHUNKS,
    surplus=st.one_of(st.none(), st.just(0), st.integers(-6, 6)),
)


class Wire(RecordingSink):
    """The bytes that a connection makes of the response, to be read as a client's socket."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection

    def makefile(self, _mode: str) -> BytesIO:
        assert self.head is not None
        default_fields = DefaultFields("ident").lines(self.head, 0)
        segments = [self.connection.send_response(self.head, default_fields, self.length)]
        segments += map(self.connection.send_data, self.chunks)
        if self.whole:
            segments.append(self.connection.end_response())
        return BytesIO(b"".join(segments))


@given(case=CASES)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_client_sees_what_the_app_said(case: Case, log: Log) -> None:
    connection = Connection(Limits(), HeadMemo())
    connection.receive_data(f"{case.method} / {case.version}\r\nHost: a\r\n\r\n".encode())
    request = connection.next_event()
    assert isinstance(request, Request)
    wire = Wire(connection)
    run_application(case, make_environ(request), wire, HeadEncoder())
    assert (wire.breaches, wire.ended) == ([], True)

    response = http.client.HTTPResponse(cast(socket.socket, wire), method=case.method)
    response.begin()
    assert (response.status, response.version) == (case.status, 11)
    assert (response.headers.get_all("Server"), len(response.headers.get_all("Date", []))) == (["ident"], 1)
    lengths = response.headers.get_all("Content-Length", [])
    assert len(lengths) + len(response.headers.get_all("Transfer-Encoding", [])) <= 1
    warnings = log.lines
    for line in warnings:
        log.take(line)

    content, declared = case.content, case.declared
    if case.bodiless:
        assert (response.read(), wire.whole) == (b"", True)
        assert declared is None or case.status == 204 or lengths == [str(declared)]
        assert len(warnings) == (1 if content and case.method != "HEAD" else 0)
        assert "Transfer-Encoding" not in response.headers
        if case.status == 204:
            assert lengths == []
    elif declared is not None and declared > len(content):
        with pytest.raises(http.client.IncompleteRead) as caught:
            response.read()
        assert (caught.value.partial, wire.whole, lengths) == (content, False, [str(declared)])
        assert len(warnings) == 1
    else:
        length = len(content) if declared is None else declared
        assert (response.read(), wire.whole) == (content[:length], True)
        assert len(warnings) == (1 if declared is not None and declared < len(content) else 0)
        if declared is not None or (case.shape in ("list", "tuple") and not any(case.written)):
            assert lengths == [str(length)]
        elif any(case.written) and case.version == "HTTP/1.1":
            assert response.headers["Transfer-Encoding"] == "chunked"
        if case.version == "HTTP/1.0" and not lengths:
            assert response.headers["Connection"] == "close"
