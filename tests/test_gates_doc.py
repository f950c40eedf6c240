"""The examples of docs/gates.md, run as they are written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from pytest_waitress_async import ServeInThread
from tests.documents import DOCS, defined_by, named_snippets
from tests.settings.samples import BY_NAME

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

PAGE = DOCS / "gates.md"
TEXT = PAGE.read_text("utf-8")
TIMEOUT = 30  # seconds, for whatever is waited for

# Each example by its name: what it is marked with.
EXAMPLES = named_snippets(PAGE.name)


def example(name: str) -> dict[str, Any]:
    """What it defines."""
    return defined_by(EXAMPLES[name])


def hello(_environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", [])
    return [b"hello"]


def test_every_example_is_run() -> None:
    source = Path(__file__).read_text("utf-8")
    assert [name for name in EXAMPLES if f'example("{name}")' not in source] == []


def test_flags_settings_and_links_are_there() -> None:
    flags = {str(declaration.flag).partition("/")[0] for declaration in BY_NAME.values()}
    assert {flag for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT) if flag not in flags} == set()
    for name in re.findall(r"`(\w+_(?:timeout|path|age|delay|queue|listen))`", TEXT):
        assert name in BY_NAME
    for link in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (PAGE.parent / link).exists(), link


def test_tokens(waitress_async_server: ServeInThread) -> None:
    code = example("token")
    server = waitress_async_server(code["app"], gates=[code["is_known"]], lifespan=code["lifespan"])

    def get(**headers: str) -> requests.Response:
        return requests.get(server.url, headers=headers, timeout=TIMEOUT)

    assert get(Authorization="Bearer swordfish").text == "Hello, rose"
    for wrong in ({}, {"Authorization": "Bearer haddock"}, {"Authorization": "Basic swordfish"}):
        refused = get(**wrong)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")


def test_the_rate_limit(waitress_async_server: ServeInThread, monkeypatch: pytest.MonkeyPatch) -> None:
    code = example("limit")
    now = 1_000.0
    monkeypatch.setitem(code, "time", type("clock", (), {"monotonic": staticmethod(lambda: now)}))
    limit = code["Limit"](2, burst=3, clients=2)
    server = waitress_async_server(
        hello, gates=[limit], trusted_proxy="*", trusted_proxy_headers="x-forwarded-for"
    )
    with requests.Session() as session:

        def ask(client: str = "192.0.2.1") -> int:
            answer = session.get(server.url, headers={"X-Forwarded-For": client}, timeout=TIMEOUT)
            if answer.status_code == 429:
                assert answer.headers["retry-after"] == "1"
            return answer.status_code

        assert [ask() for _ in range(5)] == [200, 200, 200, 429, 429]
        assert ask("192.0.2.2") == 200
        now += 0.5
        assert [ask() for _ in range(2)] == [200, 429]
        now += 1_000
        assert [ask() for _ in range(4)] == [200, 200, 200, 429]
        for number in range(3, 10):
            assert ask(f"192.0.2.{number}") == 200
    assert list(limit.busy_until) == ["192.0.2.8", "192.0.2.9"]


def test_maintenance(waitress_async_server: ServeInThread) -> None:
    code = example("maintenance")
    server = waitress_async_server(code["app"], gates=[code["is_open"]], lifespan=code["lifespan"])

    def get(path: str) -> tuple[int, str]:
        answer = requests.get(f"{server.url}{path}", timeout=TIMEOUT)
        return answer.status_code, answer.text

    assert get("/hats") == (200, "open")
    assert get("/admin/close") == (200, "closed")
    assert get("/hats") == (503, "We are back in ten minutes.\n")
    assert get("/admin/open") == (200, "open")
    assert get("/hats") == (200, "open")
