"""The example of a query that ends when its client leaves: it must not run on for nobody."""

from __future__ import annotations

import os
from wsgiref.validate import validator

import pytest
import requests

from examples import cancel_query
from tests.conftest import ServeInThread
from tests.frameworks.command import TIMEOUT
from tests.server.support import Client, eventually, request

FOR_EVER = 10**15  # numbers: years


def processor_time() -> float:
    return sum(os.times()[:2])


def begin_for_ever(client: Client) -> None:
    client.send(request(f"/?numbers={FOR_EVER}"))
    began = processor_time()
    eventually(lambda: processor_time() - began > 0.1, "the query is being worked on")


def test_the_query_ends_with_its_client(
    serve_in_thread: ServeInThread,
    session: requests.Session,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = serve_in_thread(cancel_query.app, threads=1)
    with Client(server.address) as client:
        begin_for_ever(client)
        client.reset()
        # By the one thread, which is free again.
        assert session.get(f"{server.url}/?numbers=1000", timeout=TIMEOUT).text == "500500\n"
    server.stop()
    assert capsys.readouterr().err == "The client has left: its query is interrupted.\n"


def test_the_query_of_a_client_that_waits(serve_in_thread: ServeInThread, session: requests.Session) -> None:
    server = serve_in_thread(validator(cancel_query.app))
    for numbers in (1, 1_000, 100_000):
        answer = session.get(f"{server.url}/?numbers={numbers}", timeout=TIMEOUT)
        assert (answer.status_code, answer.text) == (200, f"{numbers * (numbers + 1) // 2}\n")


def test_a_stop_that_cuts_the_client_ends_the_query(
    serve_in_thread: ServeInThread, capsys: pytest.CaptureFixture[str]
) -> None:
    """And so it is not held by the query: no thread is named as stuck, which the log would tell."""
    server = serve_in_thread(cancel_query.app, graceful_timeout=0)
    with Client(server.address) as client:
        begin_for_ever(client)
        server.stop()
    assert capsys.readouterr().err == "The client has left: its query is interrupted.\n"


def test_without_the_servers_help() -> None:
    """Behind another server it is an app like any other."""
    said: list[str] = []

    def start_response(status: str, headers: list[tuple[str, str]], _error: object = None) -> object:
        said.append(status)
        return None

    body = cancel_query.app({"QUERY_STRING": "numbers=4"}, start_response)  # type: ignore[arg-type]
    assert (said, b"".join(body)) == (["200 OK"], b"10\n")
