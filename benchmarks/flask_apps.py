"""Flask's hello."""

from apps import HELLO
from flask import Flask, Response

hello = Flask(__name__)


@hello.get("/")
def index() -> Response:
    return Response(HELLO, content_type="text/plain")
