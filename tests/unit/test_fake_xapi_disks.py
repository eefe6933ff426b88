"""The fake XenServer pool's disks: whatever is written, forked, dropped and collected, each disk keeps its own bytes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.doubles.xapi.disks import BLOCK, Disk, Nodes

SIZE = 4 * BLOCK
_WHICH = st.integers(0, 5)
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), _WHICH, st.integers(0, SIZE - 1), st.integers(1, BLOCK + 5)),
        st.tuples(st.just("fork"), _WHICH, st.just(0), st.just(0)),
        st.tuples(st.just("drop"), _WHICH, st.just(0), st.just(0)),
        st.tuples(st.just("collect"), _WHICH, st.just(0), st.just(0)),
    ),
    max_size=14,
)


@settings(max_examples=25, deadline=None)
@given(steps=_STEPS)
def test_disks_are_what_was_written_to_them(steps: list[tuple[str, int, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        nodes = Nodes(Path(folder) / "nodes")
        disks = [(Disk(nodes, SIZE), bytearray(SIZE))]
        for number, (step, which, offset, length) in enumerate(steps, 1):
            disk, model = disks[which % len(disks)]
            if step == "write":
                data = bytes([number]) * min(length, SIZE - offset)
                disk.write(offset, data)
                model[offset : offset + len(data)] = data
            elif step == "fork":
                disks.append((disk.fork(), bytearray(model)))
            elif step == "drop" and len(disks) > 1:
                disks.remove((disk, model))
            else:
                moved = nodes.collect([other.leaf for other, _ in disks])
                for other, _ in disks:
                    while other.leaf in moved:
                        other.leaf = moved[other.leaf]
        for disk, model in disks:
            assert disk.read(0, SIZE) == model
            below = disks[0][0]
            changed = set(disk.changed_since(below))
            same = [block for block in range(SIZE // BLOCK) if block not in changed]
            for block in same:
                assert disk.read(block * BLOCK, BLOCK) == below.read(block * BLOCK, BLOCK)
        nodes.close()
        assert list((Path(folder) / "nodes").iterdir()) == []
