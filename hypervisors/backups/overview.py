"""What there is of backups, and whether it is sound: for operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hypervisors.backups.chain import Link, load_chain, load_manifest, require_content
from hypervisors.backups.disk import chain_disk
from hypervisors.backups.manifest import SUFFIX, BackupDamaged, BrokenChain, Manifest, manifest_ref
from hypervisors.context import Context
from hypervisors.verbs import Call, named
from stores.contract import DataStore
from stores.to import DataStoreTO


@dataclass(frozen=True, slots=True)
class Checked:
    """One backup of a chain. `size`: bytes of its object. `fault`: what is wrong with it; None if nothing is."""

    ref: str
    size: int
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Verified:
    """`chain`: newest first; empty where not even its manifests hold together, which `fault` then tells."""

    ref: str
    sound: bool
    chain: tuple[Checked, ...] = ()
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """One backup, and those that build on it. Sizes are bytes; `created` is the time of the snapshot, in seconds since the
    epoch. `fault`: why it cannot be restored, as far as manifests show it."""

    ref: str
    volume: str
    snapshot: str
    created: float
    virtual_size: int
    size: int
    changed: int
    fault: str | None = None
    children: tuple[Node, ...] = ()


@dataclass(frozen=True, slots=True)
class Tree:
    """`roots`: full backups, and those whose parent is missing. `strays`: objects beside them that belong to none: uploads that
    still go on, what a command that died has left, or what somebody else put there."""

    roots: tuple[Node, ...]
    strays: tuple[str, ...]


async def verify(ctx: Context, call: Call, to: DataStoreTO, path: str) -> Verified:
    """See `Operations.verify_backup`."""
    store, ref = ctx.resolver.store(to), named(path)
    try:
        links = await load_chain(store, ref)
    except BrokenChain as error:
        return Verified(ref, sound=False, fault=error.message)
    checked = [await _checked(ctx, call, store, link) for link in links]
    return Verified(ref, sound=all(found.fault is None for found in checked), chain=tuple(checked))


async def _checked(ctx: Context, call: Call, store: DataStore, link: Link) -> Checked:
    content = link.manifest.content
    try:
        await require_content(store, ctx.engine, link, call.progress)
        async with chain_disk(ctx, store, [link]):
            pass  # its tables are those that its map needs
    except (BackupDamaged, BrokenChain) as error:
        return Checked(link.manifest.ref, content.size, error.message)
    return Checked(link.manifest.ref, content.size)


async def tree(ctx: Context, to: DataStoreTO, prefix: str) -> Tree:
    """See `Operations.backup_tree`."""
    store = ctx.resolver.store(to)
    refs = [info.ref async for info in store.list(named(prefix).rstrip("/")) if not info.is_dir]
    found: dict[str, Manifest] = {}
    broken: dict[str, str] = {}
    for ref in (ref.removesuffix(SUFFIX) for ref in refs if ref.endswith(SUFFIX)):
        try:
            manifest = await load_manifest(store, ref)
        except BrokenChain as error:
            broken[ref] = error.message
        else:
            if manifest is not None:
                found[ref] = manifest
    known = {*broken, *map(manifest_ref, (*found, *broken)), *(manifest.content.ref for manifest in found.values())}
    roots = [_damaged(ref, fault) for ref, fault in broken.items()]
    roots += _nodes(found, set(refs), None)
    return Tree(tuple(sorted(roots, key=_age)), tuple(sorted(set(refs) - known)))


def _nodes(found: Mapping[str, Manifest], refs: set[str], parent: str | None) -> list[Node]:
    """Those that build on `parent`; with None, those that build on nothing that is there."""
    nodes = []
    for ref, manifest in found.items():
        below = manifest.parent.ref if manifest.parent is not None else None
        if (below if below in found else None) == parent and below != ref:
            children = sorted(_nodes(found, refs, ref), key=_age)
            nodes.append(_node(manifest, _fault(manifest, found, refs), children))
    return nodes


def _fault(manifest: Manifest, found: Mapping[str, Manifest], refs: set[str]) -> str | None:
    if manifest.content.ref not in refs:
        return f"its object {manifest.content.ref} is not there"
    if manifest.parent is None:
        return None
    parent = found.get(manifest.parent.ref)
    if parent is None:
        return f"{manifest.parent.ref}, which it builds on, is not there"
    if not parent.stands_for(manifest.parent.manifest):
        return f"{manifest.parent.ref} is not the backup that it builds on, but another one of the same name"
    return None


def _node(manifest: Manifest, fault: str | None, children: Sequence[Node]) -> Node:
    return Node(
        ref=manifest.ref,
        volume=manifest.volume,
        snapshot=manifest.snapshot,
        created=manifest.created,
        virtual_size=manifest.virtual_size,
        size=manifest.content.size,
        changed=manifest.changed,
        fault=fault,
        children=tuple(children),
    )


def _damaged(ref: str, fault: str) -> Node:
    return Node(ref=ref, volume="", snapshot="", created=0, virtual_size=0, size=0, changed=0, fault=fault)


def _age(node: Node) -> tuple[float, str]:
    return node.created, node.ref
