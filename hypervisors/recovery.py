"""After a crash: what became of a request, judged by what lies in its pool.

Images are published after their records, and records say which command wrote them. So an image whose record carries the
command's token is finished, and everything else that carries it is a leftover. Needs no image store. All of it is idempotent.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from hypervisors import attaching, guest_volumes, migrating, reverting, snapshots
from hypervisors.backups import direct, sending
from hypervisors.context import Context
from hypervisors.contract import HypervisorType, Operation, OperationUnsupported
from hypervisors.copying import Copied, answer, operation_of
from hypervisors.pools import probe_ref
from hypervisors.primary import Pool
from hypervisors.sources import opened_image
from hypervisors.verbs import (
    AttachIso,
    AttachVolume,
    Call,
    Copy,
    Create,
    CreatePool,
    Delete,
    DetachIso,
    DetachVolume,
    Forget,
    Introduce,
    Migrate,
    ModifyPool,
    Request,
    Resize,
    Revert,
    is_direct,
    is_linked,
    ref_of,
)
from hypervisors.volumes import remove
from stores.errors import InvalidReference, NotFound, StoreUnsupported
from stores.to import DataTO, PrimaryDataStoreTO


@dataclass(frozen=True, slots=True)
class Recovered:
    """`answer` is what the verb would have returned, where the request was found finished."""

    outcome: Literal["finished", "undone"]
    answer: object = None


_UNDONE = Recovered("undone")


async def recover(ctx: Context, hypervisor: HypervisorType, request: Request, token: str) -> Recovered:
    """See `Operations.recover`."""
    try:
        return await _recover(ctx, Call(token, hypervisor), request)
    except (InvalidReference, OperationUnsupported, StoreUnsupported):
        return _UNDONE  # the request itself was refused for this, before anything was written


async def _recover(ctx: Context, call: Call, request: Request) -> Recovered:
    match request:
        case Copy() if is_direct(request):
            taken = await direct.resume(ctx, call, request)
            return Recovered("finished", Copied(taken)) if taken is not None else _UNDONE
        case Copy() if operation_of(request) is Operation.BACK_UP:
            backup = await sending.resume(ctx, call, request)
            return Recovered("finished", Copied(backup)) if backup is not None else _UNDONE
        case Copy(source, made):
            copied = await _made(ctx, call, made, parent=ref_of(source) if is_linked(source, made) else None)
            return Recovered("finished", Copied(copied)) if copied is not None else _UNDONE
        case Create(made) if made.type == "snapshot":
            snapshot = await snapshots.resume(ctx, call, made)
            return Recovered("finished", snapshot) if snapshot is not None else _UNDONE
        case Create(made):
            created = await _made(ctx, call, made, parent=None)
            return Recovered("finished", created) if created is not None else _UNDONE
        case Delete(data) if data.type == "snapshot":
            await snapshots.resume_deleting(ctx, call, data)
            return Recovered("finished")
        case Revert():
            reverted = await reverting.resume(ctx, call, request)
            return Recovered("finished", reverted) if reverted is not None else _UNDONE
        case Delete(data):
            return await _deleted(ctx, call, data)
        case Resize():
            return await _resized(ctx, call, request)
        case Migrate():
            moved = await migrating.resume(ctx, call, request)
            return Recovered("finished", moved) if moved is not None else _UNDONE
        case CreatePool(pool) | ModifyPool(pool):
            return await _probed(ctx, call, pool)
        case AttachIso():
            in_drive = await attaching.resume(ctx, call, request)
            return Recovered("finished", in_drive) if in_drive is not None else _UNDONE
        case DetachIso():
            await attaching.detach(ctx, call, request)
            return Recovered("finished")
        case AttachVolume():
            attached = await guest_volumes.resume_attaching(ctx, call, request)
            return Recovered("finished", attached) if attached is not None else _UNDONE
        case DetachVolume():
            return Recovered("finished") if await guest_volumes.resume_detaching(ctx, call, request) else _UNDONE
        case Introduce(data):
            introduced = await _made(ctx, call, data, parent=None)
            return Recovered("finished", introduced) if introduced is not None else _UNDONE
        case Forget(data):
            known = await ctx.pool(call.hypervisor, data.store).records.load(ref_of(data))
            return Recovered("finished") if known is None else _UNDONE
        case _:
            return _UNDONE  # changes nothing


async def _made(ctx: Context, call: Call, made: DataTO, *, parent: str | None) -> DataTO | None:
    pool, ref = ctx.pool(call.hypervisor, made.store), ref_of(made)
    record = await pool.records.load(ref)
    ours = record is not None and record.token == call.token
    size = await _size(pool, ref)
    await pool.discard(ref, parent, token=call.token)
    if record is None or (ours and size is None):
        await pool.records.remove(ref, parent)
        return None
    return answer(made, ref, record, size) if ours else None


async def _deleted(ctx: Context, call: Call, data: DataTO) -> Recovered:
    """Once the image is gone the rest follows. While it is there nothing was done yet."""
    pool, ref = ctx.pool(call.hypervisor, data.store), ref_of(data)
    if await _size(pool, ref) is not None:
        return _UNDONE
    await remove(pool, ref)
    return Recovered("finished")


async def _resized(ctx: Context, call: Call, request: Resize) -> Recovered:
    """qemu writes the new size in one step: the image has either."""
    pool, ref = ctx.pool(call.hypervisor, request.volume.store), ref_of(request.volume)
    await pool.records.discard(ref, None, token=call.token)
    if await _size(pool, ref) is None:
        return _UNDONE
    handler, info = ctx.handler(call.hypervisor), await pool.store.stat(ref)
    async with opened_image(ctx, handler, pool, info, request.volume.format, encrypted=True) as source:
        written = await handler.measure(source)
    if written.virtual_size != request.new_size:
        return _UNDONE
    record = await pool.records.load(ref)
    if record is not None and record.virtual_size != request.new_size:
        changed = record.model_copy(update={"virtual_size": request.new_size})
        await pool.records.save(ref, changed, token=call.token, replace=True)
    now = {"path": ref, "size": request.new_size, "format": written.format}
    return Recovered("finished", request.volume.model_copy(update=now))


async def _probed(ctx: Context, call: Call, to: PrimaryDataStoreTO) -> Recovered:
    with suppress(NotFound):  # the pool was not made yet
        await ctx.pool(call.hypervisor, to).store.discard(probe_ref(call.token), token=call.token)
    return _UNDONE


async def _size(pool: Pool, ref: str) -> int | None:
    if pool.store.given:
        record = await pool.records.load(ref)
        return record.virtual_size if record is not None else None
    try:
        return (await pool.store.stat(ref)).size
    except NotFound:
        return None
