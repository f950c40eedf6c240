"""Every example app, served whole, and once more with wsgiref.validate between it and the server."""

from __future__ import annotations

import hashlib
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from wsgiref.validate import validator

import pytest
import requests

from examples import demo, embedded, flask_app
from tests.conftest import ServeInThread
from tests.frameworks.command import ROOT, TIMEOUT, Start, environment

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

STATIC = sorted(path.name for path in (ROOT / "examples" / "static").iterdir())


@pytest.fixture
def url(serve_in_thread: ServeInThread) -> str:
    return serve_in_thread(demo.app).url


# -- the demo


def test_the_first_page(url: str, session: requests.Session) -> None:
    page = session.get(url, timeout=TIMEOUT)
    assert page.status_code == 200
    assert "<h1>An unmodified Flask app" in page.text
    assert re.search(r"waitress_async-[0-9]+", page.text)
    links = re.findall(r"(?:href|src|data-url|action)=\"(/[^\"#]*)", page.text)
    assert {"/static/demo.css", "/static/demo.js", "/download", "/environ", "/nowhere"} <= set(links)
    for link in links:
        if link.startswith("/stream"):
            link = "/stream?lines=20&every=0"  # as it is, it takes its time
        status = session.get(url + link, timeout=TIMEOUT).status_code
        assert status == (404 if link == "/nowhere" else 200), link


@pytest.mark.parametrize("name", STATIC)
def test_its_static_files(url: str, session: requests.Session, name: str) -> None:
    response = session.get(f"{url}/static/{name}", timeout=TIMEOUT)
    assert response.content == (ROOT / "examples" / "static" / name).read_bytes()


def test_its_stream(url: str, session: requests.Session) -> None:
    response = session.get(f"{url}/stream", params={"lines": 100, "every": 0}, stream=True, timeout=TIMEOUT)
    lines = list(response.iter_lines(decode_unicode=True))
    assert [line.partition(",")[0] for line in lines] == [f"line {number} of 100" for number in range(1, 101)]


@pytest.mark.parametrize(("size", "on_disk"), [(10, False), (2 << 20, True)])
def test_its_upload(url: str, session: requests.Session, size: int, on_disk: bool) -> None:
    content = b"x" * size
    response = session.post(f"{url}/upload", files={"file": ("a name", content)}, timeout=TIMEOUT)
    answer = response.json()
    assert answer["files"] == [
        {"name": "a name", "size": size, "sha256": hashlib.sha256(content).hexdigest()}
    ]
    assert answer["input_on_disk"] is on_disk
    assert answer["thread"].startswith("waitress_async-")


def test_its_upload_without_a_file(url: str, session: requests.Session) -> None:
    response = session.post(f"{url}/upload", files={"other": b"x"}, timeout=TIMEOUT)
    assert (response.status_code, "No file was sent." in response.text) == (400, True)


def test_its_download(url: str, session: requests.Session) -> None:
    whole = session.get(f"{url}/download", timeout=TIMEOUT)
    assert (whole.status_code, whole.content) == (200, demo.DOWNLOAD)
    part = session.get(f"{url}/download", headers={"Range": "bytes=160-207"}, timeout=TIMEOUT)
    assert (part.status_code, part.text) == (206, "line 0000000010\nline 0000000011\nline 0000000012\n")


def test_its_environ(url: str, session: requests.Session) -> None:
    headers = {"X-Mine": "<shown>", "Cookie": "secret=1"}
    page = session.get(f"{url}/environ?a=b", headers=headers, timeout=TIMEOUT)
    assert page.status_code == 200
    for shown in ("HTTP_X_MINE", "&lt;shown&gt;", "wsgi.input_terminated", "/environ?a=b", "REMOTE_PORT"):
        assert shown in page.text
    assert "secret" not in page.text


@pytest.mark.parametrize("path", ["/", "/environ", "/download", "/static/demo.css", "/missing"])
def test_its_pages_by_head(url: str, session: requests.Session, path: str) -> None:
    whole = session.get(url + path, timeout=TIMEOUT)
    head = session.head(url + path, timeout=TIMEOUT)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    assert head.headers["Content-Type"] == whole.headers["Content-Type"]


# -- the others


def test_flask(serve_in_thread: ServeInThread, session: requests.Session) -> None:
    response = session.get(serve_in_thread(flask_app.app).url, timeout=TIMEOUT)
    assert (response.status_code, response.text) == (200, "Hello from Flask!\n")


@pytest.mark.parametrize("validated", [False, True])
def test_django(start: Start, session: requests.Session, tmp_path: Path, validated: bool) -> None:
    """In a process of its own, for Django's settings are the process's."""
    if validated:
        (tmp_path / "validated.py").write_text(
            "from wsgiref.validate import validator\n"
            "from examples.django_app import application\n"
            "application = validator(application)\n"
        )
        command = start("validated:application", cwd=tmp_path)
    else:
        command = start("examples.django_app:application")
    url = command.serving()
    form = session.get(url, timeout=TIMEOUT)
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form.text)
    assert token is not None
    greeting = session.post(url, {"name": "A & B", "csrfmiddlewaretoken": token[1]}, timeout=TIMEOUT)
    assert "Hello, A &amp; B!" in greeting.text
    assert session.head(url, timeout=TIMEOUT).status_code == 200
    count = session.get(f"{url}/count", timeout=TIMEOUT)
    assert count.headers["Transfer-Encoding"] == "chunked"
    assert count.text.split() == [str(number) for number in range(1, 11)]
    command.signal(signal.SIGTERM)
    assert command.ended() == (0, [])


def run_embedded(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "examples/embedded.py", *arguments],
        cwd=ROOT,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_embedded_once() -> None:
    with run_embedded("--once") as process:
        out, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, errors) == (0, "")
    assert re.fullmatch(r"Serving on http://127\.0\.0\.1:[0-9]+\nThe ticker stands at [0-9]+\.\n", out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_embedded_until_a_signal(session: requests.Session, number: signal.Signals) -> None:
    with run_embedded() as process:
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("Serving on ").strip()
        for _ in range(2):
            assert session.get(url, timeout=TIMEOUT).text.startswith("The ticker stands at ")
        process.send_signal(number)
        _, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, errors) == (0, "")


# -- with a validator in between

VALIDATED: dict[str, tuple[WSGIApplication, list[tuple[str, str]]]] = {
    "demo": (
        demo.app.wsgi_app,
        [
            ("GET", "/"),
            ("HEAD", "/"),
            ("GET", "/stream?lines=20&every=0"),
            ("HEAD", "/stream?lines=20&every=0"),
            ("GET", "/upload"),
            ("POST", "/upload"),
            ("GET", "/download"),
            ("HEAD", "/download"),
            ("GET", "/static/demo.css"),
            ("GET", "/missing"),
            ("DELETE", "/"),
        ],
    ),
    "flask_app": (flask_app.app.wsgi_app, [("GET", "/"), ("HEAD", "/"), ("POST", "/"), ("OPTIONS", "/")]),
    "embedded": (embedded.Page(embedded.Ticker()), [("GET", "/"), ("HEAD", "/"), ("POST", "/")]),
}


@pytest.mark.parametrize("name", VALIDATED)
def test_the_validator_has_no_objection(
    serve_in_thread: ServeInThread, session: requests.Session, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """It asserts, in the thread that runs the app, that server and app keep to PEP 3333.

    An assertion would be logged, and answered 500. It also writes to stderr of what was not closed.
    """
    app, requested = VALIDATED[name]
    url = serve_in_thread(validator(app)).url
    for method, path in requested:
        files = {"file": ("name", b"x" * 100_000)} if method == "POST" else None
        for _ in range(2):
            response = session.request(method, url + path, files=files, timeout=TIMEOUT)
            assert response.status_code < 500, (method, path)
            assert bool(response.content) == (method not in ("HEAD", "OPTIONS")), (method, path)
    assert capsys.readouterr().err == ""
