"""One `httpx.AsyncClient`, and so one pool of connections, for all requests of a plain Flask app.

``python examples/shared_client.py`` serves until Ctrl-C; with ``--once`` it fetches its own page and ends.
Two servers share a loop here: the shop's page asks the other one for several prices at once.
"""

import argparse
import asyncio
import json
import urllib.request
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import httpx
from flask import Flask

from waitress_async import Server, from_thread

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment


def make_shop(client: httpx.AsyncClient) -> Flask:
    app = Flask(__name__)

    @app.get("/basket/<names>")
    def basket(names: str) -> dict[str, int]:
        return from_thread.run(prices, client, names.split(","), timeout=5, cancel_on_disconnect=True)

    return app


async def prices(client: httpx.AsyncClient, names: Sequence[str]) -> dict[str, int]:
    """On the server's loop, where the client lives."""
    answers = await asyncio.gather(*(client.get(f"/price/{name}") for name in names))
    return {name: answer.raise_for_status().json() for name, answer in zip(names, answers, strict=True)}


def price_list(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """Somebody else's service: a letter is a cent."""
    name = environ["PATH_INFO"].removeprefix("/price/")
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(len(name)).encode()]


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        return str(response.read(), "utf-8")


async def main(*, port: int, once: bool) -> None:
    async with (
        Server(price_list, host="127.0.0.1", port=0) as elsewhere,
        httpx.AsyncClient(base_url=elsewhere.url, trust_env=False) as client,
        Server(make_shop(client), host="127.0.0.1", port=port) as shop,  # stopped before its client is closed
    ):
        url = f"{shop.url}/basket/apple,pear,plum"
        print(f"Serving {url}", flush=True)
        if once:
            print(await asyncio.to_thread(fetch, url), end="")
        else:
            await shop.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One HTTP client for all requests of a Flask app.")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--once", action="store_true", help="fetch the page once, print it, and end")
    options = parser.parse_args()
    try:
        asyncio.run(main(port=options.port, once=options.once))
    except KeyboardInterrupt:
        pass
