"""A dynamic or differencing VHD in the order of its bytes, laid out from the disk's extents before a byte of the disk is read.

Source of the format: see `hypervisors.images.vhd`. The places are those of XAPI's own exports, which every reader of these
takes, whether it reads at random or, as XAPI's import does, forward only:

    footer copy | header | parent locator or nothing | block table | blocks | footer

A block is a bitmap of one sector and 2 MiB of data. Bits are set for the sectors that the image says something of, eight at a
time: where a byte has both, libvhdi takes the clear bits behind a set one for set. Only bits beyond the disk's end are always
clear: XAPI writes what is set, and would fail there.

Readers disagree on where the size is. Those that look at the geometry, which cannot tell every size, are told by the
largest one there is that it does not count; qemu's list of creators whose size counts has `qem2`, too.
"""

from __future__ import annotations

import heapq
import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from uuid import UUID

from hypervisors.images import vhd
from hypervisors.images.clusters import Clusters, Runs, classify
from hypervisors.images.parsing import SECTOR, whole_sectors
from hypervisors.images.pieces import Data, Metadata, Piece
from stores.contract import Extent, MiB
from stores.errors import TooLarge

BLOCK = 2 * MiB

_GRAIN = 8 * SECTOR  # what a byte of a bitmap stands for
_GRAINS = _BITMAP = BLOCK // _GRAIN
_STRIDE = _BITMAP + BLOCK

_HEADER_AT = SECTOR
_LOCATOR_AT = _HEADER_AT + vhd.HEADER.size
_TABLE_AT = _LOCATOR_AT + SECTOR

_RESERVED_FEATURE = 2  # always set
_CREATOR = b"qem2"
_LARGEST_GEOMETRY = 65535 << 16 | 16 << 8 | 255  # cylinders, heads, sectors
_NOWHERE = 0xFFFFFFFFFFFFFFFF
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_LONGEST_NAME = 512  # bytes of UTF-16


@dataclass(frozen=True, slots=True)
class Parent:
    """The image that a differencing disk builds on.

    `unique_id`: of the parent's footer. `name`: of its file, next to this one, for readers that look for it there; XAPI, when
    it imports, does not. `modified`: when that was last written, with its time zone.
    """

    unique_id: UUID
    name: str
    modified: datetime


def layout(virtual_size: int, extents: Iterable[Extent], *, unique_id: UUID, parent: Parent | None = None) -> VhdLayout:
    """The image of a disk of `virtual_size` bytes that has data in `extents`, which are in order, apart, and of any alignment.

    Without `parent` it is dynamic and holds the disk: what no data extent touches is zero. With one it is differencing: what
    no extent touches is the parent's, and zero extents are written out, since the format has no other way to say zero.
    Whole pieces of 4 KiB count; how extents share them: `hypervisors.images.clusters`. `unique_id`: by which a child names
    this image.

    Nothing is read. Time and memory follow the number of extents, plus 4 bytes for each 2 MiB of the disk.

    `TooLarge` for a disk of more than 2040 GiB, the most that VHD and its readers take. ValueError for a disk that is not
    whole sectors, extents that cannot be, and a parent's name that does not fit or is a path.
    """
    if virtual_size < SECTOR or virtual_size % SECTOR:
        raise ValueError(f"a disk of {virtual_size} bytes is not whole sectors")
    if virtual_size > vhd.LARGEST_DISK:
        raise TooLarge(
            f"a disk of {virtual_size} bytes does not fit in a VHD, which holds {vhd.LARGEST_DISK}: use another format",
            limit=vhd.LARGEST_DISK,
            seen=virtual_size,
        )
    grains = classify(extents, virtual_size, _GRAIN, delta=parent is not None)
    return VhdLayout(virtual_size, grains, unique_id, parent)


class VhdLayout:
    """The finished image, but for its data: an `ImageLayout`. `layout` makes it."""

    def __init__(self, virtual_size: int, grains: Clusters, unique_id: UUID, parent: Parent | None) -> None:
        self.virtual_size = virtual_size
        self._data, self._zero = grains.data, grains.zero
        self._blocks = Runs()
        for start, stop in heapq.merge(self._data, self._zero):
            self._blocks.add(start // _GRAINS, -(-stop // _GRAINS))
        self._before = array("Q", accumulate((stop - start for start, stop in self._blocks), initial=0))
        self._footer = _footer(virtual_size, unique_id, differencing=parent is not None)
        entries = -(-virtual_size // BLOCK)
        self._blocks_at = _TABLE_AT + whole_sectors(entries * 4)
        self._head = b"".join(
            (self._footer, _header(entries, parent), _locator(parent).ljust(SECTOR, b"\0"), self._table(entries))
        )
        self._footer_at = self._blocks_at + self._before[-1] * _STRIDE
        self.size = self._footer_at + SECTOR

    def pieces(self, start: int = 0, stop: int | None = None) -> Iterator[Piece]:
        """See `ImageLayout`. `Data` is as long as data follows on data in one block."""
        stop = self.size if stop is None else stop
        if start < min(stop, self._blocks_at):
            yield Metadata(self._head[start:stop])
        position = max(start, self._blocks_at)
        while position < min(stop, self._footer_at):
            number, within = divmod(position - self._blocks_at, _STRIDE)
            end = min(within + stop - position, _STRIDE)
            yield from self._block_pieces(number, within, end)
            position += end - within
        if position < stop:
            yield Metadata(self._footer[position - self._footer_at : stop - self._footer_at])

    # ----------------------------------------------------------------------------------------------------- blocks

    def _block_pieces(self, number: int, start: int, stop: int) -> Iterator[Piece]:
        """From `start` to `stop` in the image's block of that number: first its bitmap, then its data."""
        index = bisect_right(self._before, number) - 1
        first = (self._blocks.starts[index] + number - self._before[index]) * _GRAINS
        if start < _BITMAP:
            yield Metadata(self._bitmap(first)[start:stop])
        in_the_disk = first * _GRAIN - _BITMAP
        position, end = in_the_disk + max(start, _BITMAP), in_the_disk + stop
        for _, grain, grain_stop in self._data.within(position // _GRAIN, -(-end // _GRAIN)):
            begin, data_end = max(grain * _GRAIN, position), min(grain_stop * _GRAIN, self.virtual_size, end)
            if position < begin:
                yield Metadata(bytes(begin - position))
            if begin < data_end:
                yield Data(begin, data_end - begin)
            position = max(begin, data_end)
        if position < end:
            yield Metadata(bytes(end - position))

    def _bitmap(self, first: int) -> bytes:
        """Of the block that begins with this grain of the disk."""
        bitmap = bytearray(_BITMAP)
        for runs in (self._data, self._zero):
            for _, start, stop in runs.within(first, first + _GRAINS):
                bitmap[start - first : stop - first] = b"\xff" * (stop - start)
        last, beyond = self.virtual_size // _GRAIN, (-self.virtual_size % _GRAIN) // SECTOR
        if beyond and last - first < _GRAINS:
            bitmap[last - first] &= 0xFF << beyond
        return bytes(bitmap)

    def _table(self, entries: int) -> bytes:
        table = array("I", b"\xff" * whole_sectors(entries * 4))
        assert table.itemsize == 4
        stride = _STRIDE // SECTOR
        for (start, stop), before in zip(self._blocks, self._before, strict=False):
            begin = self._blocks_at // SECTOR + before * stride
            table[start:stop] = array("I", range(begin, begin + (stop - start) * stride, stride))
        if sys.byteorder == "little":
            table.byteswap()
        return table.tobytes()


def _footer(virtual_size: int, unique_id: UUID, *, differencing: bool) -> bytes:
    made = vhd.FOOTER.pack(
        vhd.COOKIE,
        _RESERVED_FEATURE,
        vhd.VERSION,
        _HEADER_AT,
        0,  # no time: the same extents give the same bytes
        _CREATOR,
        0,
        b"",
        virtual_size,
        virtual_size,
        _LARGEST_GEOMETRY,
        vhd.DIFFERENCING if differencing else vhd.DYNAMIC,
        0,
        unique_id.bytes,
        0,
    )
    return _sealed(made, vhd.FOOTER_CHECKSUM_AT)


def _header(entries: int, parent: Parent | None) -> bytes:
    unique_id, modified, name, locators = bytes(16), 0, b"", b""
    if parent is not None:
        unique_id, modified = parent.unique_id.bytes, int((parent.modified - _EPOCH).total_seconds())
        name = parent.name.encode("utf-16-be")
        if len(name) > _LONGEST_NAME:
            raise ValueError(f"the name {parent.name!r} of the parent is too long for a VHD")
        # Code, sectors of room, bytes, place.
        locators = b"MacX" + struct.pack(">II4xQ", 1, len(_locator(parent)), _LOCATOR_AT)
    made = vhd.HEADER.pack(
        vhd.HEADER_COOKIE,
        _NOWHERE,
        _TABLE_AT,
        vhd.VERSION,
        entries,
        BLOCK,
        0,
        unique_id,
        modified,
        name,
        locators,
    )
    return _sealed(made, vhd.HEADER_CHECKSUM_AT)


def _locator(parent: Parent | None) -> bytes:
    """Where the parent is, as blktap and XAPI's tools write it."""
    if parent is None:
        return b""
    if not parent.name or "/" in parent.name:
        raise ValueError(f"the name {parent.name!r} of the parent is not that of a file")
    uri = f"file://./{parent.name}".encode()
    if len(uri) > SECTOR:
        raise ValueError(f"the name {parent.name!r} of the parent is too long for a VHD")
    return uri


def _sealed(made: bytes, at: int) -> bytes:
    return made[:at] + vhd.checksum(made, at) + made[at + 4 :]
