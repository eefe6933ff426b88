"""VHDs laid out before they are read: what is in them, and what QEMU and libvhdi make of that."""

from __future__ import annotations

import io
import json
import random
import struct
import subprocess
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hypervisors.images.formats import DRIVERS, file_node, json_filename
from hypervisors.images.pieces import Data, Metadata
from hypervisors.images.vhd_stream import BLOCK, Parent, layout
from stores.contract import Extent, GiB, KiB, MiB
from stores.errors import TooLarge
from stores.to import ImageFormat
from tests.disk_histories import SECTOR, expected_kinds, finished, sha
from tests.doubles.xapi import vhd as xapi_vhd
from tests.images import opened, set_vhd_footer
from tests.laid_out import (
    expect_gate_for_whole_images,
    expect_others_read,
    expect_stream_and_digest,
    libvhdi,
    write_sparse,
)
from tests.vhd_histories import GRAIN, VhdHistory, id_of, parent_of, vhd_histories

FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SOME = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
LARGEST = 2040 * GiB


# ------------------------------------------------------------------------------------------------ what is laid out


def sectors_of(image: bytes, size: int) -> Iterator[tuple[int, bytes]]:
    """Number and content of every sector whose bit is set, by the specification."""
    table_at, _, entries, block = struct.unpack_from(">QIII", image, 512 + 16)
    assert entries == -(-size // BLOCK)
    assert block == BLOCK
    for number, place in enumerate(struct.unpack_from(f">{entries}I", image, table_at)):
        if place == 0xFFFFFFFF:
            continue
        bitmap = image[place * SECTOR : (place + 1) * SECTOR]
        for sector in range(BLOCK // SECTOR):
            if bitmap[sector // 8] & 0x80 >> sector % 8:
                at = (place + 1 + sector) * SECTOR
                yield number * BLOCK // SECTOR + sector, image[at : at + SECTOR]


@SOME
@given(history=vhd_histories(most=2))
def test_every_sector_is_what_the_extents_say(history: VhdHistory) -> None:
    for number, (image, version) in enumerate(zip(history.images(), history.versions, strict=True)):
        size = len(version.content)
        kinds = expected_kinds(version, GRAIN, delta=number > 0)
        expected = {at for at in range(size // SECTOR) if kinds[at * SECTOR // GRAIN] != "-"}
        found = dict(sectors_of(image, size))
        assert found.keys() == expected
        assert all(content == version.content[at * SECTOR : (at + 1) * SECTOR] for at, content in found.items())


@SOME
@given(history=vhd_histories(most=2), chance=st.randoms(use_true_random=False))
def test_any_part_is_the_same_as_in_the_whole(history: VhdHistory, chance: random.Random) -> None:
    made, disk = history.layouts()[-1], history.versions[-1].content
    whole = finished(made, disk)
    assert len(whole) == made.size
    disks_end = made.size - 512 - -len(disk) % BLOCK  # if its last block is there, which goes on beyond
    near = [min(max(disks_end + chance.randint(-5 * KiB, 5 * KiB), 0), made.size) for _ in range(5)]
    for place in (*near, *(chance.randint(0, made.size) for _ in range(5))):
        start, stop = sorted((place, chance.randint(0, made.size)))
        assert sha(finished(made, disk, start, stop)) == sha(whole[start:stop])


def test_data_of_a_block_is_one_piece_and_blocks_without_any_are_left_out() -> None:
    extents = [Extent(at, 64 * KiB, zero=False) for at in range(3 * BLOCK, 4 * BLOCK, 64 * KiB)]
    made = layout(2 * GiB, iter([*extents, Extent(4 * BLOCK, BLOCK, zero=True)]), unique_id=id_of(0))
    assert [piece for piece in made.pieces() if isinstance(piece, Data)] == [Data(3 * BLOCK, BLOCK)]
    assert made.size == 512 + 1024 + 512 + 4 * KiB + 512 + BLOCK + 512


def test_zeroes_hide_what_the_parent_has() -> None:
    made = layout(BLOCK, [Extent(GRAIN, GRAIN, zero=True)], unique_id=id_of(1), parent=parent_of(1))
    _, bitmap, zeroes, _ = made.pieces()
    assert bitmap == Metadata(b"\0\xff".ljust(512, b"\0"))
    assert zeroes == Metadata(bytes(BLOCK))


def test_nothing_is_left_of_zeroes_in_a_full_image() -> None:
    made = layout(GiB, [Extent(0, GiB, zero=True)], unique_id=id_of(0))
    assert made.size == 2048 + 2 * KiB + 512
    assert all(isinstance(piece, Metadata) for piece in made.pieces())


def test_what_a_child_says_of_its_parent() -> None:
    """The header as Microsoft's specification has it, the locator as XAPI's and blktap's tools write it."""
    made = layout(3 * BLOCK, [], unique_id=id_of(1), parent=parent_of(1))
    image = finished(made, b"")
    unique_id, modified = struct.unpack_from(">16sI", image, 512 + 40)
    assert unique_id == id_of(0).bytes
    assert datetime(2000, 1, 1, tzinfo=UTC).timestamp() + modified == datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    assert image[512 + 64 : 512 + 576].decode("utf-16-be").rstrip("\0") == "0.vhd"
    code, sectors, length, place = struct.unpack_from(">4sII4xQ", image, 512 + 576)
    assert (code, sectors) == (b"MacX", 1)
    assert image[place : place + length] == b"file://./0.vhd"
    assert not any(image[place + length : place + 512])
    assert not any(image[512 + 576 + 24 : 512 + 1024])
    assert struct.unpack_from(">I", image, 60) == (4,)


def test_the_same_extents_give_the_same_bytes() -> None:
    first, second = (layout(GiB, [Extent(5, 7, zero=False)], unique_id=id_of(0)) for _ in range(2))
    assert list(first.pieces()) == list(second.pieces())


def test_large_disks_take_little_memory() -> None:
    tracemalloc.start()
    try:
        made = layout(LARGEST, [Extent(0, LARGEST, zero=False)], unique_id=id_of(0))
        assert tracemalloc.get_traced_memory()[0] < 10 * MiB
        tracemalloc.reset_peak()
        table = next(made.pieces())
        *_, last, _ = made.pieces(made.size - 10 * BLOCK)
        assert tracemalloc.get_traced_memory()[1] < 20 * MiB
    finally:
        tracemalloc.stop()
    assert isinstance(table, Metadata)
    assert len(table.content) == 2048 + LARGEST // BLOCK * 4
    assert last == Data(LARGEST - BLOCK, BLOCK)
    assert made.size // SECTOR < 0xFFFFFFFF  # what the table's numbers hold


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("size", [-512, 0, 511, 513])
def test_disks_are_whole_sectors(size: int) -> None:
    with pytest.raises(ValueError, match="whole sectors"):
        layout(size, [], unique_id=id_of(0))


def test_larger_disks_need_another_format() -> None:
    with pytest.raises(TooLarge, match="another format") as raised:
        layout(LARGEST + SECTOR, [], unique_id=id_of(0))
    assert raised.value.details == {"limit": LARGEST, "seen": LARGEST + SECTOR}


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("", "not that of a file"),
        ("a/b", "not that of a file"),
        ("../a", "not that of a file"),
        ("a" * 257, "too long"),
        ("ü" * 256, "too long"),
    ],
)
def test_parents_names_are_those_of_files(name: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        layout(MiB, [], unique_id=id_of(1), parent=replace(parent_of(1), name=name))


# ------------------------------------------------------------------------------------------------ others read it


@SOME
@given(history=vhd_histories(most=4, resized=False))
def test_libvhdi_reads_a_chain(history: VhdHistory) -> None:
    with libvhdi(history.images()) as disk:
        expected = history.versions[-1].content
        assert disk.media_size == len(expected)
        assert disk.disk_type == (4 if len(history.versions) > 1 else 3)
        assert disk.identifier == str(id_of(len(history.versions) - 1))
        assert disk.parent_filename == (f"{len(history.versions) - 2}.vhd" if len(history.versions) > 1 else None)
        assert sha(disk.read_buffer_at_offset(len(expected), 0)) == sha(expected)


@FEW
@given(history=vhd_histories(most=3, resized=False))
async def test_a_chain_is_restored_as_xapi_does_it(history: VhdHistory) -> None:
    """Each image forward only, over the disk that those before it left."""
    disk = bytearray(len(history.versions[0].content))

    def write(offset: int, data: bytes | memoryview) -> None:
        assert offset + len(data) <= len(disk)
        disk[offset : offset + len(data)] = data

    for image in history.images():
        body = io.BytesIO(image)

        async def take(count: int, body: io.BytesIO = body) -> bytes:
            data = body.read(count)
            assert len(data) == count
            return data

        await xapi_vhd.receive(take, write, length=len(image))
        assert not body.read()
    assert sha(disk) == sha(history.versions[-1].content)


def by_default(path: Path) -> str:
    """The image as qemu opens it without being told where the size is."""
    return json_filename({"driver": DRIVERS[ImageFormat.VHD], "file": file_node(str(path))})


@FEW
@given(history=vhd_histories())
def test_qemu_reads_a_full_image_however_it_finds_the_size(
    history: VhdHistory, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path, raw = (tmp_path_factory.getbasetemp() / name for name in ("history.vhd", "history.raw"))
    path.write_bytes(history.images()[0])
    expected = sha(history.versions[0].content)
    for image in (opened(path, ImageFormat.VHD), by_default(path)):
        subprocess.run(["qemu-img", "convert", "-O", "raw", image, str(raw)], check=True, capture_output=True)
        assert sha(raw.read_bytes()) == expected


@pytest.mark.parametrize("size", [SECTOR, MiB + SECTOR, GiB, 20 * GiB, LARGEST])
def test_qemu_believes_no_geometry_whoever_wrote_it(tmp_path: Path, size: int) -> None:
    path = write_sparse(layout(size, [], unique_id=id_of(0)), tmp_path / "image", b"")
    set_vhd_footer(path, 28, b"????")
    told = subprocess.run(["qemu-img", "info", "--output=json", by_default(path)], check=True, capture_output=True)
    assert json.loads(told.stdout)["virtual-size"] == size


@FEW
@given(history=vhd_histories(most=2))
async def test_the_gate_lets_whole_images_pass_and_no_differences(history: VhdHistory) -> None:
    await expect_gate_for_whole_images(history.images(), ImageFormat.VHD, len(history.versions[0].content))


def test_the_largest_disk(tmp_path: Path) -> None:
    """Its size and its last bytes, by both readers; and a child of it."""
    places = [0, 127 * GiB, 1023 * GiB + 12 * KiB, LARGEST - 8 * KiB]
    made = layout(LARGEST, [Extent(at, 8 * KiB, zero=False) for at in places], unique_id=id_of(0))
    changes = [Extent(places[1], 4 * KiB, zero=True), Extent(LARGEST - 4 * KiB, 4 * KiB, zero=False)]
    child = layout(LARGEST, changes, unique_id=id_of(1), parent=parent_of(1))
    expect_others_read(made, child, tmp_path, ImageFormat.VHD, places)


# ------------------------------------------------------------------------------------------- read as if finished


async def test_it_is_streamed_and_digested_as_any_object() -> None:
    chance = random.Random(5)
    disk = chance.randbytes(3 * MiB + 512)
    extents = [Extent(at, chance.randint(1, 50_000), zero=bool(at % 3)) for at in range(0, 3 * MiB, 100_000)]
    made = layout(len(disk), extents, unique_id=id_of(1), parent=Parent(id_of(0), "0.vhd", datetime.now(UTC)))
    await expect_stream_and_digest(made, disk)
