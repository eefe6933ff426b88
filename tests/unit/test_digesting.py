"""The digest that follows a tool's reads: right for every order of reads, and cheap for the usual ones."""

from __future__ import annotations

import asyncio
import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisors import digesting
from hypervisors.digesting import DigestingReader
from stores.contract import KiB, ObjectInfo, RangeReader
from stores.errors import StoreUnsupported, Unavailable
from stores.transfer.engine import TransferEngine

CONTENT = random.Random(5).randbytes(300 * KiB)
DIGEST = {"sha256": hashlib.sha256(CONTENT).hexdigest()}
BLOCK = 10 * KiB


class Slow(RangeReader):
    """Reads that end in an order of their own."""

    def __init__(self, seed: int = 0, fails_at: int | None = None) -> None:
        self.info = ObjectInfo("object", len(CONTENT))
        self.read_bytes = 0
        self._random = random.Random(seed)
        self._fails_at = fails_at

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        for _ in range(self._random.randrange(4)):
            await asyncio.sleep(0)
        if offset == self._fails_at:
            raise Unavailable("the server is gone")
        buffer[:] = CONTENT[offset : offset + len(buffer)]
        self.read_bytes += len(buffer)


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the object were a thousand times as large."""
    monkeypatch.setattr(digesting, "KEPT_LIMIT", 3 * BLOCK)
    monkeypatch.setattr(digesting, "REACH", 10 * BLOCK)


async def read_all(reader: RangeReader, offsets: list[int], *, at_once: int = 8) -> None:
    """As qemu does: several coroutines that take the next block each."""
    waiting = iter(offsets)

    async def coroutine() -> None:
        for offset in waiting:
            length = min(BLOCK, len(CONTENT) - offset)
            assert await reader.read(offset, length) == CONTENT[offset : offset + length]

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(coroutine())


ALL = list(range(0, len(CONTENT), BLOCK))


@pytest.mark.usefixtures("little_room")
@pytest.mark.parametrize("seed", range(5))
async def test_blocks_in_order_are_read_once(engine: TransferEngine, seed: int) -> None:
    inner = Slow(seed)
    reader = DigestingReader(inner, "sha256", engine)
    await read_all(reader, ALL)
    assert await reader.finish() == DIGEST
    assert inner.read_bytes == len(CONTENT)


@pytest.mark.usefixtures("little_room")
async def test_skipped_blocks_are_read_in_addition(engine: TransferEngine) -> None:
    """A block that nobody had begun to read when the room ran out may come twice."""
    inner = Slow()
    reader = DigestingReader(inner, "sha256", engine)
    await read_all(reader, [offset for offset in ALL if offset % (5 * BLOCK)])
    assert await reader.finish() == DIGEST
    assert len(CONTENT) <= inner.read_bytes <= len(CONTENT) + 3 * BLOCK


@pytest.mark.usefixtures("little_room")
async def test_the_end_first(engine: TransferEngine) -> None:
    """As with a VHD, whose footer is read before anything else: it is too far ahead to count, and costs itself."""
    inner = Slow()
    reader = DigestingReader(inner, "sha256", engine)
    await read_all(reader, [ALL[-1], *ALL[:-1]], at_once=1)
    assert await reader.finish() == DIGEST
    assert inner.read_bytes == len(CONTENT) + BLOCK


@pytest.mark.usefixtures("little_room")
async def test_nothing_was_read(engine: TransferEngine) -> None:
    inner = Slow()
    assert await DigestingReader(inner, "sha256", engine).finish() == DIGEST


@settings(max_examples=60, deadline=None)
@given(
    offsets=st.lists(st.sampled_from(ALL), max_size=60),
    at_once=st.integers(1, 8),
    seed=st.integers(0, 1000),
    kept=st.integers(0, 5),
    reach=st.integers(1, 40),
)
def test_any_order(offsets: list[int], at_once: int, seed: int, kept: int, reach: int) -> None:
    """Also the same block several times; it always ends, and never reads more than what was asked for and the whole once."""

    async def run() -> tuple[dict[str, str], int]:
        engine = TransferEngine()
        try:
            inner = Slow(seed)
            reader = DigestingReader(inner, "sha256", engine)
            async with asyncio.timeout(20):
                await read_all(reader, offsets, at_once=at_once)
                return await reader.finish(), inner.read_bytes
        finally:
            await engine.aclose()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digesting, "KEPT_LIMIT", kept * BLOCK)
        patch.setattr(digesting, "REACH", reach * BLOCK)
        digest, read_bytes = asyncio.run(run())
    assert digest == DIGEST
    assert read_bytes <= len(CONTENT) + len(offsets) * BLOCK


@pytest.mark.usefixtures("little_room")
async def test_a_failed_read_holds_nobody_up(engine: TransferEngine) -> None:
    inner = Slow(fails_at=ALL[3])
    reader = DigestingReader(inner, "sha256", engine)
    with pytest.raises(ExceptionGroup) as failed:
        await read_all(reader, ALL)
    assert failed.group_contains(Unavailable)


@pytest.mark.usefixtures("little_room")
async def test_a_cancelled_read_holds_nobody_up(engine: TransferEngine) -> None:
    reader = DigestingReader(Slow(), "sha256", engine)
    first = asyncio.create_task(reader.read(0, BLOCK))
    await asyncio.sleep(0)
    first.cancel()
    async with asyncio.timeout(20):
        await read_all(reader, ALL[1:])
        assert await reader.finish() == DIGEST


async def test_an_object_of_unknown_size(engine: TransferEngine) -> None:
    inner = Slow()
    inner.info = ObjectInfo("object", None)
    with pytest.raises(StoreUnsupported):
        DigestingReader(inner, "sha256", engine)
