"""The app of event_apps.py through Flask and through Django; its events are made by `waitress_async.sse`."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import django
import flask
from apps import HELLO
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
from event_apps import PATH, PERIOD, data_of, first_due

from waitress_async import sse


async def ticks(query: str) -> AsyncIterator[bytes]:
    begin = first_due(query)
    number = 0
    while True:
        due = begin + number * PERIOD
        await asyncio.sleep(due - time.monotonic())
        yield sse.event(data_of(number, due), id=str(number))
        number += 1


through_flask = flask.Flask(__name__)


@through_flask.get("/")
def hello() -> flask.Response:
    return flask.Response(HELLO, content_type="text/plain")


@through_flask.get(PATH)
def events() -> flask.Response:
    flask.request.environ["waitress_async.stream"](ticks(flask.request.query_string.decode()))
    return flask.Response(headers=dict(sse.HEADERS))


def django_hello(request: Any) -> HttpResponse:
    return HttpResponse(HELLO, content_type="text/plain", headers={"Content-Length": str(len(HELLO))})


def django_events(request: Any) -> HttpResponse:
    request.META["waitress_async.stream"](ticks(request.META["QUERY_STRING"]))
    return HttpResponse(headers=dict(sse.HEADERS))


urlpatterns = [path("", django_hello), path(PATH.removeprefix("/"), django_events)]

settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__)
django.setup()
through_django = get_wsgi_application()
