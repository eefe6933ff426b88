"""Which points of a volume can be relied on. Pure."""

from __future__ import annotations

from hypervisors.kvm.snapshots import usable
from hypervisors.qemu.qemu_img import Bitmap

RECORDING = Bitmap(recording=True, broken=False)
STOPPED = Bitmap(recording=False, broken=False)
BROKEN = Bitmap(recording=True, broken=True)


def test_each_stands_for_itself() -> None:
    points = ("a", "b", "c")
    assert usable(points, {"a": RECORDING, "b": RECORDING, "c": RECORDING, "foreign": RECORDING}) == points
    assert usable(points, {"a": RECORDING, "c": RECORDING}) == ("a", "c")
    assert usable(points, {"a": STOPPED, "b": BROKEN, "c": RECORDING}) == ("c",)
    assert usable(points, {"a": BROKEN, "b": BROKEN, "c": BROKEN}) == ()
    assert usable((), {"a": RECORDING}) == ()
