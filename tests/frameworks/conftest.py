from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import requests

from tests.frameworks.command import Command, Start
from tests.wsgi.logs import Log, strict_log


@pytest.fixture(autouse=True)
def log() -> Iterator[Log]:
    """What is logged from WARNING on, by anyone. No test may leave a record that it did not take.

    Being used by every test it is set up first, and so looks last: after the servers have stopped.
    """
    with strict_log(logging.WARNING) as log:
        yield log


@pytest.fixture
def session() -> Iterator[requests.Session]:
    """A client with keep-alive and cookies."""
    with requests.Session() as session:
        session.trust_env = False  # no proxy of the environment's
        yield session


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(arguments, cwd)` runs `python -m waitress_async` until the end of the test."""
    running: list[Command] = []

    def start(*arguments: str, **options: object) -> Command:
        command = Command(*arguments, **options)  # type: ignore[arg-type]
        running.append(command)
        return command

    yield start
    for command in running:
        command.kill()
