"""The part of docs/settings.md that is made: `python -m tests.settings.reference` makes it anew."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.settings.samples import ALL
from waitress_async.settings import settings_reference

PAGE: Final = Path(__file__).parents[2] / "docs" / "settings.md"

_BEGIN: Final = "<!-- from here on made by: python -m tests.settings.reference -->\n"
_END: Final = "<!-- made until here -->\n"


def renewed(page: str) -> str:
    """The page with what is made between its two marks. Raises ValueError if one of them is not there."""
    before, rest = page.split(_BEGIN)
    _, after = rest.split(_END)
    return f"{before}{_BEGIN}\n{settings_reference(ALL)}\n{_END}{after}"


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
