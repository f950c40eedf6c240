"""A Django project in one file. Start it with ``waitress-async examples.django_app:application``."""

import time
from collections.abc import Iterator

from django.conf import settings
from django.core.management.utils import get_random_secret_key
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.template import engines
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["localhost", "127.0.0.1", "[::1]"],
    MIDDLEWARE=["django.middleware.common.CommonMiddleware", "django.middleware.csrf.CsrfViewMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY=get_random_secret_key(),  # a real project keeps one, or a restart ends every session
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
)

HOME = """\
<!doctype html>
<title>Django</title>
{% if name %}<p>Hello, {{ name }}!</p>{% endif %}
<form method="post">{% csrf_token %}<input name="name" required> <button>Greet</button></form>
<p><a href="count">Count to ten</a></p>
"""


def home(request: HttpRequest) -> HttpResponse:
    page = engines["django"].from_string(HOME)
    return HttpResponse(page.render({"name": request.POST.get("name")}, request))


def count(request: HttpRequest) -> StreamingHttpResponse:
    def lines() -> Iterator[str]:
        for number in range(1, 11):
            yield f"{number}\n"
            time.sleep(0.1)

    return StreamingHttpResponse(lines(), content_type="text/plain; charset=utf-8")


urlpatterns = [path("", home), path("count", count)]
application = get_wsgi_application()
