"""The verbs over XenServer's disks, on a fake pool of hosts: from images in a directory to VDIs, and back as backups."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hypervisors.backups.manifest import BackupDamaged
from hypervisors.contract import ImageInUse, OperationUnsupported, SizeRefused
from hypervisors.verbs import (
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
    SnapshotObjectTO,
    TemplateObjectTO,
    VolumeObjectTO,
)
from tests.doubles.disk_images import content_of, qemu_img
from tests.doubles.world import Phases
from tests.xen_lab import SIZE, Lab, backed_up, content, laboratory, restored


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


async def test_a_template_goes_to_another_sr(lab: Lab) -> None:
    data = content()
    template = await lab.template(data)
    target = TemplateObjectTO(uuid="u", path="u", imageDataStore=lab.sr("blocks"))
    made = (await lab.operations.copy(lab.call(), Copy(template, target))).data
    assert isinstance(made, TemplateObjectTO)
    assert (made.path, made.size, lab.seen("u")) == ("u", SIZE, data)
    assert len(await lab.place.fake.controls.transfers()) == 1  # XAPI copied it by itself


@pytest.mark.parametrize("image_format", [ImageFormat.QCOW2, ImageFormat.VHD, ImageFormat.RAW])
async def test_a_volume_comes_from_an_image_store(lab: Lab, image_format: ImageFormat) -> None:
    data = content()
    image = lab.image("w.img", data, image_format)
    source = VolumeObjectTO(path=image.path, format=image_format, dataStore=lab.images())
    made = (await lab.operations.copy(lab.call(), Copy(source, VolumeObjectTO(uuid="w", dataStore=lab.sr())))).data
    assert isinstance(made, VolumeObjectTO)
    assert (made.path, made.size, made.format) == ("w", SIZE, ImageFormat.VHD)
    assert lab.seen("w") == data
    assert lab.vdis() == {"w"}


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


# ------------------------------------------------------------------------------------------------------------ backups


async def test_a_chain_of_backups(lab: Lab) -> None:
    """Full, twice what changed since, the snapshots in between deleted as soon as nothing is built on them any more."""
    data = content()
    volume = await lab.volume(data)
    await lab.snapshot(volume, "s1")
    full = await backed_up(lab, volume, "s1")
    assert (full.format, full.parentSnapshotPath) == (ImageFormat.VHD, None)
    lab.write("v", 10 * MiB, random.Random(2).randbytes(MiB))
    await lab.snapshot(volume, "s2")
    second = await backed_up(lab, volume, "s2", parent="s1")
    assert second.parentSnapshotPath == "b/s1"
    await lab.operations.delete(lab.call(), Delete(SnapshotObjectTO(path="v/s1", dataStore=lab.sr())))
    lab.write("v", 0, bytes(2 * MiB))
    lab.write("v", 20 * MiB, random.Random(3).randbytes(4096))
    await lab.snapshot(volume, "s3")
    third = await backed_up(lab, volume, "s3", parent="s2")
    for delta, blocks in ((second, 1), (third, 2)):
        assert delta.physicalSize is not None
        assert delta.physicalSize <= blocks * (2 * MiB + 512) + 16 * 1024
    for name in ("s1", "s2", "s3"):
        assert await restored(lab, name) == lab.contents[name]
    assert await restored(lab, "s3", "blocks") == lab.contents["s3"]


async def test_a_parent_that_is_gone_makes_a_full_backup(lab: Lab) -> None:
    volume = await lab.volume(content())
    for name in ("s1", "s2"):
        lab.write("v", 10 * MiB, name.encode() * 1024)
        await lab.snapshot(volume, name)
    await backed_up(lab, volume, "s1")
    await lab.operations.delete(lab.call(), Delete(SnapshotObjectTO(path="v/s1", dataStore=lab.sr())))
    target = SnapshotObjectTO(path="b/s2", dataStore=lab.here.directory("backups"), parentSnapshotPath="b/s1")
    source = SnapshotObjectTO(path="v/s2", dataStore=lab.sr())
    copied = await lab.operations.copy(lab.call(), Copy(source, target))
    assert copied.note is not None
    assert isinstance(copied.data, SnapshotObjectTO)
    assert copied.data.parentSnapshotPath is None
    assert await restored(lab, "s2") == lab.contents["s2"]


async def test_a_backup_of_one_hypervisor_becomes_a_template_for_another(lab: Lab) -> None:
    """A chain is a disk, whoever wrote it: here it becomes one QCOW2 image, by way of KVM's handler."""
    volume = await lab.volume(content())
    await lab.snapshot(volume, "s1")
    await backed_up(lab, volume, "s1")
    lab.write("v", 10 * MiB, b"\5" * MiB)
    await lab.snapshot(volume, "s2")
    await backed_up(lab, volume, "s2", parent="s1")
    source = SnapshotObjectTO(path="b/s2", dataStore=lab.here.directory("backups"))
    target = VolumeObjectTO(uuid="kvm", dataStore=lab.here.pool())
    made = (await lab.here.operations.copy(lab.here.call(), Copy(source, target))).data
    assert content_of(lab.here.path(made), ImageFormat.QCOW2) == hashlib.sha256(lab.contents["s2"]).hexdigest()


async def test_a_damaged_delta_is_refused_before_anything_is_written(lab: Lab) -> None:
    volume = await lab.volume(content())
    await lab.snapshot(volume, "s1")
    await backed_up(lab, volume, "s1")
    path = lab.here.root / "backups" / "b" / "s1"
    damaged = bytearray(path.read_bytes())
    damaged[1 << 20] ^= 1
    path.write_bytes(damaged)
    before = lab.vdis()
    with pytest.raises(BackupDamaged):
        await restored(lab, "s1")
    assert lab.vdis() == before


async def test_changes_are_known_after_their_snapshot_is_gone(lab: Lab) -> None:
    """With changed block tracking: only what changed is read, over NBD; and with the volume goes what XAPI still knows."""
    call, db = lab.place.pool.call, lab.place.fake.world.db
    (network,) = db.refs("network")
    await call("network.add_purpose", network, "nbd")
    volume = await lab.volume(content())
    await call("VDI.enable_cbt", db.by_uuid("VDI", lab.place.named("v")))
    await lab.snapshot(volume, "s1")
    await backed_up(lab, volume, "s1")
    await lab.operations.delete(lab.call(), Delete(SnapshotObjectTO(path="v/s1", dataStore=lab.sr())))
    assert [record["type"] for record in lab.place.vdis().values()].count("cbt_metadata") == 1
    lab.write("v", 10 * MiB, random.Random(2).randbytes(64 * 1024))
    await lab.snapshot(volume, "s2")
    delta = await backed_up(lab, volume, "s2", parent="s1")
    assert delta.parentSnapshotPath == "b/s1"
    exports = [each for each in await lab.place.fake.controls.transfers() if each["kind"] == "export"]
    assert len(exports) == 1  # the full one
    for name in ("s1", "s2"):
        assert await restored(lab, name) == lab.contents[name]
    await lab.operations.delete(lab.call(), Delete(SnapshotObjectTO(path="v/s2", dataStore=lab.sr())))
    await lab.operations.delete(lab.call(), Delete(volume))
    assert lab.vdis() == set()
