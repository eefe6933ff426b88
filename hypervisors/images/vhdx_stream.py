"""A dynamic or differencing VHDX in the order of its bytes, laid out from the disk's extents before a byte of the disk is read.

Source of the format: see `hypervisors.images.vhdx` and `hypervisors.images.vhdx_table`. Nothing has to be replayed, and the
order is

    headers and region tables | log, empty | metadata | block table | sector bitmaps | blocks

each part at a whole MiB, the blocks in the order of the disk. Every byte is written, zeroes too: Hyper-V opens no file that
is sparse in its file system, so an image is small by the blocks that it does not have.

Which parts of a block a differencing disk has is said of eight sectors at a time, a byte of a bitmap. A block that is zero as
a whole, and hides what the parent has there, is told as such and takes no room. (libvhdi does not know that state, which the
specification has, and looks at the bitmap of every block that is not there as a whole, be there one or not: chunks of a
child that hold anything have one for its sake.)
"""

from __future__ import annotations

import heapq
import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from uuid import UUID

from hypervisors.images import vhdx, vhdx_parent
from hypervisors.images.clusters import Clusters, Runs, classify
from hypervisors.images.pieces import Data, Metadata, Piece
from hypervisors.images.vhdx_parent import Parent
from hypervisors.images.vhdx_table import BITMAP, ENTRY, FULLY_PRESENT, PARTIALLY_PRESENT, ZERO, Shape
from stores.contract import Extent, KiB, MiB
from stores.errors import TooLarge

_LOG = vhdx.Region(1 * MiB, 1 * MiB)
_METADATA = vhdx.Region(2 * MiB, 1 * MiB)
_TABLE_AT = 3 * MiB
_PART = 64 * KiB
"""How much of the tables is made at once."""
_CREATOR = "storage-agent".encode("utf-16-le")
_PHYSICAL_SECTOR = 4096
_GRAIN_SECTORS = 8  # what a byte of a bitmap stands for
_SMALL_BLOCK, _USUAL_BLOCK = 1 * MiB, 32 * MiB
_MOST_SMALL_BLOCKS = 128 * KiB  # whose table is 1 MiB


@dataclass(frozen=True, slots=True)
class Identity:
    """The ids of an image, all of them new for a new image but that of the disk.

    `disk`: what a guest sees; a child has its parent's. `content`: by which children name this image as theirs.
    `opening`: of the last time that it was opened for writing.
    """

    disk: UUID
    content: UUID
    opening: UUID


def block_for(virtual_size: int) -> int:
    """The block size to take where nothing else decides: 1 MiB, which wastes little on scattered data and is what Microsoft
    advises for Linux, up to 128 GiB; then what keeps the block table at 1 MiB; and beyond 2 TiB 32 MiB, which Hyper-V itself
    takes by default."""
    block = _SMALL_BLOCK
    while block < _USUAL_BLOCK and virtual_size > block * _MOST_SMALL_BLOCKS:
        block *= 2
    return block


def layout(
    virtual_size: int,
    extents: Iterable[Extent],
    *,
    identity: Identity,
    block: int | None = None,
    sector: int = 512,
    parent: Parent | None = None,
) -> VhdxLayout:
    """The image of a disk of `virtual_size` bytes that has data in `extents`, which are in order, apart, and of any alignment.

    Without `parent` it is dynamic and holds the disk: what no data extent touches is zero. With one it is differencing: what
    no extent touches is the parent's, and zero extents are zero. Eight sectors count as a whole; how extents share them:
    `hypervisors.images.clusters`. The image is as large as the blocks that have anything: choose `block` by that, or leave
    it to `block_for`. `sector`: logical, 512 or 4096, and that of the parent.

    Nothing is read, and no table is made yet: time and memory follow the number of extents. The same arguments give the
    same bytes.

    `TooLarge` for a disk of more than 64 TiB. ValueError for a disk that is not whole sectors, extents, a block or sector size
    that cannot be, and paths of the parent that cannot be.
    """
    block = block_for(virtual_size) if block is None else block
    if block not in vhdx.BLOCKS or sector not in vhdx.SECTORS:
        raise ValueError(f"VHDX has no blocks of {block} bytes in sectors of {sector}")
    if virtual_size < sector or virtual_size % sector:
        raise ValueError(f"a disk of {virtual_size} bytes is not whole sectors of {sector}")
    if virtual_size > vhdx.LARGEST_DISK:
        raise TooLarge(
            f"a disk of {virtual_size} bytes does not fit in a VHDX, which holds {vhdx.LARGEST_DISK}: make a smaller one",
            limit=vhdx.LARGEST_DISK,
            seen=virtual_size,
        )
    grains = classify(extents, virtual_size, _GRAIN_SECTORS * sector, delta=parent is not None)
    return VhdxLayout(Shape(virtual_size, block, sector), grains, identity, parent)


class VhdxLayout:
    """The finished image, but for its data: an `ImageLayout`. `layout` makes it."""

    def __init__(self, shape: Shape, grains: Clusters, identity: Identity, parent: Parent | None) -> None:
        self.virtual_size = shape.virtual_size
        self._shape = shape
        self._grain = _GRAIN_SECTORS * shape.sector
        self._data = grains.data
        differencing = parent is not None
        block_grains = shape.block // self._grain
        self._said = Runs()  # the grains that the image says something of
        for start, stop in heapq.merge(grains.data, grains.zero):
            self._said.add(start, stop)
        self._zero = _whole_blocks(grains.zero, block_grains, shape)
        self._blocks = _without(_touched(self._said, block_grains), self._zero)
        self._partial = (
            _without(self._blocks, _whole_blocks(self._said, block_grains, shape)) if differencing else Runs()
        )
        self._chunks = _touched(self._blocks, shape.ratio) if differencing else Runs()
        self._before = _counts(self._blocks)
        self._chunks_before = _counts(self._chunks)
        self._entries = shape.entries(differencing=differencing)
        table = vhdx.Region(_TABLE_AT, -(-self._entries * ENTRY // MiB) * MiB)
        self._head = _head(identity, table, _metadata(shape, identity, parent))
        self._bitmaps_at = table.offset + table.length
        self._blocks_at = self._bitmaps_at + self._chunks_before[-1] * BITMAP
        self.size = self._blocks_at + self._before[-1] * shape.block

    def pieces(self, start: int = 0, stop: int | None = None) -> Iterator[Piece]:
        """See `ImageLayout`. `Data` is as long as data follows on data in one block; tables and zeroes come in parts."""
        position, stop = start, self.size if stop is None else stop
        while position < stop:
            if position < _TABLE_AT:
                end = min(stop, _TABLE_AT)
                yield from self._head_pieces(position, end)
            elif position < self._bitmaps_at:
                end = min(stop, self._bitmaps_at, (position // _PART + 1) * _PART)
                yield Metadata(self._table(position - _TABLE_AT, end - _TABLE_AT))
            elif position < self._blocks_at:
                end = min(stop, self._blocks_at, (position // _PART + 1) * _PART)
                yield Metadata(self._bitmap(position - self._bitmaps_at, end - self._bitmaps_at))
            else:
                number, within = divmod(position - self._blocks_at, self._shape.block)
                end = min(stop, position - within + self._shape.block)
                yield from self._block_pieces(number, within, within + end - position)
            position = end

    # ------------------------------------------------------------------------------------------------- in the image

    def _head_pieces(self, position: int, stop: int) -> Iterator[Metadata]:
        for offset, content in self._head:
            yield from _zeroes(min(offset, stop) - position)
            position = max(position, min(offset, stop))
            part = content[position - offset : max(stop - offset, 0)]
            if part:
                yield Metadata(part)
                position += len(part)
        yield from _zeroes(stop - position)

    def _block_pieces(self, number: int, start: int, stop: int) -> Iterator[Piece]:
        """From `start` to `stop` in the image's block of that number."""
        index = bisect_right(self._before, number) - 1
        begin_of_block = (self._blocks.starts[index] + number - self._before[index]) * self._shape.block
        position, end = begin_of_block + start, begin_of_block + stop
        for _, grain, grain_stop in self._data.within(position // self._grain, -(-end // self._grain)):
            begin = max(grain * self._grain, position)
            data_end = min(grain_stop * self._grain, self.virtual_size, end)
            yield from _zeroes(begin - position)
            if begin < data_end:
                yield Data(begin, data_end - begin)
            position = max(begin, data_end)
        yield from _zeroes(end - position)

    def _table(self, start: int, stop: int) -> bytes:
        """The block table's bytes from `start` to `stop`."""
        first, last = start // ENTRY, min(-(-stop // ENTRY), self._entries)
        table = array("Q", bytes(max(last - first, 0) * ENTRY))
        ratio = self._shape.ratio
        for chunk in range(first // (ratio + 1), -(-last // (ratio + 1))):
            entry = chunk * (ratio + 1)
            lowest, highest = chunk * ratio + max(first - entry, 0), chunk * ratio + min(last - entry, ratio)
            self._fill(table, lowest, highest, shift=chunk - first)
            if first <= entry + ratio < last:
                for index, _, _ in self._chunks.within(chunk, chunk + 1):
                    bitmap = self._chunks_before[index] + chunk - self._chunks.starts[index]
                    table[entry + ratio - first] = self._bitmaps_at + bitmap * BITMAP | FULLY_PRESENT
        if sys.byteorder == "big":
            table.byteswap()
        return table.tobytes().ljust(stop - first * ENTRY, b"\0")[start - first * ENTRY : stop - first * ENTRY]

    def _fill(self, table: array[int], first: int, last: int, *, shift: int) -> None:
        """The entries of blocks of one chunk; `shift`: from a block's number to its place in `table`."""
        block = self._shape.block
        for index, start, stop in self._blocks.within(first, last):
            begin = self._blocks_at + (self._before[index] + start - self._blocks.starts[index]) * block
            run = range(begin | FULLY_PRESENT, begin + (stop - start) * block, block)
            table[start + shift : stop + shift] = array("Q", run)
        for _, start, stop in self._partial.within(first, last):
            for number in range(start + shift, stop + shift):
                table[number] |= PARTIALLY_PRESENT
        for _, start, stop in self._zero.within(first, last):
            table[start + shift : stop + shift] = array("Q", (ZERO,)) * (stop - start)

    def _bitmap(self, start: int, stop: int) -> bytes:
        """From `start` to `stop` in all bitmaps, which are in one of them."""
        number, within = divmod(start, BITMAP)
        index = bisect_right(self._chunks_before, number) - 1
        first = (self._chunks.starts[index] + number - self._chunks_before[index]) * BITMAP + within
        bitmap = bytearray(stop - start)
        for _, grain, grain_stop in self._said.within(first, first + len(bitmap)):
            bitmap[grain - first : grain_stop - first] = b"\xff" * (grain_stop - grain)
        last, sectors = divmod(self.virtual_size // self._shape.sector, _GRAIN_SECTORS)
        if sectors and first <= last < first + len(bitmap):
            bitmap[last - first] &= (1 << sectors) - 1
        return bytes(bitmap)


# ---------------------------------------------------------------------------------------------------------- runs


def _whole_blocks(runs: Runs, grains: int, shape: Shape) -> Runs:
    """The blocks that runs of grains cover, the last one up to the disk's end."""
    end = -(-shape.virtual_size // (_GRAIN_SECTORS * shape.sector))
    whole = Runs()
    for start, stop in runs:
        whole.add(-(-start // grains), shape.blocks if stop == end else stop // grains)
    return whole


def _touched(runs: Runs, size: int) -> Runs:
    """The same in units of `size`, whole ones."""
    touched = Runs()
    for start, stop in runs:
        touched.add(start // size, -(-stop // size))
    return touched


def _without(runs: Runs, others: Runs) -> Runs:
    """What is in `runs` alone."""
    rest = Runs()
    for start, stop in runs:
        for _, other_start, other_stop in others.within(start, stop):
            rest.add(start, other_start)
            start = other_stop
        rest.add(start, stop)
    return rest


def _counts(runs: Runs) -> array[int]:
    """How many are in all runs before each, and in all of them."""
    return array("Q", accumulate((stop - start for start, stop in runs), initial=0))


def _zeroes(length: int) -> Iterator[Metadata]:
    for start in range(0, length, MiB):
        yield Metadata(bytes(min(MiB, length - start)))


# ------------------------------------------------------------------------------------------------------ structures


def _head(identity: Identity, table: vhdx.Region, metadata: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Place and content of what comes before the block table. Between is nothing."""
    entries = ((vhdx.TABLE_REGION, table), (vhdx.METADATA_REGION, _METADATA))
    regions = vhdx.REGION_TABLE.pack(vhdx.REGIONS_SIGNATURE, 0, len(entries), 0) + b"".join(
        vhdx.REGION.pack(kind, region.offset, region.length, vhdx.REQUIRED_REGION) for kind, region in entries
    )
    return [
        (0, vhdx.MAGIC + _CREATOR),
        *((offset, _header(identity, number)) for number, offset in enumerate(vhdx.HEADERS_AT)),
        *((offset, _sealed(regions.ljust(vhdx.REGIONS_LENGTH, b"\0"))) for offset in vhdx.REGIONS_AT),
        *metadata,
    ]


def _header(identity: Identity, number: int) -> bytes:
    """The first one is newer by one: of two equal ones, neither would count."""
    made = vhdx.HEADER.pack(
        vhdx.HEADER_SIGNATURE,
        0,
        2 - number,
        identity.opening.bytes_le,
        identity.content.bytes_le,
        bytes(16),  # no log to replay
        0,
        vhdx.VERSION,
        _LOG.length,
        _LOG.offset,
    )
    return _sealed(made.ljust(vhdx.HEADER_LENGTH, b"\0"))


def _metadata(shape: Shape, identity: Identity, parent: Parent | None) -> list[tuple[int, bytes]]:
    """The metadata's table and its items."""
    of_disk = vhdx.VIRTUAL_DISK_ITEM | vhdx.REQUIRED_ITEM
    has_parent = vhdx.HAS_PARENT if parent is not None else 0
    items = [
        (vhdx.FILE_PARAMETERS, struct.pack("<II", shape.block, has_parent), vhdx.REQUIRED_ITEM),
        (vhdx.VIRTUAL_DISK_SIZE, struct.pack("<Q", shape.virtual_size), of_disk),
        (vhdx.VIRTUAL_DISK_ID, identity.disk.bytes_le, of_disk),
        (vhdx.LOGICAL_SECTOR_SIZE, struct.pack("<I", shape.sector), of_disk),
        (vhdx.PHYSICAL_SECTOR_SIZE, struct.pack("<I", _PHYSICAL_SECTOR), of_disk),
    ]
    if parent is not None:
        items.append((vhdx.PARENT_LOCATOR, vhdx_parent.packed(parent), vhdx.REQUIRED_ITEM))
    table = [vhdx.METADATA_TABLE.pack(vhdx.METADATA_SIGNATURE, len(items))]
    position = vhdx.ITEMS_AT
    for kind, content, flags in items:
        table.append(vhdx.ITEM.pack(kind, position, len(content), flags))
        position += len(content)
    contents = b"".join(content for _, content, _ in items)
    return [(_METADATA.offset, b"".join(table)), (_METADATA.offset + vhdx.ITEMS_AT, contents)]


def _sealed(made: bytes) -> bytes:
    return made[:4] + vhdx.checksum(made).to_bytes(4, "little") + made[8:]
