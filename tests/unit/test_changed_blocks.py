"""Bitmaps of changed blocks, against the rule bit by bit."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisors.xen.changed_blocks import GRAIN, ranges
from stores.errors import IntegrityError


@given(
    bits=st.lists(st.booleans(), max_size=200) | st.integers(0, 300_000).map(lambda count: [True] * count),
    short=st.integers(0, GRAIN - 1),
    more=st.binary(max_size=2),
)
def test_every_bit_is_its_block(bits: list[bool], short: int, more: bytes) -> None:
    """The last block may not be full, and what is told of blocks behind it says nothing."""
    size = max(0, len(bits) * GRAIN - short)
    packed = bytearray(-(-len(bits) // 8))
    for number, bit in enumerate(bits):
        packed[number // 8] |= bit << 7 - number % 8
    found = list(ranges(base64.b64encode(packed + more).decode(), size))
    end = -1
    for offset, length in found:
        assert end < offset < offset + length <= size, "in order, apart, inside the disk"
        end = offset + length
    told = [False] * len(bits)
    for offset, length in found:
        for number in range(offset // GRAIN, -(-(offset + length) // GRAIN)):
            told[number] = True
    assert told == bits


@pytest.mark.parametrize(("bitmap", "size"), [("", 1), ("gA==", 8 * GRAIN + 1), ("not base64!", 1), ("gA=", 1)])
def test_what_says_too_little(bitmap: str, size: int) -> None:
    with pytest.raises(IntegrityError):
        ranges(bitmap, size)
