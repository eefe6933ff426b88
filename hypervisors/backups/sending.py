"""Copy of a snapshot in a pool to an image store: a full backup, or what changed since the one it builds on.

    note in the pool -> object -> manifest -> note again

The manifest makes it a backup. An object without one, left by a command that died, is known by the note, and replaced by the
next try. What was stored before is never touched: a failed incremental harms nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import structlog

from hypervisors.backups.chain import load_chain, load_manifest, remove
from hypervisors.backups.manifest import (
    DEEPEST,
    SUFFIX,
    Below,
    BrokenChain,
    Content,
    Manifest,
    digest_of,
    manifest_ref,
    text_of,
)
from hypervisors.context import Context
from hypervisors.contract import Accepts, ImageSpec, Operation, Source
from hypervisors.copying import Copied
from hypervisors.images.qcow2_stream import Layout, layout
from hypervisors.images.streaming import LayoutReader
from hypervisors.outgoing import Outgoing
from hypervisors.snapshot_records import Sent, SnapshotRecord
from hypervisors.snapshots import Volume, content, found, opened_volume
from hypervisors.verbs import Call, Copy, parent_of, ref_of, snapshot_name
from stores.cache.writeback.errors import UploadCancelled
from stores.contract import DataStore, Extent, KiB, ObjectInfo, RangeReader
from stores.errors import AlreadyExists, InvalidReference, NotFound
from stores.resolver import Durability
from stores.to import DataTO, ImageFormat, SnapshotObjectTO
from stores.uninterrupted import uninterrupted

CLUSTER = 64 * KiB

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is sent: what changed since `parent`, or without one everything, because of `note` if a parent was asked for."""

    parent: Manifest | None = None
    changed: Sequence[tuple[int, int]] = ()
    note: str | None = None


async def back_up(ctx: Context, call: Call, request: Copy) -> Copied:
    """See `Operations.copy`."""
    source, target = request.source, request.destination
    assert source.type == "snapshot"
    assert target.type == "snapshot"
    ref, name = snapshot_name(source)
    store = ctx.resolver.store(target.store)
    backup = _backup_ref(target)
    async with opened_volume(ctx, call, source.store, ref, source.format) as volume:
        record = await found(volume, name)
        fills = _fills(volume, target)
        under_way = await _under_way(ctx, volume, record, store, backup)
        if under_way is not None:
            sent, upload = under_way
            return Copied(answer(target, sent), upload)
        existing = await load_manifest(store, backup)
        if existing is not None:
            return Copied(await _as_before(call, volume, record, store, existing, target))
        async with content(ctx, volume, record) as (image, tag):
            call.progress.phase("inspect")
            plan = await _plan(volume, record, store, image, backup, parent_of(target))
            if plan.note is not None:
                _log.warning("backup is full", volume=ref, snapshot=name, ref=backup, why=plan.note)
            outgoing = Outgoing(ctx, call, target.store, backup, request.durability)
            outgoing = replace(outgoing, replaces=await _ours_is_there(outgoing, volume, record))
            async with volume.handler.snapshots.disk(image, tag) as disk:
                extents = await _extents(disk, record.virtual_size, plan)
                laid_out = await ctx.engine.run(_layout, record.virtual_size, extents, plan.parent is not None)
                reader = LayoutReader(laid_out, disk, ctx.engine.network.of(disk))
                info, digest = await outgoing.send(reader, fills)
        changed = sum(extent.length for extent in extents if plan.parent is not None or not extent.zero)
        manifest = _manifest(record, backup, laid_out, info, digest, changed, plan)
        sent = _sent(call, store, manifest)
        try:
            await _publish(outgoing, manifest, plan, info.upload)
            await uninterrupted(volume.snapshots.note(record, sent))
        except AlreadyExists:
            raise  # somebody else's, who has written it meanwhile
        except BaseException:
            if info.upload is None:
                await uninterrupted(remove(store, manifest))
            raise
    return Copied(answer(target, sent), info.upload, plan.note)


def answer(target: SnapshotObjectTO, sent: Sent) -> SnapshotObjectTO:
    """With the parent that it really builds on: none for a full one."""
    parents = target.parents if sent.parent is not None else None
    now = {
        "path": sent.ref,
        "physicalSize": sent.size,
        "format": ImageFormat.QCOW2,
        "parentSnapshotPath": sent.parent,
        "parents": parents,
    }
    return target.model_copy(update=now)


async def resume(ctx: Context, call: Call, request: Copy) -> DataTO | None:
    """What a dead command left in the pool: finished, or None. Contacts no image store: an object that was left there without
    a manifest is no backup, and the next try replaces it."""
    source, target = request.source, request.destination
    assert source.type == "snapshot"
    assert target.type == "snapshot"
    ref, name = snapshot_name(source)
    try:
        async with opened_volume(ctx, call, source.store, ref, source.format) as volume:
            record, store = await found(volume, name), ctx.resolver.id_of(target.store)
            backup = _backup_ref(target)
            await volume.snapshots.discard_note(record, store, backup, token=call.token)
            sent = await volume.snapshots.sent(record, store, backup)
    except NotFound:
        return None
    done = sent is not None and sent.token == call.token and sent.manifest is not None
    return answer(target, sent) if sent is not None and done else None


# --------------------------------------------------------------------------------------------------------- before


def _backup_ref(target: SnapshotObjectTO) -> str:
    ref = ref_of(target)
    if ref.endswith(SUFFIX):
        raise InvalidReference(f"names that end in {SUFFIX} are those of manifests; choose another", ref=ref)
    return ref


def _fills(volume: Volume, target: SnapshotObjectTO) -> Accepts:
    return volume.handler.fills(Operation.BACK_UP, ImageSpec(target.format or ImageFormat.QCOW2))


async def _under_way(
    ctx: Context, volume: Volume, record: SnapshotRecord, store: DataStore, ref: str
) -> tuple[Sent, str] | None:
    """This very backup, if an earlier command has staged it and the store does not have all of it yet, and an upload that it
    still needs: to be waited for, not made once more."""
    sent = await volume.snapshots.sent(record, store.id, ref)
    if sent is None or sent.manifest is None:
        return None
    for part in (ref, manifest_ref(ref)):
        try:
            info = await ctx.resolver.staged(store, part, token=sent.token, durability=Durability.STAGED)
        except UploadCancelled:
            return None
        if info is not None and info.upload is not None:
            return sent, info.upload
    return None


async def _as_before(
    call: Call,
    volume: Volume,
    record: SnapshotRecord,
    store: DataStore,
    existing: Manifest,
    target: SnapshotObjectTO,
) -> DataTO:
    """A backup of the very snapshot that is there already needs no other one."""
    if existing.point != record.tag:
        raise AlreadyExists(
            f"{existing.ref} is a backup of another snapshot; delete it first, or choose another name", ref=existing.ref
        )
    await load_chain(store, existing.ref)
    sent = _sent(call, store, existing)
    await volume.snapshots.note(record, sent)
    return answer(target, sent)


async def _ours_is_there(outgoing: Outgoing, volume: Volume, record: SnapshotRecord) -> bool:
    """Whether an earlier try may have left an object: from now on it is known that one without a manifest is ours. Any other
    that is there is `AlreadyExists`."""
    store, ref = outgoing.store, outgoing.ref
    ours = await volume.snapshots.sent(record, store.id, ref) is not None
    if not ours:
        try:
            await store.stat(ref)
        except NotFound:
            pass
        else:
            raise AlreadyExists(
                f"{ref} exists already, is no backup, and this pool knows nothing of it: somebody else has put it there, or a"
                " command that died, from another pool or when the store had another address. `backups tree` shows it; delete"
                " it first, or choose another name",
                ref=ref,
            )
    await volume.snapshots.note(record, Sent(store=store.id, ref=ref, token=outgoing.call.token))
    return ours


def _sent(call: Call, store: DataStore, manifest: Manifest) -> Sent:
    return Sent(
        store=store.id,
        ref=manifest.ref,
        token=call.token,
        manifest=digest_of(manifest),
        size=manifest.content.size,
        parent=manifest.parent.ref if manifest.parent else None,
    )


async def _plan(
    volume: Volume, record: SnapshotRecord, store: DataStore, image: Source, ref: str, parent_ref: str | None
) -> Plan:
    if parent_ref is None:
        return Plan()
    try:
        parent = (await load_chain(store, parent_ref))[0].manifest
    except BrokenChain as error:
        return Plan(note=_full(error.message))
    if obstacle := why_not(parent, record, ref):
        return Plan(note=_full(obstacle))
    points = record.since[record.since.index(parent.point) :]
    changed = await volume.handler.snapshots.changes(image, points)
    if changed is None:
        return Plan(note=_full(f"what changed since {parent.snapshot} is not known any more"))
    return Plan(parent, changed)


def why_not(parent: Manifest, record: SnapshotRecord, ref: str) -> str | None:
    """What keeps a backup of that snapshot from building on `parent`. Pure."""
    if parent.ref.rpartition("/")[0] != ref.rpartition("/")[0]:
        return f"{parent.ref} is not in the same folder: backups that build on one another are kept together"
    if parent.point not in record.since:
        return f"what changed between {parent.snapshot} of {parent.volume} and {record.name} is not known"
    if record.virtual_size < parent.virtual_size:
        return f"the volume was larger when {parent.ref} was made"
    if parent.cluster_size != CLUSTER:
        return f"{parent.ref} has clusters of {parent.cluster_size} bytes"
    if parent.depth + 1 > DEEPEST:
        return f"{parent.ref} builds on {parent.depth} others already"
    return None


def _full(why: str) -> str:
    return f"this is a full backup: {why}"


# ---------------------------------------------------------------------------------------------------------- object


async def _extents(disk: RangeReader, size: int, plan: Plan) -> list[Extent]:
    """What the object says something about, in order: everything, or what changed."""
    wanted: Sequence[tuple[int, int]] = [(0, size)] if plan.parent is None else plan.changed
    return [
        extent
        for offset, length in wanted
        if offset < size
        for extent in await disk.extents(offset, min(length, size - offset))
    ]


def _layout(size: int, extents: Sequence[Extent], delta: bool) -> Layout:
    return layout(size, extents, cluster=CLUSTER, delta=delta)


def _manifest(
    record: SnapshotRecord, ref: str, laid_out: Layout, info: ObjectInfo, digest: str, changed: int, plan: Plan
) -> Manifest:
    parent = plan.parent
    return Manifest(
        ref=ref,
        content=Content(
            ref=ref, size=laid_out.size, sha256=digest, version=info.version if info.upload is None else None
        ),
        format=ImageFormat.QCOW2,
        virtual_size=laid_out.virtual_size,
        cluster_size=laid_out.cluster,
        changed=changed,
        parent=Below(ref=parent.ref, manifest=digest_of(parent)) if parent is not None else None,
        depth=parent.depth + 1 if parent is not None else 0,
        volume=record.volume,
        snapshot=record.name,
        point=record.tag,
        created=record.created,
    )


async def _publish(outgoing: Outgoing, manifest: Manifest, plan: Plan, upload: str | None) -> None:
    """From now on it is a backup, if what it builds on is still there. `upload`: that of the object, which is stored first."""
    store = outgoing.store
    if plan.parent is not None:
        parent = await load_manifest(store, plan.parent.ref)
        if parent is None or not parent.stands_for(digest_of(plan.parent)):
            raise BrokenChain(
                f"{plan.parent.ref} was deleted or replaced while {manifest.ref} was made on top of it: try again",
                ref=plan.parent.ref,
            )
    named = replace(outgoing, ref=manifest_ref(manifest.ref), replaces=False)
    await uninterrupted(named.send_small(text_of(manifest), follows=upload))
