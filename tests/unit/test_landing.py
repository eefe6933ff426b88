"""Bytes on their way into a file: what the gate has seen stays, shared blocks, holes, bounds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisors import inspected, landing
from hypervisors.contract import ImageSpec, Source
from hypervisors.inspected import InspectedReader, lay_over
from hypervisors.landing import clone_file, land
from hypervisors.local_file import open_file
from stores.contract import KiB, LocalPath, MiB, ObjectInfo, RangeReader, Silent
from stores.errors import ChecksumMismatch, IntegrityError, NotFound, TooLarge
from stores.to import ImageFormat
from stores.transfer.digests import Checksum
from stores.transfer.engine import TransferEngine
from stores.transfer.threads import Threads
from tests.doubles.disk_images import disk_content, file_hash

# --------------------------------------------------------------------------------------------- what the gate has seen


class Fickle(RangeReader):
    """A hostile server: other content each time."""

    def __init__(self, size: int = 64 * MiB) -> None:
        self.info = ObjectInfo("object", size)
        self.calls = 0

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        self.calls += 1
        buffer[:] = bytes([self.calls % 256]) * len(buffer)


async def test_what_the_gate_saw_is_what_everybody_gets() -> None:
    reader = InspectedReader(Fickle())
    assert await reader.read(100, 50) == b"\1" * 50
    assert await reader.read(120, 100) == b"\1" * 30 + b"\2" * 70  # the gate's own second look, too
    reader.seal()
    assert await reader.read(90, 140) == b"\3" * 10 + b"\1" * 50 + b"\2" * 70 + b"\3" * 10
    assert await reader.read(0, 10) == b"\4" * 10
    assert await reader.read(0, 10) == b"\5" * 10  # nothing is kept any more


@pytest.mark.parametrize("sealed", [False, True])
async def test_bulk_reads_get_what_the_gate_saw_too(sealed: bool) -> None:
    reader, threads, found = InspectedReader(Fickle()), Threads("test-inspected", 1), list[bytes]()
    await reader.read(100, 50)
    if sealed:
        reader.seal()
    parts = iter([(90, memoryview(bytearray(20))), (110, memoryview(bytearray(50)))])
    await reader.read_each(lambda: next(parts, None), lambda offset, view: found.append(bytes(view)), threads)
    threads.close()
    assert found == [b"\2" * 10 + b"\1" * 10, b"\1" * 40 + b"\3" * 10]


async def test_an_inspection_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspected, "KEPT_LIMIT", 100)
    reader = InspectedReader(Fickle())
    await reader.read(0, 100)
    with pytest.raises(TooLarge):
        await reader.read(0, 1)


@given(
    st.integers(0, 20),
    st.integers(0, 20),
    st.lists(st.tuples(st.integers(0, 30), st.binary(max_size=10)), max_size=5),
)
def test_laying_over(offset: int, length: int, pieces: list[tuple[int, bytes]]) -> None:
    whole = bytearray(64)
    for start, content in pieces:
        whole[start : start + len(content)] = content
    buffer = bytearray(length)
    lay_over(memoryview(buffer), offset, pieces)
    assert buffer == whole[offset : offset + length]


# ---------------------------------------------------------------------------------------------------------- local files


async def test_local_source_keeps_its_holes(engine: TransferEngine, tmp_path: Path) -> None:
    origin, target = tmp_path / "origin", tmp_path / "target"
    with origin.open("wb") as file:
        file.write(b"x" * 64 * KiB)
        file.truncate(64 * MiB)
    target.touch()
    source = Source(LocalPath(origin, ObjectInfo("origin", 64 * MiB)), ImageSpec(ImageFormat.RAW))
    checksum = Checksum("sha256", file_hash(origin))
    digests = await land(engine, source, target, limit=64 * MiB, checksum=checksum, progress=Silent())
    assert digests == {"sha256": file_hash(target)}
    assert target.stat().st_blocks * 512 < 2 * MiB


@pytest.mark.parametrize("shares", [True, False])
async def test_shared_blocks_are_digested_all_the_same(
    engine: TransferEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares: bool
) -> None:
    """Where the file system can share blocks nothing is moved, but a checksum still counts."""
    origin, target = tmp_path / "origin", tmp_path / "target"
    origin.write_bytes(disk_content())
    target.touch()

    def sharing(source: Path, target: Path) -> bool:
        if shares:
            target.write_bytes(source.read_bytes())
        return shares

    monkeypatch.setattr(landing, "clone_file", sharing)
    source = Source(LocalPath(origin, ObjectInfo("origin", origin.stat().st_size)), ImageSpec(ImageFormat.RAW))
    right, wrong = Checksum("sha256", file_hash(origin)), Checksum("sha256", "0" * 64)
    await land(engine, source, target, limit=64 * MiB, checksum=right, progress=Silent())
    assert file_hash(target) == right.hex
    with pytest.raises(ChecksumMismatch):
        await land(engine, source, target, limit=64 * MiB, checksum=wrong, progress=Silent())


def test_file_systems_that_cannot_share_blocks(tmp_path: Path) -> None:
    """ext4, as here, cannot; nothing has happened to the target then."""
    (tmp_path / "a").write_bytes(b"a" * 8192)
    (tmp_path / "b").write_bytes(b"before")
    if not clone_file(tmp_path / "a", tmp_path / "b"):
        assert (tmp_path / "b").read_bytes() == b"before"
    else:
        assert (tmp_path / "b").read_bytes() == b"a" * 8192


async def test_file_that_is_read(engine: TransferEngine, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    os.truncate(path, 1 * MiB)
    async with open_file(path, engine) as reader:
        assert reader.info.size == 1 * MiB
        assert await reader.read(2, 3) == b"234"
        extents = await reader.extents(0, 1 * MiB)
        assert [extent.zero for extent in extents] == [False, True]
        assert sum(extent.length for extent in extents) == 1 * MiB
        with pytest.raises(IntegrityError):
            await reader.read(1 * MiB - 1, 2)
    with pytest.raises(NotFound):
        async with open_file(tmp_path / "missing", engine):
            pass
