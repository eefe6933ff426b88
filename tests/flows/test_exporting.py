"""Volumes sent to an image store: as their file is, or, where more than their content lies in it, as a new image."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

import pytest

from hypervisors.contract import ImageLocked, OperationUnsupported
from hypervisors.verbs import Copy
from stores.contract import MiB
from stores.errors import AlreadyExists, StorageError
from stores.to import DataStoreTO, DataTO, ImageFormat, TemplateObjectTO, VolumeObjectTO
from tests.buckets import keys, uploads
from tests.doubles.backups import SIZE, Lab, lab, linked_lab, read_by_libqcow
from tests.doubles.disk_images import content_of, file_hash, qemu_img
from tests.doubles.fault_proxy import FaultProxy
from tests.doubles.shelf import Shelf
from tests.doubles.world import Phases, World, running_qemu

REF = "template/tmpl/2/9/image"


async def sent(lab: Lab, to: DataStoreTO, **more: object) -> DataTO:
    target = TemplateObjectTO.model_validate({"path": REF, "imageDataStore": to.model_dump(), **more})
    target = target.model_copy(update={"imageDataStore": to})
    return (await lab.here.operations.copy(lab.call(), Copy(lab.volume, target))).data


@pytest.mark.parametrize("where", ["directory", "s3"])
@pytest.mark.parametrize("image_format", [ImageFormat.QCOW2, ImageFormat.RAW])
async def test_a_file_that_is_nothing_else_goes_as_it_is(shelf: Shelf, image_format: ImageFormat, where: str) -> None:
    to: DataStoreTO = shelf.s3() if where == "s3" else shelf.here.directory()
    found = await lab(shelf.here, to, image_format)
    made = await sent(found, to)
    assert isinstance(made, TemplateObjectTO)
    assert (made.path, made.size, made.format) == (REF, SIZE, image_format)
    assert made.physicalSize == found.path.stat().st_size
    back = VolumeObjectTO(uuid="back", dataStore=shelf.here.pool("other"), format=image_format)
    again = (await shelf.here.operations.copy(found.call(), Copy(made, back))).data
    assert file_hash(shelf.here.path(again)) == file_hash(found.path)
    assert await sent(found, to) == made
    found.write("write -P 9 2M 64k")
    with pytest.raises(AlreadyExists):
        await sent(found, to)


@pytest.mark.parametrize("target", [ImageFormat.QCOW2, ImageFormat.RAW])
@pytest.mark.parametrize("what", ["snapshots", "linked clone", "other format"])
async def test_what_is_not_its_content_stays(here: World, what: str, target: ImageFormat) -> None:
    """Above all what lies in snapshots: whoever gets the image must not find there what was deleted before."""
    to = here.directory()
    if what == "linked clone":
        found = await linked_lab(here, to)
    else:
        other = ImageFormat.RAW if target is ImageFormat.QCOW2 else ImageFormat.QCOW2
        found = await lab(here, to, other if what == "other format" else ImageFormat.QCOW2)
    if what == "snapshots":
        found.write("write -P 83 2M 64k")
        await found.snapshot("s1")
    found.write("write -P 5 2M 64k")
    assert found.volume.format is not None
    before = content_of(found.path, found.volume.format)
    await sent(found, to, format=target)
    image = here.root / "images" / REF
    assert content_of(image, target) == before
    assert bytes([83]) * 4096 not in image.read_bytes()
    if target is ImageFormat.QCOW2:
        info = json.loads(qemu_img("info", "-f", "qcow2", "--output=json", str(image)))
        assert "backing-filename" not in info
        assert "snapshots" not in info
        assert "bitmaps" not in info["format-specific"]["data"]
        assert read_by_libqcow(image) == before


async def test_refusals(here: World) -> None:
    to = here.directory()
    found = await lab(here, to)
    with pytest.raises(OperationUnsupported, match="VHD"):
        await sent(found, to, format=ImageFormat.VHD)
    async with running_qemu(found.path):
        with pytest.raises(ImageLocked):
            await sent(found, to)
    assert here.files("images") == set()


@pytest.mark.parametrize("where", ["directory", "s3"])
async def test_a_cancelled_one_leaves_nothing(shelf: Shelf, where: str) -> None:
    to: DataStoreTO = shelf.s3() if where == "s3" else shelf.here.directory()
    found = await lab(shelf.here, to, ImageFormat.RAW)
    with found.path.open("r+b") as file:
        file.truncate(48 * MiB)
    for delay in (0.0, 0.02, 0.06):
        progress = Phases()
        progress.wanted = "send"
        request = Copy(found.volume, TemplateObjectTO(path=REF, imageDataStore=to))
        sending = asyncio.create_task(shelf.here.operations.copy(shelf.here.call("c-x", progress), request))
        await progress.reached.wait()
        await asyncio.sleep(delay)
        sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending
        if not sending.cancelled():
            break
        client = shelf.seaweed.client()
        try:
            assert (keys(client, shelf.bucket), uploads(client, shelf.bucket)) == (set(), [])
        finally:
            client.close()
        if where == "directory":
            assert shelf.here.files("images") == set()


async def test_one_that_fails_leaves_nothing(shelf: Shelf) -> None:
    found = await lab(shelf.here, shelf.s3(), ImageFormat.RAW)
    async with FaultProxy(shelf.seaweed.port) as proxy:
        proxy.cut_after = 0
        with pytest.raises(StorageError):
            await sent(found, shelf.s3(port=proxy.port))
    client = shelf.seaweed.client()
    try:
        assert keys(client, shelf.bucket) == set()
    finally:
        client.close()
