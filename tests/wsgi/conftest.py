from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.wsgi.logs import Log, strict_log


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """What the package logs from INFO on. No test may leave a record that it did not take."""
    monkeypatch.setattr(logging.getLogger("waitress_async"), "level", logging.INFO)
    with strict_log(logging.INFO) as log:
        yield log
