"""Maps of VHDs read at random: ours, qemu's and libvhdi's judgement of them; and all that is refused."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hypervisors.contract import ImageRefused
from hypervisors.images.overlay import Layer, Overlay
from hypervisors.images.pieces import Data, ImageLayout, Metadata
from hypervisors.images.vhd_map import VhdMap, read_map
from hypervisors.images.vhd_stream import BLOCK, layout
from stores.contract import Extent, GiB, KiB, MiB, ObjectInfo, RangeReader
from stores.to import ImageFormat
from stores.transfer.engine import TransferEngine
from tests.disk_histories import finished, sha
from tests.images import BytesReader, content, disk_digest, make_vhd_by, qemu_io
from tests.laid_out import libvhdi
from tests.unit.test_vhd_reading import HOSTILE, SMALL_IMAGE, WHOLE, as_xapi_sends, resealed, whole
from tests.vhd_histories import VhdHistory, id_of, parent_of, vhd_histories

VHD = ImageFormat.VHD
SOME = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
LARGEST = 2040 * GiB


async def mapped(image: bytes, *, bitmaps: bool = True) -> tuple[VhdMap, list[tuple[int, int]]]:
    """The map, which is in order and inside disk and image, and what was read for it."""
    reader, engine = BytesReader(image), TransferEngine()
    try:
        found = await read_map(reader, engine, whole=not bitmaps)
    finally:
        await engine.aclose()
    end = 0
    for run in found.runs():
        assert end <= run.offset < run.offset + run.length <= found.virtual_size
        assert run.host is not None
        assert run.host + run.length <= len(image)
        end = run.offset + run.length
    return found, reader.reads


def read(image: bytes, found: VhdMap, below: bytes = b"") -> bytes:
    disk = bytearray(below[: found.virtual_size].ljust(found.virtual_size, b"\0"))
    for run in found.runs():
        assert run.host is not None
        disk[run.offset : run.offset + run.length] = image[run.host : run.host + run.length]
    return bytes(disk)


# ------------------------------------------------------------------------------------------------ what is read


@SOME
@given(history=vhd_histories(most=3))
async def test_a_chain_of_ours(history: VhdHistory) -> None:
    below = b""
    for number, (image, version) in enumerate(zip(history.images(), history.versions, strict=True)):
        found, _ = await mapped(image)
        assert (found.virtual_size, found.unique_id) == (len(version.content), id_of(number))
        assert found.parent_id == (id_of(number - 1) if number else None)
        below = read(image, found, below)
        assert sha(below) == sha(version.content)


@SOME
@given(history=vhd_histories(least=2, most=4, resized=False))
async def test_a_chain_as_backups_read_it_and_as_libvhdi_does(history: VhdHistory) -> None:
    images = history.images()
    maps = [(await mapped(image))[0] for image in images]
    size = maps[-1].virtual_size
    overlay = Overlay([Layer(found.virtual_size, found.runs()) for found in reversed(maps)], size)
    disk = bytearray(size)
    for part in overlay.parts(0, size):
        assert part.host is not None
        image = images[-1 - part.layer]
        disk[part.offset : part.end] = image[part.host : part.host + part.length]
    with libvhdi(images) as judge:
        assert sha(bytes(disk)) == sha(judge.read_buffer_at_offset(size, 0))


@pytest.mark.parametrize("size", [512, 5 * MiB + 1536, 3 * BLOCK])
@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("creator", [b"caml", b"qem2"])
async def test_qemus_images(tmp_path: Path, size: int, fixed: bool, creator: bytes) -> None:
    path = make_vhd_by(tmp_path / "image", creator, size, fixed=fixed)
    image = path.read_bytes()
    found, _ = await mapped(image)
    assert (found.virtual_size, found.parent_id) == (size, None)
    assert sha(read(image, found)) == disk_digest(path, VHD)


async def test_blocks_in_another_order_than_the_disks(tmp_path: Path) -> None:
    path, size = tmp_path / "image", 7 * MiB + 512
    command = ["qemu-img", "create", "-f", "vpc", "-o", "force_size=on", str(path), str(size)]
    subprocess.run(command, check=True, capture_output=True)
    qemu_io(path, VHD, f"write -P 3 {6 * MiB} {MiB + 512}", "write -P 1 0 64k", f"write -P 2 {4 * MiB} 1M")
    image = path.read_bytes()
    assert sha(read(image, (await mapped(image))[0])) == disk_digest(path, VHD)


async def test_bitmaps_are_read_only_where_they_may_say_something(tmp_path: Path) -> None:
    path = as_xapi_sends(whole(tmp_path))
    image = path.read_bytes()
    with_bitmaps, many = await mapped(image)
    without, few = await mapped(image, bitmaps=False)
    assert list(without.runs()) == list(with_bitmaps.runs())
    assert sha(read(image, without)) == sha(WHOLE)
    assert len(many) == len(few) + 3
    assert sum(length for _, length in few) < 70 * KiB


async def test_sectors_that_are_not_there() -> None:
    extents = [Extent(4 * KiB, 8 * KiB, zero=False), Extent(BLOCK + 64 * KiB, 4 * KiB, zero=True)]
    image = finished(layout(2 * BLOCK, extents, unique_id=id_of(1), parent=parent_of(1)), content(2 * BLOCK))
    found, _ = await mapped(image)
    assert [(run.offset, run.length) for run in found.runs()] == [(4 * KiB, 8 * KiB), (BLOCK + 64 * KiB, 4 * KiB)]


class Unread(RangeReader):
    """An image of which nothing is there but what it says of itself."""

    def __init__(self, made: ImageLayout) -> None:
        self.info = ObjectInfo("image", made.size)
        self._made = made

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        position = 0
        for piece in self._made.pieces(offset, offset + len(buffer)):
            match piece:
                case Metadata(known):
                    buffer[position : position + len(known)] = known
                    position += len(known)
                case Data(_, length):
                    position += length


async def test_the_largest_disk_when_it_is_full(engine: TransferEngine) -> None:
    made = layout(LARGEST, [Extent(0, LARGEST, zero=False)], unique_id=id_of(0))
    found = await read_map(Unread(made), engine, whole=True)
    assert len(found) == LARGEST // BLOCK
    assert sum(run.length for run in found.runs()) == LARGEST


async def test_the_largest_disk_when_it_is_almost_empty(engine: TransferEngine) -> None:
    made = layout(LARGEST, [Extent(LARGEST - 4 * KiB, 4 * KiB, zero=False)], unique_id=id_of(0))
    found = await read_map(Unread(made), engine, whole=False)
    assert [(run.offset, run.length) for run in found.runs()] == [(LARGEST - 4 * KiB, 4 * KiB)]


# ------------------------------------------------------------------------------------------------ what is refused


async def rule_of(image: bytes) -> str:
    with pytest.raises(ImageRefused) as raised:
        await mapped(image)
    return str(raised.value.details["rule"])


OTHERWISE = {
    "header over the footer": "vhd-header",
    "table far away": "truncated",
    "block out of range": "truncated",
    "block where the image has ended": "vhd-order",
    "no footer": "vhd-footer",
    "cut footer": "vhd-size",
    "no end": "vhd-footer",
}
"""Rules by which an image is refused that is looked at in another order than one that is read forward."""


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_images(tmp_path: Path, name: str) -> None:
    path = whole(tmp_path)
    HOSTILE[name][1](path)
    assert await rule_of(path.read_bytes()) == OTHERWISE.get(name, HOSTILE[name][0])


@SOME
@given(history=vhd_histories(most=2), chance=st.randoms(use_true_random=False))
async def test_every_part_of_an_image_is_refused(history: VhdHistory, chance: random.Random) -> None:
    image = history.images()[-1]
    for stop in [0, 511, 512, 1536, len(image) - 512, len(image) - 1, chance.randint(0, len(image) - 1)]:
        assert await rule_of(image[:stop]) in {"truncated", "vhd-footer", "vhd-size"}


@MANY
@given(
    changes=st.lists(st.tuples(st.integers(0, 3071), st.binary(min_size=1, max_size=4)), min_size=1, max_size=3),
    seal=st.booleans(),
)
async def test_damage_is_refused_or_makes_a_sound_map(changes: list[tuple[int, bytes]], seal: bool) -> None:
    """In the head, the table and the first bitmap, also with checksums that are right."""
    image = bytearray(SMALL_IMAGE)
    for at, data in changes:
        image[at : at + len(data)] = data
    if seal:
        image[-512:] = image[:512]
        resealed(image)
    try:
        found, _ = await mapped(bytes(image))
    except ImageRefused:
        return
    assert found.virtual_size <= LARGEST


async def test_too_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hypervisors.images.vhd_map.MOST_RUNS", 2)
    extents = [Extent(number * 64 * KiB, 4 * KiB, zero=False) for number in range(3)]
    image = finished(layout(BLOCK, extents, unique_id=id_of(0)), content(BLOCK))
    assert await rule_of(image) == "vhd-blocks"
