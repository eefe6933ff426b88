"""Revert: a volume has the content of one of its snapshots again.

The volume's record says that it began, before anything of the content changes, and that it is done, after it: so a crash in
between is told apart from one before and one after (`resume`).
"""

from __future__ import annotations

from hypervisors.context import Context
from hypervisors.contract import ImageInUse, ImageSpec, Operation
from hypervisors.records import Reverted
from hypervisors.snapshot_records import Kept, SnapshotRecord
from hypervisors.snapshots import Volume, answer, content, found, opened_volume
from hypervisors.verbs import Call, Revert, snapshot_name
from stores.contract import PendingWrite
from stores.errors import NotFound
from stores.to import SnapshotObjectTO
from stores.uninterrupted import uninterrupted


async def revert(ctx: Context, call: Call, request: Revert) -> SnapshotObjectTO:
    """See `Operations.revert`."""
    ref, name = snapshot_name(request.snapshot)
    async with opened_volume(ctx, call, request.snapshot.store, ref) as volume:
        record = await found(volume, name)
        await _refuse_harm(volume, record)
        call.progress.phase("revert", record.virtual_size)
        if record.kept is Kept.INSIDE:
            await uninterrupted(_rewind(volume, record, call.token))
        else:
            await _replace(ctx, call, volume, record)
    return answer(request.snapshot, record)


async def resume(ctx: Context, call: Call, request: Revert) -> SnapshotObjectTO | None:
    """What a dead command left of it: finished, or None if the volume was not touched. Idempotent."""
    ref, name = snapshot_name(request.snapshot)
    pool = ctx.pool(call.hypervisor, request.snapshot.store)
    await pool.discard(ref, None, token=call.token)
    try:
        async with opened_volume(ctx, call, request.snapshot.store, ref) as volume:
            begun = volume.record.reverted
            record = await found(volume, name)
            if begun is None or begun.token != call.token:
                return None
            if not begun.done and record.kept is Kept.INSIDE:
                await _rewind(volume, record, call.token)
            elif not begun.done and volume.info.version == begun.before:
                return None
            elif not begun.done:
                await _replaced(volume, record, call.token)
    except NotFound:
        return None
    return answer(request.snapshot, record)


async def _refuse_harm(volume: Volume, record: SnapshotRecord) -> None:
    ref = record.volume
    await volume.handler.snapshots.require_idle(volume.source)
    if children := await volume.pool.records.children(ref):
        raise ImageInUse(
            f"{ref} is the parent of {len(children)} linked clones, whose content would change; delete or flatten them first:"
            f" {', '.join(children[:10])}",
            ref=ref,
            children=list(children),
        )
    inside = [other.name for other in await volume.snapshots.of(ref) if other.kept is Kept.INSIDE]
    if record.kept is Kept.FILE and inside:
        raise ImageInUse(
            f"snapshots of {ref} lie in its file, which {record.name} would replace; delete them first:"
            f" {', '.join(inside[:10])}",
            ref=ref,
            snapshots=inside,
        )


async def _rewind(volume: Volume, record: SnapshotRecord, token: str) -> None:
    """Idempotent: what was interrupted is done again."""
    await _remember(volume, record, token, done=False, points=())
    await volume.handler.snapshots.rewind(volume.source, record.tag)
    await _remember(volume, record, token, done=True, points=(), virtual_size=record.virtual_size)


async def _replace(ctx: Context, call: Call, volume: Volume, record: SnapshotRecord) -> None:
    store, ref = volume.pool.store, record.volume
    kinds = volume.handler.fills(Operation.SNAPSHOT, ImageSpec(record.format, device=volume.pool.devices)).kinds
    async with (
        ctx.resolver.create(store, ref, kinds, token=call.token, replace=True) as pending,
        content(ctx, volume, record) as (frozen, _),
    ):
        await volume.handler.snapshots.duplicate(frozen, pending)
        await uninterrupted(_put_in_place(volume, record, call.token, pending))


async def _put_in_place(volume: Volume, record: SnapshotRecord, token: str, pending: PendingWrite) -> None:
    await _remember(volume, record, token, done=False)
    try:
        await pending.commit()
    except BaseException:
        await volume.pool.records.save(record.volume, volume.record, token=token, replace=True)
        raise
    await _replaced(volume, record, token)


async def _replaced(volume: Volume, record: SnapshotRecord, token: str) -> None:
    """The file is in place: it knows the points that the volume knew when the snapshot was made, also those deleted since."""
    handling = volume.handler.snapshots
    points: tuple[str, ...] = (*record.since, record.tag)
    known = {other.tag for other in await volume.snapshots.of(record.volume)}
    await handling.settle(volume.source, record.tag, record.since)
    lost = [tag for tag in record.since if tag not in known]
    for tag in lost:
        points = await handling.merge_point(volume.source, tag, points)
    await _remember(volume, record, token, done=True, points=points, virtual_size=record.virtual_size)
    for tag in lost:
        await handling.forget_point(volume.source, tag)


async def _remember(volume: Volume, record: SnapshotRecord, token: str, *, done: bool, **changes: object) -> None:
    reverted = Reverted(snapshot=record.name, token=token, before=volume.info.version, done=done)
    await volume.remember(token, reverted=reverted, **changes)
