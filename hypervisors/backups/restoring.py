"""Copy of a backup, or of a snapshot in a pool, to a volume or template of a pool.

The whole chain is checked before anything is written. Its disk is then written as one image, whose metadata are ours: of the
objects nothing but data gets into it, each part from the newest that has it, each once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from hypervisors.backups.chain import load_chain, require_unchanged
from hypervisors.backups.disk import Sized, chain_disk
from hypervisors.backups.manifest import digest_of
from hypervisors.context import Context, require_room
from hypervisors.contract import ImageSpec, Operation
from hypervisors.copying import Copied, answer, as_before, make_record, present, sized, target_spec
from hypervisors.publishing import publishing
from hypervisors.records import Origin
from hypervisors.snapshots import content, found, opened_volume
from hypervisors.verbs import Call, Copy, named, ref_of, snapshot_name
from stores.contract import ObjectInfo, RangeReader
from stores.to import SnapshotObjectTO


@dataclass(frozen=True, slots=True)
class Given:
    """A disk to restore. `store` and `info` name where it is from and which it is; `most`: the bytes that it can take."""

    store: str
    info: ObjectInfo
    spec: ImageSpec
    most: int


DiskOf: TypeAlias = Callable[[int], AbstractAsyncContextManager[RangeReader]]
"""Opens the disk, as large as asked: what it lacks is zero."""


async def restore(ctx: Context, call: Call, request: Copy) -> Copied:
    """See `Operations.copy`."""
    source, destination = request.source, request.destination
    assert source.type == "snapshot"
    handler, pool, ref = ctx.handler(call.hypervisor), ctx.pool(call.hypervisor, destination.store), ref_of(destination)
    call.progress.phase("inspect")
    async with to_restore(ctx, call, source) as (given, disk_of):
        wanted = sized(target_spec(handler, given.spec.format, destination), given.spec)
        kinds = handler.fills(Operation.RESTORE, wanted).kinds
        existing = await present(pool, ref)
        if existing is not None:
            return Copied(as_before(destination, ref, existing, given.store, given.info, None))
        require_room(await pool.store.usage(), given.most, pool.store.id)
        size = wanted.virtual_size or given.most
        async with (
            publishing(pool, ref) as publication,
            ctx.resolver.create(pool.store, ref, kinds, token=call.token) as pending,
            disk_of(size) as disk,
        ):
            call.progress.phase("restore", size)
            written = await handler.snapshots.fill(disk, pending, wanted, call.progress)
            call.progress.phase("publish")
            origin = Origin(store=given.store, ref=given.info.ref, version=given.info.version)
            record = make_record(ctx, call, written, origin=origin, backing=None)
            published = await publication.publish(pending, record)
    return Copied(answer(destination, ref, record, published.size))


def to_restore(ctx: Context, call: Call, source: SnapshotObjectTO) -> AbstractAsyncContextManager[tuple[Given, DiskOf]]:
    """A snapshot in a pool, or a backup with all that it builds on, checked: `BrokenChain` or `BackupDamaged`."""
    return _local(ctx, call, source) if source.store.storeType == "primary" else _remote(ctx, call, source)


@asynccontextmanager
async def _remote(ctx: Context, call: Call, source: SnapshotObjectTO) -> AsyncIterator[tuple[Given, DiskOf]]:
    store = ctx.resolver.store(source.store)
    parents = [named(parent) for parent in source.parents or ()]
    links = await load_chain(store, ref_of(source), parents)
    await require_unchanged(store, ctx.engine, links, call.progress)
    newest = links[0].manifest
    given = Given(
        store=store.id,
        info=ObjectInfo(newest.ref, newest.content.size, version=digest_of(newest)),
        spec=ImageSpec(newest.format, newest.virtual_size),
        most=min(newest.virtual_size, sum(link.manifest.content.size for link in links)),
    )
    yield given, partial(chain_disk, ctx, store, links)


@asynccontextmanager
async def _local(ctx: Context, call: Call, source: SnapshotObjectTO) -> AsyncIterator[tuple[Given, DiskOf]]:
    ref, name = snapshot_name(source)
    async with opened_volume(ctx, call, source.store, ref, source.format) as volume:
        record = await found(volume, name)
        given = Given(
            store=volume.pool.store.id,
            info=ObjectInfo(f"{ref}/{name}", None, version=record.tag),
            spec=ImageSpec(record.format, record.virtual_size),
            most=record.virtual_size,
        )

        @asynccontextmanager
        async def disk_of(size: int) -> AsyncIterator[RangeReader]:
            async with content(ctx, volume, record) as (image, tag), volume.handler.snapshots.disk(image, tag) as disk:
                yield Sized(disk, record.virtual_size, size)

        yield given, disk_of
