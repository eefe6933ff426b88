"""A directory of files and of a loop device, held to what the contract of stores of disks says of disks that others make."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stores.backends.block import BlockStore
from stores.contract import DataStore, NetworkImage
from stores.errors import InvalidReference, NotFound
from stores.transfer.engine import TransferEngine
from tests.contract.store_devices import SIZE, StoreFillsDevices, read
from tests.objects import content, refs


class TestBlockStore(StoreFillsDevices):
    @pytest.fixture
    async def store(self, tmp_path: Path, engine: TransferEngine) -> AsyncIterator[DataStore]:
        self.root = tmp_path / "devices"
        self.root.mkdir()
        store = BlockStore(self.root, engine, id="pool:block", allowed=[tmp_path])
        yield store
        await store.aclose()

    async def put_directly(self, ref: str, data: bytes) -> None:
        (self.root / ref).write_bytes(data)

    async def read_directly(self, ref: str) -> bytes | None:
        path = self.root / ref
        return path.read_bytes() if path.exists() else None

    async def everything_left(self) -> set[str]:
        return set(os.listdir(self.root))

    async def test_a_link_to_a_device(self, store: DataStore, tmp_path: Path) -> None:
        data = content(SIZE)
        (tmp_path / "backing").write_bytes(data)
        losetup = ["losetup", "--find", "--show", str(tmp_path / "backing")]
        device = subprocess.run(losetup, check=True, capture_output=True, text=True).stdout.strip()
        try:
            (self.root / "by-name").symlink_to(device)
            assert (await store.stat("by-name")).size == SIZE
            async with self.image(store, "by-name") as image:
                assert isinstance(image, NetworkImage)
                assert image.options["driver"] == "host_device"
                assert await read(image, tmp_path) == data
        finally:
            subprocess.run(["losetup", "--detach", device], check=True)

    async def test_links_lead_to_devices_only(self, store: DataStore, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("secret")
        (self.root / "file").symlink_to(tmp_path / "secret")
        (self.root / "terminal").symlink_to("/dev/null")
        (self.root / "nothing").symlink_to("missing")
        (self.root / "folder").mkdir()
        for ref in ("file", "terminal"):
            with pytest.raises(InvalidReference):
                await store.stat(ref)
        for ref in ("nothing", "folder"):
            with pytest.raises(NotFound):
                await store.stat(ref)
        await self.put_directly("disk", content(SIZE))
        assert await refs(store.list()) == ["disk"]
