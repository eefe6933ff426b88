"""A disk's content as one number."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hypervisors.images.parsing import SECTOR
from hypervisors.xen.chunks import ChunkEncoder
from hypervisors.xen.content_sum import CELL, CellJoiner, ContentSum

CELLS = 6
cells = st.lists(
    st.sampled_from([b"", b"\1", b"\2" * CELL, b"\0" * 5 + b"\3", b"\0" * 3 * SECTOR + b"\4"]),
    min_size=CELLS,
    max_size=CELLS,
)


def disk(contents: list[bytes], size: int) -> memoryview:
    return memoryview(b"".join(each.ljust(CELL, b"\0") for each in contents))[:size]


def of_cells(data: memoryview, *, order: int = 0, zeroes: bool = False) -> int:
    """As it is sent: cells in some order, and with those of zeroes or without."""
    found = ContentSum()
    starts = list(range(0, len(data), CELL))
    random.Random(order).shuffle(starts)
    for start in starts:
        cell = data[start : start + CELL]
        if zeroes or any(cell):
            found.add(start, cell)
    return found.value


def of_parts(data: memoryview, cuts: list[int]) -> int:
    """As it is read: in order, cut anywhere, without parts that are zero."""
    found = ContentSum()
    joiner = CellJoiner(found)
    for start, end in pairwise(sorted({0, len(data), *(cut % len(data) for cut in cuts)})):
        if any(data[start:end]):
            joiner.add(start, data[start:end])
    joiner.end()
    return found.value


@given(cells, st.integers(1, CELLS * CELL), st.integers(), st.lists(st.integers(0), max_size=8))
def test_neither_order_nor_cuts_nor_zeroes_count(contents: list[bytes], size: int, order: int, cuts: list[int]) -> None:
    data = disk(contents, size)
    wanted = of_cells(data)
    assert of_cells(data, order=order, zeroes=True) == wanted
    assert of_parts(data, cuts) == wanted


@given(cells)
def test_sectors_that_are_sent_count_wherever_they_begin(contents: list[bytes]) -> None:
    """As a VHD has them, whose bitmaps leave out parts of a cell."""
    data = disk(contents, CELLS * CELL)
    found = ContentSum()
    encoder = ChunkEncoder(skip_zeroes=True, sums=found)
    for start in range(0, len(data), SECTOR):
        if any(data[start : start + SECTOR]):
            list(encoder.add(start, data[start : start + SECTOR]))
    list(encoder.finish())
    assert found.value == of_cells(data)


@given(cells, cells)
def test_other_content_has_another_sum(one: list[bytes], other: list[bytes]) -> None:
    left, right = disk(one, CELLS * CELL), disk(other, CELLS * CELL)
    assert (of_cells(left) == of_cells(right)) == (left == right)


@given(st.lists(st.integers(0, 1 << 30), min_size=1, max_size=4, unique=True))
def test_content_elsewhere_has_another_sum(places: list[int]) -> None:
    found = set()
    for place in places:
        total = ContentSum()
        total.add(place * CELL, memoryview(b"x" * CELL))
        found.add(total.value)
    assert len(found) == len(places)
