"""Images that others put into a pool become known, and what is known of an image is forgotten. The images stay as they are."""

from __future__ import annotations

from hypervisors.context import Context
from hypervisors.contract import HypervisorHandler, ImageInUse, ImageSpec, Operation, OperationUnsupported
from hypervisors.copying import answer, format_in, make_record
from hypervisors.primary import Pool
from hypervisors.snapshots import remove_points, require_none
from hypervisors.sources import examine, opened_image
from hypervisors.verbs import Call, Forget, Introduce, ref_of
from stores.contract import Kind, ObjectInfo
from stores.errors import InvalidReference
from stores.to import DataTO, ImageFormat
from stores.uninterrupted import uninterrupted


async def introduce(ctx: Context, call: Call, request: Introduce) -> DataTO:
    """See `Operations.introduce`."""
    data = _image(request.data)
    handler, pool, ref = ctx.handler(call.hypervisor), ctx.pool(call.hypervisor, data.store), ref_of(data)
    info = await pool.store.stat(ref)
    record = await pool.records.load(ref)
    if record is None:
        declared = await _vouched_for(ctx, handler, pool, info, data.format)
        async with opened_image(ctx, handler, pool, info, declared) as source:
            record = make_record(ctx, call, await handler.measure(source), origin=None, backing=None)
        await uninterrupted(pool.records.save(ref, record, token=call.token))
    return answer(data, ref, record, info.size)


async def forget(ctx: Context, call: Call, request: Forget) -> None:
    """See `Operations.forget`."""
    data = _image(request.data)
    pool, ref = ctx.pool(call.hypervisor, data.store), ref_of(data)
    if children := await pool.records.children(ref):
        raise ImageInUse(
            f"{ref} is the parent of {len(children)} linked clones, which need what is known of it:"
            f" {', '.join(children[:10])}",
            ref=ref,
            children=list(children),
        )
    record = await pool.records.load(ref)
    if record is not None and record.parent is not None:
        raise ImageInUse(
            f"{ref} is a linked clone of {record.parent}, and only its record says so; flatten it first",
            ref=ref,
            children=[],
        )
    await require_none(pool, ref)
    await uninterrupted(_forgotten(pool, ref))


async def _forgotten(pool: Pool, ref: str) -> None:
    await remove_points(pool, ref)
    await pool.records.remove(ref, None)


def _image(data: DataTO) -> DataTO:
    if data.type == "snapshot":
        raise OperationUnsupported("only volumes and templates are introduced and forgotten, not snapshots")
    return data


async def _vouched_for(
    ctx: Context, handler: HypervisorHandler, pool: Pool, info: ObjectInfo, declared: ImageFormat | None
) -> ImageFormat:
    """What is a file passes the gate, as whatever comes from outside, in the format that the command says: its bytes may be a
    guest's. A disk that the hypervisor itself keeps is what the hypervisor says, and one of raw bytes is nothing else."""
    if Kind.MANAGED_DISK in pool.store.offers(info):
        return declared or handler.native_format
    if pool.devices:
        image_format, device = format_in(handler, pool.store, declared)
        handler.fills(Operation.CREATE, ImageSpec(image_format, device=device))
        return image_format
    if declared is None:
        raise InvalidReference(f"the format of {info.ref} is not guessed; name it in the command", ref=info.ref)
    async with examine(pool.store, info, declared, ctx.limits) as examined:
        return examined.spec.format or declared
