"""The examples of docs/async.md, as they stand there."""

from __future__ import annotations

from typing import Any

from tests.conftest import ServeInThread
from tests.documents import defined_by, snippets
from tests.frameworks.conftest import MakeDjango
from tests.server.support import Client, eventually, request
from waitress_async import sse


def examples() -> dict[str, Any]:
    return defined_by(*snippets("async.md"))


def test_streams(serve_in_thread: ServeInThread) -> None:
    names = examples()
    server = serve_in_thread(names["app"], threads=1)
    with Client(server.address) as client:
        assert client.get("/").body == b"tick 0\ntick 1\ntick 2\n"
    server = serve_in_thread(names["shop"], threads=1)
    with Client(server.address) as client:
        answer = client.get("/news?topic=hats")
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.body == b"".join(sse.event(f"hats {number}", id=str(number)) for number in range(3))


def test_a_stream_from_django(serve_in_thread: ServeInThread, make_django: MakeDjango) -> None:
    server = serve_in_thread(make_django("news", examples()["django_stream"]), threads=1)
    with Client(server.address) as client:
        answer = client.get("/news?topic=hats")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.body == b"".join(sse.event(f"hats {number}", id=str(number)) for number in range(3))


def test_the_types(serve_in_thread: ServeInThread) -> None:
    with Client(serve_in_thread(examples()["typed"], threads=1).address) as client:
        assert client.get("/").body == b"typed"


def test_early_hints(serve_in_thread: ServeInThread) -> None:
    server = serve_in_thread(examples()["page"], threads=1)
    with Client(server.address) as client:
        hints = client.get("/")
        assert (hints.status, hints.headers) == (103, {"link": "</shop.css>; rel=preload; as=style"})
        assert client.receive().body.endswith(b"hats")


def test_a_channel(serve_in_thread: ServeInThread) -> None:
    names = examples()
    server = serve_in_thread(names["chat"], threads=1, graceful_timeout=0)
    listeners = [Client(server.address) for _ in range(3)]
    try:
        for client in listeners:
            client.send(request("/tea"))
        eventually(lambda: "tea" in names["rooms"] and len(names["rooms"]["tea"][0]) == 3, "all listen")
        with Client(server.address) as speaker:
            speaker.send(request("/tea", method="POST", body=b"more"))
            assert speaker.receive().status == 204
        for client in listeners:
            received = b""
            while b"data: more\n\n" not in received:
                received += client.sock.recv(65_536)
    finally:
        for client in listeners:
            client.sock.close()
