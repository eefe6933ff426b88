"""Disks of images that are read at random: by their map, or by qemu-nbd over the bridge."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hypervisors.contract import ImageRefused, ImageSpec, Source
from hypervisors.digesting import DigestingReader
from hypervisors.narrowing import as_reader
from hypervisors.qemu.disks import ForeignDisks
from stores.backends.filesystem import FilesystemStore
from stores.contract import Kind, MiB, RangeReader
from stores.to import ImageFormat
from stores.tools.process import ToolRunner
from stores.transfer.engine import TransferEngine
from tests.doubles.disk_images import qemu_img

SIZE = 24 * MiB


def content() -> bytes:
    """Data at both ends and a hole between."""
    rng = random.Random(5)
    return rng.randbytes(3 * MiB) + bytes(SIZE - 3 * MiB - 4096) + rng.randbytes(4096)


@pytest.fixture
async def disks(engine: TransferEngine, tmp_path: Path) -> AsyncIterator[ForeignDisks]:
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    yield ForeignDisks(engine, ToolRunner(), run)
    assert [path for path in run.rglob("*") if not path.is_dir()] == []


async def by_extents(disk: RangeReader) -> bytes:
    """Only what is said to be data is read."""
    found = bytearray(SIZE)
    for extent in await disk.extents(0, SIZE):
        if not extent.zero:
            found[extent.offset : extent.offset + extent.length] = await disk.read(extent.offset, extent.length)
    return bytes(found)


def store_of(engine: TransferEngine, folder: Path) -> FilesystemStore:
    return FilesystemStore(folder, engine, id="images", allowed=[folder])


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        (ImageFormat.QCOW2, ()),
        (ImageFormat.QCOW2, ("-c",)),
        (ImageFormat.QCOW2, ("-o", "cluster_size=4k")),
        (ImageFormat.QCOW2, ("-o", "compat=0.10")),
        (ImageFormat.VHDX, ()),
        (ImageFormat.VMDK, ("-o", "subformat=streamOptimized")),
    ],
)
async def test_the_disk_of_an_image(
    disks: ForeignDisks, tmp_path: Path, image_format: ImageFormat, options: tuple[str, ...]
) -> None:
    (tmp_path / "raw").write_bytes(content())
    driver = image_format.value.lower()
    qemu_img("convert", "-f", "raw", "-O", driver, *options, str(tmp_path / "raw"), str(tmp_path / "image"))
    store = store_of(disks.engine, tmp_path)
    async with store.present(await store.stat("image"), Kind.RANGE_READER) as presentation:
        digesting = DigestingReader(as_reader(presentation), "sha256", disks.engine)
        async with disks.opened(Source(digesting, ImageSpec(image_format))) as disk:
            assert disk.info.size == SIZE
            assert await by_extents(disk) == content()
            assert await disk.read(MiB - 100, 5 * MiB) == content()[MiB - 100 :][: 5 * MiB]
        found = await digesting.finish()
    assert found == {"sha256": hashlib.sha256((tmp_path / "image").read_bytes()).hexdigest()}


async def test_a_table_that_cannot_be(disks: ForeignDisks, tmp_path: Path) -> None:
    """Which names a place beyond the image's end."""
    qemu_img("create", "-f", "qcow2", str(tmp_path / "image"), str(SIZE))
    image = bytearray((tmp_path / "image").read_bytes())
    at = int.from_bytes(image[40:48], "big")
    image[at : at + 8] = (1 << 40 | 1 << 63).to_bytes(8, "big")
    (tmp_path / "image").write_bytes(image)
    store = store_of(disks.engine, tmp_path)
    async with store.present(await store.stat("image"), Kind.RANGE_READER) as presentation:
        opening = disks.opened(Source(as_reader(presentation), ImageSpec(ImageFormat.QCOW2)))
        with pytest.raises(ImageRefused):
            await opening.__aenter__()
