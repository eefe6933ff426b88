"""A backup with everything that it builds on, found and checked before anything else happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypervisors.backups.manifest import (
    DEEPEST,
    BackupDamaged,
    BrokenChain,
    Manifest,
    manifest_ref,
    parsed,
)
from hypervisors.documents import read_object
from hypervisors.narrowing import as_reader
from stores.contract import DataStore, Kind, ObjectInfo, Progress
from stores.errors import NotFound
from stores.transfer.engine import TransferEngine


@dataclass(frozen=True, slots=True)
class Link:
    """One backup of a chain, and its object as the store has it now."""

    manifest: Manifest
    info: ObjectInfo


async def load_manifest(store: DataStore, ref: str) -> Manifest | None:
    """None if there is no such backup. `BrokenChain` for a manifest that is not whole."""
    text = await read_object(store, manifest_ref(ref))
    return None if text is None else parsed(ref, text)


async def load_chain(store: DataStore, ref: str, parents: Sequence[str] | None = None) -> Sequence[Link]:
    """The backup `ref` and all that it builds on, newest first: every manifest present and linked by its digest, every object
    there and of the size that its manifest says. `parents`: the refs that are expected below it, oldest first.

    `BrokenChain`, which names the one that is wrong.
    """
    links: list[Link] = []
    wanted: str | None = ref
    while wanted is not None:
        manifest = await load_manifest(store, wanted)
        if manifest is None:
            raise BrokenChain(f"there is no backup {wanted}{_needed_by(links)}", ref=wanted)
        _check_link(manifest, links)
        links.append(Link(manifest, await _content(store, manifest)))
        wanted = manifest.parent.ref if manifest.parent is not None else None
    found = [link.manifest.ref for link in reversed(links[1:])]
    if parents and list(parents) != found:
        raise BrokenChain(
            f"{ref} builds on {', '.join(found) or 'nothing'}, and the command says on {', '.join(parents)}: correct the"
            " command, or leave the parents out",
            ref=ref,
        )
    return links


def _check_link(manifest: Manifest, above: Sequence[Link]) -> None:
    if above:
        child = above[-1].manifest
        if child.parent is None or not manifest.stands_for(child.parent.manifest):
            raise BrokenChain(
                f"{manifest.ref} is not the backup that {child.ref} builds on, but another one of the same name: use a backup"
                " that does not need it",
                ref=manifest.ref,
            )
    if len(above) > DEEPEST or any(manifest.ref == link.manifest.ref for link in above):
        raise BrokenChain(
            f"{above[0].manifest.ref} builds on more than {DEEPEST} backups, or on itself", ref=manifest.ref
        )


async def _content(store: DataStore, manifest: Manifest) -> ObjectInfo:
    content = manifest.content
    try:
        info = await store.stat(content.ref)
    except NotFound:
        raise BrokenChain(
            f"the object {content.ref} of backup {manifest.ref} is not in the store (any more, or not yet): wait for its"
            " upload, restore it, or use a backup that does not need it",
            ref=manifest.ref,
        ) from None
    if info.size != content.size:
        raise BrokenChain(
            f"the object {content.ref} of backup {manifest.ref} has {info.size} bytes, its manifest says {content.size}:"
            " restore it, or use a backup that does not need it",
            ref=manifest.ref,
            expected=content.size,
            found=info.size,
        )
    return info


def _needed_by(above: Sequence[Link]) -> str:
    if not above:
        return ": an object without a manifest is none"
    return f", which {above[-1].manifest.ref} builds on: restore it, or use a backup that does not need it"


async def remove(store: DataStore, manifest: Manifest) -> None:
    """The manifest first: from then on there is no backup. Idempotent."""
    await store.delete(manifest_ref(manifest.ref))
    await store.delete(manifest.content.ref)


async def require_unchanged(
    store: DataStore, engine: TransferEngine, links: Sequence[Link], progress: Progress
) -> None:
    """`BackupDamaged` unless every object has the content that its manifest says.

    An object that still has the version of the day it was written is taken for that, since a store gives another content
    another version. All others (staged, or moved to another store since) are read once for their digest.
    """
    for link in links:
        version = link.manifest.content.version
        if version is None or version != link.info.version:
            await require_content(store, engine, link, progress)


async def require_content(store: DataStore, engine: TransferEngine, link: Link, progress: Progress) -> None:
    """Reads all of it."""
    content = link.manifest.content
    progress.phase("verify", content.size)
    async with store.present(link.info, Kind.RANGE_READER) as reader:
        found = (await engine.digest(as_reader(reader), ["sha256"], progress))["sha256"]
    if found != content.sha256:
        raise damaged(link, found)


def damaged(link: Link, found: str) -> BackupDamaged:
    """The error for an object of that digest."""
    content = link.manifest.content
    return BackupDamaged(
        f"the object {content.ref} of backup {link.manifest.ref} has sha256 {found}, its manifest says {content.sha256}:"
        " restore the object, or use a backup that does not need it",
        ref=link.manifest.ref,
        expected=content.sha256,
        found=found,
    )
