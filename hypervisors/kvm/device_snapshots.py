"""Snapshots of KVM's volumes that are no files.

Where the storage keeps snapshots inside of its images, one is both the content of that moment and a point, for as long as it is
there: what changed between two is asked of the storage. Else a snapshot is a disk of its own, which shares blocks with the
volume where the storage can do that, and of which nobody knows what changed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from hypervisors.contract import ImageLocked, ImageSpec, Source, Written
from hypervisors.images.disk_image import DiskImage, delta_laid_out, laid_out
from hypervisors.kvm.devices import KvmDevices
from hypervisors.narrowing import as_device, as_pending_device
from hypervisors.nbd.client import connect
from hypervisors.qemu.exports import exported
from hypervisors.snapshot_records import TAG, Kept
from hypervisors.snapshotting import Frozen, Snapshots
from stores.contract import PendingImage, PendingWrite, Progress, RangeReader, Silent
from stores.errors import StoreUnsupported
from stores.to import ImageFormat
from stores.tools.process import ToolRunner
from stores.transfer.engine import TransferEngine

MOST_POINTS = 4
"""That count for backups to come. A point whose snapshot was deleted holds the blocks of its moment until it is given up."""


_AS_IT_IS = ImageSpec(ImageFormat.RAW)


class DeviceSnapshots(Snapshots):
    backup_format = ImageFormat.QCOW2

    def __init__(self, engine: TransferEngine, devices: KvmDevices, runner: ToolRunner, runtime_dir: Path) -> None:
        """Sockets of exports live below `runtime_dir`."""
        self._engine = engine
        self._devices = devices
        self._runner = runner
        self._runtime_dir = runtime_dir

    # ------------------------------------------------------------------------------------------------------ moments

    async def freeze(self, volume: Source, tag: str, points: Sequence[str], target: PendingWrite) -> Frozen:
        await self.require_idle(volume)
        storage = as_device(volume.presentation).storage
        if not storage.snapshots:
            await self._duplicate(volume, None, as_pending_device(target), Silent())
            return Frozen(Kept.FILE, since=(), tracked=False)
        known = await storage.tags()
        await storage.freeze(tag)
        since = tuple(point for point in points if point in known and point != tag)[-(MOST_POINTS - 1) :]
        return Frozen(Kept.INSIDE, since, tracked=True)

    async def require_idle(self, volume: Source) -> None:
        image = as_device(volume.presentation)
        if await image.storage.in_use():
            raise ImageLocked(
                f"somebody has {image.info.ref} open for writing, its virtual machine perhaps: stop it, or wait",
                ref=image.info.ref,
            )

    async def tags(self, volume: Source) -> frozenset[str]:
        found = await as_device(volume.presentation).storage.tags()
        return frozenset(tag for tag in found if tag.startswith(TAG))

    async def settle(self, volume: Source, tag: str, points: Sequence[str]) -> None:
        """Nothing to do: a point is a snapshot, which nobody writes to."""

    async def drop(self, volume: Source, tag: str) -> None:
        """Nothing to do: the content goes with the point."""

    async def merge_point(self, volume: Source, tag: str, points: Sequence[str]) -> tuple[str, ...]:
        """Nothing to merge: what changed is told of any two."""
        known = await self.tags(volume)
        return tuple(point for point in points if point in known and point != tag)

    async def forget_point(self, volume: Source, tag: str) -> None:
        if tag in await self.tags(volume):
            await as_device(volume.presentation).storage.forget(tag)

    async def forget_points(self, volume: Source) -> None:
        for tag in await self.tags(volume):
            await as_device(volume.presentation).storage.forget(tag)

    async def rewind(self, volume: Source, tag: str) -> None:
        await as_device(volume.presentation).storage.rewind(tag)

    async def duplicate(self, frozen: Source, target: PendingWrite) -> None:
        await self._duplicate(frozen, None, as_pending_device(target), Silent())

    # ------------------------------------------------------------------------------------------------------ content

    @asynccontextmanager
    async def image(self, image: Source, tag: str | None, spec: ImageSpec) -> AsyncIterator[DiskImage]:
        async with self.disk(image, tag) as disk:
            yield await laid_out(self._engine, disk, spec.format or self.backup_format)

    @asynccontextmanager
    async def delta(
        self, image: Source, tag: str | None, points: Sequence[str], virtual_size: int
    ) -> AsyncIterator[DiskImage | None]:
        storage = as_device(image.presentation).storage
        if points[0] not in await storage.tags():
            yield None
            return
        changed = await storage.changed(points[0], tag)
        async with self.disk(image, tag) as disk:
            yield await delta_laid_out(self._engine, disk, virtual_size, changed)

    async def extract(
        self, image: Source, tag: str | None, target: PendingWrite, spec: ImageSpec, progress: Progress
    ) -> Written:
        return await self._duplicate(image, tag, as_pending_device(target), progress, spec)

    async def fill(self, disk: RangeReader, target: PendingWrite, spec: ImageSpec, progress: Progress) -> Written:
        return await self._devices.fill(disk, as_pending_device(target), spec, progress)

    async def plain(self, image: Source) -> bool:
        """There is no file."""
        return False

    @asynccontextmanager
    async def disk(self, image: Source, tag: str | None = None) -> AsyncIterator[RangeReader]:
        """The disk with its extents; of its snapshot `tag` if that is given."""
        async with (
            exported(self._runner, _at(image, tag), runtime_dir=self._runtime_dir) as (socket, export),
            connect(socket, export, engine=self._engine) as disk,
        ):
            yield disk

    # -------------------------------------------------------------------------------------------------------- steps

    async def _duplicate(
        self,
        image: Source,
        tag: str | None,
        target: PendingImage,
        progress: Progress,
        spec: ImageSpec = _AS_IT_IS,
    ) -> Written:
        """By the storage, which lets both share their blocks, or byte by byte."""
        try:
            made = await target.derive(as_device(image.presentation), tag)
        except StoreUnsupported:
            return await self._devices.copy(_at(image, tag), target, spec, progress)
        return await self._devices.grown(made, spec)


def _at(image: Source, tag: str | None) -> Source:
    """The image as it is, or was at its snapshot `tag`. Of parents on devices qemu knows nothing."""
    presentation = as_device(image.presentation)
    return replace(image, presentation=presentation if tag is None else presentation.storage.frozen(tag), backing=())
