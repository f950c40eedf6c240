"""The environ, from the bytes of a request."""

from __future__ import annotations

import wsgiref.validate
from collections.abc import Iterable
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.wsgi.calling import EMPTY, RecordingSink, make_environ, make_request
from waitress_async.buffers import SpooledBody
from waitress_async.http import (
    END_OF_MESSAGE,
    PAUSED,
    Connection,
    Data,
    HeadEncoder,
    HeadMemo,
    Limits,
    Request,
)
from waitress_async.wsgi import (
    Environ,
    Environs,
    add_streamed_body,
    connection_environ,
    run_application,
    server_environ,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse


def environ_of(head: str, body: bytes = b"", memo: HeadMemo | None = None) -> Environ:
    """The environ of a request whose head is `head`, one line each."""
    connection = Connection(Limits(), memo or HeadMemo())
    connection.receive_data(
        "".join(f"{line}\r\n" for line in head.splitlines()).encode("latin-1") + b"\r\n" + body
    )
    request = connection.next_event()
    assert isinstance(request, Request)
    content = BytesIO()
    while (event := connection.next_event()) not in (END_OF_MESSAGE, PAUSED):
        assert isinstance(event, Data), event
        content.write(event.data)
    content.seek(0)
    return make_environ(request, content, body_length=len(content.getvalue()) if request.has_body else None)


def test_every_key() -> None:
    errors = StringIO()
    body = BytesIO(b"name=value")
    connection = Connection(Limits(), HeadMemo())
    connection.receive_data(
        b"POST /a%20b?q=%20 HTTP/1.1\r\n"
        b"Host: shop.example:8080\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\n"
        b"Content-Length: 10\r\n"
        b"User-Agent: test/1\r\n"
        b"X-Empty:\r\n"
        b"\r\n"
    )
    request = connection.next_event()
    assert isinstance(request, Request)

    def gone() -> bool:
        return False

    environ = make_environ(request, body, body_length=10, errors=errors, client_disconnected=gone)
    wrapper = environ.pop("wsgi.file_wrapper")
    assert callable(wrapper)
    spool = environ.pop("waitress_async.spool")
    assert (type(spool), spool.size) == (SpooledBody, 10)
    assert environ == {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a b",
        "QUERY_STRING": "q=%20",
        "REQUEST_URI": "/a%20b?q=%20",
        "CONTENT_TYPE": "application/x-www-form-urlencoded",
        "CONTENT_LENGTH": "10",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "8080",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "waitress_async",
        "REMOTE_ADDR": "192.0.2.7",
        "REMOTE_HOST": "192.0.2.7",
        "REMOTE_PORT": "4711",
        "HTTP_HOST": "shop.example:8080",
        "HTTP_USER_AGENT": "test/1",
        "HTTP_X_EMPTY": "",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": body,
        "wsgi.errors": errors,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "waitress.client_disconnected": gone,
        "waitress_async.on_disconnect": print,
        "waitress_async.shutting_down": bool,
        "waitress_async.state": None,
        "waitress_async.from_thread": None,
        "waitress_async.body": None,
        "waitress_async.stream": None,  # which the call of the app sets, as the next
        "wsgi.early_hints": None,
    }
    assert environ["wsgi.input"] is body
    assert environ["wsgi.errors"] is errors


def test_builtin_types_alone() -> None:
    """PEP 3333 "environ Variables": a builtin dict, and native strings, not of a subclass."""
    environ = environ_of(
        "GET /?a HTTP/1.1\nHost: a\nContent-Type: text/plain\nCookie: a=b\nContent-Length: 0"
    )
    assert type(environ) is dict
    for name, value in environ.items():
        assert type(name) is str
        if not name.startswith(("wsgi.", "waitress.", "waitress_async.")):
            assert type(value) is str, name
    for name in ("wsgi.multithread", "wsgi.multiprocess", "wsgi.run_once", "wsgi.input_terminated"):
        assert type(environ[name]) is bool


def test_nothing_of_the_process_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "s3cret")
    monkeypatch.setenv("HTTP_PROXY", "s3cret")
    environ = environ_of("GET / HTTP/1.1\nHost: a")
    assert not {"SECRET_KEY", "HTTP_PROXY", "PATH"} & set(environ)


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", ""),
        ("/?", "/", ""),
        ("/a?b?c=d&e", "/a", "b?c=d&e"),
        ("/a%3Fb?c%3Fd", "/a?b", "c%3Fd"),
        ("/%41%2f%2E", "/A/.", ""),
        ("/caf%C3%A9", "/caf\xc3\xa9", ""),
        ("/%ff%fe", "/\xff\xfe", ""),
        ("/%00%0a", "/\x00\n", ""),
        ("/%", "/%", ""),
        ("/%zz%4", "/%zz%4", ""),
        ("/%2525", "/%25", ""),
        ("/a+b", "/a+b", ""),
        ("/a;b=c", "/a;b=c", ""),
        ("//a//b/", "//a//b/", ""),
        ("/a/../b/./c", "/a/../b/./c", ""),
        ("http://shop.example/a?b", "/a", "b"),
        ("http://shop.example?b", "/", "b"),
        ("HTTP://shop.example", "/", ""),
    ],
)
def test_the_target(target: str, path: str, query: str) -> None:
    """PATH_INFO holds the decoded bytes, each as one latin-1 character; REQUEST_URI is what came."""
    environ = environ_of(f"GET {target} HTTP/1.1\nHost: a")
    assert (environ["PATH_INFO"], environ["QUERY_STRING"]) == (path, query)
    assert (environ["REQUEST_URI"], environ["SCRIPT_NAME"]) == (target, "")


def test_the_authority_of_the_target_wins_over_host() -> None:
    environ = environ_of("GET http://real.example:81/ HTTP/1.1\nHost: other.example")
    assert environ["HTTP_HOST"] == "real.example:81"


def test_asterisk_form() -> None:
    environ = environ_of("OPTIONS * HTTP/1.1\nHost: a")
    assert (environ["PATH_INFO"], environ["REQUEST_URI"]) == ("", "*")


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
def test_the_version(version: str) -> None:
    assert environ_of(f"GET / {version}\nHost: a")["SERVER_PROTOCOL"] == version


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "get", "M-SEARCH", "PROPFIND", "!#$%&'*+-.^_`|~"])
def test_the_method_is_as_it_came(method: str) -> None:
    assert environ_of(f"{method} / HTTP/1.1\nHost: a")["REQUEST_METHOD"] == method


def test_field_names_and_values() -> None:
    environ = environ_of(
        "GET / HTTP/1.1\nHost: a\n"
        'x-Mixed-Case: \t as it is \t\nX.Dot!: \xe9\xff\nX-2: "a\\b"\nX-Empty:\nX-Empty: '
    )
    assert environ["HTTP_X_MIXED_CASE"] == "as it is"
    assert environ["HTTP_X.DOT!"] == "\xe9\xff"
    assert environ["HTTP_X_2"] == '"a\\b"'
    assert environ["HTTP_X_EMPTY"] == ", "


def test_repeated_fields_are_joined_in_their_order() -> None:
    environ = environ_of("GET / HTTP/1.1\nHost: a\nX-A: 1\nAccept: x\nx-a: 2\nX-A: 3")
    assert environ["HTTP_X_A"] == "1, 2, 3"


def test_cookies_are_joined_as_cookies() -> None:
    """RFC 9113 section 8.2.3: a comma is part of a value; only `; ` parts two."""
    environ = environ_of("GET / HTTP/1.1\nHost: a\nCookie: a=1; b=2\nX: y\ncookie: c=3,4\nCOOKIE: d=5")
    assert environ["HTTP_COOKIE"] == "a=1; b=2; c=3,4; d=5"


@pytest.mark.parametrize("order", [1, -1])
def test_names_with_an_underscore_are_dropped(order: int) -> None:
    """Else `X_Real_User` would pass for the `X-Real-User` that a proxy sets."""
    fields = [
        "X-Real-User: alice",
        "X_Real_User: mallory",
        "X-Real_User: mallory",
        "_: mallory",
        "Content_Length: 3",
    ]
    environ = environ_of("\n".join(["GET / HTTP/1.1", "Host: a", *fields[::order]]))
    assert environ["HTTP_X_REAL_USER"] == "alice"
    assert "mallory" not in environ.values()
    assert "CONTENT_LENGTH" not in environ


@pytest.mark.parametrize("name", ["Proxy", "proxy", "PROXY"])
def test_proxy_is_dropped(name: str) -> None:
    """CVE-2016-5385: HTTP_PROXY is a setting to many a program."""
    environ = environ_of(
        f"GET / HTTP/1.1\nHost: a\n{name}: http://mallory.example\nProxy-Authorization: Basic x"
    )
    assert "HTTP_PROXY" not in environ
    assert environ["HTTP_PROXY_AUTHORIZATION"] == "Basic x"


@pytest.mark.parametrize(
    "name",
    ["Request-Method", "Path-Info", "Script-Name", "Query-String", "Remote-Addr", "Server-Name",
     "Server-Port", "Server-Protocol", "wsgi.input", "wsgi.url-scheme", "Gateway-Interface"],
)  # fmt: skip
def test_a_field_never_stands_for_a_variable(name: str) -> None:
    plain = environ_of("GET /path HTTP/1.1\nHost: a")
    environ = environ_of(f"GET /path HTTP/1.1\nHost: a\n{name}: mallory")
    assert environ.pop("HTTP_" + name.upper().replace("-", "_")) == "mallory"
    for both in (plain, environ):
        del both["wsgi.input"], both["wsgi.errors"], both["waitress_async.spool"]
    assert environ == plain


def test_content_type_and_length_have_no_http() -> None:
    environ = environ_of("POST / HTTP/1.1\nHost: a\ncontent-type: text/plain\ncontent-length: 3", b"abc")
    assert (environ["CONTENT_TYPE"], environ["CONTENT_LENGTH"]) == ("text/plain", "3")
    assert not {"HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH"} & set(environ)
    assert environ["wsgi.input"].read() == b"abc"


def test_what_is_not_sent_is_not_there() -> None:
    environ = environ_of("GET / HTTP/1.0")
    assert not {"CONTENT_TYPE", "CONTENT_LENGTH", "HTTP_HOST"} & set(environ)
    assert environ["wsgi.input"].read() == b""


def test_a_request_without_a_body_has_an_empty_one_to_keep(tmp_path: Path) -> None:
    spool = environ_of("GET / HTTP/1.1\nHost: a")["waitress_async.spool"]
    assert (spool.size, spool.on_disk) == (0, False)
    spool.link(tmp_path / "kept")
    assert (tmp_path / "kept").read_bytes() == b""


def test_a_request_without_a_body_has_an_empty_one_to_read_on_the_loop() -> None:
    assert environ_of("GET / HTTP/1.1\nHost: a")["waitress_async.body"] is EMPTY


def test_a_chunked_body_that_is_not_complete_has_no_length() -> None:
    environ = make_environ(make_request("POST"), BytesIO(b"some"))
    reader = object()
    add_streamed_body(environ, reader)
    assert "CONTENT_LENGTH" not in environ
    assert environ["waitress_async.spool"] is None
    assert environ["waitress_async.body"] is reader


def test_a_complete_body_can_be_kept(tmp_path: Path) -> None:
    environ = environ_of("POST / HTTP/1.1\nHost: a\nContent-Length: 3", b"abc")
    assert environ["wsgi.input"].read(1) == b"a"
    spool = environ["waitress_async.spool"]
    assert (spool.size, spool.on_disk) == (3, False)
    spool.link(tmp_path / "kept")
    assert (tmp_path / "kept").read_bytes() == b"abc"
    assert environ["wsgi.input"].read() == b"bc"


@pytest.mark.parametrize("content", [b"", b"abc", b"x" * 70_000])
def test_a_chunked_body_gets_a_length(content: bytes) -> None:
    """Apps read no further than CONTENT_LENGTH; the framing is the server's, and gone."""
    chunks = b"%x\r\n%b\r\n" % (len(content), content) if content else b""
    environ = environ_of(
        "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked", chunks + b"0\r\nX-Trailer: 1\r\n\r\n"
    )
    assert environ["CONTENT_LENGTH"] == str(len(content))
    assert "HTTP_TRANSFER_ENCODING" not in environ
    assert "HTTP_X_TRAILER" not in environ
    assert environ["wsgi.input"].read() == content


def test_requests_share_nothing() -> None:
    """Neither by what is remembered of their lines, nor by the base that is copied."""
    memo = HeadMemo()
    head = "GET /a HTTP/1.1\nHost: a\nX-A: 1\nCookie: a"
    first = environ_of(head, memo=memo)
    first["HTTP_X_A"] = first["wsgi.version"] = "changed"
    first["session"] = "mine"
    second = environ_of(head, memo=memo)
    assert (second["HTTP_X_A"], second["wsgi.version"]) == ("1", (1, 0))
    assert "session" not in second


CONNECTION = {"REMOTE_ADDR": "192.0.2.7"}


def test_the_base_is_left_alone() -> None:
    """It serves all requests of a connection."""
    base = {"SERVER_NAME": "localhost", "SCRIPT_NAME": ""}
    environ = Environs(base, CONNECTION).make(make_request(), BytesIO(), bool, print)
    environ["session"] = "mine"
    assert base == {"SERVER_NAME": "localhost", "SCRIPT_NAME": ""}
    assert CONNECTION == {"REMOTE_ADDR": "192.0.2.7"}


def test_environs_of_requests_that_repeat() -> None:
    """What is kept for them is none of the app's."""
    server = {"SERVER_NAME": "localhost", "SCRIPT_NAME": ""}
    environs = Environs(server, CONNECTION)
    one, other = make_request(path="/one"), make_request(path="/other")
    one.may_repeat = other.may_repeat = True
    for request in (one, one, one, other, one, other, other, other, one):
        body = BytesIO()
        environ = environs.make(request, body, bool, print)
        assert environ["wsgi.input"] is body
        assert environ == Environs(server, CONNECTION).make(request, body, bool, print)
        environ["PATH_INFO"] = "changed"
        environ["session"] = "mine"


def test_of_a_request_that_cannot_repeat_nothing_is_kept() -> None:
    environs = Environs({"SCRIPT_NAME": ""}, CONNECTION)
    large = make_request(HTTP_X="x" * 100_000)
    for request in (large, large, make_request()):
        environs.make(request, BytesIO(), bool, print)
        assert (environs._last, environs._shared) == (None, None)


@pytest.mark.parametrize(
    ("path", "path_info"),
    [
        ("/shop", ""),
        ("/shop/", "/"),
        ("/shop/a/b", "/a/b"),
        ("/shop//a", "//a"),
        ("/shopping", "/shopping"),  # another name, not a path below it
        ("/a/shop", "/a/shop"),
        ("/", "/"),
        ("", ""),
    ],
)
def test_a_prefix_moves_from_the_path_to_the_script_name(path: str, path_info: str) -> None:
    environ = make_environ(make_request(path=path), script_name="/shop")
    assert environ["SCRIPT_NAME"] == "/shop"
    assert environ["PATH_INFO"] == path_info


def test_the_scheme_is_the_servers() -> None:
    server = server_environ(
        server_name="shop.example",
        script_name="",
        server_software="ident",
        shutting_down=bool,
        state=None,
        from_thread=None,
        empty_body=None,
    )
    connection = connection_environ(
        server_port="443",
        url_scheme="https",
        remote_addr="::1",
        remote_port="1",
        errors=StringIO(),
    )
    base = Environs(server, connection).make(make_request(), BytesIO(), bool, print)
    assert base["wsgi.url_scheme"] == "https"
    assert (base["SERVER_NAME"], base["SERVER_PORT"], base["SERVER_SOFTWARE"]) == (
        "shop.example",
        "443",
        "ident",
    )
    assert (base["REMOTE_ADDR"], base["REMOTE_HOST"], base["REMOTE_PORT"]) == ("::1", "::1", "1")


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("GET / HTTP/1.1\nHost: a", b""),
        ("GET /caf%C3%A9?q HTTP/1.1\nHost: a:80\nCookie: a=b\nX: \xe9", b""),
        ("GET / HTTP/1.0", b""),
        ("HEAD / HTTP/1.1\nHost: a", b""),
        ("OPTIONS * HTTP/1.1\nHost: a", b""),
        ("POST / HTTP/1.1\nHost: a\nContent-Length: 3\nContent-Type: text/plain", b"abc"),
        ("PUT / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked", b"3\r\nabc\r\n0\r\n\r\n"),
    ],
)
def test_the_validator_has_no_objection(head: str, body: bytes) -> None:
    """wsgiref.validate checks the environ, how the app is called, and how what it returns is treated."""

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        content = environ["wsgi.input"].read(10)
        environ["wsgi.errors"].write("a line\n")
        environ["wsgi.errors"].flush()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [content, b"!"]

    sink = RecordingSink()
    run_application(wsgiref.validate.validator(app), environ_of(head, body), sink, HeadEncoder())
    assert sink.status == "200 OK"
    assert sink.body == (b"" if head.startswith("HEAD") else b"abc!" if body else b"!")
