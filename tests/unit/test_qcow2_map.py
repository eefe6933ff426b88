"""Maps of qcow2 images that others made: what they say of a disk, against qemu-img, and what is refused."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from uuid import UUID

import pytest

from hypervisors.contract import ImageRefused
from hypervisors.images.mapped import MappedDisk
from hypervisors.images.overlay import Layer
from hypervisors.images.pieces import Metadata
from hypervisors.images.qcow2_map import read_map
from hypervisors.images.sized import Sized
from hypervisors.images.streaming import LayoutReader
from hypervisors.images.vhdx_stream import Identity, layout
from stores.contract import KiB, MiB
from stores.transfer.engine import TransferEngine
from tests.disk_histories import sha
from tests.doubles.disk_images import qemu_img
from tests.images import AskedReader, BytesReader

SIZE = 40 * MiB


def disk(seed: int = 1) -> bytes:
    """Scattered data, some of it zeroes that were written."""
    rng = random.Random(seed)
    content = bytearray(SIZE)
    for _ in range(30):
        length = rng.choice([512, 4096, 100 * KiB, 2 * MiB])
        start = rng.randrange(0, SIZE - length, 512)
        content[start : start + length] = rng.choice([rng.randbytes(length), bytes(length)])
    content[-512:] = rng.randbytes(512)
    return bytes(content)


def image(folder: Path, content: bytes, *options: str) -> bytes:
    raw, path = folder / "raw", folder / "qcow2"
    raw.write_bytes(content)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, str(raw), str(path))
    return path.read_bytes()


async def mapped(content: bytes) -> Layer | None:
    engine = TransferEngine()
    try:
        return await read_map(BytesReader(content), engine)
    finally:
        await engine.aclose()


@pytest.mark.parametrize("cluster", ["512", "4096", "65536", "2M"])
@pytest.mark.parametrize("compat", ["0.10", "1.1"])
async def test_what_it_maps_is_the_disk(tmp_path: Path, cluster: str, compat: str, engine: TransferEngine) -> None:
    given = disk()
    made = image(tmp_path, given, "-o", f"cluster_size={cluster},compat={compat}")
    reader = BytesReader(made)
    layer = await mapped(made)
    assert layer is not None
    found = MappedDisk(reader, layer, engine.network.of(reader))
    assert sha(await found.read(0, SIZE)) == sha(given)
    for start, length in ((0, 1), (SIZE - 7, 7), (MiB - 3, 3 * MiB), (511, 1025)):
        assert await found.read(start, length) == given[start : start + length]
    at, zeroes = 0, 0
    for extent in await found.extents(0, SIZE):
        assert extent.offset == at
        at += extent.length
        if extent.zero:
            zeroes += extent.length
            assert not any(given[extent.offset : at])
    assert at == SIZE
    assert zeroes > 0
    assert sha(b"".join([bytes(piece) async for piece in engine.stream(found)])) == sha(given)


async def test_holes_do_not_part_what_lies_together(tmp_path: Path, engine: TransferEngine) -> None:
    """A disk with holes, made longer and laid out as VHDX: its object is still asked for in few requests, each of which is read
    to its end."""
    given = b"".join(bytes([number]) * 64 * KiB + bytes(192 * KiB) for number in range(1, 100))
    made = image(tmp_path, given)
    reader, layer = AskedReader(made), await mapped(made)
    assert layer is not None
    found = MappedDisk(reader, layer, engine.network.of(reader))
    longer = Sized(found, len(given), len(given) + 3 * MiB)
    assert sha(await longer.read(0, len(given) + 3 * MiB)) == sha(given + bytes(3 * MiB))
    reader.asked.clear()
    ids = Identity(UUID(int=1), UUID(int=2), UUID(int=3))
    laid_out = layout(len(given) + 3 * MiB, await found.extents(0, len(given)), identity=ids)
    read = await LayoutReader(laid_out, longer, engine.network.of(longer)).read(0, laid_out.size)
    expected = [
        piece.content if isinstance(piece, Metadata) else given[piece.offset : piece.offset + piece.length]
        for piece in laid_out.pieces()
    ]
    assert sha(read) == sha(b"".join(expected))
    assert sum(length for _, length in reader.asked) == 99 * 64 * KiB
    assert len(reader.asked) < 10  # and not one for each of the 99


async def test_what_only_qemu_reads(tmp_path: Path) -> None:
    assert await mapped(image(tmp_path, disk(), "-c")) is None


async def test_clusters_that_were_zeroed(tmp_path: Path, engine: TransferEngine) -> None:
    """As allocated ones that read as zeroes, which version 3 has."""
    path = tmp_path / "qcow2"
    path.write_bytes(image(tmp_path, b"\1" * SIZE))
    qemu_img("resize", "-f", "qcow2", "--shrink", "-q", str(path), str(SIZE - MiB))
    content = bytearray(path.read_bytes())
    (l1_offset,) = struct.unpack_from(">Q", content, 40)
    (l2_offset,) = struct.unpack_from(">Q", content, l1_offset)
    place = (l2_offset & 0x00FFFFFFFFFFFE00) + 8
    (entry,) = struct.unpack_from(">Q", content, place)
    struct.pack_into(">Q", content, place, entry | 1)
    layer = await mapped(bytes(content))
    assert layer is not None
    reader = BytesReader(bytes(content))
    found = await MappedDisk(reader, layer, engine.network.of(reader)).read(0, 192 * KiB)
    assert found == b"\1" * 64 * KiB + bytes(64 * KiB) + b"\1" * 64 * KiB


@pytest.mark.parametrize("what", ["l1", "l2", "cluster", "unaligned"])
async def test_tables_that_cannot_be(tmp_path: Path, what: str) -> None:
    content = bytearray(image(tmp_path, disk()))
    (l1_offset,) = struct.unpack_from(">Q", content, 40)
    (l2_offset,) = struct.unpack_from(">Q", content, l1_offset)
    l2_offset &= 0x00FFFFFFFFFFFE00
    beyond = (1 << 40) | (1 << 63)
    match what:
        case "l1":
            struct.pack_into(">Q", content, 40, 1 << 40)
        case "l2":
            struct.pack_into(">Q", content, l1_offset, beyond)
        case "cluster":
            struct.pack_into(">Q", content, l2_offset, beyond)
        case "unaligned":
            struct.pack_into(">Q", content, l2_offset, l2_offset + 512)
    with pytest.raises(ImageRefused) as refused:
        await mapped(bytes(content))
    assert refused.value.details["rule"] == "qcow2-tables"
