"""KVM on a pool whose images are raw disks and no files, held to the contracts of handlers and of snapshots."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hypervisors.contract import HypervisorHandler, HypervisorType, ImageSpec, Source
from hypervisors.registry import handlers
from stores.contract import Kind, LocalPath, ObjectInfo, PendingWrite
from stores.to import ImageFormat
from stores.tools.process import ToolRunner
from stores.transfer.engine import TransferEngine
from tests.contract.handler_contract import HandlerContract
from tests.doubles.devices import DeviceShelf
from tests.doubles.disk_images import qemu_img


class TestKvmOnDevices(HandlerContract):
    targets = (ImageFormat.RAW,)
    unwritable = ImageFormat.QCOW2
    unreadable = (ImageFormat.OVA, ImageFormat.VDI, ImageFormat.TAR, ImageFormat.DIR, ImageFormat.BAREMETAL)
    expanded = ()
    blank = True

    @pytest.fixture(autouse=True)
    async def handler(self, tmp_path: Path) -> AsyncIterator[HypervisorHandler]:
        self.engine = TransferEngine()
        (tmp_path / "run").mkdir(mode=0o700)
        self.elsewhere = tmp_path
        self.shelf = DeviceShelf(tmp_path, self.engine, blank=self.blank)
        yield handlers(self.engine, ToolRunner(), tmp_path / "run")[HypervisorType.KVM]
        await self.engine.aclose()

    def spec(
        self, handler: HypervisorHandler, size: int | None = None, image_format: ImageFormat | None = None
    ) -> ImageSpec:
        return ImageSpec(image_format or ImageFormat.RAW, size, device=True)

    @asynccontextmanager
    async def target(self, name: str) -> AsyncIterator[PendingWrite]:
        async with self.shelf.write(name, Kind.BLOCK_DEVICE, token="c-1") as pending:
            yield pending

    @asynccontextmanager
    async def source(self, name: str, content: bytes) -> AsyncIterator[Source]:
        self.shelf.path(name).write_bytes(content)
        yield Source(self.shelf.disk(name, self.shelf.path(name)), ImageSpec(ImageFormat.RAW, len(content)))

    @asynccontextmanager
    async def foreign(self, content: bytes) -> AsyncIterator[Source]:
        raw, vhdx = self.elsewhere / "raw", self.elsewhere / "foreign.vhdx"
        raw.write_bytes(content)
        qemu_img("convert", "-f", "raw", "-O", "vhdx", str(raw), str(vhdx))
        yield Source(LocalPath(vhdx, ObjectInfo(vhdx.name, None)), ImageSpec(ImageFormat.VHDX, len(content)))

    def seen(self, name: str, image_format: ImageFormat) -> bytes:
        return self.shelf.path(name).read_bytes()

    def left(self) -> set[str]:
        return {path.name for path in self.shelf.disks.iterdir()}


class TestKvmOnUsedDevices(TestKvmOnDevices):
    """Which are full of something when they are made."""

    blank = False
