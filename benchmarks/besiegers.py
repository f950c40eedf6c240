"""Clients that hold a server up: the besieging side of siege.py, in a process of its own."""

from __future__ import annotations

import asyncio
import math
import random
import socket
import ssl
import struct
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from clients import head_of
from measure import HOST
from processes import MIB
from questions import client_context

try:
    from uvloop import new_event_loop
except ImportError:  # which takes more of the processor for the same
    from asyncio import new_event_loop  # type: ignore[assignment]

ADDRESSES = 64  # 127.0.0.2 and those behind it, of which each client draws one
CONNECTS_WITHIN = 5.0
COMES_BACK_AFTER = 1.0  # seconds after its connection was cut, or refused
BYTE_EVERY = 1.0
BODY = 1_000_000  # bytes that a slow upload has announced
RECEIVE_BUFFER = 65536  # what a reader has not read stands with the server, not here
READS_AT_FIRST = 65536
RESET_WITHIN = 2.0  # wherever it is then
RESET_BODY = MIB  # the largest that is sent or read before a reset
RESETS_AT_ONCE = 200
PIPELINED = 20  # requests
HELLO_ANSWER = 150  # bytes, about

# socket.IP_BIND_ADDRESS_NO_PORT, from 3.12 on: the port is chosen by connect(), and may be in use elsewhere.
BIND_ADDRESS_NO_PORT = 24
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends a reset
TCP_ESTABLISHED = 1  # the first byte of struct tcp_info

Work = Coroutine[Any, Any, None]


@dataclass(frozen=True, slots=True)
class Siege:
    """Who comes, in numbers of clients; sizes in bytes, times in seconds."""

    heads: int  # send a byte a second of a head that never ends
    bodies: int  # the same, of a body
    readers: int  # stop reading an answer
    silent: int  # connect, and say nothing
    handshakes: int  # begin one of TLS
    resets: int  # connections, spread over the time
    pipelined: bool  # some of these with many requests at once
    answer: int  # size of what the readers ask for
    seconds: float
    after: float  # those that are there stay on for so long
    arrival: float  # all but the resets come within that time
    seed: int

    @property
    def standing(self) -> dict[str, int]:
        """Those that are there at the same time and stay, by kind."""
        return {
            kind: count
            for kind in ("heads", "bodies", "readers", "silent", "handshakes")
            if (count := getattr(self, kind))
        }

    @property
    def descriptors(self) -> int:
        """About as many as either side needs."""
        return sum(self.standing.values()) + RESETS_AT_ONCE + 100

    def rehearsal(self, share: float) -> Siege:
        """A smaller one, which leaves no part of a server unused; it takes a tenth of the time or more."""
        seconds = self.seconds * max(share, 0.1)
        return replace(
            self,
            heads=math.ceil(self.heads * share),
            bodies=math.ceil(self.bodies * share),
            readers=math.ceil(self.readers * share),
            silent=math.ceil(self.silent * share),
            handshakes=math.ceil(self.handshakes * share),
            resets=math.ceil(self.resets * share),
            seconds=seconds,
            after=0,
            arrival=min(self.arrival, seconds),
        )


@dataclass(slots=True)
class Tally:
    """What came of it, by kind. `stood` at the end; `cut` by the server; `kept out` before that."""

    came: Counter[str] = field(default_factory=Counter)
    stood: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    kept_out: Counter[str] = field(default_factory=Counter)
    processor: float = 0.0  # seconds of this process


def besiege(port: int, siege: Siege, *, encrypted: bool) -> Tally:
    """The besieging process. Returns when the time is over, with every connection closed."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(_besiege(port, siege, client_context() if encrypted else None))


async def _besiege(port: int, siege: Siege, context: ssl.SSLContext | None) -> Tally:
    besiegers = Besiegers(port, siege, context)
    begin = time.process_time()
    tasks = [asyncio.create_task(work) for work in (*besiegers.standing(), besiegers.resetting())]
    try:
        await asyncio.sleep(siege.seconds + siege.after)
        besiegers.tally.stood = besiegers.there.copy()
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for error in ended:
        if isinstance(error, Exception):  # a defect of ours
            raise error
    besiegers.tally.processor = time.process_time() - begin
    return besiegers.tally


class Visit(asyncio.Protocol):
    """One connection. It counts what comes, stops reading at `enough` bytes, and knows when it was ended."""

    def __init__(self, sock: socket.socket, enough: float) -> None:
        loop = asyncio.get_running_loop()
        self.over: asyncio.Future[None] = loop.create_future()  # not seen while it does not read
        self.had_enough: asyncio.Future[None] = loop.create_future()
        self.transport: asyncio.Transport
        self._sock = sock
        self._left = enough

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left <= 0 and not self.had_enough.done():
            self.had_enough.set_result(None)
            self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def send(self, data: bytes) -> None:
        if not self.transport.is_closing():  # uvloop's raises then
            self.transport.write(data)

    def is_there(self) -> bool:
        """Whether the connection stands, as the system knows it; tcp(7), TCP_INFO."""
        if self.transport.is_closing():
            return False
        return self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_ESTABLISHED

    def reset(self) -> None:
        if not self.transport.is_closing():
            with suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.transport.abort()


Behaviour = Callable[[Visit], Work]


class Besiegers:
    """All clients of one siege."""

    def __init__(self, port: int, siege: Siege, context: ssl.SSLContext | None) -> None:
        self.tally = Tally()
        self.there: Counter[str] = Counter()
        self._port = port
        self._siege = siege
        self._context = context
        self._random = random.Random(siege.seed)
        self._download = head_of("GET", f"/generated/{siege.answer}/0")

    def standing(self) -> list[Work]:
        """Each client that comes and stays."""
        kinds = {
            "heads": partial(self._visited, behave=self._send_head),
            "bodies": partial(self._visited, behave=self._send_body),
            "readers": partial(self._visited, behave=self._stop_reading, enough=READS_AT_FIRST),
            "silent": partial(self._visited, behave=self._say_nothing),
            "handshakes": partial(self._visited, behave=self._greet, raw=True),
        }
        return [
            self._stay(kind, kinds[kind], self._random.uniform(0, self._siege.arrival))
            for kind, count in self._siege.standing.items()
            for _ in range(count)
        ]

    async def resetting(self) -> None:
        """All resets, at moments drawn over the time."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        room = asyncio.Semaphore(RESETS_AT_ONCE)
        moments = sorted(self._random.uniform(0, self._siege.seconds) for _ in range(self._siege.resets))
        async with asyncio.TaskGroup() as group:
            for moment in moments:
                await asyncio.sleep(begin + moment - loop.time())
                await room.acquire()
                group.create_task(self._come_and_reset()).add_done_callback(lambda _: room.release())

    async def _stay(self, kind: str, visit: Callable[[str], Work], arrives: float) -> None:
        await asyncio.sleep(arrives)
        while True:
            try:
                await visit(kind)
            except (OSError, TimeoutError):
                self.tally.kept_out[kind] += 1
            else:
                self.tally.cut[kind] += 1
            await asyncio.sleep(COMES_BACK_AFTER)

    async def _visited(
        self,
        kind: str,
        *,
        behave: Behaviour,
        enough: float = math.inf,
        raw: bool = False,
    ) -> None:
        """Connect, and behave like that until the server ends it. Raises OSError if it lets nobody in."""
        visit = await self._connect(enough, raw=raw)
        self.tally.came[kind] += 1
        self.there[kind] += 1
        try:
            await behave(visit)
        finally:
            self.there[kind] -= 1
            visit.transport.abort()

    async def _connect(self, enough: float = math.inf, *, raw: bool = False) -> Visit:
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_IP, BIND_ADDRESS_NO_PORT, 1)
            sock.bind((f"127.0.0.{2 + self._random.randrange(ADDRESSES)}", 0))
            if enough < math.inf:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            visit = Visit(sock, enough)
            async with asyncio.timeout(CONNECTS_WITHIN):
                await loop.sock_connect(sock, (HOST, self._port))
                context = None if raw else self._context
                await loop.create_connection(
                    lambda: visit, sock=sock, ssl=context, server_hostname="localhost" if context else None
                )
            return visit
        except BaseException:
            sock.close()
            raise

    # What they do

    async def _send_head(self, visit: Visit) -> None:
        await self._drip(visit, b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Endless: ")

    async def _send_body(self, visit: Visit) -> None:
        await self._drip(visit, head_of("POST", "/upload", {"Content-Length": str(BODY)}))

    async def _drip(self, visit: Visit, begin: bytes) -> None:
        visit.send(begin)
        while not visit.transport.is_closing():
            await asyncio.sleep(BYTE_EVERY)
            visit.send(b"a")

    async def _stop_reading(self, visit: Visit) -> None:
        visit.send(self._download)
        while visit.is_there():  # noqa: ASYNC110 - who does not read is not told
            await asyncio.sleep(1)

    async def _say_nothing(self, visit: Visit) -> None:
        await visit.over

    async def _greet(self, visit: Visit) -> None:
        """A ClientHello, cut anywhere or whole, and nothing more."""
        greeting = client_hello()
        if self._random.random() < 0.5:
            greeting = greeting[: self._random.randrange(1, len(greeting))]
        visit.send(greeting)
        await visit.over

    async def _come_and_reset(self) -> None:
        """A request and its answer, up to a point that is as likely in the one as in the other."""
        size = int(RESET_BODY ** self._random.random())
        upload = head_of("POST", "/upload", {"Content-Length": str(size)})
        kinds = [
            (head_of("GET", "/"), HELLO_ANSWER),
            (upload + b"a" * size, HELLO_ANSWER),
            (upload[:-4], 0),
            (head_of("GET", f"/generated/{size}/0"), size),
        ]
        if self._siege.pipelined:
            kinds.append((head_of("GET", "/") * PIPELINED, HELLO_ANSWER * PIPELINED))
        request, answer = self._random.choice(kinds)
        is_in_answer = self._random.random() < 0.5
        sent = len(request) if is_in_answer else self._random.randrange(len(request))
        enough = self._random.uniform(0, answer) if is_in_answer else math.inf
        try:
            visit = await self._connect(enough)
        except (OSError, TimeoutError):
            self.tally.kept_out["resets"] += 1
            return
        self.tally.came["resets"] += 1
        try:
            visit.send(request[:sent])
            if is_in_answer:
                await asyncio.wait(
                    (visit.had_enough, visit.over),
                    timeout=RESET_WITHIN,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            await asyncio.sleep(self._random.choice((0, self._random.uniform(0, 0.1))))
        finally:
            visit.reset()


def client_hello() -> bytes:
    """What a client sends first of TLS."""
    outgoing = ssl.MemoryBIO()
    client = client_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()
