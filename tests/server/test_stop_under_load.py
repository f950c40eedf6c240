"""The stop of the command under load: nothing that was asked in time is lost, and nothing holds the exit."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import threading
import time
from collections.abc import Iterator
from typing import Final, Protocol

import pytest

from tests.conftest import LOOPS, ServeInThread
from tests.frameworks.command import TIMEOUT, Command
from tests.server.stopping import STREAM, UPLOAD, Tally, app, summed
from tests.server.support import (
    DEADLINE,
    Client,
    bounded,
    eventually,
    hello,
    in_thread,
    local_server,
    nothing_left,
    on_each_loop,
    request,
)

PHASES: Final = (
    r"Stopping: (\d+) connection\(s\) open",
    r"Listening no more: (\d+) waiting connection\(s\) accepted",
    r"Closed (\d+) idle connection\(s\): (\d+) under way",
    r"Stopped: (\d+) response\(s\) sent since the stop began, (\d+) connection\(s\) cut",
)

# The path, the rest of the head, the body, and the body of the answer.
KINDS: Final = {
    "kept": ("/kept", "", b"", b"/kept"),
    "closed": ("/closed", "Connection: close\r\n", b"", b"/closed"),
    "uploaded": ("/upload", "", UPLOAD, summed(UPLOAD)),
    "streamed": ("/stream", "", b"", b"".join(STREAM)),
}


class Start(Protocol):
    def __call__(self, *settings: str) -> Command: ...


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(settings)` runs the command with the app of `stopping.py`, and returns when it serves."""
    running: list[Command] = []

    def start(*settings: str) -> Command:
        command = Command(*settings, "tests.server.stopping:app")
        running.append(command)
        command.ready()
        return command

    yield start
    for command in running:
        command.kill()


def connect(command: Command) -> Client:
    return Client(("127.0.0.1", command.port))


def asked(command: Command, path: str) -> Client:
    client = connect(command)
    client.send(request(path))
    return client


def until(command: Command, start: str) -> str:
    """Wait for the log line whose message begins so, and return the message."""
    while (line := command.line()) is not None:
        message = message_of(line)
        if message.startswith(start):
            return message
    raise AssertionError(f"the log ended before {start!r}")


def ended(command: Command) -> tuple[int, list[str]]:
    """Wait for the end. Return the exit status and all lines that were not read yet."""
    status = command.process.wait(TIMEOUT)
    return status, list(iter(command.line, None))


def message_of(line: str) -> str:
    """Without time, level and logger."""
    return line.partition(" waitress_async: ")[2]


def counts_of(messages: list[str]) -> list[tuple[int, ...]]:
    """The counts of each phase. They are all there, in order, and the last of them is the last message."""
    found = []
    rest = iter(messages)
    for phase in PHASES:
        match = next((match for message in rest if (match := re.fullmatch(phase, message))), None)
        assert match is not None, f"{phase!r} is not where it should be in {messages}"
        found.append(tuple(map(int, match.groups())))
    assert list(rest) == []
    return found


# -- under load


class Visitor:
    """A client that asks again and again until the server, which is being stopped, takes no more from it.

    What it had sent before the stop has to be answered whole. What it sent later is answered whole, or
    with nothing at all.
    """

    def __init__(self, kind: str, port: int, tally: Tally) -> None:
        self._kind = kind
        self._port = port
        self._tally = tally
        path, fields, body, self._expected = KINDS[kind]
        self._request = request(path, fields, method="POST" if body else "GET", body=body)
        self._client: Client | None = None

    def run(self) -> None:
        try:
            while self._visit():
                pass
        except (OSError, AssertionError) as error:
            self._tally.fail(f"{self._kind}: {error!r}")
        finally:
            self._leave()

    def _visit(self) -> bool:
        """Returns whether it may ask again."""
        in_time = False
        try:
            if self._client is None:
                self._client = Client(("127.0.0.1", self._port))
            self._client.send(self._request)
            in_time = not self._tally.stopping.is_set()
            begun = self._client.sock.recv(1)
        except ConnectionError:
            begun = b""
        if not begun:
            assert not in_time, "what was sent before the stop was not answered"
            assert self._tally.stopping.is_set()
            self._tally.turn_away()
            return False
        self._client._buffer = begun  # type: ignore[union-attr]
        response = self._client.receive()  # type: ignore[union-attr]
        assert (response.status, response.body) == (200, self._expected)
        self._tally.add(self._kind)
        if response.closes:
            self._leave()
        return True

    def _leave(self) -> None:
        if self._client is not None:
            self._client.sock.close()
            self._client = None


@pytest.mark.parametrize("loop", LOOPS)
def test_nothing_that_was_asked_before_the_stop_is_lost(start: Start, loop: str) -> None:
    command = start("--graceful-timeout=10", f"--loop={loop}")
    tally = Tally()
    visitors = [Visitor(kind, command.port, tally) for kind in KINDS for _ in range(4)]
    threads = [threading.Thread(target=visitor.run, daemon=True) for visitor in visitors]
    for thread in threads:
        thread.start()
    tally.wait_answered(KINDS, 12)
    tally.stopping.set()
    command.signal(signal.SIGTERM)
    assert command.process.wait(10 + 1) == 0
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    assert tally.wrong == []
    opened, _, _, (_, cut) = counts_of([message_of(line) for line in ended(command)[1]])
    assert opened > (0,)
    assert cut == 0


def test_each_answer_in_flight_is_whole_and_the_last_of_its_connection(start: Start) -> None:
    """More requests than threads: some of them still wait in the queue when the stop begins."""
    command = start("--threads=4")
    with connect(command) as idle:
        assert idle.get("/idle").body == b"/idle"
        clients = [asked(command, "/late") for _ in range(12)]
        command.signal(signal.SIGTERM)
        for client in clients:
            response = client.receive()
            assert (response.body, response.closes) == (b"/late", True)
            client.assert_ended()
        idle.assert_ended()
        for client in clients:  # not before it was counted
            client.sock.close()
    status, lines = ended(command)
    assert status == 0
    (opened,), (waited,), *rest = counts_of([message_of(line) for line in lines])
    assert opened + waited == 13
    assert rest == [(1, 12), (12, 0)]


def test_a_stream_learns_of_the_stop(start: Start) -> None:
    command = start()
    with asked(command, "/events") as client:
        begun = client.sock.recv(65_536)
        while b"False\n" not in begun:
            begun += client.sock.recv(65_536)
        command.signal(signal.SIGTERM)
        client._buffer = begun
        assert client.receive().body == b"False\nTrue\n"
        client.assert_ended()
    assert ended(command)[0] == 0


# -- what does not end


def test_a_stuck_thread_does_not_hold_the_exit(start: Start) -> None:
    command = start("--graceful-timeout=1")
    with asked(command, "/stuck"), connect(command) as other:
        assert other.get("/after").body == b"/after"  # the one before it is being served by now
        command.signal(signal.SIGTERM)
        assert command.process.wait(1 + 1) == 0
    assert_named(ended(command)[1], threads=1, cut=1)


def assert_named(lines: list[str], *, threads: int, cut: int) -> None:
    """The log names so many of the app's threads and no others, with stacks, and ends with the counts."""
    text = "\n".join(lines)
    (told,) = re.findall(r"thread\(s\) still running: (.*)", text)
    names = told.split(", ")
    assert len(names) == threads
    assert all(re.fullmatch(r"waitress_async-\d+", name) for name in names)
    assert re.findall(r"(\S+) is stuck here:", text) == names
    assert text.count("in never_returns") == threads
    messages = [message for line in lines if (message := message_of(line))]
    assert counts_of(messages)[-1] == (0, cut)


def test_all_threads_stuck_and_more_in_the_queue(start: Start) -> None:
    """The watchdog of an orchestrator has nothing else than SIGTERM before it kills."""
    command = start("--graceful-timeout=0.2", "--threads=2")
    clients = [asked(command, "/stuck") for _ in range(5)]
    with connect(command) as probe:  # once this is refused, all that came before it was read
        probe.send(b"nonsense\r\n\r\n")
        assert probe.receive().status == 400
        probe.assert_ended()
    command.signal(signal.SIGTERM)
    status, lines = ended(command)
    for client in clients:
        client.sock.close()
    assert status == 0
    assert_named(lines, threads=2, cut=5)


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)],
    ids=["same", "other"],
)
def test_a_second_signal_aborts_at_once(start: Start, first: signal.Signals, second: signal.Signals) -> None:
    command = start("--graceful-timeout=1000")
    with asked(command, "/stuck"), connect(command) as other:
        assert other.get("/after").body == b"/after"
        command.signal(first)
        assert until(command, "Closed 1 idle").endswith(" 1 under way")
        command.signal(second)
        status, lines = ended(command)
    assert status == 0
    assert any("in never_returns" in line for line in lines)
    assert message_of(lines[-1]) == "Stopped: 0 response(s) sent since the stop began, 1 connection(s) cut"


def test_a_second_signal_ends_the_delay(start: Start) -> None:
    command = start("--drain-delay=1000", "--graceful-timeout=1000")
    with asked(command, "/stuck"):
        command.signal(signal.SIGTERM)
        until(command, "Serving on for 1000 seconds")
        command.signal(signal.SIGTERM)
        status, lines = ended(command)
    assert status == 0
    assert message_of(lines[-1]).startswith("Stopped: ")


# -- one path


EXPECTED: Final = [(2,), (0,), (1, 1), (1, 0)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_signals_go_through_all_phases(start: Start, number: signal.Signals) -> None:
    command = start()
    with asked(command, "/late") as late, connect(command) as idle:
        assert idle.get("/idle").body == b"/idle"
        command.signal(number)
        assert late.receive().body == b"/late"
        idle.assert_ended()
    status, lines = ended(command)
    assert status == 0
    assert counts_of([message_of(line) for line in lines]) == EXPECTED


@pytest.mark.parametrize("way", ["stop", "request_stop"])
@on_each_loop
async def test_methods_go_through_all_phases(way: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "waitress_async")
    server = local_server(app)
    await server.start()
    caplog.clear()
    with Client(("127.0.0.1", server.port)) as late, Client(("127.0.0.1", server.port)) as idle:
        late.send(request("/late"))
        await in_thread(lambda: idle.get("/idle"))
        if way == "stop":
            stopping = asyncio.create_task(server.stop())
        else:
            server.request_stop()
            stopping = asyncio.create_task(server.serve_forever())

        def receive() -> None:
            assert late.receive().body == b"/late"
            idle.assert_ended()
            late.sock.close()  # not before it was counted

        await in_thread(receive)
        await bounded(stopping)
    messages = [record.getMessage() for record in caplog.records if record.name == "waitress_async"]
    assert counts_of(messages) == EXPECTED


# -- the delay


def test_it_serves_on_for_the_delay(serve_in_thread: ServeInThread, caplog: pytest.LogCaptureFixture) -> None:
    """As if nothing was: for new connections too, and none is told that it ends."""
    caplog.set_level(logging.INFO, "waitress_async")
    server = serve_in_thread(app, drain_delay=1_000, graceful_timeout=30)
    with Client(server.address) as before, Client(server.address) as events:
        assert before.get("/before").body == b"/before"
        events.send(request("/events"))
        server.server.request_stop()
        eventually(lambda: "Serving on for 1000 seconds" in caplog.messages, "the delay has begun")
        with Client(server.address) as after:
            for client in (before, after):
                for _ in range(2):
                    response = client.get("/meanwhile")
                    assert (response.body, response.closes) == (b"/meanwhile", False)
            server.server.request_stop()  # which changes nothing
            assert after.get("/meanwhile").closes is False
            server.server.request_stop(20)  # less than it has: the delay is over
            after.assert_ended()
        before.assert_ended()
        assert events.receive().body == b"False\nTrue\n"
    server.thread.join(TIMEOUT)
    assert not server.thread.is_alive()


def test_the_delay_ends_by_itself(serve_in_thread: ServeInThread, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "waitress_async")
    server = serve_in_thread(hello, drain_delay=0.05)
    server.server.request_stop()
    server.thread.join(TIMEOUT)
    assert not server.thread.is_alive()
    assert "Serving on for 0.05 seconds" in caplog.messages


# -- the listen queue


@on_each_loop
async def test_what_waits_in_the_listen_queue_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    """They have connected and sent their requests while the loop was busy: more than one batch of them."""
    caplog.set_level(logging.INFO, "waitress_async")
    count = 300
    with nothing_left():
        server = local_server(hello, backlog=1_000)
        await server.start()
        clients = [Client(("127.0.0.1", server.port)) for _ in range(count)]
        for client in clients:
            client.send(request())
        stopping = asyncio.create_task(server.stop())

        def receive() -> None:
            for client in clients:
                response = client.receive()
                assert (response.body, response.closes) == (b"Hello, world!", True)
                client.sock.close()

        await in_thread(receive)
        await bounded(stopping)
    (opened,), (waited,), _, (sent, cut) = counts_of(
        [text for text in caplog.messages if not text.startswith(("Serving on", "Executing"))]
    )
    assert opened + waited == count
    assert waited
    assert (sent, cut) == (count, 0)


@on_each_loop
async def test_a_loop_that_is_held_up_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Each of its turns takes longer than it gives to requests that it has not read yet."""
    caplog.set_level(logging.INFO, "waitress_async")
    loop = asyncio.get_running_loop()
    turns = 6

    def hold_up() -> None:
        nonlocal turns
        time.sleep(0.11)
        turns -= 1
        if turns:
            loop.call_soon(hold_up)

    with nothing_left():
        server = local_server(hello, graceful_timeout=DEADLINE)
        await server.start()
        clients = [Client(("127.0.0.1", server.port)) for _ in range(100)]
        for client in clients[:-1]:
            client.send(request())
        loop.call_soon(hold_up)
        stopping = asyncio.create_task(server.stop())

        def receive() -> None:
            for client in clients[:-1]:
                assert client.receive().body == b"Hello, world!"
            clients[-1].assert_ended()  # which has asked nothing
            for client in clients:
                client.sock.close()

        await in_thread(receive)
        await bounded(stopping)
    *_, (idle, under_way), (sent, cut) = counts_of(
        [text for text in caplog.messages if not text.startswith(("Serving on", "Executing"))]
    )
    assert idle == 1
    assert under_way <= 99
    assert (sent, cut) == (99, 0)
