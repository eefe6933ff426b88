"""The grid over an object, and the order of turns."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.contract import Extent
from stores.transfer.buffers import PIECE
from stores.transfer.pieces import Stopped, Turns, cells, zero_views


@given(
    start=st.integers(0, 3),
    lengths=st.lists(st.tuples(st.integers(0, 3 * PIECE), st.booleans()), max_size=12),
)
def test_cells_cover_the_range_once_and_lose_no_data(start: int, lengths: list[tuple[int, bool]]) -> None:
    position = begin = start * PIECE
    extents = []
    for length, zero in lengths:
        extents.append(Extent(position, length, zero))
        position += length
    found = list(cells(begin, position - begin, extents))
    at = begin
    for offset, length, zero in found:
        assert offset == at
        assert length > 0
        if not zero:
            assert offset % PIECE == 0
            assert length == min(PIECE, position - offset)
        at += length
    assert at == position
    for extent in extents:
        if not extent.zero and extent.length:
            for byte in (extent.offset, extent.offset + extent.length - 1):
                assert not next(zero for offset, length, zero in found if offset <= byte < offset + length)
    # A cell is read only where there is data in it.
    for offset, length, zero in found:
        assert zero or any(
            not extent.zero and extent.offset < offset + length and offset < extent.offset + extent.length
            for extent in extents
        )


def test_small_extents_make_no_small_pieces() -> None:
    extents = [Extent(at, 4096, zero=at % 8192 == 0) for at in range(0, 2 * PIECE, 4096)]
    assert list(cells(0, 2 * PIECE, extents)) == [(0, PIECE, False), (PIECE, PIECE, False)]


@given(st.integers(0, 5 * PIECE))
def test_zero_views_are_that_many_zeroes(length: int) -> None:
    views = list(zero_views(length))
    assert sum(len(view) for view in views) == length
    assert all(len(view) <= PIECE and view.readonly for view in views)


def test_turns_come_in_order_whatever_thread_asks_first() -> None:
    turns = Turns()
    seen: list[int] = []
    numbers = list(range(40))
    random.Random(1).shuffle(numbers)

    def go(number: int) -> None:
        with turns.turn(number):
            seen.append(number)

    threads = [threading.Thread(target=go, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert seen == list(range(40))


def test_stop_ends_all_waiting() -> None:
    turns = Turns()
    outcome = []

    def wait() -> None:
        with pytest.raises(Stopped), turns.turn(1):
            outcome.append("never")
        outcome.append("stopped")

    thread = threading.Thread(target=wait)
    thread.start()
    turns.stop()
    thread.join(10)
    assert outcome == ["stopped"]
