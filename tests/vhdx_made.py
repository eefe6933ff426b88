"""VHDX images for tests of reading them, and how they are read to their end."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from hypervisors.contract import ImageRefused
from hypervisors.images.vhdx_reading import VhdxDisk, disk_of, open_image
from hypervisors.images.vhdx_stream import layout
from stores.contract import Extent, GiB, KiB, MiB, RangeReader
from stores.transfer.engine import TransferEngine
from tests import vhdx_logs
from tests.disk_histories import finished
from tests.images import BytesReader
from tests.vhdx_histories import BLOCK, identity_of, parent_of

SOME = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
LARGEST = 64 * 1024 * GiB
METADATA, ITEMS, TABLE = 2 * MiB, 2 * MiB + 64 * KiB, 3 * MiB

ONES = b"1" * 4 * BLOCK
SMALL = finished(layout(2 * BLOCK, [Extent(0, 2 * BLOCK, zero=False)], identity=identity_of(0), block=BLOCK), ONES)
ENTRY = vhdx_logs.entry(
    [vhdx_logs.Data(TABLE + 4096, bytes(4096)), vhdx_logs.Zeroes(TABLE + 8192, 4096)], 5, 0, size=len(SMALL)
)


async def opened_chain(images: Sequence[bytes | bytearray | RangeReader]) -> VhdxDisk:
    engine = TransferEngine()
    try:
        readers = [image if isinstance(image, RangeReader) else BytesReader(bytes(image)) for image in images]
        return disk_of([await open_image(reader, engine) for reader in readers])
    finally:
        await engine.aclose()


async def whole_of(disk: RangeReader) -> bytes:
    assert disk.info.size is not None
    return await disk.read(0, disk.info.size)


async def rule_of(*images: bytes | bytearray | RangeReader) -> str:
    """Why it is refused, at the latest when all of it is read."""
    with pytest.raises(ImageRefused) as raised:
        await whole_of(await opened_chain(images))
    return str(raised.value.details["rule"])


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


def logged(*entries: bytes, at: int = 0, cut: int = 0) -> bytearray:
    """The small image, not closed, with that in its log, and that much cut off its end."""
    image = bytearray(SMALL[: len(SMALL) - cut])
    vhdx_logs.put(image, entries, at)
    vhdx_logs.mark_open(image)
    return image


def small_images() -> list[bytes]:
    """A disk, a child that has a part of a block, and a child of that."""
    images = []
    for number in range(3):
        made = layout(
            2 * BLOCK + 4096,
            [Extent(4096 * number, 4096, zero=False)],
            identity=identity_of(number),
            block=BLOCK,
            parent=parent_of(number) if number else None,
        )
        images.append(finished(made, bytes([number + 1]) * 3 * BLOCK))
    return images


PARENT, CHILD, _ = small_images()


def qemu_disk(directory: Path, size: int) -> Path:
    path = directory / "image.vhdx"
    command = ["qemu-img", "create", "-f", "vhdx", "-o", "block_size=1M", str(path), str(size)]
    subprocess.run(command, check=True, capture_output=True)
    return path
