"""The table of docs/from-waitress.md against waitress's defaults and our own declarations."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest

from waitress_async.settings import DECLARATIONS, Declaration

DOCUMENT: Final = Path(__file__).parent.parent / "docs" / "from-waitress.md"

# The arguments of waitress 3.0.2, with their defaults. Lists and sets are written as tuples.
OF_WAITRESS: Final[dict[str, object]] = {
    "host": "0.0.0.0",
    "port": 8080,
    "listen": ("0.0.0.0:8080",),
    "ipv4": True,
    "ipv6": True,
    "unix_socket": None,
    "unix_socket_perms": 0o600,
    "sockets": (),
    "backlog": 1024,
    "threads": 4,
    "trusted_proxy": None,
    "trusted_proxy_count": None,
    "trusted_proxy_headers": (),
    "clear_untrusted_proxy_headers": True,
    "log_untrusted_proxy_headers": False,
    "url_scheme": "http",
    "url_prefix": "",
    "ident": "waitress",
    "server_name": "waitress.invalid",
    "recv_bytes": 8192,
    "send_bytes": 1,
    "inbuf_overflow": 524_288,
    "outbuf_overflow": 1_048_576,
    "outbuf_high_watermark": 16_777_216,
    "connection_limit": 100,
    "cleanup_interval": 30,
    "channel_timeout": 120,
    "log_socket_errors": True,
    "max_request_header_size": 262_144,
    "max_request_body_size": 1_073_741_824,
    "expose_tracebacks": False,
    "asyncore_loop_timeout": 1,
    "asyncore_use_poll": False,
    "channel_request_lookahead": 0,
}

OURS: Final = {declaration.name: declaration for declaration in DECLARATIONS}


@dataclass(frozen=True)
class Row:
    of_waitress: str
    here: str
    verdict: str
    how: str


def rows() -> list[tuple[str, Row]]:
    section = DOCUMENT.read_text().partition("\n## Settings\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^\| `(\w+)` \|(.*)\|$", section, re.MULTILINE)
    return [(name, Row(*(cell.strip() for cell in cells.split("|")))) for name, cells in lines]


def test_each_setting_of_waitress_is_told_once() -> None:
    assert len(OF_WAITRESS) == 34
    assert sorted(name for name, _ in rows()) == sorted(OF_WAITRESS)


@pytest.mark.parametrize("name", OF_WAITRESS)
def test_a_row(name: str) -> None:
    row, declaration = dict(rows())[name], OURS[name]
    assert row.of_waitress == text_of(replace(declaration, default=OF_WAITRESS[name]))
    assert row.here == text_of(declaration)
    assert row.verdict in {"same", "better", "no effect"}
    assert (row.verdict == "no effect") is declaration.without_effect
    if row.here != row.of_waitress:
        assert row.verdict == "better"
    if row.verdict != "same":
        assert row.how


def text_of(declaration: Declaration) -> str:
    return declaration.default_text or "none"
