"""Pieces of a new disk in any order become frames of it: of whole sectors, without zeroes, none over a border of 2 MiB."""

from __future__ import annotations

import random
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisors.xen.chunks import END, FRAME
from hypervisors.xen.placing import NewContent
from hypervisors.xen.wire import Exchange
from stores.contract import KiB
from tests.disk_histories import SECTOR, sha
from tests.unit.test_xen_chunks import RUN, frames_in, written


class Body:
    """What an exchange was given to send."""

    def __init__(self) -> None:
        self.sent = b""

    def put(self, *parts: bytes | memoryview) -> None:
        self.sent += b"".join(parts)


@settings(max_examples=30, deadline=None)
@given(
    size=st.integers(1, 3 * FRAME),
    seed=st.integers(0, 1000),
    extents=st.lists(st.tuples(st.integers(0, 3 * FRAME), st.integers(1, 200 * KiB)), max_size=6),
)
def test_the_disk_is_what_the_pieces_were(size: int, seed: int, extents: list[tuple[int, int]]) -> None:
    chance = random.Random(seed)
    rounded = size + -size % SECTOR
    disk = bytearray(rounded)
    for offset, length in extents:
        stop = min(offset + length, size)
        disk[offset:stop] = chance.randbytes(max(0, stop - offset))
    disk = disk[:rounded]
    body = Body()
    place = NewContent(cast(Exchange, body), size, None)
    starts = list(range(0, size, FRAME))
    chance.shuffle(starts)
    for start in starts:
        place.write(start, memoryview(bytes(disk[start : min(start + FRAME, size)])))
    frames = list(frames_in(body.sent + END))
    assert sha(written(body.sent + END, bytearray(rounded))) == sha(disk)
    sent = {start // RUN for offset, data in frames for start in range(offset, offset + len(data), RUN)}
    assert sent == {start // RUN for start in range(0, rounded, RUN) if any(disk[start : start + RUN])}
