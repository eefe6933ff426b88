"""Objects between image stores, unchanged, and away by exactly their names."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest

from hypervisors.contract import HypervisorType, ImageRefused
from hypervisors.explaining import How
from hypervisors.verbs import Copy, Delete
from stores.errors import AlreadyExists, ChecksumMismatch, NotFound, StorageError, StoreUnsupported
from stores.to import DataTO, ImageFormat, TemplateObjectTO, VolumeObjectTO
from tests.buckets import keys, uploads
from tests.doubles.disk_images import DiskImages
from tests.doubles.shelf import Shelf, template
from tests.doubles.world import Phases


def in_bucket(shelf: Shelf, path: str) -> TemplateObjectTO:
    return TemplateObjectTO(path=path, imageDataStore=shelf.s3())


def content(shelf: Shelf, key: str) -> bytes:
    client: Any = shelf.seaweed.client()
    try:
        return bytes(client.get_object(Bucket=shelf.bucket, Key=key)["Body"].read())
    finally:
        client.close()


def left_in(shelf: Shelf) -> tuple[set[str], list[tuple[str, str]]]:
    """Objects of the bucket, and uploads that were begun."""
    client = shelf.seaweed.client()
    try:
        return keys(client, shelf.bucket), uploads(client, shelf.bucket)
    finally:
        client.close()


async def relay(shelf: Shelf, source: DataTO, target: DataTO, progress: Phases | None = None) -> DataTO:
    return (await shelf.here.operations.copy(shelf.here.call(progress=progress), Copy(source, target))).data


@pytest.mark.parametrize("where", ["s3", "http", "directory"])
@pytest.mark.parametrize("checked", [True, False])
async def test_a_template_goes_as_it_is(shelf: Shelf, disk_images: DiskImages, where: str, checked: bool) -> None:
    image = disk_images["qcow2"]
    store, path = shelf.put(where, image.path)
    checksum = hashlib.md5(image.path.read_bytes()).hexdigest() if checked else None
    source = template(store, path, None).model_copy(update={"checksum": checksum})
    progress = Phases()
    made = await relay(shelf, source, in_bucket(shelf, "template/tmpl/2/9/u/debian.qcow2"), progress)
    assert isinstance(made, TemplateObjectTO)
    assert (made.path, made.size, made.format) == (
        "template/tmpl/2/9/u/debian.qcow2",
        image.virtual_size,
        ImageFormat.QCOW2,
    )
    assert made.physicalSize == image.path.stat().st_size
    assert content(shelf, "template/tmpl/2/9/u/debian.qcow2") == image.path.read_bytes()
    assert progress.seen == ["inspect", "send", "publish"]
    again = Phases()
    assert await relay(shelf, source, in_bucket(shelf, "template/tmpl/2/9/u/debian.qcow2"), again) == made
    assert again.seen == ["inspect", "compare"]


@pytest.mark.parametrize("other", [b"x", None], ids=["shorter", "as long"])
async def test_other_content_under_that_name_stays(
    shelf: Shelf, disk_images: DiskImages, tmp_path: Path, other: bytes | None
) -> None:
    image = disk_images["qcow2"].path
    taken = tmp_path / "taken"
    taken.write_bytes(other or bytes(image.stat().st_size))
    shelf.put("s3", taken, "template/t")
    store, path = shelf.put("http", image)
    with pytest.raises(AlreadyExists):
        await relay(shelf, template(store, path, None), in_bucket(shelf, "template/t"))
    assert content(shelf, "template/t") == taken.read_bytes()


async def test_a_volume_goes_as_it_is(shelf: Shelf, disk_images: DiskImages) -> None:
    store, path = shelf.put("http", disk_images["raw"].path)
    source = VolumeObjectTO(path=path, format=ImageFormat.RAW, dataStore=store)
    made = await relay(shelf, source, VolumeObjectTO(path="volumes/2/7/v.raw", dataStore=shelf.s3()))
    assert (made.path, made.format) == ("volumes/2/7/v.raw", ImageFormat.RAW)
    assert content(shelf, "volumes/2/7/v.raw") == disk_images["raw"].path.read_bytes()


async def refused(shelf: Shelf, source: DataTO, error: type[StorageError]) -> None:
    """That, and nothing is where it was to go."""
    before = left_in(shelf)
    with pytest.raises(error):
        await relay(shelf, source, in_bucket(shelf, "template/tmpl/2/9/u/x"))
    assert left_in(shelf) == before


async def test_a_wrong_checksum_is_not_published(shelf: Shelf, disk_images: DiskImages) -> None:
    store, path = shelf.put("http", disk_images["qcow2"].path)
    wrong = template(store, path, None).model_copy(update={"checksum": "{SHA-1}" + "0" * 40})
    await refused(shelf, wrong, ChecksumMismatch)


async def test_what_the_gate_refuses_does_not_go_on(shelf: Shelf, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile.qcow2"
    hostile.write_bytes(b"QFI\xfb" + b"\x00" * 4096)
    store, path = shelf.put("http", hostile)
    await refused(shelf, template(store, path, ImageFormat.QCOW2), ImageRefused)


async def test_a_source_that_is_gone_or_only_in_order_is_refused(shelf: Shelf, disk_images: DiskImages) -> None:
    store, _ = shelf.put("http", disk_images["qcow2"].path)
    await refused(shelf, template(store, "nobody", None), NotFound)
    unranged, path = shelf.put("norange", disk_images["qcow2"].path)
    await refused(shelf, template(unranged, path, None), StoreUnsupported)


async def test_a_cancelled_copy_leaves_nothing(shelf: Shelf, disk_images: DiskImages) -> None:
    store, path = shelf.put("http", disk_images["qcow2"].path)
    progress = Phases()
    progress.wanted = "send"
    going = asyncio.create_task(relay(shelf, template(store, path, None), in_bucket(shelf, "template/t"), progress))
    await progress.reached.wait()
    going.cancel()
    with pytest.raises(asyncio.CancelledError):
        await going
    assert left_in(shelf) == (set(), [])


async def test_it_is_explained(shelf: Shelf, disk_images: DiskImages) -> None:
    store, path = shelf.put("http", disk_images["qcow2"].path)
    request = Copy(template(store, path, None), in_bucket(shelf, "template/t"))
    told = shelf.here.operations.explain(HypervisorType.KVM, request)
    assert (told.operation, told.how, told.refusal) == ("copy between image stores", How.IN_PLACE, None)
    back = shelf.here.operations.explain(HypervisorType.KVM, Copy(request.destination, request.source))
    assert (back.how, back.refusal_kind) == (How.REFUSED, "RequirementNotMet")


# ------------------------------------------------------------------------------------------------------------- deleting


async def test_exactly_what_is_named_is_deleted(shelf: Shelf, tmp_path: Path) -> None:
    """`.../12` is not the beginning of `.../120`."""
    small = tmp_path / "small"
    small.write_bytes(b"x")
    names = ["volumes/2/12/a", "volumes/2/12/b/c", "volumes/2/120/a", "volumes/2/13", "volumes/2/1"]
    for name in names:
        shelf.put("s3", small, name)

    async def delete(path: str) -> None:
        data = VolumeObjectTO(path=path, dataStore=shelf.s3())
        await shelf.here.operations.delete(shelf.here.call(), Delete(data))

    await delete("volumes/2/12")
    assert left_in(shelf)[0] == set(names[2:])
    await delete("volumes/2/12")
    await delete("volumes/2/13")
    await delete("volumes/2/nobody")
    assert left_in(shelf)[0] == {"volumes/2/1", "volumes/2/120/a"}
