"""A pool of a Hyper-V host as a store.

Disks are written as `ManagedDisk`, everything else as a stream: it is that which tells a disk's name from an ISO's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from hypervisors.documents import StoreDocuments
from hypervisors.hyperv.pending import PendingVhdx
from hypervisors.hyperv.place import DISK, ISO, HostFile, Place, is_image, names, ref_of
from hypervisors.primary import Pool
from stores.contract import DataStore, Kind, ObjectInfo, PendingWrite, Presentation, Usage
from stores.errors import AlreadyExists, NotFound


def pool_of_place(place: Place) -> Pool:
    """What we know of its images are files beside them (`hypervisors.documents`)."""
    return Pool(HostFiles(place), StoreDocuments(place.share))


class HostFiles(DataStore):
    writes = frozenset({Kind.MANAGED_DISK, Kind.BYTE_STREAM})

    def __init__(self, place: Place) -> None:
        """Share, port and engine stay their owners', who close them."""
        self.id = place.share.id
        self._place = place
        self._share = place.share

    def offers(self, info: ObjectInfo | None = None) -> frozenset[Kind]:
        return frozenset({Kind.MANAGED_DISK, *self._share.offers(info)})

    async def stat(self, ref: str) -> ObjectInfo:
        return replace(await self._place.file(ref), ref=ref)

    @asynccontextmanager
    async def present(self, info: ObjectInfo, kind: Kind) -> AsyncIterator[Presentation]:
        file = replace(info, ref=(await self._place.file(info.ref)).ref)
        if kind is Kind.MANAGED_DISK:
            yield HostFile(self._place.folder.of(file.ref), info, self._place)
            return
        async with self._share.present(file, kind) as presentation:
            yield presentation

    @asynccontextmanager
    async def write(
        self, ref: str, kind: Kind, *, token: str, size: int | None = None, replace: bool = False
    ) -> AsyncIterator[PendingWrite]:
        if kind not in self.writes:
            raise self._unsupported(f"writing as {kind}")
        taken = await self._taken(ref)
        if taken and not replace:
            raise AlreadyExists(f"{ref} exists already; nothing was overwritten", ref=ref)
        name = f"{ref}{DISK if kind is Kind.MANAGED_DISK else ISO}"
        if kind is Kind.MANAGED_DISK:
            async with PendingVhdx(self._place, ref, name, token=token, replace=replace, new=not taken) as disk:
                yield disk
            return
        async with self._share.write(name, kind, token=token, size=size, replace=replace) as pending:
            yield pending

    async def discard(self, ref: str, *, token: str) -> None:
        for name in names(ref):
            await self._share.discard(name, token=token)

    async def delete(self, ref: str) -> None:
        for name in names(ref):
            await self._share.delete(name)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """Images only. In memory: names without their endings are in another order."""
        found = [replace(info, ref=ref_of(info.ref)) async for info in self._share.list(prefix) if is_image(info.ref)]
        if prefix and not found and await self._taken(prefix):
            found = [await self.stat(prefix)]
        for info in sorted(found, key=lambda info: info.ref):
            yield info

    async def usage(self) -> Usage:
        return await self._share.usage()

    async def _taken(self, ref: str) -> bool:
        try:
            await self._place.file(ref)
        except NotFound:
            return False
        return True
