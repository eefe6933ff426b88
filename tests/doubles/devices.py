"""A pool of raw disks that are no files to whoever uses them: what a storage of devices gives, on a directory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Set
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from stores.backends.filesystem import FilesystemStore
from stores.contract import (
    DataStore,
    Kind,
    NetworkImage,
    ObjectInfo,
    PendingWrite,
    Presentation,
    StorageSide,
    Usage,
)
from stores.errors import AlreadyExists, NotFound, StoreUnsupported
from stores.transfer.engine import TransferEngine

NOTES = ".storage-agent/"


class DeviceShelf(DataStore):
    """`blank`: new disks read as zeroes; else they are full of something. Its notes are files beside."""

    writes = frozenset({Kind.BLOCK_DEVICE, Kind.BYTE_STREAM})

    def __init__(self, root: Path, engine: TransferEngine, *, blank: bool = True) -> None:
        self.id = "pool:devices"
        self.blank = blank
        self.used_by_guests: set[Path] = set()
        self.disks, notes = root / "disks", root / "notes"
        self.disks.mkdir()
        notes.mkdir()
        self._notes = FilesystemStore(notes, engine, id=self.id, allowed=[root])

    def path(self, ref: str) -> Path:
        return self.disks / quote(ref, safe="")

    def offers(self, info: ObjectInfo | None = None) -> frozenset[Kind]:
        noted = info is not None and not self.path(info.ref).exists()
        return frozenset({Kind.RANGE_READER}) if noted else frozenset({Kind.BLOCK_DEVICE})

    async def stat(self, ref: str) -> ObjectInfo:
        if self.path(ref).exists():
            return ObjectInfo(ref, self.path(ref).stat().st_size, version=str(self.path(ref).stat().st_ino))
        if not ref.startswith(NOTES):
            raise NotFound(f"there is no {ref}", ref=ref)
        return await self._notes.stat(ref)

    def present(self, info: ObjectInfo, kind: Kind) -> AbstractAsyncContextManager[Presentation]:
        return self._presented(info) if kind is Kind.BLOCK_DEVICE else self._notes.present(info, kind)

    @asynccontextmanager
    async def _presented(self, info: ObjectInfo) -> AsyncIterator[Presentation]:
        yield self.disk(info.ref, self.path(info.ref))

    def disk(self, ref: str, path: Path) -> NetworkImage:
        return NetworkImage(
            {"driver": "file", "filename": str(path)},
            ObjectInfo(ref, path.stat().st_size),
            Kind.BLOCK_DEVICE,
            storage=_Side(path, self.used_by_guests),
        )

    def write(
        self, ref: str, kind: Kind, *, token: str, size: int | None = None, replace: bool = False
    ) -> AbstractAsyncContextManager[PendingWrite]:
        if kind is Kind.BLOCK_DEVICE:
            return self._written(ref, token, replace)
        return self._notes.write(ref, kind, token=token, size=size, replace=replace)

    @asynccontextmanager
    async def _written(self, ref: str, token: str, replace: bool) -> AsyncIterator[PendingWrite]:
        pending = _PendingDisk(self, ref, token, replace)
        try:
            yield pending
        finally:
            pending.path.unlink(missing_ok=True)

    async def discard(self, ref: str, *, token: str) -> None:
        self.path(f"{ref}.{token}").unlink(missing_ok=True)
        await self._notes.discard(ref, token=token)

    async def delete(self, ref: str) -> None:
        self.path(ref).unlink(missing_ok=True)
        if ref.startswith(NOTES):
            await self._notes.delete(ref)

    def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        return self._notes.list(prefix)

    async def usage(self) -> Usage:
        return await self._notes.usage()

    async def aclose(self) -> None:
        await self._notes.aclose()


class _Side(StorageSide):
    def __init__(self, path: Path, used_by_guests: Set[Path]) -> None:
        self._path = path
        self._used_by_guests = used_by_guests

    async def in_use(self) -> bool:
        return self._path in self._used_by_guests

    async def used(self) -> int | None:
        return self._path.stat().st_blocks * 512

    async def resize(self, size: int) -> None:
        with self._path.open("r+b") as disk:
            disk.truncate(size)


class _PendingDisk:
    kind: ClassVar[Kind] = Kind.BLOCK_DEVICE

    def __init__(self, shelf: DeviceShelf, ref: str, token: str, replace: bool) -> None:
        self.blank = shelf.blank
        self.path = shelf.path(f"{ref}.{token}")
        self._shelf = shelf
        self._ref = ref
        self._replace = replace

    async def make(self, size: int) -> NetworkImage:
        with self.path.open("xb") as disk:
            if not self.blank:
                disk.write(b"\xee" * size)
            disk.truncate(size)
        await asyncio.sleep(0)
        return self._shelf.disk(self._ref, self.path)

    async def derive(self, image: NetworkImage, tag: str | None) -> NetworkImage:
        raise StoreUnsupported("no disk of this pool shares anything with another")

    async def commit(self) -> ObjectInfo:
        if self._shelf.path(self._ref).exists() and not self._replace:
            raise AlreadyExists(f"{self._ref} exists already", ref=self._ref)
        self.path.rename(self._shelf.path(self._ref))
        return await self._shelf.stat(self._ref)
