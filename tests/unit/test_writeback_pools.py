"""The upload queue over several pools: where something is staged, and what becomes of it when a pool is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from stores.backends.memory import MemoryStore
from stores.cache.ladder import CacheUnavailable, LargerThanCache
from stores.cache.pool import Pool
from stores.cache.schema import UploadState
from stores.cache.writeback.errors import UploadsFull
from stores.cache.writeback.queue import UploadQueue
from stores.contract import MiB
from tests.doubles.caches import nothing_left, pool_settings, running, until
from tests.doubles.shaky_store import ShakyStore
from tests.uploads import QUICK, bucket, data_of


class Two:
    """Pool `a` may hold 4 MiB that no store has, `b` 8 MiB."""

    def __init__(self, pools: list[Pool], queue: UploadQueue, store: ShakyStore) -> None:
        self.a, self.b = pools
        self.queue = queue
        self.store = store

    async def stage(self, ref: str, size: int, *, wait_s: float = 0.0) -> str:
        async with self.queue.staging(
            bucket(), self.store, ref, token="t", size=size, replace=False, wait_s=wait_s
        ) as pending:
            pending.path.write_bytes(data_of(ref, size))
            upload = (await pending.commit()).upload
            assert upload is not None
            return upload

    async def pool_of(self, upload: str) -> str:
        return (await self.queue.show(upload)).pool


@pytest.fixture
async def two(memory: Path) -> AsyncIterator[Two]:
    store = ShakyStore(MemoryStore("memory"))
    async with AsyncExitStack() as stack:
        pools = [
            await stack.enter_async_context(
                running(replace(pool_settings(memory / name, room=room, name=name), lease_s=2.0))
            )
            for name, room in (("a", 8 * MiB), ("b", 16 * MiB))
        ]
        async with at_work(pools, memory, store) as queue:
            yield Two(pools, queue, store)
            store.gate.set()
            assert await queue.drain(deadline_s=30)
        for pool in pools:
            await nothing_left(pool)
        assert await store.nothing_unfinished()


@asynccontextmanager
async def at_work(pools: list[Pool], root: Path, store: ShakyStore) -> AsyncIterator[UploadQueue]:
    queue = UploadQueue(pools, QUICK, credentials=root / "c", open_store=lambda to: store, tick_s=0.02)
    await queue.start()
    try:
        yield queue
    finally:
        await queue.aclose()


async def test_the_pool_with_the_most_room_for_it(two: Two) -> None:
    two.store.gate.clear()
    first = await two.stage("x", 5 * MiB)
    second = await two.stage("y", 3 * MiB + 1)
    assert [await two.pool_of(upload) for upload in (first, second)] == ["b", "a"]
    assert [upload.id for upload in await two.queue.list()] == [second, first]
    with pytest.raises(UploadsFull) as refusal:
        await two.stage("z", 4 * MiB)
    assert refusal.value.details["pool"] == "b", "where there is more room than in the other"
    with pytest.raises(LargerThanCache):
        await two.stage("z", 8 * MiB + 1)
    two.store.gate.set()
    for upload, ref in ((first, "x"), (second, "y")):
        await two.queue.stored(upload, deadline_s=30)
        assert two.store.content(ref) is not None


async def test_a_sick_pool_is_passed_by(two: Two) -> None:
    two.store.gate.clear()
    lost = await two.stage("x", MiB)
    await until(lambda: two.store.running == 1)
    two.b.access.health.fails("broken on purpose")
    kept = await two.stage("y", MiB)
    assert await two.pool_of(kept) == "a"
    assert [upload.id for upload in await two.queue.list()] == [kept]
    with pytest.raises(CacheUnavailable):
        await two.stage("z", 5 * MiB)
    two.store.gate.set()
    await two.queue.stored(kept, deadline_s=30)
    await two.queue.acknowledge(kept)
    await until(lambda: two.b.healthy)
    await two.queue.stored(lost, deadline_s=30)
    assert two.store.made == {"x": 1, "y": 1}


async def test_who_leaves_the_line_leaves_nothing(two: Two) -> None:
    two.store.gate.clear()
    for ref in ("x", "y"):
        await two.stage(ref, 4 * MiB)
    waiting = asyncio.create_task(two.stage("z", 6 * MiB, wait_s=30))
    while [upload.state for upload in await two.queue.list()].count(UploadState.QUEUED) == 0:
        await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert {upload.state for upload in await two.queue.list()} <= {UploadState.WAITING, UploadState.SENDING}
    assert [path.name for path in (two.b.settings.directory / "fill").iterdir()] == []
