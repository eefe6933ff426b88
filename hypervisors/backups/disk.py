"""The disk that a chain of backups holds, readable at random, whatever hypervisor it came from or goes to.

The maps of all objects are read first, and checked: each object is wholly laid out as our own writer does it, or refused
(`hypervisors.images.qcow2_readback`). After that nothing but data is read, and only what no newer object hides.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from hypervisors.backups.chain import Link
from hypervisors.backups.manifest import BrokenChain, Manifest
from hypervisors.context import Context
from hypervisors.contract import ImageRefused
from hypervisors.images import vhdx_map
from hypervisors.images.overlay import Layer, Overlay, Part
from hypervisors.images.parsing import refuse
from hypervisors.images.qcow2_readback import read_layout
from hypervisors.images.vhd_map import VhdMap, read_map
from hypervisors.narrowing import as_reader
from stores.contract import DataStore, Extent, Kind, ObjectInfo, RangeReader
from stores.to import ImageFormat
from stores.transfer.engine import TransferEngine
from stores.transfer.groups import first_failure


class ChainDisk(RangeReader):
    """What a guest would see. Beyond the newest image's end it is zero."""

    def __init__(self, ref: str, size: int, overlay: Overlay, readers: Sequence[RangeReader]) -> None:
        """`readers`: of the objects, newest first."""
        self.info = ObjectInfo(ref, size)
        self.parallel = readers[0].parallel
        self._overlay = overlay
        self._readers = readers

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        end = offset
        reads: list[list[Part]] = []
        for part in self._overlay.parts(offset, offset + len(buffer)):
            buffer[end - offset : part.offset - offset] = bytes(part.offset - end)
            end = part.end
            _add(reads, part)
        buffer[end - offset :] = bytes(offset + len(buffer) - end)
        with first_failure():
            async with asyncio.TaskGroup() as group:
                for parts in reads:
                    group.create_task(self._fill(offset, buffer, parts))

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        return list(_extents(self._overlay.parts(offset, offset + length), offset, offset + length))

    async def _fill(self, offset: int, buffer: memoryview, parts: Sequence[Part]) -> None:
        """With parts that follow one another in their object: one read for all."""
        reader, host = self._readers[parts[0].layer], parts[0].host or 0
        if len(parts) == 1:
            start = parts[0].offset - offset
            await reader.read_into(host, buffer[start : start + parts[0].length])
            return
        content = memoryview(await reader.read(host, sum(part.length for part in parts)))
        for part in parts:
            start = part.offset - offset
            buffer[start : start + part.length] = content[: part.length]
            content = content[part.length :]


def _add(reads: list[list[Part]], part: Part) -> None:
    """To the last read of the same object, if it goes on there."""
    for parts in reversed(reads):
        if parts[0].layer == part.layer:
            last = parts[-1]
            if (last.host or 0) + last.length == part.host:
                parts.append(part)
                return
            break
    reads.append([part])


def _extents(parts: Iterator[Part], offset: int, end: int) -> Iterator[Extent]:
    for part in parts:
        if part.offset > offset:
            yield Extent(offset, part.offset - offset, zero=True)
        yield Extent(part.offset, part.length, zero=False)
        offset = part.end
    if offset < end:
        yield Extent(offset, end - offset, zero=True)


@asynccontextmanager
async def chain_disk(
    ctx: Context, store: DataStore, links: Sequence[Link], size: int | None = None
) -> AsyncIterator[ChainDisk]:
    """The disk of a chain, newest link first, until the context ends; of `size` bytes, or as large as it was.
    `BrokenChain` for an object that is not laid out as ours are."""
    async with AsyncExitStack() as stack:
        readers, layers = [], []
        for link in links:
            opened = ctx.resolver.open(store, link.info, (Kind.RANGE_READER,))
            reader = as_reader(await stack.enter_async_context(opened))
            layers.append(await _layer(link, reader, ctx.engine))
            readers.append(reader)
        newest = links[0].manifest
        length = size or newest.virtual_size
        overlay = await ctx.engine.run(Overlay, layers, length)
        yield ChainDisk(newest.ref, length, overlay, readers)


async def _layer(link: Link, reader: RangeReader, engine: TransferEngine) -> Layer:
    manifest = link.manifest
    try:
        found = await _mapped(manifest, reader, engine)
    except ImageRefused as error:
        raise BrokenChain(
            f"the object {manifest.content.ref} of backup {manifest.ref} is damaged: {error.message}; use a backup that does"
            " not need it",
            ref=manifest.ref,
            rule=error.details.get("rule"),
        ) from error
    if found is None:
        raise BrokenChain(
            f"the object {manifest.content.ref} of backup {manifest.ref} is of another disk: use a backup that does not"
            " need it",
            ref=manifest.ref,
        )
    return found


async def _mapped(manifest: Manifest, reader: RangeReader, engine: TransferEngine) -> Layer | None:
    """What the object maps; None where it is not of the disk that the manifest says. `ImageRefused`."""
    match manifest.format:
        case ImageFormat.QCOW2:
            layout = await read_layout(reader, engine)
            same = (layout.virtual_size, layout.cluster) == (manifest.virtual_size, manifest.cluster_size)
            return Layer(layout.virtual_size, layout.runs()) if same else None
        case ImageFormat.VHD:
            vhd = await _vhd_map(manifest, reader, engine)
            same = vhd.virtual_size == manifest.virtual_size and (vhd.parent_id is None) == (manifest.parent is None)
            return Layer(vhd.virtual_size, vhd.runs()) if same else None
        case ImageFormat.VHDX:
            vhdx = await vhdx_map.read_map(reader, engine)
            same = (vhdx.virtual_size, vhdx.block) == (manifest.virtual_size, manifest.cluster_size)
            return Layer(vhdx.virtual_size, vhdx.runs()) if same and manifest.parent is None else None
    raise refuse("format", f"backups are QCOW2, VHD or VHDX objects, not {manifest.format}")


async def _vhd_map(manifest: Manifest, reader: RangeReader, engine: TransferEngine) -> VhdMap:
    """The bitmaps of its blocks, a small read for each, are looked at only if some sectors of them are not there: if they are
    more than the manifest says."""
    found = await read_map(reader, engine, whole=True)
    if sum(run.length for run in found.runs()) == manifest.changed:
        return found
    return await read_map(reader, engine, whole=False)
