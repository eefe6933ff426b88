"""Copy of a backup, or of a snapshot in a pool, to a volume or template of a pool.

The whole chain is checked before anything is written. Its disk is then written as one image, whose metadata are ours: of the
objects nothing but data gets into it, each part from the newest that has it, each once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

from hypervisors.backups.chain import load_chain, require_unchanged
from hypervisors.backups.disk import chain_disk
from hypervisors.backups.manifest import digest_of
from hypervisors.context import Context, require_room
from hypervisors.contract import ImageSpec, Operation, Written
from hypervisors.copying import Copied, answer, as_before, make_record, present, sized, target_spec
from hypervisors.images.disk_image import DiskImage, laid_out
from hypervisors.publishing import publishing
from hypervisors.records import Origin
from hypervisors.snapshots import content, found, opened_volume
from hypervisors.verbs import Call, Copy, named, ref_of, snapshot_name
from stores.contract import ObjectInfo, PendingWrite
from stores.to import SnapshotObjectTO


@dataclass(frozen=True, slots=True)
class Given:
    """A disk to restore. `store` and `info` name where it is from and which it is; `most`: the bytes that it can take."""

    store: str
    info: ObjectInfo
    spec: ImageSpec
    most: int
    fill: Fill
    image: ImageOf


Fill: TypeAlias = Callable[[PendingWrite, ImageSpec], Awaitable[Written]]
"""Writes the disk, as large as asked (what it lacks is zero), into what its caller then commits."""

ImageOf: TypeAlias = Callable[[ImageSpec], AbstractAsyncContextManager[DiskImage]]
"""Opens the disk as an image to be sent."""


async def restore(ctx: Context, call: Call, request: Copy) -> Copied:
    """See `Operations.copy`."""
    source, destination = request.source, request.destination
    assert source.type == "snapshot"
    handler, pool, ref = ctx.handler(call.hypervisor), ctx.pool(call.hypervisor, destination.store), ref_of(destination)
    call.progress.phase("inspect")
    async with to_restore(ctx, call, source) as given:
        wanted = sized(target_spec(handler, pool.store, given.spec.format, destination), given.spec)
        kinds = handler.fills(Operation.RESTORE, wanted).kinds
        existing = await present(pool, ref)
        if existing is not None:
            return Copied(as_before(destination, ref, existing, given.store, given.info, None))
        require_room(await pool.store.usage(), given.most, pool.store.id)
        size = wanted.virtual_size or given.most
        async with (
            publishing(pool, ref) as publication,
            ctx.resolver.create(pool.store, ref, kinds, token=call.token) as pending,
        ):
            call.progress.phase("restore", size)
            written = await given.fill(pending, replace(wanted, virtual_size=size))
            call.progress.phase("publish")
            origin = Origin(store=given.store, ref=given.info.ref, version=given.info.version)
            record = make_record(ctx, call, written, origin=origin, backing=None)
            published = await publication.publish(pending, record)
    return Copied(answer(destination, ref, record, published.size))


def to_restore(ctx: Context, call: Call, source: SnapshotObjectTO) -> AbstractAsyncContextManager[Given]:
    """A snapshot in a pool, or a backup with all that it builds on, checked: `BrokenChain` or `BackupDamaged`."""
    return _local(ctx, call, source) if source.store.storeType == "primary" else _remote(ctx, call, source)


@asynccontextmanager
async def _remote(ctx: Context, call: Call, source: SnapshotObjectTO) -> AsyncIterator[Given]:
    store, handling = ctx.resolver.store(source.store), ctx.handler(call.hypervisor).snapshots
    parents = [named(parent) for parent in source.parents or ()]
    links = await load_chain(store, ref_of(source), parents)
    await require_unchanged(store, ctx.engine, links, call.progress)
    newest = links[0].manifest

    async def fill(target: PendingWrite, spec: ImageSpec) -> Written:
        async with chain_disk(ctx, store, links, spec.virtual_size) as disk:
            return await handling.fill(disk, target, spec, call.progress)

    @asynccontextmanager
    async def image(spec: ImageSpec) -> AsyncIterator[DiskImage]:
        async with chain_disk(ctx, store, links) as disk:
            yield await laid_out(ctx.engine, disk, spec.format or newest.format)

    yield Given(
        store=store.id,
        info=ObjectInfo(newest.ref, newest.content.size, version=digest_of(newest)),
        spec=ImageSpec(newest.format, newest.virtual_size),
        most=min(newest.virtual_size, sum(link.manifest.content.size for link in links)),
        fill=fill,
        image=image,
    )


@asynccontextmanager
async def _local(ctx: Context, call: Call, source: SnapshotObjectTO) -> AsyncIterator[Given]:
    ref, name = snapshot_name(source)
    async with opened_volume(ctx, call, source.store, ref, source.format) as volume:
        record, handling = await found(volume, name), volume.handler.snapshots

        async def fill(target: PendingWrite, spec: ImageSpec) -> Written:
            async with content(ctx, volume, record) as (image, tag):
                return await handling.extract(image, tag, target, spec, call.progress)

        @asynccontextmanager
        async def image(spec: ImageSpec) -> AsyncIterator[DiskImage]:
            async with content(ctx, volume, record) as (kept, tag), handling.image(kept, tag, spec) as made:
                yield made

        yield Given(
            store=volume.pool.store.id,
            info=ObjectInfo(f"{ref}/{name}", None, version=record.tag),
            spec=ImageSpec(record.format, record.virtual_size),
            most=record.virtual_size,
            fill=fill,
            image=image,
        )
