"""Volumes on disks that others make: LUNs of a real iSCSI target with CHAP, and a directory of devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hypervisors.contract import HypervisorType, SizeRefused
from hypervisors.verbs import Copy, Create, CreatePool, Delete, GetVolumeStats, Introduce, Resize
from stores.contract import MiB
from stores.errors import AccessDenied, AlreadyExists, StorageError, StoreUnsupported
from stores.to import ImageFormat, PrimaryDataStoreTO, SnapshotObjectTO, TemplateObjectTO, VolumeObjectTO
from tests.doubles.disk_images import DiskImages, disk_content
from tests.doubles.world import World
from tests.tgt import IscsiServer

SIZE = 12 * MiB
LARGER = 16 * MiB


@dataclass
class Given:
    """A pool, and two disks of it: their refs, and the files that hold them."""

    pool: PrimaryDataStoreTO
    disks: dict[str, Path]


@pytest.fixture(params=["iscsi", "block"])
def given(request: pytest.FixtureRequest, here: World, tgt: IscsiServer) -> Iterator[Given]:
    """Full of something that was there before."""
    garbage = b"\xee" * LARGER
    if request.param == "iscsi":
        luns = [tgt.lun(garbage), tgt.lun(garbage)]
        yield Given(tgt.pool(), {lun.ref: lun.file for lun in luns})
        for lun in luns:
            tgt.remove(lun)
    else:
        directory = here.root / "devices"
        directory.mkdir()
        files = {name: directory / name for name in ("disk-1", "disk-2")}
        for file in files.values():
            file.write_bytes(garbage)
        yield Given(PrimaryDataStoreTO(uuid="b", poolType="Block", path=str(directory)), files)


def template_in(here: World, disk_images: DiskImages) -> TemplateObjectTO:
    store = here.directory()
    (here.root / "images" / "t").write_bytes(disk_images["qcow2"].path.read_bytes())
    return TemplateObjectTO(path="t", imageDataStore=store, format=ImageFormat.QCOW2)


async def test_a_template_fills_a_disk_and_the_volume_is_exported(
    here: World, given: Given, disk_images: DiskImages
) -> None:
    await here.operations.create_pool(here.call(), CreatePool(given.pool))
    (ref, file), (other, copied_to) = given.disks.items()
    wanted = Copy(template_in(here, disk_images), TemplateObjectTO(path=f"/{ref}", imageDataStore=given.pool))
    for token in ("c-1", "c-2"):  # the second finds it there
        filled = (await here.operations.copy(here.call(token), wanted)).data
        assert isinstance(filled, TemplateObjectTO)
        assert (filled.path, filled.format, filled.size) == (ref, ImageFormat.RAW, LARGER)
    whole = disk_content() + bytes(LARGER - SIZE)
    assert file.read_bytes() == whole
    clone = Copy(filled, VolumeObjectTO(path=other, dataStore=given.pool.model_copy(update={"fullCloneFlag": True})))
    volume = (await here.operations.copy(here.call("c-3"), clone)).data
    assert copied_to.read_bytes() == whole
    with pytest.raises(AlreadyExists):
        await here.operations.copy(here.call("c-4"), clone)
    exported = VolumeObjectTO(path="v.qcow2", dataStore=here.directory("exports"), format=ImageFormat.QCOW2)
    await here.operations.copy(here.call("c-5"), Copy(volume, exported))
    into = Copy(exported, VolumeObjectTO(uuid="w", dataStore=here.pool(), format=ImageFormat.RAW))
    restored = (await here.operations.copy(here.call("c-6"), into)).data
    assert here.path(restored).read_bytes() == whole
    for data in (filled, volume):
        await here.operations.delete(here.call("c-7"), Delete(data))
    assert file.read_bytes() == copied_to.read_bytes() == whole  # whoever made them removes them
    filled_again = (await here.operations.copy(here.call("c-8"), clone_of(clone, wanted))).data
    assert filled_again.path == other


def clone_of(clone: Copy, wanted: Copy) -> Copy:
    """The template straight to the other disk."""
    return Copy(wanted.source, clone.destination)


async def test_an_empty_volume_shows_nothing_of_before(here: World, given: Given) -> None:
    ref, file = next(iter(given.disks.items()))
    asked = VolumeObjectTO(path=ref, dataStore=given.pool, size=SIZE)
    made = await here.operations.create(here.call("c-1"), Create(asked))
    assert isinstance(made, VolumeObjectTO)
    assert (made.size, made.format) == (LARGER, ImageFormat.RAW)
    assert not any(file.read_bytes()[:SIZE])
    stats = await here.operations.volume_stats(here.call(), GetVolumeStats(given.pool, (ref,)))
    assert stats[ref].virtual == LARGER


async def test_sizes_are_changed_elsewhere(here: World, given: Given, disk_images: DiskImages) -> None:
    ref, file = next(iter(given.disks.items()))
    too_large = VolumeObjectTO(path=ref, dataStore=given.pool, size=LARGER + MiB)
    with pytest.raises(StoreUnsupported, match="where it was made"):
        await here.operations.create(here.call("c-1"), Create(too_large))
    introduced = await here.operations.introduce(
        here.call("c-2"), Introduce(VolumeObjectTO(path=ref, dataStore=given.pool, format=ImageFormat.QCOW2))
    )
    assert isinstance(introduced, VolumeObjectTO)
    same = await here.operations.resize(here.call("c-3"), Resize(introduced, LARGER))
    assert same.size == LARGER
    with pytest.raises(StoreUnsupported, match="where it was made"):
        await here.operations.resize(here.call("c-4"), Resize(introduced, 2 * LARGER))
    with pytest.raises(SizeRefused):
        await here.operations.resize(here.call("c-5"), Resize(introduced, SIZE))
    assert file.read_bytes() == b"\xee" * LARGER


async def test_snapshots_are_the_storages_affair(here: World, given: Given) -> None:
    ref = next(iter(given.disks))
    volume = VolumeObjectTO(path=ref, dataStore=given.pool, format=ImageFormat.RAW)
    asked = SnapshotObjectTO(name="s", volume=volume, dataStore=given.pool)
    with pytest.raises(StorageError, match="snapshot"):
        await here.operations.create(here.call("c-1"), Create(asked))


async def test_what_a_crash_left(here: World, given: Given, disk_images: DiskImages) -> None:
    ref = next(iter(given.disks))
    wanted = Copy(template_in(here, disk_images), TemplateObjectTO(path=ref, imageDataStore=given.pool))
    assert (await here.operations.recover(HypervisorType.KVM, wanted, "c-1")).outcome == "undone"
    await here.operations.copy(here.call("c-1"), wanted)
    without_secrets = Copy(
        wanted.source,
        wanted.destination.model_copy(
            update={"imageDataStore": given.pool.model_copy(update={"details": None})}  # as it is in a journal
        ),
    )
    assert (await here.operations.recover(HypervisorType.KVM, without_secrets, "c-1")).outcome == "finished"


async def test_the_wrong_secret(here: World, tgt: IscsiServer, disk_images: DiskImages) -> None:
    lun = tgt.lun(bytes(LARGER))
    wrong = tgt.pool(secret="wrong-secret-1")
    wanted = Copy(template_in(here, disk_images), TemplateObjectTO(path=lun.ref, imageDataStore=wrong))
    with pytest.raises(AccessDenied, match="CHAP"):
        await here.operations.copy(here.call("c-1"), wanted)
    tgt.remove(lun)
