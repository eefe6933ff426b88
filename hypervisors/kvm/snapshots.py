"""Snapshots of KVM volumes in directory pools, and what changed between them.

A snapshot is a file of its own where blocks can be shared (reflink) and for raw volumes; else it is inside its qcow2 file.
Points are persistent dirty bitmaps of qcow2: each is `recording` from its snapshot to the next one. A file of its own has those
of its moment in it, so that its past is read from itself, whatever becomes of the volume.

Never is there a moment at which a change would be noted nowhere: a new bitmap records before the one before it stops, and one
that is to go is merged into that one first. qemu gives a bitmap up (`broken`) when its writer died or did not know of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from hypervisors.contract import ImageSpec, Source, Written
from hypervisors.images.disk_image import DiskImage, delta_laid_out, laid_out
from hypervisors.images.sized import Sized
from hypervisors.kvm.image_locks import require_no_writer
from hypervisors.landing import clone_file, copy_file
from hypervisors.narrowing import as_local, as_pending_file, as_reader
from hypervisors.nbd.client import DIRTY_BITMAP, connect
from hypervisors.qemu.exports import Exported, exported
from hypervisors.qemu.nodes import Node, known_format, own_node
from hypervisors.qemu.qemu_img import Bitmap, History, QemuImg
from hypervisors.snapshot_records import TAG, Kept
from hypervisors.snapshotting import Frozen, Snapshots
from stores.contract import LocalPath, PendingWrite, Progress, RangeReader, Silent
from stores.to import ImageFormat
from stores.tools.process import ToolRunner
from stores.transfer.engine import TransferEngine
from stores.transfer.pieces import known_size
from stores.uninterrupted import uninterrupted

MOST_POINTS = 16
"""Bitmaps that a volume keeps; with one more snapshot the oldest is given up. 8 TiB take 16 MiB for each."""


class KvmSnapshots(Snapshots):
    backup_format = ImageFormat.QCOW2

    def __init__(self, engine: TransferEngine, qemu_img: QemuImg, runner: ToolRunner, runtime_dir: Path) -> None:
        """Sockets of exports live below `runtime_dir`."""
        self._engine = engine
        self._qemu_img = qemu_img
        self._runner = runner
        self._runtime_dir = runtime_dir

    # ------------------------------------------------------------------------------------------------------ moments

    async def freeze(self, volume: Source, tag: str, points: Sequence[str], target: PendingWrite) -> Frozen:
        node, path = own_node(volume), as_pending_file(target).path
        await self.require_idle(volume)
        if known_format(volume) is not ImageFormat.QCOW2:
            await copy_file(self._engine, as_local(volume.presentation), path, (), Silent())
            return Frozen(Kept.FILE, since=(), tracked=False)
        history = await self._qemu_img.history(node)
        since = usable(points, history.bitmaps)[-(MOST_POINTS - 1) :]
        for name in history.bitmaps:
            if name.startswith(TAG) and name not in (*since, tag):
                await self._bitmap(node, name, "--remove")
        if tag not in history.bitmaps:
            await self._bitmap(node, tag, "--add")
        if await self._engine.run(clone_file, as_local(volume.presentation).path, path):
            return Frozen(Kept.FILE, since, tracked=True)
        if tag not in history.snapshots:
            await self._snapshot(node, tag, "-c")
        return Frozen(Kept.INSIDE, since, tracked=True)

    async def require_idle(self, volume: Source) -> None:
        await self._engine.run(require_no_writer, as_local(volume.presentation).path)

    async def tags(self, volume: Source) -> frozenset[str]:
        history = await self._history(volume)
        return frozenset(name for name in (*history.snapshots, *history.bitmaps) if name.startswith(TAG))

    async def settle(self, volume: Source, tag: str, points: Sequence[str]) -> None:
        node = own_node(volume)
        bitmaps = (await self._history(volume)).bitmaps
        for point in points:
            if point != tag and point in bitmaps and bitmaps[point].recording:
                await self._bitmap(node, point, "--disable")

    async def drop(self, volume: Source, tag: str) -> None:
        if tag in (await self._history(volume)).snapshots:
            await self._snapshot(own_node(volume), tag, "-d")

    async def merge_point(self, volume: Source, tag: str, points: Sequence[str]) -> tuple[str, ...]:
        node = own_node(volume)
        bitmaps = (await self._history(volume)).bitmaps
        kept = usable(points, bitmaps)
        for point in kept[: kept.index(tag)][-1:] if tag in kept else ():
            goes_on = ("--enable",) if bitmaps[tag].recording else ()
            await self._bitmap(node, point, "--merge", tag, *goes_on)
        return tuple(point for point in kept if point != tag)

    async def forget_point(self, volume: Source, tag: str) -> None:
        if tag in (await self._history(volume)).bitmaps:
            await self._bitmap(own_node(volume), tag, "--remove")

    async def forget_points(self, volume: Source) -> None:
        for name in (await self._history(volume)).bitmaps:
            if name.startswith(TAG):
                await self._bitmap(own_node(volume), name, "--remove")

    async def rewind(self, volume: Source, tag: str) -> None:
        await self.forget_points(volume)  # qemu goes back only without bitmaps, which would be of another past
        await self._snapshot(own_node(volume), tag, "-a")

    async def duplicate(self, frozen: Source, target: PendingWrite) -> None:
        await copy_file(self._engine, as_local(frozen.presentation), as_pending_file(target).path, (), Silent())

    async def _bitmap(self, node: Node, name: str, *actions: str) -> None:
        """Short, and not to be interrupted: an image whose writer was killed loses its bitmaps."""
        await uninterrupted(self._qemu_img.bitmap(node, name, *actions))

    async def _snapshot(self, node: Node, name: str, action: str) -> None:
        await uninterrupted(self._qemu_img.snapshot(node, name, action))

    async def _history(self, volume: Source) -> History:
        if known_format(volume) is not ImageFormat.QCOW2:
            return History()
        return await self._qemu_img.history(own_node(volume))

    # ------------------------------------------------------------------------------------------------------ content

    @asynccontextmanager
    async def image(self, image: Source, tag: str | None, spec: ImageSpec) -> AsyncIterator[DiskImage]:
        async with self.disk(image, tag) as disk:
            yield await laid_out(self._engine, disk, spec.format or known_format(image))

    @asynccontextmanager
    async def delta(
        self, image: Source, tag: str | None, points: Sequence[str], virtual_size: int
    ) -> AsyncIterator[DiskImage | None]:
        changed = await self.changes(image, points)
        if changed is None:
            yield None
            return
        async with self.disk(image, tag) as disk:
            extents = [
                extent
                for offset, length in changed
                if offset < virtual_size
                for extent in await disk.extents(offset, min(length, virtual_size - offset))
            ]
            yield await delta_laid_out(self._engine, disk, virtual_size, extents)

    async def extract(
        self, image: Source, tag: str | None, target: PendingWrite, spec: ImageSpec, progress: Progress
    ) -> Written:
        async with self.disk(image, tag) as disk:
            size = known_size(disk)
            return await self.fill(Sized(disk, size, spec.virtual_size or size), target, spec, progress)

    async def fill(self, disk: RangeReader, target: PendingWrite, spec: ImageSpec, progress: Progress) -> Written:
        path = as_pending_file(target).path
        image = await laid_out(self._engine, disk, spec.format or self.backup_format)
        await self._engine.fetch(as_reader(image.content), path, progress=progress)
        filled = Source(LocalPath(path, image.content.info), spec)
        sizes = await self._qemu_img.sizes(own_node(filled))
        return Written(known_format(filled), sizes.virtual, sizes.physical)

    async def plain(self, image: Source) -> bool:
        return not image.backing and await self._history(image) == History()

    @asynccontextmanager
    async def disk(self, image: Source, tag: str | None = None) -> AsyncIterator[RangeReader]:
        """The disk with its extents, parents included; of the snapshot `tag` inside the image if it is given."""
        async with (
            self._exported(image, snapshot=tag) as (socket, export),
            connect(socket, export, engine=self._engine) as disk,
        ):
            yield disk

    async def changes(self, image: Source, points: Sequence[str]) -> Sequence[tuple[int, int]] | None:
        """(offset, length) of what changed since the first of `points`, in order and apart."""
        bitmaps = (await self._history(image)).bitmaps
        if any(point not in bitmaps or bitmaps[point].broken for point in points):
            return None
        found: list[tuple[int, int]] = []
        for point in points:
            context = f"{DIRTY_BITMAP}{point}"
            async with (
                self._exported(image, bitmap=point) as (socket, export),
                connect(socket, export, engine=self._engine, connections=1, contexts=[context]) as disk,
            ):
                found += await disk.dirty(context, 0, disk.size)
        return joined(found)

    def _exported(
        self, image: Source, *, snapshot: str | None = None, bitmap: str | None = None
    ) -> AbstractAsyncContextManager[Exported]:
        return exported(self._runner, image, snapshot=snapshot, bitmap=bitmap, runtime_dir=self._runtime_dir)


def usable(points: Sequence[str], bitmaps: Mapping[str, Bitmap]) -> tuple[str, ...]:
    """Those of `points`, oldest first, from which on nothing is missing: a gap makes all that came before it useless, and so
    does a last one that does not record."""
    kept: list[str] = []
    if points and points[-1] in bitmaps and not bitmaps[points[-1]].recording:
        return ()
    for point in reversed(points):
        if point not in bitmaps or bitmaps[point].broken:
            break
        kept.insert(0, point)
    return tuple(kept)


def joined(parts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The union of (offset, length) in any order, as parts in order that do not touch one another."""
    union: list[tuple[int, int]] = []
    for offset, length in sorted(parts):
        if union and offset <= sum(union[-1]):
            start = union[-1][0]
            union[-1] = (start, max(sum(union[-1]), offset + length) - start)
        else:
            union.append((offset, length))
    return union
