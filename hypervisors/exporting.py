"""Copy of a volume in a pool to an image store, as an image that stands for itself.

A file that is nothing but the volume's present content goes as it is. Whatever else lies in a file (parents, snapshots, what
was tracked between them) stays: then the disk is read, and laid out anew.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from hypervisors.context import Context
from hypervisors.contract import Accepts, ImageSpec, Operation
from hypervisors.copying import Copied
from hypervisors.images.disk_image import DiskImage
from hypervisors.local_file import open_file
from hypervisors.narrowing import as_local
from hypervisors.outgoing import Commit, Outgoing
from hypervisors.relaying import present
from hypervisors.snapshots import opened_volume
from hypervisors.verbs import Call, Copy, ref_of
from stores.contract import Kind, ObjectInfo, PendingUpload, RangeReader
from stores.errors import StoreError
from stores.resolver import Durability
from stores.to import DataTO
from stores.transfer.sending import send_all
from stores.uninterrupted import uninterrupted


async def export(ctx: Context, call: Call, request: Copy) -> Copied:
    """See `Operations.copy`. The very image that is there already, from an earlier try perhaps, is success; anything else under
    that name is `AlreadyExists`."""
    source, target = request.source, request.destination
    outgoing = Outgoing(ctx, call, target.store, ref_of(target), request.durability)
    async with (
        outgoing.both_or_neither() as commit,
        opened_volume(ctx, call, source.store, ref_of(source), source.format) as volume,
    ):
        await volume.handler.snapshots.require_idle(volume.source)
        measured = await volume.handler.measure(volume.source)
        spec = ImageSpec(target.format or measured.format, measured.virtual_size)
        fills = volume.handler.fills(Operation.EXPORT_VOLUME, spec)
        as_it_is = volume.handler.keeps_bytes(volume.source.spec, spec)
        if as_it_is and await volume.handler.snapshots.plain(volume.source):
            path = as_local(volume.source.presentation).path
            async with open_file(path, ctx.engine) as image:
                there = await present(ctx, call, outgoing, image)
                info = there or await _send_file(path, image, outgoing, fills, commit)
        else:
            async with volume.handler.snapshots.image(volume.source, None, spec) as made:
                info = await _send_image(ctx, call, outgoing, made, fills, commit)
    return Copied(exported(target, spec, info), info.upload)


async def _send_image(
    ctx: Context, call: Call, outgoing: Outgoing, made: DiskImage, fills: Accepts, commit: Commit
) -> ObjectInfo:
    """The image, unless an earlier try has sent the very same: one that can be read only once is not compared."""
    if isinstance(made.content, RangeReader):
        there = await present(ctx, call, outgoing, made.content)
        if there is not None:
            return there
    else:
        await outgoing.require_free()
    return (await outgoing.send(made.content, fills, commit))[0]


async def _send_file(path: Path, image: RangeReader, outgoing: Outgoing, fills: Accepts, commit: Commit) -> ObjectInfo:
    """In parts where the store takes them, each straight from the file; else in order."""
    store, ref, call = outgoing.store, outgoing.ref, outgoing.call
    if Kind.UPLOAD not in store.writes or outgoing.durability is not Durability.STORED:
        return (await outgoing.send(image, fills, commit))[0]
    call.progress.phase("send", image.info.size)
    async with outgoing.ctx.resolver.noted(outgoing.to, store, ref, token=call.token):
        try:
            async with store.upload(ref, path, token=call.token) as upload:
                return await send_all(_Committed(upload, commit), progress=call.progress)
        except BaseException:
            if commit.info is None:
                with suppress(StoreError):  # then later: it is noted
                    await uninterrupted(store.discard(ref, token=call.token))  # nobody goes on with it
            raise


class _Committed(PendingUpload):
    """An upload whose commit is remembered."""

    def __init__(self, inner: PendingUpload, commit: Commit) -> None:
        self.parts, self.parallel = inner.parts, inner.parallel
        self._inner = inner
        self._commit = commit

    def length(self, number: int) -> int:
        return self._inner.length(number)

    async def send(self, number: int) -> bool:
        return await self._inner.send(number)

    async def commit(self) -> ObjectInfo:
        return await self._commit.of(self._inner)


def exported(target: DataTO, spec: ImageSpec, info: ObjectInfo) -> DataTO:
    """The destination as it is now, with the sizes of the disk and of the object."""
    now: dict[str, object] = {"path": info.ref, "size": spec.virtual_size, "format": spec.format}
    if target.type == "template":
        now["physicalSize"] = info.size
    return target.model_copy(update=now)
