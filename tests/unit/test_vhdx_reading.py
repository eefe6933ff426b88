"""VHDX read at random: ours, QEMU's and chains, of any size."""

from __future__ import annotations

import asyncio
import random
import struct
import subprocess
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisors.images import qcow2_stream
from hypervisors.images.pieces import ImageLayout, Metadata
from hypervisors.images.streaming import LayoutReader
from hypervisors.images.vhdx_stream import layout
from stores.contract import Extent, GiB, KiB, MiB, ObjectInfo, RangeReader
from stores.errors import IntegrityError, Unavailable
from stores.to import ImageFormat
from stores.transfer.engine import TransferEngine
from tests import vhdx_logs
from tests.disk_histories import finished, sha
from tests.images import BytesReader, disk_digest, make_raw, qemu_io
from tests.vhdx_histories import BLOCK, VhdxHistory, identity_of, parent_of, vhdx_histories
from tests.vhdx_made import (
    CHILD,
    LARGEST,
    PARENT,
    SMALL,
    SOME,
    TABLE,
    logged,
    opened_chain,
    qemu_disk,
    small_images,
    whole_of,
)

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
