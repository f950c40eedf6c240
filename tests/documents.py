"""The pieces of Python in the documents, as they stand there, for tests that run them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"


def snippets(page: str) -> list[str]:
    """All of one page, in their order."""
    return re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text("utf-8"), re.M | re.S)


def named_snippets(page: str) -> dict[str, str]:
    """Those of one page by the names that they are marked with, which must be all."""
    text = (DOCS / page).read_text("utf-8")
    named = dict(re.findall(r"^<!-- run: (\w+) -->\n```python\n(.*?)^```$", text, re.M | re.S))
    assert len(named) == text.count("```python"), f"a piece of {page} has no name, or that of another"
    return named


def defined_by(*sources: str, **given: object) -> dict[str, Any]:
    """All names that they define, one after the other, with those `given` to them."""
    names: dict[str, Any] = {"__name__": "document", **given}
    for source in sources:
        exec(compile(source, "a document", "exec"), names)
    return names
