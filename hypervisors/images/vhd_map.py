"""Where in a VHD each part of its disk is: for reading objects at random, one above the other.

Format: `hypervisors.images.vhd`. Unlike in `vhd_reading`, blocks may lie in any order, and a fixed disk is one run. A sector is
there if its bit is set, as XAPI has it. Of what the image says, nothing is believed before it is checked: no two parts of it
lie over one another, and none reaches beyond its end.
"""

from __future__ import annotations

import asyncio
import heapq
from array import array
from collections.abc import Iterator, Sequence
from uuid import UUID

from hypervisors.contract import ImageRefused
from hypervisors.images import vhd
from hypervisors.images.parsing import HEAD, SECTOR, TAIL, refuse, whole_sectors
from hypervisors.images.qcow2_stream import Run
from hypervisors.images.vhd import Header
from hypervisors.images.vhd_reading import bitmap_size, check_blocks, in_order_of_places, marked, read_table
from stores.contract import RangeReader
from stores.transfer.engine import TransferEngine
from stores.transfer.groups import first_failure
from stores.transfer.pieces import known_size

MOST_RUNS = 1 << 21
"""Twice what the largest disk has in whole blocks of the usual 2 MiB: 48 MiB of numbers."""

_BLOCKS_AT_ONCE = 256


class VhdMap:
    """`parent_id`: of the image that a differencing disk builds on. None: what is in no run is zero. `read_map` makes it."""

    def __init__(self, virtual_size: int, unique_id: UUID, parent_id: UUID | None) -> None:
        self.virtual_size = virtual_size
        self.unique_id = unique_id
        self.parent_id = parent_id
        self._offsets, self._lengths, self._places = array("Q"), array("Q"), array("Q")

    def __len__(self) -> int:
        return len(self._offsets)

    def runs(self) -> Iterator[Run]:
        """The parts of the disk that the image has, in order and apart; each one's `host` is its place in the image."""
        return map(Run, self._offsets, self._lengths, self._places)

    def add(self, offset: int, length: int, place: int) -> None:
        """One more, behind the last, as far as it is inside the disk. `ImageRefused` for too many."""
        length = min(length, self.virtual_size - offset)
        if length <= 0:
            return
        if len(self) == MOST_RUNS:
            raise refuse("vhd-blocks", f"the VHD's disk is in more than {MOST_RUNS} parts: convert it", limit=MOST_RUNS)
        self._offsets.append(offset)
        self._lengths.append(length)
        self._places.append(place)


async def read_map(image: RangeReader, engine: TransferEngine, *, whole: bool) -> VhdMap:
    """The map of `image`, of whatever kind.

    `whole`: whoever wrote it is known to have marked all sectors of its blocks as there; then their bitmaps, a small read for
    each block, are not looked at. `ImageRefused` for an image that is damaged; otherwise what `image` raises.
    """
    size = known_size(image)
    head = await image.read(0, min(HEAD, size))
    tail = await image.read(max(0, size - TAIL), min(TAIL, size))
    if not head.startswith(vhd.COOKIE):
        return _fixed(head, tail, size)
    footer = vhd.read_footer(head)
    vhd.check_leading(footer)
    if size % SECTOR:
        raise refuse("vhd-size", f"a VHD of {size} bytes is not whole sectors: it was cut off or added to", size=size)
    vhd.check_copies(head[:SECTOR], tail[-SECTOR:])
    header = vhd.read_header(head[footer.header_offset : footer.header_offset + vhd.HEADER.size], footer.virtual_size)
    check_blocks(header)
    differencing = footer.kind == vhd.DIFFERENCING
    if header.names_parent and not differencing:
        raise refuse("vhd-parent", "the VHD names a parent disk and yet is no differencing disk")
    table_size = whole_sectors(header.entries * 4)
    if header.table_offset + table_size > size:
        raise refuse("truncated", "the image ends before the end of its VHD block table: it was cut off")
    content = await image.read(header.table_offset, table_size)
    table = await engine.run(read_table, content, header, footer.virtual_size)
    parts = [(0, SECTOR), (footer.header_offset, vhd.HEADER.size), (header.table_offset, table_size)]
    await engine.run(_check_apart, [*parts, (size - SECTOR, SECTOR)], table, header)
    found = VhdMap(footer.virtual_size, footer.unique_id, header.parent_id if differencing else None)
    for first in range(0, header.entries, _BLOCKS_AT_ONCE):
        numbers = _present(table, first)
        bitmaps = None if whole else await _bitmaps(image, [table[number] for number in numbers], header)
        await engine.run(_add, found, table, numbers, bitmaps, header.block)
    return found


def _fixed(head: bytes, tail: bytes, size: int) -> VhdMap:
    checked = vhd.parse(head, tail, size)
    assert checked.virtual_size is not None
    found = VhdMap(checked.virtual_size, vhd.read_footer(tail[-SECTOR:]).unique_id, None)
    found.add(0, checked.virtual_size, 0)
    return found


def _check_apart(parts: Sequence[tuple[int, int]], table: array[int], header: Header) -> None:
    """Offset and length of all that the image has besides blocks; the last is its end."""
    stride = bitmap_size(header.block) + header.block
    blocks = ((place * SECTOR, stride) for place, _ in in_order_of_places(table))
    end = 0
    for offset, length in heapq.merge(sorted(parts), blocks):
        if offset < end:
            raise _overlapping(offset, end)
        end = offset + length
    if end > sum(parts[-1]):
        raise refuse("truncated", "the image ends before the end of its VHD block: it was cut off", end=end)


def _overlapping(offset: int, end: int) -> ImageRefused:
    return refuse(
        "vhd-order",
        f"parts of the VHD lie over one another: one ends at {end}, and the next is at {offset}",
        place=offset,
    )


def _present(table: array[int], first: int) -> list[int]:
    stop = min(first + _BLOCKS_AT_ONCE, len(table))
    return [number for number in range(first, stop) if table[number] != vhd.UNALLOCATED]


async def _bitmaps(image: RangeReader, places: Sequence[int], header: Header) -> list[bytes]:
    """As many at once as the image can be read."""
    turns = asyncio.Semaphore(image.parallel)

    async def bitmap(place: int) -> bytes:
        async with turns:
            return await image.read(place * SECTOR, bitmap_size(header.block))

    with first_failure():
        async with asyncio.TaskGroup() as group:
            reads = [group.create_task(bitmap(place), name="bitmap") for place in places]
    return [read.result() for read in reads]


def _add(found: VhdMap, table: array[int], numbers: Sequence[int], bitmaps: Sequence[bytes] | None, block: int) -> None:
    for index, number in enumerate(numbers):
        offset, place = number * block, table[number] * SECTOR + bitmap_size(block)
        if bitmaps is None:
            found.add(offset, block, place)
            continue
        for there, start, stop in marked(bitmaps[index], block // SECTOR):
            if there:
                found.add(offset + start * SECTOR, (stop - start) * SECTOR, place + start * SECTOR)
