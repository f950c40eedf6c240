"""Servers for tests: real sockets, real threads, on both loops, in asyncio's debug mode."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import pytest
import uvloop

from waitress_async import Server

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

# By its entry point it is there too, as for everybody, if the project was installed since that was added.
pytest_plugins = ["pytest_waitress_async"]

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What was logged may be no text, as paths are; xdist sends reports as UTF-8."""
    report = yield
    report.sections = [
        (name, content.encode("utf-8", "backslashreplace").decode()) for name, content in report.sections
    ]
    return report


@dataclass
class RunningServer:
    """A server in a thread of its own. `errors` holds what its loop's exception handler was given."""

    server: Server
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread
    errors: list[dict[str, object]]

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.server.port

    def stop(self) -> None:
        """Stop, and wait until the thread has ended."""
        self.server.request_stop()
        self.thread.join(30)
        assert not self.thread.is_alive(), "the server did not stop"


class ServeInThread(Protocol):
    def __call__(self, app: WSGIApplication, **settings: object) -> RunningServer: ...


@pytest.fixture(params=list(LOOPS))
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """Both loops, one after the other."""
    return LOOPS[request.param]


@pytest.fixture
def serve_in_thread(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> Iterator[ServeInThread]:
    """`serve_in_thread(app, **settings)` starts a server on 127.0.0.1, any port, and returns when it listens.

    At the end each is stopped, and must have left no error with its loop.
    """
    running: list[RunningServer] = []

    def start(app: WSGIApplication, **settings: object) -> RunningServer:
        if "listen" not in settings and "sockets" not in settings:
            settings = {"host": "127.0.0.1", "port": 0, **settings}
        server = Server(app, **settings)
        errors: list[dict[str, object]] = []
        started = threading.Event()
        loops: list[asyncio.AbstractEventLoop] = []

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loops.append(loop)
            loop.set_exception_handler(lambda _loop, context: errors.append(context))
            try:
                await server.start()
            finally:
                started.set()
            await server.serve_forever()

        def run() -> None:
            with asyncio.Runner(debug=True, loop_factory=loop_factory) as runner:
                runner.run(main())

        thread = threading.Thread(target=run, name="server-under-test", daemon=True)
        thread.start()
        assert started.wait(30)
        result = RunningServer(server, loops[0], thread, errors)
        running.append(result)
        return result

    yield start
    for one in running:
        one.stop()
        assert one.errors == []
