"""Frames for XAPI, against a decoder that does what XAPI does with them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisors.xen.chunks import FRAME, ChunkEncoder
from stores.contract import KiB
from tests.disk_histories import SECTOR, sha

SIZE = 2 * FRAME + 300 * KiB
RUN = 64 * KiB
SOME = settings(max_examples=25, deadline=None)


def frames_in(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Offset and data of every frame, up to the end of the body, which must be the end mark."""
    position = 0
    while True:
        offset = int.from_bytes(body[position : position + 8], "little")
        length = int.from_bytes(body[position + 8 : position + 12], "little")
        position += 12
        if offset == length == 0:
            assert position == len(body)
            return
        assert len(body) - position > length > 0
        yield offset, body[position : position + length]
        position += length


def encoded(pieces: list[tuple[int, bytes]], *, skip_zeroes: bool) -> bytes:
    encoder = ChunkEncoder(skip_zeroes=skip_zeroes)
    body = b"".join(bytes(part) for offset, data in pieces for part in encoder.add(offset, data))
    return body + b"".join(bytes(part) for part in encoder.finish())


def written(body: bytes, disk: bytearray) -> bytearray:
    for offset, data in frames_in(body):
        assert offset % SECTOR == len(data) % SECTOR == 0
        assert offset // FRAME == (offset + len(data) - 1) // FRAME
        disk[offset : offset + len(data)] = data
    return disk


@st.composite
def pieces_of_a_disk(draw: st.DrawFn) -> list[tuple[int, bytes]]:
    """Runs of whole sectors, here and there and over one another, each cut anywhere; data and zeroes of all lengths."""
    chance = random.Random(draw(st.integers(0, 1000)))
    borders = st.integers(0, SIZE // SECTOR) | st.sampled_from([0, 128, FRAME // SECTOR, 2 * FRAME // SECTOR])
    pieces = []
    for _ in range(draw(st.integers(0, 4))):
        start, stop = sorted(SECTOR * draw(borders) for _ in range(2))
        content = bytearray(chance.randbytes(stop - start))
        for _ in range(draw(st.integers(0, 3))):
            zero, end = sorted(chance.randint(0, len(content)) for _ in range(2))
            content[zero:end] = bytes(end - zero)
        cuts = sorted({0, len(content), *(chance.randint(0, len(content)) for _ in range(draw(st.integers(0, 5))))})
        pieces += [(start + cut, bytes(content[cut:end])) for cut, end in pairwise(cuts)]
    return pieces


@SOME
@given(pieces=pieces_of_a_disk(), old=st.sampled_from([0, 0xAA]))
def test_the_disk_has_what_was_sent(pieces: list[tuple[int, bytes]], old: int) -> None:
    expected = bytearray([old]) * SIZE
    for offset, data in pieces:
        expected[offset : offset + len(data)] = data
    assert sha(written(encoded(pieces, skip_zeroes=False), bytearray([old]) * SIZE)) == sha(expected)


@SOME
@given(pieces=pieces_of_a_disk())
def test_runs_of_zeroes_are_not_sent(pieces: list[tuple[int, bytes]]) -> None:
    disk = bytearray(SIZE)
    for offset, data in pieces:
        disk[offset : offset + len(data)] = data
    cuts = sorted({0, SIZE, *(offset for offset, _ in pieces)})
    body = encoded([(start, bytes(disk[start:stop])) for start, stop in pairwise(cuts)], skip_zeroes=True)
    assert sha(written(body, bytearray(SIZE))) == sha(disk)
    sent = {start for offset, data in frames_in(body) for start in range(offset, offset + len(data), RUN)}
    assert sent == {start for start in range(0, SIZE, RUN) if any(disk[start : start + RUN])}
    ends = {offset + len(data) for offset, data in frames_in(body)}
    starts = {offset for offset, _ in frames_in(body)}
    assert {place % FRAME for place in starts & ends} <= {0}  # neighbours are one frame


def test_a_disk_in_order_is_full_frames() -> None:
    disk = random.Random(3).randbytes(SIZE)
    pieces = [(at, disk[at : at + 70_001]) for at in range(0, SIZE, 70_001)]
    sizes = [(offset, len(data)) for offset, data in frames_in(encoded(pieces, skip_zeroes=True))]
    assert sizes == [(0, FRAME), (FRAME, FRAME), (2 * FRAME, SIZE - 2 * FRAME)]


def test_nothing_is_only_the_end() -> None:
    assert encoded([], skip_zeroes=True) == bytes(12)
    assert encoded([(0, bytes(SIZE))], skip_zeroes=True) == bytes(12)


def test_the_callers_buffer_is_not_kept() -> None:
    buffer = bytearray(b"a" * SECTOR)
    encoder = ChunkEncoder(skip_zeroes=False)
    assert list(encoder.add(0, buffer)) == []
    buffer[:] = b"b" * SECTOR
    assert [bytes(part) for part in encoder.finish()][1] == b"a" * SECTOR


@pytest.mark.parametrize(
    "pieces",
    [[(1, 512)], [(0, 511)], [(0, 512), (512, 1)], [(0, 100), (512, 512)], [(FRAME - 100, 612)]],
    ids=str,
)
def test_whole_sectors_only(pieces: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="not whole sectors"):
        encoded([(offset, b"x" * length) for offset, length in pieces], skip_zeroes=False)
