"""The demo: an unmodified Flask app whose pages show what the server underneath does.

Start it from the repository's root with ``waitress-async examples.demo:app``.
Its templates and static files lie beside it, where Flask looks for them.
"""

import hashlib
import os
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any

from flask import Flask, Response, abort, jsonify, redirect, render_template, request, send_file, url_for
from flask.typing import ResponseReturnValue
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import HTTPException

app = Flask(__name__)

BLOCK_BYTES = 64 * 1024

MOST_LINES = 1_000
LONGEST_STREAM_MS = 10_000

# Each line is 16 bytes long, so that one can see whether a range is right: byte 160 begins line 10.
DOWNLOAD = b"".join(b"line %010d\n" % number for number in range(64 * 1024))
DOWNLOAD_ETAG = hashlib.sha256(DOWNLOAD).hexdigest()

# Some servers copy the process's own environment into the environ. It is not for showing, so what is shown
# is chosen: the CGI variables, the request's fields, and what WSGI and the server add.
SHOWN_NAMES = {
    "CONTENT_LENGTH",
    "CONTENT_TYPE",
    "PATH_INFO",
    "QUERY_STRING",
    "REMOTE_ADDR",
    "REMOTE_HOST",
    "REMOTE_PORT",
    "REQUEST_METHOD",
    "REQUEST_URI",
    "SCRIPT_NAME",
    "SERVER_NAME",
    "SERVER_PORT",
    "SERVER_PROTOCOL",
    "SERVER_SOFTWARE",
}
SHOWN_PREFIXES = ("HTTP_", "wsgi.", "waitress.", "waitress_async.")
# A browser sends 127.0.0.1 the cookies of every other program that was ever served there.
HIDDEN_NAMES = {"HTTP_AUTHORIZATION", "HTTP_COOKIE", "HTTP_PROXY", "HTTP_PROXY_AUTHORIZATION"}


@app.get("/")
def index() -> ResponseReturnValue:
    return render_template("index.html", environ=shown_environ(request.environ))


@app.get("/stream")
def stream() -> ResponseReturnValue:
    """Lines of text, one every so many milliseconds: ``?lines=20&every=150``."""
    lines = clamped("lines", default=20, least=1, most=MOST_LINES)
    every = clamped("every", default=150, least=0, most=LONGEST_STREAM_MS // lines)
    thread = thread_name()

    def generate() -> Iterator[str]:
        for number in range(1, lines + 1):
            yield f"line {number} of {lines}, from {thread}\n"
            time.sleep(every / 1000)

    return Response(generate(), mimetype="text/plain")


@app.get("/upload")
def upload_form() -> ResponseReturnValue:
    return redirect(url_for("index", _anchor="upload"))


@app.post("/upload")
def upload() -> ResponseReturnValue:
    """Says what arrived in the multipart field ``file``, which may hold several files."""
    files = [file for file in request.files.getlist("file") if file.filename]
    if not files:
        abort(400, "No file was sent.")
    return jsonify(
        files=[describe(file) for file in files],
        input_on_disk=is_file_on_disk(request.environ["wsgi.input"]),
        thread=thread_name(),
    )


@app.get("/download")
def download() -> ResponseReturnValue:
    return send_file(
        BytesIO(DOWNLOAD),
        mimetype="text/plain",
        as_attachment=True,
        download_name="lines.txt",
        etag=DOWNLOAD_ETAG,
    )


@app.get("/environ")
def environ() -> ResponseReturnValue:
    return render_template("environ.html", environ=shown_environ(request.environ))


@app.errorhandler(HTTPException)
def error_page(error: HTTPException) -> ResponseReturnValue:
    response = error.get_response()  # with the fields of this error, as Allow of a 405
    response.set_data(render_template("error.html", error=error))
    return response


@app.after_request
def forbid_foreign_content(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = (
        "default-src 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


@app.context_processor
def thread_for_templates() -> dict[str, Any]:
    return {"thread": thread_name()}


def thread_name() -> str:
    return threading.current_thread().name


def clamped(name: str, *, default: int, least: int, most: int) -> int:
    """The query's integer `name`, brought between `least` and `most`."""
    return min(max(request.args.get(name, default, type=int), least), most)


def describe(file: FileStorage) -> dict[str, Any]:
    """Name, size in bytes and SHA-256 of a file, of which one block at a time is in memory."""
    size = 0
    digest = hashlib.sha256()
    while block := file.stream.read(BLOCK_BYTES):
        size += len(block)
        digest.update(block)
    return {"name": file.filename, "size": size, "sha256": digest.hexdigest()}


def is_file_on_disk(stream: Any) -> bool:
    try:
        descriptor = stream.fileno()
    except (AttributeError, OSError):  # a wrapper without one; a BytesIO, which refuses
        return False
    return stat.S_ISREG(os.fstat(descriptor).st_mode)  # other servers hand out the socket


def shown_environ(environ: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The rows of the environ's table, sorted by name."""
    return [
        (name, "(hidden)" if name in HIDDEN_NAMES else shown(environ[name]))
        for name in sorted(environ)
        if name in SHOWN_NAMES or name.startswith(SHOWN_PREFIXES)
    ]


def shown(value: object) -> str:
    """Text as it is, other plain values as Python writes them, and of anything else its type only."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | tuple):
        return repr(value)
    kind = type(value)
    return f"<{kind.__module__}.{kind.__qualname__}>"
