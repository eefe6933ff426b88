"""Objects of image stores as they lie there: from one store to another, and away. No hypervisor has a part in it.

Templates and volumes only: what is a backup goes with its manifest (`hypervisors.backups.carrying`).
"""

from __future__ import annotations

from hypervisors.context import Context
from hypervisors.contract import Accepts, ImageSpec
from hypervisors.copying import Copied
from hypervisors.narrowing import as_reader
from hypervisors.outgoing import DIGEST, Outgoing
from hypervisors.sources import examine
from hypervisors.verbs import Call, Copy, Delete, ref_of
from stores.contract import Kind, ObjectInfo, RangeReader
from stores.errors import AlreadyExists, NotFound, StoreUnsupported
from stores.to import DataTO, ImageFormat
from stores.transfer.digests import parse_checksum

NAME = "copy between image stores"
READS = Accepts((Kind.RANGE_READER,), "the gate reads the metadata, and then everything is sent as it is")
WRITES = Accepts((Kind.LOCAL_PATH, Kind.BYTE_STREAM), "sent in order, or to a file")


def is_relay(request: Copy) -> bool:
    """Whether a copy is one of these."""
    source, destination = request.source, request.destination
    between = source.store.storeType != "primary" and destination.store.storeType != "primary"
    return between and source.type == destination.type and source.type != "snapshot"


async def relay(ctx: Context, call: Call, request: Copy) -> Copied:
    """The object's bytes, unchanged and still compressed if they are, past the gate. `ChecksumMismatch` before anything is
    published. `StoreUnsupported` where the source cannot be read at random. The same bytes that are there already are success,
    anything else under that name is `AlreadyExists`."""
    source, target = request.source, request.destination
    outgoing = Outgoing(ctx, call, target.store, ref_of(target), request.durability)
    checksum = parse_checksum(source.checksum) if source.type == "template" and source.checksum else None
    call.progress.phase("inspect")
    store = ctx.resolver.store(source.store)
    info = await store.stat(ref_of(source))
    async with outgoing.both_or_neither() as commit, examine(store, info, source.format, ctx.limits) as examined:
        if examined.reader is None:
            raise StoreUnsupported(
                f"{store.id} gives {info.ref} only in order, and a copy to another image store needs ranges",
                ref=info.ref,
            )
        sent = await present(ctx, call, outgoing, examined.reader)
        if sent is None:
            sent, _ = await outgoing.send(examined.reader, WRITES, commit, checksum=checksum)
    return Copied(_answer(target, sent, info, examined.spec), sent.upload)


async def present(ctx: Context, call: Call, outgoing: Outgoing, source: RangeReader) -> ObjectInfo | None:
    """What an earlier try has sent, compared to the last byte; None where nothing has the name, `AlreadyExists` for anything
    else that has it, `UploadPending` while something is on its way there."""
    store = outgoing.store
    await ctx.resolver.require_not_uploading(store, outgoing.ref)
    try:
        info = await store.stat(outgoing.ref)
    except NotFound:
        return None
    if info.size == source.info.size:
        call.progress.phase("compare", info.size)
        async with store.present(info, Kind.RANGE_READER) as presentation:
            there = await ctx.engine.digest(as_reader(presentation), [DIGEST])
        if there == await ctx.engine.digest(source, [DIGEST], call.progress):
            return info
    raise AlreadyExists(f"{outgoing.ref} exists already with other content; delete it first", ref=outgoing.ref)


def _answer(target: DataTO, sent: ObjectInfo, info: ObjectInfo, spec: ImageSpec) -> DataTO:
    """With the virtual size, where the gate could see it."""
    now: dict[str, object] = {"path": sent.ref, "format": spec.format or ImageFormat.RAW}
    if spec.virtual_size is not None:
        now["size"] = spec.virtual_size
    if target.type == "template":
        now["physicalSize"] = info.size
    return target.model_copy(update=now)


async def delete(ctx: Context, request: Delete) -> None:
    """The object of that name, or where it is a folder's, every object below it. Never one whose name only begins so. What is
    not there is deleted; interrupted, the same again goes on."""
    store, ref = ctx.resolver.store(request.data.store), ref_of(request.data)
    try:
        await store.stat(ref)
        below = [ref]
    except NotFound:
        below = [info.ref async for info in store.list(ref)]
    for found in below:
        await store.delete(found)
