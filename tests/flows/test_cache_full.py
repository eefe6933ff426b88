"""A full cache, rung by rung: evict, another pool, wait in line, do without, refuse with numbers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from stores.backends.memory import MemoryStore, SparseBytes
from stores.cache.cache import Cache, Outcome
from stores.cache.ladder import CacheExhausted, CacheUnavailable, LargerThanCache
from stores.cache.ledger import charge_of
from stores.cache.proxy import CachingStore
from stores.contract import KiB, Kind, LocalPath, MiB, RangeReader
from stores.errors import RequirementNotMet
from stores.negotiation import CacheUse
from stores.resolver import Resolver
from stores.settings import StoreSettings
from stores.transfer.engine import TransferEngine
from tests.doubles.caches import Requests, cache_over, entries_of, numbers_of, pool_settings, until
from tests.objects import content

SIZE = 1 * MiB
UNIT = charge_of(SIZE)


@pytest.fixture
def requests() -> Requests:
    return Requests()


@pytest.fixture
def memory() -> MemoryStore:
    """Objects 0 to 9 of one unit each."""
    memory = MemoryStore("memory")
    for number in range(10):
        sparse = SparseBytes(SIZE)
        sparse.write_at(0, memoryview(content(SIZE, number)))
        memory.publish(str(number), sparse, replace=False)
    return memory


@pytest.fixture
async def one(engine: TransferEngine, tmp_path: Path, requests: Requests) -> AsyncIterator[Cache]:
    """One pool with room for three."""
    async with cache_over(engine, pool_settings(tmp_path / "pool", room=3 * UNIT), observer=requests) as cache:
        yield cache


@pytest.fixture
async def two(engine: TransferEngine, tmp_path: Path) -> AsyncIterator[Cache]:
    """A pool with room for one, and one with room for two."""
    small = pool_settings(tmp_path / "a", room=UNIT, name="a")
    large = pool_settings(tmp_path / "b", room=2 * UNIT, name="b")
    async with cache_over(engine, small, large) as cache:
        yield cache


class Holder:
    """Keeps files of objects until it lets go."""

    def __init__(self, store: CachingStore) -> None:
        self._store = store
        self._held: dict[str, AsyncExitStack] = {}

    async def hold(self, *refs: str) -> None:
        for ref in refs:
            stack = AsyncExitStack()
            shown = await stack.enter_async_context(self._store.present(await self._store.stat(ref), Kind.LOCAL_PATH))
            assert isinstance(shown, LocalPath)
            assert shown.path.read_bytes() == content(SIZE, int(ref))
            self._held[ref] = stack

    async def release(self, *refs: str) -> None:
        for ref in refs:
            await self._held.pop(ref).aclose()


async def refs_in(cache: Cache, pool: int = 0) -> set[str]:
    return {entry.ref for entry in await entries_of(cache.pools[pool])}


async def test_what_may_go_is_evicted(one: Cache, memory: MemoryStore) -> None:
    holder = Holder(CachingStore(memory, one, wait_s=0))
    await holder.hold("0", "1", "2")
    await holder.release("0", "1")
    await holder.hold("3")
    assert await refs_in(one) == {"1", "2", "3"}
    await holder.release("2", "3")


async def test_the_pool_with_the_most_room_comes_first_then_another(two: Cache, memory: MemoryStore) -> None:
    holder = Holder(CachingStore(memory, two, wait_s=0))
    await holder.hold("0", "1")
    await holder.hold("2")
    assert len(await refs_in(two, 0)) == 1
    assert len(await refs_in(two, 1)) == 2
    with pytest.raises(CacheExhausted):
        await holder.hold("3")
    await holder.release("0", "1", "2")


async def test_who_waits_gets_the_next_room_in_order(one: Cache, memory: MemoryStore, requests: Requests) -> None:
    holder = Holder(CachingStore(memory, one, wait_s=30))
    await holder.hold("0", "1", "2")
    order: list[str] = []

    async def want(ref: str) -> None:
        await holder.hold(ref)
        order.append(ref)
        await holder.release(ref)

    waiting = []
    for count, ref in enumerate("345", 1):
        waiting.append(asyncio.create_task(want(ref)))
        while (await numbers_of(one.pools[0])).waiting < count:
            await asyncio.sleep(0.01)
    assert order == []
    await holder.release("0")
    await asyncio.gather(*waiting)
    assert order == ["3", "4", "5"]
    assert len(requests.waits) == 3
    await holder.release("1", "2")


async def test_the_deadline_ends_the_wait_with_numbers(one: Cache, memory: MemoryStore) -> None:
    holder = Holder(CachingStore(memory, one, wait_s=0.2))
    await holder.hold("0", "1", "2")
    async with asyncio.timeout(20):
        with pytest.raises(CacheExhausted) as caught:
            await holder.hold("3")
    error = caught.value
    assert error.retry.value == "yes"
    assert error.details["needed"] == UNIT
    pool = error.details["pools"]["pool"]  # type: ignore[index]
    assert (pool["limit"], pool["used"], pool["pinned"], pool["reserved"], pool["dirty"]) == (
        3 * UNIT,
        3 * UNIT,
        3 * UNIT,
        0,
        0,
    )
    assert [holder["reason"] for holder in pool["holders"]] == [f"in use: {number}" for number in range(3)]
    assert "pinned" in error.message
    await holder.release("0", "1", "2")


async def test_each_has_a_deadline_of_its_own(one: Cache, memory: MemoryStore) -> None:
    holder = Holder(CachingStore(memory, one, wait_s=30))
    await holder.hold("0", "1", "2")
    patient = asyncio.create_task(holder.hold("3"))
    while not (await numbers_of(one.pools[0])).waiting:
        await asyncio.sleep(0.01)
    with pytest.raises(CacheExhausted):
        await Holder(CachingStore(memory, one, wait_s=0.1)).hold("3")
    assert not patient.done()
    await holder.release("0")
    await patient
    await holder.release("1", "2", "3")


async def test_cancelled_waiting_leaves_the_line(one: Cache, memory: MemoryStore) -> None:
    holder = Holder(CachingStore(memory, one, wait_s=30))
    await holder.hold("0", "1", "2")
    waiting = asyncio.create_task(holder.hold("3"))
    while not (await numbers_of(one.pools[0])).waiting:
        await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert (await numbers_of(one.pools[0])).waiting == 0
    await holder.release("0", "1", "2")


async def test_larger_than_every_pool_is_refused_at_once(two: Cache, memory: MemoryStore) -> None:
    memory.publish("large", SparseBytes(2 * UNIT + 1), replace=False)
    store = CachingStore(memory, two, wait_s=3600)
    with pytest.raises(LargerThanCache) as caught:
        async with store.present(await store.stat("large"), Kind.LOCAL_PATH):
            pass
    assert caught.value.retry.value == "no"
    assert caught.value.details["limit"] == 2 * UNIT


async def test_who_can_do_without_does(one: Cache, memory: MemoryStore, requests: Requests) -> None:
    holder = Holder(CachingStore(memory, one, wait_s=0))
    await holder.hold("0", "1", "2")
    store = CachingStore(memory, one, use=CacheUse.PREFERRED, wait_s=0)
    async with store.present(await store.stat("3"), Kind.RANGE_READER) as reader:
        assert isinstance(reader, RangeReader)
        assert await reader.read(0, SIZE) == content(SIZE, 3)
    assert requests.outcomes[Outcome.BYPASS] == 1
    await holder.release("0", "1", "2")


@pytest.mark.parametrize("how", ["full", "sick", "too large"])
async def test_the_resolver_takes_what_the_store_has(
    engine: TransferEngine, one: Cache, memory: MemoryStore, requests: Requests, how: str
) -> None:
    resolver = Resolver(StoreSettings(), engine, cache=one)
    holder = Holder(CachingStore(memory, one, wait_s=0))
    if how == "full":
        await holder.hold("0", "1", "2")
    elif how == "sick":
        one.pools[0].access.health.fails("broken on purpose")
    else:
        memory.publish("3", SparseBytes(4 * UNIT), replace=True)
    info = await memory.stat("3")
    kinds = (Kind.LOCAL_PATH, Kind.RANGE_READER)
    async with resolver.open(memory, info, kinds, cache=CacheUse.PREFERRED, wait_s=0) as shown:
        assert isinstance(shown, RangeReader)
        expected = SparseBytes(4 * UNIT).size if how == "too large" else SIZE
        assert len(await shown.read(0, expected)) == expected
    assert requests.outcomes[Outcome.BYPASS] == 1
    with pytest.raises((CacheExhausted, CacheUnavailable, LargerThanCache)):
        async with resolver.open(memory, info, (Kind.LOCAL_PATH,), wait_s=0):
            pass
    if how == "full":
        await holder.release("0", "1", "2")


async def test_the_resolver_uses_the_cache_only_where_nothing_else_fits(
    engine: TransferEngine, one: Cache, memory: MemoryStore, requests: Requests
) -> None:
    resolver = Resolver(StoreSettings(), engine, cache=one)
    info = await memory.stat("1")
    async with resolver.open(memory, info, (Kind.LOCAL_PATH, Kind.RANGE_READER)) as shown:
        assert isinstance(shown, RangeReader)
    assert not requests.outcomes
    async with resolver.open(memory, info, (Kind.LOCAL_PATH, Kind.HTTP_URL)) as shown:
        assert isinstance(shown, LocalPath)
        assert shown.path.read_bytes() == content(SIZE, 1)
    assert requests.outcomes == {Outcome.MISS: 1}
    with pytest.raises(RequirementNotMet):
        async with resolver.open(memory, info, (Kind.HTTP_URL,)):
            pass


async def test_a_sick_pool_is_passed_over(two: Cache, memory: MemoryStore) -> None:
    holder = Holder(CachingStore(memory, two, wait_s=0))
    two.pools[1].access.health.fails("broken on purpose")
    await holder.hold("0")
    assert await refs_in(two, 0) == {"0"}
    await until(lambda: two.pools[1].healthy)
    await holder.hold("1", "2")
    assert await refs_in(two, 1) == {"1", "2"}
    await holder.release("0", "1", "2")


async def test_small_objects_fill_a_pool_to_its_limit(one: Cache, memory: MemoryStore) -> None:
    for number in range(40):
        memory.publish(f"small{number}", SparseBytes(300 * KiB), replace=False)
    store = CachingStore(memory, one, wait_s=60)

    async def use(number: int) -> None:
        async with store.present(await store.stat(f"small{number}"), Kind.LOCAL_PATH) as shown:
            assert isinstance(shown, LocalPath)
            assert shown.path.stat().st_size == 300 * KiB

    await asyncio.gather(*(use(number) for number in range(40)))
    numbers = await numbers_of(one.pools[0])
    assert numbers.used <= numbers.limit
