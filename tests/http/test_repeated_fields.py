"""Fields that come on several lines: joined for the app, and each line by itself for who asks."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waitress_async.http import PAUSED, Connection, HeadEncoder, HeadMemo, Limits, RepeatedFields, Request

OK = HeadEncoder().encode("200 OK", [])

names = st.sampled_from(["A", "a", "X-B", "x-b", "Cookie", "cookie", "X-C", "Accept"])
values = st.text("abc ,;=", max_size=4).map(str.strip)


def read(head: bytes, cuts: list[int]) -> Request:
    connection = Connection(Limits(), HeadMemo())
    edges = [0, *sorted(cut % len(head) for cut in cuts), len(head)]
    event: object = None
    for start, end in itertools.pairwise(edges):
        connection.receive_data(head[start:end])
        event = connection.next_event()
    assert isinstance(event, Request)
    return event


@given(st.lists(st.tuples(names, values), max_size=12), st.lists(st.integers(0), max_size=4))
def test_every_line_is_told_wherever_it_was_cut(fields: list[tuple[str, str]], cuts: list[int]) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    request = read(f"GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n".encode(), cuts)
    told: dict[str, list[str]] = {"HTTP_HOST": ["a"]}
    for name, value in fields:
        told.setdefault("HTTP_" + name.upper().replace("-", "_"), []).append(value)
    joined = {key: ("; " if key == "HTTP_COOKIE" else ", ").join(each) for key, each in told.items()}
    assert request.fields == joined
    repeated = {key: each for key, each in told.items() if len(each) > 1}
    if repeated:
        assert isinstance(request.fields, RepeatedFields)
        assert request.fields.lines == repeated
    else:
        assert type(request.fields) is dict  # which is all that most requests need


@pytest.mark.parametrize("body", ["", "Content-Length: 1\r\n\r\nx"])
def test_the_lines_of_one_head_are_not_in_the_next(body: str) -> None:
    connection = Connection(Limits(), HeadMemo())
    for number in (1, 1, 2, 1, 2, 2, 1):
        lines = "".join(f"A: {line}\r\n" for line in range(number))
        connection.receive_data(f"GET / HTTP/1.1\r\nHost: a\r\n{lines}{body or chr(13) + chr(10)}".encode())
        request = connection.next_event()
        assert isinstance(request, Request)
        found = request.fields.lines if isinstance(request.fields, RepeatedFields) else {}
        assert found == ({"HTTP_A": ["0", "1"]} if number == 2 else {})
        while connection.next_event() is not PAUSED:
            pass
        connection.send_response(OK, b"", 0)
        connection.end_response()
