"""The threat model: each row has a test that is there, and tells the setting's default as it is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from waitress_async.settings import DECLARATIONS

ROOT = Path(__file__).parent.parent
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "threat-model.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| attack")
]
DEFAULTS = {declaration.name: declaration.default_text for declaration in DECLARATIONS}


def functions_of(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_each_row_has_its_test_and_the_default_of_its_setting(row: list[str]) -> None:
    attack, bound, setting, default, test = row
    assert attack
    assert bound
    path, _, name = test.partition("::")
    assert name in functions_of(ROOT / path)
    if setting:
        (setting,) = re.findall(r"^`(\w+)`$", setting)
        assert setting in DEFAULTS
        if setting != "proxy_protocol_from":  # which is told in words
            assert default == DEFAULTS[setting]


def test_there_are_rows() -> None:
    assert len(ROWS) > 25
