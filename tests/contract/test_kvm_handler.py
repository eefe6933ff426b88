"""The KVM handler on a directory, held to the contract of handlers."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from hypervisors.contract import (
    HypervisorHandler,
    HypervisorType,
    ImageSpec,
    Operation,
    OperationUnsupported,
    Source,
)
from hypervisors.registry import handlers
from stores.backends.filesystem import FilesystemStore
from stores.contract import Kind, LocalPath, ObjectInfo, PendingWrite
from stores.to import ImageFormat, ProvisioningType
from stores.tools.process import ToolRunner
from stores.transfer.engine import TransferEngine
from tests.contract.handler_contract import SIZE, HandlerContract, disk
from tests.doubles.disk_images import DRIVERS, qemu_img


class TestKvmHandler(HandlerContract):
    targets = (ImageFormat.QCOW2, ImageFormat.RAW)
    unwritable = ImageFormat.VHD
    unreadable = (ImageFormat.OVA, ImageFormat.VDI, ImageFormat.TAR, ImageFormat.DIR, ImageFormat.BAREMETAL)

    @pytest.fixture(autouse=True)
    async def handler(self, tmp_path: Path) -> AsyncIterator[HypervisorHandler]:
        self.engine = TransferEngine()
        self.root = tmp_path / "pool"
        self.root.mkdir()
        (tmp_path / "run").mkdir(mode=0o700)
        self.elsewhere = tmp_path
        self.store = FilesystemStore(self.root, self.engine, id="pool", allowed=[tmp_path])
        yield handlers(self.engine, ToolRunner(), tmp_path / "run")[HypervisorType.KVM]
        await self.engine.aclose()

    @asynccontextmanager
    async def target(self, name: str) -> AsyncIterator[PendingWrite]:
        async with self.store.write(name, Kind.LOCAL_PATH, token="c-1") as pending:
            yield pending

    @asynccontextmanager
    async def source(self, name: str, content: bytes) -> AsyncIterator[Source]:
        raw = self.elsewhere / "raw"
        raw.write_bytes(content)
        qemu_img("convert", "-f", "raw", "-O", "qcow2", str(raw), str(self.root / name))
        yield self._source(self.root / name, ImageFormat.QCOW2, len(content))

    @asynccontextmanager
    async def foreign(self, content: bytes) -> AsyncIterator[Source]:
        raw, vhdx = self.elsewhere / "raw", self.elsewhere / "foreign.vhdx"
        raw.write_bytes(content)
        qemu_img("convert", "-f", "raw", "-O", "vhdx", str(raw), str(vhdx))
        yield self._source(vhdx, ImageFormat.VHDX, len(content))

    def _source(self, path: Path, image_format: ImageFormat, size: int) -> Source:
        return Source(LocalPath(path, ObjectInfo(path.name, path.stat().st_size)), ImageSpec(image_format, size))

    def seen(self, name: str, image_format: ImageFormat) -> bytes:
        raw = self.elsewhere / "seen"
        qemu_img("convert", "-f", DRIVERS[image_format], "-O", "raw", str(self.root / name), str(raw))
        return raw.read_bytes()

    def left(self) -> set[str]:
        return {str(path) for path in self.root.rglob("*")}

    # ------------------------------------------------------------------------------------------------- its own habits

    async def test_a_linked_clone_names_its_parent_beside_it(self, handler: HypervisorHandler) -> None:
        """By a relative name that qemu cannot take for a protocol, and with the parent's format."""
        (self.root / "deep").mkdir()
        for parent, child, name in (("t", "v", "./t"), ("nbd:x", "w", "./nbd:x"), ("t2", "deep/v", "../t2")):
            async with self.source(parent, disk()) as source, self.target(child) as pending:
                spec = ImageSpec(ImageFormat.QCOW2, SIZE)
                await handler.create(pending, spec, ProvisioningType.THIN, backing=source)
                await pending.commit()
            info = qemu_img("info", "-f", "qcow2", str(self.root / child)).decode()
            assert f"backing file: {name} " in info
            assert "backing file format: qcow2" in info
            assert self.seen(child, ImageFormat.QCOW2) == disk()

    async def test_the_chain_is_what_the_caller_says(self, handler: HypervisorHandler) -> None:
        """Not what the file says: here it names a parent of other content."""
        async with self.source("good", disk(1)) as good, self.source("bad", disk(2)), self.target("top") as pending:
            await handler.create(pending, ImageSpec(ImageFormat.QCOW2, SIZE), ProvisioningType.THIN, backing=good)
            await pending.commit()
            top = self.root / "top"
            qemu_img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "./bad", str(top))
            source = replace(self._source(top, ImageFormat.QCOW2, SIZE), backing=(good,))
            await self.copied(handler, source, "flat", ImageSpec(ImageFormat.QCOW2))
        assert self.seen("flat", ImageFormat.QCOW2) == disk(1)

    def test_an_iso_stays_as_it_is(self, handler: HypervisorHandler) -> None:
        iso, raw = ImageSpec(ImageFormat.ISO), ImageSpec(ImageFormat.RAW)
        assert handler.keeps_bytes(iso, iso)
        assert handler.keeps_bytes(iso, raw)
        assert not handler.keeps_bytes(iso, ImageSpec(ImageFormat.QCOW2))
        assert handler.accepts(Operation.ATTACH_ISO, iso, iso).kinds == (Kind.LOCAL_PATH,)

    @pytest.mark.parametrize("image_format", [ImageFormat.QCOW2, ImageFormat.VMDK])
    def test_no_url_for_images_that_can_name_files(self, handler: HypervisorHandler, image_format: ImageFormat) -> None:
        raw = ImageSpec(ImageFormat.RAW)
        accepted = handler.accepts(Operation.COPY_TEMPLATE, ImageSpec(image_format), raw)
        assert Kind.HTTP_URL not in accepted.kinds
        assert Kind.NBD_EXPORT in accepted.kinds

    def test_only_qcow2_is_linked(self, handler: HypervisorHandler) -> None:
        with pytest.raises(OperationUnsupported, match="fullCloneFlag"):
            handler.fills(Operation.LINK_TEMPLATE, ImageSpec(ImageFormat.RAW))

    async def test_tools_are_gone_when_a_copy_is_cancelled(self, handler: HypervisorHandler) -> None:
        await self.test_a_cancelled_copy_leaves_nothing(handler, 5)
        running = subprocess.run(["pgrep", "-f", str(self.root)], check=False, capture_output=True, text=True)
        assert running.stdout == ""
