"""The verbs on single images of a pool: Create, Delete, Resize, GetVolumeStats, ComputeChecksum."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from hypervisors.context import Context, require_room
from hypervisors.contract import HypervisorHandler, ImageInUse, ImageSpec, Operation, OperationUnsupported, Written
from hypervisors.copying import answer, format_in, make_record, present
from hypervisors.encrypting import passphrase_of, unlocked
from hypervisors.narrowing import as_reader, as_stream
from hypervisors.primary import Pool
from hypervisors.publishing import publishing
from hypervisors.snapshots import before_shrinking, opened_volume, remove_points, require_none
from hypervisors.sources import opened_image
from hypervisors.verbs import Call, ComputeChecksum, Create, Delete, GetVolumeStats, Resize, named, ref_of
from stores.contract import Kind
from stores.errors import AlreadyExists, InvalidReference, NotFound
from stores.to import DataTO, ProvisioningType, VolumeObjectTO
from stores.transfer.digests import Digester
from stores.uninterrupted import uninterrupted

_MEASURED_AT_ONCE = 4
"""Processes that one GetVolumeStats runs side by side."""


@dataclass(frozen=True, slots=True)
class VolumeStats:
    """Bytes: as it lies on disk, and as a guest sees it."""

    physical: int
    virtual: int


async def create(ctx: Context, call: Call, request: Create) -> DataTO:
    data = request.data
    if data.type != "volume":
        raise OperationUnsupported(f"only volumes are created empty, not a {data.type}")
    if not data.size or data.size < 0:
        raise InvalidReference("a new volume needs a size in bytes that is larger than 0", size=data.size)
    handler, pool, ref = ctx.handler(call.hypervisor), ctx.pool(call.hypervisor, data.store), ref_of(data)
    image_format, device = format_in(handler, pool.store, data.format)
    spec = ImageSpec(image_format, data.size, device=device, passphrase=passphrase_of(data, handler))
    kinds = handler.fills(Operation.CREATE, spec).kinds
    provisioning = data.provisioningType or ProvisioningType.THIN
    if await present(pool, ref) is not None:
        raise AlreadyExists(f"{ref} exists already; delete it first, or choose another name", ref=ref)
    if provisioning is ProvisioningType.FAT:
        require_room(await pool.store.usage(), data.size, pool.store.id)
    async with (
        publishing(pool, ref) as publication,
        ctx.resolver.create(pool.store, ref, kinds, token=call.token) as pending,
    ):
        written = await handler.create(pending, spec, provisioning)
        call.progress.phase("publish")
        record = make_record(ctx, call, written, origin=None, backing=None)
        info = await publication.publish(pending, record)
    return answer(data, ref, record, info.size)


async def delete(ctx: Context, call: Call, request: Delete) -> None:
    """Image first, then its record: in between there is a record alone, which counts as nothing."""
    pool, ref = ctx.pool(call.hypervisor, request.data.store), ref_of(request.data)
    if children := await pool.records.children(ref):
        raise ImageInUse(
            f"{ref} is the parent of {len(children)} linked clones; delete or flatten them first: {', '.join(children[:10])}",
            ref=ref,
            children=list(children),
        )
    await require_none(pool, ref)
    await uninterrupted(remove(pool, ref))


async def remove(pool: Pool, ref: str) -> None:
    """Whatever of an image and its record is there."""
    record = await pool.records.load(ref)
    await pool.store.delete(ref)
    await remove_points(pool, ref)
    await pool.records.remove(ref, record.parent if record is not None else None)


async def resize(ctx: Context, call: Call, request: Resize) -> VolumeObjectTO:
    volume, ref = request.volume, ref_of(request.volume)
    passphrase = passphrase_of(volume, ctx.handler(call.hypervisor))
    async with opened_volume(ctx, call, volume.store, ref, volume.format, encrypted=True) as opened:
        source = unlocked(opened.source, opened.record, passphrase)
        present_size = (await opened.handler.measure(source)).virtual_size
        if request.shrink_ok and request.new_size < present_size:
            await before_shrinking(opened, call.token)
        written = await opened.handler.resize(source, request.new_size, shrink=request.shrink_ok)
    await _remember_size(ctx, call, opened.pool, ref, written)
    return volume.model_copy(update={"path": ref, "size": written.virtual_size, "format": written.format})


async def _remember_size(ctx: Context, call: Call, pool: Pool, ref: str, written: Written) -> None:
    """An image without a record gets one: from now on its format is known without the command."""
    record = await pool.records.load(ref)
    if record is None:
        record = make_record(ctx, call, written, origin=None, backing=None)
    record = record.model_copy(update={"virtual_size": written.virtual_size})
    await uninterrupted(pool.records.save(ref, record, token=call.token, replace=True))


async def volume_stats(ctx: Context, call: Call, request: GetVolumeStats) -> dict[str, VolumeStats]:
    handler, pool = ctx.handler(call.hypervisor), ctx.pool(call.hypervisor, request.pool)
    turns = asyncio.Semaphore(_MEASURED_AT_ONCE)

    async def measured(path: str) -> tuple[str, VolumeStats | None]:
        async with turns:
            return path, await _stats(ctx, handler, pool, named(path))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(measured(path)) for path in dict.fromkeys(request.paths)]
    return {path: stats for path, stats in (task.result() for task in tasks) if stats is not None}


async def _stats(ctx: Context, handler: HypervisorHandler, pool: Pool, ref: str) -> VolumeStats | None:
    if await pool.records.load(ref) is None:
        return None
    try:
        async with opened_image(ctx, handler, pool, await pool.store.stat(ref), None, encrypted=True) as source:
            written = await handler.measure(source)
    except NotFound:
        return None
    return VolumeStats(written.physical_size, written.virtual_size)


async def checksum(ctx: Context, call: Call, request: ComputeChecksum) -> str:
    algorithm = request.algorithm.lower().replace("-", "")
    digester = Digester([algorithm])
    store = ctx.store(call.hypervisor, request.store)
    info = await store.stat(named(request.path))
    call.progress.phase("checksum", info.size)
    if Kind.RANGE_READER in store.offers(info) and info.ranges and info.size is not None:
        async with store.present(info, Kind.RANGE_READER) as presentation:
            return (await ctx.engine.digest(as_reader(presentation), [algorithm], call.progress))[algorithm]
    async with store.present(info, Kind.BYTE_STREAM) as presentation:
        async for piece in as_stream(presentation):
            await ctx.engine.run(digester.update, piece)
            call.progress.advance(len(piece))
    return digester.hexdigests()[algorithm]
