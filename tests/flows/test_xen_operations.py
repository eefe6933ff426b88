"""The verbs over XenServer's disks, on a fake pool of hosts: from images in a directory to VDIs, and back as backups."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hypervisors.contract import HypervisorType, ImageInUse, OperationUnsupported, SizeRefused
from hypervisors.operations import Operations
from hypervisors.verbs import (
    Call,
    Copy,
    Create,
    CreatePool,
    Delete,
    GetStorageStats,
    GetVolumeStats,
    ListObjects,
    Resize,
    Revert,
)
from stores.contract import MiB
from stores.errors import AlreadyExists, ChecksumMismatch, NotFound
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
from tests.xen_place import XenPlace, xen_place

SIZE = 24 * MiB


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
async def laboratory(folder: Path) -> AsyncIterator[Lab]:
    async with world() as here, xen_place(folder, here.engine) as place:
        handlers = {HypervisorType.XEN: place.handler}
        operations = Operations(here.resolver, handlers, here.engine, lambda: 1_700_000_000.0)
        yield Lab(here, place, operations)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with laboratory(tmp_path) as made:
        yield made


# ---------------------------------------------------------------------------------------------------------- templates


@pytest.mark.parametrize(
    "image_format", [ImageFormat.QCOW2, ImageFormat.VHD, ImageFormat.RAW, ImageFormat.VHDX, ImageFormat.VMDK]
)
async def test_a_template_becomes_a_disk(lab: Lab, image_format: ImageFormat) -> None:
    """Without a file anywhere: nothing but the image itself is in the agent's own directories."""
    data, progress = content(), Phases()
    source = lab.image("t.img", data, image_format)
    before = set(lab.here.root.rglob("*"))
    target = TemplateObjectTO(uuid="t", imageDataStore=lab.sr())
    made = (await lab.operations.copy(lab.call(progress), Copy(source, target))).data
    assert isinstance(made, TemplateObjectTO)
    assert (made.path, made.format, made.size) == ("t", ImageFormat.VHD, SIZE)
    assert lab.seen("t") == data
    assert progress.done["transfer"] > 0
    assert set(lab.here.root.rglob("*")) == before
    (put,) = [transfer for transfer in await lab.place.fake.controls.transfers() if transfer["kind"] == "import"]
    assert put["body"] < 4 * MiB  # what is zero did not travel


async def test_the_same_template_again_is_no_transfer(lab: Lab) -> None:
    data = content()
    source = lab.image("t.img", data, ImageFormat.QCOW2)
    target = TemplateObjectTO(uuid="t", imageDataStore=lab.sr())
    for _ in range(2):
        made = (await lab.operations.copy(lab.call(), Copy(source, target))).data
        assert made.path == "t"
    assert len(await lab.place.fake.controls.transfers()) == 1
    other = lab.image("other.img", content(2), ImageFormat.QCOW2)
    with pytest.raises(AlreadyExists):
        await lab.operations.copy(lab.call(), Copy(other, target))
    assert lab.seen("t") == data


async def test_a_wrong_checksum_leaves_nothing(lab: Lab) -> None:
    for image_format in (ImageFormat.RAW, ImageFormat.VHD, ImageFormat.QCOW2):
        source = lab.image("t.img", content(), image_format).model_copy(update={"checksum": "{SHA-256}" + "0" * 64})
        with pytest.raises(ChecksumMismatch):
            await lab.operations.copy(lab.call(), Copy(source, TemplateObjectTO(uuid="t", imageDataStore=lab.sr())))
        assert lab.vdis() == set()
        path = Path(lab.images().uri.reveal().removeprefix("file://")) / "t.img"
        right = hashlib.sha256(path.read_bytes()).hexdigest()
        source = source.model_copy(update={"checksum": "{SHA-256}" + right})
        await lab.operations.copy(lab.call(), Copy(source, TemplateObjectTO(uuid="t", imageDataStore=lab.sr())))
        await lab.operations.delete(lab.call(), Delete(TemplateObjectTO(uuid="t", imageDataStore=lab.sr())))
        assert lab.vdis() == set()


async def test_a_volume_that_is_too_small(lab: Lab) -> None:
    for image_format in (ImageFormat.QCOW2, ImageFormat.VHD):
        source = lab.image("t.img", content(), image_format)
        small = VolumeObjectTO(uuid="v", dataStore=lab.sr(), size=SIZE // 2)
        with pytest.raises(SizeRefused):
            await lab.operations.copy(lab.call(), Copy(source, small))
    assert lab.vdis() == set()


async def test_a_format_that_no_disk_has(lab: Lab) -> None:
    source = lab.image("t.img", content(), ImageFormat.QCOW2)
    target = TemplateObjectTO(uuid="t", imageDataStore=lab.sr(), format=ImageFormat.QCOW2)
    with pytest.raises(OperationUnsupported, match="VHD"):
        await lab.operations.copy(lab.call(), Copy(source, target))


# ------------------------------------------------------------------------------------------------------------ volumes


async def test_clones_of_a_template(lab: Lab) -> None:
    data = content()
    template = await lab.template(data)
    for name, size in (("v1", None), ("v2", 2 * SIZE)):
        asked = VolumeObjectTO(uuid=name, dataStore=lab.sr(), size=size)
        made = (await lab.operations.copy(lab.call(), Copy(template, asked))).data
        assert isinstance(made, VolumeObjectTO)
        assert made.size == (size or SIZE)
        assert lab.seen(name) == data + bytes((size or SIZE) - SIZE)
    assert len(await lab.place.fake.controls.transfers()) == 1
    lab.write("v1", 0, b"\1" * 4096)
    assert lab.seen("t") == data
    assert lab.seen("v2")[:SIZE] == data
    with pytest.raises(ImageInUse, match="v1"):
        await lab.operations.delete(lab.call(), Delete(template))
    for name in ("v1", "v2"):
        await lab.operations.delete(lab.call(), Delete(VolumeObjectTO(uuid=name, dataStore=lab.sr())))
    await lab.operations.delete(lab.call(), Delete(template))
    assert lab.vdis() == set()


async def test_a_copy_to_another_sr(lab: Lab) -> None:
    data = content()
    volume = await lab.volume(data)
    made = (
        await lab.operations.copy(lab.call(), Copy(volume, VolumeObjectTO(uuid="w", dataStore=lab.sr("blocks"))))
    ).data
    assert isinstance(made, VolumeObjectTO)
    assert made.size == SIZE
    assert lab.seen("w") == data
    assert len(await lab.place.fake.controls.transfers()) == 1  # XAPI copied it by itself


async def test_an_empty_volume(lab: Lab) -> None:
    asked = VolumeObjectTO(uuid="v", dataStore=lab.sr(), size=5 * MiB)
    made = await lab.operations.create(lab.call(), Create(asked))
    assert isinstance(made, VolumeObjectTO)
    assert made.size == 6 * MiB  # in whole blocks
    assert lab.seen("v") == bytes(6 * MiB)
    grown = await lab.operations.resize(lab.call(), Resize(VolumeObjectTO(uuid="v", dataStore=lab.sr()), 8 * MiB))
    assert grown.size == 8 * MiB
    stats = await lab.operations.volume_stats(lab.call(), GetVolumeStats(lab.sr(), ("v", "nothing")))
    assert stats["v"].virtual == 8 * MiB
    assert set(stats) == {"v"}
    with pytest.raises(AlreadyExists):
        await lab.operations.create(lab.call(), Create(asked))
    for _ in range(2):
        await lab.operations.delete(lab.call(), Delete(VolumeObjectTO(uuid="v", dataStore=lab.sr())))
    assert lab.vdis() == set()


async def test_an_sr_as_a_pool(lab: Lab) -> None:
    found = await lab.operations.create_pool(lab.call(), CreatePool(lab.sr()))
    assert found.capacity is not None
    assert lab.vdis() == set()
    usage = await lab.operations.storage_stats(lab.call(), GetStorageStats(lab.sr()))
    assert usage.capacity == found.capacity
    await lab.volume(content())
    listing = await lab.operations.list_objects(lab.call(), ListObjects(lab.sr()))
    assert [entry.path for entry in listing.entries] == ["v"]
    with pytest.raises(NotFound, match="there are: "):
        await lab.operations.create_pool(lab.call(), CreatePool(lab.sr("nowhere")))


# ---------------------------------------------------------------------------------------------------------- snapshots


async def test_back_to_a_snapshot(lab: Lab) -> None:
    data = content()
    volume = await lab.volume(data)
    snapshot = await lab.snapshot(volume, "s1")
    lab.write("v", 0, b"\2" * MiB)
    await lab.snapshot(volume, "s2")
    lab.write("v", 4 * MiB, b"\3" * MiB)
    await lab.operations.revert(lab.call(), Revert(snapshot))
    assert lab.seen("v") == data
    with pytest.raises(ImageInUse, match="s1"):
        await lab.operations.delete(lab.call(), Delete(volume))
    for name in ("s1", "s2", "s1"):
        gone = SnapshotObjectTO(path=f"v/{name}", dataStore=lab.sr())
        await lab.operations.delete(lab.call(), Delete(gone))
    await lab.operations.delete(lab.call(), Delete(volume))
    assert lab.vdis() == set()


async def test_a_snapshot_becomes_a_volume(lab: Lab) -> None:
    data = content()
    volume = await lab.volume(data)
    snapshot = await lab.snapshot(volume, "s1")
    lab.write("v", 0, b"\2" * MiB)
    target = VolumeObjectTO(uuid="w", dataStore=lab.sr(), size=2 * SIZE)
    made = (await lab.operations.copy(lab.call(), Copy(snapshot, target))).data
    assert isinstance(made, VolumeObjectTO)
    assert made.size == 2 * SIZE
    assert lab.seen("w") == data + bytes(SIZE)


# --------------------------------------------------------------------------------------------- into an image store


async def test_a_volume_becomes_a_template_in_an_image_store(lab: Lab) -> None:
    data = content()
    volume = await lab.volume(data)
    target = TemplateObjectTO(uuid="out.vhd", path="out.vhd", imageDataStore=lab.here.directory("out"))
    made = (await lab.operations.copy(lab.call(), Copy(volume, target))).data
    assert isinstance(made, TemplateObjectTO)
    assert made.format is ImageFormat.VHD
    path, raw = lab.here.root / "out" / "out.vhd", lab.here.root / "out.raw"
    vhd = f"driver=vpc,force_size_calc=current_size,file.filename={path}"
    qemu_img("convert", "-O", "raw", "--image-opts", vhd, str(raw))
    assert raw.read_bytes() == data
    assert path.stat().st_size < 9 * MiB
