"""Objects on their way into the cache: fetched once, read while they arrive, never past a reservation, nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from stores.backends.memory import MemoryStore, SparseBytes
from stores.cache.cache import Cache, Outcome
from stores.cache.ladder import LargerThanCache
from stores.cache.proxy import CachingStore
from stores.contract import ByteStream, DataStore, Kind, LocalPath, MiB, ObjectInfo, RangeReader
from stores.errors import AccessDenied, IntegrityError, StoreError, Unavailable
from stores.negotiation import CacheUse
from stores.transfer.engine import TransferEngine
from tests.doubles.caches import Requests, blocks_in, cache_over, entries_of, nothing_left, pool_settings, until
from tests.doubles.gated import GatedStore
from tests.objects import content, read_stream, sha

SIZE = 9 * MiB + 123
DATA = content(SIZE)
ROOM = 64 * MiB


@pytest.fixture
async def engine() -> AsyncIterator[TransferEngine]:
    """Nothing runs and no buffer is out at the end."""
    engine = TransferEngine()
    yield engine
    assert engine.buffers.taken == 0
    await engine.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
def requests() -> Requests:
    return Requests()


@pytest.fixture
async def cache(engine: TransferEngine, tmp_path: Path, requests: Requests) -> AsyncIterator[Cache]:
    async with cache_over(engine, pool_settings(tmp_path / "pool", room=ROOM), observer=requests) as cache:
        yield cache


def put(memory: MemoryStore, data: bytes, ref: str = "object") -> None:
    sparse = SparseBytes(len(data))
    sparse.write_at(0, memoryview(data))
    memory.publish(ref, sparse, replace=True)


def memory_with(data: bytes) -> MemoryStore:
    memory = MemoryStore("memory")
    put(memory, data)
    return memory


def needed(store: DataStore, cache: Cache) -> CachingStore:
    return CachingStore(store, cache, wait_s=10)


def preferred(store: DataStore, cache: Cache) -> CachingStore:
    return CachingStore(store, cache, use=CacheUse.PREFERRED, wait_s=10)


async def file_of(store: DataStore, info: ObjectInfo | None = None) -> str:
    """What the object's file holds, by its digest."""
    info = info or await store.stat("object")
    async with store.present(info, Kind.LOCAL_PATH) as presentation:
        assert isinstance(presentation, LocalPath)
        return sha(await asyncio.to_thread(presentation.path.read_bytes))


async def stream_of(store: DataStore) -> str:
    async with store.present(await store.stat("object"), Kind.BYTE_STREAM) as presentation:
        assert isinstance(presentation, ByteStream)
        return sha(await read_stream(presentation))


@asynccontextmanager
async def reading(store: DataStore) -> AsyncIterator[RangeReader]:
    async with store.present(await store.stat("object"), Kind.RANGE_READER) as presentation:
        assert isinstance(presentation, RangeReader)
        yield presentation


async def ranges_of(store: DataStore) -> str:
    async with reading(store) as reader:
        return sha(await reader.read(0, reader.info.size or 0))


async def test_fifty_at_once_fetch_each_byte_once_and_later_ones_none(cache: Cache, requests: Requests) -> None:
    source = GatedStore(memory_with(DATA))
    assert await asyncio.gather(*(file_of(needed(source, cache)) for _ in range(50))) == [sha(DATA)] * 50
    assert source.read == SIZE
    assert requests.outcomes == {Outcome.MISS: 1, Outcome.JOIN: 49}
    assert await file_of(needed(source, cache)) == sha(DATA)
    assert source.read == SIZE
    assert requests.outcomes[Outcome.HIT] == 1
    assert requests.fills == [("pool", SIZE)]


@pytest.mark.parametrize("how", [file_of, stream_of, ranges_of])
@pytest.mark.parametrize("ranged", [True, False])
async def test_every_form_comes_from_one_fetch(
    cache: Cache, how: Callable[[DataStore], Awaitable[str]], ranged: bool
) -> None:
    source = GatedStore(memory_with(DATA), ranged=ranged)
    store = preferred(source, cache)
    forms = [file_of(store), stream_of(store), ranges_of(store), how(store)] * 3
    assert await asyncio.gather(*forms) == [sha(DATA)] * 12
    assert source.read == SIZE


@pytest.mark.parametrize("ranged", [True, False])
async def test_what_has_arrived_is_read_while_the_rest_is_awaited(cache: Cache, ranged: bool) -> None:
    source = GatedStore(memory_with(DATA), gate=6 * MiB, ranged=ranged)
    store = preferred(source, cache)
    async with reading(store) as reader:
        assert await reader.read(1 * MiB, 3 * MiB) == DATA[1 * MiB : 4 * MiB]
        late = asyncio.create_task(reader.read(SIZE - 1000, 1000))
        stream = asyncio.create_task(stream_of(store))
        await until(lambda: bool(source.stops))
        assert not late.done()
        source.move()
        assert await late == DATA[-1000:]
        assert await stream == sha(DATA)
    assert source.read == SIZE


async def test_a_cancelled_leader_leaves_the_fetch_to_the_others(cache: Cache) -> None:
    source = GatedStore(memory_with(DATA), gate=4 * MiB)
    leader = asyncio.create_task(file_of(needed(source, cache)))
    await until(lambda: bool(source.stops))
    followers = [asyncio.create_task(file_of(needed(source, cache))) for _ in range(3)]
    await asyncio.sleep(0.05)
    leader.cancel()
    followers[0].cancel()
    await asyncio.gather(leader, followers.pop(0), return_exceptions=True)
    source.move()
    assert await asyncio.gather(*followers) == [sha(DATA)] * 2
    assert (source.read, source.opened) == (SIZE, 1)


@pytest.mark.parametrize("ranged", [True, False])
async def test_when_the_last_one_is_cancelled_nothing_is_left(cache: Cache, ranged: bool) -> None:
    source = GatedStore(memory_with(DATA), gate=4 * MiB, ranged=ranged)
    wanted = [asyncio.create_task(file_of(needed(source, cache))) for _ in range(3)]
    await until(lambda: bool(source.stops))
    for task in wanted:
        task.cancel()
    await asyncio.gather(*wanted, return_exceptions=True)
    assert not source.stops
    await nothing_left(cache.pools[0])
    assert await entries_of(cache.pools[0]) == []


async def test_a_failure_is_everybodys_and_leaves_nothing(cache: Cache) -> None:
    source = GatedStore(memory_with(DATA), gate=4 * MiB)
    wanted = [asyncio.create_task(file_of(needed(source, cache))) for _ in range(5)]
    await until(lambda: bool(source.stops))
    error = Unavailable("the store went away")
    source.fail(error)
    assert await asyncio.gather(*wanted, return_exceptions=True) == [error] * 5
    await nothing_left(cache.pools[0])


async def test_when_it_fails_after_its_leader_left_somebody_else_leads(cache: Cache) -> None:
    """A leader's store may end with its command; those who stay have their own."""
    ending, lasting = (GatedStore(memory_with(DATA), gate=4 * MiB) for _ in range(2))
    lasting.move()
    leader = asyncio.create_task(file_of(needed(ending, cache)))
    await until(lambda: bool(ending.stops))
    followers = [asyncio.create_task(file_of(needed(lasting, cache))) for _ in range(3)]
    await asyncio.sleep(0.05)
    leader.cancel()
    await asyncio.gather(leader, return_exceptions=True)
    ending.fail(Unavailable("closed"))
    assert await asyncio.gather(*followers) == [sha(DATA)] * 3
    assert lasting.read == SIZE


async def test_rights_are_everybodys_own(cache: Cache) -> None:
    refused, allowed = (GatedStore(memory_with(DATA), gate=4 * MiB) for _ in range(2))
    allowed.move()
    leader = asyncio.create_task(file_of(needed(refused, cache)))
    await until(lambda: bool(refused.stops))
    follower = asyncio.create_task(file_of(needed(allowed, cache)))
    await asyncio.sleep(0.05)
    refused.fail(AccessDenied("the signature has expired"))
    with pytest.raises(AccessDenied):
        await leader
    assert await follower == sha(DATA)


async def test_readers_of_a_fetch_that_fails_go_to_the_store_itself(cache: Cache, requests: Requests) -> None:
    source = GatedStore(memory_with(DATA), gate=4 * MiB)
    async with reading(preferred(source, cache)) as reader:
        assert await reader.read(0, 1000) == DATA[:1000]
        late = asyncio.create_task(reader.read(SIZE - 1000, 1000))
        await until(lambda: bool(source.stops))
        source.fail(Unavailable("for a moment"))
        await until(lambda: not source.stops)
        source.failure = None
        source.move()
        assert await late == DATA[-1000:]
    assert requests.outcomes[Outcome.BYPASS] == 1


@pytest.mark.parametrize("size", [0, 1, 5 * MiB, 23 * MiB + 7])
async def test_an_unknown_size_grows_in_steps(cache: Cache, size: int) -> None:
    data = content(size)
    source = GatedStore(memory_with(data), sized=False, ranged=False)
    assert await file_of(needed(source, cache)) == sha(data)
    assert await ranges_of(preferred(source, cache)) == sha(data)
    assert await stream_of(preferred(source, cache)) == sha(data)
    assert source.read == size
    (entry,) = await entries_of(cache.pools[0])
    assert entry.size == size


async def test_an_unknown_size_stops_at_the_limit(engine: TransferEngine, tmp_path: Path) -> None:
    settings = pool_settings(tmp_path / "pool", room=10 * MiB)
    source = GatedStore(memory_with(content(14 * MiB)), sized=False, ranged=False)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, blocks_in(settings.directory / "fill"))
            await asyncio.sleep(0.002)

    async with cache_over(engine, settings) as cache:
        watcher = asyncio.create_task(watch())
        with pytest.raises(LargerThanCache) as caught:
            await file_of(needed(source, cache))
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
    assert caught.value.retry.value == "no"
    assert most <= 10 * MiB


async def test_an_object_without_a_version_is_copied_for_each_use(cache: Cache) -> None:
    source = GatedStore(memory_with(DATA), versioned=False)
    for turn in (1, 2):
        assert await file_of(needed(source, cache)) == sha(DATA)
        assert source.read == turn * SIZE
        assert await entries_of(cache.pools[0]) == []


@pytest.mark.parametrize("ranged", [True, False])
@pytest.mark.parametrize("said", [SIZE - 5000, SIZE + 5000])
async def test_a_wrong_size_is_not_published(cache: Cache, ranged: bool, said: int) -> None:
    source = GatedStore(memory_with(DATA), ranged=ranged)
    info = await source.stat("object")
    lie = ObjectInfo("object", said, version=info.version, ranges=ranged)
    with pytest.raises(StoreError):
        await file_of(needed(_Lying(source), cache), lie)
    assert await entries_of(cache.pools[0]) == []
    await nothing_left(cache.pools[0])


class _Lying(GatedStore):
    def __init__(self, inner: GatedStore) -> None:
        super().__init__(inner.inner, ranged=Kind.RANGE_READER in inner.offers())

    @asynccontextmanager
    async def present(self, info: ObjectInfo, kind: Kind) -> AsyncIterator[object]:  # type: ignore[override]
        async with super().present(await self.stat(info.ref), kind) as presentation:
            yield presentation


async def test_a_spoilt_copy_is_set_aside_and_fetched_once_more(cache: Cache) -> None:
    source = GatedStore(memory_with(DATA))
    store = needed(source, cache)
    async with store.present(await store.stat("object"), Kind.LOCAL_PATH) as presentation:
        assert isinstance(presentation, LocalPath)
        path = presentation.path
    with path.open("r+b") as file:
        file.truncate(SIZE - 1)
    assert await file_of(store) == sha(DATA)
    assert source.read == 2 * SIZE
    assert await file_of(store) == sha(DATA)
    assert source.read == 2 * SIZE
    assert cache.pools[0].counts.quarantined == 1


async def test_content_that_ends_early_is_not_published(cache: Cache) -> None:
    class Short(GatedStore):
        async def pass_to(self, end: int) -> None:
            if end > 4 * MiB:
                raise IntegrityError("ended early")

    with pytest.raises(IntegrityError):
        await file_of(needed(Short(memory_with(DATA)), cache))
    await nothing_left(cache.pools[0])
