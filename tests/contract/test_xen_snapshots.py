"""Snapshots of XenServer's disks on a fake pool, held to the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from hypervisors.contract import ImageSpec, Source
from hypervisors.snapshotting import Snapshots
from stores.contract import Kind, ManagedDisk, PendingWrite
from stores.to import ImageFormat
from stores.transfer.engine import TransferEngine
from tests.contract.snapshot_contract import SnapshotContract
from tests.xen_place import xen_place


class TestXenSnapshots(SnapshotContract):
    filled = (ImageFormat.VHD,)
    frozen_in_use = True
    files = False

    @pytest.fixture(autouse=True)
    async def snapshots(self, tmp_path: Path) -> AsyncIterator[Snapshots]:
        engine = TransferEngine()
        async with xen_place(tmp_path, engine) as self.place:
            self.store = self.place.primary().store
            yield self.place.snapshots
        await engine.aclose()

    def volume(self, content: bytes) -> Source:
        return self.place.source(self.place.make("v", content))

    def write(self, volume: Source, offset: int, data: bytes) -> None:
        self.place.write(self._uuid(volume), offset, data)

    def seen(self, volume: Source) -> bytes:
        return self.place.content(self._uuid(volume))

    @asynccontextmanager
    async def target(self, name: str) -> AsyncIterator[PendingWrite]:
        async with self.store.write(name, Kind.MANAGED_DISK, token="c-1") as pending:
            yield pending

    def committed(self, name: str, spec: ImageSpec) -> Source:
        return self.place.source(self.place.named(name), name)

    @asynccontextmanager
    async def _attached(self, uuid: str) -> AsyncIterator[None]:
        call, db = self.place.pool.call, self.place.fake.world.db
        (guest,) = db.find("VM", name_label="guest")
        vbd = await call(
            "VBD.create",
            {
                "VM": guest,
                "VDI": db.by_uuid("VDI", uuid),
                "userdevice": "1",
                "bootable": False,
                "mode": "RW",
                "type": "Disk",
                "unpluggable": True,
                "empty": False,
                "other_config": {},
                "qos_algorithm_type": "",
                "qos_algorithm_params": {},
            },
        )
        db.change("VBD", vbd, currently_attached=True)  # as when the guest runs
        try:
            yield
        finally:
            db.change("VBD", vbd, currently_attached=False)
            await call("VBD.destroy", vbd)

    def in_use(self, volume: Source) -> AbstractAsyncContextManager[None]:
        return self._attached(self._uuid(volume))

    def _uuid(self, volume: Source) -> str:
        assert isinstance(volume.presentation, ManagedDisk)
        return volume.presentation.id
