"""Copy of a snapshot to a template or volume of an image store: one image that stands for itself.

The snapshot is a backup, with all that it builds on, or one in a pool. Its disk is laid out anew and sent in one pass.
"""

from __future__ import annotations

from hypervisors.backups.restoring import to_restore
from hypervisors.context import Context
from hypervisors.contract import Accepts, ImageSpec, Operation
from hypervisors.copying import Copied
from hypervisors.exporting import exported
from hypervisors.outgoing import Outgoing
from hypervisors.verbs import Call, Copy, ref_of
from stores.contract import Kind

NAME = "make an image of a snapshot"
READS = Accepts((Kind.RANGE_READER,), "the disk of the snapshot is read, each part from where it is newest")


def is_flattening(request: Copy) -> bool:
    """Whether a copy is one of these."""
    source, destination = request.source, request.destination
    return (
        source.type == "snapshot"
        and destination.type in ("template", "volume")
        and destination.store.storeType != "primary"
    )


async def flatten(ctx: Context, call: Call, request: Copy) -> Copied:
    """See `Operations.copy`."""
    source, target = request.source, request.destination
    assert source.type == "snapshot"
    handler = ctx.handler(call.hypervisor)
    outgoing = Outgoing(ctx, call, target.store, ref_of(target), request.durability)
    call.progress.phase("inspect")
    await outgoing.require_free()
    async with outgoing.both_or_neither() as commit, to_restore(ctx, call, source) as given:
        spec = ImageSpec(target.format or handler.snapshots.backup_format, given.spec.virtual_size or given.most)
        fills = handler.fills(Operation.EXPORT_VOLUME, spec)
        async with given.image(spec) as made:
            info, _ = await outgoing.send(made.content, fills, commit)
    return Copied(exported(target, spec, info), info.upload)
