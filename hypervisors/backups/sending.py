"""Copy of a snapshot in a pool to an image store: a full backup, or what changed since the one it builds on.

    note in the pool -> object -> manifest -> note again

The manifest makes it a backup. An object without one, left by a command that died, is known by the note, and replaced by the
next try. What was stored before is never touched: a failed incremental harms nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import structlog

from hypervisors.backups.chain import load_chain, load_manifest
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
from hypervisors.images.disk_image import DiskImage
from hypervisors.outgoing import DIGEST, Commit, Outgoing
from hypervisors.snapshot_records import Kept, Sent, SnapshotRecord
from hypervisors.snapshots import Volume, content, found, opened_volume
from hypervisors.verbs import Call, Copy, parent_of, ref_of, snapshot_name
from stores.cache.writeback.errors import UploadCancelled
from stores.contract import DataStore, ObjectInfo
from stores.errors import AlreadyExists, InvalidReference, NotFound
from stores.resolver import Durability
from stores.to import DataTO, ImageFormat, SnapshotObjectTO
from stores.transfer.engine import Fetched
from stores.uninterrupted import uninterrupted

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is sent: what changed since `parent`, whose point is the first of `points`; or without one everything, because of
    `note` if a parent was asked for."""

    parent: Manifest | None = None
    points: Sequence[str] = ()
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
        if (earlier := await made_before(ctx, call, volume, record, target)) is not None:
            return earlier

        async def let_go() -> None:
            if record.kept is Kept.HELD:
                await volume.handler.snapshots.drop(volume.source, record.tag)

        outgoing = Outgoing(ctx, call, target.store, backup, request.durability, let_go=let_go)
        async with outgoing.both_or_neither() as commit:
            manifest, plan, upload = await _content(outgoing, volume, record, parent_of(target), fills, commit)
            sent = _sent(call, store, manifest)
            try:
                await _publish(outgoing, manifest, plan, upload)
                await uninterrupted(volume.snapshots.note(record, sent))
            except AlreadyExists:
                commit.forget()  # somebody else's, who has written it meanwhile
                raise
            except BaseException:
                if upload is None:
                    await uninterrupted(store.delete(manifest_ref(backup)))
                raise
    return Copied(answer(target, sent), upload, plan.note)


def answer(target: SnapshotObjectTO, sent: Sent) -> SnapshotObjectTO:
    """With the parent that it really builds on: none for a full one."""
    parents = target.parents if sent.parent is not None else None
    now = {
        "path": sent.ref,
        "physicalSize": sent.size,
        "format": sent.format,
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
            record, store = await volume.snapshots.load(ref, name), ctx.resolver.id_of(target.store)
            if record is None:
                return None
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
    return volume.handler.fills(Operation.BACK_UP, ImageSpec(target.format or volume.handler.snapshots.backup_format))


async def made_before(
    ctx: Context, call: Call, volume: Volume, record: SnapshotRecord, target: SnapshotObjectTO
) -> Copied | None:
    """This very backup, if it is in the store, or on its way there. `AlreadyExists` for another one under its name."""
    store, backup = ctx.resolver.store(target.store), _backup_ref(target)
    under_way = await _under_way(ctx, volume, record, store, backup)
    if under_way is not None:
        earlier, pending = under_way
        return Copied(answer(target, earlier), pending)
    existing = await load_manifest(store, backup)
    if existing is not None:
        return Copied(await _as_before(call, volume, record, store, existing, target))
    return None


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
        format=manifest.format,
        parent=manifest.parent.ref if manifest.parent else None,
    )


async def _plan(
    record: SnapshotRecord, store: DataStore, ref: str, parent_ref: str | None, image_format: ImageFormat
) -> Plan:
    if parent_ref is None:
        return Plan()
    try:
        parent = (await load_chain(store, parent_ref))[0].manifest
    except BrokenChain as error:
        return Plan(note=_full(error.message))
    if obstacle := why_not(parent, record, ref, image_format):
        return Plan(note=_full(obstacle))
    return Plan(parent, record.since[record.since.index(parent.point) :])


def why_not(parent: Manifest, record: SnapshotRecord, ref: str, image_format: ImageFormat) -> str | None:
    """What keeps a backup of that snapshot from building on `parent`. Pure."""
    if parent.ref.rpartition("/")[0] != ref.rpartition("/")[0]:
        return f"{parent.ref} is not in the same folder: backups that build on one another are kept together"
    if parent.point not in record.since:
        return f"what changed between {parent.snapshot} of {parent.volume} and {record.name} is not known"
    if record.virtual_size < parent.virtual_size:
        return f"the volume was larger when {parent.ref} was made"
    if parent.format != image_format:
        return f"{parent.ref} is a {parent.format} image, and this one is to be {image_format}"
    if parent.depth + 1 > DEEPEST:
        return f"{parent.ref} builds on {parent.depth} others already"
    return None


def _full(why: str) -> str:
    return f"this is a full backup: {why}"


# ---------------------------------------------------------------------------------------------------------- object


async def _content(
    outgoing: Outgoing,
    volume: Volume,
    record: SnapshotRecord,
    parent_ref: str | None,
    fills: Accepts,
    commit: Commit,
) -> tuple[Manifest, Plan, str | None]:
    """The object is sent: its manifest, what was really done, and the id of its upload if it is not stored yet."""
    outgoing.call.progress.phase("inspect")
    async with content(outgoing.ctx, volume, record) as (image, tag):
        backup_format = volume.handler.snapshots.backup_format
        plan = await _plan(record, outgoing.store, outgoing.ref, parent_ref, backup_format)
        outgoing = replace(outgoing, replaces=await _ours_is_there(outgoing, volume, record))
        async with _image(volume, record, image, tag, plan) as (made, done):
            if done.note is not None:
                _log.warning(
                    "backup is full", volume=record.volume, snapshot=record.name, ref=outgoing.ref, why=done.note
                )
            info, sent = await outgoing.send(made.content, fills, commit)
    return _manifest(record, outgoing.ref, made, info, sent, done), done, info.upload


@asynccontextmanager
async def _image(
    volume: Volume, record: SnapshotRecord, image: Source, tag: str | None, plan: Plan
) -> AsyncIterator[tuple[DiskImage, Plan]]:
    """What the object will be, and what is really done: everything, where what changed cannot be told."""
    handling = volume.handler.snapshots
    async with AsyncExitStack() as stack:
        if plan.parent is not None:
            delta = handling.delta(image, tag, plan.points, record.virtual_size)
            if (made := await stack.enter_async_context(delta)) is not None:
                yield made, plan
                return
            plan = Plan(note=_full(f"what changed since {plan.parent.snapshot} is not known any more"))
        spec = ImageSpec(handling.backup_format, record.virtual_size)
        yield await stack.enter_async_context(handling.image(image, tag, spec)), plan


def _manifest(
    record: SnapshotRecord, ref: str, made: DiskImage, info: ObjectInfo, sent: Fetched, plan: Plan
) -> Manifest:
    parent = plan.parent
    return Manifest(
        ref=ref,
        content=Content(
            ref=ref, size=sent.size, sha256=sent.digests[DIGEST], version=info.version if info.upload is None else None
        ),
        format=made.format,
        virtual_size=made.virtual_size,
        cluster_size=made.cluster,
        changed=made.changed(),
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
