"""VHDs read as they arrive: ours, qemu's and XAPI's, in all cuts; and all that is refused."""

from __future__ import annotations

import random
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hypervisors.contract import ImageRefused
from hypervisors.images.pieces import Data, ImageLayout, Metadata
from hypervisors.images.vhd_reading import Absent, Disk, Event, Present, VhdReading
from hypervisors.images.vhd_stream import BLOCK, layout
from stores.contract import Extent, GiB, KiB, MiB
from stores.to import ImageFormat
from tests.disk_histories import SECTOR, finished, sha
from tests.images import (
    content,
    field,
    make_image,
    make_raw,
    make_vhd_by,
    patch,
    qemu_io,
    set_vhd_footer,
    set_vhd_header,
)
from tests.vhd_histories import VhdHistory, id_of, overlaid, parent_of, vhd_histories

SOME = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TABLE = 2048
LARGEST = 2040 * GiB


def events_of(image: bytes, cuts: list[int] | None = None) -> Iterator[Event]:
    reading = VhdReading()
    for start, stop in pairwise(sorted({0, *(cuts or ()), len(image)})):
        arrived = bytearray(image[start:stop])
        yield from reading.feed(arrived)
        arrived[:] = b"!" * len(arrived)  # nobody looks at it any more
    reading.finish()


def read(image: bytes, cuts: list[int] | None = None) -> tuple[Disk, list[tuple[int, bytes]]]:
    """The disk and what is there of it; every byte of it was in one event."""
    parts: list[tuple[int, bytes]] = []
    covered: list[tuple[int, int]] = []
    disk = None
    for event in events_of(image, cuts):
        match event:
            case Disk():
                assert disk is None
                disk = event
            case Present(offset, data):
                parts.append((offset, bytes(data)))
                covered.append((offset, offset + len(data)))
            case Absent(offset, length):
                covered.append((offset, offset + length))
    assert disk is not None
    end = 0
    for start, stop in sorted(covered):
        assert start == end < stop
        end = stop
    assert end == disk.virtual_size
    return disk, parts


def in_order(made: ImageLayout, data: bytes) -> Iterator[bytes]:
    """The image of a disk that consists of `data` over and over."""
    for piece in made.pieces():
        match piece:
            case Metadata(known):
                yield known
            case Data(_, length):
                yield from [data] * (length // len(data))


def refusal(image: bytes) -> str:
    with pytest.raises(ImageRefused) as raised:
        list(events_of(image, list(range(0, len(image), 300 * KiB + 1))))
    return str(raised.value.details["rule"])


def some_cuts(chance: random.Random, image: bytes) -> list[int]:
    """Anywhere, and close to one another in the image's head and around its end."""
    ends = [*range(0, 4 * KiB, 100), *range(len(image) - KiB, len(image), 100)]
    return chance.sample(ends, 20) + [chance.randint(0, len(image)) for _ in range(20)]


# ------------------------------------------------------------------------------------------------ what is read


@SOME
@given(history=vhd_histories(most=3), chance=st.randoms(use_true_random=False))
def test_a_chain_of_ours_in_any_cuts(history: VhdHistory, chance: random.Random) -> None:
    below = b""
    for number, (image, version) in enumerate(zip(history.images(), history.versions, strict=True)):
        disk, parts = read(image, some_cuts(chance, image))
        parent = id_of(number - 1) if number else None
        assert disk == Disk(len(version.content), BLOCK, id_of(number), parent)
        below = overlaid(parts, below, disk.virtual_size)
        assert sha(below) == sha(version.content)


def test_byte_by_byte() -> None:
    data = content(5 * KiB)
    image = finished(
        layout(9 * KiB, [Extent(0, len(data), zero=False)], unique_id=id_of(0)), data.ljust(9 * KiB, b"\0")
    )
    _, parts = read(image, [*range(10 * KiB), *range(len(image) - 600, len(image))])
    assert overlaid(parts, b"", 9 * KiB).startswith(data)


@pytest.mark.parametrize("creator", [b"caml", b"qem2", b"win ", b"tap\0", b"\xff\xfe\0!"])
def test_the_size_is_right_whoever_wrote_it(tmp_path: Path, creator: bytes) -> None:
    size = 5 * MiB + 1536  # of which a geometry can only tell a part
    path = make_vhd_by(tmp_path / "image", creator, size)
    disk, parts = read(path.read_bytes())
    assert (disk.virtual_size, disk.parent_id) == (size, None)
    assert sha(overlaid(parts, b"", size)) == sha(make_raw(tmp_path / "raw", size).read_bytes())


def test_blocks_in_another_order_than_the_disks(tmp_path: Path) -> None:
    """As a guest writes them; the last block is there in part."""
    path, size = tmp_path / "image", 7 * MiB + 512
    command = ["qemu-img", "create", "-f", "vpc", "-o", "force_size=on", str(path), str(size)]
    subprocess.run(command, check=True, capture_output=True)
    qemu_io(path, ImageFormat.VHD, f"write -P 3 {6 * MiB} {MiB + 512}", "write -P 1 0 64k", f"write -P 2 {4 * MiB} 1M")
    _, parts = read(path.read_bytes())
    assert [offset // BLOCK for offset, _ in parts] == [3, 0, 2]
    expected = [(0, b"\1" * 64 * KiB), (4 * MiB, b"\2" * MiB), (6 * MiB, b"\3" * (MiB + 512))]
    assert sha(overlaid(parts, b"", size)) == sha(overlaid(expected, b"", size))


def as_xapi_sends(path: Path) -> Path:
    """The same with XAPI's marks: its creator, a geometry that is rounded down, all bits of a block set, also beyond the
    disk's end, and a parent's locator whose room is empty."""
    entries = int.from_bytes(field(path, 512 + 28, 4))
    for number in range(entries):
        place = int.from_bytes(field(path, TABLE + 4 * number, 4))
        if place != 0xFFFFFFFF:
            patch(path, place * SECTOR, b"\xff" * 512)
    patch(path, 1536, bytes(512))
    set_vhd_footer(path, 28, b"caml")
    return set_vhd_footer(path, 56, b"\0\1\4\x11")


def test_an_export_and_a_difference_by_xapi(tmp_path: Path) -> None:
    size = 3 * BLOCK + 4 * KiB + 512
    first, second = content(size, seed=1), content(size, seed=2)
    full = layout(size, [Extent(0, size, zero=False)], unique_id=id_of(0))
    changed = [Extent(BLOCK, BLOCK, zero=False), Extent(3 * BLOCK, size - 3 * BLOCK, zero=False)]
    difference = layout(size, changed, unique_id=id_of(1), parent=parent_of(1))
    below = b""
    for made, data in ((full, first), (difference, second)):
        path = tmp_path / "image"
        path.write_bytes(finished(made, data))
        disk, parts = read(as_xapi_sends(path).read_bytes(), list(range(0, made.size, 65_001)))
        assert disk.virtual_size == size
        below = overlaid(parts, below, size)
    assert disk.parent_id == id_of(0)
    expected = first[:BLOCK] + second[BLOCK : 2 * BLOCK] + first[2 * BLOCK : 3 * BLOCK] + second[3 * BLOCK :]
    assert sha(below) == sha(expected)


@pytest.mark.parametrize(
    ("before", "gap"),
    [
        ("header", 512),
        ("header", 48 * KiB),
        ("table", 512),
        ("table", 4 * MiB - 512),  # the room of a locator is there already
        ("blocks", 512),
        ("blocks", 4 * MiB),
        ("footer", 512),
        ("footer", 4 * MiB),
    ],
)
def test_what_is_between_the_parts_is_passed_over(tmp_path: Path, before: str, gap: int) -> None:
    """Block maps, locators, padding: of any content."""
    path = whole(tmp_path)
    at = {"header": 512, "table": 1536, "blocks": TABLE + 512, "footer": path.stat().st_size - 512}[before]
    if before != "footer":
        for number, place in enumerate(places(path)):
            set_entry(number, place + gap // SECTOR)(path)
    if before in ("header", "table"):
        set_vhd_header(path, 16, u64(TABLE + gap))
    if before == "header":
        set_vhd_footer(path, 16, u64(512 + gap))
    image = path.read_bytes()
    _, parts = read(image[:at] + b"conectix" * (gap // 8) + image[at:])
    assert sha(overlaid(parts, b"", WHOLE_SIZE)) == sha(WHOLE)


def test_the_largest_disk() -> None:
    made = layout(LARGEST, [Extent(LARGEST - 4 * KiB, 4 * KiB, zero=False)], unique_id=id_of(0))
    reading = VhdReading()
    covered = 0
    for data in in_order(made, b"x" * 4 * KiB):
        for event in reading.feed(data):
            match event:
                case Present(offset, present):
                    assert (offset, bytes(present)) == (LARGEST - 4 * KiB, b"x" * 4 * KiB)
                    covered += len(present)
                case Absent(_, length):
                    covered += length
    reading.finish()
    assert covered == LARGEST


# ------------------------------------------------------------------------------------------------ what is refused

WHOLE_SIZE = 3 * BLOCK
WHOLE = content(WHOLE_SIZE, seed=9)


def whole(directory: Path) -> Path:
    """Three blocks, all there."""
    path = directory / "image"
    path.write_bytes(finished(layout(WHOLE_SIZE, [Extent(0, WHOLE_SIZE, zero=False)], unique_id=id_of(0)), WHOLE))
    return path


def u32(number: int) -> bytes:
    return number.to_bytes(4)


def u64(number: int) -> bytes:
    return number.to_bytes(8)


def places(path: Path) -> list[int]:
    return [int.from_bytes(field(path, TABLE + 4 * number, 4)) for number in range(3)]


def set_entry(number: int, place: int) -> Callable[[Path], object]:
    return lambda path: patch(path, TABLE + 4 * number, u32(place))


FIRST, SECOND = (TABLE + 512) // SECTOR, (TABLE + 512) // SECTOR + 1 + BLOCK // SECTOR

HOSTILE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no VHD": ("vhd-footer", lambda path: patch(path, 0, b"x")),
    "wrong checksum": ("vhd-checksum", lambda path: patch(path, 48, u64(4 * BLOCK))),
    "fixed disk": ("vhd-footer", lambda path: set_vhd_footer(path, 60, u32(2))),
    "unknown type": ("vhd-type", lambda path: set_vhd_footer(path, 60, u32(7))),
    "giant disk": ("vhd-size", lambda path: set_vhd_footer(path, 48, u64(LARGEST + SECTOR))),
    "header far away": ("vhd-header", lambda path: set_vhd_footer(path, 16, u64(1 << 40))),
    "header over the footer": ("vhd-order", lambda path: set_vhd_footer(path, 16, u64(256))),
    "no header": ("vhd-header", lambda path: patch(path, 512, b"x")),
    "wrong checksum of the header": ("vhd-checksum", lambda path: patch(path, 512 + 28, u32(4))),
    "odd blocks": ("vhd-blocks", lambda path: set_vhd_header(path, 32, u32(3 * MiB))),
    "huge blocks": ("vhd-blocks", lambda path: set_vhd_header(path, 32, u32(128 * MiB))),
    "too many blocks": ("vhd-blocks", lambda path: set_vhd_header(path, 28, u32((1 << 21) + 1))),
    "giant table": ("vhd-table", lambda path: set_vhd_header(path, 28, u32(0xFFFFFFFF))),
    "small table": ("vhd-table", lambda path: set_vhd_header(path, 28, u32(2))),
    "table at no sector": ("vhd-table", lambda path: set_vhd_header(path, 16, u64(TABLE + 1))),
    "table over the header": ("vhd-order", lambda path: set_vhd_header(path, 16, u64(1024))),
    "table far away": ("vhd-order", lambda path: set_vhd_header(path, 16, u64(1 << 40))),
    "parent of a whole disk": ("vhd-parent", lambda path: set_vhd_header(path, 40, b"\1" * 16)),
    "blocks beyond the disk": ("vhd-table", lambda path: set_vhd_footer(path, 48, u64(2 * BLOCK))),
    "repeated block": ("vhd-order", set_entry(1, FIRST)),
    "overlapping blocks": ("vhd-order", set_entry(1, FIRST + 1)),
    "block over the table": ("vhd-order", set_entry(0, FIRST - 1)),
    "block at 0": ("vhd-order", set_entry(2, 0)),
    "block out of range": ("vhd-order", set_entry(2, 0xFFFFFFFE)),
    "block where the image has ended": ("truncated", set_entry(2, FIRST + 2 * SECOND)),
    "no footer": ("truncated", lambda path: path.write_bytes(path.read_bytes()[:-SECTOR])),
    "cut footer": ("truncated", lambda path: path.write_bytes(path.read_bytes()[:-1])),
    "other footer": ("vhd-footer", lambda path: patch(path, -1, b"\1")),
    "byte behind it": ("vhd-size", lambda path: path.write_bytes(path.read_bytes() + b"\0")),
    "sector behind it": ("vhd-footer", lambda path: path.write_bytes(path.read_bytes() + bytes(512))),
    "no end": ("vhd-order", lambda path: path.write_bytes(path.read_bytes() + bytes(5 * MiB))),
    "nothing": ("truncated", lambda path: path.write_bytes(b"")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images(tmp_path: Path, name: str) -> None:
    rule, change = HOSTILE[name]
    path = whole(tmp_path)
    change(path)
    assert refusal(path.read_bytes()) == rule


def test_fixed_disks_cannot_be_read_forward(tmp_path: Path) -> None:
    path = make_image(tmp_path / "image", ImageFormat.VHD, MiB, options="subformat=fixed,force_size=on")
    assert refusal(path.read_bytes()) == "vhd-footer"


@SOME
@given(history=vhd_histories(most=2), chance=st.randoms(use_true_random=False))
def test_every_part_of_an_image_is_refused(history: VhdHistory, chance: random.Random) -> None:
    image = history.images()[-1]
    for stop in chance.sample([stop for stop in some_cuts(chance, image) if stop < len(image)], 4):
        assert refusal(image[:stop]) in {"truncated", "vhd-footer", "vhd-size"}


SMALL = layout(3 * BLOCK - SECTOR, [Extent(0, BLOCK, zero=False)], unique_id=id_of(1), parent=parent_of(1))
SMALL_IMAGE = finished(SMALL, content(3 * BLOCK))


def resealed(image: bytearray) -> bytearray:
    for start, stop, at in ((0, 512, 64), (512, 1536, 36), (len(image) - 512, len(image), 64)):
        image[start + at : start + at + 4] = bytes(4)
        image[start + at : start + at + 4] = u32(~sum(image[start:stop]) & 0xFFFFFFFF)
    return image


@MANY
@given(
    changes=st.lists(st.tuples(st.integers(0, 3071), st.binary(min_size=1, max_size=4)), min_size=1, max_size=3),
    seal=st.booleans(),
)
def test_damage_is_refused_or_read_to_the_end(changes: list[tuple[int, bytes]], seal: bool) -> None:
    """In the head, the table and the first bitmap, also with checksums that are right."""
    image = bytearray(SMALL_IMAGE)
    for at, data in changes:
        image[at : at + len(data)] = data
    if seal:
        image[-512:] = image[:512]
        resealed(image)
    try:
        read(bytes(image), [3072, MiB])
    except ImageRefused:
        return


def test_memory_does_not_follow_claims_or_data(tmp_path: Path) -> None:
    """A table of two million blocks that never comes, a gap, and many blocks that do."""
    path = set_vhd_header(whole(tmp_path), 28, u32(1 << 21))
    blocks = 50
    made = layout(blocks * BLOCK, [Extent(0, blocks * BLOCK, zero=False)], unique_id=id_of(0))
    claims = path.read_bytes()[: TABLE + KiB]
    tracemalloc.start()
    try:
        claiming, reading = VhdReading(), VhdReading()
        assert len(list(claiming.feed(claims))) == 1
        present = 0
        for data in in_order(made, b"x" * 64 * KiB):
            present += sum(len(event.data) for event in reading.feed(data) if isinstance(event, Present))
        reading.finish()
        assert tracemalloc.get_traced_memory()[1] < 1 * MiB
    finally:
        tracemalloc.stop()
    assert present == blocks * BLOCK
