"""The verbs on volumes of virtual machines: AttachVolume and DetachVolume, over any hypervisor that has `Guests`.

Whoever calls has the locks of the volume and of the machine. The machine's own state is the only record of what is attached.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from hypervisors.context import Context
from hypervisors.encrypting import passphrase_of, unlocked
from hypervisors.guests import Attachment, Tuning
from hypervisors.snapshots import Volume, opened_volume
from hypervisors.verbs import AttachVolume, Call, DetachVolume, ref_of
from stores.errors import NotFound
from stores.to import VolumeObjectTO


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
        async with _opened(ctx, call, request.volume) as opened:
            call.progress.phase("detach")
            await guests.detach(request.vm, opened.source, within_s=request.within_s, token=call.token)
    except NotFound:
        return  # no machine has what is not there


async def resume_attaching(ctx: Context, call: Call, request: AttachVolume) -> Attachment | None:
    """After a crash: the attachment, if it came to be."""
    guests, volume = ctx.handler(call.hypervisor).guests, request.volume
    try:
        async with _opened(ctx, call, volume) as opened:
            return await guests.resume_attaching(request.vm, opened.source, token=call.token)
    except NotFound:
        return None


async def resume_detaching(ctx: Context, call: Call, request: DetachVolume) -> bool:
    """After a crash: whether the machine has let go."""
    guests, volume = ctx.handler(call.hypervisor).guests, request.volume
    try:
        async with _opened(ctx, call, volume) as opened:
            return await guests.resume_detaching(request.vm, opened.source, token=call.token)
    except NotFound:
        return True


def _opened(ctx: Context, call: Call, volume: VolumeObjectTO) -> AbstractAsyncContextManager[Volume]:
    return opened_volume(ctx, call, volume.store, ref_of(volume), volume.format, encrypted=True)
