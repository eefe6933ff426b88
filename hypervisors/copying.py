"""The Copy verb: one operation over (source, destination), whatever the two are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from hypervisors.context import Context, require_room
from hypervisors.contract import (
    HypervisorHandler,
    ImageSpec,
    Operation,
    OperationUnsupported,
    Source,
    Written,
    refuse_cut,
)
from hypervisors.encrypting import passphrase_of
from hypervisors.landing import verify
from hypervisors.primary import Pool, on_devices
from hypervisors.publishing import Publication, publishing
from hypervisors.records import Origin, Parent, Record, same_origin, scratch_ref
from hypervisors.sources import OpenSource, examine, opened, vouched_for, with_parents
from hypervisors.verbs import Call, Copy, is_linked, ref_of
from stores.contract import DataStore, NbdExport, ObjectInfo
from stores.errors import AlreadyExists, NotFound, StorageError
from stores.resolver import CacheUse
from stores.to import DataTO, ImageFormat, ProvisioningType
from stores.transfer.digests import Checksum, parse_checksum

_ENCRYPTING = (Operation.COPY_TEMPLATE, Operation.COPY_VOLUME)
"""What encrypts the volume that it writes, where the command says so."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What became of a copy: the destination as it is now. `upload`: None where the store has it; else it is safe on this host,
    and the upload of this id brings it there. `note`: what the caller should know of how it was done."""

    data: DataTO
    upload: str | None = None
    note: str | None = None


def operation_of(request: Copy) -> Operation:
    """Which of the copies it is; `OperationUnsupported` for those that no handler does."""
    source, destination = request.source, request.destination
    operation = _operation_of(source, destination)
    for data, may_be in ((source, False), (destination, operation in _ENCRYPTING)):
        if data.type == "volume" and (data.passphrase or data.encryptFormat) and not may_be:
            raise OperationUnsupported(
                f"{operation}: this does not go with an encrypted volume; nothing was written", ref=data.path
            )
    return operation


def _operation_of(source: DataTO, destination: DataTO) -> Operation:
    from_pool, into_pool = (data.store.storeType == "primary" for data in (source, destination))
    match source.type, destination.type:
        case "template", "template" | "volume" if into_pool:
            return Operation.LINK_TEMPLATE if is_linked(source, destination) else Operation.COPY_TEMPLATE
        case "volume", "volume" if into_pool:
            return Operation.COPY_VOLUME
        case "volume", "volume" | "template" if from_pool and not into_pool:
            return Operation.EXPORT_VOLUME
        case "snapshot" | "volume", "snapshot" if from_pool and not into_pool:
            return Operation.BACK_UP
        case "snapshot", "volume" | "template" if into_pool:
            return Operation.RESTORE
    where = [
        f"{data.type} in {'a pool' if of_pool else 'an image store'}"
        for data, of_pool in ((source, from_pool), (destination, into_pool))
    ]
    raise OperationUnsupported(f"a {where[0]} cannot be copied to a {where[1]}")


def target_spec(
    handler: HypervisorHandler, store: DataStore, source: ImageFormat | None, destination: DataTO
) -> ImageSpec:
    """What shall be written to `store`, in the format that the command names, else an ISO for an ISO, else the hypervisor's."""
    size = destination.size if destination.type == "volume" else None
    passphrase = passphrase_of(destination, handler)
    image_format, device = format_in(handler, store, destination.format, source)
    return ImageSpec(image_format, size or None, device=device, passphrase=passphrase)


def format_in(
    handler: HypervisorHandler, store: DataStore, asked: ImageFormat | None, source: ImageFormat | None = None
) -> tuple[ImageFormat, bool]:
    """The format of an image that is written to `store`, and whether it is a device. A device holds raw bytes: there the
    hypervisor's own format, which a command names for all its pools alike, is that."""
    fallback = ImageFormat.ISO if source is ImageFormat.ISO else handler.native_format
    image_format, device = asked or fallback, on_devices(store)
    return (ImageFormat.RAW if device and image_format is handler.native_format else image_format), device


def answer(destination: DataTO, ref: str, record: Record, physical_size: int | None) -> DataTO:
    """The destination as it is now. `physicalSize` is the length of the image's file, as CloudStack counts."""
    now: dict[str, object] = {"path": ref, "size": record.virtual_size, "format": record.format}
    if destination.type == "template":
        now["physicalSize"] = physical_size
    return destination.model_copy(update=now)


async def copy(ctx: Context, call: Call, request: Copy) -> Copied:
    """See `Operations.copy`."""
    operation = operation_of(request)
    pool, ref = ctx.pool(call.hypervisor, request.destination.store), ref_of(request.destination)
    checksum = _checksum(request)
    store = ctx.store(call.hypervisor, request.source.store)
    call.progress.phase("inspect")
    info = await store.stat(ref_of(request.source))
    existing = await present(pool, ref)
    if existing is not None:
        return Copied(as_before(request.destination, ref, existing, store.id, info, checksum))
    async with (
        publishing(pool, ref) as publication,
        _source(ctx, call, operation, request, (store, info), checksum) as (source, spec, late),
    ):
        if operation is Operation.LINK_TEMPLATE:
            return Copied(await _link(ctx, call, pool, publication, request, source, spec))
        return Copied(await _write(ctx, call, pool, publication, request, source, spec, late, checksum))


def _checksum(request: Copy) -> Checksum | None:
    """Of the object in its image store. What lies in a pool is no longer that object."""
    source = request.source
    if source.type != "template" or source.store.storeType == "primary" or not source.checksum:
        return None
    return parse_checksum(source.checksum)


# ------------------------------------------------------------------------------------------------ destination


async def present(pool: Pool, ref: str) -> tuple[ObjectInfo, Record | None] | None:
    """What has that name already. A record alone is what a dead command left behind."""
    record = await pool.records.load(ref)
    if record is None and pool.store.given:
        return None
    try:
        return await pool.store.stat(ref), record
    except NotFound:
        if record is not None:
            await pool.records.remove(ref, record.parent)
        return None


def as_before(
    destination: DataTO,
    ref: str,
    existing: tuple[ObjectInfo, Record | None],
    store: str,
    source: ObjectInfo,
    checksum: Checksum | None,
) -> DataTO:
    """A template that is there already, made from the same bytes, needs no copy. A volume may have been written since."""
    info, record = existing
    if destination.type == "template" and record is not None and same_origin(record, store, source, checksum):
        return answer(destination, ref, record, info.size)
    raise AlreadyExists(
        f"{ref} exists already and was not made from this source; delete it first, or choose another name", ref=ref
    )


async def _link(
    ctx: Context,
    call: Call,
    pool: Pool,
    publication: Publication,
    request: Copy,
    template: Source,
    spec: ImageSpec,
) -> DataTO:
    handler, ref = ctx.handler(call.hypervisor), ref_of(request.destination)
    kinds = handler.fills(Operation.LINK_TEMPLATE, spec).kinds
    async with ctx.resolver.create(pool.store, ref, kinds, token=call.token) as pending:
        written = await handler.create(pending, spec, ProvisioningType.THIN, backing=template)
        parent_format = template.spec.format or written.format
        backing = Parent(ref=template.presentation.info.ref, format=parent_format)
        call.progress.phase("publish")
        record = make_record(ctx, call, written, origin=None, backing=backing)
        info = await publication.publish(pending, record)
    return answer(request.destination, ref, record, info.size)


async def _write(
    ctx: Context,
    call: Call,
    pool: Pool,
    publication: Publication,
    request: Copy,
    source: Source,
    spec: ImageSpec,
    late: OpenSource | None,
    checksum: Checksum | None,
) -> DataTO:
    handler, ref = ctx.handler(call.hypervisor), ref_of(request.destination)
    kinds = handler.fills(operation_of(request), spec).kinds
    create = partial(ctx.resolver.create, pool.store, token=call.token)
    with_reason = partial(_with_reason, source)
    async with with_reason():
        needed = await handler.estimate(source, spec)
        if needed is not None:
            require_room(await pool.store.usage(), needed, pool.store.id)
    async with create(ref, kinds) as pending:
        async with with_reason():
            written = await handler.copy(
                source,
                pending,
                spec,
                scratch=partial(create, scratch_ref(call.token), kinds),
                checksum=checksum,
                progress=call.progress,
            )
        digests = written.digests
        if checksum is not None and late is not None and checksum.algorithm not in digests:
            digests = await late.digest(checksum.algorithm)
        verify(checksum, digests, source.presentation.info.ref)
        call.progress.phase("publish")
        info = source.presentation.info
        store_id = ctx.store(call.hypervisor, request.source.store).id
        origin = Origin(store=store_id, ref=info.ref, version=info.version, digests=digests)
        record = make_record(ctx, call, written, origin=origin, backing=None)
        published = await publication.publish(pending, record)
    return answer(request.destination, ref, record, published.size)


def make_record(ctx: Context, call: Call, written: Written, *, origin: Origin | None, backing: Parent | None) -> Record:
    """What is known of an image the moment it is finished."""
    return Record(
        format=written.format,
        virtual_size=written.virtual_size,
        token=call.token,
        created=ctx.clock(),
        origin=origin,
        backing=backing,
        encryption=written.encryption,
    )


@asynccontextmanager
async def _with_reason(source: Source) -> AsyncIterator[None]:
    """A tool that read over NBD says "Input/output error"; the export knows the store's own error, which is told instead."""
    try:
        yield
    except StorageError as error:
        given = source.presentation
        cause = given.failure() if isinstance(given, NbdExport) else None
        if cause is None:
            raise
        raise cause from error


# ----------------------------------------------------------------------------------------------------- source


@asynccontextmanager
async def _source(
    ctx: Context,
    call: Call,
    operation: Operation,
    request: Copy,
    origin: tuple[DataStore, ObjectInfo],
    checksum: Checksum | None,
) -> AsyncIterator[tuple[Source, ImageSpec, OpenSource | None]]:
    """The source opened, and what shall become of it. Sizes are decided here, before a byte is written."""
    handler, (store, info) = ctx.handler(call.hypervisor), origin
    into = ctx.store(call.hypervisor, request.destination.store)
    if request.source.store.storeType == "primary":
        pool = ctx.pool(call.hypervisor, request.source.store)
        examined = await vouched_for(pool, info, request.source.format)
        wanted = target_spec(handler, into, examined.spec.format, request.destination)
        handler.fills(operation, wanted)
        kinds = handler.accepts(operation, examined.spec, wanted).kinds
        async with with_parents(ctx, pool, examined, kinds) as source:
            size = (await handler.measure(source)).virtual_size
            source = replace(source, spec=replace(source.spec, virtual_size=size))
            yield source, sized(wanted, source.spec), None
    else:
        async with examine(store, info, request.source.format, ctx.limits) as examined:
            spec = sized(target_spec(handler, into, examined.spec.format, request.destination), examined.spec)
            handler.fills(operation, spec)  # before the source is opened
            cache = CacheUse.PREFERRED if request.prefer_cache else None
            async with opened(ctx, handler, operation, examined, spec, checksum, cache) as late:
                yield late.source, spec, late


def sized(target: ImageSpec, source: ImageSpec) -> ImageSpec:
    """The target with the source's size, unless more was asked for; less is refused."""
    if source.virtual_size is None:
        return target
    refuse_cut(source.virtual_size, target.virtual_size)
    return replace(target, virtual_size=target.virtual_size or source.virtual_size)
