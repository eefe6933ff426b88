"""Snapshots of KVM volumes, held to the contract: inside QCOW2 files, as files that share blocks, and of RAW volumes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from hypervisors.contract import ImageSpec, Source
from hypervisors.kvm.snapshots import KvmSnapshots
from hypervisors.qemu.qemu_img import QemuImg
from hypervisors.snapshotting import Snapshots
from stores.backends.filesystem import FilesystemStore
from stores.contract import Kind, LocalPath, ObjectInfo, PendingWrite
from stores.to import ImageFormat
from stores.tools.process import ToolRunner
from stores.transfer.engine import TransferEngine
from tests.contract.snapshot_contract import SnapshotContract
from tests.doubles.disk_images import DRIVERS, qemu_img
from tests.doubles.mounts import mounted_xfs
from tests.images import open_for_writing, qemu_io


class KvmSnapshotsOnADirectory(SnapshotContract):
    filled = (ImageFormat.QCOW2, ImageFormat.RAW)
    image_format = ImageFormat.QCOW2

    @contextmanager
    def place(self, tmp_path: Path) -> Iterator[Path]:
        yield tmp_path

    @pytest.fixture
    def base(self, tmp_path: Path) -> Iterator[Path]:
        with self.place(tmp_path) as made:
            yield made

    @pytest.fixture(autouse=True)
    async def snapshots(self, base: Path) -> AsyncIterator[Snapshots]:
        engine, runner = TransferEngine(), ToolRunner()
        self.root, self.elsewhere = base / "pool", base
        self.root.mkdir()
        (base / "run").mkdir(mode=0o700)
        self.store = FilesystemStore(self.root, engine, id="pool", allowed=[base])
        yield KvmSnapshots(engine, QemuImg(runner), runner, base / "run")
        await engine.aclose()
        assert [path for path in (base / "run").rglob("*") if not path.is_dir()] == []

    def volume(self, content: bytes) -> Source:
        raw = self.elsewhere / "raw"
        raw.write_bytes(content)
        driver = DRIVERS[self.image_format]
        qemu_img("convert", "-f", "raw", "-O", driver, str(raw), str(self.root / "v"))
        return self.committed("v", ImageSpec(self.image_format))

    def write(self, volume: Source, offset: int, data: bytes) -> None:
        written = self.elsewhere / "written"
        written.write_bytes(data)
        assert volume.spec.format is not None
        qemu_io(self._path(volume), volume.spec.format, f"write -s {written} {offset} {len(data)}")

    def seen(self, volume: Source) -> bytes:
        raw = self.elsewhere / "seen"
        assert volume.spec.format is not None
        qemu_img("convert", "-f", DRIVERS[volume.spec.format], "-O", "raw", str(self._path(volume)), str(raw))
        return raw.read_bytes()

    @asynccontextmanager
    async def target(self, name: str) -> AsyncIterator[PendingWrite]:
        async with self.store.write(name, Kind.LOCAL_PATH, token="c-1") as pending:
            yield pending

    def committed(self, name: str, spec: ImageSpec) -> Source:
        return Source(LocalPath(self.root / name, ObjectInfo(name, None)), spec)

    def in_use(self, volume: Source) -> AbstractAsyncContextManager[None]:
        return open_for_writing(self._path(volume), self.image_format)

    def _path(self, volume: Source) -> Path:
        assert isinstance(volume.presentation, LocalPath)
        return volume.presentation.path


class TestInsideTheFile(KvmSnapshotsOnADirectory):
    pass


class TestOfRawVolumes(KvmSnapshotsOnADirectory):
    image_format = ImageFormat.RAW


class TestFilesThatShareBlocks(KvmSnapshotsOnADirectory):
    @contextmanager
    def place(self, tmp_path: Path) -> Iterator[Path]:
        with mounted_xfs(tmp_path / "mounted", tmp_path / "xfs") as mounted:
            yield mounted
