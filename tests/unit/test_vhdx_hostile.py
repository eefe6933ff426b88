"""VHDX that is damaged or means harm, and chains that are not whole."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hypervisors.contract import ImageRefused
from hypervisors.images.vhdx_reading import LONGEST_CHAIN
from hypervisors.images.vhdx_stream import layout
from stores.contract import KiB, MiB
from tests import vhdx_logs
from tests.disk_histories import finished
from tests.images import field, patch
from tests.images import set_vhdx_headers as set_headers
from tests.images import set_vhdx_regions as set_regions
from tests.vhdx_histories import identity_of
from tests.vhdx_made import (
    CHILD,
    ENTRY,
    ITEMS,
    LARGEST,
    METADATA,
    PARENT,
    TABLE,
    opened_chain,
    rule_of,
    small_images,
    u32,
    u64,
    whole_of,
)

MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
CHUNK = 4096  # blocks
BITMAP_AT = 4 * MiB  # in a small child
LOCATOR = ITEMS + 8 + 8 + 16 + 4 + 4
PAIR = LOCATOR + 20  # key's place, value's place, key's length, value's length


def put(at: int, data: bytes) -> Callable[[Path], Path]:
    return lambda path: patch(path, at, data)


HOSTILE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no VHDX": ("vhdx-header", put(0, b"x")),
    "no header": ("vhdx-header", lambda path: [patch(path, place, b"x") for place in (64 * KiB, 128 * KiB)]),
    "two headers that differ": (
        "vhdx-header",
        lambda path: set_headers(set_headers(path, 8, u64(7)), 32, b"x", places=[64 * KiB]),
    ),
    "unknown version": ("vhdx-version", lambda path: set_headers(path, 66, b"\2")),
    "damaged regions": ("vhdx-regions", lambda path: patch(path, 192 * KiB + 40, b"x")),
    "regions over one another": ("vhdx-regions", lambda path: set_regions(path, 16 + 16, u64(METADATA))),
    "region far away": ("truncated", lambda path: set_regions(path, 16 + 16, u64(1 << 50))),
    "no metadata": ("vhdx-metadata", put(METADATA, b"x")),
    "odd blocks": ("vhdx-blocks", put(ITEMS, u32(3 * MiB))),
    "odd sectors": ("vhdx-blocks", put(ITEMS + 32, u32(520))),
    "giant disk": ("vhdx-size", put(ITEMS + 8, u64(LARGEST + 512))),
    "small table": ("vhdx-table", put(ITEMS + 8, u64(LARGEST))),
    "parent unsaid": ("vhdx-parent", put(ITEMS + 4, u32(0))),
    "locator of another kind": ("vhdx-parent", put(LOCATOR, b"x")),
    "many pairs": ("vhdx-parent", put(LOCATOR + 18, b"\xff\xff")),
    "key far away": ("vhdx-parent", put(PAIR, u32(1 << 31))),
    "key over the table": ("vhdx-parent", put(PAIR, u32(4))),
    "no key": ("vhdx-parent", put(PAIR + 8, b"\0\0")),
    "half a character": ("vhdx-parent", put(PAIR + 10, b"\1\0")),
    "a key twice": ("vhdx-parent", lambda path: patch(path, PAIR + 12, field(path, PAIR, 12))),
    "no id": ("vhdx-parent", put(PAIR + 10, b"\2\0")),
    "reserved state": ("vhdx-table", put(TABLE, b"\4")),
    "block in the head": ("vhdx-table", put(TABLE, u64(0 | 7))),
    "block over the log": ("vhdx-table", put(TABLE, u64(1 * MiB | 7))),
    "block over the metadata": ("vhdx-table", put(TABLE, u64(2 * MiB | 7))),
    "block over the table": ("vhdx-table", put(TABLE, u64(3 * MiB | 7))),
    "block far away": ("truncated", put(TABLE, u64(1 << 60 | 7))),
    "block across the end": ("truncated", put(TABLE, u64(6 * MiB | 7))),
    "no bitmap": ("vhdx-table", put(TABLE + 8 * CHUNK, u64(0))),
    "bitmap over the table": ("vhdx-table", put(TABLE + 8 * CHUNK, u64(3 * MiB | 6))),
    "bitmap far away": ("truncated", put(TABLE + 8 * CHUNK, u64(1 << 60 | 6))),
    "nothing": ("vhdx-header", lambda path: path.write_bytes(b"")),
    "the beginning": ("truncated", lambda path: path.write_bytes(path.read_bytes()[: 300 * KiB])),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_images(tmp_path: Path, name: str) -> None:
    """Each is a child that was fine."""
    rule, change = HOSTILE[name]
    parent, child, _ = small_images()
    path = tmp_path / "image"
    path.write_bytes(child)
    change(path)
    assert await rule_of(parent, path.read_bytes()) == rule


async def test_a_part_of_a_block_needs_a_parent() -> None:
    parent = bytearray(small_images()[0])
    struct.pack_into("<Q", parent, TABLE, 4 * MiB | 7)
    assert await rule_of(parent) == "vhdx-table"


async def test_chains_that_are_not_whole(tmp_path: Path) -> None:
    first, second, third = small_images()
    path = tmp_path / "image"
    path.write_bytes(first)
    written = set_headers(path, 32, b"another content!").read_bytes()
    large_sectors = finished(layout(MiB, [], identity=identity_of(0), sector=4096), b"")
    assert await rule_of(second) == "vhdx-parent"
    assert await rule_of(second, third) == "vhdx-parent"
    assert await rule_of(first, third) == "vhdx-parent"
    assert await rule_of(first, first) == "vhdx-parent"
    assert await rule_of(written, second) == "vhdx-parent"
    assert await rule_of(large_sectors, second) == "vhdx-parent"
    assert await rule_of(*[first] * (LONGEST_CHAIN + 1)) == "vhdx-parent"


@MANY
@given(
    changes=st.lists(
        st.tuples(
            st.sampled_from([64 * KiB, 192 * KiB, METADATA, ITEMS, TABLE, TABLE + 8 * CHUNK, BITMAP_AT, MiB]),
            st.integers(0, 200),
            st.binary(min_size=1, max_size=8),
        ),
        min_size=1,
        max_size=3,
    ),
    log=st.booleans(),
)
async def test_damage_is_refused_or_read_to_the_end(changes: list[tuple[int, int, bytes]], log: bool) -> None:
    """Also with checksums that are right, and in logs."""
    image = bytearray(CHILD)
    if log:
        vhdx_logs.put(image, [ENTRY], 0)
        vhdx_logs.mark_open(image)
    for place, at, data in changes:
        image[place + at : place + at + len(data)] = data
    image[128 * KiB : 128 * KiB + 4096] = image[64 * KiB : 64 * KiB + 4096] = vhdx_logs.sealed(
        bytes(image[64 * KiB :][:4096])
    )
    image[256 * KiB : 320 * KiB] = image[192 * KiB : 256 * KiB] = vhdx_logs.sealed(bytes(image[192 * KiB : 256 * KiB]))
    image[MiB : MiB + 8192] = vhdx_logs.sealed(bytes(image[MiB : MiB + 8192]))
    try:
        disk = await opened_chain([PARENT, image])
        if disk.virtual_size < 16 * MiB:
            await whole_of(disk)
    except ImageRefused:
        return
