"""The example of one httpx client for all requests, and the examples of docs/async-from-thread.md."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import pytest
import requests

from tests.conftest import ServeInThread
from tests.documents import defined_by, snippets
from tests.frameworks.command import ROOT, TIMEOUT, environment
from tests.server.support import Client, eventually, local_server, on_each_loop, request
from tests.server.support import in_thread as beside_the_loop

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

BLOCKS = snippets("async-from-thread.md")

# -- the example


@on_each_loop
async def test_requests_share_the_clients_connections() -> None:
    httpx = pytest.importorskip("httpx")
    from examples import shared_client

    ports: list[str] = []

    def elsewhere(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        ports.append(environ["REMOTE_PORT"])
        return shared_client.price_list(environ, start_response)

    def visit(url: str) -> None:
        with requests.Session() as session:
            session.trust_env = False
            for name in ("apple", "pear") * 5:
                assert session.get(f"{url}/basket/{name}", timeout=TIMEOUT).json() == {name: len(name)}
            assert len(set(ports)) == 1
            answer = session.get(f"{url}/basket/fig,pear,apple", timeout=TIMEOUT)
        assert answer.json() == {"fig": 3, "pear": 4, "apple": 5}
        assert len(set(ports)) <= 3  # asked at once

    async with (
        local_server(elsewhere) as prices,
        httpx.AsyncClient(base_url=prices.url, trust_env=False) as client,
        local_server(shared_client.make_shop(client)) as shop,
    ):
        await beside_the_loop(lambda: visit(shop.url))
    await asyncio.sleep(0)  # asyncio's transports are closed in the next turn


def test_it_runs_as_told() -> None:
    pytest.importorskip("httpx")
    with subprocess.Popen(
        [sys.executable, "-W", "error", "examples/shared_client.py", "--once"],
        cwd=ROOT,
        env={**environment(), "PYTHONPATH": ":".join([str(ROOT), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        out, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, errors) == (0, "")
    serving, page = out.splitlines()
    assert re.fullmatch(r"Serving http://127\.0\.0\.1:[0-9]+/basket/apple,pear,plum", serving)
    assert page == '{"apple":5,"pear":4,"plum":4}'


# -- the document


def test_the_first_of_the_document_is_the_example() -> None:
    example = (ROOT / "examples" / "shared_client.py").read_text()
    assert BLOCKS[0] in example


def app_of(block: str, **names: object) -> Callable[..., Iterable[bytes]]:
    """The app that a piece of the document defines, with `names` given to it."""
    app: Callable[..., Iterable[bytes]] = defined_by(block, **names)["app"]
    return app


def test_the_report_is_given_up_with_its_client(serve_in_thread: ServeInThread) -> None:
    """And one that takes too long is answered."""
    entered, cancelled = threading.Event(), threading.Event()

    async def make_report(path: str) -> bytes:
        if path == "/quick":
            return b"report"
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError

    server = serve_in_thread(app_of(BLOCKS[1], make_report=make_report, TIMEOUT=TIMEOUT))
    with Client(server.address) as client:
        assert client.get("/quick").body == b"report"
        client.send(request("/slow"))
        assert entered.wait(TIMEOUT)
        client.reset()
        assert cancelled.wait(TIMEOUT)
    server.stop()

    impatient = serve_in_thread(app_of(BLOCKS[1], make_report=make_report, TIMEOUT=0.01))
    with Client(impatient.address) as client:
        assert client.get("/slow").status == 504


def test_a_thread_of_the_apps_own(serve_in_thread: ServeInThread) -> None:
    written: list[tuple[str, str]] = []

    async def write_audit(path: str) -> None:
        written.append((path, threading.current_thread().name))

    server = serve_in_thread(app_of(BLOCKS[2], write_audit=write_audit))
    with Client(server.address) as client:
        assert client.get("/order").body == b"done"
    eventually(lambda: written, "it is written")
    assert written == [("/order", server.thread.name)]


def test_all_blocks_are_run() -> None:
    assert len(BLOCKS) == 3
