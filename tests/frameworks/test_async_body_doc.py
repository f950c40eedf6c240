"""The examples of docs/async-body.md, as they stand there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.conftest import ServeInThread
from tests.documents import defined_by, snippets
from tests.server.support import Client, request

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


def examples() -> dict[str, Any]:
    return defined_by(*snippets("async-body.md"))


def store(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    body = environ["wsgi.input"].read()
    start_response("200 OK", [])
    return [f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} {len(body)}".encode()]


def test_an_upload_is_sent_back(serve_in_thread: ServeInThread) -> None:
    server = serve_in_thread(examples()["echo"], threads=1, stream_request_body=True)
    with Client(server.address) as client:
        client.send(request("/", method="POST", body=b"there and back" * 10_000))
        assert client.receive().body == b"there and back" * 10_000


def test_an_upload_is_passed_on(serve_in_thread: ServeInThread) -> None:
    names = examples()
    names["STORE"] = serve_in_thread(store).url
    server = serve_in_thread(names["gateway"], threads=1, stream_request_prefix="/files")
    with Client(server.address) as client:
        client.send(request("/files/hat", method="PUT", body=bytes(300_000)))
        assert client.receive().body == b"PUT /hat 300000"
