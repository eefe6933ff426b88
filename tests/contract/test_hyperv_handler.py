"""The handler for Hyper-V on a real Samba and a fake host, held to the contract of handlers."""

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
from tests.hyperv_place import hyperv_place
from tests.samba import SambaServer


class TestHypervHandler(HandlerContract):
    targets = (ImageFormat.VHDX,)
    unwritable = ImageFormat.QCOW2
    unreadable = (ImageFormat.OVA, ImageFormat.VDI, ImageFormat.TAR, ImageFormat.DIR, ImageFormat.BAREMETAL)
    expanded = (ImageFormat.ISO,)

    @pytest.fixture(autouse=True)
    async def handler(
        self, tmp_path: Path, samba: SambaServer, engine: TransferEngine
    ) -> AsyncIterator[HypervisorHandler]:
        self.elsewhere = tmp_path
        async with hyperv_place(tmp_path, engine, samba) as self.place:
            self.store = self.place.primary().store
            yield self.place.handler

    def test_no_file_is_made_of_what_can_only_be_read_in_order(self, handler: HypervisorHandler) -> None:
        for operation in (Operation.COPY_TEMPLATE, Operation.COPY_VOLUME, Operation.RESTORE, Operation.ATTACH_ISO):
            for image_format in (ImageFormat.QCOW2, ImageFormat.VHD, ImageFormat.RAW, ImageFormat.ISO, None):
                spec = ImageSpec(image_format, sequential=True)
                assert Kind.LOCAL_PATH not in handler.accepts(operation, spec, ImageSpec(ImageFormat.VHDX)).kinds

    @asynccontextmanager
    async def target(self, name: str) -> AsyncIterator[PendingWrite]:
        async with self.store.write(name, Kind.MANAGED_DISK, token="c-1") as pending:
            yield pending

    @asynccontextmanager
    async def source(self, name: str, content: bytes) -> AsyncIterator[Source]:
        self.place.make(name, content)
        yield self.place.source(name)

    @asynccontextmanager
    async def foreign(self, content: bytes) -> AsyncIterator[Source]:
        raw, qcow2 = self.elsewhere / "raw", self.elsewhere / "foreign.qcow2"
        raw.write_bytes(content)
        qemu_img("convert", "-f", "raw", "-O", "qcow2", str(raw), str(qcow2))
        given = LocalPath(qcow2, ObjectInfo(qcow2.name, qcow2.stat().st_size))
        yield Source(given, ImageSpec(ImageFormat.QCOW2, len(content)))

    def seen(self, name: str, image_format: ImageFormat) -> bytes:
        return self.place.content(name)

    def left(self) -> set[str]:
        return self.place.files()
