"""A handler for XenServer on a fake pool, and what is in that pool, looked at without going through the handler."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypervisors.contract import ImageSpec, Source
from hypervisors.images.gate import GateLimits
from hypervisors.primary import Pool
from hypervisors.xen.handler import XenHandler
from hypervisors.xen.importing import Importer
from hypervisors.xen.pool import XenPool
from hypervisors.xen.snapshots import XenSnapshots
from stores.contract import ManagedDisk, ObjectInfo
from stores.to import ImageFormat, PrimaryDataStoreTO
from stores.tools.process import ToolRunner
from stores.transfer.engine import TransferEngine
from tests.doubles import xapi
from tests.xen_pools import connected


@dataclass(frozen=True)
class XenPlace:
    fake: xapi.Pool
    pool: XenPool
    handler: XenHandler
    snapshots: XenSnapshots
    folder: Path

    def to(self, sr: str = "shared") -> PrimaryDataStoreTO:
        """An SR as a primary store, by its name."""
        return PrimaryDataStoreTO(uuid=sr, poolType="SR")

    def primary(self, sr: str = "shared") -> Pool:
        return self.handler.pool(self.to(sr))

    def vdis(self) -> dict[str, dict[str, Any]]:
        """All VDIs by uuid."""
        db = self.fake.world.db
        return {db.field("VDI", ref, "uuid"): db.get("VDI", ref) for ref in db.refs("VDI")}

    def named(self, name: str) -> str:
        """The uuid of the one VDI of that name."""
        (found,) = (uuid for uuid, record in self.vdis().items() if record["name_label"] == name)
        return found

    def content(self, uuid: str) -> bytes:
        raw = self.folder / "content.raw"
        raw.unlink(missing_ok=True)
        self._disk(uuid).flatten(raw)
        return raw.read_bytes()

    def write(self, uuid: str, offset: int, data: bytes) -> None:
        """As a guest."""
        sr = self.vdis()[uuid]["SR"]
        self._disk(uuid).write(offset, data, self.fake.world.storage.charge(sr))
        self.fake.world.storage.account(sr)

    def make(self, name: str, content: bytes, sr: str = "shared") -> str:
        """The uuid of a VDI that somebody else made."""
        (ref,) = self.fake.world.db.find("SR", name_label=sr)
        vdi = self.fake.world.storage.create(ref, len(content), name_label=name)
        uuid = str(self.fake.world.db.field("VDI", vdi, "uuid"))
        step = 2 << 20
        for offset in range(0, len(content), step):
            if any(content[offset : offset + step]):
                self.write(uuid, offset, content[offset : offset + step])
        return uuid

    def source(self, uuid: str, ref: str | None = None) -> Source:
        """As the store presents it."""
        size = int(self.vdis()[uuid]["virtual_size"])
        info = ObjectInfo(ref or uuid, size, version=uuid, ranges=False)
        return Source(ManagedDisk(uuid, info), ImageSpec(ImageFormat.VHD, size))

    def _disk(self, uuid: str) -> Any:
        return self.fake.world.storage.disks[self.fake.world.db.by_uuid("VDI", uuid)]


def xen_handler(engine: TransferEngine, pool: XenPool, run: Path) -> XenHandler:
    """`run`: for sockets."""
    importer = Importer(engine, ToolRunner(), run, limit=GateLimits().virtual_size)
    return XenHandler(engine, [pool], importer, XenSnapshots(engine, [pool], importer))


@asynccontextmanager
async def xen_place(
    folder: Path, engine: TransferEngine, settings: xapi.Settings | None = None
) -> AsyncIterator[XenPlace]:
    """Nothing of sessions, tasks and attached disks is left when it ends."""
    run = folder / "run"
    run.mkdir(mode=0o700)
    async with xapi.running(folder / "xapi", settings) as fake:
        async with connected(fake) as pool:
            handler = xen_handler(engine, pool, run)
            yield XenPlace(fake, pool, handler, handler.snapshots, folder)
            await handler.aclose()
        left = await fake.controls.left()
        assert left["tasks"] == []
        assert left["dom0_vbds"] == []
    assert [path for path in run.rglob("*") if not path.is_dir()] == []
