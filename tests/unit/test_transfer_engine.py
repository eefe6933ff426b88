"""The engine over readers in memory: content, digests, holes, limits, cancellation, sharing."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest

from stores.contract import Extent, KiB, MiB, ObjectInfo, RangeReader
from stores.errors import IntegrityError, NotFound, TooLarge, Unavailable
from stores.transfer.buffers import PIECE
from stores.transfer.engine import TransferEngine
from stores.transfer.ranges import Ranges


class Memory(RangeReader):
    """Content in memory; `gate` holds reads back, `fail_at` breaks the one that covers it."""

    def __init__(self, content: bytes, extents: Sequence[Extent] | None = None) -> None:
        self.info = ObjectInfo("memory", len(content))
        self.content = content
        self.known = extents
        self.gate: asyncio.Event | None = None
        self.fail_at: int | None = None
        self.under_way = 0
        self.most = 0
        self.read_bytes = 0

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(0)
            if self.gate is not None:
                await self.gate.wait()
            if self.fail_at is not None and offset <= self.fail_at < offset + len(buffer):
                raise Unavailable("broken on purpose")
            buffer[:] = self.content[offset : offset + len(buffer)]
            self.read_bytes += len(buffer)
        finally:
            self.under_way -= 1

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        return self.known if self.known is not None else await super().extents(offset, length)


class Counting:
    def __init__(self) -> None:
        self.done = 0
        self.calls = 0

    def phase(self, name: str, total: int | None = None) -> None:
        raise AssertionError("phases are the caller's")

    def advance(self, count: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.done += count
        self.calls += 1


@pytest.fixture
async def engine() -> AsyncIterator[TransferEngine]:
    """Nothing of it is left at the end: no buffer, thread, descriptor or task."""
    threads, files = set(threading.enumerate()), set(os.listdir("/proc/self/fd"))
    found = TransferEngine(memory=8 * PIECE, threads=8)
    yield found
    assert found.buffers.taken == 0
    await found.aclose()
    await found.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    left = {thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")}
    assert left <= threads
    assert set(os.listdir("/proc/self/fd")) <= files


CONTENT = os.urandom(5 * PIECE) + bytes(3 * PIECE) + os.urandom(PIECE + 12345)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 4096, PIECE, PIECE + 1, len(CONTENT)])
async def test_fetch_brings_content_digests_and_progress(engine: TransferEngine, tmp_path: Path, size: int) -> None:
    source, progress = Memory(CONTENT[:size]), Counting()
    found = await engine.fetch(source, tmp_path / "file", digests=["sha256", "md5"], progress=progress)
    assert (tmp_path / "file").read_bytes() == CONTENT[:size]
    assert found.size == progress.done == size
    assert found.digests == {"sha256": sha256(CONTENT[:size]), "md5": hashlib.md5(CONTENT[:size]).hexdigest()}


async def test_fetch_replaces_what_was_in_the_file(engine: TransferEngine, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xff" * 3 * PIECE)
    await engine.fetch(Memory(bytes(PIECE)), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == bytes(PIECE)


async def test_holes_are_neither_read_nor_written(engine: TransferEngine, tmp_path: Path) -> None:
    content = os.urandom(64 * KiB) + bytes(6 * PIECE - 64 * KiB) + os.urandom(PIECE)
    extents = [
        Extent(0, 64 * KiB, False),
        Extent(64 * KiB, 6 * PIECE - 64 * KiB, True),
        Extent(6 * PIECE, PIECE, False),
    ]
    source, progress = Memory(content, extents), Counting()
    found = await engine.fetch(source, tmp_path / "file", digests=["sha256"], progress=progress)
    assert (tmp_path / "file").read_bytes() == content
    assert found.digests["sha256"] == sha256(content)
    assert source.read_bytes == 2 * PIECE
    assert progress.done == len(content)
    assert (tmp_path / "file").stat().st_blocks * 512 <= (PIECE + 64 * KiB) * 1.02


async def test_zero_blocks_inside_data_take_no_room(engine: TransferEngine, tmp_path: Path) -> None:
    content = b"".join(os.urandom(64 * KiB) + bytes(192 * KiB) for _ in range(16))
    await engine.fetch(Memory(content), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == content
    assert (tmp_path / "file").stat().st_blocks * 512 <= len(content) / 4 * 1.02


async def test_an_interrupted_fetch_goes_on_with_what_is_whole(engine: TransferEngine, tmp_path: Path) -> None:
    path = tmp_path / "file"
    left = bytearray(os.urandom(len(CONTENT)))  # garbage in the places that were not whole, those of zeroes included
    whole = [(0, 2 * PIECE), (3 * PIECE - 100, 4 * PIECE), (6 * PIECE, 7 * PIECE)]
    for start, end in whole:
        left[start:end] = CONTENT[start:end]
    path.write_bytes(left)
    source, progress = Memory(CONTENT), Counting()
    arrived: list[tuple[int, int]] = []
    found = await engine.fetch(
        source,
        path,
        digests=["sha256"],
        progress=progress,
        whole=whole,
        arrived=lambda start, end: arrived.append((start, end)),
    )
    assert path.read_bytes() == CONTENT
    assert found.digests["sha256"] == sha256(CONTENT)
    assert source.read_bytes == len(CONTENT) - 4 * PIECE
    assert progress.done == len(CONTENT)
    assert list(Ranges(arrived)) == [(0, len(CONTENT))]


async def test_holes_of_the_source_hide_what_an_interrupted_fetch_left(engine: TransferEngine, tmp_path: Path) -> None:
    content = bytes(3 * PIECE) + os.urandom(PIECE)
    source = Memory(content, [Extent(0, 3 * PIECE, True), Extent(3 * PIECE, PIECE, False)])
    (tmp_path / "file").write_bytes(b"\xff" * (3 * PIECE) + content[3 * PIECE :])
    found = await engine.fetch(source, tmp_path / "file", digests=["sha256"], whole=[(3 * PIECE, 4 * PIECE)])
    assert (tmp_path / "file").read_bytes() == content
    assert found.digests["sha256"] == sha256(content)
    assert source.read_bytes == 0


async def test_what_was_left_must_be_there(engine: TransferEngine, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await engine.fetch(Memory(CONTENT), tmp_path / "file", whole=[(0, PIECE)])
    (tmp_path / "file").write_bytes(CONTENT[:-1])
    with pytest.raises(IntegrityError):
        await engine.fetch(Memory(CONTENT), tmp_path / "file", whole=[(0, PIECE)])
    assert (tmp_path / "file").read_bytes() == CONTENT[:-1]


async def test_an_unknown_size_is_refused(engine: TransferEngine, tmp_path: Path) -> None:
    source = Memory(b"")
    source.info = ObjectInfo("memory", None)
    with pytest.raises(IntegrityError, match="size"):
        await engine.fetch(source, tmp_path / "file")


@pytest.mark.parametrize("digests", [[], ["sha256"]])
async def test_the_first_failure_ends_the_fetch(engine: TransferEngine, tmp_path: Path, digests: list[str]) -> None:
    source = Memory(CONTENT)
    source.fail_at = 3 * PIECE + 5
    with pytest.raises(Unavailable, match="on purpose"):
        await engine.fetch(source, tmp_path / "file", digests=digests)
    assert source.under_way == 0


async def test_a_destination_that_cannot_be_made_is_said(engine: TransferEngine, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await engine.fetch(Memory(CONTENT), tmp_path / "missing" / "file")


@pytest.mark.parametrize("digests", [[], ["sha256"]])
async def test_a_cancelled_fetch_leaves_nothing_running(
    engine: TransferEngine, tmp_path: Path, digests: list[str]
) -> None:
    source = Memory(CONTENT)
    source.gate = asyncio.Event()
    task = asyncio.create_task(engine.fetch(source, tmp_path / "file", digests=digests))
    while source.under_way < 2:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.under_way == 0


async def test_twelve_transfers_share_eight_buffers(engine: TransferEngine, tmp_path: Path) -> None:
    contents = [os.urandom(2 * PIECE + number) for number in range(12)]
    found = await asyncio.wait_for(
        asyncio.gather(
            *(
                engine.fetch(Memory(content), tmp_path / str(number), digests=["sha256"])
                for number, content in enumerate(contents)
            )
        ),
        60,
    )
    for number, content in enumerate(contents):
        assert found[number].digests["sha256"] == sha256(content)
        assert (tmp_path / str(number)).read_bytes() == content


async def test_stalled_transfers_do_not_keep_a_new_one_from_its_turn(engine: TransferEngine, tmp_path: Path) -> None:
    stalled = Memory(CONTENT)
    stalled.gate = asyncio.Event()
    slow = [asyncio.create_task(engine.fetch(stalled, tmp_path / f"slow{number}")) for number in range(2)]
    while not stalled.under_way:
        await asyncio.sleep(0.001)
    await asyncio.wait_for(engine.fetch(Memory(CONTENT), tmp_path / "quick"), 30)
    assert (tmp_path / "quick").read_bytes() == CONTENT
    stalled.gate.set()
    await asyncio.gather(*slow)
    assert (tmp_path / "slow1").read_bytes() == CONTENT


async def test_a_stream_is_in_order_and_reads_ahead(engine: TransferEngine) -> None:
    source = Memory(CONTENT)
    collected = bytearray()
    async for piece in engine.stream(source):
        assert len(piece) <= 4 * MiB
        collected += piece
        await asyncio.sleep(0.001)
    assert collected == CONTENT
    assert source.most > 1


async def test_a_stream_left_early_gives_everything_back(engine: TransferEngine) -> None:
    source = Memory(CONTENT)
    async with aclosing(aiter(engine.stream(source))) as stream:  # type: ignore[type-var]
        async for piece in stream:
            assert piece == CONTENT[: len(piece)]
            break
    assert source.under_way == 0
    assert engine.buffers.taken == 0


async def test_a_failing_stream_says_why_and_gives_everything_back(engine: TransferEngine) -> None:
    source = Memory(CONTENT)
    source.fail_at = 2 * PIECE
    with pytest.raises(Unavailable, match="on purpose"):
        async for _ in engine.stream(source):
            pass
    assert engine.buffers.taken == 0


async def test_digest_of_a_reader_with_holes(engine: TransferEngine) -> None:
    content = bytes(2 * PIECE) + os.urandom(77)
    source = Memory(content, [Extent(0, 2 * PIECE, True), Extent(2 * PIECE, 77, False)])
    assert await engine.digest(source, ["sha256"]) == {"sha256": sha256(content)}
    assert source.read_bytes == 77


async def _chunks(content: bytes, size: int) -> AsyncIterator[memoryview]:
    for start in range(0, len(content), size):
        yield memoryview(content)[start : start + size]


@pytest.mark.parametrize("chunk", [PIECE, 1_000_003])
async def test_store_stream_brings_content_and_digests(engine: TransferEngine, tmp_path: Path, chunk: int) -> None:
    progress = Counting()
    found = await engine.store_stream(
        _chunks(CONTENT, chunk), tmp_path / "file", limit=len(CONTENT), digests=["sha256"], progress=progress
    )
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert (found.size, found.digests) == (len(CONTENT), {"sha256": sha256(CONTENT)})
    assert progress.done == len(CONTENT)
    assert (tmp_path / "file").stat().st_blocks * 512 < len(CONTENT) - 2 * PIECE


async def test_a_stream_into_a_file_that_reads_ahead(engine: TransferEngine, tmp_path: Path) -> None:
    await asyncio.wait_for(
        asyncio.gather(
            *(engine.store_stream(engine.stream(Memory(CONTENT)), tmp_path / str(number)) for number in range(10))
        ),
        60,
    )
    assert all((tmp_path / str(number)).read_bytes() == CONTENT for number in range(10))


async def test_nothing_past_the_limit_is_written(engine: TransferEngine, tmp_path: Path) -> None:
    with pytest.raises(TooLarge) as failure:
        await engine.store_stream(_chunks(CONTENT, MiB), tmp_path / "file", limit=3 * MiB - 1)
    assert failure.value.details == {"limit": 3 * MiB - 1, "seen": 3 * MiB}
    assert (tmp_path / "file").stat().st_size <= 3 * MiB - 1


async def test_run_returns_and_raises(engine: TransferEngine) -> None:
    assert await engine.run(int, "ff", base=16) == 255
    with pytest.raises(ValueError, match="invalid literal"):
        await engine.run(int, "no")
