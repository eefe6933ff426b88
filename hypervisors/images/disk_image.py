"""A disk as an image on its way to a store: laid out before its data are read, or as a hypervisor gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

from hypervisors.contract import OperationUnsupported
from hypervisors.images import qcow2_stream, vhd_stream, vhdx_stream
from hypervisors.images.pieces import ImageLayout
from hypervisors.images.streaming import LayoutReader
from stores.contract import ByteStream, Extent, KiB, RangeReader
from stores.to import ImageFormat
from stores.transfer.engine import TransferEngine
from stores.transfer.pieces import known_size

CLUSTER = 64 * KiB
"""Of the qcow2 images that we lay out."""

WRITTEN = (ImageFormat.QCOW2, ImageFormat.VHD, ImageFormat.VHDX, ImageFormat.RAW)
"""What `laid_out` can make."""


@dataclass(frozen=True, slots=True)
class DiskImage:
    """All of a disk of `virtual_size` bytes, or what changed of it.

    `cluster`: the image's granularity in bytes, 1 for a raw one. `changed`: how many bytes of the disk it says something about;
    known once all of `content` was read.
    """

    content: RangeReader | ByteStream
    format: ImageFormat
    virtual_size: int
    cluster: int
    changed: Callable[[], int]


async def laid_out(
    engine: TransferEngine, disk: RangeReader, image_format: ImageFormat, *, sector: int = 512
) -> DiskImage:
    """All of the disk. `sector`: its logical sectors, in bytes, which VHDX alone tells. `OperationUnsupported` for a format
    that is not `WRITTEN`."""
    size = known_size(disk)
    extents = await disk.extents(0, size)
    changed = sum(extent.length for extent in extents if not extent.zero)
    match image_format:
        case ImageFormat.RAW:
            return DiskImage(disk, image_format, size, 1, lambda: changed)
        case ImageFormat.QCOW2:
            layout: ImageLayout = await engine.run(partial(qcow2_stream.layout, size, extents, cluster=CLUSTER))
            return _read_from(engine, disk, layout, image_format, size, CLUSTER, changed)
        case ImageFormat.VHD:
            layout = await engine.run(partial(vhd_stream.layout, size, extents, unique_id=uuid4()))
            return _read_from(engine, disk, layout, image_format, size, vhd_stream.BLOCK, changed)
        case ImageFormat.VHDX:
            identity, block = vhdx_stream.Identity(uuid4(), uuid4(), uuid4()), vhdx_stream.block_for(size)
            making = partial(vhdx_stream.layout, size, extents, identity=identity, block=block, sector=sector)
            layout = await engine.run(making)
            return _read_from(engine, disk, layout, image_format, size, block, changed)
    raise OperationUnsupported(
        f"a disk is sent as {', '.join(WRITTEN)}, not as {image_format}", format=image_format.value
    )


async def delta_laid_out(
    engine: TransferEngine, disk: RangeReader, size: int, changed: Iterable[tuple[int, int]]
) -> DiskImage:
    """What a disk of `size` bytes has in the ranges (offset, length) that have changed, in order, as a qcow2 image that says
    nothing of the rest."""
    inside = [(offset, min(length, size - offset)) for offset, length in changed if offset < size]
    extents = [extent for offset, length in inside for extent in await disk.extents(offset, length)]
    layout = await engine.run(partial(qcow2_stream.layout, size, extents, cluster=CLUSTER, delta=True))
    return _read_from(engine, disk, layout, ImageFormat.QCOW2, size, CLUSTER, sum(extent.length for extent in extents))


async def vhd_delta_laid_out(
    engine: TransferEngine, disk: RangeReader, size: int, extents: Sequence[Extent], parent: vhd_stream.Parent
) -> DiskImage:
    """What `extents` of the disk hold, as a differencing VHD."""
    layout = await engine.run(partial(vhd_stream.layout, size, extents, unique_id=uuid4(), parent=parent))
    changed = sum(extent.length for extent in extents)
    return _read_from(engine, disk, layout, ImageFormat.VHD, size, vhd_stream.BLOCK, changed)


def _read_from(
    engine: TransferEngine,
    disk: RangeReader,
    layout: ImageLayout,
    image_format: ImageFormat,
    size: int,
    cluster: int,
    changed: int,
) -> DiskImage:
    content = LayoutReader(layout, disk, engine.network.of(disk))
    return DiskImage(content, image_format, size, cluster, lambda: changed)
