"""READ THIRD. What a hypervisor's handler does for snapshots and backups, as far as it is peculiar to the hypervisor.

Tags name snapshots and points (`hypervisors.snapshot_records`): KVM has them as internal snapshots and dirty bitmaps of a qcow2
file, or leaves them to the storage, XenServer has VDIs and their changed blocks, Hyper-V checkpoints. Volumes that a guest has
open are `ImageLocked`, but for those of KVM's machines, of which snapshots are made and forgotten while they run. Every method
is idempotent, so that a recovery can repeat it, and may be cancelled.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import ClassVar

from hypervisors.contract import ImageSpec, Source, Written
from hypervisors.images.disk_image import DiskImage
from hypervisors.snapshot_records import Kept
from stores.contract import PendingWrite, Progress, RangeReader
from stores.to import ImageFormat


@dataclass(frozen=True, slots=True)
class Frozen:
    """`since`: the points from which on changes up to this snapshot are known, oldest first. `tracked`: whether those after it
    will be."""

    kept: Kept
    since: tuple[str, ...]
    tracked: bool


class Snapshots(abc.ABC):
    """Of volumes, which come with their parents from our own records."""

    backup_format: ClassVar[ImageFormat]
    """Of the objects that backups are."""

    @abc.abstractmethod
    async def freeze(self, volume: Source, tag: str, points: Sequence[str], target: PendingWrite) -> Frozen:
        """The volume as it is now, as snapshot `tag`: as the content of `target` (`Kept.FILE`), which the caller then commits,
        or inside the volume. From now on changes are tracked under `tag`, where that can be. `points` are those that are
        said to be tracked; the ones that really are come back, and the others are given up."""

    async def hold(self, volume: Source, tag: str, points: Sequence[str], since: str | None) -> Frozen | None:
        """As `freeze`, of what is read at once and then dropped: held without a copy by the machine that has the volume open
        (`Kept.HELD`), and lost if that stops. What changed is told from the point `since` alone. None where no machine does
        that, and it is to be frozen."""
        return None

    @abc.abstractmethod
    async def require_idle(self, volume: Source) -> None:
        """`ImageLocked` while a guest has it open."""

    @abc.abstractmethod
    async def tags(self, volume: Source) -> frozenset[str]:
        """All tags of ours that the volume knows, of snapshots inside it and of points."""

    @abc.abstractmethod
    async def settle(self, volume: Source, tag: str, points: Sequence[str]) -> None:
        """The snapshot `tag` exists: what is written from now on need not count for the earlier `points` any more."""

    @abc.abstractmethod
    async def drop(self, volume: Source, tag: str) -> None:
        """The volume holds no content of snapshot `tag` any more."""

    @abc.abstractmethod
    async def merge_point(self, volume: Source, tag: str, points: Sequence[str]) -> tuple[str, ...]:
        """What was and will be tracked under `tag` counts for the point before it in `points` as well, if there is one. Returns
        the others, as far as they are tracked: `tag` is not needed any more, once that is remembered."""

    @abc.abstractmethod
    async def forget_point(self, volume: Source, tag: str) -> None:
        """Nothing is tracked under `tag` any more. Only after `merge_point`, and after its outcome was remembered: a point that
        is missing without that makes all earlier ones useless."""

    @abc.abstractmethod
    async def forget_points(self, volume: Source) -> None:
        """Nothing is tracked any more: what comes now would make it wrong."""

    @abc.abstractmethod
    async def rewind(self, volume: Source, tag: str) -> None:
        """The volume's content is that of snapshot `tag`, which is inside it and stays. All points are forgotten."""

    @abc.abstractmethod
    async def duplicate(self, frozen: Source, target: PendingWrite) -> None:
        """The volume that a file of its own holds as it was, as the content of `target`."""

    @abc.abstractmethod
    def image(self, image: Source, tag: str | None, spec: ImageSpec) -> AbstractAsyncContextManager[DiskImage]:
        """The disk as a guest would see it, parents included, as an image of `spec.format` to be sent; of the snapshot `tag`
        inside the image if it is given. Nobody may write to the image meanwhile."""

    @abc.abstractmethod
    def delta(
        self, image: Source, tag: str | None, points: Sequence[str], virtual_size: int
    ) -> AbstractAsyncContextManager[DiskImage | None]:
        """What changed in a disk of `virtual_size` bytes since the first of `points`, by what is tracked from each of them to
        the next, in the hypervisor's own format for backups. Perhaps more than changed, never less; None where that cannot be
        told any more."""

    @abc.abstractmethod
    async def extract(
        self, image: Source, tag: str | None, target: PendingWrite, spec: ImageSpec, progress: Progress
    ) -> Written:
        """The disk as a guest would see it, of the snapshot `tag` inside the image if it is given, as an image of its own in
        `target`, grown to `spec.virtual_size`; the caller commits."""

    @abc.abstractmethod
    async def fill(self, disk: RangeReader, target: PendingWrite, spec: ImageSpec, progress: Progress) -> Written:
        """The content of `disk`, as a guest sees it, as an image of that format in `target`; the caller commits. What `disk`
        says is zero is not read, and takes no room."""

    @abc.abstractmethod
    async def plain(self, image: Source) -> bool:
        """Whether the image's file is nothing but its present content: no parents, no snapshots, nothing tracked."""
