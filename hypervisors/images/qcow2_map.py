"""Where in a qcow2 image each part of its disk is, of whoever's making: what needs no qemu to be read.

Format: `hypervisors.images.qcow2`, which has judged the header before. Internal snapshots are not looked at: they do not change
what the disk is. Of the tables nothing is believed before it is checked.
"""

from __future__ import annotations

import asyncio
import sys
from array import array
from collections.abc import Iterator, Sequence

from hypervisors.contract import ImageRefused
from hypervisors.images.overlay import Layer
from hypervisors.images.parsing import HEAD, refuse
from hypervisors.images.qcow2 import Header, read_header
from hypervisors.images.qcow2_stream import Run
from stores.contract import RangeReader
from stores.transfer.engine import TransferEngine
from stores.transfer.groups import first_failure
from stores.transfer.pieces import known_size

MOST_RUNS = 1 << 21
"""48 MiB of numbers."""

_OFFSET = 0x00FFFFFFFFFFFE00
_COMPRESSED = 1 << 62
_ZERO = 1
_TABLES_AT_ONCE = 64


async def read_map(image: RangeReader, engine: TransferEngine) -> Layer | None:
    """None where only qemu can read the image: it has compressed clusters, or is in too many parts. `ImageRefused` where its
    tables cannot be."""
    size = known_size(image)
    header = read_header(await image.read(0, min(HEAD, size)))
    _inside(header.l1_offset, header.l1_entries * 8, size)
    tables = _numbers(await image.read(header.l1_offset, header.l1_entries * 8))
    wanted = -(-header.virtual_size // (header.cluster * (header.cluster // 8)))
    if len(tables) < wanted:
        raise refuse("qcow2-l1", f"the qcow2 image has {len(tables)} tables, too few for its disk")
    present = [number for number in range(wanted) if tables[number] & _OFFSET]
    found = _Runs()
    for start in range(0, len(present), _TABLES_AT_ONCE):
        some = present[start : start + _TABLES_AT_ONCE]
        contents = await _read(image, [tables[number] & _OFFSET for number in some], header.cluster, size)
        if not await engine.run(_walk, found, some, contents, header, size):
            return None
    return Layer(header.virtual_size, found)


class _Runs:
    """In order and apart; neighbours that are also neighbours in the image are one."""

    def __init__(self) -> None:
        self._offsets, self._lengths, self._places = array("Q"), array("Q"), array("Q")

    def __iter__(self) -> Iterator[Run]:
        return map(Run, self._offsets, self._lengths, self._places)

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, offset: int, length: int, place: int) -> None:
        if self._offsets:
            last = self._lengths[-1]
            if (self._offsets[-1] + last, self._places[-1] + last) == (offset, place):
                self._lengths[-1] += length
                return
        self._offsets.append(offset)
        self._lengths.append(length)
        self._places.append(place)


async def _read(image: RangeReader, places: Sequence[int], length: int, size: int) -> list[bytes]:
    """As many at once as the image can be read."""
    turns = asyncio.Semaphore(image.parallel)

    async def table(place: int) -> bytes:
        _inside(place, length, size)
        async with turns:
            return await image.read(place, length)

    with first_failure():
        async with asyncio.TaskGroup() as group:
            reads = [group.create_task(table(place), name="table") for place in places]
    return [read.result() for read in reads]


def _walk(found: _Runs, numbers: Sequence[int], tables: Sequence[bytes], header: Header, size: int) -> bool:
    """Whether all that the tables map could be added."""
    cluster = header.cluster
    for number, table in zip(numbers, tables, strict=True):
        offset = number * (cluster // 8) * cluster
        for entry in _numbers(table):
            length = min(cluster, header.virtual_size - offset)
            if length <= 0:
                break
            if entry & _COMPRESSED:
                return False
            place = entry & _OFFSET
            if place and not entry & _ZERO:
                if place % cluster:
                    raise _misplaced(place)
                _inside(place, length, size)
                found.add(offset, length, place)
            offset += cluster
        if len(found) > MOST_RUNS:
            return False
    return True


def _numbers(table: bytes) -> array[int]:
    numbers = array("Q", table)
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers


def _inside(place: int, length: int, size: int) -> None:
    if not place or place + length > size:
        raise _misplaced(place)


def _misplaced(place: int) -> ImageRefused:
    return refuse("qcow2-tables", f"the qcow2 image names a part of itself at {place}, where none can be", place=place)
