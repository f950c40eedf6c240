"""What systemd passes in, by text and by its own tool, and what a manager's socket is told."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.server.support import DEADLINE, eventually, nothing_left
from waitress_async.server.systemd import Notifier, listen_fds

ROOT = Path(__file__).parents[2]
PID = 4711

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has it")

# -- descriptors


def passed(count: str, names: str | None = None, pid: str = str(PID)) -> dict[str, str]:
    environ = {"LISTEN_PID": pid, "LISTEN_FDS": count, "UNRELATED": "1"}
    return environ if names is None else {**environ, "LISTEN_FDNAMES": names}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (passed("1"), [("unknown", 3)]),
        (passed("3"), [("unknown", 3), ("unknown", 4), ("unknown", 5)]),
        (passed("2", "web:admin"), [("web", 3), ("admin", 4)]),
        (passed("2", "web"), [("web", 3), ("unknown", 4)]),
        (passed("2", ":admin"), [("unknown", 3), ("admin", 4)]),
        (passed("1", ""), [("unknown", 3)]),
        (passed("1", "a b.socket"), [("a b.socket", 3)]),
        (passed("1", "x" * 255), [("x" * 255, 3)]),
        ({}, []),
        ({"LISTEN_FDS": "1"}, []),
        ({"LISTEN_PID": str(PID)}, []),
        (passed("1", pid="1"), []),
        (passed("nonsense", "\n", pid="1"), []),  # for another process, whatever it is
    ],
)
def test_descriptors(environ: dict[str, str], expected: list[tuple[str, int]]) -> None:
    assert listen_fds(environ, PID) == expected


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        (passed("1", pid=""), "LISTEN_PID is ''"),
        (passed("1", pid="one"), "LISTEN_PID is 'one'"),
        (passed("1", pid=f" {PID}"), "LISTEN_PID"),
        (passed("1", pid=f"-{PID}"), "LISTEN_PID"),
        (passed("1", pid="\N{ARABIC-INDIC DIGIT THREE}"), "LISTEN_PID"),
        (passed("1", pid="0" * 10_000 + str(PID)), "LISTEN_PID"),
        (passed(""), "LISTEN_FDS is ''"),
        (passed("0"), "LISTEN_FDS is 0"),
        (passed("-1"), "LISTEN_FDS is '-1'"),
        (passed("1025"), "between 1 and 1024"),
        (passed("9" * 5000), "LISTEN_FDS"),
        (passed("1", "web:admin"), "2 names for 1 descriptors"),
        (passed("1", "we\nb"), "malformed name"),
        (passed("1", "w\N{LATIN SMALL LETTER E WITH ACUTE}b"), "malformed name"),
        (passed("1", "x" * 256), "malformed name"),
        (passed("1", "x" * 50_000), "malformed name"),
    ],
)
def test_descriptors_that_are_malformed(environ: dict[str, str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        listen_fds(environ, PID)
    assert len(str(caught.value)) < 1500
    assert str(caught.value).isascii()


NUMBERS = st.one_of(st.text(max_size=8), st.integers(-2, 2000).map(str), st.just(str(PID)))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "LISTEN_PID": NUMBERS | st.just(str(PID)),
            "LISTEN_FDS": NUMBERS,
            "LISTEN_FDNAMES": st.text(max_size=40) | st.text(":ab", max_size=10),
        },
    )
)
@example(passed("1024", ":" * 1023))
def test_any_text_is_descriptors_or_refused(environ: dict[str, str]) -> None:
    try:
        found = listen_fds(environ, PID)
    except ValueError:
        return
    assert [descriptor for _, descriptor in found] == list(range(3, 3 + len(found)))
    assert all(name and name.isprintable() and ":" not in name for name, _ in found)
    if found:
        assert int(environ["LISTEN_PID"]) == PID
        assert int(environ["LISTEN_FDS"]) == len(found)


@pytest.mark.skipif(
    not shutil.which("systemd-socket-activate"), reason="systemd-socket-activate is not there"
)
def test_what_systemd_passes(folder: str) -> None:
    """Its own tool, with TCP and unix sockets. It starts the program when the first client comes."""
    script = """
import json, os, socket, sys
from waitress_async.server.systemd import listen_fds
found = listen_fds(os.environ, os.getpid())
sockets = [socket.socket(fileno=descriptor) for _, descriptor in found]
families = [sock.family.name for sock in sockets]
sockets[0].accept()[0].sendall(json.dumps([found, families]).encode())
"""
    path = f"{folder}/s"
    with socket.create_server(("127.47.11.1", 0)) as sock:  # nobody else's address, so the port stays free
        address = "{}:{}".format(*sock.getsockname())
    options = ["-l", path, "-l", address, "-l", f"{folder}/other", "--fdname=web:admin"]
    command = ["systemd-socket-activate", *options, sys.executable, "-c", script]
    environ = {name: text for name, text in os.environ.items() if not name.startswith("LISTEN_")}
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, env=environ)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(DEADLINE)
            eventually(lambda: client.connect_ex(path) == 0, "systemd-socket-activate listens")
            found, families = json.loads(client.makefile("rb").read())
    finally:
        process.kill()
        process.wait()
    assert found == [["web", 3], ["admin", 4], ["unknown", 5]]
    assert families == ["AF_UNIX", "AF_INET", "AF_UNIX"]


# -- the manager


@pytest.fixture
def folder() -> Iterator[str]:
    """pytest's own folders have paths that are too long for a socket."""
    path = tempfile.mkdtemp(prefix="wa-")
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=["path", pytest.param("abstract", marks=linux_only)])
def address(request: pytest.FixtureRequest, folder: str) -> str:
    """What NOTIFY_SOCKET holds."""
    return f"{folder}/notify" if request.param == "path" else f"@{folder}/notify"


def listen(address: str) -> socket.socket:
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind("\0" + address[1:] if address.startswith("@") else address)
    manager.settimeout(DEADLINE)
    return manager


@pytest.fixture
def manager(address: str) -> Iterator[socket.socket]:
    with listen(address) as sock:
        yield sock


def notifier_for(address: str, **environ: str) -> Notifier:
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": address, **environ}, PID)
    assert notifier is not None
    return notifier


@pytest.fixture
def notifier(address: str) -> Iterator[Notifier]:
    notifier = notifier_for(address)
    yield notifier
    notifier.close()


def told(manager: socket.socket) -> list[str]:
    """The assignments of the next datagram."""
    return manager.recv(65536).decode().split("\n")


def drained(manager: socket.socket) -> Iterator[str]:
    """The datagrams that are there."""
    manager.setblocking(False)
    while True:
        try:
            yield manager.recv(65536).decode()
        except BlockingIOError:
            return


def test_the_states_and_their_words(manager: socket.socket, notifier: Notifier) -> None:
    notifier.ready("Serving on http://127.0.0.1:8080")
    assert told(manager) == ["READY=1", "STATUS=Serving on http://127.0.0.1:8080"]
    notifier.status("3 connections")
    assert told(manager) == ["STATUS=3 connections"]
    notifier.feed_watchdog()
    assert told(manager) == ["WATCHDOG=1"]
    notifier.stopping("Waiting for 3 requests")
    assert told(manager) == ["STOPPING=1", "STATUS=Waiting for 3 requests"]
    notifier.notify("EXTEND_TIMEOUT_USEC=1000000")
    assert told(manager) == ["EXTEND_TIMEOUT_USEC=1000000"]


def test_a_reload_tells_the_time_when_it_began(manager: socket.socket, notifier: Notifier) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading("Reloading")
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    reloading, clock, status = told(manager)
    assert (reloading, status) == ("RELOADING=1", "STATUS=Reloading")
    name, _, value = clock.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(value) <= after


@pytest.mark.parametrize("text", ["a\nREADY=1", "a\rREADY=1", "a\0b", "\ud800", "a\u2028b", "\x1b[31m"])
def test_a_value_adds_no_assignment_and_no_control_characters(folder: str, text: str) -> None:
    path = f"{folder}/notify"
    with listen(path) as manager:
        notifier = notifier_for(path)
        notifier.status(text)
        (assignment,) = told(manager)
        notifier.close()
    assert assignment == "STATUS=" + "".join(c if c.isprintable() else " " for c in text)
    assert assignment.isprintable()


def test_a_datagram_is_never_longer_than_systemd_reads(manager: socket.socket, notifier: Notifier) -> None:
    notifier.reloading("\N{GRINNING FACE}" * 10_000)
    data = manager.recv(65536)
    assert len(data) < 4096
    *others, status = data.decode().split("\n")
    assert others[0] == "RELOADING=1"
    assert set(status.removeprefix("STATUS=")) == {"\N{GRINNING FACE}"}


def test_a_manager_that_does_not_read_is_not_waited_for(manager: socket.socket, notifier: Notifier) -> None:
    def tell() -> None:
        for number in range(2000):
            notifier.status(f"{number} " + "x" * 400)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    assert not thread.is_alive(), "it waits for the manager"

    received = list(drained(manager))
    assert 0 < len(received) < 2000  # the queue was full
    assert [text.partition(" ")[0] for text in received] == [f"STATUS={n}" for n in range(len(received))]

    notifier.feed_watchdog()  # and there is room again
    assert told(manager) == ["WATCHDOG=1"]


def test_a_manager_that_is_gone_is_no_error_and_is_told_again_when_it_is_back(
    address: str, folder: str
) -> None:
    notifier = notifier_for(address)
    notifier.ready("")  # none was ever there
    listen(address).close()
    notifier.status("nobody reads this")
    for name in os.listdir(folder):
        os.unlink(f"{folder}/{name}")
    notifier.status("nor this")
    with listen(address) as manager:
        notifier.feed_watchdog()
        assert told(manager) == ["WATCHDOG=1"]
    notifier.close()


def test_nothing_is_told_after_close(manager: socket.socket, address: str) -> None:
    with nothing_left():
        notifier = notifier_for(address)
        notifier.close()
        notifier.close()
        notifier.ready("too late")
    assert list(drained(manager)) == []


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "vsock-stream:2:1234"])
def test_without_a_manager_that_can_be_told_there_is_no_notifier(address: str | None) -> None:
    environ = {} if address is None else {"NOTIFY_SOCKET": address}
    assert Notifier.from_environ({**environ, "WATCHDOG_USEC": "1000000"}, PID) is None


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"NOTIFY_SOCKET": "run/notify"}, "NOTIFY_SOCKET is neither"),
        ({"NOTIFY_SOCKET": "@"}, "NOTIFY_SOCKET cannot be used: the path is empty"),
        ({"NOTIFY_SOCKET": "/" + "x" * 200}, "NOTIFY_SOCKET cannot be used: .* is the limit"),
        ({"WATCHDOG_USEC": ""}, "WATCHDOG_USEC is ''"),
        ({"WATCHDOG_USEC": "0"}, "WATCHDOG_USEC is 0"),
        ({"WATCHDOG_USEC": "-1"}, "WATCHDOG_USEC is '-1'"),
        ({"WATCHDOG_USEC": "9" * 5000}, "WATCHDOG_USEC"),
        ({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "me"}, "WATCHDOG_PID is 'me'"),
    ],
)
def test_malformed_variables(environ: dict[str, str], reason: str) -> None:
    with nothing_left(), pytest.raises(ValueError, match=reason):
        Notifier.from_environ({"NOTIFY_SOCKET": "/run/systemd/notify", **environ}, PID)


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_PID": str(PID)}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(PID)}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "1"}, 5e-07),
    ],
)
def test_the_watchdog(folder: str, environ: dict[str, str], interval: float | None) -> None:
    notifier = notifier_for(f"{folder}/notify", **environ)
    assert notifier.watchdog_interval == interval
    notifier.close()


def test_a_system_without_unix_sockets() -> None:
    script = """
import asyncio, socket
del socket.AF_UNIX
from waitress_async.server.systemd import Notifier, listen_fds
assert Notifier.from_environ({"NOTIFY_SOCKET": "/run/notify"}, 1) is None
assert listen_fds({"LISTEN_PID": "1", "LISTEN_FDS": "1"}, 1) == [("unknown", 3)]
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)
