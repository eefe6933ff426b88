"""VHDX read at random: ours, QEMU's and chains, closed and not; and all that is refused."""

from __future__ import annotations

import asyncio
import random
import struct
import subprocess
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hypervisors.contract import ImageRefused
from hypervisors.images import qcow2_stream
from hypervisors.images.formats import file_node, json_filename
from hypervisors.images.pieces import ImageLayout, Metadata
from hypervisors.images.streaming import LayoutReader
from hypervisors.images.vhdx_reading import LONGEST_CHAIN, VhdxDisk, disk_of, open_image
from hypervisors.images.vhdx_stream import layout
from stores.contract import Extent, GiB, KiB, MiB, ObjectInfo, RangeReader
from stores.errors import IntegrityError, Unavailable
from stores.to import ImageFormat
from stores.transfer.engine import TransferEngine
from tests import vhdx_logs
from tests.disk_histories import finished, sha
from tests.images import BytesReader, disk_digest, field, make_raw, patch, qemu_io
from tests.images import set_vhdx_headers as set_headers
from tests.images import set_vhdx_regions as set_regions
from tests.vhdx_histories import BLOCK, VhdxHistory, identity_of, parent_of, vhdx_histories

SOME = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
LARGEST = 64 * 1024 * GiB
METADATA, ITEMS, TABLE = 2 * MiB, 2 * MiB + 64 * KiB, 3 * MiB


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


# -------------------------------------------------------------------------------------------------- what is read


@SOME
@given(history=vhdx_histories(most=4), chance=st.randoms(use_true_random=False))
async def test_a_chain_of_ours_in_any_parts(history: VhdxHistory, chance: random.Random) -> None:
    images = history.images()
    expected = history.versions[-1].content
    disk = await opened_chain(images)
    assert disk.info.size == disk.virtual_size == len(expected)
    assert sha(await whole_of(disk)) == sha(expected)
    for _ in range(20):
        start = chance.randint(0, len(expected))
        stop = min(len(expected), start + chance.choice([0, 1, 511, 4096, 70_000, MiB, 3 * MiB]))
        assert await disk.read(start, stop - start) == expected[start:stop]
        end = start
        for extent in await disk.extents(start, stop - start):
            assert extent.offset == end
            end += extent.length
            assert not extent.zero or not any(expected[extent.offset : end])
        assert end == stop


async def test_extents_say_what_is_where() -> None:
    """Zero where a child says so or nobody says anything; data that are written, in whichever image."""
    first = layout(
        4 * BLOCK,
        [Extent(0, 8 * KiB, zero=False), Extent(2 * BLOCK, BLOCK, zero=False)],
        identity=identity_of(0),
        block=BLOCK,
    )
    changes = [
        Extent(4 * KiB, 4 * KiB, zero=True),
        Extent(2 * BLOCK, BLOCK, zero=True),
        Extent(3 * BLOCK, 1, zero=False),
    ]
    second = layout(4 * BLOCK, changes, identity=identity_of(1), block=BLOCK, parent=parent_of(1))
    disk = await opened_chain([finished(made, b"x" * 4 * BLOCK) for made in (first, second)])
    assert await disk.extents(0, 4 * BLOCK) == [
        Extent(0, BLOCK, zero=False),
        Extent(BLOCK, 2 * BLOCK, zero=True),
        Extent(3 * BLOCK, 4 * KiB, zero=False),
        Extent(3 * BLOCK + 4 * KiB, BLOCK - 4 * KiB, zero=True),
    ]
    expected = b"x" * 4 * KiB + bytes(4 * KiB) + bytes(3 * BLOCK - 8 * KiB) + b"x" * 4 * KiB + bytes(BLOCK - 4 * KiB)
    assert sha(await whole_of(disk)) == sha(expected)


@settings(SOME, max_examples=6)
@given(history=vhdx_histories(least=2, most=3))
async def test_a_chain_becomes_one_image_of_another_format(
    history: VhdxHistory, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Laid out by the chain's extents, and streamed from where its files are."""
    path = tmp_path_factory.getbasetemp() / "merged.qcow2"
    disk = await opened_chain(history.images())
    made = qcow2_stream.layout(disk.virtual_size, await disk.extents(0, disk.virtual_size))
    engine = TransferEngine()
    try:
        merged = LayoutReader(made, disk, engine.network.of(disk))
        path.write_bytes(b"".join([bytes(piece) async for piece in engine.stream(merged)]))
    finally:
        await engine.aclose()
    assert disk_digest(path, ImageFormat.QCOW2) == sha(history.versions[-1].content)


@pytest.mark.parametrize("options", ["", "block_size=1M", "subformat=fixed", "block_size=8M,block_state_zero=off"])
async def test_images_by_qemu(tmp_path: Path, options: str) -> None:
    raw = make_raw(tmp_path / "raw", 9 * MiB + 512)
    path = tmp_path / "image"
    told = ["-o", options] if options else []
    command = ["qemu-img", "convert", "-f", "raw", "-O", "vhdx", *told, str(raw), str(path)]
    subprocess.run(command, check=True, capture_output=True)
    disk = await opened_chain([path.read_bytes()])
    assert sha(await whole_of(disk)) == sha(raw.read_bytes())


async def test_blocks_in_another_order_than_the_disks(tmp_path: Path) -> None:
    """As a guest writes them."""
    path = qemu_disk(tmp_path, 7 * MiB)
    qemu_io(path, ImageFormat.VHDX, f"write -P 3 {6 * MiB} 1M", "write -P 1 0 64k", f"write -P 2 {4 * MiB} 1M")
    disk = await opened_chain([path.read_bytes()])
    expected = (b"\1" * 64 * KiB).ljust(4 * MiB, b"\0") + b"\2" * MiB + bytes(MiB) + b"\3" * MiB
    assert sha(await whole_of(disk)) == sha(expected)
    assert [extent.zero for extent in await disk.extents(0, 7 * MiB)] == [False, True, False, True, False]


@pytest.mark.parametrize(
    ("state", "above"), [(0, b"parent"), (1, b"nought"), (2, b"nought"), (3, b"nought"), (6, b"childs")]
)
async def test_states_of_blocks(state: int, above: bytes) -> None:
    """Of a child's block, whatever place stands beside the state."""
    parent, child = (
        bytearray(
            finished(
                layout(
                    BLOCK,
                    [Extent(0, BLOCK, zero=False)],
                    identity=identity_of(number),
                    block=BLOCK,
                    parent=parent_of(1) if number else None,
                ),
                text * (BLOCK // 6 + 1),
            )
        )
        for number, text in enumerate((b"parent", b"childs"))
    )
    (entry,) = struct.unpack_from("<Q", child, TABLE)
    struct.pack_into("<Q", child, TABLE, entry & ~7 | state)
    expected = above if above != b"nought" else bytes(6)
    assert (await whole_of(await opened_chain([parent, child])))[:6] == expected


async def test_a_disk_ends_where_it_ends() -> None:
    disk = await opened_chain([small_images()[0]])
    for beyond in (disk.read(disk.virtual_size - 1, 2), disk.extents(disk.virtual_size, 1)):
        with pytest.raises(IntegrityError):
            await beyond


class Stuck(BytesReader):
    """Whose blocks cannot be read: either it says so, or never answers."""

    def __init__(self, data: bytes, error: Exception | None) -> None:
        super().__init__(data)
        self.asked = asyncio.Event()
        self._error = error

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset >= 5 * MiB:
            self.asked.set()
            if self._error is not None:
                raise self._error
            await asyncio.Event().wait()
        await super().read_into(offset, buffer)


async def test_a_file_that_cannot_be_read() -> None:
    disk = await opened_chain([PARENT, Stuck(CHILD, Unavailable("the share is gone"))])
    with pytest.raises(Unavailable, match="gone"):
        await whole_of(disk)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_read_that_is_cancelled() -> None:
    child = Stuck(CHILD, None)
    disk = await opened_chain([PARENT, child])
    buffer = bytearray(b"!" * 8192)
    task = asyncio.create_task(disk.read_into(4096, memoryview(buffer)))
    await child.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert buffer == b"!" * 8192
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_the_version_is_that_of_all_files() -> None:
    versions: list[str | None] = []
    for first, second in (("1", "2"), ("1", "3"), ("2", "2"), (None, "2")):
        readers = [BytesReader(image, ref=f"{number}.vhdx") for number, image in enumerate(small_images()[:2])]
        for reader, version in zip(readers, (first, second), strict=True):
            reader.info = replace(reader.info, version=version)
        info = (await opened_chain(readers)).info
        assert info.ref == "1.vhdx"
        versions.append(info.version)
    assert len(set(versions)) == 4
    assert versions[-1] is None


# ------------------------------------------------------------------------------------------------ logs replayed


@SOME
@given(history=vhdx_histories(most=2), seed=st.integers(0, 1 << 32))
async def test_tables_that_were_being_written(history: VhdxHistory, seed: int) -> None:
    broken = [vhdx_logs.torn(image, random.Random(seed)) for image in history.images()]
    before = [sha(image) for image in broken]
    assert sha(await whole_of(await opened_chain(broken))) == sha(history.versions[-1].content)
    assert [sha(image) for image in broken] == before


@settings(SOME, max_examples=6)
@given(history=vhdx_histories(sectors=[512]), seed=st.integers(0, 1 << 32))
async def test_qemu_replays_the_same(history: VhdxHistory, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "torn.vhdx"
    path.write_bytes(vhdx_logs.torn(history.images()[0], random.Random(seed)))
    ours = sha(await whole_of(await opened_chain([path.read_bytes()])))
    subprocess.run(["qemu-img", "check", "-f", "vhdx", "-r", "all", str(path)], check=True, capture_output=True)
    assert not any(field(path, 64 * KiB + 48, 16))
    assert ours == disk_digest(path, ImageFormat.VHDX)


def qemu_disk(directory: Path, size: int) -> Path:
    path = directory / "image.vhdx"
    command = ["qemu-img", "create", "-f", "vhdx", "-o", "block_size=1M", str(path), str(size)]
    subprocess.run(command, check=True, capture_output=True)
    return path


async def test_an_image_that_qemu_could_not_finish(tmp_path: Path) -> None:
    """It has written the log, and then cannot write the block table."""
    path = qemu_disk(tmp_path, 5 * MiB)
    qemu_io(path, ImageFormat.VHDX, "write -P 1 0 1M")
    table = struct.unpack("<Q", field(path, 192 * KiB + 16 + 16, 8))[0]
    fails = {"event": "none", "iotype": "write", "sector": table // 512, "errno": 5}
    node = {"driver": "vhdx", "file": {"driver": "blkdebug", "image": file_node(str(path)), "inject-error": [fails]}}
    command = ["qemu-io", "-c", f"write -P 2 {3 * MiB + 4096} 64k", json_filename(node)]
    told = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "Input/output error" in told.stdout + told.stderr
    assert any(field(path, 64 * KiB + 48, 16))
    before = sha(path.read_bytes())
    ours = await whole_of(await opened_chain([path.read_bytes()]))
    assert ours[3 * MiB + 4096 :][: 64 * KiB] == b"\2" * 64 * KiB
    assert sha(path.read_bytes()) == before
    subprocess.run(["qemu-img", "check", "-f", "vhdx", "-r", "all", str(path)], check=True, capture_output=True)
    assert sha(ours) == disk_digest(path, ImageFormat.VHDX)


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


async def test_a_file_that_was_growing() -> None:
    """Its last block is zero, not in the file yet, and the log says how large it is."""
    image = finished(layout(2 * BLOCK, [Extent(0, 2 * BLOCK, zero=False)], identity=identity_of(0), block=BLOCK), ONES)
    grown = bytearray(image[:-BLOCK])
    vhdx_logs.put(grown, [vhdx_logs.entry([], 1, 0, size=len(image), flushed=len(grown))], 0)
    vhdx_logs.mark_open(grown)
    assert sha(await whole_of(await opened_chain([grown]))) == sha(ONES[:BLOCK] + bytes(BLOCK))


async def test_later_writes_lie_over_earlier_ones() -> None:
    """Zeroes over data over zeroes, in one entry and in several; also over blocks."""
    place = len(SMALL) - BLOCK
    writes: list[list[vhdx_logs.Data | vhdx_logs.Zeroes]] = [
        [vhdx_logs.Zeroes(place, 64 * KiB), vhdx_logs.Data(place + 4 * KiB, b"a" * 4096)],
        [vhdx_logs.Data(place + 8 * KiB, b"b" * 4096), vhdx_logs.Zeroes(place + 8 * KiB, 8 * KiB)],
        [vhdx_logs.Data(place + 12 * KiB, b"c" * 4096), vhdx_logs.Data(place + 12 * KiB, b"d" * 4096)],
    ]
    entries = [vhdx_logs.entry(some, 7 + number, 0, size=len(SMALL)) for number, some in enumerate(writes)]
    found = await whole_of(await opened_chain([logged(*entries)]))
    expected = bytes(4096) + b"a" * 4096 + bytes(4096) + b"d" * 4096 + bytes(48 * KiB)
    assert found[BLOCK:][: 64 * KiB] == expected


async def test_an_entry_may_have_padding() -> None:
    place = len(SMALL) - BLOCK
    entry = vhdx_logs.entry([vhdx_logs.Data(place, b"a" * 4096)], 1, 0, size=len(SMALL)).ljust(64 * KiB, b"\0")
    found = await whole_of(await opened_chain([logged(changed(entry, 8, u32(64 * KiB)))]))
    assert found[BLOCK:][:4096] == b"a" * 4096


async def test_what_comes_before_the_tail_was_done() -> None:
    place = len(SMALL) - BLOCK
    done = vhdx_logs.entry([vhdx_logs.Data(place, b"a" * 4096)], 1, 0, size=len(SMALL))
    to_do = vhdx_logs.entry([vhdx_logs.Data(place + 4096, b"b" * 4096)], 2, len(done), size=len(SMALL))
    found = await whole_of(await opened_chain([logged(done, to_do)]))
    assert b"a" * 4096 not in found
    assert b"b" * 4096 in found


def changed(made: bytes, at: int, data: bytes, *, seal: bool = True) -> bytes:
    made = made[:at] + data + made[at + len(data) :]
    return vhdx_logs.sealed(made) if seal else made


ONES = b"1" * 4 * BLOCK
SMALL = finished(layout(2 * BLOCK, [Extent(0, 2 * BLOCK, zero=False)], identity=identity_of(0), block=BLOCK), ONES)
ENTRY = vhdx_logs.entry(
    [vhdx_logs.Data(TABLE + 4096, bytes(4096)), vhdx_logs.Zeroes(TABLE + 8192, 4096)], 5, 0, size=len(SMALL)
)

BROKEN_LOGS = {
    "empty": logged(),
    "of another file": logged(vhdx_logs.entry([], 5, 0, size=len(SMALL), log=b"other" * 4)),
    "wrong checksum": logged(changed(ENTRY, 8000, b"x", seal=False)),
    "no signature": logged(changed(ENTRY, 0, b"x")),
    "no length": logged(changed(ENTRY, 8, bytes(4))),
    "odd length": logged(changed(ENTRY, 8, struct.pack("<I", 4097))),
    "far longer than what is in it": logged(changed(ENTRY.ljust(128 * KiB, b"\0"), 8, u32(128 * KiB))),
    "longer than the log": logged(changed(ENTRY, 8, struct.pack("<I", 2 * MiB))),
    "its tail elsewhere": logged(changed(ENTRY, 12, struct.pack("<I", 4096))),
    "number 0": logged(changed(ENTRY, 16, bytes(8))),
    "another number": logged(changed(ENTRY, 16, b"\6")),
    "many descriptors": logged(changed(ENTRY, 24, struct.pack("<I", 0xFFFFFFFF))),
    "unknown descriptor": logged(changed(ENTRY, 64, b"what")),
    "descriptor of another entry": logged(changed(ENTRY, 64 + 24, b"\6")),
    "place between sectors": logged(changed(ENTRY, 64 + 16, b"\1")),
    "zeroes of odd length": logged(changed(ENTRY, 96 + 8, b"\1")),
    "data of another entry": logged(changed(ENTRY, 8188, b"\6")),
    "no data": logged(changed(ENTRY, 4096, b"what")),
    "data missing": logged(changed(ENTRY, 96, b"desc")),
    "gap": logged(
        changed(vhdx_logs.entry([], 5, 8192, size=len(SMALL)), 0, b""), vhdx_logs.entry([], 7, 0, size=len(SMALL))
    ),
}


@pytest.mark.parametrize("name", BROKEN_LOGS)
async def test_logs_that_cannot_be_replayed(name: str) -> None:
    assert await rule_of(BROKEN_LOGS[name]) == "vhdx-log"


@pytest.mark.parametrize(
    ("at", "data"), [(68, bytes(4)), (68, struct.pack("<I", 8 * MiB)), (72, bytes(8)), (72, struct.pack("<Q", MiB + 1))]
)
async def test_logs_that_cannot_be_there(tmp_path: Path, at: int, data: bytes) -> None:
    path = tmp_path / "image"
    path.write_bytes(logged(ENTRY))
    assert await rule_of(set_headers(path, at, data).read_bytes()) == "vhdx-log"


async def test_a_file_that_lost_its_end() -> None:
    assert await rule_of(logged(ENTRY, cut=MiB)) == "truncated"
    assert await rule_of(SMALL[:-1]) == "truncated"


# ------------------------------------------------------------------------------------------------ what is refused


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


PARENT, CHILD, _ = small_images()


# --------------------------------------------------------------------------------------------------------- extremes


class LaidOut(RangeReader):
    """An image that is only laid out, of a disk that is full of one byte."""

    def __init__(self, made: ImageLayout, pattern: bytes) -> None:
        self.info = ObjectInfo("laid out", made.size)
        self._made = made
        self._pattern = pattern

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        position = 0
        for piece in self._made.pieces(offset, offset + len(buffer)):
            data = piece.content if isinstance(piece, Metadata) else self._pattern * piece.length
            buffer[position : position + len(data)] = data
            position += len(data)


async def test_the_largest_disk() -> None:
    places = [0, 33_000 * GiB + 12 * KiB, LARGEST - 8 * KiB]
    first = layout(LARGEST, [Extent(at, 8 * KiB, zero=False) for at in places], identity=identity_of(0))
    changes = [Extent(LARGEST - 4 * KiB, 4 * KiB, zero=False)]
    second = layout(LARGEST, changes, identity=identity_of(1), parent=parent_of(1))
    disk = await opened_chain([LaidOut(first, b"P"), LaidOut(second, b"C")])
    assert await disk.read(LARGEST - 16 * KiB, 16 * KiB) == bytes(8 * KiB) + b"P" * 4096 + b"C" * 4096
    extents = await disk.extents(0, LARGEST)
    data = [extent.offset // (32 * MiB) for extent in extents if not extent.zero]
    assert data == [place // (32 * MiB) for place in places]
    assert extents[-1] == Extent(LARGEST - 32 * MiB, 32 * MiB, zero=False)


async def test_many_reads_at_once() -> None:
    """Of more parts of the table than are kept."""
    places = [number * 700 * GiB + number * 4096 for number in range(90)]
    made = layout(LARGEST, [Extent(at, 8 * KiB, zero=False) for at in places], identity=identity_of(0), block=MiB)
    disk = await opened_chain([LaidOut(made, b"P")])
    found = await asyncio.gather(*(disk.read(at, 16 * KiB) for at in places * 3))
    assert found == [b"P" * 8 * KiB + bytes(8 * KiB)] * len(found)


async def test_memory_follows_neither_tables_nor_logs_nor_bitmaps() -> None:
    """A table of 512 MiB, a log full of writes, and a block of 256 MiB of which every other sector is there."""
    large = layout(LARGEST, [], identity=identity_of(0), block=MiB)
    chance = random.Random(3)
    writes = [
        vhdx_logs.Zeroes(chance.randrange(0, 1 << 40, 4096), chance.randrange(0, 1 << 30, 4096)) for _ in range(8000)
    ]
    image = logged(vhdx_logs.entry(writes, 1, 0, size=len(SMALL)))
    block = 256 * MiB
    made = layout(block, [Extent(0, 4096, zero=False)], identity=identity_of(1), block=block, parent=parent_of(1))
    below = layout(block, [], identity=identity_of(0))
    tracemalloc.start()
    try:
        await (await opened_chain([LaidOut(large, b"")])).extents(0, 4096 * GiB)
        assert tracemalloc.get_traced_memory()[1] < 6 * MiB
        await opened_chain([image])
        disk = await opened_chain([LaidOut(below, b""), Striped(made, b"C")])
        assert await disk.read(100 * MiB, 2048) == (b"C" * 512 + bytes(512)) * 2
        assert tracemalloc.get_traced_memory()[1] < 24 * MiB
    finally:
        tracemalloc.stop()


class Striped(LaidOut):
    """Of whose sectors every other one is there, and the block full of the pattern."""

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        await super().read_into(offset, buffer)
        if 4 * MiB <= offset < 5 * MiB:
            buffer[:] = b"\x55" * len(buffer)
        elif offset >= 5 * MiB:
            buffer[:] = self._pattern * len(buffer)
