"""Why a request would be done the way it would be: what is accepted, what is offered, what is chosen. Runs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from hypervisors import relaying
from hypervisors.backups import carrying, flattening
from hypervisors.context import Context
from hypervisors.contract import Accepts, HypervisorHandler, HypervisorType, ImageSpec, Operation
from hypervisors.copying import operation_of, target_spec
from hypervisors.verbs import AttachIso, AttachVolume, Copy, ref_of
from stores.contract import DataStore, Kind
from stores.errors import StorageError
from stores.resolver import CacheUse, Negotiation, negotiate
from stores.to import DataTO, ImageFormat

_SUFFIXES: Mapping[str, str] = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}


_NAMES: Mapping[type, str] = {AttachIso: Operation.ATTACH_ISO.value, AttachVolume: "attach volume"}
_TO_A_GUEST = "the guest gets the disk itself, where it lies"


class How(StrEnum):
    """What happens to the bytes."""

    IN_PLACE = "in place"  # they go straight to where they stay
    CONVERTED = "converted"  # its disk is read, and the target written anew, by a tool or by the hypervisor
    LAID_OUT = "laid out"  # the disk is read, and its image made anew, in one pass
    LINKED = "linked"  # the target refers to the source
    OPENED = "opened"  # the hypervisor reads the source itself
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Side:
    """One half of a negotiation. `chosen` is None where nothing fits; `via` is native, bridge or cache."""

    store: str
    ref: str
    accepted: tuple[Kind, ...]
    because: str
    offered: tuple[Kind, ...]
    chosen: Kind | None
    via: str | None
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """`refusal` is the error that the request would end with, as far as that can be known without contacting anybody."""

    operation: str
    hypervisor: str
    how: How
    source: Side | None
    target: Side | None
    refusal: str | None
    refusal_kind: str | None = None


def explain(ctx: Context, hypervisor: HypervisorType, request: Copy | AttachIso | AttachVolume) -> Explanation:
    """See `Operations.explain`. The format is the declared one, compression is told by the name."""
    name = _NAMES.get(type(request), "copy")
    how = How.REFUSED
    source = target = None
    refusal: StorageError | None = None
    try:
        handler = ctx.handler(hypervisor)
        if isinstance(request, AttachIso):
            operation, how = Operation.ATTACH_ISO, How.OPENED
            spec = ImageSpec(ImageFormat.ISO)
            source, unmet = _reading(ctx, hypervisor, request.iso, handler.accepts(operation, spec, spec))
        elif isinstance(request, AttachVolume):
            how, spec = How.OPENED, ImageSpec(request.volume.format or handler.native_format)
            as_it_is = handler.accepts(Operation.SNAPSHOT, spec, spec)
            source, unmet = _reading(ctx, hypervisor, request.volume, replace(as_it_is, because=_TO_A_GUEST))
            handler.guests  # noqa: B018  which says so where there are none
        elif relaying.is_relay(request) or carrying.is_carrying(request):
            name, how = carrying.NAME if request.source.type == "snapshot" else relaying.NAME, How.IN_PLACE
            source, unmet = _reading(ctx, hypervisor, request.source, relaying.READS)
            target, unwritable = _writing(ctx, hypervisor, request, relaying.WRITES)
            unmet = unmet or unwritable
        elif flattening.is_flattening(request):
            name, how = flattening.NAME, How.LAID_OUT
            spec = ImageSpec(request.destination.format or ImageFormat.QCOW2)
            source, unmet = _reading(ctx, hypervisor, request.source, flattening.READS)
            target, unwritable = _writing(ctx, hypervisor, request, handler.fills(Operation.EXPORT_VOLUME, spec))
            unmet = unmet or unwritable
        else:
            operation = operation_of(request)
            name = operation.value
            spec = _declared(ctx, hypervisor, request.source)
            into = ctx.store(hypervisor, request.destination.store)
            wanted = _wanted(handler, into, operation, spec, request.destination)
            how = _how(handler, operation, spec, wanted)
            target, unwritable = _writing(ctx, hypervisor, request, _filled(handler, operation, how, wanted))
            cache = CacheUse.PREFERRED if request.prefer_cache and request.source.store.storeType != "primary" else None
            source, unmet = _reading(ctx, hypervisor, request.source, handler.accepts(operation, spec, wanted), cache)
            unmet = unmet or unwritable
        refusal = unmet
    except StorageError as error:
        refusal = error
    if refusal is not None:
        how = How.REFUSED
    return Explanation(
        operation=name,
        hypervisor=hypervisor.value,
        how=how,
        source=source,
        target=target,
        refusal=refusal.message if refusal else None,
        refusal_kind=refusal.kind if refusal else None,
    )


def compression_of(name: str) -> str | None:
    """What a name says of its object's compression."""
    return next((found for suffix, found in _SUFFIXES.items() if name.lower().endswith(suffix)), None)


def _declared(ctx: Context, hypervisor: HypervisorType, data: DataTO) -> ImageSpec:
    compression = compression_of(ref_of(data)) if data.store.storeType != "primary" else None
    sequential = Kind.RANGE_READER not in ctx.store(hypervisor, data.store).offers()
    return ImageSpec(data.format, compression=compression, sequential=sequential)


def _wanted(
    handler: HypervisorHandler, store: DataStore, operation: Operation, source: ImageSpec, destination: DataTO
) -> ImageSpec:
    if operation is Operation.EXPORT_VOLUME:
        return ImageSpec(destination.format or source.format or handler.native_format)
    return target_spec(handler, store, source.format, destination)


def _filled(handler: HypervisorHandler, operation: Operation, how: How, wanted: ImageSpec) -> Accepts:
    """A volume's file goes as it is only where nothing else is in it, which nobody knows before it is opened."""
    fills = handler.fills(operation, wanted)
    if operation is Operation.EXPORT_VOLUME and how is How.IN_PLACE:
        return Accepts((Kind.UPLOAD, *fills.kinds), f"in parts, straight from the file; else {fills.because}")
    return fills


def _how(handler: HypervisorHandler, operation: Operation, source: ImageSpec, target: ImageSpec) -> How:
    if operation is Operation.LINK_TEMPLATE:
        return How.LINKED
    if operation in (Operation.BACK_UP, Operation.RESTORE):
        return How.LAID_OUT
    if operation is Operation.EXPORT_VOLUME and not handler.keeps_bytes(source, target):
        return How.LAID_OUT
    return How.IN_PLACE if handler.keeps_bytes(source, target) else How.CONVERTED


def _reading(
    ctx: Context, hypervisor: HypervisorType, data: DataTO, accepts: Accepts, cache: CacheUse | None = None
) -> tuple[Side, StorageError | None]:
    store = ctx.store(hypervisor, data.store)
    return _side(store, ref_of(data), accepts, ctx.resolver.negotiate(store, None, accepts.kinds, cache=cache))


def _writing(
    ctx: Context, hypervisor: HypervisorType, request: Copy, fills: Accepts
) -> tuple[Side, StorageError | None]:
    data = request.destination
    store = ctx.store(hypervisor, data.store)
    return _side(store, ref_of(data), fills, negotiate(store.id, store.writes, fills.kinds, ranges=False))


def _side(store: DataStore, ref: str, accepts: Accepts, negotiation: Negotiation) -> tuple[Side, StorageError | None]:
    side = Side(
        store=store.id,
        ref=ref,
        accepted=accepts.kinds,
        because=accepts.because,
        offered=tuple(sorted(negotiation.offered)),
        chosen=negotiation.chosen,
        via=negotiation.via.value if negotiation.via else None,
        reasons=tuple(f"{reason.kind}: {reason.text}" for reason in negotiation.reasons),
    )
    return side, negotiation.refusal() if negotiation.chosen is None else None
