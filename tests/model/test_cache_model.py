"""A cache against a model: objects that change, files that are held, streams, evictions, clocks that jump, pools that fail,
restarts and deaths, in any order. The promises are checked after every step."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import structlog
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stores.backends.memory import MemoryStore, SparseBytes
from stores.cache import ledger
from stores.cache.cache import Cache
from stores.cache.directory import LEDGER
from stores.cache.health import PoolSick
from stores.cache.ladder import CacheExhausted, CacheUnavailable
from stores.cache.ledger import charge_of
from stores.cache.pool import Pool
from stores.cache.proxy import CachingStore
from stores.cache.schema import EntryState
from stores.cache.sqlite import SqliteDatabase, boot_clock
from stores.contract import ByteStream, KiB, Kind, LocalPath
from stores.errors import StoreError
from stores.negotiation import CacheUse
from stores.transfer.engine import TransferEngine
from tests.doubles.caches import blocks_in, entries_of, nothing_left, numbers_of, pool_settings, until
from tests.doubles.gated import GatedStore
from tests.objects import content, read_stream

REFS = [f"object-{number}" for number in range(5)]
SIZES = [0, 100 * KiB, 333 * KiB, 700 * KiB]
ROOM = 1500 * KiB
PATIENCE_S = 20.0
LEASE_S = 2.0  # short: a process that slept learns of it when it next renews its lease

T = TypeVar("T")


@dataclass
class Held:
    """A file in somebody's hands, and what it has to hold for as long."""

    path: Path
    ref: str
    data: bytes
    version: str | None
    stack: AsyncExitStack


class CacheModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        structlog.configure(processors=[structlog.testing.LogCapture()])
        self.directory = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="cache-model-"))
        self.settings = replace(pool_settings(self.directory / "pool", room=ROOM), lease_s=LEASE_S)
        self.runner = asyncio.Runner()
        self.memory = MemoryStore("memory")
        self.data: dict[str, bytes] = {}
        self.seed = 0
        self.lease_jump = 0.0
        self.wall_jump = 0.0
        self.held: list[Held] = []
        self.run(self.make_engine())
        for ref in REFS:
            self.put(ref, SIZES[1])
        self.run(self.start())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(asyncio.wait_for(work, 60))

    async def make_engine(self) -> None:
        self.engine = TransferEngine()

    async def start(self) -> None:
        database = SqliteDatabase(
            self.settings.directory / LEDGER,
            clock=lambda: boot_clock() + self.lease_jump,
            wall=lambda: time.time() + self.wall_jump,
        )
        self.pool = Pool(self.settings, database, lease_clock=lambda: boot_clock() + self.lease_jump)
        await self.pool.start()
        assert self.pool.healthy
        self.cache = Cache([self.pool], self.engine)

    def put(self, ref: str, size: int) -> None:
        self.seed += 1
        self.data[ref] = content(size, self.seed)
        sparse = SparseBytes(size)
        sparse.write_at(0, memoryview(self.data[ref]))
        self.memory.publish(ref, sparse, replace=True)

    def charge_held(self, *more: tuple[str, str | None, int]) -> int:
        """What the held files and those take, each once."""
        held = {(each.ref, each.version, len(each.data)) for each in self.held} | set(more)
        return sum(charge_of(size) for _, _, size in held)

    # ------------------------------------------------------------------------------------------------- requests

    async def open(self, ref: str) -> Held | None:
        """None: there was no room, and there could be none."""
        info = await self.memory.stat(ref)
        fits = self.charge_held((ref, info.version, len(self.data[ref]))) <= ROOM
        store = CachingStore(GatedStore(self.memory), self.cache, wait_s=PATIENCE_S if fits else 0.0)
        stack = AsyncExitStack()
        try:
            shown = await stack.enter_async_context(store.present(info, Kind.LOCAL_PATH))
        except CacheExhausted:
            assert not fits
            return None
        except CacheUnavailable:
            assert not self.pool.healthy
            return None
        assert isinstance(shown, LocalPath)
        assert shown.path.read_bytes() == self.data[ref]
        return Held(shown.path, ref, self.data[ref], info.version, stack)

    @rule(ref=st.sampled_from(REFS))
    def request(self, ref: str) -> None:
        held = self.run(self.open(ref))
        if held is not None:
            self.run(held.stack.aclose())

    @rule(ref=st.sampled_from(REFS))
    def hold(self, ref: str) -> None:
        held = self.run(self.open(ref))
        if held is not None:
            self.held.append(held)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        held = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.run(held.stack.aclose())

    @rule(ref=st.sampled_from(REFS))
    def stream(self, ref: str) -> None:
        """Always works: from the cache, or past it."""

        async def read() -> bytes:
            store = CachingStore(GatedStore(self.memory), self.cache, use=CacheUse.PREFERRED, wait_s=0)
            async with store.present(await store.stat(ref), Kind.BYTE_STREAM) as shown:
                assert isinstance(shown, ByteStream)
                return await read_stream(shown)

        assert self.run(read()) == self.data[ref]

    @rule(ref=st.sampled_from(REFS), size=st.sampled_from(SIZES))
    def change(self, ref: str, size: int) -> None:
        self.put(ref, size)

    @rule(ref=st.sampled_from(REFS))
    def fail_in_the_middle(self, ref: str) -> None:
        async def ask() -> None:
            source = GatedStore(self.memory, gate=10)
            source.failure = StoreError("broken on purpose")
            store = CachingStore(source, self.cache, wait_s=0)
            try:
                async with store.present(await store.stat(ref), Kind.LOCAL_PATH) as shown:
                    assert isinstance(shown, LocalPath)
                    assert shown.path.read_bytes() == self.data[ref]  # it was there already
            except StoreError:
                pass

        self.run(ask())

    # ------------------------------------------------------------------------------------------- what happens to it

    @precondition(lambda self: self.pool.healthy)
    @rule(number=st.integers(0, 9))
    def evict(self, number: int) -> None:
        async def let_go() -> None:
            entries = [each for each in await entries_of(self.pool) if each.state is EntryState.READY]
            if entries:
                entry = entries[number % len(entries)]
                hold = await self.pool.evict(entry)
                held = any((each.ref, each.version) == (entry.ref, entry.version) for each in self.held)
                assert (hold is not None) == held

        self.run(let_go())

    @rule(seconds=st.sampled_from([1.0, 3600.0, 10 * 86400.0, -86400.0]))
    def the_wall_clock_jumps(self, seconds: float) -> None:
        self.wall_jump += seconds

    @rule()
    def the_lease_runs_out(self) -> None:
        """As after a long sleep of the process: it makes its claims anew."""
        self.lease_jump += 10 * self.settings.lease_s
        if self.pool.healthy:
            self.run(until(lambda: self.pool.lease.left_s > 0 or not self.pool.healthy))

    @precondition(lambda self: self.pool.healthy)
    @rule()
    def the_pool_fails(self) -> None:
        self.pool.access.health.fails("broken on purpose")

    @precondition(lambda self: not self.pool.healthy)
    @rule()
    def the_pool_is_mended(self) -> None:
        self.run(until(lambda: self.pool.healthy))

    @rule()
    def restart(self) -> None:
        self.let_go()
        self.run(self.cache.aclose())
        self.run(self.pool.stop())
        self.run(self.start())

    @rule(ref=st.sampled_from(REFS), in_the_middle=st.booleans())
    def die(self, ref: str, in_the_middle: bool) -> None:
        """What a killed process leaves: its files, its rows, and no lock."""

        async def leave() -> None:
            source = GatedStore(self.memory, gate=10)
            store = CachingStore(source, self.cache, wait_s=0)
            wanted = asyncio.create_task(self._use(store, ref))
            if in_the_middle:
                await asyncio.sleep(0.05)
            cut_off(self.pool)
            wanted.cancel()
            await asyncio.gather(wanted, return_exceptions=True)

        def cut_off(pool: Pool) -> None:
            """Nothing that it does from now on reaches directory or ledger."""
            pool.access.health.fails("killed")
            task = pool._task
            assert task is not None
            task.cancel()

        self.run(leave())
        for held in self.held:
            self.run(held.stack.aclose())
        self.held.clear()
        self.run(self.cache.aclose())
        self.run(self.pool._database.aclose())
        self.pool.access.close()
        self.run(self.start())

    async def _use(self, store: CachingStore, ref: str) -> None:
        async with store.present(await store.stat(ref), Kind.LOCAL_PATH):
            pass

    # ------------------------------------------------------------------------------------------------ the promises

    @invariant()
    def the_bound_holds(self) -> None:
        assert blocks_in(self.settings.directory) <= self.settings.limit
        try:
            numbers = self.run(numbers_of(self.pool))
            assert numbers.used + numbers.reserved <= numbers.limit
            self.run(self.pool.transact(lambda tx: ledger.check_sums(tx, self.pool.name)))
        except PoolSick:
            assert not self.pool.healthy  # it is until its lease is renewed

    @invariant()
    def what_is_held_stays_as_it_is(self) -> None:
        for held in self.held:
            assert held.path.read_bytes() == held.data

    @invariant()
    def nothing_of_a_request_is_left(self) -> None:
        assert self.engine.buffers.taken == 0
        assert self.cache.under_way() == []

    def let_go(self) -> None:
        for held in self.held:
            self.run(held.stack.aclose())
        self.held.clear()

    async def nothing_left_soon(self) -> None:
        """What the dead have left goes as soon as they are known to be dead: after a lease at the latest."""
        late = time.monotonic() + 10 * LEASE_S
        while True:
            try:
                await nothing_left(self.pool)
            except AssertionError:
                if time.monotonic() > late:
                    raise
                await asyncio.sleep(0.1)
            else:
                return

    def teardown(self) -> None:
        try:
            self.let_go()
            self.run(self.cache.aclose())
            self.run(until(lambda: self.pool.healthy))
            self.run(self.pool.stop())
            self.run(self.start())
            self.run(self.nothing_left_soon())
            self.run(self.pool.stop())
            self.run(self.engine.aclose())
        finally:
            self.runner.close()
            shutil.rmtree(self.directory)
            structlog.reset_defaults()


# Without shrinking: a step may take a second, and a failing run of twenty is short enough to read.
CacheModel.TestCase.settings = settings(
    max_examples=8, stateful_step_count=20, deadline=None, phases=[Phase.explicit, Phase.generate]
)
TestCache = CacheModel.TestCase
