"""The handler for XenServer on a fake pool, held to the contract of handlers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hypervisors.contract import HypervisorHandler, ImageSpec, Operation, Source
from stores.contract import Kind, LocalPath, ObjectInfo, PendingWrite
from stores.to import ImageFormat
from stores.transfer.engine import TransferEngine
from tests.contract.handler_contract import HandlerContract
from tests.doubles.disk_images import qemu_img
from tests.xen_place import xen_place


class TestXenHandler(HandlerContract):
    targets = (ImageFormat.VHD,)
    unwritable = ImageFormat.QCOW2
    unreadable = (ImageFormat.OVA, ImageFormat.VDI, ImageFormat.TAR, ImageFormat.DIR, ImageFormat.BAREMETAL)
    shares = True
    expanded = (ImageFormat.VHD, ImageFormat.RAW, ImageFormat.ISO)

    @pytest.fixture(autouse=True)
    async def handler(self, tmp_path: Path) -> AsyncIterator[HypervisorHandler]:
        engine = TransferEngine()
        self.elsewhere = tmp_path
        async with xen_place(tmp_path, engine) as self.place:
            self.store = self.place.primary().store
            yield self.place.handler
        await engine.aclose()

    def test_no_file_is_made_of_what_can_only_be_read_in_order(self, handler: HypervisorHandler) -> None:
        """Nor of anything else but an ISO for an SR that takes none."""
        for operation in (Operation.COPY_TEMPLATE, Operation.COPY_VOLUME, Operation.RESTORE):
            for image_format in (ImageFormat.QCOW2, ImageFormat.VHD, ImageFormat.RAW, None):
                spec = ImageSpec(image_format, sequential=True)
                assert Kind.LOCAL_PATH not in handler.accepts(operation, spec, ImageSpec(ImageFormat.VHD)).kinds

    @asynccontextmanager
    async def target(self, name: str) -> AsyncIterator[PendingWrite]:
        async with self.store.write(name, Kind.MANAGED_DISK, token="c-1") as pending:
            yield pending

    @asynccontextmanager
    async def source(self, name: str, content: bytes) -> AsyncIterator[Source]:
        yield self.place.source(self.place.make(name, content), name)

    @asynccontextmanager
    async def foreign(self, content: bytes) -> AsyncIterator[Source]:
        raw, vhdx = self.elsewhere / "raw", self.elsewhere / "foreign.vhdx"
        raw.write_bytes(content)
        qemu_img("convert", "-f", "raw", "-O", "vhdx", str(raw), str(vhdx))
        given = LocalPath(vhdx, ObjectInfo(vhdx.name, vhdx.stat().st_size))
        yield Source(given, ImageSpec(ImageFormat.VHDX, len(content)))

    def seen(self, name: str, image_format: ImageFormat) -> bytes:
        return self.place.content(self.place.named(name))

    def left(self) -> set[str]:
        return set(self.place.vdis())
