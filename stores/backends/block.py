"""A store that is a directory of block devices, or of files that have their sizes already: made by the operator, who may link
to devices from there, such as those that multipath or an initiator of the host names elsewhere."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from stores.backends.devices import held_for_writing, size_of
from stores.backends.directory import expect_version
from stores.contract import Kind, NetworkImage, ObjectInfo
from stores.errors import InvalidReference, NotFound
from stores.given import GivenDisks, GivenSide
from stores.os_errors import translated
from stores.paths import allowed_directory, check_prefix, check_ref, in_listing, is_ref
from stores.transfer.engine import TransferEngine

_DRIVERS = {stat.S_IFBLK: "host_device", stat.S_IFREG: "file"}


class BlockStore(GivenDisks):
    kind = Kind.BLOCK_DEVICE
    writes = frozenset({kind})

    def __init__(
        self,
        root: Path,
        engine: TransferEngine,
        *,
        id: str,  # noqa: A002 - the contract's word
        allowed: Sequence[Path],
    ) -> None:
        self.id = id
        self._root = root
        self._engine = engine
        self._allowed = tuple(allowed)

    def check(self, ref: str) -> None:
        if len(check_ref(ref)) != 1:
            raise InvalidReference(f"{ref} has folders, and a directory of devices has none", ref=ref)

    async def stat(self, ref: str) -> ObjectInfo:
        """The version tells one device from another, and its size."""
        self.check(ref)
        return (await self._engine.run(self._look, ref))[0]

    @asynccontextmanager
    async def present(self, info: ObjectInfo, kind: Kind) -> AsyncIterator[NetworkImage]:
        self.check(info.ref)
        if kind is not self.kind:
            raise self._unsupported(f"reading as {kind}")
        found, path, driver = await self._engine.run(self._look, info.ref)
        expect_version(info, found)
        storage = _BlockSide(self._engine, path, found)
        yield NetworkImage({"driver": driver, "filename": str(path)}, found, kind, storage=storage)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        prefix = check_prefix(prefix)
        for name in await self._engine.run(self._names):
            if in_listing(name, prefix):
                try:
                    yield await self.stat(name)
                except (InvalidReference, NotFound):
                    continue  # a folder, or a link to nothing

    def _look(self, ref: str) -> tuple[ObjectInfo, Path, str]:
        """What it is, where, and qemu's driver for it. A link may lead to a device, wherever that is, and to nothing else."""
        path = allowed_directory(self._root, self._allowed) / ref
        with translated(ref, ref=ref):
            status, linked = os.stat(path), path.is_symlink()
        driver = _DRIVERS.get(stat.S_IFMT(status.st_mode))
        if stat.S_ISDIR(status.st_mode):
            raise NotFound(f"{ref} is a directory, and no disk", ref=ref)
        if driver is None or (linked and driver == "file"):
            raise InvalidReference(f"{ref} is neither a block device, or a link to one, nor a file", ref=ref)
        size = size_of(path)
        which = status.st_rdev or status.st_ino
        return ObjectInfo(ref, size, version=f"{which:x}-{size}"), path, driver

    def _names(self) -> Sequence[str]:
        root = allowed_directory(self._root, self._allowed)
        with translated(str(root), directory=str(root)):
            return sorted(name for name in os.listdir(root) if is_ref(name))


class _BlockSide(GivenSide):
    def __init__(self, engine: TransferEngine, path: Path, info: ObjectInfo) -> None:
        super().__init__(info.ref, info.size or 0)
        self._engine = engine
        self._path = path

    async def in_use(self) -> bool:
        return await self._engine.run(partial(held_for_writing, self._path))
