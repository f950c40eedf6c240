"""Bytes collected in memory beside a plain `bytearray`, whichever memory it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waitress_async.buffers import collected
from waitress_async.buffers.collected import Collected


@given(
    pieces=st.lists(st.tuples(st.binary(max_size=5_000), st.booleans()) | st.none(), max_size=12),
    map_from=st.sampled_from([0, 1, 4_096, 10_000, 1 << 30]),
)
def test_what_was_collected_is_there_until_it_is_cleared(
    pieces: list[tuple[bytes, bool] | None], map_from: int
) -> None:
    """None stands for `clear()`."""
    bytes_of, model = Collected(), bytearray()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collected, "_MAP_FROM", map_from)
        for piece in pieces:
            if piece is None:
                bytes_of.clear()
                model.clear()
            else:
                data, to_hold = piece
                bytes_of.append(data, to_hold=to_hold)
                model += data
            assert len(bytes_of) == len(model)
            with bytes_of.view() as view:
                assert view == model
        bytes_of.clear()


@pytest.mark.parametrize("map_from", [0, 1 << 30])
def test_clearing_leaves_a_view_alone(map_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread may still write what it shows."""
    monkeypatch.setattr(collected, "_MAP_FROM", map_from)
    bytes_of = Collected()
    bytes_of.append(memoryview(b"abcd").cast("H"), to_hold=True)
    with bytes_of.view() as view:
        bytes_of.clear()
        bytes_of.append(b"xyz", to_hold=True)
        assert view.tobytes() == b"abcd"
        assert len(bytes_of) == 3
    bytes_of.clear()
