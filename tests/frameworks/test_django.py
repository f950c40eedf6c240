"""Django, whole: what `startproject` makes, its admin and its static files, in a process of its own."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import pytest
import requests

from tests.frameworks.command import ROOT, TIMEOUT, Command, environment

PASSWORD = "correct horse battery staple"
FILE = bytes(range(256)) * 2000

URLS = """

import asyncio
import hashlib
import sys
import threading
from pathlib import Path

from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse
from django.utils.translation import get_language
from django.views.decorators.csrf import csrf_exempt

from waitress_async import from_thread


def lines(request):
    return StreamingHttpResponse((f"line {number}\\n" for number in range(1000)), content_type="text/plain")


def file(request):
    return FileResponse(Path("file.bin").open("rb"))


@csrf_exempt
def upload(request):
    sent = request.FILES["file"]
    return JsonResponse({"size": sent.size, "sha256": hashlib.sha256(sent.read()).hexdigest()})


def say(request):
    print(request.GET["text"], file=sys.stderr, flush=True)
    return HttpResponse()


def fail(request):
    raise RuntimeError("on purpose")


def awaited(request):
    async def look():
        await asyncio.sleep(0)
        return JsonResponse({"thread": threading.current_thread().name, "language": get_language()})

    return from_thread.run(look, timeout=30, cancel_on_disconnect=True)


urlpatterns += [path(view.__name__, view) for view in (lines, file, upload, say, fail, awaited)]
"""

SERVED = """
from django.contrib.staticfiles.handlers import StaticFilesHandler

from shop.wsgi import application

application = StaticFilesHandler(application)
"""


def manage(folder: Path, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**environment(), "PYTHONPATH": str(ROOT), "DJANGO_SUPERUSER_PASSWORD": PASSWORD},
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=TIMEOUT,
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a superuser. Its settings are those of `startproject`."""
    folder = tmp_path_factory.mktemp("django")
    manage(folder, "-m", "django", "startproject", "shop", ".")
    with (folder / "shop" / "urls.py").open("a") as urls:
        urls.write(URLS)
    (folder / "served.py").write_text(SERVED)
    (folder / "file.bin").write_bytes(FILE)
    manage(folder, "manage.py", "migrate", "--verbosity=0")
    manage(
        folder, "manage.py", "createsuperuser", "--noinput", "--username=root", "--email=root@localhost",
        "--verbosity=0",
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def command(project: Path) -> Iterator[Command]:
    """The project, served. At the end it must stop as it should, and have said nothing but what is expected.

    In development mode that takes in each file that was not closed.
    """
    command = Command("served:application", cwd=project)
    try:
        command.serving()
        yield command
        command.signal(signal.SIGTERM)
        status, lines = command.ended()
    finally:
        command.kill()
    assert (status, lines) == (0, [])


@pytest.fixture
def url(command: Command) -> str:
    return f"http://127.0.0.1:{command.port}"


class Page(HTMLParser):
    """The form fields that a browser would send unasked, and the style sheets, of a page."""

    def __init__(self, page: requests.Response) -> None:
        super().__init__()
        self.hidden: dict[str, str] = {}
        self.styles: list[str] = []
        self._url = page.url
        assert page.status_code == 200
        self.feed(page.text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        if tag == "input" and found.get("type") == "hidden":
            self.hidden[found["name"]] = found["value"]
        elif tag == "link" and found.get("rel") == "stylesheet":
            self.styles.append(urljoin(self._url, found["href"]))


def test_the_admin(url: str, session: requests.Session) -> None:
    form = session.get(f"{url}/admin/", timeout=TIMEOUT)
    assert form.url == f"{url}/admin/login/?next=/admin/"
    fields = Page(form).hidden
    assert fields["csrfmiddlewaretoken"]

    refused = session.post(form.url, {**fields, "username": "root", "password": "wrong"}, timeout=TIMEOUT)
    assert "Please enter the correct username and password" in refused.text
    fields = Page(refused).hidden

    index = session.post(form.url, {**fields, "username": "root", "password": PASSWORD}, timeout=TIMEOUT)
    assert index.url == f"{url}/admin/"
    assert [one.status_code for one in index.history] == [302]
    assert "Site administration" in index.text
    assert "Users" in index.text

    page = Page(index)
    assert len(page.styles) >= 3
    for style in page.styles:
        sheet = session.get(style, timeout=TIMEOUT)
        assert (sheet.status_code, sheet.headers["Content-Type"].split(";")[0]) == (200, "text/css")
        assert sheet.headers["Content-Length"] == str(len(sheet.content))
        head = session.head(style, timeout=TIMEOUT)
        assert (head.status_code, head.content) == (200, b"")
        unchanged = {"If-Modified-Since": sheet.headers["Last-Modified"]}
        again = session.get(style, headers=unchanged, timeout=TIMEOUT)
        assert (again.status_code, again.content) == (304, b"")

    left = session.post(f"{url}/admin/logout/", page.hidden, timeout=TIMEOUT)
    assert "Logged out" in left.text
    assert session.get(f"{url}/admin/", timeout=TIMEOUT).url == form.url


def test_a_static_file_is_the_file(url: str, session: requests.Session) -> None:
    import django

    path = Path(django.__file__).parent / "contrib/admin/static/admin/css/base.css"
    response = session.get(f"{url}/static/admin/css/base.css", timeout=TIMEOUT)
    assert response.content == path.read_bytes()


def test_a_streaming_response(url: str, session: requests.Session) -> None:
    response = session.get(f"{url}/lines", stream=True, timeout=TIMEOUT)
    assert response.headers["Transfer-Encoding"] == "chunked"
    assert list(response.iter_lines(decode_unicode=True)) == [f"line {number}" for number in range(1000)]


def test_a_file_response(url: str, session: requests.Session) -> None:
    response = session.get(f"{url}/file", timeout=TIMEOUT)
    assert response.headers["Content-Length"] == str(len(FILE))
    assert response.content == FILE
    head = session.head(f"{url}/file", timeout=TIMEOUT)
    assert (head.headers["Content-Length"], head.content) == (str(len(FILE)), b"")


def test_an_upload_that_django_keeps_on_disk(url: str, session: requests.Session) -> None:
    content = FILE * 6  # above FILE_UPLOAD_MAX_MEMORY_SIZE
    response = session.post(f"{url}/upload", files={"file": content}, timeout=TIMEOUT)
    assert response.json() == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_what_a_view_has_awaited_on_the_loop(url: str, session: requests.Session) -> None:
    """In the view's context, which Django keeps its language in."""
    answer = session.get(f"{url}/awaited", timeout=TIMEOUT)
    assert answer.json() == {"thread": "MainThread", "language": "en-us"}


def test_404_and_500(url: str, session: requests.Session, command: Command) -> None:
    """Django answers for its views and logs them itself, so each is in the log once."""
    assert session.get(f"{url}/missing", timeout=TIMEOUT).status_code == 404
    response = session.get(f"{url}/fail", timeout=TIMEOUT)
    assert (response.status_code, "on purpose" in response.text) == (500, True)
    assert session.get(f"{url}/say?text=enough", timeout=TIMEOUT).status_code == 200
    lines = []
    while (line := command.line()) != "enough":
        assert line is not None
        lines.append(line)
    assert [line for line in lines if not line.startswith("  ")] == [
        "Not Found: /missing",
        "Internal Server Error: /fail",
        "Traceback (most recent call last):",
        "RuntimeError: on purpose",
    ]
