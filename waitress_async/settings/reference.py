"""The declarations as a document, docs/settings.md."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from waitress_async.settings.declaration import Declaration


def settings_reference(declarations: Iterable[Declaration]) -> str:
    """A Markdown table for each section, one row for each setting, in the order of their declaration."""
    parts = []
    for section, members in groupby(declarations, key=lambda declaration: declaration.section):
        rows = [_row(declaration) for declaration in members]
        parts.append(
            "\n".join(
                [f"### {section}\n", "| setting | flag | default | meaning |", "|---|---|---|---|", *rows]
            )
        )
    return "\n\n".join(parts) + "\n"


def _row(declaration: Declaration) -> str:
    flag = f"`{declaration.flag}`" if declaration.flag else "keyword only"
    choices = f" One of {', '.join(declaration.choices)}." if declaration.choices else ""
    return f"| `{declaration.name}` | {flag} | {declaration.default_text} | {declaration.help}{choices} |"
