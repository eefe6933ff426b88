"""Stores whose disks are made, resized and removed elsewhere: by the management of a storage, or by the operator. What is done
here is to fill them and to read them."""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import ClassVar

from stores.contract import DataStore, Kind, NetworkImage, ObjectInfo, PendingImage, StorageSide, Usage
from stores.errors import StoreUnsupported
from stores.paths import RECORDS


class GivenDisks(DataStore):
    """`kind`: what the disks are; a subclass names it in its `writes` as well."""

    given = True
    kind: ClassVar[Kind]

    def offers(self, info: ObjectInfo | None = None) -> frozenset[Kind]:
        return frozenset({self.kind})

    @abc.abstractmethod
    def present(self, info: ObjectInfo, kind: Kind) -> AbstractAsyncContextManager[NetworkImage]: ...

    @abc.abstractmethod
    def check(self, ref: str) -> None:
        """`InvalidReference` for what cannot be the name of a disk. Contacts nothing."""

    @asynccontextmanager
    async def write(
        self, ref: str, kind: Kind, *, token: str, size: int | None = None, replace: bool = False
    ) -> AsyncIterator[PendingImage]:
        """What is written is there at once: who is not to see it before the commit goes by our records. `NotFound` for a disk
        that nobody has made."""
        if ref.startswith(f"{RECORDS}/"):
            raise StoreUnsupported(
                f"a snapshot needs a disk of its own, and the disks of store {self.id} are made elsewhere; have the storage"
                " make the snapshot, or copy the volume",
                store=self.id,
            )
        if kind is not self.kind:
            raise self._unsupported(f"writing as {kind}")
        self.check(ref)
        info = await self.stat(ref)
        async with self.present(info, kind) as image:
            yield _Pending(image)

    async def discard(self, ref: str, *, token: str) -> None:
        """A disk stays, with whatever was written into it."""
        if not ref.startswith(f"{RECORDS}/"):
            self.check(ref)

    async def delete(self, ref: str) -> None:
        """A disk stays, and only whoever made it removes it."""
        if not ref.startswith(f"{RECORDS}/"):
            self.check(ref)

    async def usage(self) -> Usage:
        return Usage(used=0, capacity=None)


class GivenSide(StorageSide):
    """Of a disk of `size` bytes."""

    def __init__(self, ref: str, size: int) -> None:
        self._ref = ref
        self._size = size

    async def resize(self, size: int) -> None:
        if size != self._size:
            raise too_small(self._ref, self._size, size)


class _Pending:
    blank = False

    def __init__(self, image: NetworkImage) -> None:
        self.kind = image.kind
        self._image = image

    async def make(self, size: int) -> NetworkImage:
        present = self._image.info.size or 0
        if size > present:
            raise too_small(self._image.info.ref, present, size)
        return self._image

    async def derive(self, image: NetworkImage, tag: str | None) -> NetworkImage:
        raise StoreUnsupported(
            f"{self._image.info.ref} is a disk of its own, and shares nothing; set fullCloneFlag for a full clone",
            ref=self._image.info.ref,
        )

    async def commit(self) -> ObjectInfo:
        """Whoever filled it has flushed it."""
        return self._image.info


def too_small(ref: str, size: int, needed: int) -> StoreUnsupported:
    return StoreUnsupported(
        f"{ref} has {size} bytes and is to have {needed}: its size is changed where it was made; do that first, and try again",
        ref=ref,
        size=size,
        needed=needed,
    )
