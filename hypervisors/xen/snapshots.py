"""Snapshots of VDIs, and what changed between them.

A snapshot is a VDI of its own, which XAPI makes of the volume's. It is marked with its tag, and is a point as long as it is
there: what changed since comes as a differencing VHD, which XAPI makes of the two (`base=`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from pydantic import BaseModel, ConfigDict, ValidationError

from hypervisors.contract import ImageSpec, OperationUnsupported, Source, Written
from hypervisors.images.disk_image import DiskImage
from hypervisors.images.vhd_stream import BLOCK
from hypervisors.narrowing import as_managed
from hypervisors.snapshot_records import Kept
from hypervisors.snapshotting import Frozen, Snapshots
from hypervisors.xen.exporting import VhdExport, exported_vhd
from hypervisors.xen.importing import Importer, NewDisk
from hypervisors.xen.marks import METADATA, OURS, Disk
from hypervisors.xen.pending import as_pending_vdi
from hypervisors.xen.pool import XenPool
from hypervisors.xen.repository import Repository
from hypervisors.xen.vdis import Vdi, find_vdi, host_of
from stores.contract import ManagedDisk, PendingWrite, Progress, RangeReader
from stores.to import ImageFormat
from stores.transfer.engine import TransferEngine

TAGGED = f"{OURS}tag"
"""Key of the `Tagged` mark (`hypervisors.xen.marks`)."""


class Tagged(BaseModel):
    """`of`: the ref of the volume that it is a snapshot of."""

    model_config = ConfigDict(frozen=True)

    tag: str
    of: str


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
        await vdi.sr.add_key("VDI", vdi.disk.handle, TAGGED, mark.model_dump_json())
        known = await self._tagged(vdi.sr, volume)
        return Frozen(Kept.FILE, tuple(point for point in points if point in known and point != tag), tracked=True)

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
        if base is None or base.type == METADATA:
            yield None
            return
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

        connection = await pending.sr.pool.connection()
        new = NewDisk(connection.streams, make, await host_of(pending.sr))
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
            mark = tagged(disk)
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
            await sr.remove_keys("VDI", disk.handle, [TAGGED])

    @asynccontextmanager
    async def _exported(self, vdi: Vdi, base: str | None) -> AsyncIterator[VhdExport]:
        connection = await vdi.sr.pool.connection()
        host = await host_of(vdi.sr)
        async with exported_vhd(connection.streams, vdi.disk.uuid, base=base, engine=self._engine, host=host) as export:
            yield export


def tagged(disk: Disk) -> Tagged | None:
    """What it is a snapshot of; what came with a copy of it does not count."""
    try:
        return Tagged.model_validate_json(disk.config[TAGGED]) if disk.own else None
    except (KeyError, ValidationError):
        return None


def _image(export: VhdExport, virtual_size: int) -> DiskImage:
    return DiskImage(export.stream, ImageFormat.VHD, virtual_size, BLOCK, lambda: export.summary.marked)
