"""Images in a volume group: templates, volumes, snapshots and backups, sizes, and what a crash leaves. On a real group, whose
volumes are thick."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator

import pytest

from hypervisors.contract import HypervisorType, ImageInUse, OperationUnsupported, SizeRefused
from hypervisors.verbs import (
    Copy,
    Create,
    CreatePool,
    Delete,
    GetStorageStats,
    GetVolumeStats,
    Introduce,
    ListObjects,
    Resize,
    Revert,
)
from stores.backends import lvm_calls
from stores.backends.lvm_names import doomed_name, pending_name
from stores.contract import MiB
from stores.errors import AlreadyExists, NotFound, PolicyRefused, StoreUnsupported
from stores.settings import LvmSettings, Wipe
from stores.to import DataTO, ImageFormat, PrimaryDataStoreTO, SnapshotObjectTO, TemplateObjectTO, VolumeObjectTO
from tests.doubles.disk_images import DiskImages, disk_content
from tests.doubles.world import World, world
from tests.lvm import LoopLvm, VolumeGroup

SIZE = 4 * MiB


@pytest.fixture
async def here(volume_group: VolumeGroup, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(lvm_calls, "Lvm", lambda runner, group, exclusive: LoopLvm(runner, volume_group))
    settings = LvmSettings(groups=frozenset({volume_group.name}), wipe=Wipe.ZERO)
    async with world(lvm=settings) as made:
        yield made


@pytest.fixture
def pool(volume_group: VolumeGroup) -> PrimaryDataStoreTO:
    return PrimaryDataStoreTO(uuid="p", poolType="LVM", path=f"/{volume_group.name}", fullCloneFlag=True)


def template_in(here: World, disk_images: DiskImages, name: str) -> TemplateObjectTO:
    image = disk_images[name]
    store = here.directory()
    (here.root / "images" / name).write_bytes(image.path.read_bytes())
    return TemplateObjectTO(path=name, imageDataStore=store, format=image.format)


def nothing_left(group: VolumeGroup) -> bool:
    return group.volumes() == set() and group.tags() == ""


async def volume(here: World, pool: PrimaryDataStoreTO, group: VolumeGroup, content: bytes) -> VolumeObjectTO:
    asked = VolumeObjectTO(uuid="v", dataStore=pool, size=len(content))
    made = await here.operations.create(here.call("c-volume"), Create(asked))
    assert isinstance(made, VolumeObjectTO)
    group.write("v", content)
    return made


async def test_a_pool_says_what_it_has(here: World, pool: PrimaryDataStoreTO, volume_group: VolumeGroup) -> None:
    info = await here.operations.create_pool(here.call(), CreatePool(pool))
    assert info.capacity is not None
    assert info.capacity == info.available
    volume_group.make("somebody-elses", SIZE)
    usage = await here.operations.storage_stats(here.call(), GetStorageStats(pool))
    assert (usage.used, usage.capacity) == (SIZE, info.capacity)
    volume_group.lvm("lvremove", "--yes", f"{volume_group.name}/somebody-elses")
    assert nothing_left(volume_group)


async def test_only_groups_that_the_operator_named(here: World) -> None:
    other = PrimaryDataStoreTO(uuid="q", poolType="LVM", path="/rootvg")
    with pytest.raises(PolicyRefused, match=r"lvm\.groups"):
        await here.operations.create_pool(here.call(), CreatePool(other))


@pytest.mark.parametrize("name", ["qcow2", "raw", "vhdx"])
async def test_a_template_becomes_a_volume(
    here: World, pool: PrimaryDataStoreTO, volume_group: VolumeGroup, disk_images: DiskImages, name: str
) -> None:
    source = template_in(here, disk_images, name)
    volume_group.fill_with_garbage()
    wanted = Copy(source, TemplateObjectTO(uuid="t", imageDataStore=pool))
    for token in ("c-1", "c-2"):  # the second finds it there
        copied = (await here.operations.copy(here.call(token), wanted)).data
        assert isinstance(copied, TemplateObjectTO)
        assert (copied.path, copied.format, copied.size) == ("t", ImageFormat.RAW, 12 * MiB)
    assert volume_group.volumes() == {"t"}
    assert volume_group.read("t") == disk_content()
    clone = Copy(copied, VolumeObjectTO(uuid="v", dataStore=pool, size=16 * MiB))
    made = (await here.operations.copy(here.call("c-3"), clone)).data
    assert isinstance(made, VolumeObjectTO)
    assert (made.path, made.format, made.size) == ("v", ImageFormat.RAW, 16 * MiB)
    assert volume_group.read("v") == disk_content() + bytes(4 * MiB)
    with pytest.raises(AlreadyExists):
        await here.operations.copy(here.call("c-4"), clone)
    listing = await here.operations.list_objects(here.call(), ListObjects(pool))
    assert [(entry.path, entry.size) for entry in listing.entries] == [("t", 12 * MiB), ("v", 16 * MiB)]
    for data in (made, copied):
        await here.operations.delete(here.call("c-5"), Delete(data))
    assert nothing_left(volume_group)


async def test_thick_volumes_have_no_linked_clones(
    here: World, pool: PrimaryDataStoreTO, volume_group: VolumeGroup, disk_images: DiskImages
) -> None:
    linking = pool.model_copy(update={"fullCloneFlag": False})
    source = template_in(here, disk_images, "raw")
    template = (
        await here.operations.copy(here.call("c-1"), Copy(source, TemplateObjectTO(uuid="t", imageDataStore=linking)))
    ).data
    with pytest.raises(StoreUnsupported, match="fullCloneFlag"):
        await here.operations.copy(here.call("c-2"), Copy(template, VolumeObjectTO(uuid="v", dataStore=linking)))
    assert volume_group.volumes() == {"t"}


async def test_compressed_templates_are_refused_before_anything_is_made(
    here: World, pool: PrimaryDataStoreTO, volume_group: VolumeGroup, disk_images: DiskImages
) -> None:
    here.directory()
    (here.root / "images" / "t.gz").write_bytes(gzip.compress(disk_images["qcow2"].path.read_bytes(), 1))
    source = TemplateObjectTO(path="t.gz", imageDataStore=here.directory(), format=ImageFormat.QCOW2)
    with pytest.raises(OperationUnsupported, match="gzip"):
        await here.operations.copy(here.call(), Copy(source, TemplateObjectTO(uuid="t", imageDataStore=pool)))
    assert nothing_left(volume_group)


async def test_an_empty_volume_shows_nothing_of_others(
    here: World, pool: PrimaryDataStoreTO, volume_group: VolumeGroup
) -> None:
    volume_group.fill_with_garbage()
    asked = VolumeObjectTO(uuid="v", dataStore=pool, size=SIZE)
    made = await here.operations.create(here.call("c-1"), Create(asked))
    assert isinstance(made, VolumeObjectTO)
    assert (made.path, made.format, made.size) == ("v", ImageFormat.RAW, SIZE)
    assert volume_group.read("v") == bytes(SIZE)
    volume_group.write("v", b"\x11" * SIZE)
    grown = await here.operations.resize(here.call("c-2"), Resize(made, SIZE + 1 * MiB))
    assert grown.size == SIZE + 1 * MiB
    assert volume_group.read("v") == b"\x11" * SIZE + bytes(MiB)
    with pytest.raises(SizeRefused):
        await here.operations.resize(here.call("c-3"), Resize(grown, SIZE))
    shrunk = await here.operations.resize(here.call("c-4"), Resize(grown, SIZE, shrink_ok=True))
    assert shrunk.size == SIZE
    stats = await here.operations.volume_stats(here.call(), GetVolumeStats(pool, ("v", "missing")))
    assert {path: (each.virtual, each.physical) for path, each in stats.items()} == {"v": (SIZE, SIZE)}


async def test_snapshots_are_copies_and_can_be_gone_back_to(
    here: World, pool: PrimaryDataStoreTO, volume_group: VolumeGroup
) -> None:
    disk = await volume(here, pool, volume_group, b"\x01" * SIZE)
    made = []
    for number in (1, 2):
        volume_group.write("v", bytes([number]) * SIZE)
        asked = SnapshotObjectTO(name=f"s{number}", volume=disk, dataStore=pool)
        snapshot = await here.operations.create(here.call(f"c-{number}"), Create(asked))
        assert isinstance(snapshot, SnapshotObjectTO)
        made.append(snapshot)
    assert len(volume_group.volumes()) == 3
    with pytest.raises(ImageInUse):
        await here.operations.delete(here.call("c-3"), Delete(disk))
    for number in (1, 2):
        volume_group.write("v", b"\x09" * SIZE)
        await here.operations.revert(here.call(f"c-back-{number}"), Revert(made[number - 1]))
        assert volume_group.read("v") == bytes([number]) * SIZE
    backed_up = SnapshotObjectTO(path="backups/s2", name="s2", dataStore=here.directory())
    await here.operations.copy(here.call("c-4"), Copy(made[1], backed_up))
    restored = Copy(backed_up, VolumeObjectTO(uuid="w", dataStore=pool))
    await here.operations.copy(here.call("c-5"), restored)
    assert volume_group.read("w") == b"\x02" * SIZE
    everything: list[DataTO] = [*made, disk, VolumeObjectTO(path="w", dataStore=pool)]
    for data in everything:
        await here.operations.delete(here.call("c-6"), Delete(data))
    assert nothing_left(volume_group)


async def test_a_volume_goes_to_an_image_store(
    here: World, pool: PrimaryDataStoreTO, volume_group: VolumeGroup, disk_images: DiskImages
) -> None:
    disk = await volume(here, pool, volume_group, disk_content())
    store = here.directory("exports")
    exported = Copy(disk, VolumeObjectTO(path="v.qcow2", dataStore=store, format=ImageFormat.QCOW2))
    await here.operations.copy(here.call("c-1"), exported)
    back = Copy(
        VolumeObjectTO(path="v.qcow2", dataStore=store, format=ImageFormat.QCOW2),
        VolumeObjectTO(uuid="w", dataStore=pool),
    )
    await here.operations.copy(here.call("c-2"), back)
    assert volume_group.read("w") == disk_content()


async def test_a_volume_that_somebody_else_made(
    here: World, pool: PrimaryDataStoreTO, volume_group: VolumeGroup
) -> None:
    volume_group.make("theirs", SIZE)
    # CloudStack says QCOW2 of all volumes of KVM.
    data = VolumeObjectTO(path="theirs", dataStore=pool, format=ImageFormat.QCOW2)
    vhd = data.model_copy(update={"format": ImageFormat.VHD})
    with pytest.raises(OperationUnsupported, match="VHD"):
        await here.operations.introduce(here.call("c-0"), Introduce(vhd))
    introduced = await here.operations.introduce(here.call("c-1"), Introduce(data))
    assert isinstance(introduced, VolumeObjectTO)
    assert (introduced.size, introduced.format) == (SIZE, ImageFormat.RAW)
    await here.operations.delete(here.call("c-2"), Delete(introduced))
    assert nothing_left(volume_group)


async def test_what_a_dead_copy_left(
    here: World, pool: PrimaryDataStoreTO, volume_group: VolumeGroup, disk_images: DiskImages
) -> None:
    source = template_in(here, disk_images, "raw")
    wanted = Copy(source, TemplateObjectTO(uuid="t", imageDataStore=pool))
    volume_group.make(pending_name("t", "c-1"), SIZE)
    recovered = await here.operations.recover(HypervisorType.KVM, wanted, "c-1")
    assert recovered.outcome == "undone"
    assert nothing_left(volume_group)
    await here.operations.copy(here.call("c-1"), wanted)
    recovered = await here.operations.recover(HypervisorType.KVM, wanted, "c-1")
    assert recovered.outcome == "finished"
    assert volume_group.volumes() == {"t"}


async def test_what_a_dead_deletion_left(here: World, pool: PrimaryDataStoreTO, volume_group: VolumeGroup) -> None:
    disk = await volume(here, pool, volume_group, b"\x01" * SIZE)
    volume_group.lvm("lvrename", volume_group.name, "v", doomed_name("v"))
    recovered = await here.operations.recover(HypervisorType.KVM, Delete(disk), "c-1")
    assert recovered.outcome == "finished"
    assert nothing_left(volume_group)
    with pytest.raises(NotFound):
        await here.operations.resize(here.call("c-2"), Resize(disk, 2 * SIZE))
