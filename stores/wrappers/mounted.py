"""A store on a mount of the agent's own: mounted before it is used, and not unmounted meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from stores.contract import DataStore, Kind, ObjectInfo, PendingCopy, PendingUpload, PendingWrite, Presentation, Usage
from stores.mounts.mount import Mount
from stores.wrappers.base import WrapperStore


class MountedStore(WrapperStore):
    """Every call is refused with `MountHangs`, `MountFailed` and their like while the mount cannot be used, in bounded time."""

    def __init__(self, inner: DataStore, mount: Mount) -> None:
        super().__init__(inner)
        self._mount = mount

    async def stat(self, ref: str) -> ObjectInfo:
        async with self._mount.in_use():
            return await self.inner.stat(ref)

    @asynccontextmanager
    async def present(self, info: ObjectInfo, kind: Kind) -> AsyncIterator[Presentation]:
        async with self._mount.in_use(), self.inner.present(info, kind) as presentation:
            yield presentation

    @asynccontextmanager
    async def write(
        self, ref: str, kind: Kind, *, token: str, size: int | None = None, replace: bool = False
    ) -> AsyncIterator[PendingWrite]:
        begun = self.inner.write(ref, kind, token=token, size=size, replace=replace)
        async with self._mount.in_use(), begun as pending:
            yield pending

    @asynccontextmanager
    async def upload(
        self, ref: str, source: Path, *, token: str, replace: bool = False
    ) -> AsyncIterator[PendingUpload]:
        async with self._mount.in_use(), self.inner.upload(ref, source, token=token, replace=replace) as pending:
            yield pending

    @asynccontextmanager
    async def copy(
        self, source: ObjectInfo, ref: str, *, token: str, replace: bool = False
    ) -> AsyncIterator[PendingCopy]:
        async with self._mount.in_use(), self.inner.copy(source, ref, token=token, replace=replace) as pending:
            yield pending

    async def discard(self, ref: str, *, token: str) -> None:
        async with self._mount.in_use():
            await self.inner.discard(ref, token=token)

    async def delete(self, ref: str) -> None:
        async with self._mount.in_use():
            await self.inner.delete(ref)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        async with self._mount.in_use():
            async for info in self.inner.list(prefix):
                yield info

    async def usage(self) -> Usage:
        async with self._mount.in_use():
            return await self.inner.usage()

    async def let_go(self) -> None:
        await self._mount.release()
