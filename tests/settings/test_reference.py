"""Pages that are made of the source, held against it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.settings.command import isolate, printed_config
from tests.settings.reference import MADE, PAGE, renewed
from tests.settings.samples import ALL
from waitress_async.settings.reference import settings_reference


@pytest.mark.parametrize("page", MADE, ids=lambda page: page.name)
def test_a_page_has_the_tables_of_the_source(page: Path) -> None:
    """If not: python -m tests.settings.reference"""
    assert page.read_text(encoding="utf-8") == renewed(page)


def test_a_row_for_each_setting_under_its_section() -> None:
    lines = settings_reference(ALL).splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == [declaration.name for declaration in ALL]
    assert {row.count("|") for row in rows} == {5}
    assert [line[4:] for line in lines if line.startswith("### ")] == list(
        dict.fromkeys(declaration.section for declaration in ALL)
    )
    assert "| `threads` | `--threads` | 4 threads | Threads that run the app. |" in rows
    assert (
        "| `url_scheme` | `--url-scheme` | http | wsgi.url_scheme in the environ; with TLS that is https, "
        "whatever this says. One of http, https. |" in rows
    )
    assert any(row.startswith("| `sockets` | keyword only | none | ") for row in rows)


def test_the_example_is_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(monkeypatch, tmp_path)
    files = dict(re.findall(r"```toml\n# (\S+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
    assert files.keys() == {"waitress_async.toml", "logging.toml"}
    (tmp_path / "waitress_async.toml").write_text(files["waitress_async.toml"])
    printed = {name: value for name, (value, _) in printed_config().items()}
    assert printed == {
        "app": "shop.web:create_app('prod')",
        "listen": ["127.0.0.1:8080", "unix:/run/shop/shop.sock"],
        "unix_socket_perms": 0o660,
        "threads": 8,
        "max_request_body_size": 10_000_000,
        "channel_timeout": 75.0,
        "trusted_proxy": ["10.0.0.0/8", "localhost"],
        "trusted_proxy_headers": ["x-forwarded-for", "x-forwarded-proto"],
    }
