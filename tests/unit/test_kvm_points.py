"""Which points of a volume can be relied on, and the union of what they tell. Pure."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hypervisors.kvm.snapshots import joined, usable
from hypervisors.qemu.qemu_img import Bitmap

WELL = Bitmap(recording=False, broken=False)
RECORDING = Bitmap(recording=True, broken=False)
BROKEN = Bitmap(recording=True, broken=True)


def test_a_gap_makes_all_before_it_useless() -> None:
    points = ("a", "b", "c")
    assert usable(points, {"a": WELL, "b": WELL, "c": RECORDING, "foreign": WELL}) == points
    assert usable(points, {"a": RECORDING, "b": RECORDING, "c": RECORDING}) == points
    assert usable(points, {"a": WELL, "c": RECORDING}) == ("c",)
    assert usable(points, {"a": WELL, "b": BROKEN, "c": RECORDING}) == ("c",)
    assert usable(points, {"a": WELL, "b": WELL}) == ()
    assert usable(points, {"a": WELL, "b": WELL, "c": BROKEN}) == ()
    assert usable(points, {"a": WELL, "b": WELL, "c": WELL}) == ()
    assert usable((), {"a": WELL}) == ()


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=12))
def test_the_union_of_parts(parts: list[tuple[int, int]]) -> None:
    union = joined(parts)
    covered = {byte for offset, length in parts for byte in range(offset, offset + length)}
    assert {byte for offset, length in union for byte in range(offset, offset + length)} == covered
    for (offset, length), (following, _) in pairwise(union):
        assert offset + length < following
