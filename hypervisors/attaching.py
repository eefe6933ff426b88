"""ISOs for guests: in the guest's drive, where the hypervisor keeps them; else a file on this host for as long as the guest may
read it, and nothing is done with the guest itself.

What holds the file is one claim, named after guest and ISO. It is made last and in one step, so that an attachment is there or
is not, whatever the moment at which the agent dies. So is what a drive holds.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from hypervisors.context import Context
from hypervisors.contract import ImageSpec, Operation, OperationUnsupported
from hypervisors.images.gate import inspect
from hypervisors.narrowing import as_managed, as_reader
from hypervisors.snapshots import opened_volume
from hypervisors.verbs import AttachIso, Call, DetachIso, Prefetch, attachment, ref_of
from stores.contract import Kind
from stores.errors import NotFound, StoreUnsupported
from stores.resolver import CacheUse, Via
from stores.to import DataTO, ImageFormat, TemplateObjectTO


@dataclass(frozen=True, slots=True)
class Attached:
    """`path`: of the file on this host; or the disk's own in its pool, where the guest has it, and then as its `device`."""

    path: str
    device: int | None = None


async def attach(ctx: Context, call: Call, request: AttachIso) -> Attached:
    """See `Operations.attach_iso`."""
    if _kept_by_hypervisor(ctx, call, request.iso):
        async with opened_volume(ctx, call, request.iso.store, ref_of(request.iso), ImageFormat.ISO) as iso:
            inserted = await iso.handler.guests.insert(request.vm, iso.source)
            return Attached(iso.info.ref, inserted.device)
    if request.insert:
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
        return Attached(str(kept))


async def detach(ctx: Context, call: Call, request: DetachIso) -> None:
    """See `Operations.detach_iso`."""
    if not _kept_by_hypervisor(ctx, call, request.iso):
        await ctx.resolver.let_go(attachment(request.iso, request.vm))
        return
    with suppress(NotFound):  # and so in no drive
        async with opened_volume(ctx, call, request.iso.store, ref_of(request.iso), ImageFormat.ISO) as iso:
            await iso.handler.guests.eject(request.vm, iso.source)


async def resume(ctx: Context, call: Call, request: AttachIso) -> Attached | None:
    """After a crash: what is in the guest's drive stays there; nobody was told of a file, which goes."""
    if not _kept_by_hypervisor(ctx, call, request.iso):
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
