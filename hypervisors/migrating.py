"""MigrateVolume: a volume goes to another pool, or gets another name there; a guest that runs with it goes on.

Where no guest runs with it, it is a copy, and a deletion once that is whole. Else the destination is there first, empty, with
its record; the guest's hypervisor fills it and changes over; and then the source goes.
"""

from __future__ import annotations

import structlog

from hypervisors import copying, volumes
from hypervisors.context import Context
from hypervisors.contract import ImageInUse, OperationUnsupported
from hypervisors.guests import Guests
from hypervisors.records import Record
from hypervisors.snapshots import Volume, opened_volume, require_none
from hypervisors.verbs import Call, Copy, Create, Migrate, ref_of
from stores.errors import InvalidReference, NotFound
from stores.to import DataTO, VolumeObjectTO
from stores.uninterrupted import uninterrupted

_log = structlog.get_logger(__name__)


async def migrate(ctx: Context, call: Call, request: Migrate) -> DataTO:
    """See `Operations.migrate`."""
    volume = request.volume
    if _where(volume) == _where(request.destination):
        raise InvalidReference(f"{ref_of(volume)} is there already", ref=ref_of(volume))
    async with opened_volume(ctx, call, volume.store, ref_of(volume), volume.format) as opened:
        await _require_alone(opened)
        guests = _guests(ctx, call)
        runs = guests is not None and await guests.runs_with(opened.source)
        made = await _change_over(ctx, call, opened, guests, request) if guests is not None and runs else None
    if made is None:
        made = (await copying.copy(ctx, call, Copy(volume, request.destination))).data
    await uninterrupted(volumes.remove(opened.pool, opened.info.ref))
    return made


async def resume(ctx: Context, call: Call, request: Migrate) -> DataTO | None:
    """What a dead command left of it: finished, or None where the source counts. Idempotent. Where nobody can tell which of two
    images counts, since the guest that had one of them is gone, both stay."""
    pool, ref = ctx.pool(call.hypervisor, request.destination.store), ref_of(request.destination)
    await pool.discard(ref, None, token=call.token)
    record = await pool.records.load(ref)
    if record is None or record.token != call.token:
        return None
    try:
        size = (await pool.store.stat(ref)).size
    except NotFound:
        await pool.records.remove(ref, None)
        return None
    counts = await _counts(ctx, call, request, record)
    if counts is None:
        _log.error("two images of a moved volume", volume=ref_of(request.volume), destination=ref)
        return None
    if not counts:
        await volumes.remove(pool, ref)
        return None
    await volumes.remove(ctx.pool(call.hypervisor, request.volume.store), ref_of(request.volume))
    return copying.answer(request.destination, ref, record, size)


async def _counts(ctx: Context, call: Call, request: Migrate, record: Record) -> bool | None:
    """Whether the destination is the volume now; None if that is not known. Without a guest, a copy that is there is whole."""
    volume, target = request.volume, request.destination
    copied = record.origin is not None
    guests = _guests(ctx, call)
    if guests is None:
        return copied or None
    try:
        async with (
            opened_volume(ctx, call, volume.store, ref_of(volume), volume.format) as before,
            opened_volume(ctx, call, target.store, ref_of(target), record.format) as after,
        ):
            changed = await guests.resume_changing(before.source, after.source)
    except NotFound:
        return True  # the source is gone, which comes last
    return changed if changed is not None else copied or None


async def _change_over(ctx: Context, call: Call, volume: Volume, guests: Guests, request: Migrate) -> DataTO:
    measured = await volume.handler.measure(volume.source)
    wanted = {"size": measured.virtual_size, "format": request.destination.format or measured.format}
    target = request.destination.model_copy(update=wanted)
    made = await volumes.create(ctx, call, Create(target))
    pool, ref = ctx.pool(call.hypervisor, target.store), ref_of(target)
    async with opened_volume(ctx, call, target.store, ref, target.format) as opened:
        try:
            call.progress.phase("copy", measured.virtual_size)
            await guests.fill(volume.source, opened.source, call.progress)
        except BaseException:
            await uninterrupted(volumes.remove(pool, ref))
            raise
        try:
            await uninterrupted(guests.change_over(volume.source, opened.source))
        except BaseException:
            await uninterrupted(_keep_one(guests, volume, opened))
            raise
    return made


async def _keep_one(guests: Guests, before: Volume, after: Volume) -> None:
    """That which the guest has, after a failure, which is what is told. Both, where nobody can tell."""
    changed = await guests.resume_changing(before.source, after.source)
    if changed is None:
        _log.error("two images of a moved volume", volume=before.info.ref, destination=after.info.ref)
        return
    gone = before if changed else after
    await volumes.remove(gone.pool, gone.info.ref)


async def _require_alone(volume: Volume) -> None:
    ref = volume.info.ref
    await require_none(volume.pool, ref)
    if children := await volume.pool.records.children(ref):
        raise ImageInUse(
            f"{ref} is the parent of {len(children)} linked clones; delete or flatten them first: {', '.join(children[:10])}",
            ref=ref,
            children=list(children),
        )


def _guests(ctx: Context, call: Call) -> Guests | None:
    try:
        return ctx.handler(call.hypervisor).guests
    except OperationUnsupported:
        return None


def _where(volume: VolumeObjectTO) -> tuple[str, str]:
    store = volume.store
    return (store.uuid if store.storeType == "primary" else store.storeType), ref_of(volume)
