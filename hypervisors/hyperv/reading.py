"""What is brought into a pool, as a disk that is read at random, with what of it is not zero.

| the source comes as | and is read |
| --- | --- |
| ranges of a VHDX or a VHD | by our own readers |
| ranges of plain bytes | twice, where nobody knows what is zero: once to find that out |
| ranges of a QCOW2, a file, the bridge's NBD export | as its disk (`hypervisors.qemu.disks`) |
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from hypervisors.contract import OperationUnsupported, Source
from hypervisors.hyperv.pending import SECTOR
from hypervisors.hyperv.place import as_host_file
from hypervisors.images.mapped import MappedDisk
from hypervisors.images.overlay import Layer
from hypervisors.images.sized import Sized
from hypervisors.images.vhd_map import read_map
from hypervisors.images.vhdx_reading import VhdxDisk, VhdxImage, disk_of, open_image
from hypervisors.qemu.disks import ForeignDisks
from hypervisors.qemu.nodes import known_format
from stores.contract import Extent, Progress, RangeReader
from stores.errors import TooLarge
from stores.to import ImageFormat
from stores.tools.process import ToolRunner
from stores.transfer.engine import TransferEngine
from stores.transfer.pieces import known_size
from stores.transfer.placed import data_runs

_PLAIN = frozenset({ImageFormat.RAW, ImageFormat.ISO})


@dataclass(frozen=True, slots=True)
class Content:
    """A disk, and what of it is not zero, in order. `sector`: its logical sectors."""

    disk: RangeReader
    extents: Sequence[Extent]
    sector: int = SECTOR

    @property
    def size(self) -> int:
        return known_size(self.disk)

    def sized(self, size: int) -> Content:
        """Made longer."""
        return self if size <= self.size else Content(Sized(self.disk, self.size, size), self.extents, self.sector)


class Reading:
    def __init__(self, engine: TransferEngine, tools: ToolRunner, runtime_dir: Path, *, limit: int) -> None:
        """Sockets of exports live below `runtime_dir`. `limit`: the most bytes that a disk may have."""
        self._engine = engine
        self._disks = ForeignDisks(engine, tools, runtime_dir)
        self._limit = limit

    @asynccontextmanager
    async def foreign(self, source: Source, progress: Progress) -> AsyncIterator[Content]:
        """Of an image that the gate has let pass, not compressed. `ImageRefused` for one whose tables cannot be, `TooLarge`,
        `OperationUnsupported`; otherwise what the source and qemu-nbd raise."""
        given, image_format = source.presentation, known_format(source)
        async with AsyncExitStack() as stack:
            sector = SECTOR
            if not isinstance(given, RangeReader) or image_format is ImageFormat.QCOW2:
                disk = await stack.enter_async_context(self._disks.opened(source))
            elif image_format is ImageFormat.VHDX:
                image = await open_image(given, self._engine)
                disk, sector = disk_of([image]), image.sector
            elif image_format is ImageFormat.VHD:
                found = await read_map(given, self._engine, whole=False)
                layer = Layer(found.virtual_size, found.runs())
                disk = await self._engine.run(MappedDisk, given, layer, self._engine.network.of(given))
            elif image_format in _PLAIN:
                disk = given
            else:
                raise OperationUnsupported(
                    f"a {image_format} image is read by qemu, not as ranges", ref=given.info.ref, format=image_format
                )
            yield await self._content(disk, sector, progress, plain=image_format in _PLAIN)

    @asynccontextmanager
    async def own(self, image: Source, above: Sequence[str] = ()) -> AsyncIterator[Content]:
        """Of a disk of a pool, which nobody writes to, with the parents that are recorded of it; `above`: files of the pool
        that build on it, the nearest first, with what was written since."""
        top = as_host_file(image.presentation)
        files = [await top.place.share.stat(name) for name in reversed(above)]
        async with AsyncExitStack() as stack:
            images: list[VhdxImage] = []

            async def opened(reading: RangeReader) -> bool:
                """Whether there is one below it."""
                images.insert(0, await open_image(reading, self._engine))
                return images[0].parent is not None

            more = True
            for info in files:
                more = await opened(await stack.enter_async_context(top.place.read(info)))
            for part in (image, *image.backing):
                if more:
                    file = as_host_file(part.presentation)
                    more = await opened(await stack.enter_async_context(file.opened()))
            disk: VhdxDisk = disk_of(images)
            yield Content(disk, await disk.extents(0, disk.virtual_size), images[-1].sector)

    async def _content(self, disk: RangeReader, sector: int, progress: Progress, *, plain: bool) -> Content:
        size = known_size(disk)
        if size > self._limit:
            raise TooLarge(
                f"the disk has {size} bytes, and at most {self._limit} are taken", limit=self._limit, seen=size
            )
        extents = await disk.extents(0, size)
        if plain and not any(extent.zero for extent in extents):
            extents = await self._looked_at(disk, progress)
        return Content(Sized(disk, size, -(-size // sector) * sector), extents, sector)

    async def _looked_at(self, disk: RangeReader, progress: Progress) -> list[Extent]:
        """By reading all of it."""
        progress.phase("measure", disk.info.size)
        found: list[Extent] = []
        async with aclosing(self._engine.placed(disk)) as placed:
            async for piece, data in placed:
                if data is not None:
                    for start, stop in await self._engine.run(_runs, data, piece.offset):
                        _add(found, piece.offset + start, stop - start)
                progress.advance(piece.length)
        return found


def _runs(data: memoryview, offset: int) -> list[tuple[int, int]]:
    return list(data_runs(data, offset))


def _add(found: list[Extent], offset: int, length: int) -> None:
    if found and found[-1].offset + found[-1].length == offset:
        offset, length = found[-1].offset, found[-1].length + length
        found.pop()
    found.append(Extent(offset, length, zero=False))
