"""Flask, whole, through `requests` over a real socket, on both loops."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
from collections.abc import Iterator
from io import BytesIO
from itertools import cycle
from pathlib import Path

import pytest
import requests
from flask import Flask, Response, jsonify, redirect, request, send_file, session, url_for
from flask.typing import ResponseReturnValue

from tests.conftest import RunningServer, ServeInThread
from tests.wsgi.logs import Log
from waitress_async import from_thread

MIB = 1 << 20
LINES = [f"line {number}: {'x' * (number % 90)}\n" for number in range(1000)]
FILE = random.Random(1).randbytes(300_000)


def make_app(file: Path) -> Flask:
    app = Flask(__name__)
    app.secret_key = "only for this test"

    @app.post("/upload")
    def upload() -> ResponseReturnValue:
        (sent,) = request.files.values()
        content = sent.read()
        return jsonify(
            name=sent.filename,
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            fields=request.form.to_dict(),
        )

    @app.put("/raw")
    def raw() -> ResponseReturnValue:
        digest = hashlib.sha256()
        size = 0
        while block := request.stream.read(50_000):
            digest.update(block)
            size += len(block)
        return jsonify(size=size, sha256=digest.hexdigest(), declared=request.content_length)

    @app.get("/lines")
    def lines() -> ResponseReturnValue:
        return Response(iter(LINES), mimetype="text/plain")

    @app.get("/file")
    def download() -> ResponseReturnValue:
        return send_file(file, conditional=True)

    @app.get("/page")
    def page() -> ResponseReturnValue:
        return "<p>A page</p>"

    @app.get("/awaited")
    def awaited() -> ResponseReturnValue:
        async def look() -> dict[str, str]:
            await asyncio.sleep(0)
            return {"thread": threading.current_thread().name, "path": request.path}

        return from_thread.run(look, timeout=30, cancel_on_disconnect=True)

    @app.get("/fail")
    def fail() -> ResponseReturnValue:
        raise RuntimeError("on purpose")

    @app.get("/fail-late")
    def fail_late() -> ResponseReturnValue:
        def generate() -> Iterator[str]:
            yield "some"
            raise RuntimeError("on purpose, late")

        return Response(generate(), mimetype="text/plain")

    @app.route("/count", methods=["GET", "POST"])
    def count() -> ResponseReturnValue:
        session["count"] = session.get("count", 0) + 1
        if request.method == "POST":
            return redirect(url_for("count"))
        return str(session["count"])

    @app.get("/nothing")
    def nothing() -> ResponseReturnValue:
        return "", 204

    return app


@pytest.fixture
def server(serve_in_thread: ServeInThread, tmp_path: Path) -> RunningServer:
    file = tmp_path / "file.bin"
    file.write_bytes(FILE)
    return serve_in_thread(make_app(file))


class Getter:
    def __init__(self, url: str, session: requests.Session) -> None:
        self.url = url
        self.session = session

    def __call__(self, path: str, method: str = "GET", **options: object) -> requests.Response:
        return self.session.request(method, self.url + path, timeout=30, **options)  # type: ignore[arg-type]

    @property
    def connections(self) -> int:
        adapter = self.session.get_adapter(self.url)
        assert isinstance(adapter, requests.adapters.HTTPAdapter)
        return int(adapter.poolmanager.connection_from_url(self.url).num_connections)


@pytest.fixture
def get(server: RunningServer, session: requests.Session) -> Iterator[Getter]:
    """Requests of one session, and in the end the proof that they shared one connection."""
    getter = Getter(server.url, session)
    yield getter
    assert getter.connections <= 1


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_multipart_upload_of_10_mb(get: Getter) -> None:
    content = random.Random(2).randbytes(10 * MIB)
    response = get("/upload", "POST", files={"file": ("big file.bin", content)}, data={"note": "\u2713"})
    assert response.json() == {
        "name": "big file.bin",
        "size": len(content),
        "sha256": sha256(content),
        "fields": {"note": "\u2713"},
    }


def test_a_chunked_upload(get: Getter) -> None:
    content = random.Random(3).randbytes(2 * MIB)

    def generate() -> Iterator[bytes]:
        stream = BytesIO(content)
        for size in cycle([1, 100_000, 16_384, 7]):
            if not (chunk := stream.read(size)):
                return
            yield chunk

    response = get("/raw", "PUT", data=generate())
    assert response.request.headers["Transfer-Encoding"] == "chunked"
    assert response.json() == {"size": len(content), "sha256": sha256(content), "declared": len(content)}
    assert get("/page").status_code == 200


def test_an_upload_that_is_empty(get: Getter) -> None:
    expected = {"size": 0, "sha256": sha256(b""), "declared": 0}
    assert get("/raw", "PUT", data=b"").json() == expected
    assert get("/raw", "PUT", data=iter([])).json() == expected


def test_a_stream_of_1000_lines(get: Getter) -> None:
    response = get("/lines", stream=True)
    assert response.headers["Transfer-Encoding"] == "chunked"
    assert list(response.iter_lines(decode_unicode=True)) == [line.rstrip("\n") for line in LINES]
    assert get("/page").status_code == 200


def test_a_file(get: Getter) -> None:
    response = get("/file")
    assert (response.status_code, response.content) == (200, FILE)
    assert response.headers["Content-Length"] == str(len(FILE))
    assert response.headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=1000-1999", 1000, 1999),
        ("bytes=299000-", 299_000, 299_999),
        ("bytes=-5", 299_995, 299_999),
        ("bytes=100-999999", 100, 299_999),
    ],
)
def test_a_range(get: Getter, asked: str, first: int, last: int) -> None:
    response = get("/file", headers={"Range": asked})
    assert response.status_code == 206
    assert response.headers["Content-Range"] == f"bytes {first}-{last}/{len(FILE)}"
    assert response.headers["Content-Length"] == str(last - first + 1)
    assert response.content == FILE[first : last + 1]
    assert get("/page").status_code == 200


def test_a_range_beyond_the_end(get: Getter) -> None:
    response = get("/file", headers={"Range": "bytes=300000-"})
    assert (response.status_code, response.headers["Content-Range"]) == (416, "bytes */300000")
    assert get("/page").status_code == 200


def test_conditional_requests(get: Getter) -> None:
    etag = get("/file").headers["ETag"]
    fresh = get("/file", headers={"Range": "bytes=5-9", "If-Range": etag})
    assert (fresh.status_code, fresh.content) == (206, FILE[5:10])
    stale = get("/file", headers={"Range": "bytes=5-9", "If-Range": '"other"'})
    assert (stale.status_code, stale.content) == (200, FILE)
    unchanged = get("/file", headers={"If-None-Match": etag})
    assert (unchanged.status_code, unchanged.content, unchanged.headers["ETag"]) == (304, b"", etag)
    assert "Transfer-Encoding" not in unchanged.headers
    assert get("/page").status_code == 200


@pytest.mark.parametrize("path", ["/page", "/file", "/lines", "/missing"])
def test_head_is_get_without_the_body(get: Getter, path: str) -> None:
    whole = get(path)
    head = get(path, "HEAD")
    assert (head.status_code, head.content) == (whole.status_code, b"")
    for name in ("Content-Type", "Content-Length", "ETag", "Server"):
        assert head.headers.get(name) == whole.headers.get(name)
    assert get("/page").status_code == 200


def test_404(get: Getter) -> None:
    response = get("/missing")
    assert response.status_code == 404
    assert "The requested URL was not found on the server" in response.text
    assert get("/page").status_code == 200


def test_405_and_options(get: Getter) -> None:
    assert get("/page", "DELETE").status_code == 405
    options = get("/page", "OPTIONS")
    assert (options.status_code, options.content) == (200, b"")
    assert set(options.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}


def test_500_and_on(get: Getter, log: Log) -> None:
    """Flask answers for its views itself; the connection stays good."""
    response = get("/fail")
    assert response.status_code == 500
    assert "Internal Server Error" in response.text
    assert "on purpose" in log.take("ERROR tests.frameworks.test_flask: Exception on /fail [GET]")
    assert get("/page").status_code == 200


def test_a_stream_that_fails_is_seen_to_be_cut(
    server: RunningServer, session: requests.Session, log: Log
) -> None:
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        session.get(server.url + "/fail-late", timeout=30)
    assert "on purpose, late" in log.take("ERROR waitress_async: Exception while serving /fail-late")
    assert session.get(server.url + "/page", timeout=30).status_code == 200


def test_what_a_view_has_awaited_on_the_loop(server: RunningServer, get: Getter) -> None:
    """In the view's context: Flask's `request` is there, too."""
    assert get("/awaited").json() == {"thread": server.thread.name, "path": "/awaited"}


def test_204(get: Getter) -> None:
    response = get("/nothing")
    assert (response.status_code, response.content) == (204, b"")
    assert not {"Content-Length", "Transfer-Encoding"} & set(response.headers)
    assert get("/page").status_code == 200


def test_cookies_and_redirects(get: Getter) -> None:
    assert [get("/count").text for _ in range(3)] == ["1", "2", "3"]
    response = get("/count", "POST", data={"a": "b"})
    assert ([one.status_code for one in response.history], response.text) == ([302], "5")
    assert response.url == get.url + "/count"


def test_the_servers_fields(get: Getter) -> None:
    """Each once, and the app's are the app's own."""
    headers = get("/page").raw.headers
    assert len(headers.getlist("Date")) == len(headers.getlist("Server")) == 1
    assert headers["Server"] == "waitress_async"
    assert "Connection" not in headers
