"""The least Flask app. Start it with ``waitress-async examples.flask_app:app``."""

from flask import Flask

app = Flask(__name__)


@app.get("/")
def hello() -> str:
    return "Hello from Flask!\n"
