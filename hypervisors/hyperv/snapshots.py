"""Snapshots of disks that are VHDX files: copies, which the server of the share makes by itself.

What changed between two of them is not known: backups are whole. Hyper-V tracks changes too (RCT), but that we read them
right could not be proved without a host.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from hypervisors.contract import ImageSpec, OperationUnsupported, Source, Written
from hypervisors.hyperv import machines
from hypervisors.hyperv.pending import PendingVhdx, as_pending_vhdx
from hypervisors.hyperv.place import as_host_file
from hypervisors.hyperv.reading import Content, Reading
from hypervisors.images.disk_image import DiskImage, laid_out
from hypervisors.snapshot_records import Kept
from hypervisors.snapshotting import Frozen, Snapshots
from stores.contract import PendingWrite, Progress, RangeReader
from stores.to import ImageFormat
from stores.transfer.engine import TransferEngine
from stores.transfer.pieces import known_size


class HypervSnapshots(Snapshots):
    backup_format = ImageFormat.VHDX

    def __init__(self, engine: TransferEngine, reading: Reading) -> None:
        self._engine = engine
        self._reading = reading

    # ------------------------------------------------------------------------------------------------------ moments

    async def freeze(self, volume: Source, tag: str, points: Sequence[str], target: PendingWrite) -> Frozen:
        """Also of a disk that a running machine has, by way of a checkpoint. What is in files above it goes through here."""
        pending, disk = as_pending_vhdx(target), as_host_file(volume.presentation)
        async with machines.still(disk, tag) as above:
            # What the host has just merged into the file is newer than what was known of it.
            info = replace(await disk.place.file(disk.info.ref), ref=disk.info.ref)
            if above:
                now = Source(disk.as_of(info), volume.spec, volume.backing)
                async with self._reading.own(now, above) as content:
                    await pending.fill(content.disk, content.extents, sector=content.sector)
            else:
                await pending.copy(info)
        return Frozen(Kept.FILE, since=(), tracked=False)

    async def require_idle(self, volume: Source) -> None:
        await machines.require_idle(as_host_file(volume.presentation))

    async def tags(self, volume: Source) -> frozenset[str]:
        """Checkpoints that are left of snapshots whose making was interrupted."""
        return await machines.tags(as_host_file(volume.presentation))

    async def settle(self, volume: Source, tag: str, points: Sequence[str]) -> None:
        """Nothing to do: the checkpoint was gone before there was a snapshot."""

    async def drop(self, volume: Source, tag: str) -> None:
        await machines.remove(as_host_file(volume.presentation), tag)

    async def merge_point(self, volume: Source, tag: str, points: Sequence[str]) -> tuple[str, ...]:
        """There are none."""
        return ()

    async def forget_point(self, volume: Source, tag: str) -> None:
        """There are none."""

    async def forget_points(self, volume: Source) -> None:
        """There are none."""

    async def rewind(self, volume: Source, tag: str) -> None:
        raise OperationUnsupported("snapshots of Hyper-V's disks are files of their own")

    async def duplicate(self, frozen: Source, target: PendingWrite) -> None:
        await as_pending_vhdx(target).copy(frozen.presentation.info)

    # ------------------------------------------------------------------------------------------------------ content

    @asynccontextmanager
    async def image(self, image: Source, tag: str | None, spec: ImageSpec) -> AsyncIterator[DiskImage]:
        async with self._reading.own(image) as content:
            yield await laid_out(self._engine, content.disk, spec.format or ImageFormat.VHDX, sector=content.sector)

    @asynccontextmanager
    async def delta(
        self, image: Source, tag: str | None, points: Sequence[str], virtual_size: int
    ) -> AsyncIterator[DiskImage | None]:
        yield None

    async def extract(
        self, image: Source, tag: str | None, target: PendingWrite, spec: ImageSpec, progress: Progress
    ) -> Written:
        async with self._reading.own(image) as content:
            return await filled(as_pending_vhdx(target), content, spec, progress)

    async def fill(self, disk: RangeReader, target: PendingWrite, spec: ImageSpec, progress: Progress) -> Written:
        content = Content(disk, await disk.extents(0, known_size(disk)))
        return await filled(as_pending_vhdx(target), content, spec, progress)

    async def plain(self, image: Source) -> bool:
        """There is no file of this host."""
        return False


async def filled(pending: PendingVhdx, content: Content, spec: ImageSpec, progress: Progress) -> Written:
    """Made longer if it shall be larger."""
    wanted = content.sized(spec.virtual_size or 0)
    progress.phase("transfer", wanted.size)
    await pending.fill(wanted.disk, wanted.extents, sector=wanted.sector, progress=progress)
    return Written(ImageFormat.VHDX, wanted.size, pending.size)
