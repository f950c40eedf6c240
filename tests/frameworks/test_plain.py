"""WSGI apps without a framework: what only a server with threads and a socket can show of PEP 3333."""

from __future__ import annotations

import contextvars
import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import pytest
import requests

from tests.conftest import ServeInThread
from tests.wsgi.calling import TEXT
from tests.wsgi.logs import Log
from waitress_async.errors import ClientDisconnected
from waitress_async.wsgi import Environ

if TYPE_CHECKING:
    from _typeshed.wsgi import InputStream, StartResponse

TIMEOUT = 30
OVERFLOW = 100_000  # bytes of a body that are kept in memory, in these tests

# -- wsgi.input


def read_at_once(stream: InputStream) -> bytes:
    return stream.read()


def read_in_pieces(stream: InputStream) -> bytes:
    return b"".join(iter(lambda: stream.read(1000), b""))


def read_lines(stream: InputStream) -> bytes:
    return b"".join(iter(stream.readline, b""))


def read_list_of_lines(stream: InputStream) -> bytes:
    return b"".join(stream.readlines())


def iterate(stream: InputStream) -> bytes:
    return b"".join(stream)


def read_twice(stream: InputStream) -> bytes:
    assert stream.tell() == 0  # type: ignore[attr-defined]
    stream.read()
    stream.seek(0)  # type: ignore[attr-defined]
    return stream.read()


@pytest.mark.parametrize(
    "reading", [read_at_once, read_in_pieces, read_lines, read_list_of_lines, iterate, read_twice]
)
def test_the_input_is_a_file(
    serve_in_thread: ServeInThread, session: requests.Session, reading: Callable[[InputStream], bytes]
) -> None:
    """In memory or on disk, of a known length or chunked: always at its start, whole, and with an end."""

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        stream = environ["wsgi.input"]
        content = reading(stream)
        assert stream.read() == stream.read(1) == stream.readline() == b""
        assert environ["wsgi.input_terminated"] is True
        start_response("200 OK", [*TEXT, ("X-Length", environ["CONTENT_LENGTH"])])
        return [content]

    url = serve_in_thread(app, inbuf_overflow=OVERFLOW).url
    for lines in (0, 1, OVERFLOW // 8 - 1, OVERFLOW // 8, OVERFLOW // 2):
        content = b"".join(b"%07d\n" % number for number in range(lines))
        for data in (content, iter([content[:5], content[5:]] if content else [])):
            response = session.post(url, data=data, timeout=TIMEOUT)
            assert (response.headers["X-Length"], response.content) == (str(len(content)), content)


@pytest.mark.parametrize("size", [10, OVERFLOW * 2])
def test_an_input_that_is_not_read(
    serve_in_thread: ServeInThread, session: requests.Session, size: int
) -> None:
    """The next request on the connection does not begin in it."""

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        return [environ["REQUEST_METHOD"].encode()]

    url = serve_in_thread(app, inbuf_overflow=OVERFLOW).url
    for _ in range(3):
        assert session.post(url, data=b"GET / HTTP/1.1\r\n" * size, timeout=TIMEOUT).text == "POST"
    assert session.get(url, timeout=TIMEOUT).text == "GET"


# -- threads and contexts

VARIABLE = contextvars.ContextVar("VARIABLE", default=0)


def test_a_request_has_one_thread_and_one_context(
    serve_in_thread: ServeInThread, session: requests.Session
) -> None:
    """From the call to `close()`, and the next request finds nothing of it."""
    seen: list[tuple[str, int]] = []
    closed = threading.Semaphore(0)

    def note() -> None:
        seen.append((threading.current_thread().name, VARIABLE.get()))
        VARIABLE.set(VARIABLE.get() + 1)

    class Result:
        def __iter__(self) -> Iterator[bytes]:
            for _ in range(2):
                note()
                yield b"x"

        def close(self) -> None:
            note()
            closed.release()

    def app(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        note()
        start_response("200 OK", TEXT)
        return Result()

    VARIABLE.set(10)  # in a context that is not the server's
    url = serve_in_thread(app, threads=1).url
    for _ in range(3):
        assert session.get(url, timeout=TIMEOUT).text == "xx"
    for _ in range(3):
        assert closed.acquire(timeout=TIMEOUT)
    assert seen == [("waitress_async-1", number) for number in range(4)] * 3


def test_threads_are_as_many_as_the_setting_says(serve_in_thread: ServeInThread) -> None:
    together = threading.Barrier(3)

    def app(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        together.wait(TIMEOUT)
        start_response("200 OK", TEXT)
        return [threading.current_thread().name.encode()]

    url = serve_in_thread(app, threads=3).url
    names: list[str] = []
    clients = [
        threading.Thread(target=lambda: names.append(requests.get(url, timeout=TIMEOUT).text))
        for _ in range(3)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join(TIMEOUT)
    assert sorted(names) == ["waitress_async-1", "waitress_async-2", "waitress_async-3"]


# -- streaming


@pytest.mark.parametrize("way", ["yield", "write"])
def test_a_chunk_goes_out_before_the_next_is_made(
    serve_in_thread: ServeInThread, session: requests.Session, way: str
) -> None:
    gate = threading.Semaphore(0)

    def generate() -> Iterator[bytes]:
        for number in range(5):
            assert gate.acquire(timeout=TIMEOUT)
            yield b"%d" % number

    def app(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", TEXT)
        if way == "yield":
            return generate()
        for chunk in generate():
            write(chunk)
        return []

    gate.release()
    with session.get(serve_in_thread(app).url, stream=True, timeout=TIMEOUT) as response:
        for number, chunk in enumerate(response.iter_content(None)):
            assert chunk == b"%d" % number
            gate.release()
        assert number == 4


@pytest.mark.parametrize("way", ["yield", "write"])
def test_the_app_is_told_when_the_client_is_gone(serve_in_thread: ServeInThread, way: str) -> None:
    """By the environ's callable, by an exception of `write()` or the generator's end, and by `close()`."""
    told: list[object] = []
    done = threading.Event()

    def generate(environ: Environ) -> Iterator[bytes]:
        gone = environ["waitress.client_disconnected"]
        try:
            told.append(gone())
            yield b"first"
            while not gone():
                done.wait(0.001)
            yield b"x" * 1_000_000
            told.append("never")
        except GeneratorExit:
            told.append(GeneratorExit)
        finally:
            done.set()

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", TEXT)
        if way == "yield":
            return generate(environ)
        try:
            for chunk in generate(environ):
                write(chunk)
        except ClientDisconnected:
            told.append(ClientDisconnected)
            raise
        return []

    server = serve_in_thread(app)
    with socket.create_connection(server.address, TIMEOUT) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        received = b""
        while b"first" not in received:
            received += client.recv(1000)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert done.wait(TIMEOUT)
    server.stop()
    assert told[0] is False
    assert set(told[1:]) == ({GeneratorExit} if way == "yield" else {GeneratorExit, ClientDisconnected})


def test_a_client_that_does_not_read_holds_up_its_app_and_nobody_else(
    serve_in_thread: ServeInThread, session: requests.Session
) -> None:
    size, chunks = 200_000, 1000
    made: list[int] = []

    def generate() -> Iterator[bytes]:
        for number in range(chunks):
            made.append(number)
            yield b"x" * size

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        return [b"%d" % len(made)] if environ["PATH_INFO"] == "/made" else generate()

    server = serve_in_thread(app, threads=2, outbuf_high_watermark=1_000_000)
    with socket.create_connection(server.address, TIMEOUT) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        client.recv(1)
        seen = [-1, 0]
        while len(set(seen[-50:])) > 1:  # until it stands
            seen.append(int(session.get(f"{server.url}/made", timeout=TIMEOUT).text))
    assert len(made) * size < 30_000_000  # what the sockets of both sides take, the transport, the watermark


# -- framing, as plain bytes


def talk(address: tuple[str, int], sent: bytes) -> bytes:
    """All that the server says to this, when the client says no more."""
    with socket.create_connection(address, TIMEOUT) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65_536), b""))


def by_path(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    status = {"/204": "204 No Content", "/304": "304 Not Modified"}.get(path, "200 OK")
    start_response(status, [*TEXT, ("Server", "app"), ("Date", "now")])
    if path == "/stream":
        return iter([b"", b"one", b""])
    return [] if path in ("/204", "/304", "/empty") else [b"body"]


def test_responses_byte_for_byte(serve_in_thread: ServeInThread) -> None:
    """Pipelined, so that a byte too many or too few in one would show in the next."""
    address = serve_in_thread(by_path).address
    begin = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nServer: app\r\nDate: now\r\n"
    expected = {
        b"GET /body": begin + b"Content-Length: 4\r\n\r\nbody",
        b"HEAD /body": begin + b"Content-Length: 4\r\n\r\n",
        b"GET /empty": begin + b"Content-Length: 0\r\n\r\n",
        b"GET /stream": begin + b"Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n",
        b"HEAD /stream": begin + b"\r\n",
        b"GET /204": begin.replace(b"200 OK", b"204 No Content") + b"\r\n",
        b"GET /304": begin.replace(b"200 OK", b"304 Not Modified") + b"\r\n",
        b"POST /body": begin + b"Content-Length: 4\r\n\r\nbody",
    }
    sent = b"".join(line + b" HTTP/1.1\r\nHost: a\r\n\r\n" for line in expected)
    assert talk(address, sent) == b"".join(expected.values())


@pytest.mark.parametrize("sizes", [[65_000], [70_000], [3_000_000], [40_000, 40_000], [100_000] * 20])
def test_a_large_response_byte_for_byte(serve_in_thread: ServeInThread, sizes: list[int]) -> None:
    """And the connection can be closed behind it."""

    def app(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [*TEXT, ("Server", "app"), ("Date", "now")])
        return [bytes([number]) * size for number, size in enumerate(sizes)]

    address = serve_in_thread(app).address
    request = b"GET / HTTP/1.1\r\nHost: a\r\n"
    begin = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nServer: app\r\nDate: now\r\n"
    begin += b"Content-Length: %d\r\n" % sum(sizes)
    body = b"".join(bytes([number]) * size for number, size in enumerate(sizes))
    received = talk(address, request + b"\r\n" + request + b"Connection: close\r\n\r\n")
    assert received == begin + b"\r\n" + body + begin + b"Connection: close\r\n\r\n" + body


@pytest.mark.parametrize("keep_alive", [True, False])
def test_responses_to_a_client_of_1_0(serve_in_thread: ServeInThread, keep_alive: bool) -> None:
    """What has no length is ended by the close; what has one can be followed by more."""
    address = serve_in_thread(by_path).address
    field = b"Connection: keep-alive\r\n" if keep_alive else b""
    begin = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nServer: app\r\nDate: now\r\n"
    sent = b"".join(b"GET %b HTTP/1.0\r\n%b\r\n" % (path, field) for path in (b"/body", b"/stream", b"/body"))
    first = begin + b"Content-Length: 4\r\n" + (field or b"Connection: close\r\n") + b"\r\nbody"
    second = begin + b"Connection: close\r\n\r\none"
    assert talk(address, sent) == (first + second if keep_alive else first)


def test_what_is_cut_has_no_end(serve_in_thread: ServeInThread, log: Log) -> None:
    """Neither a last chunk, nor a next response."""

    def app(_environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield b"one"
        raise ValueError("on purpose")

    server = serve_in_thread(app)
    connection = http.client.HTTPConnection(*server.address, timeout=TIMEOUT)
    connection.request("GET", "/")
    with pytest.raises(http.client.IncompleteRead) as caught:
        connection.getresponse().read()
    assert caught.value.partial == b"one"
    connection.close()
    assert "on purpose" in log.take("ERROR waitress_async: Exception while serving /")


def test_a_method_that_the_app_rewrites(serve_in_thread: ServeInThread, session: requests.Session) -> None:
    """The answer's framing is for what the client asked, or the connection would be out of step."""

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        environ["REQUEST_METHOD"] = environ["HTTP_X_HTTP_METHOD_OVERRIDE"]
        start_response("200 OK", [*TEXT, ("Content-Length", "4")])
        return [b"body"]

    url = serve_in_thread(app).url
    for method, override in [("GET", "HEAD"), ("HEAD", "GET"), ("GET", "PUT")]:
        headers = {"X-HTTP-Method-Override": override}
        response = session.request(method, url, headers=headers, timeout=5)
        assert response.text == ("" if method == "HEAD" else "body")


# -- the environ, of a connection


def test_the_environ_tells_of_the_connection(serve_in_thread: ServeInThread) -> None:
    environs: list[Environ] = []

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        environs.append(environ)
        start_response("200 OK", TEXT)
        return []

    server = serve_in_thread(app, ident="me", server_name="shop.example", url_scheme="https")
    with socket.create_connection(server.address, TIMEOUT) as client:
        client.sendall(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: b\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        while client.recv(65_536):
            pass
        remote_port = str(client.getsockname()[1])
    assert [environ["PATH_INFO"] for environ in environs] == ["/a", "/b"]
    for environ in environs:
        assert environ["SERVER_NAME"] == "shop.example"
        assert environ["SERVER_PORT"] == str(server.server.port)
        assert environ["SERVER_SOFTWARE"] == "me"
        assert environ["wsgi.url_scheme"] == "https"
        assert environ["REMOTE_ADDR"] == environ["REMOTE_HOST"] == "127.0.0.1"
        assert environ["REMOTE_PORT"] == remote_port
    assert environs[0] is not environs[1]
