"""The replacement of WebTest's StopableWSGIServer, used as tests use it: in a fixture, by a real client."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests
from flask import Flask, request

from examples import stoppable
from examples.stoppable import StoppableServer
from tests.frameworks.command import ROOT, TIMEOUT, environment
from tests.server.support import GatedApp, eventually, nothing_left
from tests.server.test_listeners import needs_ipv6
from tests.wsgi.logs import Log

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    threads = threading.active_count()
    with nothing_left():
        yield
    assert threading.active_count() == threads


@pytest.fixture
def shop() -> Flask:
    app = Flask(__name__)

    @app.route("/basket", methods=["GET", "POST"])
    def basket() -> str:
        return f"{request.method} {request.url} {request.form.get('item')}"

    return app


@pytest.fixture
def server(leaves_nothing: None, shop: Flask) -> Iterator[StoppableServer]:
    server = StoppableServer.create(shop)
    assert server.wait()
    yield server
    assert server.shutdown()


def get(url: str) -> requests.Response:
    """One kept open would be closed when the collector finds urllib3's pool."""
    return requests.get(url, headers={"Connection": "close"}, timeout=TIMEOUT)


def refused(url: str) -> bool:
    with pytest.raises(requests.ConnectionError):
        get(url)
    return True


def test_in_a_fixture(server: StoppableServer) -> None:
    url = f"{server.application_url}basket"
    assert url.startswith("http://127.0.0.1:")
    with requests.Session() as session:
        for _ in range(2):
            assert session.get(url, timeout=TIMEOUT).text == f"GET {url} None"
            assert session.post(url, {"item": "hat"}, timeout=TIMEOUT).text == f"POST {url} hat"


def test_as_a_context_manager(shop: Flask) -> None:
    with StoppableServer.create(shop) as server:
        url = f"{server.application_url}basket"
        assert get(url).status_code == 200
    assert refused(url)
    assert not server.wait()
    assert server.shutdown()


def test_two_at_the_same_time(shop: Flask) -> None:
    with StoppableServer.create(shop) as one, StoppableServer.create(stoppable.app, threads=1) as other:
        assert get(f"{one.application_url}basket").status_code == 200
        assert get(f"{other.application_url}page").text == "You asked for /page\n"
        one.shutdown()
        assert refused(one.application_url)
        assert get(other.application_url).status_code == 200


def test_on_a_port_that_is_asked_for(shop: Flask) -> None:
    """Again and again, as a test suite does, and as a string, as WebTest's users write it."""
    with StoppableServer.create(shop) as server:
        port = server.server.effective_port
    for _ in range(3):
        with StoppableServer.create(shop, port=str(port)) as server:
            assert server.application_url == f"http://127.0.0.1:{port}/"
            assert get(f"{server.application_url}basket").status_code == 200
    with StoppableServer.create(shop, port=port), pytest.raises(OSError, match=f"127.0.0.1:{port}"):
        StoppableServer.create(shop, port=port)


@needs_ipv6
def test_ipv6(shop: Flask) -> None:
    with StoppableServer.create(shop, host="::1") as server:
        assert server.application_url.startswith("http://[::1]:")
        assert server.wait()
        assert get(f"{server.application_url}basket").status_code == 200


def test_waiting_calls_no_app() -> None:
    app = GatedApp()
    with StoppableServer.create(app) as server:
        assert server.wait()
        assert server.wait()
        assert app.entered == []


def test_shutdown_lets_a_request_in_flight_finish() -> None:
    app = GatedApp()
    answers: list[str] = []
    server = StoppableServer.create(app)
    url = f"{server.application_url}late"
    client = threading.Thread(target=lambda: answers.append(get(url).text))
    client.start()
    app.wait_entered()
    stopping = threading.Thread(target=server.shutdown)
    stopping.start()
    eventually(lambda: not server.wait(), "it has begun to stop")
    assert stopping.is_alive()
    app.let_go()
    client.join(TIMEOUT)
    stopping.join(TIMEOUT)
    assert answers == ["/late"]


def test_the_error_of_an_app_is_shown_to_the_test(log: Log) -> None:
    def app(_environ: WSGIEnvironment, _start_response: StartResponse) -> Iterable[bytes]:
        raise LookupError("on purpose")

    with StoppableServer.create(app) as server:
        answer = get(server.application_url)
    assert answer.status_code == 500
    assert "LookupError: on purpose" in answer.text
    assert "on purpose" in log.take("ERROR waitress_async: Exception while serving /")


def test_a_start_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its thread ends, and says why as threads do; whoever waits is told that it does not serve."""
    errors: list[BaseException | None] = []
    hook: Callable[[threading.ExceptHookArgs], None] = lambda args: errors.append(args.exc_value)  # noqa: E731
    monkeypatch.setattr(threading, "excepthook", hook)
    with StoppableServer.create(stoppable.app, tmp_dir=tmp_path / "missing") as server:
        assert not server.wait()
    (error,) = errors
    assert isinstance(error, OSError)


def test_it_is_an_example() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "examples/stoppable.py"],
        cwd=ROOT,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "You asked for /page\n", "")
