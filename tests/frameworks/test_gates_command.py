"""`--gate`, `--live-path` and `--ready-path` of the real command."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import requests

from tests.frameworks.command import TIMEOUT, Start
from tests.settings.command import invoke

SOURCE = """
from waitress_async import Refusal

def app(environ, start_response):
    start_response("200 OK", [])
    return [environ["shop.asked"].encode()]

async def first(request):
    request.environ["shop.asked"] = "first"

class Named:
    def __init__(self, name, path):
        self.name, self.path = name, path

    async def __call__(self, request):
        request.environ["shop.asked"] += " " + self.name
        if request.path == self.path:
            return Refusal(403, body=self.name)

def no_gate(request):
    pass

number = 3
"""

NAMES = ["shop:first", "shop:Named('second, a b', '/b')", "shop:Named('third', path='/c')"]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SOURCE)
    return tmp_path


@pytest.mark.parametrize("how", ["flags", "one flag", "list", "text"])
def test_gates_by_name(start: Start, shop: Path, how: str) -> None:
    arguments = []
    if how == "flags":
        arguments = [f"--gate={name}" for name in NAMES]
    elif how == "one flag":
        arguments = ["--gate", ", ".join(NAMES)]
    else:
        written = str(NAMES) if how == "list" else f'"""{" ".join(NAMES)}"""'
        (shop / "waitress_async.toml").write_text(f"gates = {written}")
    command = start(*arguments, "--live-path=/up", "--ready-path=/ready", "shop:app", cwd=shop)
    url = command.serving()

    def get(path: str) -> tuple[int, str]:
        answer = requests.get(f"{url}{path}", timeout=TIMEOUT)
        return answer.status_code, answer.text

    assert get("/a") == (200, "first second, a b third")
    assert get("/b") == (403, "second, a b")
    assert get("/c") == (403, "third")
    assert get("/up") == get("/ready") == (200, "ok\n")
    command.signal(signal.SIGTERM)
    assert command.ended()[0] == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shop:no_gate", "is no coroutine function: write it as `async def gate(request)`"),
        ("shop:Named", "is no coroutine function"),
        ("shop:number", "gates: 'shop:number' is no function, but 3"),
        ("shop:missing", "gates"),
    ],
)
def test_what_is_none(shop: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    monkeypatch.chdir(shop)
    result = invoke("--check-config", f"--app-dir={shop}", "--gate=shop:first", f"--gate={name}", "shop:app")
    assert result.exit_code != 0
    assert message in result.stderr
