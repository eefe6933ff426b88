"""A store of images that keeps nothing else, and beside it one for what we note of them: together they are a pool's store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from stores.contract import DataStore, Kind, NetworkDisk, ObjectInfo, PendingWrite, Presentation, Usage
from stores.paths import RECORDS

_IMAGES = f"{RECORDS}/frozen/"
"""Images, although nobody shall see them."""


class NotedStore(DataStore):
    """What is below `RECORDS` is a note, but for images of snapshots."""

    def __init__(self, images: DataStore, notes: DataStore) -> None:
        self.id = images.id
        self.writes = images.writes | {Kind.BYTE_STREAM}
        self.given = images.given
        self._images = images
        self._notes = notes

    def offers(self, info: ObjectInfo | None = None) -> frozenset[Kind]:
        return self._images.offers(info) if info is None else self._of(info.ref).offers(info)

    def network(self, ref: str) -> NetworkDisk | None:
        return self._images.network(ref)

    async def stat(self, ref: str) -> ObjectInfo:
        return await self._of(ref).stat(ref)

    def present(self, info: ObjectInfo, kind: Kind) -> AbstractAsyncContextManager[Presentation]:
        return self._of(info.ref).present(info, kind)

    def write(
        self, ref: str, kind: Kind, *, token: str, size: int | None = None, replace: bool = False
    ) -> AbstractAsyncContextManager[PendingWrite]:
        return self._of(ref).write(ref, kind, token=token, size=size, replace=replace)

    async def discard(self, ref: str, *, token: str) -> None:
        await self._of(ref).discard(ref, token=token)

    async def delete(self, ref: str) -> None:
        await self._of(ref).delete(ref)

    def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        return self._of(prefix).list(prefix)

    async def usage(self) -> Usage:
        return await self._images.usage()

    async def aclose(self) -> None:
        await self._images.aclose()
        await self._notes.aclose()

    def _of(self, ref: str) -> DataStore:
        noted = ref.partition("/")[0] == RECORDS and not ref.startswith(_IMAGES)
        return self._notes if noted else self._images
