"""Copy of a volume in a pool to a snapshot in an image store: a backup of the volume as it is now.

It is a snapshot, its backup, and the end of the snapshot, in one command: where a machine that runs can hold a moment of its
disk for so long, nothing is copied inside the pool. Of the snapshot its point stays, on which the next backup may build. It is
named like the backup, without its folder.
"""

from __future__ import annotations

from hypervisors import snapshots
from hypervisors.backups import sending
from hypervisors.backups.chain import load_manifest
from hypervisors.backups.manifest import BrokenChain
from hypervisors.context import Context
from hypervisors.copying import Copied
from hypervisors.snapshot_records import Kept
from hypervisors.snapshots import Passing, opened_volume
from hypervisors.verbs import Call, Copy, parent_of, ref_of
from stores.errors import NotFound
from stores.to import DataTO, SnapshotObjectTO
from stores.uninterrupted import uninterrupted


async def back_up(ctx: Context, call: Call, request: Copy) -> Copied:
    """See `Operations.copy`."""
    taken = _by_snapshot(request)
    if (earlier := await _made_before(ctx, call, taken)) is not None:
        return earlier
    passing = Passing(await _point_of_parent(ctx, _target(taken)))
    snapshot = await snapshots.create(ctx, call, _snapshot(taken), passing=passing)
    try:
        return await sending.back_up(ctx, call, taken)
    finally:
        await uninterrupted(snapshots.delete(ctx, call, snapshot))


async def resume(ctx: Context, call: Call, request: Copy) -> DataTO | None:
    """What a dead command left: the backup, if it came to be, or None. Of the snapshot at most the point stays. Idempotent."""
    taken = _by_snapshot(request)
    snapshot = _snapshot(taken)
    await snapshots.resume(ctx, call, snapshot)
    made = await sending.resume(ctx, call, taken)
    volume, name = ref_of(request.source), str(snapshot.name)
    record = await ctx.pool(call.hypervisor, snapshot.store).snapshots.load(volume, name)
    if record is not None and record.token == call.token:
        await snapshots.resume_deleting(ctx, call, snapshot)
    return made


def _by_snapshot(request: Copy) -> Copy:
    """The second step: a copy of the snapshot that the first makes."""
    volume, target = request.source, request.destination
    assert volume.type == "volume"
    name = ref_of(target).rpartition("/")[2]
    snapshot = SnapshotObjectTO(name=name, path=f"{ref_of(volume)}/{name}", volume=volume, dataStore=volume.store)
    return Copy(snapshot, target, durability=request.durability)


def _snapshot(taken: Copy) -> SnapshotObjectTO:
    assert taken.source.type == "snapshot"
    return taken.source


def _target(taken: Copy) -> SnapshotObjectTO:
    assert taken.destination.type == "snapshot"
    return taken.destination


async def _made_before(ctx: Context, call: Call, taken: Copy) -> Copied | None:
    """The same again is success: with the backup that was made then."""
    snapshot = _snapshot(taken)
    assert snapshot.volume is not None
    ref, name = ref_of(snapshot.volume), str(snapshot.name)
    record = await ctx.pool(call.hypervisor, snapshot.store).snapshots.load(ref, name)
    if record is None:
        return None
    if record.kept is Kept.HELD:  # not any more: its command could not say so
        await snapshots.delete(ctx, call, snapshot)
    elif record.kept is not Kept.GONE:
        return None
    try:
        async with opened_volume(ctx, call, snapshot.store, ref, snapshot.volume.format) as volume:
            return await sending.made_before(ctx, call, volume, record, _target(taken))
    except NotFound:
        return None


async def _point_of_parent(ctx: Context, target: SnapshotObjectTO) -> str | None:
    """From which on changes are wanted."""
    parent = parent_of(target)
    if parent is None:
        return None
    try:
        manifest = await load_manifest(ctx.resolver.store(target.store), parent)
    except BrokenChain:
        return None  # which is told where the backup is made
    return manifest.point if manifest is not None else None
