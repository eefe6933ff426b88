"""A store around a store that changes nothing: what the other wrappers begin with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from stores.contract import (
    DataStore,
    Kind,
    NetworkDisk,
    ObjectInfo,
    PendingCopy,
    PendingUpload,
    PendingWrite,
    Presentation,
    Usage,
)


class WrapperStore(DataStore):
    """Forwards every call to `inner`, whose identity it keeps."""

    def __init__(self, inner: DataStore) -> None:
        self.inner = inner
        self.id = inner.id
        self.writes = inner.writes
        self.given = inner.given

    def offers(self, info: ObjectInfo | None = None) -> frozenset[Kind]:
        return self.inner.offers(info)

    def network(self, ref: str) -> NetworkDisk | None:
        return self.inner.network(ref)

    async def stat(self, ref: str) -> ObjectInfo:
        return await self.inner.stat(ref)

    def present(self, info: ObjectInfo, kind: Kind) -> AbstractAsyncContextManager[Presentation]:
        return self.inner.present(info, kind)

    def write(
        self, ref: str, kind: Kind, *, token: str, size: int | None = None, replace: bool = False
    ) -> AbstractAsyncContextManager[PendingWrite]:
        return self.inner.write(ref, kind, token=token, size=size, replace=replace)

    def upload(
        self, ref: str, source: Path, *, token: str, replace: bool = False
    ) -> AbstractAsyncContextManager[PendingUpload]:
        return self.inner.upload(ref, source, token=token, replace=replace)

    def copy(
        self, source: ObjectInfo, ref: str, *, token: str, replace: bool = False
    ) -> AbstractAsyncContextManager[PendingCopy]:
        return self.inner.copy(source, ref, token=token, replace=replace)

    async def discard(self, ref: str, *, token: str) -> None:
        await self.inner.discard(ref, token=token)

    async def delete(self, ref: str) -> None:
        await self.inner.delete(ref)

    def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        return self.inner.list(prefix)

    async def usage(self) -> Usage:
        return await self.inner.usage()

    async def let_go(self) -> None:
        await self.inner.let_go()

    async def aclose(self) -> None:
        await self.inner.aclose()
