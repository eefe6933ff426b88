"""Snapshots of VDIs, and what changed between them.

A snapshot is a VDI of its own, which XAPI makes of the volume's. It is marked with its tag, and is a point as long as it is
there: what changed since comes as a differencing VHD, which XAPI makes of the two (`base=`). Where changed block tracking is
on, XAPI keeps of a deleted snapshot which blocks had changed: then the point outlives it, and these are read over NBD.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from uuid import uuid4

import structlog

from hypervisors.contract import ImageSpec, OperationUnsupported, Source, Written
from hypervisors.images.disk_image import DiskImage, vhd_delta_laid_out
from hypervisors.images.vhd_stream import BLOCK, Parent
from hypervisors.narrowing import as_managed
from hypervisors.snapshot_records import Kept
from hypervisors.snapshotting import Frozen, Snapshots
from hypervisors.xen.changed_blocks import changed_blocks
from hypervisors.xen.errors import XapiRefused
from hypervisors.xen.exporting import VhdExport, exported_vhd
from hypervisors.xen.importing import Importer, new_disk
from hypervisors.xen.marks import METADATA, TAG, Disk, Tagged
from hypervisors.xen.nbd import nbd_disk
from hypervisors.xen.pending import as_pending_vdi
from hypervisors.xen.pool import XenPool
from hypervisors.xen.repository import Repository
from hypervisors.xen.tasks import let_go
from hypervisors.xen.vdis import Vdi, find_vdi, host_of
from stores.contract import Extent, ManagedDisk, PendingWrite, Progress, RangeReader
from stores.errors import StoreUnsupported
from stores.to import ImageFormat
from stores.transfer.engine import TransferEngine

_log = structlog.get_logger(__name__)

MOST_POINTS = 16
"""Snapshots without content, of which only is known what had changed, that are kept for a volume."""


class XenSnapshots(Snapshots):
    backup_format = ImageFormat.VHD

    def __init__(self, engine: TransferEngine, pools: Sequence[XenPool], importer: Importer) -> None:
        self._engine = engine
        self._pools = pools
        self._importer = importer

    # ------------------------------------------------------------------------------------------------------ moments

    async def freeze(self, volume: Source, tag: str, points: Sequence[str], target: PendingWrite) -> Frozen:
        """Also of a disk that a running machine has: XAPI's snapshot is of one moment."""
        pending = as_pending_vdi(target)
        made = await pending.derive(as_managed(volume.presentation), frozen=True)
        vdi = await find_vdi(self._pools, made)
        mark = Tagged(tag=tag, of=volume.presentation.info.ref)
        await vdi.sr.add_key("VDI", vdi.disk.handle, TAG, mark.text())
        known = await self._tagged(vdi.sr, volume)
        since = tuple(point for point in points if point in known and point != tag)[-MOST_POINTS:]
        for point, disk in known.items():
            if disk.type == METADATA and point not in since:
                await vdi.sr.destroy(disk)
        return Frozen(Kept.FILE, since, tracked=True)

    async def require_idle(self, volume: Source) -> None:
        await (await self._vdi(volume)).require_idle()

    async def tags(self, volume: Source) -> frozenset[str]:
        return frozenset(await self._tagged((await self._vdi(volume)).sr, volume))

    async def settle(self, volume: Source, tag: str, points: Sequence[str]) -> None:
        """Nothing to do: a point is a VDI, which nobody writes to."""

    async def drop(self, volume: Source, tag: str) -> None:
        """Nothing to do: content is in a VDI of its own."""

    async def merge_point(self, volume: Source, tag: str, points: Sequence[str]) -> tuple[str, ...]:
        """Nothing to merge: what changed is told of any two."""
        known = await self.tags(volume)
        return tuple(point for point in points if point in known and point != tag)

    async def forget_point(self, volume: Source, tag: str) -> None:
        vdi = await self._vdi(volume)
        await self._forget(vdi.sr, (await self._tagged(vdi.sr, volume)).get(tag))

    async def forget_points(self, volume: Source) -> None:
        vdi = await self._vdi(volume)
        for disk in (await self._tagged(vdi.sr, volume)).values():
            await self._forget(vdi.sr, disk)

    async def rewind(self, volume: Source, tag: str) -> None:
        raise OperationUnsupported("snapshots of XenServer are disks of their own")

    async def duplicate(self, frozen: Source, target: PendingWrite) -> None:
        await as_pending_vdi(target).derive(as_managed(frozen.presentation), frozen=False)

    # ------------------------------------------------------------------------------------------------------ content

    @asynccontextmanager
    async def image(self, image: Source, tag: str | None, spec: ImageSpec) -> AsyncIterator[DiskImage]:
        if spec.format is not ImageFormat.VHD:
            raise OperationUnsupported(f"XAPI exports VHD, not {spec.format}", format=spec.format)
        vdi = await self._vdi(image)
        async with self._exported(vdi, None) as export:
            yield _image(export, vdi.disk.virtual_size)

    @asynccontextmanager
    async def delta(
        self, image: Source, tag: str | None, points: Sequence[str], virtual_size: int
    ) -> AsyncIterator[DiskImage | None]:
        vdi = await self._vdi(image)
        base = (await self._all_tagged(vdi.sr)).get(points[0])
        if base is None:
            yield None
        elif base.type == METADATA:
            async with self._changed(vdi, base) as made:
                yield made
        else:
            async with self._exported(vdi, base.uuid) as export:
                yield _image(export, vdi.disk.virtual_size)

    async def extract(
        self, image: Source, tag: str | None, target: PendingWrite, spec: ImageSpec, progress: Progress
    ) -> Written:
        made = await as_pending_vdi(target).derive(as_managed(image.presentation), frozen=False)
        return (await (await find_vdi(self._pools, made)).grown(spec.virtual_size)).written

    async def fill(self, disk: RangeReader, target: PendingWrite, spec: ImageSpec, progress: Progress) -> Written:
        pending, made = as_pending_vdi(target), list[ManagedDisk]()

        async def make(size: int) -> str:
            made.append(await pending.make(max(size, spec.virtual_size or 0)))
            return made[-1].id

        new = await new_disk(pending.sr, make)
        await self._importer.fill(disk, new, checksum=None, progress=progress)
        return (await find_vdi(self._pools, made[-1])).written

    async def plain(self, image: Source) -> bool:
        """There is no file."""
        return False

    # -------------------------------------------------------------------------------------------------------- steps

    async def _vdi(self, image: Source) -> Vdi:
        return await find_vdi(self._pools, as_managed(image.presentation))

    async def _tagged(self, sr: Repository, volume: Source) -> dict[str, Disk]:
        ref = volume.presentation.info.ref
        return await self._all_tagged(sr, ref)

    async def _all_tagged(self, sr: Repository, ref: str | None = None) -> dict[str, Disk]:
        """By tag, all of the SR's, or those of the volume `ref`."""
        found = {}
        for disk in await sr.disks():
            mark = disk.tagged
            if mark is not None and ref in (None, mark.of):
                found[mark.tag] = disk
        return found

    async def _forget(self, sr: Repository, disk: Disk | None) -> None:
        """A disk that still has content is a snapshot, and stays that."""
        if disk is None:
            return
        if disk.type == METADATA:
            await sr.destroy(disk)
        else:
            await sr.remove_keys("VDI", disk.handle, [TAG])

    @asynccontextmanager
    async def _exported(self, vdi: Vdi, base: str | None) -> AsyncIterator[VhdExport]:
        connection = await vdi.sr.pool.connection()
        host = await host_of(vdi.sr)
        async with exported_vhd(connection.streams, vdi.disk.uuid, base=base, engine=self._engine, host=host) as export:
            yield export
        await let_go(vdi.sr, vdi.disk)

    @asynccontextmanager
    async def _changed(self, vdi: Vdi, base: Disk) -> AsyncIterator[DiskImage | None]:
        """What changed since a snapshot whose content is gone: where changed block tracking knows it, and the disk can be read
        at random."""
        pool = vdi.sr.pool
        client = (await pool.connection()).client
        changed = await changed_blocks(client, base.handle, vdi.disk.handle)
        async with AsyncExitStack() as stack:
            disk = None
            if changed is not None:
                try:
                    disk = await stack.enter_async_context(nbd_disk(client, vdi.disk.handle, engine=self._engine))
                except (XapiRefused, StoreUnsupported) as error:
                    _log.warning(
                        "changes are known and cannot be read over nbd", vdi=vdi.disk.uuid, error=error.message
                    )
            if disk is None or changed is None:
                yield None
                return
            extents = [Extent(*part, zero=False) for part in await self._engine.run(list, changed)]
            below = Parent(uuid4(), f"{base.uuid}.vhd", datetime.fromtimestamp(pool.clock(), UTC))
            yield await vhd_delta_laid_out(self._engine, disk, vdi.disk.virtual_size, extents, below)


def _image(export: VhdExport, virtual_size: int) -> DiskImage:
    return DiskImage(export.stream, ImageFormat.VHD, virtual_size, BLOCK, lambda: export.summary.marked)
