"""Disks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import pytest_asyncio

from tests.buffers.support import Source, until
from waitress_async.buffers import Spool


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def disk() -> Iterator[ThreadPoolExecutor]:
    """The threads that may wait for the disk, apart from the loop's default ones."""
    with ThreadPoolExecutor(2, thread_name_prefix="disk") as executor:
        yield executor


@pytest_asyncio.fixture
async def spool(tmp_path: Path, disk: ThreadPoolExecutor) -> AsyncIterator[Spool]:
    """At the end of the test nothing may be left in it."""
    spool = Spool(str(tmp_path), executor=disk)
    yield spool
    await until(lambda: not spool.files)
    await spool.wait_closed()
    assert (spool.files, spool.used) == (0, 0)
