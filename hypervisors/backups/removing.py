"""Delete of a backup: refused while later ones build on it, or, if asked, after these have been made independent of it.

A child becomes a full backup under the name that it has: a new object beside its old one, then its manifest in one step, then
the old object goes. Only when no child needs the parent any more does that go, manifest first. Whatever is interrupted, every
backup but the deleted one can be restored, and the same command again goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypervisors.backups.chain import Link, load_chain, load_manifest, remove, require_unchanged
from hypervisors.backups.disk import chain_disk
from hypervisors.backups.manifest import SUFFIX, Content, Manifest, digest_of, manifest_ref, text_of
from hypervisors.context import Context
from hypervisors.contract import ImageInUse, ImageSpec, Operation
from hypervisors.images.disk_image import laid_out
from hypervisors.outgoing import DIGEST, Outgoing
from hypervisors.verbs import Call, Delete, ref_of
from stores.contract import DataStore
from stores.uninterrupted import uninterrupted


async def delete(ctx: Context, call: Call, request: Delete) -> None:
    """See `Operations.delete`."""
    store, ref = ctx.resolver.store(request.data.store), ref_of(request.data)
    manifest = await load_manifest(store, ref)
    if manifest is None:
        await store.delete(ref)  # an object that no manifest vouches for
        return
    beside = await manifests(store, ref.rpartition("/")[0])
    children = [found for found in beside if found.parent is not None and found.parent.ref == ref]
    if children and not request.merge:
        names = [child.ref for child in children]
        raise ImageInUse(
            f"{len(children)} backups build on {ref}: delete them first, or say merge, which makes full ones of them:"
            f" {', '.join(names[:10])}",
            ref=ref,
            children=names,
        )
    for child in children:
        await _make_independent(ctx, call, request, await load_chain(store, child.ref))
    for other in beside:
        if other.replaces and other.content.ref != other.ref:
            await store.delete(other.ref)  # what a merge that was interrupted left
    await uninterrupted(remove(store, manifest))


async def manifests(store: DataStore, folder: str) -> Sequence[Manifest]:
    """Of the backups in that folder and below. `BrokenChain` for one that is damaged."""
    refs = [info.ref.removesuffix(SUFFIX) async for info in store.list(folder) if info.ref.endswith(SUFFIX)]
    found = [await load_manifest(store, ref) for ref in refs]
    return [manifest for manifest in found if manifest is not None]


async def _make_independent(ctx: Context, call: Call, request: Delete, links: Sequence[Link]) -> None:
    store, child = ctx.resolver.store(request.data.store), links[0].manifest
    await require_unchanged(store, ctx.engine, links, call.progress)
    spec = ImageSpec(child.format, child.virtual_size)
    fills = ctx.handler(call.hypervisor).fills(Operation.BACK_UP, spec)
    ref = f"{child.ref}.full-{digest_of(child)[:16]}"
    outgoing = Outgoing(ctx, call, request.data.store, ref, replaces=True)
    async with outgoing.both_or_neither() as commit, chain_disk(ctx, store, links) as disk:
        made = await laid_out(ctx.engine, disk, child.format)
        info, sent = await outgoing.send(made.content, fills, commit)
    merged = child.model_copy(
        update={
            "content": Content(ref=ref, size=sent.size, sha256=sent.digests[DIGEST], version=info.version),
            "cluster_size": made.cluster,
            "changed": made.changed(),
            "parent": None,
            "depth": 0,
            "replaces": (*child.replaces, digest_of(child)),
        }
    )
    named = replace(outgoing, ref=manifest_ref(child.ref))
    await uninterrupted(named.send_small(text_of(merged)))
    await store.delete(child.content.ref)
