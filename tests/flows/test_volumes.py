"""Volumes and pools: clones, copies between pools, create, resize, delete, statistics, listings."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hypervisors.contract import ImageInUse, ImageLocked, OperationUnsupported, SizeRefused
from hypervisors.verbs import (
    ComputeChecksum,
    Copy,
    Create,
    CreatePool,
    Delete,
    DeletePool,
    GetStorageStats,
    GetVolumeStats,
    ListObjects,
    ModifyPool,
    Resize,
)
from stores.contract import MiB
from stores.errors import AlreadyExists, DeviceFault, InvalidReference, NoSpace, NotFound, PolicyRefused
from stores.to import ImageFormat, PrimaryDataStoreTO, ProvisioningType, TemplateObjectTO, VolumeObjectTO
from tests.doubles.disk_images import DiskImages, content_of, file_hash, qemu_img, virtual_size
from tests.doubles.mounts import mounted_tmpfs
from tests.doubles.world import World, records_of, running_qemu
from tests.objects import zero


@pytest.fixture
async def template(here: World, disk_images: DiskImages) -> TemplateObjectTO:
    """A QCOW2 template in the pool `pool`, with its record."""
    store = here.directory()
    (here.root / "images" / "t").write_bytes(disk_images["qcow2"].path.read_bytes())
    made = (
        await here.operations.copy(
            here.call("c-template"),
            Copy(
                TemplateObjectTO(path="t", imageDataStore=store, format=ImageFormat.QCOW2),
                TemplateObjectTO(uuid="t1", imageDataStore=here.pool()),
            ),
        )
    ).data
    assert isinstance(made, TemplateObjectTO)
    return made


async def clone(
    here: World, template: TemplateObjectTO, name: str, *, full: bool = False, size: int | None = None
) -> VolumeObjectTO:
    made = (
        await here.operations.copy(
            here.call(f"c-{name}"),
            Copy(template, VolumeObjectTO(uuid=name, dataStore=here.pool(full_clone=full), size=size)),
        )
    ).data
    assert isinstance(made, VolumeObjectTO)
    return made


def write_into(path: Path, pattern: int) -> None:
    """What a guest does: a pattern over 64 KiB at 1 MiB."""

    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} 1M 64k", str(path)], check=True, capture_output=True
    )


# ----------------------------------------------------------------------------------------------------------- clones


@pytest.mark.parametrize("full", [False, True])
async def test_clone(here: World, template: TemplateObjectTO, disk_images: DiskImages, full: bool) -> None:
    volume = await clone(here, template, "v1", full=full, size=20 * MiB)
    assert (volume.path, volume.format, volume.size) == ("v1", ImageFormat.QCOW2, 20 * MiB)
    path = here.path(volume)
    expected = content_of(disk_images["qcow2"].path, ImageFormat.QCOW2, size=20 * MiB)
    assert content_of(path, ImageFormat.QCOW2) == expected
    backing = qemu_img("info", "-f", "qcow2", str(path)).decode()
    assert ("backing file: ./t1" in backing) is not full
    assert (os.stat(path).st_blocks * 512 < 1 * MiB) is not full


async def test_linked_clones_leave_their_template_alone(here: World, template: TemplateObjectTO) -> None:
    before = file_hash(here.path(template))
    one, two = await clone(here, template, "v1"), await clone(here, template, "v2")
    untouched = content_of(here.path(two), ImageFormat.QCOW2)
    write_into(here.path(one), 0x5A)
    assert file_hash(here.path(template)) == before
    assert content_of(here.path(two), ImageFormat.QCOW2) == untouched
    assert content_of(here.path(one), ImageFormat.QCOW2) != untouched


async def test_clone_smaller_than_its_template(here: World, template: TemplateObjectTO) -> None:
    before = here.files()
    with pytest.raises(SizeRefused):
        await clone(here, template, "v1", size=1 * MiB)
    assert here.files() == before


async def test_raw_volume_cannot_be_linked(here: World, template: TemplateObjectTO) -> None:
    before = here.files()
    with pytest.raises(OperationUnsupported, match="fullCloneFlag"):
        await here.operations.copy(
            here.call(),
            Copy(template, VolumeObjectTO(uuid="v1", dataStore=here.pool(), format=ImageFormat.RAW)),
        )
    assert here.files() == before


async def test_parent_is_not_deleted_before_its_children(here: World, template: TemplateObjectTO) -> None:
    await clone(here, template, "v1")
    await clone(here, template, "v2")
    for children in (["v1", "v2"], ["v2"]):
        with pytest.raises(ImageInUse) as refused:
            await here.operations.delete(here.call(), Delete(template))
        assert refused.value.details["children"] == children
        child = VolumeObjectTO(path=children[0], dataStore=here.pool())
        await here.operations.delete(here.call(), Delete(child))
    await here.operations.delete(here.call(), Delete(template))
    assert here.files() == set()


# -------------------------------------------------------------------------------------------- copies between pools


async def test_linked_clone_is_copied_with_what_it_stands_on(here: World, template: TemplateObjectTO) -> None:
    """The chain comes from our records: the name in the file, which a guest's host could have changed, is not followed."""
    volume = await clone(here, template, "v1")
    write_into(here.path(volume), 0x77)
    expected = content_of(here.path(volume), ImageFormat.QCOW2)
    secret = here.root / "secret"
    secret.write_bytes(b"top secret" * 1000)
    qemu_img("rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", str(secret), str(here.path(volume)))
    moved = (
        await here.operations.copy(
            here.call("c-move"), Copy(volume, VolumeObjectTO(uuid="v1", dataStore=here.pool("other")))
        )
    ).data
    assert content_of(here.path(moved), ImageFormat.QCOW2) == expected
    assert "backing file" not in qemu_img("info", "-f", "qcow2", str(here.path(moved))).decode()
    assert here.files("other") == records_of("v1")


@pytest.mark.parametrize("target", [ImageFormat.QCOW2, ImageFormat.RAW])
async def test_volume_to_another_pool(here: World, template: TemplateObjectTO, target: ImageFormat) -> None:
    volume = await clone(here, template, "v1", full=True)
    moved = (
        await here.operations.copy(
            here.call("c-move"),
            Copy(volume, VolumeObjectTO(uuid="m1", dataStore=here.pool("other"), format=target, size=32 * MiB)),
        )
    ).data
    assert moved.size == 32 * MiB  # type: ignore[union-attr]
    assert content_of(here.path(moved), target) == content_of(here.path(volume), ImageFormat.QCOW2, size=32 * MiB)


async def test_raw_volume_is_never_probed(here: World) -> None:
    """A guest writes a qcow2 header that names a file of the host onto its raw disk: it stays bytes of a raw disk."""
    volume = VolumeObjectTO(uuid="r1", dataStore=here.pool(), format=ImageFormat.RAW, size=8 * MiB)
    await here.operations.create(here.call("c-1"), Create(volume))
    path = here.path(volume.model_copy(update={"path": "r1"}))
    evil = here.root / "evil"
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", str(evil), "1G")
    with path.open("r+b") as disk:
        disk.write(evil.read_bytes())
    before = file_hash(path)
    named = VolumeObjectTO(path="r1", dataStore=here.pool())  # the command does not say what it is; the record does
    moved = (
        await here.operations.copy(
            here.call("c-2"),
            Copy(named, VolumeObjectTO(uuid="r1", dataStore=here.pool("other"), format=ImageFormat.RAW)),
        )
    ).data
    assert file_hash(here.path(moved)) == before
    resized = await here.operations.resize(here.call("c-3"), Resize(named, 16 * MiB))
    assert (resized.size, path.stat().st_size) == (16 * MiB, 16 * MiB)
    with path.open("r+b") as disk:
        disk.truncate(8 * MiB)
    assert file_hash(path) == before


async def test_image_without_record_needs_a_declared_format(here: World, disk_images: DiskImages) -> None:
    pool = here.pool()
    (here.root / "pool" / "old").write_bytes(disk_images["qcow2"].path.read_bytes())
    with pytest.raises(InvalidReference, match="format"):
        await here.operations.resize(here.call(), Resize(VolumeObjectTO(path="old", dataStore=pool), 64 * MiB))
    declared = VolumeObjectTO(path="old", dataStore=pool, format=ImageFormat.QCOW2)
    assert (await here.operations.resize(here.call(), Resize(declared, 64 * MiB))).size == 64 * MiB
    assert here.files() == records_of("old")


async def test_volume_of_a_running_guest_is_not_copied(here: World, template: TemplateObjectTO) -> None:
    volume = await clone(here, template, "v1", full=True)
    async with running_qemu(here.path(volume)):
        with pytest.raises(ImageLocked):
            await here.operations.copy(
                here.call("c-2"), Copy(volume, VolumeObjectTO(uuid="v2", dataStore=here.pool("other")))
            )
        with pytest.raises(ImageLocked):
            await here.operations.resize(here.call("c-3"), Resize(volume, 64 * MiB))
        stats = await here.operations.volume_stats(here.call(), GetVolumeStats(here.pool(), ("v1",)))
        assert stats["v1"].virtual == volume.size
    assert here.files("other") == set()


# ----------------------------------------------------------------------------------------------------------- create


@pytest.mark.parametrize("image_format", [ImageFormat.QCOW2, ImageFormat.RAW])
@pytest.mark.parametrize("provisioning", list(ProvisioningType))
async def test_create(here: World, image_format: ImageFormat, provisioning: ProvisioningType) -> None:
    volume = VolumeObjectTO(
        uuid="v1", dataStore=here.pool(), format=image_format, provisioningType=provisioning, size=16 * MiB
    )
    made = await here.operations.create(here.call(), Create(volume))
    assert (made.path, made.format) == ("v1", image_format)
    path = here.path(made)
    assert virtual_size(path, image_format) == 16 * MiB
    allocated = path.stat().st_blocks * 512
    assert (allocated >= 16 * MiB) is (provisioning is ProvisioningType.FAT)
    assert here.files() == records_of("v1")
    with pytest.raises(AlreadyExists):
        await here.operations.create(here.call("c-2"), Create(volume))
    assert here.files() == records_of("v1")


async def test_create_refused(here: World) -> None:
    pool = here.pool()
    with pytest.raises(InvalidReference):
        await here.operations.create(here.call(), Create(VolumeObjectTO(uuid="v1", dataStore=pool)))
    with pytest.raises(OperationUnsupported):
        await here.operations.create(here.call(), Create(TemplateObjectTO(uuid="t1", imageDataStore=pool)))
    assert here.files() == set()


async def test_fat_volume_that_does_not_fit(here: World) -> None:
    with mounted_tmpfs(here.root / "pool", options="size=4m"):
        volume = VolumeObjectTO(uuid="v1", dataStore=here.pool(), provisioningType=ProvisioningType.FAT, size=64 * MiB)
        with pytest.raises(NoSpace) as refused:
            await here.operations.create(here.call(), Create(volume))
        assert refused.value.details["needed"] == 64 * MiB
        assert here.files() == set()


# ----------------------------------------------------------------------------------------------------------- resize


async def test_resize(here: World, template: TemplateObjectTO) -> None:
    volume = await clone(here, template, "v1")
    content = content_of(here.path(volume), ImageFormat.QCOW2, size=24 * MiB)
    larger = await here.operations.resize(here.call("c-1"), Resize(volume, 24 * MiB))
    assert larger.size == 24 * MiB
    assert content_of(here.path(volume), ImageFormat.QCOW2) == content
    with pytest.raises(SizeRefused) as refused:
        await here.operations.resize(here.call("c-2"), Resize(volume, 16 * MiB))
    assert refused.value.details == {"asked": 16 * MiB, "least": 24 * MiB}
    smaller = await here.operations.resize(here.call("c-3"), Resize(volume, 16 * MiB, shrink_ok=True))
    assert smaller.size == 16 * MiB == virtual_size(here.path(volume), ImageFormat.QCOW2)


async def test_a_clone_cut_and_grown_again_shows_zeroes(here: World, template: TemplateObjectTO) -> None:
    """Not the template's bytes that were cut off: qemu has to know the parent for that."""
    volume = await clone(here, template, "v1")
    await here.operations.resize(here.call("c-1"), Resize(volume, 1 * MiB, shrink_ok=True))
    await here.operations.resize(here.call("c-2"), Resize(volume, 12 * MiB))
    raw = here.root / "raw"
    qemu_img("convert", "-f", "qcow2", "-O", "raw", str(here.path(volume)), str(raw))
    assert zero(raw.read_bytes()[1 * MiB :])


async def test_resize_of_nothing(here: World) -> None:
    with pytest.raises(NotFound):
        await here.operations.resize(here.call(), Resize(VolumeObjectTO(path="v1", dataStore=here.pool()), 1 * MiB))


# ------------------------------------------------------------------------------------------------------------ pools


async def test_delete_is_idempotent(here: World) -> None:
    volume = VolumeObjectTO(path="v1", dataStore=here.pool(), size=1 * MiB)
    await here.operations.create(here.call(), Create(volume))
    for _ in range(2):
        await here.operations.delete(here.call(), Delete(volume))
        assert here.files() == set()


async def test_stats(here: World, template: TemplateObjectTO) -> None:
    volume = await clone(here, template, "v1", size=20 * MiB)
    (here.root / "pool" / "unknown").write_bytes(b"x")
    found = await here.operations.volume_stats(here.call(), GetVolumeStats(here.pool(), ("v1", "unknown", "missing")))
    assert {name: stats.virtual for name, stats in found.items()} == {"v1": volume.size}
    assert found["v1"].physical == here.path(volume).stat().st_blocks * 512
    usage = await here.operations.storage_stats(here.call(), GetStorageStats(here.pool()))
    assert usage.capacity is not None
    assert 0 < usage.used < usage.capacity


async def test_checksum(here: World, template: TemplateObjectTO) -> None:
    digest = await here.operations.checksum(here.call(), ComputeChecksum(here.pool(), "t1", "SHA-256"))
    assert digest == file_hash(here.path(template))
    with pytest.raises(InvalidReference):
        await here.operations.checksum(here.call(), ComputeChecksum(here.pool(), "t1", "crc7"))


async def test_pool_comes_and_goes(here: World, template: TemplateObjectTO) -> None:
    before = here.files()
    for request in (CreatePool(here.pool()), CreatePool(here.pool())):
        info = await here.operations.create_pool(here.call(), request)
        assert info.uuid == "pool"
        assert info.capacity is not None
        assert info.available is not None
        assert 0 < info.available <= info.capacity
    await here.operations.modify_pool(here.call(), ModifyPool(here.pool()))
    for _ in range(2):
        await here.operations.delete_pool(here.call(), DeletePool(here.pool()))
    assert here.files() == before


async def test_pool_refused(here: World) -> None:
    missing = PrimaryDataStoreTO(uuid="p", poolType="SharedMountPoint", path=str(here.root / "missing"))
    with pytest.raises(NotFound):
        await here.operations.create_pool(here.call(), CreatePool(missing))
    elsewhere = PrimaryDataStoreTO(uuid="p", poolType="Filesystem", path="/etc")
    with pytest.raises(PolicyRefused):
        await here.operations.create_pool(here.call(), CreatePool(elsewhere))
    assert not (here.root / "missing").exists()


async def test_pool_that_cannot_be_written(here: World) -> None:
    with mounted_tmpfs(here.root / "pool", options="size=1m,ro"), pytest.raises(DeviceFault):
        await here.operations.create_pool(here.call(), CreatePool(here.pool()))


async def test_listing(here: World, template: TemplateObjectTO) -> None:
    root = here.root / "pool"
    (root / "sub" / "deep").mkdir(parents=True)
    for name in ("a", "sub/x", "sub/y", "sub/deep/z"):
        (root / name).write_bytes(b"1234")
    whole = await here.operations.list_objects(here.call(), ListObjects(here.pool()))
    assert [(entry.name, entry.is_dir) for entry in whole.entries] == [("a", False), ("sub", True), ("t1", False)]
    assert whole.count == 3
    below = await here.operations.list_objects(here.call(), ListObjects(here.pool(), "sub"))
    assert [(entry.path, entry.size) for entry in below.entries] == [("sub/deep", 0), ("sub/x", 4), ("sub/y", 4)]
    page = await here.operations.list_objects(here.call(), ListObjects(here.pool(), "sub", 1, 1))
    assert ([entry.path for entry in page.entries], page.count) == (["sub/x"], 3)
    deep = await here.operations.list_objects(here.call(), ListObjects(here.pool(), "sub", recursive=True))
    assert [entry.path for entry in deep.entries if not entry.is_dir] == ["sub/deep/z", "sub/x", "sub/y"]
    nothing = await here.operations.list_objects(here.call(), ListObjects(here.pool(), "none"))
    assert (nothing.path_exists, nothing.count) == (False, 0)
