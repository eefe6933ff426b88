"""The disk in a VHDX, or in a chain of them, read at random where the files are. Nothing is ever written.

`open_image` reads what a file says of itself; of one that was not closed, its log is replayed in memory
(`hypervisors.images.vhdx_log`). `disk_of` lays such files over one another. The source of the format: see
`hypervisors.images.vhdx` and `hypervisors.images.vhdx_table`.

Blocks that are undefined or unmapped read as zeroes, which the specification leaves open; in a differencing disk, too, they
hide what the parent has.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from hypervisors.images import vhdx, vhdx_log, vhdx_parent, vhdx_table
from hypervisors.images.parsing import check_within, refuse
from hypervisors.images.vhdx_log import LARGEST_LOG, Overlay
from hypervisors.images.vhdx_table import (
    BITMAP,
    ENTRY,
    FULLY_PRESENT,
    NOT_PRESENT,
    PARTIALLY_PRESENT,
    UNDEFINED,
    UNMAPPED,
    ZERO,
    Shape,
)
from stores.contract import Extent, KiB, MiB, RangeReader
from stores.errors import IntegrityError
from stores.transfer.engine import TransferEngine
from stores.transfer.pieces import known_size

LONGEST_CHAIN = 64
"""Files of one disk. Hyper-V takes 50 checkpoints of a machine."""

_WINDOW = 64 * KiB
"""How much of a block table, or of a sector bitmap, is read at once."""
_WINDOW_ENTRIES = _WINDOW // ENTRY
_PARTS_KEPT = 32
"""Of one file."""


@dataclass(frozen=True, slots=True)
class Run:
    """A part of the disk that is in this file, from `place` on; or, with no place, zero; or the parent's."""

    offset: int
    length: int
    place: int | None = None
    below: bool = False


class VhdxImage:
    """One VHDX. `open_image` makes it; any number of calls may be under way. Takes 2 MiB of memory at most.

    `content_id`: by which its children name it. `parent`: what it says of its own; None if it has none.
    """

    def __init__(
        self, file: RangeReader, header: vhdx.Header, regions: vhdx.Regions, parameters: vhdx.Parameters
    ) -> None:
        self.file = file
        self.content_id = header.data_write_id
        self.disk_id = parameters.disk_id
        self.parent = vhdx_parent.read_locator(parameters)
        self.virtual_size = parameters.virtual_size
        self.sector = parameters.sector
        self.block = parameters.block
        self._shape = Shape(parameters.virtual_size, parameters.block, parameters.sector)
        self._taken = (regions.table, regions.metadata, header.log)
        self._table_at = regions.table.offset
        self._table_length = self._shape.entries(differencing=parameters.differencing) * ENTRY
        self._parts: OrderedDict[int, bytes] = OrderedDict()

    async def runs(self, offset: int, length: int) -> AsyncGenerator[Run, None]:
        """That range, which is inside the disk, in order and without gaps. Neighbours may be of one kind.

        `ImageRefused` at a block that cannot be: in a state that is not known, outside of the file, or over its tables. That
        no two blocks are in one place is not checked.
        """
        block, end = self._shape.block, offset + length
        number = offset // block
        while number * block < end:
            entries = await self._entries(number, -(-end // block))
            if not any(entries):
                start = max(number * block, offset)
                stop = min((number + len(entries)) * block, end)
                yield Run(start, stop - start, below=self.parent is not None)
                number += len(entries)
                continue
            for entry in entries:
                start, stop = max(number * block, offset), min((number + 1) * block, end)
                for run in await self._block_runs(number, entry, start, stop):
                    yield run
                number += 1

    async def _block_runs(self, number: int, entry: int, start: int, stop: int) -> Iterable[Run]:
        """From `start` to `stop` in the disk, which is in one block."""
        state = vhdx_table.state(entry)
        if state in (NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED):
            return [Run(start, stop - start, below=state == NOT_PRESENT and self.parent is not None)]
        if state != FULLY_PRESENT and (state != PARTIALLY_PRESENT or self.parent is None):
            raise refuse("vhdx-table", f"the VHDX has a block in state {state}, which cannot be", state=state)
        place = self._place(entry, self._shape.block)
        begin = number * self._shape.block
        if state == FULLY_PRESENT:
            return [Run(start, stop - start, place + start - begin)]
        return self._sector_runs(await self._bitmap(number), begin, place, start, stop)

    def _sector_runs(self, bitmap: bytes, begin: int, place: int, start: int, stop: int) -> Iterator[Run]:
        """From `start` to `stop` in the disk, in the block that begins there at `begin` and in the file at `place`."""
        first, last = (start - begin) // self.sector, -(-(stop - begin) // self.sector)
        for present, low, high in _bit_runs(bitmap, first, last):
            run_start, run_stop = max(begin + low * self.sector, start), min(begin + high * self.sector, stop)
            here = place + run_start - begin if present else None
            yield Run(run_start, run_stop - run_start, here, below=not present)

    async def _bitmap(self, number: int) -> bytes:
        """Of that block: a bit for each sector."""
        chunk, within = divmod(number, self._shape.ratio)
        index = self._shape.bitmap_entry(chunk)
        entry = (await self._window(index))[index % _WINDOW_ENTRIES]
        if vhdx_table.state(entry) != FULLY_PRESENT:
            raise refuse("vhdx-table", "the VHDX has a block that is there in part, and does not say which part")
        start = within * self._shape.block_bitmap
        window = start // _WINDOW * _WINDOW
        content = await self._kept(self._place(entry, BITMAP) + window, _WINDOW)
        return content[start - window :][: self._shape.block_bitmap]

    def _place(self, entry: int, length: int) -> int:
        """Where in the file a block of that length is."""
        place = vhdx_table.place(entry)
        if place < MiB or any(region.overlaps(place, length) for region in self._taken):
            raise refuse("vhdx-table", f"the VHDX has a block at {place}, where none can be", place=place)
        check_within("VHDX block", place + length, self.file.info.size)
        return place

    async def _entries(self, number: int, stop: int) -> array[int]:
        """The entries of that block and of those that follow it, up to `stop`, as far as they are next to one another and in
        one window."""
        index = self._shape.entry(number)
        within = index % _WINDOW_ENTRIES
        count = min(stop - number, self._shape.ratio - number % self._shape.ratio)
        return (await self._window(index))[within : within + count]

    async def _window(self, index: int) -> array[int]:
        """The part of the table that has that entry."""
        start = index // _WINDOW_ENTRIES * _WINDOW
        content = await self._kept(self._table_at + start, min(_WINDOW, self._table_length - start))
        entries = array("Q", content)
        if sys.byteorder == "big":
            entries.byteswap()
        return entries

    async def _kept(self, place: int, length: int) -> bytes:
        """A part of the file's table or bitmaps, in the same cuts each time. Those that were asked for last are kept."""
        content = self._parts.pop(place, None)
        if content is None:
            content = await self.file.read(place, length)
        self._parts[place] = content
        if len(self._parts) > _PARTS_KEPT:
            self._parts.popitem(last=False)
        return content


class VhdxDisk(RangeReader):
    """What a guest would read from the last of a chain of images. `disk_of` makes it.

    As constant as the files are, which must not be attached anywhere for writing meanwhile. Reads raise `ImageRefused`
    where an image's tables cannot be, and what reading its file raises.
    """

    def __init__(self, images: Sequence[VhdxImage]) -> None:
        *below, top = images
        self.info = replace(top.file.info, size=top.virtual_size, version=_version(images))
        self.parallel = top.file.parallel
        self.virtual_size = top.virtual_size
        self._image = top
        self._below = VhdxDisk(below) if below else None

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        self._check_inside(offset, len(buffer))
        async with aclosing(self._image.runs(offset, len(buffer))) as runs:
            async for run in runs:
                part = buffer[run.offset - offset :][: run.length]
                if run.place is not None:
                    await self._image.file.read_into(run.place, part)
                    continue
                inside = self._from_below(run)
                if self._below is not None and inside:
                    await self._below.read_into(run.offset, part[:inside])
                part[inside:] = bytes(run.length - inside)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """See `RangeReader`. Memory follows the number of extents: a range of a disk in many pieces is asked for in parts."""
        self._check_inside(offset, length)
        found: list[Extent] = []
        async with aclosing(self._image.runs(offset, length)) as runs:
            async for run in runs:
                inside = self._from_below(run)
                if self._below is not None and inside:
                    for extent in await self._below.extents(run.offset, inside):
                        _add(found, extent)
                if inside < run.length:
                    _add(found, Extent(run.offset + inside, run.length - inside, zero=run.place is None))
        return found

    def _from_below(self, run: Run) -> int:
        """How many bytes of the run the parent has. What it lacks of a child that is larger is zero."""
        if not run.below or self._below is None:
            return 0
        return max(0, min(run.length, self._below.virtual_size - run.offset))

    def _check_inside(self, offset: int, length: int) -> None:
        if offset + length > self.virtual_size:
            raise IntegrityError(
                f"the disk has {self.virtual_size} bytes, and byte {offset + length - 1} was asked for",
                needed=offset + length,
                seen=self.virtual_size,
            )


async def open_image(file: RangeReader, engine: TransferEngine) -> VhdxImage:
    """The VHDX in `file`, with its log replayed in memory if it was not closed. Reads headers, log and metadata.

    `ImageRefused` for an image that is damaged or hostile as far as these tell; blocks are looked at where they are read.
    Raises what `file` raises. Memory: the log, of which at most 4 MiB are taken, and what it wants written, which is about as
    much but where it is made up of nothing but descriptors: some tens of MiB.
    """
    size = known_size(file)
    headers = await file.read(0, min(vhdx.HEADERS, size))
    if not headers.startswith(vhdx.MAGIC):
        raise refuse("vhdx-header", "the file is no VHDX: it does not begin like one")
    header = vhdx.read_header(headers)
    if any(header.log_id):
        file = _Replayed(file, await _replayed(file, header, size, engine))
        headers = await file.read(0, vhdx.HEADERS)
    regions = vhdx.read_regions(headers, file.info.size)
    parameters = vhdx.read_parameters(await file.read(regions.metadata.offset, regions.metadata.length), regions)
    return VhdxImage(file, header, regions, parameters)


def disk_of(images: Sequence[VhdxImage]) -> VhdxDisk:
    """The disk of the last of them. Each but the first builds on the one before it, and that is checked.

    `ImageRefused` for a chain that is not whole, or has more than `LONGEST_CHAIN` images.
    """
    if len(images) > LONGEST_CHAIN:
        raise refuse(
            "vhdx-parent", f"{len(images)} VHDX build on one another: at most {LONGEST_CHAIN} are taken, merge some"
        )
    first, *others = images
    if first.parent is not None:
        raise refuse("vhdx-parent", "the VHDX is a differencing disk, and its parent is missing")
    for below, image in zip(images, others, strict=False):
        if image.parent is None or below.content_id not in image.parent.ids:
            raise refuse(
                "vhdx-parent",
                "a VHDX was made for another parent than this, or this one was written to since: find the right one",
            )
        if image.sector != below.sector:
            raise refuse("vhdx-parent", f"a VHDX with sectors of {image.sector} bytes has a parent with {below.sector}")
    return VhdxDisk(images)


class _Replayed(RangeReader):
    """A file as it is when its log is replayed, which it is not."""

    def __init__(self, file: RangeReader, overlay: Overlay) -> None:
        self.info = replace(file.info, size=overlay.size)
        self.parallel = file.parallel
        self._file = file
        self._size = known_size(file)
        self._overlay = overlay

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        inside = max(0, min(len(buffer), self._size - offset))
        if inside:
            await self._file.read_into(offset, buffer[:inside])
        buffer[inside:] = bytes(len(buffer) - inside)
        self._overlay.apply(offset, buffer)


async def _replayed(file: RangeReader, header: vhdx.Header, size: int, engine: TransferEngine) -> Overlay:
    log = header.log
    if log.offset % MiB or log.offset < MiB or log.length % MiB or not 0 < log.length <= LARGEST_LOG:
        raise refuse(
            "vhdx-log", f"the VHDX was not closed, and its log of {log.length} bytes at {log.offset} cannot be replayed"
        )
    check_within("VHDX log", log.offset + log.length, size)
    content = await file.read(log.offset, log.length)
    return await engine.run(vhdx_log.replayed, content, header.log_id, size)


def _bit_runs(bitmap: bytes, first: int, last: int) -> Iterator[tuple[bool, int, int]]:
    """Runs of set and of clear bits between `first` and `last`, the lowest bit of a byte first."""
    bits = f"{int.from_bytes(bitmap, 'little'):0{len(bitmap) * 8}b}"[::-1]
    for run in re.finditer("1+|0+", bits[first:last]):
        yield run[0][0] == "1", first + run.start(), first + run.end()


def _add(found: list[Extent], extent: Extent) -> None:
    if found and found[-1].zero == extent.zero:
        found[-1] = replace(found[-1], length=found[-1].length + extent.length)
    else:
        found.append(extent)


def _version(images: Sequence[VhdxImage]) -> str | None:
    """Another one if any of the files is."""
    versions = [image.file.info.version for image in images]
    return None if None in versions else "+".join(version for version in versions if version is not None)
