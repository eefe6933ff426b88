"""A snapshot, backed up or in its pool, becomes one image of an image store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hypervisors.backups.manifest import BrokenChain
from hypervisors.contract import HypervisorType
from hypervisors.explaining import How
from hypervisors.verbs import Copy
from stores.errors import AlreadyExists
from stores.to import DataTO, ImageFormat, SnapshotObjectTO, TemplateObjectTO, VolumeObjectTO
from tests.buckets import keys, uploads
from tests.doubles.backups import SIZE, Lab, ref_of
from tests.doubles.disk_images import content_of
from tests.doubles.shelf import Shelf


def image(shelf: Shelf, image_format: ImageFormat | None = None) -> TemplateObjectTO:
    return TemplateObjectTO(path="template/tmpl/2/9/u/t", format=image_format, imageDataStore=shelf.s3())


async def flattened(lab_: Lab, source: SnapshotObjectTO, target: DataTO) -> DataTO:
    return (await lab_.here.operations.copy(lab_.call(), Copy(source, target))).data


def content(shelf: Shelf, tmp_path: Path, key: str, image_format: ImageFormat) -> str:
    client: Any = shelf.seaweed.client()
    try:
        client.download_file(shelf.bucket, key, str(tmp_path / "object"))
    finally:
        client.close()
    return content_of(tmp_path / "object", image_format)


@pytest.mark.parametrize("image_format", [None, ImageFormat.RAW])
@pytest.mark.parametrize("where", ["backup", "pool"])
async def test_the_disk_is_that_of_the_snapshot(
    shelf: Shelf, chain: Lab, tmp_path: Path, where: str, image_format: ImageFormat | None
) -> None:
    chain.write("write -P 9 0 64k")  # later than the snapshot
    source = chain.remote("tuesday") if where == "backup" else chain.local("tuesday")
    made = await flattened(chain, source, image(shelf, image_format))
    assert isinstance(made, TemplateObjectTO)
    expected = image_format or ImageFormat.QCOW2
    assert (made.path, made.size, made.format) == ("template/tmpl/2/9/u/t", SIZE, expected)
    assert content(shelf, tmp_path, "template/tmpl/2/9/u/t", expected) == chain.contents["tuesday"]
    assert made.physicalSize == (tmp_path / "object").stat().st_size
    with pytest.raises(AlreadyExists):
        await flattened(chain, source, image(shelf))


async def test_a_volume_is_made_as_well(shelf: Shelf, chain: Lab, tmp_path: Path) -> None:
    target = VolumeObjectTO(path="volumes/2/7/v", dataStore=shelf.s3())
    assert (await flattened(chain, chain.remote("monday"), target)).path == "volumes/2/7/v"
    assert content(shelf, tmp_path, "volumes/2/7/v", ImageFormat.QCOW2) == chain.contents["monday"]


@pytest.mark.parametrize("damage", ["gone", "changed"])
async def test_of_a_damaged_chain_nothing_is_made(shelf: Shelf, chain: Lab, damage: str) -> None:
    client: Any = shelf.seaweed.client()
    try:
        if damage == "gone":
            client.delete_object(Bucket=shelf.bucket, Key=ref_of("monday"))
        else:
            client.put_object(Bucket=shelf.bucket, Key=ref_of("monday"), Body=b"other")
        before = keys(client, shelf.bucket)
        with pytest.raises(BrokenChain):
            await flattened(chain, chain.remote("tuesday"), image(shelf))
        assert (keys(client, shelf.bucket), uploads(client, shelf.bucket)) == (before, [])
    finally:
        client.close()


async def test_it_is_explained(shelf: Shelf) -> None:
    source = SnapshotObjectTO(path=ref_of("monday"), dataStore=shelf.s3())
    told = shelf.here.operations.explain(HypervisorType.KVM, Copy(source, image(shelf)))
    assert (told.operation, told.how, told.refusal) == ("make an image of a snapshot", How.LAID_OUT, None)
