"""Copy of a backup from one image store to another: its object as it is, compared with the manifest, and then the manifest.

One backup at a time; what it builds on is carried by itself. A backup keeps its path, by which later ones know it.
"""

from __future__ import annotations

from dataclasses import replace

from hypervisors.backups.chain import load_manifest
from hypervisors.backups.manifest import BrokenChain, Manifest, manifest_ref, text_of
from hypervisors.context import Context
from hypervisors.copying import Copied
from hypervisors.narrowing import as_reader
from hypervisors.outgoing import DIGEST, Outgoing
from hypervisors.relaying import WRITES, present
from hypervisors.verbs import Call, Copy, ref_of
from stores.contract import Kind
from stores.errors import AlreadyExists, InvalidReference
from stores.to import SnapshotObjectTO
from stores.transfer.digests import Checksum

NAME = "copy a backup between image stores"


def is_carrying(request: Copy) -> bool:
    """Whether a copy is one of these."""
    source, destination = request.source, request.destination
    between = source.store.storeType != "primary" and destination.store.storeType != "primary"
    return between and source.type == destination.type == "snapshot"


async def carry(ctx: Context, call: Call, request: Copy) -> Copied:
    """The same backup that is there already is success. `BrokenChain` where there is none, `ChecksumMismatch` for one that is
    damaged."""
    source, target = request.source, request.destination
    assert target.type == "snapshot"
    store, ref = ctx.resolver.store(source.store), ref_of(source)
    if ref_of(target) != ref:
        raise InvalidReference(f"a backup keeps its path when it is copied to another store: {ref}", ref=ref_of(target))
    call.progress.phase("inspect")
    manifest = await load_manifest(store, ref)
    if manifest is None:
        raise BrokenChain(f"there is no backup {ref}: an object without a manifest is none", ref=ref)
    outgoing = Outgoing(ctx, call, target.store, manifest.content.ref)
    there = await load_manifest(outgoing.store, ref)
    if there is None:
        await _send(ctx, call, request, manifest, outgoing)
    elif there != manifest:
        raise AlreadyExists(f"another backup is {ref} already; delete it first", ref=ref)
    return Copied(_answer(target, manifest))


async def _send(ctx: Context, call: Call, request: Copy, manifest: Manifest, outgoing: Outgoing) -> None:
    store, content = ctx.resolver.store(request.source.store), manifest.content
    async with (
        outgoing.both_or_neither() as commit,
        store.present(await store.stat(content.ref), Kind.RANGE_READER) as presentation,
    ):
        image = as_reader(presentation)
        if await present(ctx, call, outgoing, image) is None:
            await outgoing.send(image, WRITES, commit, checksum=Checksum(DIGEST, content.sha256))
        await replace(outgoing, ref=manifest_ref(manifest.ref)).send_small(text_of(manifest))


def _answer(target: SnapshotObjectTO, manifest: Manifest) -> SnapshotObjectTO:
    now = {
        "path": manifest.ref,
        "physicalSize": manifest.content.size,
        "format": manifest.format,
        "parentSnapshotPath": manifest.parent.ref if manifest.parent is not None else None,
    }
    return target.model_copy(update=now)
