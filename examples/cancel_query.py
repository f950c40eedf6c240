"""A long database query that ends when nobody waits for it any more, by sqlite3's `interrupt()`.

``waitress-async examples.cancel_query:app`` answers ``http://127.0.0.1:8080/?numbers=1000`` at once. Without
a number it works for minutes, or until the client resets the connection. One that merely closes it cannot
be told from one that has nothing more to send and waits for the answer; writing to it would tell.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

QUERY = """
    WITH RECURSIVE numbers(number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers LIMIT ?)
    SELECT sum(number) FROM numbers
"""


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    numbers = int(parse_qs(environ["QUERY_STRING"]).get("numbers", ["1000000000"])[0])
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        if on_disconnect := environ.get("waitress_async.on_disconnect"):  # other servers have none
            on_disconnect(lambda: interrupt(database))
        try:
            ((total,),) = database.execute(QUERY, (numbers,))
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                raise
            print("The client has left: its query is interrupted.", file=environ["wsgi.errors"])
            total = "nobody reads this"
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{total}\n".encode()]


def interrupt(database: sqlite3.Connection) -> None:
    """Called by a thread of the server's own, while the app's waits for the database."""
    with contextlib.suppress(sqlite3.ProgrammingError):  # it is closed: the query was just over
        database.interrupt()
