"""A storage repository as a store: its objects are VDIs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from hypervisors.primary import Pool
from hypervisors.xen.documents import VdiDocuments
from hypervisors.xen.finding import Finder
from hypervisors.xen.locks import abandoned, locked, remove_lock
from hypervisors.xen.marks import METADATA, Disk, all_ready, all_writing, holder, is_foreign_disk, left_of
from hypervisors.xen.pending import PendingVdi, info_of, owners
from hypervisors.xen.pool import XenPool
from hypervisors.xen.removing import copying_ended, end_copying, remove_replaced, remove_unfinished, replaced_by
from hypervisors.xen.repository import Repository
from stores.contract import DataStore, Kind, ManagedDisk, ObjectInfo, PendingWrite, Presentation, Usage
from stores.errors import AlreadyExists, NotFound, ObjectChanged
from stores.paths import check_prefix, check_ref, in_listing
from stores.uninterrupted import uninterrupted


def pool_of_sr(name: str, pools: Sequence[XenPool]) -> Pool:
    """The SR with that uuid or name in one of `pools`, which stay open. Contacts nothing."""
    finder = Finder(name, pools)
    return Pool(SrStore(finder), VdiDocuments(finder))


class SrStore(DataStore):
    """A ref is the name of a VDI that was made here and finished, or the uuid of one that somebody else made.

    What was made here is marked (see `marks`), and only what is marked as unfinished or replaced is ever removed without being
    asked for by name.
    """

    writes = frozenset({Kind.MANAGED_DISK})

    def __init__(self, finder: Finder) -> None:
        self.id = f"xen:{finder.name}"
        self._finder = finder

    def offers(self, info: ObjectInfo | None = None) -> frozenset[Kind]:
        return frozenset({Kind.MANAGED_DISK})

    async def stat(self, ref: str) -> ObjectInfo:
        """`size` is what the disk takes in the SR, `version` its uuid."""
        return info_of(ref, await self._find(ref))

    @asynccontextmanager
    async def present(self, info: ObjectInfo, kind: Kind) -> AsyncIterator[Presentation]:
        if kind is not Kind.MANAGED_DISK:
            raise self._unsupported(f"reading as {kind}")
        disk = await self._find(info.ref)
        if info.version is not None and info.version != disk.uuid:
            raise ObjectChanged(
                f"{info.ref} is another disk than when it was looked at; start again",
                ref=info.ref,
                expected=info.version,
                found=disk.uuid,
            )
        yield ManagedDisk(disk.uuid, info_of(info.ref, disk))

    @asynccontextmanager
    async def write(
        self, ref: str, kind: Kind, *, token: str, size: int | None = None, replace: bool = False
    ) -> AsyncIterator[PendingWrite]:
        """`ImageLocked` while another host's agent writes the same name."""
        check_ref(ref)
        if kind is not Kind.MANAGED_DISK:
            raise self._unsupported(f"writing as {kind}")
        sr = await self._finder.found()
        if not replace:
            await self._refuse_taken(sr, ref)
        async with locked(sr, ref) as lock:
            if not replace:
                await self._refuse_taken(sr, ref)
            for dead in all_writing(ref, await sr.named(ref)):  # whoever made it has lost the lock that we have
                await remove_unfinished(sr, dead)
            async with PendingVdi(sr, ref, lock, token=token, replace=replace) as pending:
                yield pending

    async def _refuse_taken(self, sr: Repository, ref: str) -> None:
        if await owners(sr, ref):
            raise AlreadyExists(f"{ref} exists already; nothing was overwritten", ref=ref, store=self.id)

    async def discard(self, ref: str, *, token: str) -> None:
        check_ref(ref)
        sr = await self._finder.found()
        await uninterrupted(self._discard(sr, ref, token))

    async def _discard(self, sr: Repository, ref: str, token: str) -> None:
        disks = await sr.disks()
        for disk in disks:
            left, copying = left_of(disk), disk.copying
            if left is not None and (left.ref, left.token) == (ref, token) and left.id not in sr.pool.busy:
                await remove_unfinished(sr, disk)
            elif copying is not None and (copying.ref, copying.token) == (ref, token) and copying_ended(sr, copying):
                await end_copying(sr, disk, copying)
        for disk in all_ready(ref, disks):
            if disk.image is not None and disk.image.token == token:
                await remove_replaced(sr, replaced_by(disk, disks))
        config = await sr.config()
        held = holder(ref, config)
        if held is not None and held.owner == sr.pool.settings.originator and abandoned(sr.pool, held):
            await remove_lock(sr, held.id, config)

    async def delete(self, ref: str) -> None:
        """`ImageLocked` while it is attached. Of a snapshot whose changes are tracked, a VDI of type cbt_metadata stays, which
        is no object, and knows which blocks had changed."""
        check_ref(ref)
        sr = await self._finder.found()
        await uninterrupted(self._delete(sr, ref))

    async def _delete(self, sr: Repository, ref: str) -> None:
        """Those that were replaced first: else one of them would count again."""
        for disk in await owners(sr, ref):
            if disk.snapshot and disk.tracked:
                await sr.destroy_content(disk)
            else:
                await sr.destroy(disk)
        for disk in await sr.disks():
            if disk.type == METADATA and disk.tagged is not None and disk.tagged.of == ref:
                await sr.destroy(disk)  # what is left of snapshots tells nothing without their volume

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        prefix = check_prefix(prefix)
        sr = await self._finder.found()
        disks = await sr.disks()
        found = {disk.uuid: disk for disk in disks if is_foreign_disk(disk)}
        refs = {disk.image.ref for disk in disks if disk.image is not None}
        found |= {ref: ready[-1] for ref in refs if (ready := all_ready(ref, disks))}
        for ref in sorted(found):
            if in_listing(ref, prefix):
                yield info_of(ref, found[ref])

    async def usage(self) -> Usage:
        """As XAPI knows it: it looks at the storage now and then only."""
        return await (await self._finder.found()).usage()

    async def aclose(self) -> None:
        """The SR is looked for again when it is needed. The connection is its pool's."""
        self._finder.forget()

    async def _find(self, ref: str) -> Disk:
        check_ref(ref)
        sr = await self._finder.found()
        found = await owners(sr, ref)
        if not found:
            raise NotFound(f"there is no disk {ref} in SR {sr.name}", ref=ref, store=self.id)
        return found[-1]
