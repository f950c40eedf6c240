"""The examples of docs/async-lifespan.md and docs/async-embedding.md, run as they are written."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from pytest_waitress_async import ServeInThread
from tests.documents import DOCS, defined_by, named_snippets, snippets
from tests.server.support import nothing_left
from tests.settings.samples import BY_NAME

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ROOT = Path(__file__).parent.parent
PAGES = [DOCS / "async-lifespan.md", DOCS / "async-embedding.md"]
TIMEOUT = 30  # seconds, for whatever is waited for

# Each example by its name: what it is marked with on its page.
EXAMPLES = {name: source for page in PAGES for name, source in named_snippets(page.name).items()}


def example(name: str) -> dict[str, Any]:
    """What it defines."""
    return defined_by(EXAMPLES[name])


def saying(text: bytes) -> WSGIApplication:
    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        return [text]

    return app


def get(url: str) -> str:
    return requests.get(url, headers={"Connection": "close"}, timeout=TIMEOUT).text


def test_every_example_is_run() -> None:
    blocks = sum(len(snippets(page.name)) for page in PAGES)
    assert len(EXAMPLES) == blocks
    source = Path(__file__).read_text("utf-8")
    assert [name for name in EXAMPLES if f'example("{name}")' not in source and name != "fixtures"] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_and_links_are_there(page: Path) -> None:
    text = page.read_text("utf-8")
    for flag in re.findall(r"waitress-async (?:--(\S+) )", text):
        assert flag.replace("-", "_") in BY_NAME
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (page.parent / link).exists(), link


def test_the_lifespan(waitress_async_server: ServeInThread) -> None:
    code = example("lifespan")
    server = waitress_async_server(code["app"], lifespan=code["lifespan"])
    assert requests.get(server.url, timeout=TIMEOUT).json() == {"hat": 20}
    assert server.state.latest == {"hat": 20}


def test_the_thread_hooks(
    waitress_async_server: ServeInThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with sqlite3.connect("shop.db") as database:
        database.execute("CREATE TABLE hats (id)")
        database.execute("INSERT INTO hats VALUES (1), (2)")
    database.close()
    code = example("threads")
    server = waitress_async_server(
        code["app"], thread_init=code["connect"], thread_exit=code["disconnect"], threads=2
    )
    assert get(server.url) == "2 hats"


def test_beside_other_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    with nothing_left():
        asyncio.run(example("tasks")["main"](saying(b"shop"), saying(b"console")))
    assert capsys.readouterr().out == "b'shop' b'console'\nb'shop'\n"


def test_in_a_thread() -> None:
    with nothing_left():
        assert example("thread")["fetch"](saying(b"shop")) == b"shop"


def test_the_fixtures(tmp_path: Path) -> None:
    (tmp_path / "test_shop.py").write_text(EXAMPLES["fixtures"])
    options = ["-p", "pytest_waitress_async", "-p", "no:cacheprovider", "-q"]
    options += ["-o", "asyncio_default_fixture_loop_scope=function", "test_shop.py"]
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path[:0] = [{str(ROOT)!r}]; import pytest; pytest.main({options})",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert "2 passed" in result.stdout, result.stdout + result.stderr
