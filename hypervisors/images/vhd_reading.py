"""A VHD read in the order of its bytes, as XAPI exports it: bytes of the image in, events of the disk out. No I/O, no file.

Of the parts of a VHD (`hypervisors.images.vhd`) only those that follow one another can be read so: first the footer's copy,
then the header, the block table, the blocks in the order of their places, whichever parts of the disk they are, and the
footer. Parent locators, block maps and padding between them are passed over. Dynamic and differencing disks come like
this, fixed ones do not.

The disk is as large as the footer's current size, whoever wrote it, and a sector is there if its bit is set: as XAPI has
it. (qemu does not look at the bits.)
"""

from __future__ import annotations

import heapq
import re
import sys
from array import array
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias, TypeVar
from uuid import UUID

from hypervisors.images import vhd
from hypervisors.images.parsing import SECTOR, refuse, truncated, whole_sectors
from hypervisors.images.vhd import Header
from stores.contract import MiB

T = TypeVar("T")

_LARGEST_BLOCK = 64 * MiB
_MOST_BLOCKS = 1 << 21  # twice what the largest disk has with blocks of the usual 2 MiB
_LARGEST_GAP = 4 * MiB  # there is nothing in a gap, and no reason for a long one
_SORTED_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True)
class Disk:
    """What the stream says of itself before it comes to the disk's content.

    `parent_id`: of the image that a differencing disk builds on, as that one's own `unique_id`. None: the disk is whole.
    """

    virtual_size: int
    block: int
    unique_id: UUID
    parent_id: UUID | None


@dataclass(frozen=True, slots=True)
class Present:
    """The disk's bytes from `offset` on. `data` is valid until the next event is asked for."""

    offset: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class Absent:
    """A part of the disk that the image has no data for: it is zero, or with a parent, unchanged."""

    offset: int
    length: int


Event: TypeAlias = Disk | Present | Absent

_Parsing: TypeAlias = Generator[Event | None, None, T]
"""A part of the parser, which ends with a T. It gives None where it has used up the input."""


class VhdReading:
    """One pass over one VHD.

    The first event is `Disk`. Every byte of the disk is then in one `Present` or `Absent`: first come those of blocks that
    are not in the image at all, then the blocks as the image has them, in any order of the disk. `Present` begins and ends
    where the input did, or a run of sectors.

    Memory does not follow what the image claims, but what it has: the block table, once as it is and once in order (8 MiB and
    16 MiB at most; of a disk of 2040 GiB in the usual blocks a half of that), and the bitmap of one block. To put that table in
    order takes as much as a second: a large disk is fed where that may block.
    """

    def __init__(self) -> None:
        self._input = memoryview(b"")
        self._position = 0  # in the image, of the input's first byte
        self._awaited = "VHD footer"
        self._end = bytearray()  # the last bytes that came, once the end is due
        self._footer = b""
        self._parser = self._parse()
        self.present = 0
        """Bytes of the disk that are in blocks of the image, once its table has come, whatever sectors of them are there."""

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Event]:
        """What the next bytes of the image say, any number of them. The events have to be taken to the end.

        `ImageRefused` as soon as it is clear that the image is damaged, hostile, or not in an order to be read forward.
        What was said until then may be wrong.
        """
        self._input = memoryview(data).cast("B")
        while (event := next(self._parser)) is not None:
            yield event

    def finish(self) -> None:
        """The image has ended: what was said so far is the disk only after this. `ImageRefused` unless the image is whole. One
        that was cut off while it was sent is refused like one that always was: who sent it knows which.
        """
        if len(self._end) < SECTOR:
            raise truncated(self._awaited)
        if self._position % SECTOR:
            raise refuse(
                "vhd-size", f"a VHD of {self._position} bytes is not whole sectors: it was cut off or added to"
            )
        vhd.check_copies(self._footer, bytes(self._end))

    # ------------------------------------------------------------------------------------------- the image's parts

    def _parse(self) -> _Parsing[None]:
        self._footer = yield from self._collected(SECTOR, "VHD footer")
        footer = vhd.read_footer(self._footer)
        vhd.check_leading(footer)
        yield from self._pass_over(footer.header_offset, "VHD dynamic disk header")
        sector = yield from self._collected(vhd.HEADER.size, "VHD dynamic disk header")
        header = vhd.read_header(sector, footer.virtual_size)
        check_blocks(header)
        differencing = footer.kind == vhd.DIFFERENCING
        if header.names_parent and not differencing:
            raise refuse("vhd-parent", "the VHD names a parent disk and yet is no differencing disk")
        yield Disk(footer.virtual_size, header.block, footer.unique_id, header.parent_id if differencing else None)
        yield from self._pass_over(header.table_offset, "VHD block table")
        size = whole_sectors(header.entries * 4)
        content = yield from self._collected(size, "VHD block table")
        table = read_table(content, header, footer.virtual_size)
        self.present = footer.virtual_size
        for absent in _absent_blocks(table, header.block, footer.virtual_size):
            self.present -= absent.length
            yield absent
        for place, number in in_order_of_places(table):
            yield from self._block(place * SECTOR, number * header.block, header.block, footer.virtual_size)
        yield from self._last_sector()

    def _block(self, place: int, offset: int, length: int, virtual_size: int) -> _Parsing[None]:
        """The block that is in the image at `place`, and is `length` bytes of the disk from `offset` on."""
        yield from self._pass_over(place, "VHD block")
        bitmap = yield from self._collected(bitmap_size(length), "VHD block")
        for there, *span in marked(bitmap, length // SECTOR):
            start, stop = (min(offset + sector * SECTOR, virtual_size) for sector in span)
            if there:
                while start < stop:
                    data = yield from self._some(stop - start)
                    yield Present(start, data)
                    start += len(data)
            elif start < stop:
                yield Absent(start, stop - start)
            yield from self._skip(place + len(bitmap) + span[1] * SECTOR - self._position)

    def _last_sector(self) -> _Parsing[None]:
        """Whatever comes now: `finish` tells whether it ended with the footer."""
        self._awaited = "VHD footer"
        due = self._position
        while True:
            data = yield from self._some(_LARGEST_GAP)
            if self._position > due + _LARGEST_GAP + SECTOR:
                raise _gap("end", self._position - due - SECTOR)
            self._end += data
            del self._end[:-SECTOR]

    # ---------------------------------------------------------------------------------------------------- the input

    def _some(self, most: int) -> _Parsing[memoryview]:
        """The next bytes, as many as there are."""
        while not self._input:
            yield None
        data, self._input = self._input[:most], self._input[most:]
        self._position += len(data)
        return data

    def _collected(self, length: int, what: str) -> _Parsing[bytes]:
        self._awaited = what
        found = bytearray()
        while len(found) < length:
            found += yield from self._some(length - len(found))
        return bytes(found)

    def _skip(self, length: int) -> _Parsing[None]:
        while length > 0:
            length -= len((yield from self._some(length)))

    def _pass_over(self, place: int, what: str) -> _Parsing[None]:
        """What comes before the part of the image that is at `place`, which is nothing of interest."""
        self._awaited = what
        gap = place - self._position
        if gap < 0:
            raise refuse(
                "vhd-order",
                f"the {what} is at {place}, and {self._position} bytes of the image belong to other parts: parts lie over one"
                " another, or the image is not for reading forward",
                place=place,
                position=self._position,
            )
        if gap > _LARGEST_GAP:
            raise _gap(what, gap)
        yield from self._skip(gap)


def check_blocks(header: Header) -> None:
    """`ImageRefused` for more or larger blocks than are taken."""
    if header.block > _LARGEST_BLOCK or header.entries > _MOST_BLOCKS:
        raise refuse(
            "vhd-blocks",
            f"the VHD has {header.entries} blocks of {header.block} bytes: at most {_MOST_BLOCKS} of at most {_LARGEST_BLOCK}"
            " are taken, convert it to blocks of 2 MiB",
            blocks=header.entries,
            block=header.block,
        )


def read_table(content: bytes, header: Header, virtual_size: int) -> array[int]:
    """The place of each block, in sectors. A table may be longer than the disk, but has no blocks there (`ImageRefused`)."""
    table = array("I", content)[: header.entries]
    assert table.itemsize == 4
    if sys.byteorder == "little":
        table.byteswap()
    first = -(-virtual_size // header.block)
    beyond = header.entries - first
    if table[first:].count(vhd.UNALLOCATED) != beyond:
        raise refuse("vhd-table", f"the VHD has blocks beyond the end of its disk of {virtual_size} bytes")
    return table


def bitmap_size(block: int) -> int:
    """Bytes before a block's data."""
    return whole_sectors(-(-block // SECTOR // 8))


def marked(bitmap: bytes, sectors: int) -> Iterator[tuple[bool, int, int]]:
    """Runs of a block's sectors that are there, or are not: which of the two, the first one, and the one behind the last."""
    for run in re.finditer("1+|0+", f"{int.from_bytes(bitmap):0{len(bitmap) * 8}b}"[:sectors]):
        yield run[0][0] == "1", *run.span()


def _absent_blocks(table: array[int], block: int, virtual_size: int) -> Iterator[Absent]:
    offset = 0
    for absent, same in groupby(table, vhd.UNALLOCATED.__eq__):
        end = min(offset + sum(1 for _ in same) * block, virtual_size)
        if absent and offset < end:
            yield Absent(offset, end - offset)
        offset = end


def in_order_of_places(table: array[int]) -> Iterator[tuple[int, int]]:
    """Place, in sectors, and number of each block that is there. Sorted in parts, whose numbers are then not all objects at
    once."""
    parts = []
    for start in range(0, len(table), _SORTED_AT_ONCE):
        some = enumerate(table[start : start + _SORTED_AT_ONCE], start)
        parts.append(array("Q", sorted(place << 32 | number for number, place in some if place != vhd.UNALLOCATED)))
    for packed in heapq.merge(*parts):
        yield packed >> 32, packed & 0xFFFFFFFF


def _gap(what: str, length: int) -> Exception:
    return refuse(
        "vhd-order",
        f"the VHD has {length} bytes or more before the {what} that belong to no part of it: at most {_LARGEST_GAP} are taken",
        gap=length,
        limit=_LARGEST_GAP,
    )
