"""Event streams from Flask and Django views, which wrap what they are given; nothing of theirs is changed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import flask
from django.http import HttpRequest, HttpResponse

from tests.conftest import ServeInThread
from tests.frameworks.conftest import MakeDjango
from tests.server.support import Client, eventually, request
from waitress_async import sse

EVENTS = [sse.event(f"number {number}", id=str(number)) for number in range(5)]


async def events(first: int, ended: threading.Event) -> AsyncIterator[bytes]:
    try:
        for item in EVENTS[first:]:
            await asyncio.sleep(0)
            yield item
    finally:
        ended.set()


def flask_app(ended: threading.Event) -> flask.Flask:
    app = flask.Flask(__name__)

    async def greeting() -> AsyncIterator[bytes]:
        """In the context of its request, though Flask has left it."""
        yield sse.event(flask.request.args["name"])
        async for item in events(0, ended):
            yield item

    @app.get("/events")
    def stream() -> flask.Response:
        seen = sse.last_event_id(flask.request.environ)
        first = 0 if seen is None else int(seen) + 1
        flask.request.environ["waitress_async.stream"](events(first, ended))
        return flask.Response(headers=dict(sse.HEADERS))

    @app.get("/greeting")
    def greet() -> flask.Response:
        flask.request.environ["waitress_async.stream"](greeting())
        return flask.Response(b"", headers=dict(sse.HEADERS))

    return app


def test_flask(serve_in_thread: ServeInThread) -> None:
    ended = threading.Event()
    server = serve_in_thread(flask_app(ended), threads=1)
    with Client(server.address) as client:
        answer = client.get("/events")
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.body == b"".join(EVENTS)
        assert client.get("/events", "Last-Event-ID: 2\r\n").body == b"".join(EVENTS[3:])
        assert client.get("/greeting?name=me").body == sse.event("me") + b"".join(EVENTS)
    assert ended.wait(10)


DJANGO_ENDED = threading.Event()


def stream_view(request: HttpRequest) -> HttpResponse:
    request.META["waitress_async.stream"](events(0, DJANGO_ENDED))
    return HttpResponse(headers=dict(sse.HEADERS))


def test_django(serve_in_thread: ServeInThread, make_django: MakeDjango) -> None:
    server = serve_in_thread(make_django("events", stream_view), threads=1)
    with Client(server.address) as client:
        for _ in range(2):
            answer = client.get("/events")
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert answer.body == b"".join(EVENTS)
    assert DJANGO_ENDED.wait(10)


def test_many_streams_and_one_thread(serve_in_thread: ServeInThread) -> None:
    """Each waits for the same event; meanwhile the thread serves others."""
    channels: list[sse.Channel] = []
    loops: list[asyncio.AbstractEventLoop] = []

    async def subscribed() -> AsyncIterator[bytes]:
        if not channels:
            channels.append(sse.Channel())
            loops.append(asyncio.get_running_loop())
        async for item in channels[0].subscribe():
            yield item

    app = flask.Flask(__name__)

    @app.get("/events")
    def stream() -> flask.Response:
        flask.request.environ["waitress_async.stream"](subscribed())
        return flask.Response(headers=dict(sse.HEADERS))

    @app.get("/")
    def page() -> str:
        return "page"

    server = serve_in_thread(app, threads=1)
    clients = [Client(server.address) for _ in range(50)]
    try:
        for client in clients:
            client.send(request("/events"))
        eventually(lambda: channels and len(channels[0]) == 50, "all have subscribed")
        with Client(server.address) as other:
            assert other.get("/").body == b"page"
        loops[0].call_soon_threadsafe(channels[0].publish, sse.event("to all"))
        loops[0].call_soon_threadsafe(channels[0].close)
        for client in clients:
            assert client.receive().body == b"data: to all\n\n"
    finally:
        for client in clients:
            client.sock.close()
