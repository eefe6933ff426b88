"""The disk of a chain: for each part, the newest layer that says anything about it, against a model that is one list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hypervisors.images.overlay import Layer, Overlay
from hypervisors.images.qcow2_stream import Run

MOST = 24


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    size = draw(st.integers(1, MOST))
    kinds = draw(st.lists(st.sampled_from(["data", "zero", "nothing"]), min_size=size, max_size=size))
    runs: list[Run] = []
    host = draw(st.integers(0, 100))
    for place, kind in enumerate(kinds):
        if kind != "nothing":
            runs.append(Run(place, 1, host if kind == "data" else None))
            host += kind == "data"
    return Layer(size, _joined(runs) if draw(st.booleans()) else runs)


def _joined(runs: list[Run]) -> list[Run]:
    found: list[Run] = []
    for run in runs:
        last = found[-1] if found else None
        if last is not None and last.offset + last.length == run.offset and (last.host is None) == (run.host is None):
            found[-1] = Run(last.offset, last.length + run.length, last.host)
        else:
            found.append(run)
    return found


def model(stack: list[Layer], size: int) -> list[tuple[int, int] | None]:
    """(layer, host) of each byte: from oldest to newest, each cut to its size and grown again with zeroes."""
    disk: list[tuple[int, int] | None] = []
    for number in range(len(stack) - 1, -1, -1):
        layer = stack[number]
        disk = (disk + [None] * MOST)[: layer.virtual_size]
        for run in layer.runs:
            for byte in range(run.length):
                disk[run.offset + byte] = None if run.host is None else (number, run.host + byte)
    return (disk + [None] * size)[:size]


@given(st.lists(layers(), min_size=1, max_size=5), st.integers(1, MOST + 4), st.data())
def test_newest_over_oldest(stack: list[Layer], size: int, data: st.DataObject) -> None:
    overlay = Overlay(stack, size)
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    found: list[tuple[int, int] | None] = [None] * size
    end = start
    for part in overlay.parts(start, stop):
        assert part.offset >= end
        end = part.end
        assert end <= stop
        assert part.host is not None
        for byte in range(part.length):
            found[part.offset + byte] = (part.layer, part.host + byte)
    expected = model(stack, size)
    assert found == [expected[byte] if start <= byte < stop else None for byte in range(size)]
