from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import django
import pytest
import requests
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.test.utils import override_settings
from django.urls import path

from tests.frameworks.command import Command, Start
from tests.wsgi.logs import Log, strict_log

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


@pytest.fixture(autouse=True)
def log() -> Iterator[Log]:
    """What is logged from WARNING on, by anyone. No test may leave a record that it did not take.

    Being used by every test it is set up first, and so looks last: after the servers have stopped.
    """
    with strict_log(logging.WARNING) as log:
        yield log


MakeDjango = Callable[[str, Callable[[HttpRequest], HttpResponse]], "WSGIApplication"]


@pytest.fixture
def make_django() -> Iterator[MakeDjango]:
    """`make_django(where, view)` is a Django app with that one view, until the end of the test."""
    if not settings.configured:  # another module's may be there, for Django has them once in a process
        settings.configure()
        django.setup()
    with ExitStack() as overridden:

        def make(where: str, view: Callable[[HttpRequest], HttpResponse]) -> WSGIApplication:
            urls = type("urls", (), {"urlpatterns": [path(where, view)]})
            overridden.enter_context(override_settings(ROOT_URLCONF=urls, ALLOWED_HOSTS=["*"], MIDDLEWARE=[]))
            app: WSGIApplication = get_wsgi_application()
            return app

        yield make


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
