"""Sets of bytes, against plain sets of numbers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.transfer.ranges import Ranges

RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1])))


def numbers(ranges: list[tuple[int, int]]) -> set[int]:
    return {number for start, end in ranges for number in range(start, end)}


@given(ranges=RANGES, start=st.integers(0, 80), length=st.integers(0, 20))
def test_is_the_set_of_all_that_was_added(ranges: list[tuple[int, int]], start: int, length: int) -> None:
    found, expected = Ranges(ranges), numbers(ranges)
    assert numbers(list(found)) == expected
    assert found.total == len(expected)
    assert found.cover(start, start + length) == (set(range(start, start + length)) <= expected)
    reach = found.reach(start)
    assert reach not in expected
    assert set(range(start, reach)) <= expected


@given(ranges=RANGES)
def test_touching_ranges_are_one(ranges: list[tuple[int, int]]) -> None:
    found = list(Ranges(ranges))
    assert all(before[1] < after[0] for before, after in pairwise(found))


@given(ranges=RANGES)
def test_text_brings_it_back(ranges: list[tuple[int, int]]) -> None:
    assert list(Ranges.parse(str(Ranges(ranges)))) == list(Ranges(ranges))


@pytest.mark.parametrize("text", ["x", "3", "5-2", "-1-2", "1-2;3-4"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"range|invalid literal"):
        Ranges.parse(text)
