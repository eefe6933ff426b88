"""The grid over an object, and spans of it."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from stores.contract import Extent
from stores.transfer.buffers import PIECE
from stores.transfer.pieces import Piece, cells, span_pieces, take_span, zero_views


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


@given(left=st.integers(1, 5000), workers=st.integers(1, 12), limit=st.sampled_from([1, 2, 8, 16]))
def test_spans_are_large_at_first_and_leave_everybody_something_at_the_end(left: int, workers: int, limit: int) -> None:
    found = span_pieces(left, workers=workers, limit=limit)
    assert 1 <= found <= limit
    assert found == 1 or found * workers <= left
    if left >= workers * limit:
        assert found == limit


@given(st.lists(st.booleans(), max_size=80), st.integers(1, 6), st.sampled_from([1, 2, 8]))
def test_spans_are_all_pieces_once_without_gaps(holes: list[bool], workers: int, limit: int) -> None:
    pieces = [Piece(number, number * PIECE, PIECE, zero) for number, zero in enumerate(holes)]
    todo, taken = deque(pieces), list[Piece]()
    while todo:
        span = take_span(todo, workers=workers, limit=limit)
        assert len(span) == 1 or not (span[0].zero or span[-1].zero)
        wanted = [piece for piece in span if piece.wanted]
        assert len(wanted) <= limit - span[0].index % limit
        taken.extend(span)
    assert taken == pieces


def test_a_span_goes_on_behind_a_hole() -> None:
    """For readers to whom it is none: the two ends lie side by side in what they read."""
    lengths = [2, 5, 1, 40, 2, 3, 2]  # of data and holes by turns, in pieces
    places = [sum(lengths[:number]) for number in range(len(lengths))]
    todo = deque[Piece]()
    for number, (place, length) in enumerate(zip(places, lengths, strict=True)):
        if number % 2:
            todo.append(Piece(len(todo), place * PIECE, length * PIECE, True))
        else:
            todo.extend(Piece(len(todo), start * PIECE, PIECE, False) for start in range(place, place + length))
    spans = []
    while todo:
        spans.append([piece.offset // PIECE for piece in take_span(todo, workers=1, limit=4)])
    assert spans == [[0, 1, 2, 7, 8, 48], [49, 50, 53, 54]]


def test_a_small_object_is_still_read_in_parallel() -> None:
    todo = deque(Piece(number, number * PIECE, PIECE, False) for number in range(8))
    lengths = []
    while todo:
        lengths.append(len(take_span(todo, workers=4, limit=8)))
    assert lengths[0] == 2
    assert len(lengths) >= 4
