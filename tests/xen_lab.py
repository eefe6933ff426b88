"""The verbs over a handler for XenServer on a fake pool, with image stores that are directories beside it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from hypervisors.contract import HypervisorType
from hypervisors.operations import Operations
from hypervisors.verbs import (
    Call,
    Copy,
    Create,
    Delete,
)
from stores.contract import MiB
from stores.to import (
    ImageFormat,
    ImageStoreTO,
    PrimaryDataStoreTO,
    SnapshotObjectTO,
    TemplateObjectTO,
    VolumeObjectTO,
)
from tests.doubles.disk_images import qemu_img
from tests.doubles.world import Phases, World, world
from tests.doubles.xapi import Settings
from tests.xen_place import XenPlace, xen_place

SIZE = 24 * MiB


@lru_cache(maxsize=8)
def content(seed: int = 1, size: int = SIZE) -> bytes:
    """Data at both ends and a hole between."""
    rng = random.Random(seed)
    return rng.randbytes(3 * MiB) + bytes(size - 3 * MiB - 4096) + rng.randbytes(4096)


@dataclass
class Lab:
    here: World
    place: XenPlace
    operations: Operations
    tokens: int = 0
    contents: dict[str, bytes] = field(default_factory=dict)

    def call(self, progress: Phases | None = None) -> Call:
        self.tokens += 1
        return Call(f"c-{self.tokens}", HypervisorType.XEN, progress or Phases())

    def sr(self, name: str = "shared") -> PrimaryDataStoreTO:
        return self.place.to(name)

    def images(self) -> ImageStoreTO:
        return self.here.directory()

    def image(self, name: str, data: bytes, image_format: ImageFormat) -> TemplateObjectTO:
        """An image in the directory."""
        raw, path = self.here.root / "raw", Path(self.images().uri.reveal().removeprefix("file://")) / name
        raw.write_bytes(data)
        driver = {ImageFormat.VHD: "vpc"}.get(image_format, image_format.value.lower())
        options = ("-o", "force_size=on") if image_format is ImageFormat.VHD else ()
        qemu_img("convert", "-f", "raw", "-O", driver, *options, str(raw), str(path))
        return TemplateObjectTO(path=name, format=image_format, imageDataStore=self.images())

    async def template(
        self, data: bytes, name: str = "t", image_format: ImageFormat = ImageFormat.QCOW2
    ) -> TemplateObjectTO:
        source = self.image(f"{name}.img", data, image_format)
        target = TemplateObjectTO(uuid=name, path=name, imageDataStore=self.sr())
        made = (await self.operations.copy(self.call(), Copy(source, target))).data
        assert isinstance(made, TemplateObjectTO)
        return made

    async def volume(self, data: bytes, name: str = "v") -> VolumeObjectTO:
        source = self.image(f"{name}.img", data, ImageFormat.QCOW2)
        target = VolumeObjectTO(uuid=name, path=name, dataStore=self.sr())
        made = (await self.operations.copy(self.call(), Copy(source, target))).data
        assert isinstance(made, VolumeObjectTO)
        return made

    async def snapshot(self, volume: VolumeObjectTO, name: str) -> SnapshotObjectTO:
        self.contents[name] = self.seen(str(volume.path))
        asked = SnapshotObjectTO(name=name, volume=volume, dataStore=self.sr())
        made = await self.operations.create(self.call(), Create(asked))
        assert isinstance(made, SnapshotObjectTO)
        return made

    def seen(self, name: str) -> bytes:
        return self.place.content(self.place.named(name))

    def write(self, name: str, offset: int, data: bytes) -> None:
        self.place.write(self.place.named(name), offset, data)

    def vdis(self) -> set[str]:
        """Names of all that are there."""
        return {str(record["name_label"]) for record in self.place.vdis().values()}

    def marks(self, name: str) -> dict[str, str]:
        """What is noted at a VDI."""
        config: dict[str, str] = self.place.vdis()[self.place.named(name)]["other_config"]
        return {key: value for key, value in config.items() if key.startswith("storage-agent:")}


@asynccontextmanager
async def laboratory(folder: Path, settings: Settings | None = None) -> AsyncIterator[Lab]:
    async with world() as here, xen_place(folder, here.engine, settings) as place:
        handlers = {HypervisorType.XEN: place.handler}
        operations = Operations(here.resolver, handlers, here.engine, lambda: 1_700_000_000.0)
        yield Lab(here, place, operations)


async def backed_up(lab: Lab, volume: VolumeObjectTO, name: str, parent: str | None = None) -> SnapshotObjectTO:
    """The answer."""
    target = SnapshotObjectTO(
        path=f"b/{name}",
        dataStore=lab.here.directory("backups"),
        parentSnapshotPath=f"b/{parent}" if parent is not None else None,
    )
    source = SnapshotObjectTO(path=f"{volume.path}/{name}", dataStore=lab.sr())
    copied = await lab.operations.copy(lab.call(), Copy(source, target))
    assert isinstance(copied.data, SnapshotObjectTO)
    assert copied.note is None
    return copied.data


async def restored(lab: Lab, name: str, sr: str = "shared") -> bytes:
    source = SnapshotObjectTO(path=f"b/{name}", dataStore=lab.here.directory("backups"))
    target = VolumeObjectTO(uuid=f"r-{name}", dataStore=lab.sr(sr))
    await lab.operations.copy(lab.call(), Copy(source, target))
    found = lab.seen(f"r-{name}")
    await lab.operations.delete(lab.call(), Delete(target))
    return found
