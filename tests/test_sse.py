"""Server-sent events: their format, read by a reader of its own; keep-alives; and who is told what."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextvars import ContextVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waitress_async import sse


def read(stream: bytes) -> list[dict[str, str]]:
    """What a browser makes of it (WHATWG HTML, section 9.2.6), with the fields of each event."""
    events = []
    fields: dict[str, str] = {}
    data: list[str] = []
    for line in stream.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if not line:
            if data:
                events.append({**fields, "data": "\n".join(data)})
            fields, data = {}, []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name:
            fields[name] = value
    return events


texts = st.text(st.characters(exclude_categories=["Cs"]))
one_line = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"))


@given(
    st.lists(st.tuples(texts, st.none() | one_line, st.none() | one_line, st.none() | st.integers(0, 10**9)))
)
def test_what_is_written_is_read(events: list[tuple[str, str | None, str | None, int | None]]) -> None:
    stream = b"".join(sse.event(data, event=kind, id=id, retry=retry) for data, kind, id, retry in events)
    expected = []
    for data, kind, id, retry in events:
        fields = {"event": kind, "id": id, "retry": None if retry is None else str(retry)}
        text = data.replace("\r\n", "\n").replace("\r", "\n")
        expected.append({name: value for name, value in fields.items() if value is not None} | {"data": text})
    assert read(stream) == expected


@pytest.mark.parametrize(
    "fields", [{"event": "a\nb"}, {"event": "a\r"}, {"id": "\n"}, {"id": "a\0"}, {"retry": -1}]
)
def test_what_would_be_another_field_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        sse.event("data", **fields)  # type: ignore[arg-type]


def test_the_last_event_id_is_text() -> None:
    assert sse.last_event_id({}) is None
    assert sse.last_event_id({"HTTP_LAST_EVENT_ID": "ä 7".encode().decode("latin-1")}) == "ä 7"


async def test_silence_is_filled_with_comments() -> None:
    go = asyncio.Event()
    closed = False

    async def events() -> AsyncIterator[bytes]:
        nonlocal closed
        try:
            yield b"first"
            await go.wait()
            yield b"second"
        finally:
            closed = True

    seen = []
    async for item in sse.keep_alive(events(), 0.01):
        seen.append(item)
        if len(seen) == 3:
            go.set()
    assert seen[:3] == [b"first", b":\n\n", b":\n\n"]
    assert seen[-1] == b"second"
    assert closed


async def test_keep_alive_closes_what_it_was_given() -> None:
    ended: list[str] = []

    async def events() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            await asyncio.Event().wait()
        except BaseException as error:
            ended.append(type(error).__name__)
            raise

    stream = sse.keep_alive(events(), 0.01)
    assert [await anext(stream), await anext(stream)] == [b"first", b":\n\n"]
    await stream.aclose()  # type: ignore[attr-defined]
    assert ended == ["CancelledError"]
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("error", [LookupError, asyncio.CancelledError])
async def test_keep_alive_passes_errors_on(error: type[BaseException]) -> None:
    async def events() -> AsyncIterator[bytes]:
        yield b"first"
        raise error("on purpose")

    stream = sse.keep_alive(events())
    assert await anext(stream) == b"first"
    with pytest.raises(error):
        await anext(stream)


async def test_keep_alive_asks_for_all_in_one_task() -> None:
    """As timeouts, task groups and context variables need."""
    variable = ContextVar("variable", default=0)
    tasks = set()

    async def events() -> AsyncIterator[bytes]:
        try:
            async with asyncio.timeout(0.01):
                for number in range(3):
                    tasks.add(asyncio.current_task())
                    assert variable.get() == number
                    variable.set(number + 1)
                    yield b"%d" % number
                await asyncio.Event().wait()
        except TimeoutError:
            yield b"timed out"
        finally:
            tasks.add(asyncio.current_task())

    assert [item async for item in sse.keep_alive(events(), 30)] == [b"0", b"1", b"2", b"timed out"]
    assert len(tasks) == 1
    assert len(asyncio.all_tasks()) == 1


async def test_keep_alive_passes_on_what_is_raised_when_it_is_closed() -> None:
    errors: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))

    async def events() -> AsyncIterator[bytes]:
        yield b"first"
        try:
            await asyncio.Event().wait()
        finally:
            raise LookupError("on purpose")

    stream = sse.keep_alive(events(), 0.01)
    assert [await anext(stream), await anext(stream)] == [b"first", b":\n\n"]
    with pytest.raises(LookupError, match="on purpose"):
        await stream.aclose()  # type: ignore[attr-defined]
    del stream
    gc.collect()
    assert errors == []


async def test_keep_alive_ends_what_goes_on_though_it_was_cancelled() -> None:
    ended: list[str] = []

    async def events() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    yield b"more"
        except BaseException as error:
            ended.append(type(error).__name__)
            raise

    stream = sse.keep_alive(events(), 0.01)
    assert [await anext(stream), await anext(stream)] == [b"first", b":\n\n"]
    await stream.aclose()  # type: ignore[attr-defined]
    assert ended == ["GeneratorExit"]
    assert len(asyncio.all_tasks()) == 1


async def test_all_subscribers_get_all_from_their_time_on() -> None:
    channel = sse.Channel()
    channel.publish(b"nobody is there")
    one = channel.subscribe()
    first = asyncio.ensure_future(anext(one))
    await asyncio.sleep(0)
    assert len(channel) == 1
    channel.publish(b"1")
    assert await first == b"1"
    two = channel.subscribe()
    second = asyncio.ensure_future(anext(two))
    await asyncio.sleep(0)
    channel.publish(b"2")
    channel.publish(b"3")
    channel.close()
    channel.publish(b"too late")
    assert [item async for item in one] == [b"2", b"3"]
    assert await second == b"2"
    assert [item async for item in two] == [b"3"]
    assert len(channel) == 0
    assert [item async for item in channel.subscribe()] == []


@pytest.mark.parametrize(("slow", "left"), [("drop", [b"3", b"4"]), ("cut", [])])
async def test_a_slow_subscriber_holds_nobody_up(slow: str, left: list[bytes]) -> None:
    channel = sse.Channel(2, slow)  # type: ignore[arg-type]
    stream = channel.subscribe()
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    channel.publish(b"1")
    assert await first == b"1"
    for number in (b"2", b"3", b"4"):
        channel.publish(number)
    channel.close()
    assert [item async for item in stream] == left


async def test_who_leaves_is_forgotten() -> None:
    channel = sse.Channel()
    stream = channel.subscribe()
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    assert len(channel) == 1
    waiting.cancel()
    await asyncio.wait((waiting,))
    assert len(channel) == 0


@pytest.mark.parametrize(("size", "slow"), [(0, "drop"), (1, "wait")])
def test_a_channel_that_cannot_be(size: int, slow: str) -> None:
    with pytest.raises(ValueError, match=r"^(size|slow) must be"):
        sse.Channel(size, slow)  # type: ignore[arg-type]
