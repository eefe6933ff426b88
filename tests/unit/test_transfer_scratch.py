"""Files without a name: what was appended is read, a full or missing directory is an error, and nothing is left."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from stores.contract import Extent, KiB, MiB, ObjectInfo, RangeReader
from stores.errors import IntegrityError, NoSpace, NotFound
from stores.transfer.engine import TransferEngine
from stores.transfer.slices import Slice
from tests.doubles.mounts import mounted_tmpfs


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[TransferEngine]:
    engine = TransferEngine(scratch=tmp_path / "scratch")
    yield engine
    await engine.aclose()


async def test_what_was_appended_is_read_and_gone_at_the_end(engine: TransferEngine, tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    data = os.urandom(3 * MiB + 5)
    scratch = engine.scratch_file()
    before = set(os.listdir("/proc/self/fd"))
    for start in range(0, len(data), MiB):
        await scratch.append(memoryview(data)[start : start + MiB])
    assert scratch.info.size == len(data)
    assert await scratch.read(MiB - 3, 2 * MiB) == data[MiB - 3 : 3 * MiB - 3]
    with pytest.raises(IntegrityError, match="ends at byte"):
        await scratch.read(3 * MiB, 6)
    assert list(folder.iterdir()) == []
    await scratch.close()
    await scratch.close()
    assert set(os.listdir("/proc/self/fd")) <= before


async def test_full_directory_says_what_is_needed(engine: TransferEngine, tmp_path: Path) -> None:
    with mounted_tmpfs(tmp_path / "scratch", options="size=1m"):
        scratch = engine.scratch_file()
        await scratch.append(memoryview(bytes(512 * KiB)))
        with pytest.raises(NoSpace) as full:
            await scratch.append(memoryview(os.urandom(2 * MiB)))
        assert full.value.details["path"] == str(tmp_path / "scratch")
        await scratch.close()


async def test_missing_directory_is_named(engine: TransferEngine, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=str(tmp_path)):
        await engine.scratch_file().append(memoryview(b"x"))


class Holes(RangeReader):
    """Ten bytes of data in every hundred."""

    info = ObjectInfo("holes", 1000, "v")

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = bytes(at % 251 for at in range(offset, offset + len(buffer)))

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        found = []
        while length:
            data = offset % 100 < 10
            count = min(length, (10 if data else 100) - offset % 100)
            found.append(Extent(offset, count, zero=not data))
            offset, length = offset + count, length - count
        return found


async def test_slice_is_an_object_of_its_own() -> None:
    part = Slice(Holes(), 95, 210)
    assert part.info == ObjectInfo("holes", 115, "v")
    assert await part.read(3, 50) == await Holes().read(98, 50)
    assert await part.extents(0, 115) == [
        Extent(0, 5, zero=True),
        Extent(5, 10, zero=False),
        Extent(15, 90, zero=True),
        Extent(105, 10, zero=False),
    ]
