"""One pool that several processes share: one fetch for all, takeover after a death, and the bound under load and kill -9."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest

from stores.backends.filesystem import FilesystemStore
from stores.cache.cache import Cache, Outcome
from stores.cache.filling import NOTE_S
from stores.cache.pool import PoolSettings
from stores.cache.proxy import CachingStore
from stores.contract import Kind, LocalPath, MiB, RangeReader
from stores.negotiation import CacheUse
from stores.transfer.engine import TransferEngine
from tests.doubles.caches import Requests, cache_over, nothing_left, numbers_of, pool_settings, running, until
from tests.doubles.gated import GatedStore
from tests.doubles.hammer import Work, hammer, make_objects
from tests.objects import content, sha
from tests.processes import forking

SIZE = 24 * MiB + 77
DATA = content(SIZE)


@pytest.fixture
def settings(tmp_path: Path) -> PoolSettings:
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / "object").write_bytes(DATA)
    return pool_settings(tmp_path / "pool")


def source(engine: TransferEngine, settings: PoolSettings, gate: int = 1 << 60) -> GatedStore:
    root = settings.directory.parent / "objects"
    return GatedStore(FilesystemStore(root, engine, id="objects", allowed=[root]), gate=gate)


async def file_of(store: CachingStore) -> str:
    async with store.present(await store.stat("object"), Kind.LOCAL_PATH) as shown:
        assert isinstance(shown, LocalPath)
        return sha(await asyncio.to_thread(shown.path.read_bytes))


async def test_another_process_is_followed(engine: TransferEngine, settings: PoolSettings) -> None:
    """Two caches on one directory: what each of two processes has."""
    here, there = source(engine, settings, gate=16 * MiB), source(engine, settings)
    requests = Requests()
    async with (
        cache_over(engine, settings) as leading,
        running(settings) as pool,
    ):
        following = Cache([pool], engine, observer=requests)
        leader = asyncio.create_task(file_of(CachingStore(here, leading, wait_s=5)))
        await until(lambda: bool(here.stops))
        store = CachingStore(there, following, use=CacheUse.PREFERRED, wait_s=5)
        followers = [asyncio.create_task(file_of(store)) for _ in range(3)]
        async with store.present(await store.stat("object"), Kind.RANGE_READER) as reader:
            assert isinstance(reader, RangeReader)
            assert await reader.read(1000, 5000) == DATA[1000:6000]  # while it arrives elsewhere
        assert not leader.done()
        here.move()
        assert await leader == sha(DATA)
        assert await asyncio.gather(*followers) == [sha(DATA)] * 3
        await following.aclose()
    assert (here.read, there.read) == (SIZE, 0)
    assert requests.outcomes == {Outcome.MISS: 1, Outcome.JOIN: 3}


def _fill_and_hang(settings: PoolSettings, gate: int) -> None:
    async def fill() -> None:
        engine = TransferEngine()
        async with running(settings) as pool:
            store = CachingStore(source(engine, settings, gate), Cache([pool], engine), wait_s=5)
            await file_of(store)

    asyncio.run(fill())


async def test_a_death_hands_over_what_is_whole(engine: TransferEngine, settings: PoolSettings) -> None:
    context = forking()
    dying = context.Process(target=_fill_and_hang, args=(settings, 16 * MiB))
    dying.start()
    requests = Requests()
    async with running(settings) as pool:
        part = settings.directory / "fill"
        await until(lambda: part.exists() and any(path.stat().st_blocks for path in part.iterdir()))
        here = source(engine, settings)
        cache = Cache([pool], engine, observer=requests)
        follower = asyncio.create_task(file_of(CachingStore(here, cache, wait_s=5)))
        await asyncio.sleep(3 * NOTE_S)
        assert not follower.done()
        os.kill(dying.pid or 0, signal.SIGKILL)
        dying.join()
        async with asyncio.timeout(settings.lease_s + 10):
            assert await follower == sha(DATA)
        assert 0 < here.read < SIZE - 8 * MiB
        assert pool.counts.taken_over == 1
        await cache.aclose()
        await nothing_left(pool)


async def test_a_death_while_streaming_begins_anew(engine: TransferEngine, settings: PoolSettings) -> None:
    """Without ranges there is nothing to go on with."""
    context = forking()
    dying = context.Process(target=_fill_and_hang, args=(settings, 16 * MiB))
    dying.start()
    async with running(settings) as pool:
        part = settings.directory / "fill"
        await until(lambda: part.exists() and any(path.stat().st_blocks for path in part.iterdir()))
        here = source(engine, settings)
        here._ranged = False
        cache = Cache([pool], engine)
        follower = asyncio.create_task(file_of(CachingStore(here, cache, wait_s=5)))
        await asyncio.sleep(1.5 * NOTE_S)
        os.kill(dying.pid or 0, signal.SIGKILL)
        dying.join()
        async with asyncio.timeout(settings.lease_s + 10):
            assert await follower == sha(DATA)
        assert here.read == SIZE
        await cache.aclose()
        await nothing_left(pool)


async def test_the_bound_holds_under_load_and_kill(engine: TransferEngine, tmp_path: Path) -> None:
    """A shorter run of what `benchmarks/cache.py` does for a minute with 16 processes."""
    chance = random.Random(5)
    make_objects(tmp_path / "objects", [chance.randint(200_000, 4 * MiB) for _ in range(40)])
    settings = pool_settings(tmp_path / "pool", room=9 * MiB)
    work = Work(tmp_path / "objects", settings, tmp_path / "reports", seconds=6)
    findings = await asyncio.to_thread(hammer, work, processes=6, kill_every_s=0.6)
    assert findings.kills >= 5
    assert findings.samples > 10
    assert findings.largest <= settings.limit
    assert set(findings.outcomes) <= {"right", "no room"}, findings
    assert findings.outcomes["right"]
    assert findings.longest_s <= work.deadline_s
    async with running(settings) as pool:
        async with asyncio.timeout(settings.lease_s + 20):
            while (await numbers_of(pool)).fills:  # of those who were killed last
                await asyncio.sleep(0.05)
        await nothing_left(pool)
