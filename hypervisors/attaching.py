"""ISOs for guests: a file on this host for as long as the guest may read it. Nothing is done with the guest itself.

What holds the file is one claim, named after guest and ISO. It is made last and in one step, so that an attachment is there or
is not, whatever the moment at which the agent dies.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hypervisors.context import Context
from hypervisors.contract import ImageSpec, Operation, OperationUnsupported
from hypervisors.images.gate import inspect
from hypervisors.narrowing import as_reader
from hypervisors.verbs import AttachIso, Call, DetachIso, Prefetch, attachment, ref_of
from stores.contract import Kind
from stores.errors import StoreUnsupported
from stores.resolver import CacheUse, Via
from stores.to import DataTO, ImageFormat


@dataclass(frozen=True, slots=True)
class Attached:
    """`path`: of the file, on this host."""

    path: Path


async def attach(ctx: Context, call: Call, request: AttachIso) -> Attached:
    """See `Operations.attach_iso`."""
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
        return Attached(await ctx.resolver.keep(store, info, what, token=call.token, progress=call.progress))


async def detach(ctx: Context, request: DetachIso) -> None:
    """See `Operations.detach_iso`."""
    await ctx.resolver.let_go(attachment(request.iso, request.vm))


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
