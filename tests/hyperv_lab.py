"""The verbs over Hyper-V's disks: images in a directory, a pool on a real Samba, a fake host."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from hypervisors.contract import HypervisorType
from hypervisors.operations import Operations
from hypervisors.verbs import Call, Copy, Create
from stores.contract import MiB
from stores.to import (
    DataTO,
    ImageFormat,
    ImageStoreTO,
    PrimaryDataStoreTO,
    SnapshotObjectTO,
    TemplateObjectTO,
    VolumeObjectTO,
)
from tests.doubles.disk_images import DRIVERS, qemu_img
from tests.doubles.hyperv.model import Drive, Machine
from tests.doubles.world import Phases, World, world
from tests.hyperv import disk
from tests.hyperv_place import HypervPlace, hyperv_place
from tests.samba import SambaServer

SIZE = 24 * MiB


@lru_cache(maxsize=8)
def content(seed: int = 1, size: int = SIZE) -> bytes:
    """Data at both ends and a hole between."""
    rng = random.Random(seed)
    return rng.randbytes(3 * MiB) + bytes(size - 3 * MiB - 4096) + rng.randbytes(4096)


@dataclass
class Lab:
    here: World
    place: HypervPlace
    operations: Operations
    tokens: int = 0
    contents: dict[str, bytes] = field(default_factory=dict)

    def call(self, progress: Phases | None = None) -> Call:
        self.tokens += 1
        return Call(f"c-{self.tokens}", HypervisorType.HYPERV, progress or Phases())

    def pool(self, *, full_clone: bool = False) -> PrimaryDataStoreTO:
        return self.place.to(full_clone=full_clone)

    def images(self) -> ImageStoreTO:
        return self.here.directory()

    def image(self, name: str, data: bytes, image_format: ImageFormat) -> TemplateObjectTO:
        """An image in the directory."""
        raw, path = self.here.root / "raw", self.image_path(name)
        raw.write_bytes(data)
        options = ("-o", "force_size=on") if image_format is ImageFormat.VHD else ()
        if image_format is ImageFormat.ISO:
            path.write_bytes(data)
        else:
            qemu_img("convert", "-f", "raw", "-O", DRIVERS[image_format], *options, str(raw), str(path))
        return TemplateObjectTO(path=name, format=image_format, imageDataStore=self.images())

    def image_path(self, name: str) -> Path:
        return Path(self.images().uri.reveal().removeprefix("file://")) / name

    async def copied(self, source: DataTO, target: DataTO) -> DataTO:
        return (await self.operations.copy(self.call(), Copy(source, target))).data

    async def template(
        self, data: bytes, name: str = "t", image_format: ImageFormat = ImageFormat.QCOW2
    ) -> TemplateObjectTO:
        source = self.image(f"{name}.img", data, image_format)
        made = await self.copied(source, TemplateObjectTO(uuid=name, path=name, imageDataStore=self.pool()))
        assert isinstance(made, TemplateObjectTO)
        return made

    async def volume(self, data: bytes, name: str = "v") -> VolumeObjectTO:
        source = self.image(f"{name}.img", data, ImageFormat.QCOW2)
        made = await self.copied(source, VolumeObjectTO(uuid=name, path=name, dataStore=self.pool()))
        assert isinstance(made, VolumeObjectTO)
        return made

    async def clone(self, template: TemplateObjectTO, name: str = "v", size: int | None = None) -> VolumeObjectTO:
        made = await self.copied(template, VolumeObjectTO(uuid=name, path=name, dataStore=self.pool(), size=size))
        assert isinstance(made, VolumeObjectTO)
        return made

    async def snapshot(self, name: str, volume: str = "v") -> SnapshotObjectTO:
        asked = SnapshotObjectTO(
            name=name, volume=VolumeObjectTO(path=volume, dataStore=self.pool()), dataStore=self.pool()
        )
        made = await self.operations.create(self.call(), Create(asked))
        assert isinstance(made, SnapshotObjectTO)
        return made

    async def backed_up(self, name: str, parent: str | None = None, volume: str = "v") -> SnapshotObjectTO:
        source = SnapshotObjectTO(path=f"{volume}/{name}", dataStore=self.pool())
        made = await self.copied(source, self.backup(name, parent))
        assert isinstance(made, SnapshotObjectTO)
        return made

    def backup(self, name: str, parent: str | None = None) -> SnapshotObjectTO:
        return SnapshotObjectTO(
            path=f"b/{name}",
            dataStore=self.here.directory("backups"),
            parentSnapshotPath=f"b/{parent}" if parent is not None else None,
        )

    def volume_to(self, name: str, size: int | None = None) -> VolumeObjectTO:
        return VolumeObjectTO(uuid=name, path=name, dataStore=self.pool(), size=size)

    def seen(self, name: str) -> bytes:
        return self.place.content(name)

    async def seen_by_host(self, name: str) -> bytes:
        """As the double reads it, which knows children that have nothing yet; libvhdi does not."""
        return await self.place.host.model.vhds.content(disk(f"{name}.vhdx"))

    def images_there(self) -> set[str]:
        """Files of the pool that are no documents of ours."""
        return {name for name in self.place.files() if name.endswith(("vhdx", "iso"))}

    def machine(self, *disks: str, name: str = "vm", state: str = "Running") -> Machine:
        """A machine with those disks of the pool."""
        machine = self.place.host.model.add_machine(name, state=state)
        machine.disks = [Drive("SCSI", 0, number, disk(f"{each}.vhdx")) for number, each in enumerate(disks)]
        return machine

    async def guest_writes(self, machine: Machine, offset: int, data: bytes) -> None:
        """To its first disk, wherever that goes on."""
        assert machine.disks[0].path is not None
        await self.place.host.model.vhds.write(machine.disks[0].path, offset, data)

    async def guest_sees(self, machine: Machine) -> bytes:
        assert machine.disks[0].path is not None
        return await self.place.host.model.vhds.content(machine.disks[0].path)

    def ran(self, script: str) -> int:
        """How often the host has run it."""
        return [name for name, _ in self.place.host.scripts.ran].count(script)


@asynccontextmanager
async def laboratory(folder: Path, samba: SambaServer, *, port: int | None = None) -> AsyncIterator[Lab]:
    async with world() as here, hyperv_place(folder, here.engine, samba, port=port) as place:
        handlers = {HypervisorType.HYPERV: place.handler}
        operations = Operations(here.resolver, handlers, here.engine, lambda: 1_700_000_000.0)
        yield Lab(here, place, operations)
