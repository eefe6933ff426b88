"""A management server that insists on an `ImageCache` store, where there is none: S3 is the only secondary storage, nothing of
it is copied on its way in, and whatever is said to be kept is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.transports.cloudstack.staging_file import Zone, read_zone
from stores.contract import MiB
from stores.settings import StoreSettings
from stores.to import S3TO, ImageFormat
from tests.buckets import keys, uploads
from tests.doubles.cloudstack_place import API, STORAGE, TO, Place, s3, snapshot, standing, template, volume
from tests.doubles.disk_images import DiskImages, content_of
from tests.doubles.shelf import Shelf
from tests.images import qemu_io

NAME = {"com.cloud.agent.api.to.NfsTO": {"_url": "nfs://staging.invalid/s3", "_role": "ImageCache", "uuid": "c-1"}}
KEY = "template/tmpl/2/201/201-2-aaaa/debian.qcow2"
COPY = f"{STORAGE}.CopyCommand"
SECRET = "0123456789abcdef0123456789abcdef"


def id_of(to: S3TO) -> str:
    from stores.backends.s3_config import s3_config

    return s3_config(to, StoreSettings(roots=(), runtime_dir=Path("/run"))).id


def zone(shelf: Shelf, directory: Path, key: str = SECRET) -> Zone:
    """As another agent of the zone reads it."""
    store = shelf.s3()
    assert store.secretKey is not None
    file = directory / f"{key[:4]}.toml"
    file.write_text(
        f'key = "{key}"\n[[stores]]\nendPoint = "{store.endPoint}"\nbucketName = "{store.bucketName}"\n'
        f'accessKey = "{store.accessKey}"\nsecretKey = "{store.secretKey.reveal()}"\n'
    )
    return read_zone(file, ["nfs://staging.invalid/s3"], id_of)


@pytest.fixture
async def site(shelf: Shelf, tmp_path: Path) -> AsyncIterator[Place]:
    async with standing(shelf.here, tmp_path / "journal", zone(shelf, tmp_path)) as found:
        yield found


def in_bucket(shelf: Shelf) -> set[str]:
    client = shelf.seaweed.client()
    try:
        assert uploads(client, shelf.bucket) == []
        return keys(client, shelf.bucket)
    finally:
        client.close()


def disk(site: Place, name: str) -> str:
    return content_of(site.world.root / "pool" / name, ImageFormat.QCOW2)


def made(answer: dict[str, Any]) -> dict[str, Any]:
    assert answer["result"], answer
    ((_, fields),) = answer["newData"].items()
    return dict(fields)


async def staged(site: Place, shelf: Shelf, key: str = KEY, **fields: Any) -> dict[str, Any]:
    """What a secondary storage VM answers to the first of the two copies."""
    source = template(s3(shelf.s3()), key, format="QCOW2", **fields)
    return await site.ssvm(COPY, srcTO=source, destTO=template(NAME, key.rsplit("/", 2)[0]))


async def test_a_template_is_deployed_by_two_copies_of_which_the_first_is_none(
    shelf: Shelf, site: Place, disk_images: DiskImages, tmp_path: Path
) -> None:
    image = disk_images["qcow2"]
    shelf.put("s3", image.path, KEY)
    size = image.path.stat().st_size
    assert (await site.ssvm(f"{API}.SecStorageSetupCommand", store=NAME))["result"]
    stats = await site.ssvm(f"{API}.GetStorageStatsCommand", store=NAME)
    assert (stats["usedBytes"], stats["capacityBytes"]) == (0, 2**63 - 1)

    before = shelf.fetched()
    answer = made(await staged(site, shelf, size=image.virtual_size))
    assert shelf.fetched() == before
    assert (answer["size"], answer["physicalSize"], answer["format"]) == (image.virtual_size, size, "QCOW2")
    assert answer["path"].startswith("template/tmpl/2/201/")
    assert answer["path"].endswith("/debian.qcow2")
    assert shelf.s3().accessKey not in answer["path"]

    source = template(NAME, answer["path"], format="QCOW2")
    copied = made(await site.host(COPY, srcTO=source, destTO=template(site.pool(), uuid="t-201")))
    assert copied["path"] == "t-201"
    assert disk(site, "t-201") == image.content
    assert shelf.fetched() > before

    # The server lets go of what it thinks was staged, twice; and the next one has it staged again.
    for _ in range(2):
        assert (await site.ssvm(f"{STORAGE}.DeleteCommand", data=template(NAME, answer["path"])))["result"]
    assert in_bucket(shelf) == {KEY}
    assert made(await staged(site, shelf))["path"] == answer["path"]


async def test_another_agent_reads_what_this_one_wrote_and_one_of_another_zone_does_not(
    shelf: Shelf, disk_images: DiskImages, tmp_path: Path
) -> None:
    """A new process, with nothing but the file: as after a restart, or on another host."""
    image = disk_images["qcow2"]
    shelf.put("s3", image.path, KEY)
    async with standing(shelf.here, tmp_path / "one", zone(shelf, tmp_path)) as one:
        path = made(await staged(one, shelf))["path"]
    async with standing(shelf.here, tmp_path / "two", zone(shelf, tmp_path)) as two:
        source = template(NAME, path, format="QCOW2")
        assert made(await two.host(COPY, srcTO=source, destTO=template(two.pool(), uuid="t")))["path"] == "t"
        assert disk(two, "t") == image.content
    async with standing(shelf.here, tmp_path / "three", zone(shelf, tmp_path, "f" * 32)) as three:
        refused = await three.host(COPY, srcTO=source, destTO=template(three.pool(), uuid="t-2"))
        assert (refused["class"], refused["result"]) == ("CopyCmdAnswer", False)
        assert refused["details"].startswith("InvalidReference: ")
        assert three.left() == ["t"]


async def test_what_is_not_there_is_not_staged_and_what_changed_is_not_used(
    shelf: Shelf, site: Place, disk_images: DiskImages
) -> None:
    missing = await staged(site, shelf)
    assert (missing["result"], missing["details"].partition(":")[0]) == (False, "NotFound")
    shelf.put("s3", disk_images["qcow2"].path, KEY)
    path = made(await staged(site, shelf))["path"]
    shelf.put("s3", disk_images["raw"].path, KEY)
    changed = await site.host(COPY, srcTO=template(NAME, path), destTO=template(site.pool(), uuid="t"))
    assert (changed["result"], changed["details"].partition(":")[0]) == (False, "ObjectChanged")
    assert site.left() == []
    away = {"com.cloud.agent.api.to.S3TO": {**s3(shelf.s3())["com.cloud.agent.api.to.S3TO"], "bucketName": "elsewhere"}}
    strange = await site.ssvm(COPY, srcTO=template(away, KEY), destTO=template(NAME, "template/tmpl/2/201"))
    assert (strange["result"], strange["details"].partition(":")[0]) == (False, "PolicyRefused")


async def test_backups_go_straight_and_come_back_by_name(shelf: Shelf, site: Place) -> None:
    created = await site.host(f"{STORAGE}.CreateObjectCommand", data=volume(site.pool(), uuid="v", size=8 * MiB))
    assert created["result"], created
    path = None
    for number in (31, 32):
        qemu_io(site.world.root / "pool" / "v", ImageFormat.QCOW2, f"write -P {number} {number}k 64k")
        its_volume = volume(site.pool(), "v")[f"{TO}.VolumeObjectTO"]
        taken = await site.host(
            f"{STORAGE}.CreateObjectCommand", data=snapshot(site.pool(), name=f"snap-{number}", volume=its_volume)
        )
        backed_up = await site.host(
            COPY,
            srcTO=snapshot(site.pool(), taken["data"][f"{TO}.SnapshotObjectTO"]["path"]),
            destTO=snapshot(s3(shelf.s3()), "snapshots/2/12", parentSnapshotPath=path),
            cacheTO=snapshot(NAME, "snapshots/2/12"),
        )
        parent, path = path, made(backed_up)["path"]
    content = disk(site, "v")

    # The server has the chain staged, one by one, before it asks for the volume.
    assert parent is not None
    chain = [
        made(await site.ssvm(COPY, srcTO=snapshot(s3(shelf.s3()), key), destTO=snapshot(NAME, "snapshots/2/12")))[
            "path"
        ]
        for key in (parent, path)
    ]
    source = snapshot(NAME, chain[1], parents=chain[:1], parentSnapshotPath=chain[0])
    restored = made(await site.host(COPY, srcTO=source, destTO=volume(site.pool(), uuid="r")))
    assert restored["path"] == "r"
    assert disk(site, "r") == content


async def test_a_volume_goes_out_by_an_object_of_its_own_that_goes_with_its_path(shelf: Shelf, site: Place) -> None:
    """From the first answer on the content is in S3: the volume may change, and that does not show."""
    await site.host(f"{STORAGE}.CreateObjectCommand", data=volume(site.pool(), uuid="v", size=8 * MiB))
    qemu_io(site.world.root / "pool" / "v", ImageFormat.QCOW2, "write -P 7 1M 64k")
    content = disk(site, "v")
    paths = []
    for _ in range(2):  # the second is another one
        source, target = (
            volume(site.pool(), "v", format="QCOW2"),
            volume(NAME, "volumes/2/12", uuid="v-uuid", format="QCOW2"),
        )
        paths.append(made(await site.host(COPY, srcTO=source, destTO=target))["path"])
    assert len({*paths}) == len(in_bucket(shelf)) == 2
    qemu_io(site.world.root / "pool" / "v", ImageFormat.QCOW2, "write -P 8 1M 64k")

    out = made(
        await site.ssvm(
            COPY,
            srcTO=volume(NAME, paths[0], format="QCOW2"),
            destTO=volume(s3(shelf.s3()), "volumes/2/12", format="QCOW2"),
        )
    )
    assert out["path"] == "volumes/2/12/v-uuid.qcow2"
    back = await site.host(
        COPY, srcTO=volume(NAME, paths[1], format="QCOW2"), destTO=volume(site.pool(), uuid="w", format="QCOW2")
    )
    assert made(back)["path"] == "w"
    assert disk(site, "w") == content
    for path in paths:
        assert (await site.ssvm(f"{STORAGE}.DeleteCommand", data=volume(NAME, path)))["result"]
    assert in_bucket(shelf) == {"volumes/2/12/v-uuid.qcow2"}


async def test_a_copy_that_is_asked_for_again_while_it_runs_is_one(shelf: Shelf, site: Place) -> None:
    await site.host(f"{STORAGE}.CreateObjectCommand", data=volume(site.pool(), uuid="v", size=8 * MiB))
    source, target = volume(site.pool(), "v", format="QCOW2"), volume(NAME, "volumes/2/12", uuid="u", format="QCOW2")
    first, second = await asyncio.gather(*(site.host(COPY, srcTO=source, destTO=target) for _ in range(2)))
    assert made(first)["path"] == made(second)["path"]
    assert len(in_bucket(shelf)) == 1


async def test_a_volume_that_cannot_be_read_leaves_nothing_in_s3(shelf: Shelf, site: Place) -> None:
    source, target = volume(site.pool(), "gone", format="QCOW2"), volume(NAME, "volumes/2/12", uuid="u")
    answer = await site.host(COPY, srcTO=source, destTO=target)
    assert (answer["class"], answer["result"]) == ("CopyCmdAnswer", False)
    assert in_bucket(shelf) == set()
