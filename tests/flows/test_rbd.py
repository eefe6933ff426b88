"""What a management server does with a pool of RBD images, from the template to the restored backup, on a real Ceph."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
from collections.abc import AsyncIterator

import pytest

from hypervisors.contract import HypervisorType, ImageInUse, ImageLocked, OperationUnsupported
from hypervisors.verbs import Copy, Create, CreatePool, Delete, GetStorageStats, GetVolumeStats, Resize, Revert
from stores.backends.rbd_image import unfinished_name
from stores.contract import KiB, MiB
from stores.errors import AccessDenied, AlreadyExists, Unavailable
from stores.secret import Secret
from stores.to import (
    DataTO,
    ImageFormat,
    PrimaryDataStoreTO,
    SnapshotObjectTO,
    TemplateObjectTO,
    VolumeObjectTO,
)
from tests.ceph import Ceph
from tests.doubles.disk_images import COMPRESSORS, VIRTUAL_SIZE, DiskImages, content_of
from tests.doubles.world import World
from tests.images import open_for_writing
from tests.servers import free_ports


class Rbd:
    """A pool, and how to look into it past the agent."""

    def __init__(self, here: World, ceph: Ceph) -> None:
        self.here = here
        self.ceph = ceph
        self.name = ceph.new_pool()
        self.to = ceph.to(self.name)
        self._calls = 0

    async def run(self, request: Copy | Create | Delete | Revert | Resize) -> DataTO | None:
        self._calls += 1
        call, verbs = self.here.call(f"c-{self._calls}"), self.here.operations
        match request:
            case Copy():
                return (await verbs.copy(call, request)).data
            case Create():
                return await verbs.create(call, request)
            case Revert():
                return await verbs.revert(call, request)
            case Resize():
                return await verbs.resize(call, request)
            case Delete():
                await verbs.delete(call, request)
        return None

    async def template(self, disk_images: DiskImages, name: str = "qcow2") -> TemplateObjectTO:
        images = self.here.directory()
        (self.here.root / "images" / f"t.{name}").write_bytes(disk_images[name].path.read_bytes())
        source = TemplateObjectTO(path=f"t.{name}", imageDataStore=images, format=disk_images[name].format)
        target = TemplateObjectTO(path="template", imageDataStore=self.to, format=ImageFormat.QCOW2)
        made = await self.run(Copy(source, target))
        assert isinstance(made, TemplateObjectTO)
        assert (made.path, made.format, made.size) == ("template", ImageFormat.RAW, VIRTUAL_SIZE)
        return made

    async def clone(self, template: TemplateObjectTO, name: str = "volume", size: int | None = None) -> VolumeObjectTO:
        made = await self.run(Copy(template, VolumeObjectTO(uuid=name, dataStore=self.to, size=size)))
        assert isinstance(made, VolumeObjectTO)
        return made

    async def snapshot(self, volume: VolumeObjectTO, name: str) -> SnapshotObjectTO:
        made = await self.run(Create(SnapshotObjectTO(name=name, volume=volume, dataStore=self.to)))
        assert isinstance(made, SnapshotObjectTO)
        return made

    def seen(self, name: str) -> str:
        return hashlib.sha256(self.ceph.content(f"{self.name}/{name}")).hexdigest()

    def write(self, name: str, *commands: str) -> None:
        """As a guest."""
        told = [part for command in commands for part in ("-c", command)]
        subprocess.run(["qemu-io", "-f", "raw", *told, self.opened(name)], check=True, capture_output=True)

    def opened(self, name: str) -> str:
        return f"rbd:{self.name}/{name}:conf={self.ceph.conf}"

    def left(self) -> set[str]:
        return self.ceph.images(self.name) | self.ceph.objects(self.name)


@pytest.fixture
async def rbd(here: World, ceph: Ceph) -> AsyncIterator[Rbd]:
    made = Rbd(here, ceph)
    yield made
    ceph.remove_pool(made.name)


async def test_from_a_template_to_a_restored_backup(rbd: Rbd, disk_images: DiskImages) -> None:
    """And nothing is left in the pool once all of it is deleted."""
    await asyncio.to_thread(rbd.ceph.wait_for_statistics, rbd.name)
    template = await rbd.template(disk_images)
    assert rbd.seen("template") == disk_images["qcow2"].content
    volume = await rbd.clone(template)
    assert rbd.seen("volume") == disk_images["qcow2"].content
    assert "parent" in rbd.ceph.tool("rbd", "info", f"{rbd.name}/volume").decode()
    with pytest.raises(ImageInUse):
        await rbd.run(Delete(template))

    contents, backups = {}, rbd.here.directory("backups")
    for number, name in enumerate(("one", "two"), start=1):
        rbd.write("volume", f"write -P {number} {number}M 64k")
        contents[name] = rbd.seen("volume")
        snapshot = await rbd.snapshot(volume, name)
        target = SnapshotObjectTO(
            path=f"s/{name}", dataStore=backups, parentSnapshotPath="s/one" if name == "two" else None
        )
        done = await rbd.here.operations.copy(rbd.here.call(f"b-{name}"), Copy(snapshot, target))
        assert done.note is None, done.note
    sizes = [(rbd.here.root / "backups" / "s" / name).stat().st_size for name in ("one", "two")]
    assert sizes[1] < 512 * KiB < sizes[0]

    rbd.write("volume", "write -P 9 0 1M")
    one = SnapshotObjectTO(path="volume/one", dataStore=rbd.to)
    await rbd.run(Revert(one))
    assert rbd.seen("volume") == contents["one"]
    for name in ("one", "two"):
        for pool in (rbd.to, rbd.here.pool("files")):
            asked = VolumeObjectTO(uuid=f"back-{name}", dataStore=pool)
            made = await rbd.run(Copy(SnapshotObjectTO(path=f"s/{name}", dataStore=backups), asked))
            assert made is not None
            if pool is rbd.to:
                assert rbd.seen(f"back-{name}") == contents[name]
            else:
                assert content_of(rbd.here.path(made), ImageFormat.QCOW2) == contents[name]
            await rbd.run(Delete(made))
    for name in ("two", "one"):
        await rbd.run(Delete(SnapshotObjectTO(path=f"volume/{name}", dataStore=rbd.to)))
    for image in (volume, template):
        await rbd.run(Delete(image))
        await rbd.run(Delete(image))
    assert rbd.left() == set()


async def test_a_volume_made_of_a_snapshot_outlives_it(rbd: Rbd, disk_images: DiskImages) -> None:
    """It shares blocks with the volume until the snapshot goes."""
    await asyncio.to_thread(rbd.ceph.wait_for_statistics, rbd.name)
    volume = await rbd.clone(await rbd.template(disk_images))
    snapshot = await rbd.snapshot(volume, "one")
    before = rbd.seen("volume")
    rbd.write("volume", "write -P 9 0 1M")
    await rbd.run(Copy(snapshot, VolumeObjectTO(uuid="second", dataStore=rbd.to)))
    assert rbd.seen("second") == before
    await rbd.run(Delete(snapshot))
    await rbd.run(Delete(volume))
    assert rbd.seen("second") == before
    assert "volume" not in rbd.left()


async def test_clones_are_of_the_template_as_it_is(rbd: Rbd, disk_images: DiskImages) -> None:
    template = await rbd.template(disk_images, "raw")
    made = [await rbd.clone(template, name, size=16 * MiB) for name in ("a", "b")]
    assert [volume.size for volume in made] == [16 * MiB] * 2
    rbd.write("template", "write -P 9 0 1M")
    await rbd.clone(template, "c")
    assert rbd.seen("c") == rbd.seen("template")
    assert rbd.seen("a") == rbd.seen("b") != rbd.seen("c")


@pytest.mark.parametrize("image_format", [ImageFormat.RAW, ImageFormat.QCOW2])
async def test_to_other_pools_and_stores(rbd: Rbd, disk_images: DiskImages, image_format: ImageFormat) -> None:
    volume = await rbd.clone(await rbd.template(disk_images))
    content = disk_images["qcow2"].content
    asked = VolumeObjectTO(uuid="file", dataStore=rbd.here.pool("files"), format=image_format)
    file = await rbd.run(Copy(volume, asked))
    assert file is not None
    assert content_of(rbd.here.path(file), image_format) == content
    await rbd.run(Copy(file, VolumeObjectTO(uuid="back", dataStore=rbd.to)))
    assert rbd.seen("back") == content
    exported = VolumeObjectTO(path="v/exported", dataStore=rbd.here.directory("exports"), format=image_format)
    await rbd.run(Copy(volume, exported))
    assert content_of(rbd.here.root / "exports" / "v" / "exported", image_format) == content


async def test_empty_volumes_and_their_sizes(rbd: Rbd) -> None:
    asked = VolumeObjectTO(uuid="v/1@x", dataStore=rbd.to, size=8 * MiB, format=ImageFormat.QCOW2)
    volume = await rbd.run(Create(asked))
    assert isinstance(volume, VolumeObjectTO)
    assert (volume.format, volume.path) == (ImageFormat.RAW, "v/1@x")
    with pytest.raises(AlreadyExists):
        await rbd.run(Create(asked))
    grown = await rbd.run(Resize(volume, 12 * MiB, shrink_ok=False))
    assert isinstance(grown, VolumeObjectTO)
    assert grown.size == 12 * MiB
    stats = await rbd.here.operations.volume_stats(rbd.here.call("s"), GetVolumeStats(rbd.to, ("v/1@x", "none")))
    assert {path: found.virtual for path, found in stats.items()} == {"v/1@x": 12 * MiB}
    await rbd.run(Delete(grown))
    assert rbd.left() == set()


async def test_a_volume_in_use_is_let_be(rbd: Rbd, disk_images: DiskImages) -> None:
    volume = await rbd.clone(await rbd.template(disk_images))
    before = rbd.left()
    async with open_for_writing(rbd.opened("volume"), ImageFormat.RAW):
        with pytest.raises(ImageLocked):
            await rbd.snapshot(volume, "one")
        with pytest.raises(Unavailable, match="in use"):
            await rbd.run(Delete(volume))
    assert rbd.left() == before


async def test_a_cancelled_copy_leaves_nothing(rbd: Rbd, disk_images: DiskImages) -> None:
    copying = asyncio.create_task(rbd.template(disk_images))
    for _ in range(1000):
        await asyncio.sleep(0.01)
        if any(name.startswith("+") for name in rbd.ceph.images(rbd.name)):
            break
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying
    assert rbd.left() == set()


async def test_what_a_dead_command_left(rbd: Rbd) -> None:
    """The image without its name goes, and one that has it is found finished."""
    asked = Create(VolumeObjectTO(uuid="v", dataStore=rbd.to, size=8 * MiB))
    rbd.ceph.tool("rbd", "create", "--size", "8M", f"{rbd.name}/{unfinished_name('v', 'c-dead')}")
    for _ in range(2):
        found = await rbd.here.operations.recover(HypervisorType.KVM, asked, "c-dead")
        assert found.outcome == "undone"
        assert rbd.left() == set()
    await rbd.run(asked)
    found = await rbd.here.operations.recover(HypervisorType.KVM, asked, "c-1")
    assert found.outcome == "finished"
    assert isinstance(found.answer, VolumeObjectTO)
    assert found.answer.size == 8 * MiB


async def test_what_does_not_go_there(rbd: Rbd, disk_images: DiskImages) -> None:
    images = rbd.here.directory()
    packed = COMPRESSORS["gz"](disk_images["qcow2"].path.read_bytes())
    (rbd.here.root / "images" / "t.gz").write_bytes(packed)
    source = TemplateObjectTO(path="t.gz", imageDataStore=images, format=ImageFormat.QCOW2)
    with pytest.raises(OperationUnsupported, match="uncompressed"):
        await rbd.run(Copy(source, TemplateObjectTO(path="t", imageDataStore=rbd.to)))
    with pytest.raises(OperationUnsupported, match="raw bytes"):
        await rbd.run(Create(VolumeObjectTO(uuid="v", dataStore=rbd.to, size=MiB, format=ImageFormat.VHD)))
    assert rbd.left() == set()


async def test_a_pool_is_found_usable(rbd: Rbd) -> None:
    await asyncio.to_thread(rbd.ceph.wait_for_statistics, rbd.name)
    found = await rbd.here.operations.create_pool(rbd.here.call(), CreatePool(rbd.to))
    assert found.capacity is not None
    assert found.available is not None
    assert found.available > 0
    usage = await rbd.here.operations.storage_stats(rbd.here.call(), GetStorageStats(rbd.to))
    assert usage.capacity is not None
    assert rbd.left() == set()


@pytest.mark.parametrize("wrong", ["key", "port", "nothing"])
async def test_a_cluster_that_is_not_there_or_does_not_know_us(rbd: Rbd, wrong: str) -> None:
    """Nobody waits for it longer than the connection may take, and the key is in no message."""
    key = "AQDm2lZgAAAAABAAyD6E8kRBQ3Tn1pZQhYxFdw=="
    to: PrimaryDataStoreTO = {
        "key": rbd.ceph.to(rbd.name, key=key),
        "port": rbd.ceph.to(rbd.name, port=free_ports(1)[0]),
        "nothing": rbd.to.model_copy(update={"details": {"user": Secret("vm")}}),
    }[wrong]
    with pytest.raises(AccessDenied if wrong == "nothing" else Unavailable) as refused:
        await rbd.run(Create(VolumeObjectTO(uuid="v", dataStore=to, size=MiB)))
    assert key not in repr(refused.value) + str(refused.value.details)
    assert "rbd.keyrings" in refused.value.message or wrong != "nothing"
