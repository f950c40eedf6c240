"""The app of event_apps.py, written natively for ASGI."""

from apps import HELLO
from event_apps import HEADERS, PATH, ticks
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route


async def hello(request: Request) -> Response:
    return PlainTextResponse(HELLO)


async def events(request: Request) -> Response:
    return StreamingResponse(ticks(request.url.query), headers=HEADERS)


app = Starlette(routes=[Route("/", hello), Route(PATH, events)])
