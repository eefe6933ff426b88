"""The verbs over Hyper-V's disks, on a real Samba and a fake host: from images in a directory to VHDX, and back as backups."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from backports import zstd

from hypervisors.contract import HypervisorType, ImageInUse, ImageLocked, OperationUnsupported, SizeRefused
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
from stores.errors import AlreadyExists, ChecksumMismatch, InvalidReference, NotFound
from stores.to import ImageFormat, PrimaryDataStoreTO, SnapshotObjectTO, TemplateObjectTO, VolumeObjectTO
from tests.doubles.disk_images import content_of, qemu_img
from tests.doubles.world import Phases
from tests.hyperv import disk, port_to
from tests.hyperv_lab import SIZE, Lab, content, laboratory
from tests.images import make_iso
from tests.samba import SambaServer


@pytest.fixture
async def lab(tmp_path: Path, samba: SambaServer) -> AsyncIterator[Lab]:
    async with laboratory(tmp_path, samba) as made:
        yield made


# ---------------------------------------------------------------------------------------------------------- templates


@pytest.mark.parametrize(
    "image_format", [ImageFormat.QCOW2, ImageFormat.VHD, ImageFormat.RAW, ImageFormat.VHDX, ImageFormat.VMDK]
)
async def test_a_template_becomes_a_disk(lab: Lab, image_format: ImageFormat) -> None:
    """Without a file anywhere: nothing but the image itself is in the gateway's own directories."""
    data, progress = content(), Phases()
    source = lab.image("t.img", data, image_format)
    before = set(lab.here.root.rglob("*"))
    target = TemplateObjectTO(uuid="t", imageDataStore=lab.pool())
    made = (await lab.operations.copy(lab.call(progress), Copy(source, target))).data
    assert isinstance(made, TemplateObjectTO)
    assert (made.path, made.format, made.size) == ("t", ImageFormat.VHDX, SIZE)
    assert lab.seen("t") == data
    assert progress.done["transfer"] > 0
    assert set(lab.here.root.rglob("*")) == before
    file = lab.place.folder / "t.vhdx"
    assert file.stat().st_blocks * 512 >= file.stat().st_size  # no hole in the file
    if image_format is ImageFormat.VHDX:
        assert file.read_bytes() == lab.image_path("t.img").read_bytes()
    else:
        assert made.physicalSize == file.stat().st_size <= 10 * MiB  # tables, and what is in the source's blocks
    assert lab.ran("test-vhd") == 1


async def test_a_compressed_template_is_read_by_qemu(lab: Lab) -> None:
    """Over the bridge: still without a file."""
    source = lab.image("t.img", content(), ImageFormat.QCOW2)
    path = lab.image_path("t.img")
    qemu_img("convert", "-c", "-f", "qcow2", "-O", "qcow2", str(path), str(path.with_suffix(".small")))
    path.with_suffix(".small").rename(path)
    await lab.copied(source, TemplateObjectTO(uuid="t", path="t", imageDataStore=lab.pool()))
    assert lab.seen("t") == content()


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstd.compress])
async def test_a_disk_in_a_compressed_file_is_refused(lab: Lab, compress: Callable[[bytes], bytes]) -> None:
    """With what to do: what is compressed is read in order, and a disk is not."""
    source = lab.image("t", content(), ImageFormat.VHDX)
    path = lab.image_path("t")
    path.write_bytes(compress(path.read_bytes()[: 4 * MiB]))
    with pytest.raises(OperationUnsupported, match="store it uncompressed"):
        await lab.copied(source, TemplateObjectTO(uuid="t", path="t", imageDataStore=lab.pool()))
    assert lab.place.files() == set()


async def test_an_iso(lab: Lab) -> None:
    given = make_iso(lab.image_path("i.img"))
    source = TemplateObjectTO(path="i.img", format=ImageFormat.ISO, imageDataStore=lab.images())
    made = await lab.copied(source, TemplateObjectTO(uuid="i", path="i", imageDataStore=lab.pool()))
    assert (made.path, made.format) == ("i", ImageFormat.ISO)
    assert (lab.place.folder / "i.iso").read_bytes() == given.read_bytes()
    with pytest.raises(AlreadyExists):
        await lab.operations.create(lab.call(), Create(lab.volume_to("i", MiB)))
    await lab.operations.delete(lab.call(), Delete(made))
    assert lab.place.files() == set()


async def test_the_same_template_again_is_no_transfer(lab: Lab) -> None:
    data = content()
    source = lab.image("t.img", data, ImageFormat.QCOW2)
    target = TemplateObjectTO(uuid="t", imageDataStore=lab.pool())
    for _ in range(2):
        assert (await lab.copied(source, target)).path == "t"
    assert lab.ran("test-vhd") == 1
    with pytest.raises(AlreadyExists):
        await lab.copied(lab.image("other.img", content(2), ImageFormat.QCOW2), target)
    assert lab.seen("t") == data


async def test_a_wrong_checksum_leaves_nothing(lab: Lab) -> None:
    target = TemplateObjectTO(uuid="t", imageDataStore=lab.pool())
    for image_format in (ImageFormat.RAW, ImageFormat.VHD, ImageFormat.VHDX, ImageFormat.QCOW2):
        source = lab.image("t.img", content(), image_format)
        with pytest.raises(ChecksumMismatch):
            await lab.copied(source.model_copy(update={"checksum": "{SHA-256}" + "0" * 64}), target)
        assert lab.place.files() == set()
        right = hashlib.sha256(lab.image_path("t.img").read_bytes()).hexdigest()
        await lab.copied(source.model_copy(update={"checksum": "{SHA-256}" + right}), target)
        await lab.operations.delete(lab.call(), Delete(target))
        assert lab.place.files() == set()


async def test_a_volume_that_is_too_small(lab: Lab) -> None:
    for image_format in (ImageFormat.QCOW2, ImageFormat.VHD, ImageFormat.VHDX):
        with pytest.raises(SizeRefused):
            await lab.copied(lab.image("t.img", content(), image_format), lab.volume_to("v", SIZE // 2))
    assert lab.place.files() == set()


async def test_a_volume_that_is_larger_than_its_image(lab: Lab) -> None:
    for image_format in (ImageFormat.QCOW2, ImageFormat.VHD, ImageFormat.VHDX, ImageFormat.RAW):
        made = await lab.copied(lab.image("t.img", content(), image_format), lab.volume_to("v", 2 * SIZE))
        assert isinstance(made, VolumeObjectTO)
        assert made.size == 2 * SIZE
        assert lab.seen("v") == content() + bytes(SIZE)
        await lab.operations.delete(lab.call(), Delete(made))


async def test_a_format_that_no_disk_has(lab: Lab) -> None:
    source = lab.image("t.img", content(), ImageFormat.QCOW2)
    target = TemplateObjectTO(uuid="t", imageDataStore=lab.pool(), format=ImageFormat.VHD)
    with pytest.raises(OperationUnsupported, match="VHDX"):
        await lab.copied(source, target)


async def test_what_is_sparse_on_the_share_is_refused(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the folder compresses: then no disk of it can be opened, and somebody has to be told."""
    monkeypatch.setattr("tests.doubles.hyperv.commands_disks.is_sparse", lambda file: True)
    with pytest.raises(Exception, match="sparse"):
        await lab.template(content())
    assert lab.place.files() == set()


# ------------------------------------------------------------------------------------------------------------ volumes


async def test_linked_clones_of_a_template(lab: Lab) -> None:
    data = content()
    template = await lab.template(data)
    for name, size in (("v1", None), ("deep/v2", 2 * SIZE)):
        made = await lab.clone(template, name, size)
        assert made.size == (size or SIZE)
        assert await lab.seen_by_host(name) == data + bytes((size or SIZE) - SIZE)
        assert (lab.place.folder / f"{name}.vhdx").stat().st_size < 5 * MiB
    await lab.place.host.model.vhds.write(disk("v1.vhdx"), 0, b"\1" * 4096)
    assert lab.seen("v1") == b"\1" * 4096 + data[4096:]
    assert lab.seen("t") == (await lab.seen_by_host("deep/v2"))[:SIZE] == data
    with pytest.raises(ImageInUse, match="v1"):
        await lab.operations.delete(lab.call(), Delete(template))
    with pytest.raises(ImageInUse, match="v1"):
        await lab.operations.resize(lab.call(), Resize(lab.volume_to("t"), 2 * SIZE))
    for name in ("v1", "deep/v2"):
        await lab.operations.delete(lab.call(), Delete(lab.volume_to(name)))
    await lab.operations.delete(lab.call(), Delete(template))
    assert lab.place.files() == set()


async def test_full_clones_by_policy(lab: Lab) -> None:
    """The server of the share copies; only a larger one goes through here."""
    data = content()
    template = await lab.template(data)
    for name, size in (("v1", None), ("v2", 2 * SIZE)):
        pool = lab.pool(full_clone=True)
        made = await lab.copied(template, VolumeObjectTO(uuid=name, dataStore=pool, size=size))
        assert isinstance(made, VolumeObjectTO)
        assert lab.seen(name) == data + bytes((size or SIZE) - SIZE)
    assert (lab.place.folder / "v1.vhdx").read_bytes() == (lab.place.folder / "t.vhdx").read_bytes()
    await lab.operations.delete(lab.call(), Delete(template))
    assert lab.seen("v1") == data


async def test_a_copy_of_a_linked_clone_stands_for_itself(lab: Lab) -> None:
    template = await lab.template(content())
    await lab.clone(template)
    await lab.place.host.model.vhds.write(disk("v.vhdx"), MiB, b"\2" * MiB)
    seen = lab.seen("v")
    await lab.copied(lab.volume_to("v"), lab.volume_to("w"))
    for image in (lab.volume_to("v"), template):
        await lab.operations.delete(lab.call(), Delete(image))
    assert lab.seen("w") == seen


async def test_an_empty_volume(lab: Lab) -> None:
    made = await lab.operations.create(lab.call(), Create(lab.volume_to("v", 5 * MiB)))
    assert isinstance(made, VolumeObjectTO)
    assert (made.size, lab.seen("v")) == (5 * MiB, bytes(5 * MiB))
    assert (await lab.operations.resize(lab.call(), Resize(lab.volume_to("v"), 8 * MiB))).size == 8 * MiB
    stats = await lab.operations.volume_stats(lab.call(), GetVolumeStats(lab.pool(), ("v", "nothing")))
    assert {name: each.virtual for name, each in stats.items()} == {"v": 8 * MiB}
    with pytest.raises(AlreadyExists):
        await lab.operations.create(lab.call(), Create(lab.volume_to("v", 5 * MiB)))
    for _ in range(2):
        await lab.operations.delete(lab.call(), Delete(lab.volume_to("v")))
    assert lab.place.files() == set()


async def test_a_share_as_a_pool(lab: Lab) -> None:
    found = await lab.operations.create_pool(lab.call(), CreatePool(lab.pool()))
    assert found.capacity is not None
    assert lab.place.files() == set()
    usage = await lab.operations.storage_stats(lab.call(), GetStorageStats(lab.pool()))
    assert usage.capacity == found.capacity
    await lab.volume(content())
    (lab.place.folder / "somebody.txt").write_text("else's")
    listing = await lab.operations.list_objects(lab.call(), ListObjects(lab.pool()))
    assert [entry.path for entry in listing.entries] == ["v"]
    with pytest.raises(InvalidReference, match="without the ending"):
        await lab.operations.delete(lab.call(), Delete(lab.volume_to("v.vhdx")))
    elsewhere = PrimaryDataStoreTO(uuid="x", poolType="SMB", host="files.example.com", path="/vms")
    with pytest.raises(OperationUnsupported, match=r"files\.example\.com/vms"):
        await lab.operations.create_pool(lab.call(), CreatePool(elsewhere))
    with pytest.raises(OperationUnsupported, match="SMB"):
        await lab.operations.create_pool(lab.call(), CreatePool(lab.here.pool()))


# ---------------------------------------------------------------------------------------------------------- snapshots


async def test_back_to_a_snapshot(lab: Lab) -> None:
    data = content()
    volume = await lab.volume(data)
    snapshot = await lab.snapshot("s1")
    lab.place.write("v", 0, b"\2" * MiB)
    await lab.snapshot("s2")
    lab.place.write("v", 4 * MiB, b"\3" * MiB)
    await lab.operations.revert(lab.call(), Revert(snapshot))
    assert lab.seen("v") == data
    with pytest.raises(ImageInUse, match="s1"):
        await lab.operations.delete(lab.call(), Delete(volume))
    for name in ("s1", "s2", "s1"):
        gone = SnapshotObjectTO(path=f"v/{name}", dataStore=lab.pool())
        await lab.operations.delete(lab.call(), Delete(gone))
    await lab.operations.delete(lab.call(), Delete(volume))
    assert lab.place.files() == set()


async def test_a_snapshot_becomes_a_volume(lab: Lab) -> None:
    data = content()
    await lab.volume(data)
    snapshot = await lab.snapshot("s1")
    lab.place.write("v", 0, b"\2" * MiB)
    made = await lab.copied(snapshot, lab.volume_to("w", 2 * SIZE))
    assert isinstance(made, VolumeObjectTO)
    assert made.size == 2 * SIZE
    assert lab.seen("w") == data + bytes(SIZE)


@pytest.mark.parametrize("linked", [False, True])
async def test_a_snapshot_of_a_disk_that_a_machine_writes_to(lab: Lab, linked: bool) -> None:
    """Behind a checkpoint, which is gone and merged afterwards; what was kept goes into a backup and comes back from it."""
    if linked:
        await lab.clone(await lab.template(content()))
    else:
        await lab.volume(content())
    machine = lab.machine("v")
    await lab.guest_writes(machine, 8 * MiB, b"\4" * MiB)
    before = await lab.guest_sees(machine)
    await lab.snapshot("s1")
    assert (machine.checkpoints, machine.merging) == ([], 0)
    assert [drive.path for drive in machine.disks] == [disk("v.vhdx")]
    await lab.guest_writes(machine, 0, b"\5" * MiB)
    await lab.backed_up("s1")
    await lab.copied(lab.backup("s1"), lab.volume_to("r"))
    assert lab.seen("r") == before
    with pytest.raises(ImageLocked, match="vm"):
        await lab.operations.revert(lab.call(), Revert(SnapshotObjectTO(path="v/s1", dataStore=lab.pool())))
    with pytest.raises(ImageLocked, match="vm"):
        await lab.copied(lab.volume_to("v"), lab.volume_to("w"))
    machine.state = "Off"
    await lab.operations.revert(lab.call(), Revert(SnapshotObjectTO(path="v/s1", dataStore=lab.pool())))
    assert await lab.guest_sees(machine) == before
    assert not [name for name in lab.images_there() if name.endswith(".avhdx")]


@pytest.mark.parametrize("state", ["Running", "Off"])
async def test_a_snapshot_of_a_disk_with_checkpoints_of_an_operator(lab: Lab, state: str) -> None:
    """Its content is in files above it, too; the operator's checkpoint stays."""
    await lab.volume(content())
    machine = lab.machine("v")
    port = port_to(lab.place.host.endpoint)
    checkpoint = await port.run("new-checkpoint", {"vm": "vm", "name": "before the update"})
    await lab.guest_writes(machine, 8 * MiB, b"\6" * MiB)
    machine.state = state
    seen = await lab.guest_sees(machine)
    await lab.snapshot("s1")
    assert [one.name for one in machine.checkpoints] == ["before the update"]
    assert await lab.guest_sees(machine) == seen
    with pytest.raises(ImageLocked, match="vm"):
        await lab.operations.revert(lab.call(), Revert(SnapshotObjectTO(path="v/s1", dataStore=lab.pool())))
    await lab.copied(SnapshotObjectTO(path="v/s1", dataStore=lab.pool()), lab.volume_to("w"))
    assert lab.seen("w") == seen
    await port.run("remove-checkpoint", {"vm": "vm", "checkpoint": checkpoint["id"]})
    while machine.merging:
        await port.run("get-checkpoints", {"vm": "vm"})
    await port.aclose()
    assert lab.seen("v") == seen


async def test_a_disk_of_two_machines(lab: Lab) -> None:
    await lab.volume(content())
    for name in ("one", "two"):
        lab.machine("v", name=name)
    with pytest.raises(ImageLocked, match="one, two"):
        await lab.snapshot("s1")
    for name in ("one", "two"):
        lab.place.host.model.machines[name].state = "Off"
    before = lab.images_there()
    with pytest.raises(ImageLocked):
        await lab.snapshot("s1")
    assert lab.images_there() == before


# --------------------------------------------------------------------------------------------- into an image store


async def test_a_volume_becomes_a_template_in_an_image_store(lab: Lab) -> None:
    data = content()
    await lab.clone(await lab.template(data))
    target = TemplateObjectTO(uuid="out.vhdx", path="out.vhdx", imageDataStore=lab.here.directory("out"))
    made = await lab.copied(lab.volume_to("v"), target)
    assert isinstance(made, TemplateObjectTO)
    assert made.format is ImageFormat.VHDX
    path = lab.here.root / "out" / "out.vhdx"
    assert content_of(path, ImageFormat.VHDX) == hashlib.sha256(data).hexdigest()
    assert path.stat().st_size < 9 * MiB


# ------------------------------------------------------------------------------------------------------------ backups


async def test_backups_are_whole(lab: Lab) -> None:
    """Whatever is asked for, and said so."""
    await lab.volume(content())
    for name in ("s1", "s2"):
        lab.place.write("v", 10 * MiB, name.encode() * 1024)
        lab.contents[name] = lab.seen("v")
        await lab.snapshot(name)
    full = await lab.backed_up("s1")
    assert (full.format, full.parentSnapshotPath) == (ImageFormat.VHDX, None)
    source = SnapshotObjectTO(path="v/s2", dataStore=lab.pool())
    copied = await lab.operations.copy(lab.call(), Copy(source, lab.backup("s2", parent="s1")))
    assert copied.note is not None
    assert isinstance(copied.data, SnapshotObjectTO)
    assert copied.data.parentSnapshotPath is None
    for name in ("s1", "s2"):
        await lab.copied(lab.backup(name), lab.volume_to(f"r-{name}"))
        assert lab.seen(f"r-{name}") == lab.contents[name]
        await lab.operations.delete(lab.call(), Delete(SnapshotObjectTO(path=f"v/{name}", dataStore=lab.pool())))
    verified = await lab.operations.verify_backup(lab.call(), lab.here.directory("backups"), "b/s2")
    assert verified.sound


async def test_backups_go_from_one_hypervisor_to_another(lab: Lab) -> None:
    """Both ways: a chain is a disk, whoever wrote it."""
    await lab.volume(content())
    await lab.snapshot("s1")
    await lab.backed_up("s1")
    made = (
        await lab.here.operations.copy(
            lab.here.call(), Copy(lab.backup("s1"), VolumeObjectTO(uuid="kvm", dataStore=lab.here.pool()))
        )
    ).data
    assert content_of(lab.here.path(made), ImageFormat.QCOW2) == hashlib.sha256(content()).hexdigest()
    volume = VolumeObjectTO(path="kvm", dataStore=lab.here.pool())
    asked = SnapshotObjectTO(name="k1", volume=volume, dataStore=lab.here.pool())
    await lab.here.operations.create(lab.here.call("c-k1"), Create(asked))
    source = SnapshotObjectTO(path="kvm/k1", dataStore=lab.here.pool())
    await lab.here.operations.copy(lab.here.call("c-k2"), Copy(source, lab.backup("k1")))
    await lab.copied(lab.backup("k1"), lab.volume_to("back"))
    assert lab.seen("back") == content()


async def test_a_host_that_does_not_know_the_disk_of_a_command(lab: Lab) -> None:
    with pytest.raises(NotFound):
        await lab.operations.resize(lab.call(), Resize(lab.volume_to("nothing"), MiB))
    assert lab.place.handler.type is HypervisorType.HYPERV
