from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.wsgi.logs import Log, strict_log


@pytest.fixture(autouse=True)
def log() -> Iterator[Log]:
    """What the package logs from INFO on. No test may leave a record that it did not take."""
    logger = logging.getLogger("waitress_async")
    before = logger.level
    logger.setLevel(logging.INFO)  # which clears what loggers remember of it; setting the attribute does not
    with strict_log(logging.INFO) as log:
        yield log
    logger.setLevel(before)
