"""Snapshots of KVM's volumes that are no files, where the storage has none of its own: whole copies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from hypervisors.contract import HypervisorType, ImageSpec, Source
from hypervisors.registry import handlers
from hypervisors.snapshotting import Snapshots
from stores.contract import Kind, PendingWrite
from stores.to import ImageFormat
from stores.tools.process import ToolRunner
from stores.transfer.engine import TransferEngine
from tests.contract.snapshot_contract import SnapshotContract
from tests.doubles.devices import DeviceShelf


class TestSnapshotsOfDevices(SnapshotContract):
    filled = (ImageFormat.RAW,)
    files = False

    @pytest.fixture(autouse=True)
    async def snapshots(self, tmp_path: Path) -> AsyncIterator[Snapshots]:
        engine = TransferEngine()
        (tmp_path / "run").mkdir(mode=0o700)
        self.shelf = DeviceShelf(tmp_path, engine)
        yield handlers(engine, ToolRunner(), tmp_path / "run")[HypervisorType.KVM].snapshots
        await engine.aclose()
        assert [path for path in (tmp_path / "run").rglob("*") if not path.is_dir()] == []

    def volume(self, content: bytes) -> Source:
        self.shelf.path("v").write_bytes(content)
        return self.committed("v", ImageSpec(ImageFormat.RAW))

    def write(self, volume: Source, offset: int, data: bytes) -> None:
        with self._path(volume).open("r+b") as disk:
            disk.seek(offset)
            disk.write(data)

    def seen(self, volume: Source) -> bytes:
        return self._path(volume).read_bytes()

    @asynccontextmanager
    async def target(self, name: str) -> AsyncIterator[PendingWrite]:
        async with self.shelf.write(name, Kind.BLOCK_DEVICE, token="c-1") as pending:
            yield pending

    def committed(self, name: str, spec: ImageSpec) -> Source:
        return Source(self.shelf.disk(name, self.shelf.path(name)), spec)

    def in_use(self, volume: Source) -> AbstractAsyncContextManager[None]:
        @asynccontextmanager
        async def open_disk() -> AsyncIterator[None]:
            with self._open(volume):
                yield

        return open_disk()

    @contextmanager
    def _open(self, volume: Source) -> Iterator[None]:
        self.shelf.used_by_guests.add(self._path(volume))
        yield
        self.shelf.used_by_guests.clear()

    def _path(self, volume: Source) -> Path:
        return self.shelf.path(volume.presentation.info.ref)
