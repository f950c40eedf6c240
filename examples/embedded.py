"""A WSGI page inside an asyncio program, beside the program's own task.

``python examples/embedded.py`` serves until Ctrl-C; with ``--once`` it fetches its own page and ends.
The server only borrows the loop: signals, logging and the loop itself stay the program's.
"""

import argparse
import asyncio
import signal
import urllib.request
from collections.abc import Iterable
from typing import TYPE_CHECKING

from waitress_async import Server

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment


class Ticker:
    """What the program does apart from serving: here, it counts."""

    def __init__(self) -> None:
        self.ticks = 0

    async def run(self) -> None:
        while True:
            self.ticks += 1
            await asyncio.sleep(0.1)


class Page:
    """A plain WSGI app. It runs in the server's threads while the ticker runs on the loop."""

    def __init__(self, ticker: Ticker) -> None:
        self.ticker = ticker

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        body = b"The ticker stands at %d.\n" % self.ticker.ticks
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        return str(response.read(), "utf-8")


async def main(*, port: int, once: bool) -> None:
    ticker = Ticker()
    ticking = asyncio.create_task(ticker.run())
    # Leaving the block stops the server: requests in flight finish first. `await server.stop()` is the same.
    async with Server(Page(ticker), host="127.0.0.1", port=port) as server:
        print(f"Serving on {server.url}", flush=True)
        if once:
            print(await asyncio.to_thread(fetch, server.url), end="")
        else:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, server.request_stop)
            await server.serve_forever()
    ticking.cancel()
    await asyncio.gather(ticking, return_exceptions=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A WSGI page inside an asyncio program.")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--once", action="store_true", help="fetch the page once, print it, and end")
    options = parser.parse_args()
    asyncio.run(main(port=options.port, once=options.once))
