"""Ten thousand requests, many of them given up at random: the server is afterwards what it was before."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from tests.server.support import (
    Client,
    eventually,
    held,
    local_server,
    needs_proc,
    request,
    server_threads,
    temporary_files,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

pytestmark = needs_proc

REQUESTS = 10_000
CLIENTS = 4
SEED = 7
OVERFLOW = 20_000
BODY = bytes(30_000)


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A short answer, or a stream that is longer than what may wait for a client."""
    size = len(environ["wsgi.input"].read())
    start_response("200 OK", [])
    if environ["PATH_INFO"] == "/stream":
        return (bytes(20_000) for _ in range(20))
    return [b"%d" % size]


REQUEST_KINDS = [
    request("/"),
    request("/stream"),
    request("/", method="POST", body=bytes(100)),
    request("/", method="POST", body=BODY),
    request("/", "Transfer-Encoding: chunked\r\n", method="POST")
    + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
    request("/") * 5,
    request("/", "Expect: 100-continue\r\n", method="POST", body=bytes(100)),
    b"nonsense\r\n\r\n",
    request("/", "Connection: close\r\n"),
]


def visit(address: tuple[str, int], chance: random.Random) -> int:
    """One connection with up to a few requests, ended in one of many ways. Returns how many were sent."""
    sent = 0
    with socket.create_connection(address, timeout=20) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if chance.random() < 0.7:  # whatever comes below, the close is a reset
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(ConnectionError):
            for _ in range(chance.randint(1, 4)):
                wire = chance.choices(REQUEST_KINDS, [12, 2, 4, 1, 1, 2, 1, 1, 4])[0]
                sent += 1
                if chance.random() < 0.4:
                    sock.sendall(wire[: chance.randrange(len(wire))])
                    break
                sock.sendall(wire)
                if chance.random() < 0.3:
                    break  # maybe before the answer: the server then ends what is ended already
                sock.recv(chance.choice([1, 100, 1_000_000]))
    return sent


def test_ten_thousand_requests_with_random_resets(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    began = time.monotonic()
    server = local_server(app, threads=4, inbuf_overflow=OVERFLOW, outbuf_high_watermark=50_000)
    errors: list[object] = []
    started = threading.Event()

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
        await server.start()
        started.set()
        await server.serve_forever()

    def serve() -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())

    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    assert started.wait(10)
    address = "127.0.0.1", server.port
    files, threads = held(), server_threads()
    sent = [0] * CLIENTS

    def run(number: int) -> None:
        chance = random.Random(SEED + number)
        while sent[number] < REQUESTS // CLIENTS:
            sent[number] += visit(address, chance)

    clients = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(CLIENTS)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(60)
        assert not thread.is_alive()
    assert sum(sent) >= REQUESTS
    eventually(lambda: held() == files, f"there are {files} open sockets and files again")
    assert temporary_files() == 0
    eventually(lambda: server_threads() == threads, "the spare threads have ended")
    with Client(address) as client:  # by any of the threads, and all of them are free
        assert client.get().body == b"0"
    server.request_stop()
    serving.join(20)
    assert not serving.is_alive()
    assert errors == []
    assert time.monotonic() - began < 30
