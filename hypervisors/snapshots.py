"""The verbs on snapshots in a pool: Create and Delete, over any hypervisor. Revert: `hypervisors.reverting`.

A snapshot exists from the moment its record is written, which is the last durable step but one of making it, and until its
record is removed, which is the last one of deleting it. Whoever calls has the volume's lock.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from hypervisors.context import Context
from hypervisors.contract import HypervisorHandler, ImageInUse, ImageSpec, Operation, Source
from hypervisors.copying import make_record
from hypervisors.primary import Pool
from hypervisors.records import Record
from hypervisors.snapshot_records import (
    Kept,
    SnapshotRecord,
    SnapshotRecords,
    frozen_ref,
    tag_of,
    tag_prefix,
)
from hypervisors.snapshotting import Frozen
from hypervisors.sources import opened_image
from hypervisors.verbs import Call, snapshot_name
from stores.contract import ObjectInfo
from stores.errors import AlreadyExists, NotFound
from stores.to import DataStoreTO, ImageFormat, SnapshotObjectTO
from stores.uninterrupted import uninterrupted


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume of a pool, opened, with what is recorded of it and of its snapshots."""

    handler: HypervisorHandler
    pool: Pool
    info: ObjectInfo
    record: Record
    source: Source

    @property
    def snapshots(self) -> SnapshotRecords:
        return self.pool.snapshots

    async def remember(self, token: str, **changes: object) -> None:
        """The volume's record, changed. An image without one gets one: from now on its format is known."""
        record = self.record.model_copy(update=changes)
        await self.pool.records.save(self.info.ref, record, token=token, replace=True)


@asynccontextmanager
async def opened_volume(
    ctx: Context,
    call: Call,
    to: DataStoreTO,
    ref: str,
    declared: ImageFormat | None = None,
    *,
    encrypted: bool = False,
) -> AsyncIterator[Volume]:
    """`NotFound`, `InvalidReference` where the format is neither recorded nor declared, `OperationUnsupported` for an encrypted
    volume, unless it may be `encrypted`."""
    handler, pool = ctx.handler(call.hypervisor), ctx.pool(call.hypervisor, to)
    info = await pool.store.stat(ref)
    async with opened_image(ctx, handler, pool, info, declared, encrypted=encrypted) as source:
        record = await pool.records.load(ref)
        if record is None:
            record = make_record(ctx, call, await handler.measure(source), origin=None, backing=None)
        yield Volume(handler, pool, info, record, source)


async def found(volume: Volume, name: str) -> SnapshotRecord:
    """The snapshot, which has content. `NotFound`."""
    record = await volume.snapshots.load(volume.info.ref, name)
    if record is None or record.kept is Kept.GONE:
        raise NotFound(f"{volume.info.ref} has no snapshot {name}", ref=f"{volume.info.ref}/{name}")
    return record


@asynccontextmanager
async def content(ctx: Context, volume: Volume, record: SnapshotRecord) -> AsyncIterator[tuple[Source, str | None]]:
    """The image that holds the snapshot, and the tag by which it is inside that, or held, if it is."""
    if record.kept in (Kept.INSIDE, Kept.HELD):
        yield volume.source, record.tag
        return
    store, spec = volume.pool.store, ImageSpec(record.format, device=volume.pool.devices)
    info = await store.stat(frozen_ref(record.volume, record.name))
    kinds = volume.handler.accepts(Operation.SNAPSHOT, spec, spec).kinds
    async with ctx.resolver.open(store, info, kinds) as presentation:
        yield Source(presentation, spec, volume.source.backing), None


def answer(data: SnapshotObjectTO, record: SnapshotRecord) -> SnapshotObjectTO:
    now = {
        "path": f"{record.volume}/{record.name}",
        "physicalSize": record.physical_size,
        "format": record.format,
    }
    return data.model_copy(update=now)


# ----------------------------------------------------------------------------------------------------------- create


@dataclass(frozen=True, slots=True)
class Passing:
    """A snapshot that is read at once, and deleted by the same command. `since`: the point from which on changes are wanted."""

    since: str | None


async def create(
    ctx: Context, call: Call, data: SnapshotObjectTO, *, passing: Passing | None = None
) -> SnapshotObjectTO:
    """See `Operations.create`."""
    volume, name = snapshot_name(data)
    declared = data.volume.format if data.volume is not None else None
    async with opened_volume(ctx, call, data.store, volume, declared or data.format) as opened:
        existing = await opened.snapshots.load(volume, name)
        if existing is not None:
            what = (
                "was deleted, but a backup of it is what the next one may build on"
                if existing.kept is Kept.GONE
                else ""
            )
            raise AlreadyExists(
                f"snapshot {name} of {volume} {what or 'exists already'}; choose another name", ref=name
            )
        try:
            record = await _make(ctx, call, opened, name, passing)
            await _forget_lost_points(opened)
        except BaseException:
            await uninterrupted(_undo(opened, volume, name, call.token))
            raise
    return answer(data, record)


async def _make(ctx: Context, call: Call, volume: Volume, name: str, passing: Passing | None) -> SnapshotRecord:
    ref, created = volume.info.ref, ctx.clock()
    tag = tag_of(ref, name, call.token, created)
    written = await volume.handler.measure(volume.source)
    call.progress.phase("snapshot")
    frozen = None
    if passing is not None:
        frozen = await volume.handler.snapshots.hold(volume.source, tag, volume.record.points, passing.since)
    if frozen is None:
        spec = ImageSpec(written.format, device=volume.pool.devices)
        frozen = await _freeze(ctx, call, volume, name, tag, spec)
    record = SnapshotRecord(
        volume=ref,
        name=name,
        tag=tag,
        kept=frozen.kept,
        format=written.format,
        virtual_size=written.virtual_size,
        physical_size=written.physical_size,
        token=call.token,
        created=created,
        since=frozen.since,
    )
    points = (*frozen.since, tag) if frozen.tracked else ()
    await uninterrupted(volume.remember(call.token, points=points))
    await uninterrupted(volume.snapshots.save(record, token=call.token))
    await volume.handler.snapshots.settle(volume.source, tag, frozen.since)
    return record


async def _freeze(ctx: Context, call: Call, volume: Volume, name: str, tag: str, spec: ImageSpec) -> Frozen:
    kinds = volume.handler.fills(Operation.SNAPSHOT, spec).kinds
    # What lies there without a record is nobody's.
    ref = frozen_ref(volume.info.ref, name)
    async with ctx.resolver.create(volume.pool.store, ref, kinds, token=call.token, replace=True) as pending:
        frozen = await volume.handler.snapshots.freeze(volume.source, tag, volume.record.points, pending)
        if frozen.kept is Kept.FILE:
            await uninterrupted(pending.commit())
    return frozen


async def resume(ctx: Context, call: Call, data: SnapshotObjectTO) -> SnapshotObjectTO | None:
    """What a dead command left of making one: finished, or None once nothing of it is there. Idempotent."""
    ref, name = snapshot_name(data)
    pool = ctx.pool(call.hypervisor, data.store)
    declared = data.volume.format if data.volume is not None else None
    try:
        async with opened_volume(ctx, call, data.store, ref, declared or data.format) as volume:
            record = await volume.snapshots.load(ref, name)
            if record is None or record.token != call.token:
                await _undo(volume, ref, name, call.token)
                return None
            await volume.pool.discard_snapshot(ref, name, token=call.token)
            await volume.handler.snapshots.settle(volume.source, record.tag, record.since)
            await _forget_lost_points(volume)
    except NotFound:
        await pool.discard_snapshot(ref, name, token=call.token)
        return None
    return answer(data, record)


async def _undo(volume: Volume, ref: str, name: str, token: str) -> None:
    """Nothing of the snapshot that `token` was making is there. Idempotent."""
    record = await volume.snapshots.load(ref, name)
    if record is not None and record.token == token:
        await volume.snapshots.remove(record)
    await volume.pool.discard_snapshot(ref, name, token=token)
    if record is None or record.token == token:
        await volume.pool.store.delete(frozen_ref(ref, name))
    await volume.pool.records.discard(ref, None, token=token)
    now = await volume.pool.records.load(ref)
    points = now.points if now is not None else ()
    prefix = tag_prefix(ref, name, token)
    handling = volume.handler.snapshots
    for tag in sorted(await handling.tags(volume.source)):
        if tag.startswith(prefix):
            await handling.drop(volume.source, tag)
            left = tuple(point for point in points if point != tag)
            left = await handling.merge_point(volume.source, tag, (*left, tag))
            if now is not None and left != points:
                await volume.pool.records.save(ref, now.model_copy(update={"points": left}), token=token, replace=True)
            await handling.forget_point(volume.source, tag)


async def _forget_lost_points(volume: Volume) -> None:
    """Points without content that are not tracked any more are of no use."""
    now = await volume.pool.records.load(volume.info.ref)
    tracked = now.points if now is not None else ()
    for record in await volume.snapshots.of(volume.info.ref):
        if record.kept is Kept.GONE and record.tag not in tracked:
            await volume.handler.snapshots.forget_point(volume.source, record.tag)
            await volume.snapshots.remove(record)


# ----------------------------------------------------------------------------------------------------------- delete


async def delete(ctx: Context, call: Call, data: SnapshotObjectTO) -> None:
    """See `Operations.delete`. Of a snapshot that was backed up the point stays, as long as it is tracked."""
    ref, name = snapshot_name(data)
    pool = ctx.pool(call.hypervisor, data.store)
    snapshots = pool.snapshots
    record = await snapshots.load(ref, name)
    if record is None:
        return
    try:
        async with opened_volume(ctx, call, data.store, ref, record.format) as volume:
            await uninterrupted(_delete(call, volume, record))
    except NotFound:
        await pool.store.delete(frozen_ref(ref, name))
        await snapshots.remove(record)


async def resume_deleting(ctx: Context, call: Call, data: SnapshotObjectTO) -> None:
    """What a dead command began is done. Idempotent."""
    ref, _ = snapshot_name(data)
    pool = ctx.pool(call.hypervisor, data.store)
    await pool.records.discard(ref, None, token=call.token)
    for name in await pool.snapshots.names(ref):
        await pool.discard_snapshot(ref, name, token=call.token)
    await delete(ctx, call, data)


async def _delete(call: Call, volume: Volume, record: SnapshotRecord) -> None:
    handling, ref = volume.handler.snapshots, record.volume
    await volume.pool.store.delete(frozen_ref(ref, record.name))
    if record.kept in (Kept.INSIDE, Kept.HELD):
        await handling.drop(volume.source, record.tag)
    if record.tag in volume.record.points and await volume.snapshots.backed_up(record):
        gone = record.model_copy(update={"kept": Kept.GONE})
        await volume.snapshots.save(gone, token=call.token, replace=True)
        return
    if record.tag in volume.record.points:
        left = await handling.merge_point(volume.source, record.tag, volume.record.points)
        for other in await volume.snapshots.of(ref):
            if other.kept is Kept.INSIDE and record.tag in other.since:
                since = tuple(point for point in other.since if point != record.tag)
                await volume.snapshots.save(other.model_copy(update={"since": since}), token=call.token, replace=True)
        await volume.remember(call.token, points=left)
    await handling.forget_point(volume.source, record.tag)
    await volume.snapshots.remove(record)


async def require_none(pool: Pool, ref: str) -> None:
    """`ImageInUse` while the volume has snapshots. Points alone are none."""
    found = [record.name for record in await pool.snapshots.of(ref) if record.kept is not Kept.GONE]
    if found:
        raise ImageInUse(
            f"{ref} has {len(found)} snapshots; delete them first: {', '.join(found[:10])}", ref=ref, snapshots=found
        )


async def remove_points(pool: Pool, ref: str) -> None:
    """With their volume. Idempotent."""
    for record in await pool.snapshots.of(ref):
        await pool.snapshots.remove(record)


async def before_shrinking(volume: Volume, token: str) -> None:
    """What is cut off and grown again later would not be noted as changed; and snapshots inside the volume would be cut."""
    inside = [record.name for record in await volume.snapshots.of(volume.info.ref) if record.kept is Kept.INSIDE]
    if inside:
        raise ImageInUse(
            f"{volume.info.ref} cannot shrink while it holds snapshots; delete them first: {', '.join(inside[:10])}",
            ref=volume.info.ref,
            snapshots=inside,
        )
    await volume.handler.snapshots.forget_points(volume.source)
    if volume.record.points:
        await volume.remember(token, points=())
