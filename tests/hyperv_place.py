"""A handler for Hyper-V on a real Samba, a fake host that has the same folder, and what is in it, seen behind the handler."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from hypervisors.contract import ImageSpec, Source
from hypervisors.hyperv.handler import HypervHandler
from hypervisors.hyperv.place import HostFile, Place
from hypervisors.hyperv.reading import Reading
from hypervisors.hyperv.settings import HostFolder, HypervHostSettings
from hypervisors.images import vhdx
from hypervisors.images.gate import GateLimits
from hypervisors.images.vhdx_parent import read_locator
from hypervisors.images.vhdx_stream import Identity, layout
from hypervisors.primary import Pool
from stores.backends.smb import SmbStore
from stores.contract import ObjectInfo
from stores.secret import Secret
from stores.settings import StoreSettings
from stores.to import ImageFormat, PrimaryDataStoreTO
from stores.tools.process import ToolRunner
from stores.transfer.engine import TransferEngine
from tests.disk_histories import finished
from tests.doubles.hyperv import Host
from tests.doubles.hyperv.vhds import data_of
from tests.hyperv import POOL, disk, hyperv_host, port_to
from tests.laid_out import libvhdi
from tests.samba import SHARE, SambaServer


@dataclass(frozen=True)
class HypervPlace:
    """`folder`: what is the pool, for whoever looks behind all backs."""

    host: Host
    handler: HypervHandler
    samba: SambaServer
    folder: Path
    details: Mapping[str, str]
    place: Place
    port: int
    """By which the share is reached."""

    def to(self, *, full_clone: bool = False) -> PrimaryDataStoreTO:
        """The pool as commands name it."""
        return PrimaryDataStoreTO(
            uuid="hv",
            poolType="SMB",
            host="127.0.0.1",
            port=self.port,
            path=f"/{SHARE}/{self.folder.name}",
            details={key: Secret(text) for key, text in self.details.items()},
            fullCloneFlag=full_clone,
        )

    def primary(self) -> Pool:
        return self.handler.pool(self.to())

    def content(self, name: str) -> bytes:
        """What a guest would see in that disk, parents included, as libvhdi reads it."""
        chain = [self.folder / f"{name}.vhdx"]
        while (parent := _parent(chain[0])) is not None:
            chain.insert(0, self.folder.joinpath(*parent.removeprefix(f"\\\\?\\{POOL}\\").split("\\")))
        with libvhdi(chain) as file:
            return bytes(file.read_buffer_at_offset(file.get_media_size(), 0))

    def write(self, name: str, offset: int, data: bytes) -> None:
        """As a guest, into a disk that stands for itself."""
        content = bytearray(self.content(name))
        content[offset : offset + len(data)] = data
        self.make(name, bytes(content))

    def make(self, name: str, content: bytes) -> None:
        """A disk that somebody else made."""
        identity = Identity(uuid.uuid4(), uuid.uuid4(), uuid.uuid4())
        made = layout(len(content), data_of(content), identity=identity)
        (self.folder / f"{name}.vhdx").write_bytes(finished(made, content))

    def source(self, name: str, *, ending: str = "vhdx") -> Source:
        """As the store presents it."""
        info = ObjectInfo(name, (self.folder / f"{name}.{ending}").stat().st_size)
        image_format = ImageFormat(ending.upper())
        return Source(HostFile(disk(f"{name}.{ending}"), info, self.place), ImageSpec(image_format))

    def files(self) -> set[str]:
        """Every file in the pool, records and unfinished ones included."""
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}


@asynccontextmanager
async def hyperv_place(
    folder: Path, engine: TransferEngine, samba: SambaServer, *, deaths: bool = False, port: int | None = None
) -> AsyncIterator[HypervPlace]:
    """A folder of the share is the host's `D:\\pool`. When it ends, nothing of threads, shells, records, checkpoints, sockets
    and unfinished files is left. `deaths`: see `hyperv_host`. `port`: of what is
    before Samba."""
    port = port or samba.port
    root = samba.root / f"p-{uuid.uuid4().hex[:8]}"
    run = folder / "run"
    run.mkdir(mode=0o700)
    async with hyperv_host(folder, pool=root, deaths=deaths) as host:
        share = f"127.0.0.1:{port}/{SHARE}/{root.name}"
        settings = HypervHostSettings(name="hv1", endpoint=host.endpoint, shares={share: POOL}, poll_s=0.01)
        store = SmbStore(samba.place(root.name, port=port), QUICK, engine, id="smb:test")

        shells = port_to(host.endpoint)
        reading = Reading(engine, ToolRunner(), run, limit=GateLimits().virtual_size)
        handler = HypervHandler(
            engine,
            [settings],
            lambda told: shells,
            lambda to: store,
            reading,
            limit=GateLimits().virtual_size,
        )
        details = {"user": "root", "password": samba.password}
        place = Place(store, HostFolder(settings, POOL), shells, engine)
        yield HypervPlace(host, handler, samba, root, details, place, port)
        await handler.aclose()
        await shells.aclose()  # where no verb has asked the handler for its port
        await store.aclose()
        assert [checkpoint for machine in host.model.machines.values() for checkpoint in machine.checkpoints] == []
    assert [path for path in run.rglob("*") if not path.is_dir()] == []
    assert list(root.rglob("*.partial")) == []


QUICK = StoreSettings(attempts=3, connect_timeout=5.0, read_timeout=10.0)


def _parent(file: Path) -> str | None:
    """Where a disk says that its parent is."""
    content = file.read_bytes()
    regions = vhdx.read_regions(content[: vhdx.HEADERS], len(content))
    metadata = content[regions.metadata.offset :][: regions.metadata.length]
    locator = read_locator(vhdx.read_parameters(metadata, regions))
    return locator.absolute_path if locator is not None else None
