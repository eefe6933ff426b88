"""Snapshots of all volumes of KVM: those that are files, and those that are devices. Which of the two an image is shows in the
form in which its store presents it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

from hypervisors.contract import ImageSpec, Source, Written
from hypervisors.images.disk_image import DiskImage
from hypervisors.images.sized import Sized
from hypervisors.kvm.device_snapshots import DeviceSnapshots
from hypervisors.kvm.snapshots import KvmSnapshots
from hypervisors.snapshotting import Frozen, Snapshots
from stores.contract import DEVICES, PendingWrite, Progress, RangeReader
from stores.to import ImageFormat
from stores.transfer.pieces import known_size


class VolumeSnapshots(Snapshots):
    backup_format = ImageFormat.QCOW2

    def __init__(self, files: KvmSnapshots, devices: DeviceSnapshots) -> None:
        self._files = files
        self._devices = devices

    async def freeze(self, volume: Source, tag: str, points: Sequence[str], target: PendingWrite) -> Frozen:
        return await self._of(volume).freeze(volume, tag, points, target)

    async def hold(self, volume: Source, tag: str, points: Sequence[str], since: str | None) -> Frozen | None:
        return await self._of(volume).hold(volume, tag, points, since)

    async def require_idle(self, volume: Source) -> None:
        await self._of(volume).require_idle(volume)

    async def tags(self, volume: Source) -> frozenset[str]:
        return await self._of(volume).tags(volume)

    async def settle(self, volume: Source, tag: str, points: Sequence[str]) -> None:
        await self._of(volume).settle(volume, tag, points)

    async def drop(self, volume: Source, tag: str) -> None:
        await self._of(volume).drop(volume, tag)

    async def merge_point(self, volume: Source, tag: str, points: Sequence[str]) -> tuple[str, ...]:
        return await self._of(volume).merge_point(volume, tag, points)

    async def forget_point(self, volume: Source, tag: str) -> None:
        await self._of(volume).forget_point(volume, tag)

    async def forget_points(self, volume: Source) -> None:
        await self._of(volume).forget_points(volume)

    async def rewind(self, volume: Source, tag: str) -> None:
        await self._of(volume).rewind(volume, tag)

    async def duplicate(self, frozen: Source, target: PendingWrite) -> None:
        await self._of(frozen).duplicate(frozen, target)

    def image(self, image: Source, tag: str | None, spec: ImageSpec) -> AbstractAsyncContextManager[DiskImage]:
        return self._of(image).image(image, tag, spec)

    def delta(
        self, image: Source, tag: str | None, points: Sequence[str], virtual_size: int
    ) -> AbstractAsyncContextManager[DiskImage | None]:
        return self._of(image).delta(image, tag, points, virtual_size)

    async def extract(
        self, image: Source, tag: str | None, target: PendingWrite, spec: ImageSpec, progress: Progress
    ) -> Written:
        """Also from one pool to another of another kind: then the disk is read."""
        of_image, of_target = self._of(image), self._filling(target)
        if of_image is of_target:
            return await of_image.extract(image, tag, target, spec, progress)
        async with of_image.disk(image, tag) as disk:
            size = known_size(disk)
            return await of_target.fill(Sized(disk, size, spec.virtual_size or size), target, spec, progress)

    async def fill(self, disk: RangeReader, target: PendingWrite, spec: ImageSpec, progress: Progress) -> Written:
        return await self._filling(target).fill(disk, target, spec, progress)

    async def plain(self, image: Source) -> bool:
        return await self._of(image).plain(image)

    def _of(self, image: Source) -> KvmSnapshots | DeviceSnapshots:
        return self._devices if image.presentation.kind in DEVICES else self._files

    def _filling(self, target: PendingWrite) -> KvmSnapshots | DeviceSnapshots:
        return self._devices if target.kind in DEVICES else self._files
