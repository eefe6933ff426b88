"""The verbs on volumes of virtual machines: AttachVolume and DetachVolume, over any hypervisor that has `Guests`.

Whoever calls has the locks of the volume and of the machine. The machine's own state is the only record of what is attached.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from hypervisors.context import Context
from hypervisors.contract import ImageSpec, Source
from hypervisors.encrypting import passphrase_of, unlocked
from hypervisors.guests import Attachment, Tuning
from hypervisors.snapshots import Volume, opened_volume
from hypervisors.verbs import AttachVolume, Call, DetachVolume, ref_of
from stores.contract import DEVICES, NetworkImage, ObjectInfo
from stores.errors import NotFound
from stores.to import ImageFormat, VolumeObjectTO


async def attach(ctx: Context, call: Call, request: AttachVolume) -> Attachment:
    """See `Operations.attach_volume`."""
    guests, volume = ctx.handler(call.hypervisor).guests, request.volume
    passphrase = passphrase_of(volume, ctx.handler(call.hypervisor))
    async with _opened(ctx, call, volume) as opened:
        call.progress.phase("attach")
        return await guests.attach(
            request.vm,
            unlocked(opened.source, opened.record, passphrase),
            device=request.device,
            read_only=request.read_only,
            token=call.token,
            tuning=tuning_of(volume),
        )


def tuning_of(volume: VolumeObjectTO) -> Tuning:
    """What the command says of the disk. The serial is what CloudStack makes of the uuid: 20 characters are all that
    virtio-blk has (VIRTIO_BLK_ID_BYTES)."""
    return Tuning(
        serial=(volume.uuid or "").replace("-", "")[:20] or None,
        cache=volume.cacheMode,
        bytes_read=volume.bytesReadRate,
        bytes_written=volume.bytesWriteRate,
        reads=volume.iopsReadRate,
        writes=volume.iopsWriteRate,
    )


async def detach(ctx: Context, call: Call, request: DetachVolume) -> None:
    """See `Operations.detach_volume`."""
    guests = ctx.handler(call.hypervisor).guests
    try:
        async with _named(ctx, call, request.volume) as source:
            call.progress.phase("detach")
            await guests.detach(request.vm, source, within_s=request.within_s, token=call.token)
    except NotFound:
        return  # no machine has what is not there


async def resume_attaching(ctx: Context, call: Call, request: AttachVolume) -> Attachment | None:
    """After a crash: the attachment, if it came to be."""
    guests, volume = ctx.handler(call.hypervisor).guests, request.volume
    try:
        async with _named(ctx, call, volume) as source:
            return await guests.resume_attaching(request.vm, source, token=call.token)
    except NotFound:
        return None


async def resume_detaching(ctx: Context, call: Call, request: DetachVolume) -> bool:
    """After a crash: whether the machine has let go."""
    guests, volume = ctx.handler(call.hypervisor).guests, request.volume
    try:
        async with _named(ctx, call, volume) as source:
            return await guests.resume_detaching(request.vm, source, token=call.token)
    except NotFound:
        return True


@asynccontextmanager
async def _named(ctx: Context, call: Call, volume: VolumeObjectTO) -> AsyncIterator[Source]:
    """The volume, as far as machines' disks are told apart: one on the network may be out of reach, and its secret unknown."""
    store, ref = ctx.store(call.hypervisor, volume.store), ref_of(volume)
    network = store.network(ref)
    if network is None:
        async with _opened(ctx, call, volume) as opened:
            yield opened.source
        return
    (kind,) = store.writes.intersection(DEVICES)
    yield Source(NetworkImage({}, ObjectInfo(ref, None), kind, network=network), ImageSpec(ImageFormat.RAW))


def _opened(ctx: Context, call: Call, volume: VolumeObjectTO) -> AbstractAsyncContextManager[Volume]:
    return opened_volume(ctx, call, volume.store, ref_of(volume), volume.format, encrypted=True)
