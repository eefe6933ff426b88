"""VHDX laid out before they are read: what is in them, and what QEMU and libvhdi make of that."""

from __future__ import annotations

import random
import struct
import subprocess
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hypervisors.images.pieces import Data, ImageLayout
from hypervisors.images.vhdx_stream import block_for, layout
from stores.contract import Extent, GiB, KiB, MiB
from stores.errors import TooLarge
from stores.to import ImageFormat
from tests.disk_histories import Version, expected_kinds, finished, sha
from tests.images import opened
from tests.laid_out import (
    expect_gate_for_whole_images,
    expect_others_read,
    expect_stream_and_digest,
    libvhdi,
)
from tests.vhdx_histories import BLOCK, VhdxHistory, identity_of, parent_of, vhdx_histories

FEW = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SOME = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
LARGEST = 64 * 1024 * GiB
TABLE_AT = 3 * MiB


# ------------------------------------------------------------------------------------------------ what is laid out


def expected_states(version: Version, sector: int, *, differencing: bool) -> list[tuple[int, list[str]]]:
    """State of each block, and for each eight sectors of it whether they are `d`ata, `z`ero or left out."""
    kinds = expected_kinds(version, 8 * sector, delta=differencing)
    of_a_block = BLOCK // (8 * sector)
    states = []
    for start in range(0, len(kinds), of_a_block):
        found = kinds[start : start + of_a_block]
        if not differencing:
            state = 6 if "d" in found else 0
        elif "-" not in found:
            state = 6 if "d" in found else 2
        else:
            state = 7 if set(found) != {"-"} else 0
        states.append((state, found))
    return states


@SOME
@given(history=vhdx_histories(most=3))
def test_every_block_is_what_the_extents_call_for(history: VhdxHistory) -> None:
    """By the specification: the entries, the bitmaps, the data, and that nothing lies over anything else."""
    for number, (image, version) in enumerate(zip(history.images(), history.versions, strict=True)):
        sectors, ratio = 8 * history.sector, (1 << 23) * history.sector // BLOCK
        expected = expected_states(version, history.sector, differencing=number > 0)
        entries = struct.unpack_from(f"<{len(expected)}Q", image, TABLE_AT)
        (bitmap,) = struct.unpack_from("<Q", image, TABLE_AT + ratio * 8)
        assert [entry & 7 for entry in entries] == [state for state, _ in expected]
        places = [entry >> 20 for entry in entries if entry & 7 in (6, 7)]
        bitmaps = [bitmap >> 20] if bitmap else []
        assert (bool(bitmap), bitmap & 0xFFFFF) in ((False, 0), (number > 0 and bool(places), 6))
        assert bitmaps + places == list(range(TABLE_AT // MiB + 1, len(image) // MiB))
        for index, (state, kinds) in enumerate(expected):
            if state not in (6, 7):
                continue
            place = entries[index] >> 20 << 20
            stored = image[place : place + BLOCK]
            padded = version.content[index * BLOCK : (index + 1) * BLOCK].ljust(BLOCK, b"\0")
            for grain, kind in enumerate(kinds):
                part = slice(grain * sectors, (grain + 1) * sectors)
                assert stored[part] == (padded[part] if kind == "d" else bytes(sectors))
            if number:
                in_the_disk = min(len(version.content) - index * BLOCK, BLOCK) // history.sector
                at = (bitmap >> 20 << 20) + index * (BLOCK // sectors)
                bits = int.from_bytes(image[at : at + BLOCK // sectors], "little")
                for one in range(BLOCK // history.sector):
                    assert bits >> one & 1 == (one < in_the_disk and kinds[one // 8] != "-")


@SOME
@given(history=vhdx_histories(most=2), chance=st.randoms(use_true_random=False))
def test_any_part_of_the_image_is_a_slice_of_it(history: VhdxHistory, chance: random.Random) -> None:
    made, image, disk = history.layouts()[-1], history.images()[-1], history.versions[-1].content
    assert made.size == len(image)
    borders = [place * MiB for place in range(made.size // MiB + 1)] + [64 * KiB, 3 * MiB + 40, 2 * MiB + 64 * KiB]
    for _ in range(30):
        cuts = [min(max(chance.choice(borders) + chance.choice([0, -1, 1, 700]), 0), made.size) for _ in range(2)]
        start, stop = sorted(cuts)
        assert finished(made, disk, start, stop) == image[start:stop]


def test_the_same_arguments_give_the_same_bytes() -> None:
    extents = [Extent(5, 70_000, zero=False), Extent(2 * MiB, 9 * KiB, zero=True)]
    disk = random.Random(1).randbytes(3 * MiB)
    images = [
        finished(layout(3 * MiB, iter(extents), identity=identity_of(number), parent=parent_of(1)), disk)
        for number in (1, 1, 2)
    ]
    assert images[0] == images[1] != images[2]


def test_entries_of_many_chunks() -> None:
    """Those of bitmaps stand between those of blocks, over all windows of the table."""
    block, ratio = 256 * MiB, 16
    blocks = 20_000
    chosen = [0, 15, 16, 31, 9000, 9001, 19_999]
    extents = [Extent(number * block, 4096, zero=False) for number in chosen]
    made = layout(blocks * block, extents, identity=identity_of(1), block=block, parent=parent_of(1))
    entries = array_of(made, TABLE_AT, blocks // ratio * (ratio + 1))
    chunks = sorted({number // ratio for number in chosen})
    bitmaps_at = TABLE_AT + MiB
    blocks_at = bitmaps_at + len(chunks) * MiB
    expected = {chunk * 17 + 16: bitmaps_at + at * MiB | 6 for at, chunk in enumerate(chunks)}
    expected |= {number + number // 16: blocks_at + at * block | 7 for at, number in enumerate(chosen)}
    assert {index: entry for index, entry in enumerate(entries) if entry} == expected
    assert made.size == blocks_at + len(chosen) * block


def array_of(made: ImageLayout, at: int, count: int) -> tuple[int, ...]:
    return struct.unpack(f"<{count}Q", finished(made, b"", at, at + count * 8))


@pytest.mark.parametrize(
    ("size", "block"),
    [
        (MiB, 1 * MiB),
        (128 * GiB, 1 * MiB),
        (256 * GiB, 2 * MiB),
        (257 * GiB, 4 * MiB),
        (2048 * GiB, 16 * MiB),
        (4096 * GiB, 32 * MiB),
        (LARGEST, 32 * MiB),
    ],
)
def test_blocks_grow_with_the_disk(size: int, block: int) -> None:
    assert block_for(size) == block


@pytest.mark.parametrize("block", [MiB, None])
def test_the_largest_disk_costs_little(block: int | None) -> None:
    """No table is made before its turn, and then a part of it."""
    places = [0, 3 * 1024 * GiB + 5, LARGEST - 4096]
    tracemalloc.start()
    try:
        made = layout(LARGEST, [Extent(at, 4096, zero=False) for at in places], identity=identity_of(0), block=block)
        for at in (TABLE_AT, made.size // 2, made.size - 2 * MiB):
            for piece in made.pieces(at, at + MiB):
                assert isinstance(piece, Data) or len(piece.content) <= MiB
        assert tracemalloc.get_traced_memory()[1] < 4 * MiB
    finally:
        tracemalloc.stop()
    blocks = LARGEST // (block or 32 * MiB)
    table = -(-(blocks + (blocks - 1) // ((1 << 32) // (block or 32 * MiB))) * 8 // MiB) * MiB
    assert made.size == TABLE_AT + table + 3 * (block or 32 * MiB)


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("size", "sector", "block", "wrong"),
    [
        (0, 512, None, "whole sectors"),
        (-512, 512, None, "whole sectors"),
        (513, 512, None, "whole sectors"),
        (512, 4096, None, "whole sectors"),
        (4096, 1024, None, "no blocks"),
        (4096, 512, 3 * MiB, "no blocks"),
        (4096, 512, 512 * MiB, "no blocks"),
        (4096, 512, 512 * KiB, "no blocks"),
    ],
)
def test_disks_that_cannot_be(size: int, sector: int, block: int | None, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        layout(size, [], identity=identity_of(0), sector=sector, block=block)


def test_larger_disks_do_not_fit() -> None:
    with pytest.raises(TooLarge, match="smaller") as raised:
        layout(LARGEST + 512, [], identity=identity_of(0))
    assert raised.value.details == {"limit": LARGEST, "seen": LARGEST + 512}


@pytest.mark.parametrize(
    ("relative", "absolute"),
    [
        ("", None),
        ("a/b.vhdx", None),
        ("a\0.vhdx", None),
        ("a" * 32_768, None),
        ("a.vhdx", "c:\\a.vhdx"),
        ("a.vhdx", ""),
        ("a.vhdx", "\\\\?\\c:\\a/b.vhdx"),
    ],
)
def test_paths_of_parents_are_those_of_windows(relative: str, absolute: str | None) -> None:
    parent = replace(parent_of(1), relative_path=relative, absolute_path=absolute)
    with pytest.raises(ValueError, match="path"):
        layout(MiB, [], identity=identity_of(1), parent=parent)


# ------------------------------------------------------------------------------------------------ others read it


@SOME
@given(history=vhdx_histories(most=4, resized=False))
def test_libvhdi_reads_a_chain(history: VhdxHistory) -> None:
    last = len(history.versions) - 1
    with libvhdi(history.for_libvhdi().images()) as disk:
        expected = history.versions[-1].content
        assert disk.media_size == len(expected)
        assert disk.bytes_per_sector == history.sector
        assert disk.disk_type == (4 if last else 3)
        assert disk.identifier == str(identity_of(last).content)
        assert sha(disk.read_buffer_at_offset(len(expected), 0)) == sha(expected)


@FEW
@given(history=vhdx_histories(sectors=[512]))
def test_qemu_reads_a_full_image(history: VhdxHistory, tmp_path_factory: pytest.TempPathFactory) -> None:
    path, raw = (tmp_path_factory.getbasetemp() / name for name in ("history.vhdx", "history.raw"))
    path.write_bytes(history.images()[0])
    image = opened(path, ImageFormat.VHDX)
    subprocess.run(["qemu-img", "check", image], check=True, capture_output=True)
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, str(raw)], check=True, capture_output=True)
    assert sha(raw.read_bytes()) == sha(history.versions[0].content)


@FEW
@given(history=vhdx_histories(most=2, sectors=[512]))
async def test_the_gate_lets_whole_images_pass_and_no_differences(history: VhdxHistory) -> None:
    await expect_gate_for_whole_images(history.images(), ImageFormat.VHDX, len(history.versions[0].content))


def test_others_read_the_largest_disk(tmp_path: Path) -> None:
    """Its size and its last bytes; and a child of it."""
    places = [0, 127 * GiB, 33_000 * GiB + 12 * KiB, LARGEST - 8 * KiB]
    made = layout(LARGEST, [Extent(at, 8 * KiB, zero=False) for at in places], identity=identity_of(0))
    changes = [Extent(places[1], 4 * KiB, zero=True), Extent(LARGEST - 4 * KiB, 4 * KiB, zero=False)]
    child = layout(LARGEST, changes, identity=identity_of(1), parent=parent_of(1))
    expect_others_read(made, child, tmp_path, ImageFormat.VHDX, places)


# ------------------------------------------------------------------------------------------- read as if finished


async def test_it_is_streamed_and_digested_as_any_object() -> None:
    chance = random.Random(5)
    disk = chance.randbytes(3 * MiB + 512)
    extents = [Extent(at, chance.randint(1, 50_000), zero=bool(at % 3)) for at in range(0, 3 * MiB, 100_000)]
    made = layout(len(disk), extents, identity=identity_of(1), parent=parent_of(1))
    await expect_stream_and_digest(made, disk)
