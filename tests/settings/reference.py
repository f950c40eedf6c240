"""The parts of pages that are made of the source: `python -m tests.settings.reference` makes them anew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.settings.samples import ALL
from waitress_async.settings.other_servers import options_reference
from waitress_async.settings.reference import settings_reference

_DOCS: Final = Path(__file__).parents[2] / "docs"
PAGE: Final = _DOCS / "settings.md"
OPTIONS_PAGE: Final = _DOCS / "from-gunicorn-and-uvicorn.md"

# What each page has between its two marks.
MADE: Final[Mapping[Path, str]] = {PAGE: settings_reference(ALL), OPTIONS_PAGE: options_reference()}

_BEGIN: Final = "<!-- from here on made by: python -m tests.settings.reference -->\n"
_END: Final = "<!-- made until here -->\n"


def renewed(page: Path) -> str:
    """The page's text as it should be. Raises ValueError if one of its two marks is not there."""
    before, rest = page.read_text(encoding="utf-8").split(_BEGIN)
    _, after = rest.split(_END)
    return f"{before}{_BEGIN}\n{MADE[page]}\n{_END}{after}"


if __name__ == "__main__":
    for page in MADE:
        page.write_text(renewed(page), encoding="utf-8")
