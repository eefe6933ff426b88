"""A template from an image store becomes a template or a volume of a pool: every format from every store."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from hypervisors.verbs import Copy
from stores.contract import MiB
from stores.to import ImageFormat, TemplateObjectTO, VolumeObjectTO
from tests.doubles.disk_images import COMPRESSORS, DiskImages, content_of, file_hash, virtual_size
from tests.doubles.shelf import Shelf, template
from tests.doubles.world import Phases, records_of

NAMES = ["qcow2", "raw", "vhd", "vhd-fixed", "vhdx", "vmdk", "vmdk-stream", "iso"]
STORES = ["s3", "http", "directory"]


# ------------------------------------------------------------------------------------- every format, every store


@pytest.mark.parametrize("where", STORES)
@pytest.mark.parametrize("name", NAMES)
async def test_template_to_template(shelf: Shelf, disk_images: DiskImages, name: str, where: str) -> None:
    here, image = shelf.here, disk_images[name]
    store, path = shelf.put(where, image.path)
    progress = Phases()
    made = (
        await here.operations.copy(
            here.call(progress=progress),
            Copy(template(store, path, image.format), TemplateObjectTO(uuid="t1", imageDataStore=here.pool())),
        )
    ).data
    assert isinstance(made, TemplateObjectTO)
    expected = ImageFormat.ISO if image.format is ImageFormat.ISO else ImageFormat.QCOW2
    assert (made.path, made.format, made.size) == ("t1", expected, image.virtual_size)
    assert content_of(here.path(made), expected) == image.content
    assert made.physicalSize == here.path(made).stat().st_size
    assert here.files() == records_of("t1")
    if image.format is expected:
        assert file_hash(here.path(made)) == file_hash(image.path)
    moved = "transfer" if image.format is expected else "convert"
    assert progress.seen == ["inspect", moved, "check", "publish"]


@pytest.mark.parametrize(
    ("name", "where", "target"),
    [(name, STORES[i % 3], target) for i, name in enumerate(NAMES) for target in (ImageFormat.QCOW2, ImageFormat.RAW)],
)
async def test_template_to_volume(
    shelf: Shelf, disk_images: DiskImages, name: str, where: str, target: ImageFormat
) -> None:
    here, image = shelf.here, disk_images[name]
    store, path = shelf.put(where, image.path)
    size = image.virtual_size + 4 * MiB
    made = (
        await here.operations.copy(
            here.call(),
            Copy(
                template(store, path, image.format),
                VolumeObjectTO(uuid="v1", dataStore=here.pool(), format=target, size=size),
            ),
        )
    ).data
    assert isinstance(made, VolumeObjectTO)
    assert (made.path, made.format, made.size) == ("v1", target, size)
    assert virtual_size(here.path(made), target) == size
    assert content_of(here.path(made), target) == content_of(image.path, image.format, size=size)
    assert here.files() == records_of("v1")


# ----------------------------------------------------------------------------------- only in order, or compressed


@pytest.mark.parametrize("name", ["qcow2", "raw", "vhd-fixed", "vhdx", "vmdk-stream"])
async def test_template_from_a_server_without_ranges(shelf: Shelf, disk_images: DiskImages, name: str) -> None:
    here, image = shelf.here, disk_images[name]
    store, path = shelf.put("norange", image.path)
    made = (
        await here.operations.copy(
            here.call(), Copy(template(store, path, image.format), VolumeObjectTO(uuid="v1", dataStore=here.pool()))
        )
    ).data
    assert made.format is not None
    assert content_of(here.path(made), made.format) == image.content
    assert here.files() == records_of("v1")


@pytest.mark.parametrize(
    ("name", "suffix", "where"),
    [
        ("qcow2", "gz", "s3"),
        ("qcow2", "zst", "norange"),
        ("raw", "bz2", "directory"),
        ("vhd", "xz", "s3"),
        ("vhd-fixed", "gz", "norange"),
        ("vmdk", "zst", "directory"),
        ("iso", "xz", "norange"),
        ("iso", "bz2", "s3"),
        ("vmdk-stream", "gz", "directory"),
    ],
)
async def test_compressed_template(
    shelf: Shelf, disk_images: DiskImages, tmp_path: Path, name: str, suffix: str, where: str
) -> None:
    """Also with a checksum, which is of the compressed bytes. Formats and compressions take turns over the stores: who
    decompresses does not know where the bytes come from."""
    here, image = shelf.here, disk_images[name]
    compressed = tmp_path / f"disk.{name}.{suffix}"
    compressed.write_bytes(COMPRESSORS[suffix](image.path.read_bytes()))
    store, path = shelf.put(where, compressed)
    checksum = "{SHA-256}" + file_hash(compressed)
    made = (
        await here.operations.copy(
            here.call(),
            Copy(
                template(store, path, image.format, checksum=checksum),
                TemplateObjectTO(uuid="t1", imageDataStore=here.pool()),
            ),
        )
    ).data
    assert made.format is not None
    assert content_of(here.path(made), made.format) == image.content
    assert here.files() == records_of("t1")


async def test_the_gate_tells_the_format_when_the_command_does_not(shelf: Shelf, disk_images: DiskImages) -> None:
    here, image = shelf.here, disk_images["vhdx"]
    store, path = shelf.put("s3", image.path)
    made = (
        await here.operations.copy(
            here.call(), Copy(template(store, path, None), TemplateObjectTO(uuid="t1", imageDataStore=here.pool()))
        )
    ).data
    assert content_of(here.path(made), ImageFormat.QCOW2) == image.content


# ------------------------------------------------------------------------------------------------------ checksums


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("qcow2", "s3"),
        ("qcow2", "norange"),
        ("qcow2", "directory"),
        ("raw", "http"),
        ("vhd", "s3"),
        ("vhd", "directory"),
        ("vhdx", "http"),
        ("vmdk-stream", "s3"),
        ("vmdk-stream", "norange"),
    ],
)
async def test_right_checksum(shelf: Shelf, disk_images: DiskImages, name: str, where: str) -> None:
    """In whatever way the image travels; and it travels no more for that."""
    here, image = shelf.here, disk_images[name]
    store, path = shelf.put(where, image.path)
    bare = hashlib.md5(image.path.read_bytes()).hexdigest()
    checksum = bare if name == "raw" else "{SHA-256}" + file_hash(image.path)
    fetched = [0]
    for uuid, given in (("without", None), ("with", checksum)):
        made = (
            await here.operations.copy(
                here.call(),
                Copy(
                    template(store, path, image.format, checksum=given),
                    TemplateObjectTO(uuid=uuid, imageDataStore=here.pool()),
                ),
            )
        ).data
        assert content_of(here.path(made), ImageFormat.QCOW2) == image.content
        fetched.append(shelf.fetched() - sum(fetched))
    if where in ("s3", "http"):
        assert fetched[2] < max(fetched[1], image.path.stat().st_size) * 1.25  # a conversion alone skips what is empty
