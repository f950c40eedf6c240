"""waitress_async.types: its keys are those of a real environ, and for mypy what is there has its types."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from pytest_waitress_async import ServeInThread
from tests.server.support import Client, hello
from waitress_async import types
from waitress_async.bridge import Output, Portal
from waitress_async.bridge import RequestBody as OurBody
from waitress_async.wsgi.application import _Response

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


def test_every_key_of_ours(waitress_async_server: ServeInThread) -> None:
    seen: list[set[str]] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        seen.append(set(environ))
        return hello(environ, start_response)

    server = waitress_async_server(app)
    with Client(("127.0.0.1", server.port)) as client:
        client.get("/")
    pep_3333 = {"version", "url_scheme", "errors", "multithread", "multiprocess", "run_once", "file_wrapper"}
    ours = {key for key in seen[0] if key.startswith(("waitress", "wsgi.")) and key[5:] not in pep_3333}
    assert ours == set(types.Environ.__annotations__)


def test_an_app_with_types() -> None:
    def app(environ: WSGIEnvironment, _start_response: StartResponse) -> list[bytes]:
        keys = cast(types.Environ, environ)
        keys["waitress_async.on_disconnect"](calls.clear)
        calls.append(keys["waitress_async.shutting_down"]())
        if (hint := keys.get("wsgi.early_hints")) is not None:
            hint([("Link", "</a>")])
        return []

    calls: list[bool] = []
    app({"waitress_async.on_disconnect": lambda _: None, "waitress_async.shutting_down": bool}, hello)  # type: ignore[arg-type]
    assert calls == [False]


def of_ours(response: _Response, output: Output, portal: Portal, body: OurBody) -> types.Environ:
    """For mypy: what is put there has the type that is told."""
    stream: types.Stream = response.go_on_with
    hint: types.EarlyHints = response.hint
    on_disconnect: types.OnDisconnect = output.on_disconnect
    gone: types.Ask = output.is_closed
    from_thread: types.FromThread = portal
    request_body: types.RequestBody = body
    stopping: Callable[[], bool] = gone
    return {
        "wsgi.early_hints": hint,
        "waitress.client_disconnected": gone,
        "waitress_async.on_disconnect": on_disconnect,
        "waitress_async.shutting_down": stopping,
        "waitress_async.stream": stream,
        "waitress_async.body": request_body,
        "waitress_async.from_thread": from_thread,
    }
