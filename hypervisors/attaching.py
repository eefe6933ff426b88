"""ISOs for guests: in the guest's drive, where the hypervisor keeps them; else a file on this host for as long as the guest may
read it, which goes into the guest's drive where its machines take files, and otherwise is somebody else's to give to it.

What holds the file is one claim, named after guest and ISO. It is made in one step, so that it is there or is not, whatever the
moment at which the agent dies. So is what a drive holds. The claim comes before the drive, and goes after it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from hypervisors.context import Context
from hypervisors.contract import ImageSpec, Operation, OperationUnsupported, Source
from hypervisors.guests import Guests
from hypervisors.images.gate import inspect
from hypervisors.narrowing import as_local, as_managed, as_reader
from hypervisors.snapshots import opened_volume
from hypervisors.verbs import AttachIso, Call, DetachIso, Prefetch, attachment, ref_of
from stores.contract import Kind, LocalPath, ObjectInfo
from stores.errors import NotFound, StorageError, StoreUnsupported
from stores.resolver import CacheUse, Via
from stores.to import DataTO, ImageFormat, TemplateObjectTO
from stores.uninterrupted import uninterrupted

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Attached:
    """`path`: of the file on this host, or the disk's own in its pool. `device`: the guest's drive that it is in, if we put it
    there."""

    path: str
    device: int | None = None


async def attach(ctx: Context, call: Call, request: AttachIso) -> Attached:
    """See `Operations.attach_iso`."""
    if _kept_by_hypervisor(ctx, call, request.iso):
        async with opened_volume(ctx, call, request.iso.store, ref_of(request.iso), ImageFormat.ISO) as iso:
            inserted = await iso.handler.guests.insert(request.vm, iso.source)
            return Attached(iso.info.ref, inserted.device)
    guests = _taking_files(ctx, call)
    if request.insert and guests is None:
        raise OperationUnsupported(
            f"the {call.hypervisor} handler puts an ISO into a guest's drive only from a pool that the hypervisor itself keeps;"
            " nothing was attached; where there is such a pool, copy the ISO there and attach it from there",
            hypervisor=call.hypervisor.value,
        )
    spec = ImageSpec(ImageFormat.ISO)
    accepted = ctx.handler(call.hypervisor).accepts(Operation.ATTACH_ISO, spec, spec).kinds
    if Kind.LOCAL_PATH not in accepted:
        raise OperationUnsupported(f"the {call.hypervisor} handler does not attach an ISO from a file")
    store = ctx.resolver.store(request.iso.store)
    call.progress.phase("inspect")
    info = await store.stat(ref_of(request.iso))
    via = ctx.resolver.negotiate(store, info, (Kind.LOCAL_PATH,)).via
    use = CacheUse.PREFERRED if via is Via.CACHE else None  # what the gate reads is the beginning of what is kept
    wait_s = (
        0.0 if info.ranges else None
    )  # where there is no room yet, the gate does not wait: what keeps the file does
    async with ctx.resolver.open(
        store, info, (Kind.RANGE_READER,), cache=use, wait_s=wait_s, progress=call.progress
    ) as presentation:
        await inspect(as_reader(presentation), declared=ImageFormat.ISO, limits=ctx.limits)
        what = attachment(request.iso, request.vm)
        kept = await ctx.resolver.keep(store, info, what, token=call.token, progress=call.progress)
    if guests is None:
        return Attached(str(kept))
    call.progress.phase("attach")
    return await _insert(ctx, call, request, guests, _as_iso(kept, info))


async def detach(ctx: Context, call: Call, request: DetachIso) -> None:
    """See `Operations.detach_iso`."""
    if not _kept_by_hypervisor(ctx, call, request.iso):
        guests = _taking_files(ctx, call)
        if guests is not None and (file := await _file_of(ctx, request.iso, request.vm)) is not None:
            await guests.eject(request.vm, file)
        await ctx.resolver.let_go(attachment(request.iso, request.vm))
        return
    with suppress(NotFound):  # and so in no drive
        async with opened_volume(ctx, call, request.iso.store, ref_of(request.iso), ImageFormat.ISO) as iso:
            await iso.handler.guests.eject(request.vm, iso.source)


async def resume(ctx: Context, call: Call, request: AttachIso) -> Attached | None:
    """After a crash: what is in the guest's drive stays there; nobody was told of a file, which goes."""
    if not _kept_by_hypervisor(ctx, call, request.iso):
        guests = _taking_files(ctx, call)
        if guests is not None and (file := await _file_of(ctx, request.iso, request.vm)) is not None:
            with suppress(NotFound):
                if (device := await _drive_of(guests, request.vm, file)) is not None:
                    return Attached(str(as_local(file.presentation).path), device)
        await ctx.resolver.let_go(attachment(request.iso, request.vm), token=call.token)
        return None
    with suppress(NotFound):
        async with opened_volume(ctx, call, request.iso.store, ref_of(request.iso), ImageFormat.ISO) as iso:
            for each in await iso.handler.guests.attached(request.vm):
                if each.drive and each.disk == as_managed(iso.source.presentation).id:
                    return Attached(iso.info.ref, each.device)
    return None


def _kept_by_hypervisor(ctx: Context, call: Call, iso: TemplateObjectTO) -> bool:
    """Whether it is a disk of the hypervisor's own. Contacts nothing."""
    spec = ImageSpec(ImageFormat.ISO)
    accepted = ctx.handler(call.hypervisor).accepts(Operation.ATTACH_ISO, spec, spec).kinds
    return iso.store.storeType == "primary" and Kind.MANAGED_DISK in accepted


def _taking_files(ctx: Context, call: Call) -> Guests | None:
    """Machines whose drives take a file of this host, where there are such."""
    try:
        guests = ctx.handler(call.hypervisor).guests
    except OperationUnsupported:
        return None
    return guests if guests.reads is Kind.LOCAL_PATH else None


async def _insert(ctx: Context, call: Call, request: AttachIso, guests: Guests, iso: Source) -> Attached:
    """Into the guest's drive; or nothing of what this command has done is left."""
    was_there = False
    try:
        was_there = await _drive_of(guests, request.vm, iso) is not None
        inserted = await guests.insert(request.vm, iso)
    except BaseException:
        if not was_there:
            await uninterrupted(_take_back(ctx, call, request, guests, iso))
        raise
    return Attached(str(as_local(iso.presentation).path), inserted.device)


async def _take_back(ctx: Context, call: Call, request: AttachIso, guests: Guests, iso: Source) -> None:
    """As far as possible, after a failure, which is what is told. A file that may be in a drive stays."""
    try:
        await guests.eject(request.vm, iso)
        await ctx.resolver.let_go(attachment(request.iso, request.vm), token=call.token)
    except StorageError as problem:
        _log.warning("ISO left attached", vm=request.vm, iso=iso.presentation.info.ref, error=problem.message)


async def _drive_of(guests: Guests, vm: str, iso: Source) -> int | None:
    """The number of the guest's drive that holds it."""
    path = str(as_local(iso.presentation).path)
    return next((each.device for each in await guests.attached(vm) if each.drive and each.disk == path), None)


async def _file_of(ctx: Context, iso: TemplateObjectTO, vm: str) -> Source | None:
    """The file that an attachment has, or would have where the store's objects are files of this host. Contacts no other."""
    kept = await ctx.resolver.kept(attachment(iso, vm))
    if kept is not None:
        return _as_iso(kept, ObjectInfo(ref_of(iso), None))
    store = ctx.resolver.store(iso.store)
    if ctx.resolver.negotiate(store, None, (Kind.LOCAL_PATH,)).via is not Via.NATIVE:
        return None
    with suppress(NotFound):
        async with store.present(await store.stat(ref_of(iso)), Kind.LOCAL_PATH) as file:
            return _as_iso(as_local(file).path, file.info)
    return None


def _as_iso(path: Path, info: ObjectInfo) -> Source:
    return Source(LocalPath(path, info), ImageSpec(ImageFormat.ISO))


async def prefetch(ctx: Context, call: Call, request: Prefetch) -> DataTO:
    """See `Operations.prefetch`."""
    store = ctx.resolver.store(request.data.store)
    info = await store.stat(ref_of(request.data))
    outcome = ctx.resolver.negotiate(store, info, (Kind.LOCAL_PATH,))
    if outcome.chosen is None:
        raise outcome.refusal()
    if outcome.via is not Via.CACHE:
        raise StoreUnsupported(f"objects of store {store.id} are files of this host: no cache is used for them")
    async with ctx.resolver.open(store, info, (Kind.LOCAL_PATH,), progress=call.progress):
        return request.data.model_copy(update={"path": info.ref})
