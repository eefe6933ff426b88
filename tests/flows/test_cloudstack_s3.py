"""S3 as the only secondary storage: everything that a management server does with templates, volumes and snapshots, as it asks
for it; the content is compared at every step, and in the end nothing is left."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from stores.to import ImageFormat
from tests.buckets import keys, uploads
from tests.doubles.cloudstack_place import API, STORAGE, TO, Place, s3, snapshot, standing, template, volume
from tests.doubles.disk_images import DiskImages, content_of
from tests.doubles.shelf import Shelf
from tests.images import qemu_io

TEMPLATE = "template/tmpl/2/201/201-2-aaaa"
SNAPSHOTS = "snapshots/2/12"


@pytest.fixture
async def site(shelf: Shelf, tmp_path: Path) -> AsyncIterator[Place]:
    async with standing(shelf.here, tmp_path / "journal") as found:
        yield found


def in_bucket(shelf: Shelf) -> tuple[set[str], list[tuple[str, str]]]:
    client = shelf.seaweed.client()
    try:
        return keys(client, shelf.bucket), uploads(client, shelf.bucket)
    finally:
        client.close()


def disk(site: Place, name: str) -> str:
    """The hash of what a guest would read."""
    return content_of(site.world.root / "pool" / name, ImageFormat.QCOW2)


async def registered(site: Place, shelf: Shelf, url: str, **fields: Any) -> dict[str, Any]:
    """The last answer about a download, when it has ended."""
    asked = {
        "url": url,
        "_store": s3(shelf.s3()),
        "installPath": TEMPLATE,
        "id": 201,
        "format": "QCOW2",
        "resourceType": "TEMPLATE",
        **fields,
    }
    answer = await site.ssvm(f"{STORAGE}.DownloadCommand", **asked)
    while answer["downloadStatus"] == "DOWNLOAD_IN_PROGRESS":
        await asyncio.sleep(0.02)
        answer = await site.ssvm(
            f"{STORAGE}.DownloadProgressCommand", jobId=answer["jobId"], request="GET_STATUS", **asked
        )
    return answer


async def test_the_life_of_a_template_a_volume_and_its_snapshots(
    shelf: Shelf, site: Place, disk_images: DiskImages
) -> None:
    image, store = disk_images["qcow2"], s3(shelf.s3())
    http, name = shelf.put("http", image.path, "debian.qcow2")
    url = f"{http.uri.reveal().rstrip('/')}/{name}"  # type: ignore[union-attr]

    assert (await site.ssvm(f"{API}.SecStorageSetupCommand", store=store))["result"]
    checksum = hashlib.md5(image.path.read_bytes()).hexdigest()
    made = await registered(site, shelf, url, checksum=checksum)
    assert (made["result"], made["downloadStatus"], made["downloadPct"]) == (True, "DOWNLOADED", 100), made
    assert (made["installPath"], made["templateSize"]) == (f"{TEMPLATE}/debian.qcow2", image.virtual_size)
    assert made["templatePhySicalSize"] == image.path.stat().st_size
    listed = await site.ssvm(f"{API}.storage.ListTemplateCommand", store=store)
    assert {key: (prop["installPath"], prop["id"]) for key, prop in listed["templateInfos"].items()} == {
        "201-2-aaaa": (f"{TEMPLATE}/debian.qcow2", 201)
    }
    digest = await site.ssvm(f"{API}.ComputeChecksumCommand", store=store, templatePath=made["installPath"])
    assert digest["details"] == checksum

    # A template to the pool, and a volume of it.
    source = template(store, made["installPath"], format="QCOW2", checksum=checksum)
    copied = await site.host(f"{STORAGE}.CopyCommand", srcTO=source, destTO=template(site.pool(), uuid="t-201"))
    assert copied["result"], copied
    clone = await site.host(
        f"{STORAGE}.CopyCommand", srcTO=template(site.pool(), "t-201"), destTO=volume(site.pool(), uuid="v-12")
    )
    assert clone["result"], clone
    assert disk(site, "v-12") == image.content

    # Two snapshots, backed up: the second builds on the first, and neither stays in the pool.
    contents, path = {}, ""
    for number in (31, 32):
        qemu_io(site.world.root / "pool" / "v-12", ImageFormat.QCOW2, f"write -P {number} {number}k 64k")
        its_volume = volume(site.pool(), "v-12")[f"{TO}.VolumeObjectTO"]
        taken = await site.host(
            f"{STORAGE}.CreateObjectCommand", data=snapshot(site.pool(), name=f"snap-{number}", volume=its_volume)
        )
        assert taken["result"], taken
        local = taken["data"][f"{TO}.SnapshotObjectTO"]["path"]
        backed_up = await site.host(
            f"{STORAGE}.CopyCommand",
            srcTO=snapshot(site.pool(), local),
            destTO=snapshot(store, SNAPSHOTS, parentSnapshotPath=path or None, parents=[path] if path else []),
            cacheTO=snapshot({"com.cloud.agent.api.to.NfsTO": {"_url": "nfs://192.0.2.1/cache"}}, SNAPSHOTS),
            options={"fullSnapshot": "false"},
        )
        assert backed_up["result"], backed_up
        data = backed_up["newData"][f"{TO}.SnapshotObjectTO"]
        assert data.get("parentSnapshotPath") == (path or None)
        path = data["path"]
        assert path == f"{SNAPSHOTS}/snap-{number}"
        contents[path] = disk(site, "v-12")
        gone = await site.host(
            f"{STORAGE}.RevertSnapshotCommand",
            dataOnPrimaryStorage=snapshot(site.pool(), local)[f"{TO}.SnapshotObjectTO"],
        )
        assert (gone["result"], gone["details"].partition(":")[0]) == (False, "NotFound")

    # Volumes and a template out of the backups.
    for number, (path, content) in enumerate(contents.items()):
        restored = await site.host(
            f"{STORAGE}.CopyCommand", srcTO=snapshot(store, path), destTO=volume(site.pool(), uuid=f"r-{number}")
        )
        assert restored["result"], restored
        assert disk(site, f"r-{number}") == content
    flattened = await site.ssvm(
        f"{STORAGE}.CopyCommand",
        srcTO=snapshot(store, path),
        destTO=template(store, "template/tmpl/2/202/202-2-bbbb", uuid="t-202"),
    )
    assert flattened["result"], flattened
    of_snapshot = flattened["newData"][f"{TO}.TemplateObjectTO"]
    again = await site.host(
        f"{STORAGE}.CopyCommand",
        srcTO=template(store, of_snapshot["path"], format=of_snapshot["format"]),
        destTO=template(site.pool(), uuid="t-202"),
    )
    assert again["result"], again
    assert disk(site, "t-202") == contents[path]

    # Away with everything, the first backup before the second, which is independent of it then.
    for backup in contents:
        deleted = await site.ssvm(f"{STORAGE}.DeleteCommand", data=snapshot(store, backup))
        assert deleted["result"], deleted
    for key in (made["installPath"], of_snapshot["path"]):
        assert (await site.ssvm(f"{STORAGE}.DeleteCommand", data=template(store, key)))["result"]
    for name in ("v-12", "r-0", "r-1"):
        assert (await site.host(f"{STORAGE}.DeleteCommand", data=volume(site.pool(), name)))["result"]
    for name in ("t-201", "t-202"):
        assert (await site.host(f"{STORAGE}.DeleteCommand", data=template(site.pool(), name)))["result"]
    assert site.left() == []
    assert in_bucket(shelf) == (set(), [])


async def test_a_template_whose_checksum_is_wrong_is_not_registered(
    shelf: Shelf, site: Place, disk_images: DiskImages
) -> None:
    http, name = shelf.put("http", disk_images["qcow2"].path, "debian.qcow2")
    url = f"{http.uri.reveal().rstrip('/')}/{name}"  # type: ignore[union-attr]
    made = await registered(site, shelf, url, checksum="0" * 32)
    assert (made["result"], made["downloadStatus"]) == (False, "DOWNLOAD_ERROR")
    assert made["errorString"].startswith("ChecksumMismatch: ")
    assert in_bucket(shelf) == (set(), [])
    # The same again is tried again, and is not answered from memory.
    again = await registered(site, shelf, url)
    assert again["downloadStatus"] == "DOWNLOADED"
