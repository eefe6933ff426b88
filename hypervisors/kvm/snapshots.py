"""Snapshots of KVM volumes in directory pools, and what changed between them.

A snapshot is a file of its own where blocks can be shared (reflink) and for raw volumes; else it is inside its qcow2 file.
Points are persistent dirty bitmaps of qcow2: each is `recording` from its snapshot on, so that it tells by itself what may have
changed since, and needs none of the others. A file of its own has those of its moment in it, so that its past is read from
itself, whatever becomes of the volume. qemu gives a bitmap up (`broken`) when its writer died or did not know of it.

Of a volume that a machine of this host's libvirt has open, a moment is held by the machine's own qemu (`hypervisors.kvm.live`):
read from there at once, or copied to a file of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hypervisors.contract import ImageLocked, ImageSpec, OperationUnsupported, Source, Written
from hypervisors.images.disk_image import DiskImage, delta_laid_out, laid_out
from hypervisors.images.sized import Sized
from hypervisors.kvm.image_locks import require_no_writer
from hypervisors.landing import clone_file, copy_file
from hypervisors.narrowing import as_local, as_pending_file, as_reader
from hypervisors.nbd.client import DIRTY_BITMAP, connect
from hypervisors.qemu.exports import Exported, exported
from hypervisors.qemu.nodes import Node, driver_of, known_format, own_node
from hypervisors.qemu.qemu_img import Bitmap, History, QemuImg
from hypervisors.snapshot_records import TAG, Kept
from hypervisors.snapshotting import Frozen, Snapshots
from stores.contract import LocalPath, PendingWrite, Progress, RangeReader, Silent
from stores.to import ImageFormat, ProvisioningType
from stores.tools.process import ToolRunner
from stores.transfer.engine import TransferEngine
from stores.transfer.pieces import known_size
from stores.uninterrupted import uninterrupted

if TYPE_CHECKING:  # it takes time to import, and is only needed where there is a libvirt
    from hypervisors.kvm.live import LiveDisks, Place

MOST_POINTS = 16
"""Bitmaps that a volume keeps; with one more snapshot the oldest is given up. 8 TiB take 16 MiB for each."""


class KvmSnapshots(Snapshots):
    backup_format = ImageFormat.QCOW2

    def __init__(
        self,
        engine: TransferEngine,
        qemu_img: QemuImg,
        runner: ToolRunner,
        runtime_dir: Path,
        live: LiveDisks | None = None,
    ) -> None:
        """Sockets of exports live below `runtime_dir`. Without `live`, volumes of machines that run are `ImageLocked`."""
        self._engine = engine
        self._qemu_img = qemu_img
        self._runner = runner
        self._runtime_dir = runtime_dir
        self._live = live

    # ------------------------------------------------------------------------------------------------------ moments

    async def freeze(self, volume: Source, tag: str, points: Sequence[str], target: PendingWrite) -> Frozen:
        node, path = own_node(volume), as_pending_file(target).path
        if await self._place(volume) is not None:
            return await self._copy_live(volume, tag, points, target)
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

    async def hold(self, volume: Source, tag: str, points: Sequence[str], since: str | None) -> Frozen | None:
        place = await self._place(volume)
        if place is None or self._live is None:
            return None
        tracked = known_format(volume) is ImageFormat.QCOW2
        path = as_local(volume.presentation).path
        held = await self._live.hold(place, path, tag, tracked=tracked, since=since if since in points else None)
        if held is None:
            return None
        kept = [point for point in points if point != since or held.since == since]
        for point in kept[: -(MOST_POINTS - 1)]:
            await self._live.forget(place, point)
        return Frozen(Kept.HELD, tuple(kept[-(MOST_POINTS - 1) :]), tracked)

    async def _copy_live(self, volume: Source, tag: str, points: Sequence[str], target: PendingWrite) -> Frozen:
        frozen = await self.hold(volume, tag, points, None)
        if frozen is None:
            return await self._copy_out(volume, target)
        try:
            async with self.disk(volume, tag) as disk:
                await self.fill(disk, target, ImageSpec(known_format(volume)), Silent())
        finally:
            await uninterrupted(self.drop(volume, tag))
        return replace(frozen, kept=Kept.FILE)

    async def _copy_out(self, volume: Source, target: PendingWrite) -> Frozen:
        """By a machine whose qemu holds no moments."""
        place = await self._place(volume)
        if place is None or self._live is None:
            raise _not_running_any_more(volume)
        if volume.backing:
            raise OperationUnsupported(
                f"libvirt has no backups of {place.vm}, and copies no disk of it that shares blocks with a template: use"
                " libvirt 7.2 or newer, or stop the machine",
                vm=place.vm,
                ref=volume.presentation.info.ref,
            )
        given, path, kind = as_local(volume.presentation), as_pending_file(target).path, known_format(volume)
        size = (await self._qemu_img.sizes(own_node(volume), running=True)).virtual
        await self._qemu_img.create(path, kind, size, ProvisioningType.THIN)
        await self._live.copy_out(place, given.path, path, driver_of(kind))
        return Frozen(Kept.FILE, since=(), tracked=False)

    async def reconcile(self) -> None:
        """Machines are let be by what no command of this process does with them. Idempotent."""
        if self._live is not None:
            await self._live.reconcile()

    async def _place(self, volume: Source) -> Place | None:
        """The machine of this host's libvirt that runs and has the volume. None where nobody has; `ImageLocked` where somebody
        else has."""
        try:
            await self.require_idle(volume)
        except ImageLocked:
            place = await self._live.place_of(as_local(volume.presentation).path) if self._live is not None else None
            if place is None:
                raise
            return place
        return None

    async def require_idle(self, volume: Source) -> None:
        await self._engine.run(require_no_writer, as_local(volume.presentation).path)

    async def tags(self, volume: Source) -> frozenset[str]:
        place = await self._place(volume)
        history = await self._history(volume, running=place is not None)
        known = await self._live.tags(place) if place is not None and self._live is not None else frozenset()
        return frozenset(name for name in (*known, *history.snapshots, *history.bitmaps) if name.startswith(TAG))

    async def settle(self, volume: Source, tag: str, points: Sequence[str]) -> None:
        if self._live is not None and (place := await self._place(volume)) is not None:
            await self._live.settle(place, tag)

    async def drop(self, volume: Source, tag: str) -> None:
        held = self._live.held(tag) if self._live is not None else None
        if held is not None and self._live is not None:
            await self._live.drop(held)
            return
        place = await self._place(volume)
        if place is not None and self._live is not None:
            await self._live.end(place, as_local(volume.presentation).path, tag)
        if tag in (await self._history(volume, running=place is not None)).snapshots:
            await self._snapshot(own_node(volume), tag, "-d")

    async def merge_point(self, volume: Source, tag: str, points: Sequence[str]) -> tuple[str, ...]:
        if await self._place(volume) is None:
            points = usable(points, (await self._history(volume)).bitmaps)
        return tuple(point for point in points if point != tag)

    async def forget_point(self, volume: Source, tag: str) -> None:
        place = await self._place(volume)
        if place is not None and self._live is not None:
            await self._live.forget(place, tag)
        elif tag in (await self._history(volume)).bitmaps:
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

    async def _history(self, volume: Source, *, running: bool = False) -> History:
        if known_format(volume) is not ImageFormat.QCOW2:
            return History()
        return await self._qemu_img.history(own_node(volume), running=running)

    # ------------------------------------------------------------------------------------------------------ content

    @asynccontextmanager
    async def image(self, image: Source, tag: str | None, spec: ImageSpec) -> AsyncIterator[DiskImage]:
        async with self.disk(image, tag) as disk:
            yield await laid_out(self._engine, disk, spec.format or known_format(image))

    @asynccontextmanager
    async def delta(
        self, image: Source, tag: str | None, points: Sequence[str], virtual_size: int
    ) -> AsyncIterator[DiskImage | None]:
        changed = await self.changes(image, tag, points)
        if changed is None:
            yield None
            return
        async with self.disk(image, tag) as disk:
            yield await delta_laid_out(self._engine, disk, virtual_size, changed)

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
        """The disk with its extents, parents included; of the snapshot `tag` inside the image, or held, if it is given."""
        async with self._served(image, tag) as (socket, export), connect(socket, export, engine=self._engine) as disk:
            yield disk

    @asynccontextmanager
    async def _served(self, image: Source, tag: str | None) -> AsyncIterator[Exported]:
        held = self._live.held(tag) if self._live is not None else None
        if held is None or self._live is None:
            async with self._exported(image, snapshot=tag) as export:
                yield export
        else:
            async with self._live.guarded(held):
                yield Exported(held.socket, held.tag)

    async def changes(self, image: Source, tag: str | None, points: Sequence[str]) -> Sequence[tuple[int, int]] | None:
        """(offset, length) of what changed since the first of `points`, in order and apart. It records still, so that what came
        after the last one is in it as well."""
        first, held = points[0], self._live.held(tag) if self._live is not None else None
        context = f"{DIRTY_BITMAP}{first}"
        async with AsyncExitStack() as stack:
            if held is not None:
                if held.since != first:
                    return None
                socket, export = held.socket, held.tag
            else:
                bitmap = (await self._history(image)).bitmaps.get(first)
                if bitmap is None or bitmap.broken or not bitmap.recording:
                    return None
                socket, export = await stack.enter_async_context(self._exported(image, bitmap=first))
            disk = await stack.enter_async_context(
                connect(socket, export, engine=self._engine, connections=1, contexts=[context])
            )
            return await disk.dirty(context, 0, disk.size)

    def _exported(
        self, image: Source, *, snapshot: str | None = None, bitmap: str | None = None
    ) -> AbstractAsyncContextManager[Exported]:
        return exported(self._runner, image, snapshot=snapshot, bitmap=bitmap, runtime_dir=self._runtime_dir)


def usable(points: Sequence[str], bitmaps: Mapping[str, Bitmap]) -> tuple[str, ...]:
    """Those of `points` that tell what was written since: each by itself."""
    return tuple(
        point for point in points if point in bitmaps and bitmaps[point].recording and not bitmaps[point].broken
    )


def _not_running_any_more(volume: Source) -> ImageLocked:
    ref = volume.presentation.info.ref
    return ImageLocked(f"the machine that had {ref} open has just let go of it; try again", ref=ref)
