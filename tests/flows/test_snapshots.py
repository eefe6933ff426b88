"""Snapshots of volumes in a pool: made, deleted, gone back to; kept as files that share blocks, as full copies, and inside."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hypervisors.contract import ImageInUse, ImageLocked
from hypervisors.verbs import Copy, Create, Delete, Resize, Revert
from stores.contract import MiB
from stores.errors import AlreadyExists, InvalidReference, NotFound
from stores.to import ImageFormat, SnapshotObjectTO, TemplateObjectTO, VolumeObjectTO
from tests.doubles.disk_images import content_of, qemu_img
from tests.doubles.mounts import xfs_with_a_short_path
from tests.doubles.world import World, records_of, running_qemu, world
from tests.images import opened, qemu_io

SIZE = 4 * MiB


@pytest.fixture(params=["ext4", "xfs"])
async def here(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """On a file system that cannot share blocks between files, and on one that can."""
    if request.param == "ext4":
        async with world() as made:
            yield made
    else:
        with xfs_with_a_short_path() as base:
            async with world(root=base) as made:
                yield made


async def volume(here: World, image_format: ImageFormat = ImageFormat.QCOW2) -> VolumeObjectTO:
    """With data in its first MiB."""
    asked = VolumeObjectTO(uuid="v", dataStore=here.pool(), size=SIZE, format=image_format)
    made = await here.operations.create(here.call("c-volume"), Create(asked))
    assert isinstance(made, VolumeObjectTO)
    write(here, made, 1)
    return made


def write(here: World, volume: VolumeObjectTO, seed: int) -> None:
    """As a guest would, with its own pattern over the one before, and some of it elsewhere."""
    assert volume.format is not None
    qemu_io(here.path(volume), volume.format, f"write -P {seed} 0 1M", f"write -P {seed} {1 + seed % 3}M 64k")


def seen(here: World, volume: VolumeObjectTO) -> str:
    assert volume.format is not None
    return content_of(here.path(volume), volume.format)


def history(here: World, volume: VolumeObjectTO) -> tuple[int, dict[str, list[str]]]:
    """Snapshots inside, and the bitmaps by their flags, in order of their age."""
    info = json.loads(qemu_img("info", "-f", "qcow2", "--output=json", str(here.path(volume))))
    bitmaps = info["format-specific"]["data"].get("bitmaps", [])
    return len(info.get("snapshots", [])), {found["name"]: found["flags"] for found in bitmaps}


def record(here: World, volume: VolumeObjectTO) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((here.root / "pool/.storage-agent/images" / f"{volume.path}.json").read_text())
    return found


async def snapshot(here: World, volume: VolumeObjectTO, name: str) -> SnapshotObjectTO:
    asked = SnapshotObjectTO(name=name, volume=volume, dataStore=here.pool())
    made = await here.operations.create(here.call(f"c-{name}"), Create(asked))
    assert isinstance(made, SnapshotObjectTO)
    assert made.path == f"v/{name}"
    assert made.physicalSize is not None
    return made


def snapshot_files(here: World) -> set[str]:
    return here.files() - records_of("v")


@pytest.mark.parametrize("image_format", [ImageFormat.QCOW2, ImageFormat.RAW])
async def test_back_and_forth(here: World, image_format: ImageFormat) -> None:
    """Every snapshot gives back just what was there, in any order, as often as one likes, and deletes to nothing."""
    disk = await volume(here, image_format)
    contents, made = [], []
    for number in (1, 2, 3):
        write(here, disk, number)
        contents.append(seen(here, disk))
        made.append(await snapshot(here, disk, f"s{number}"))
        assert seen(here, disk) == contents[-1]
    write(here, disk, 9)
    for number in (1, 0, 2, 2):
        back = await here.operations.revert(here.call(f"c-r{number}"), Revert(made[number]))
        assert back.path == made[number].path
        assert seen(here, disk) == contents[number]
        write(here, disk, 7)
    for number in (1, 0, 2):
        for _ in range(2):
            await here.operations.delete(here.call(), Delete(made[number]))
        if number != 2:
            await here.operations.revert(here.call("c-again"), Revert(made[2]))
            assert seen(here, disk) == contents[2]
    assert here.files() == records_of("v")
    if image_format is ImageFormat.QCOW2:
        qemu_img("check", "-q", opened(here.path(disk), image_format))
        assert history(here, disk) == (0, {})
    await here.operations.delete(here.call(), Delete(disk))
    assert here.files() == set()


async def test_every_point_records(here: World) -> None:
    disk = await volume(here)
    for number in (1, 2, 3):
        await snapshot(here, disk, f"s{number}")
    points = record(here, disk)["points"]
    assert len(points) == 3
    inside, bitmaps = history(here, disk)
    assert bitmaps == {point: ["auto"] for point in points}
    assert inside == (0 if any("frozen" in name for name in here.files()) else 3)


async def test_a_deleted_point_is_not_needed_by_others(here: World) -> None:
    """In the middle, the last one, and the first one."""
    disk = await volume(here)
    made = [await snapshot(here, disk, f"s{number}") for number in (1, 2, 3)]
    points = record(here, disk)["points"]
    await here.operations.delete(here.call(), Delete(made[1]))
    assert history(here, disk)[1] == {points[0]: ["auto"], points[2]: ["auto"]}
    await here.operations.delete(here.call(), Delete(made[2]))
    assert history(here, disk)[1] == {points[0]: ["auto"]}
    assert record(here, disk)["points"] == [points[0]]
    await here.operations.delete(here.call(), Delete(made[0]))
    assert history(here, disk)[1] == {}
    assert here.files() == records_of("v")


async def test_a_snapshot_of_a_linked_clone(here: World) -> None:
    template = TemplateObjectTO(path="v", imageDataStore=here.pool())
    await volume(here)
    clone = VolumeObjectTO(uuid="clone", dataStore=here.pool())
    child = (await here.operations.copy(here.call("c-clone"), Copy(template, clone))).data
    assert isinstance(child, VolumeObjectTO)
    before = seen(here, child)
    made = await here.operations.create(
        here.call("c-s"), Create(SnapshotObjectTO(path="clone/s", volume=child, dataStore=here.pool()))
    )
    assert isinstance(made, SnapshotObjectTO)
    write(here, child, 3)
    await here.operations.revert(here.call("c-r"), Revert(made))
    assert seen(here, child) == before
    own = await snapshot(here, VolumeObjectTO(path="v", dataStore=here.pool()), "s")
    with pytest.raises(ImageInUse, match="linked clones"):
        await here.operations.revert(here.call(), Revert(own))


async def test_sizes_come_back_too(here: World) -> None:
    disk = await volume(here)
    before, made = seen(here, disk), await snapshot(here, disk, "s")
    grown = await here.operations.resize(here.call(), Resize(disk, 2 * SIZE))
    assert grown.size == 2 * SIZE
    assert history(here, disk)[1] != {}  # growing loses nothing
    await here.operations.revert(here.call("c-r"), Revert(made))
    assert seen(here, disk) == before
    assert record(here, disk)["virtual_size"] == SIZE


async def test_shrinking_gives_the_points_up(here: World) -> None:
    disk = await volume(here)
    made = await snapshot(here, disk, "s")
    if history(here, disk)[0]:
        with pytest.raises(ImageInUse, match="shrink"):
            await here.operations.resize(here.call(), Resize(disk, SIZE // 2, shrink_ok=True))
        await here.operations.delete(here.call(), Delete(made))
    await here.operations.resize(here.call(), Resize(disk, SIZE // 2, shrink_ok=True))
    assert history(here, disk)[1] == {}
    assert record(here, disk)["points"] == []


async def test_refusals(here: World) -> None:
    disk = await volume(here)
    made = await snapshot(here, disk, "s")
    files = here.files()
    with pytest.raises(AlreadyExists):
        await snapshot(here, disk, "s")
    with pytest.raises(ImageInUse, match="snapshots"):
        await here.operations.delete(here.call(), Delete(disk))
    with pytest.raises(NotFound):
        await here.operations.revert(here.call(), Revert(made.model_copy(update={"path": "v/none"})))
    for path, of in (("s", None), ("w/s", disk), (".storage-agent/images/s", None), ("", None)):
        with pytest.raises(InvalidReference):
            await here.operations.create(
                here.call(), Create(SnapshotObjectTO(path=path, volume=of, dataStore=here.pool()))
            )
    with pytest.raises(NotFound):
        await here.operations.create(here.call(), Create(SnapshotObjectTO(path="none/s", dataStore=here.pool())))
    async with running_qemu(here.path(disk)):
        with pytest.raises(ImageLocked):
            await here.operations.revert(here.call(), Revert(made))
        with pytest.raises(ImageLocked):
            await snapshot(here, disk, "t")
    assert here.files() == files
    assert os.path.exists(here.path(disk))


async def test_a_cancelled_snapshot_leaves_nothing(here: World) -> None:
    disk = await volume(here)
    await snapshot(here, disk, "s1")
    files, before = here.files(), history(here, disk)
    cancelled = 0
    for turns in (0, 1, 3, 6, 10, 15):
        making = asyncio.create_task(snapshot(here, disk, "s2"))
        for _ in range(turns):
            await asyncio.sleep(0.005)
        making.cancel()
        try:
            await making
        except asyncio.CancelledError:
            cancelled += 1
        else:
            break  # the machine was faster
        assert here.files() == files
        assert history(here, disk) == before
    assert cancelled


async def test_a_copy_has_no_snapshots(here: World) -> None:
    """What was deleted before the copy, and is kept in a snapshot, does not travel with it."""
    disk = await volume(here)
    qemu_io(here.path(disk), ImageFormat.QCOW2, "write -P 83 3M 64k")
    await snapshot(here, disk, "s")
    qemu_io(here.path(disk), ImageFormat.QCOW2, "write -P 5 3M 64k")
    target = VolumeObjectTO(uuid="copy", dataStore=here.pool("other"))
    made = (await here.operations.copy(here.call("c-copy"), Copy(disk, target))).data
    assert isinstance(made, VolumeObjectTO)
    assert seen(here, made) == seen(here, disk)
    assert history(here, made) == (0, {})
    assert bytes([83]) * 4096 not in here.path(made).read_bytes()
