"""Snapshots of Hyper-V's disks on a real Samba and a fake host, held to the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from hypervisors.contract import ImageSpec, Source
from hypervisors.snapshotting import Snapshots
from stores.contract import Kind, PendingWrite
from stores.to import ImageFormat
from stores.transfer.engine import TransferEngine
from tests.contract.snapshot_contract import SnapshotContract
from tests.doubles.hyperv.model import Drive
from tests.hyperv import disk
from tests.hyperv_place import hyperv_place
from tests.samba import SambaServer


class TestHypervSnapshots(SnapshotContract):
    filled = (ImageFormat.VHDX,)
    frozen_in_use = True
    files = False

    @pytest.fixture(autouse=True)
    async def snapshots(self, tmp_path: Path, samba: SambaServer, engine: TransferEngine) -> AsyncIterator[Snapshots]:
        async with hyperv_place(tmp_path, engine, samba) as self.place:
            self.store = self.place.primary().store
            yield self.place.handler.snapshots

    def volume(self, content: bytes) -> Source:
        self.place.make("v", content)
        return self.place.source("v")

    def write(self, volume: Source, offset: int, data: bytes) -> None:
        self.place.write(volume.presentation.info.ref, offset, data)

    def seen(self, volume: Source) -> bytes:
        return self.place.content(volume.presentation.info.ref)

    @asynccontextmanager
    async def target(self, name: str) -> AsyncIterator[PendingWrite]:
        async with self.store.write(name, Kind.MANAGED_DISK, token="c-1") as pending:
            yield pending

    def committed(self, name: str, spec: ImageSpec) -> Source:
        return self.place.source(name)

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        machine = self.place.host.model.add_machine("vm", state="Running")
        machine.disks.append(Drive("SCSI", 0, 0, disk("v.vhdx")))
        yield
        machine.state = "Off"

    def in_use(self, volume: Source) -> AbstractAsyncContextManager[None]:
        return self._running()
