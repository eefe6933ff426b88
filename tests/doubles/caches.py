"""Caches over real pools on a real disk, and a check that nothing of a request is left in them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from stores.cache import ledger
from stores.cache.cache import Cache, Outcome
from stores.cache.directory import LEDGER
from stores.cache.pool import Pool, PoolSettings
from stores.cache.schema import EntryState
from stores.cache.settings import HOUSEKEEPING
from stores.cache.sqlite import SqliteDatabase
from stores.contract import MiB
from stores.transfer.engine import TransferEngine


class Requests:
    """A cache observer that remembers."""

    def __init__(self) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self.waits: list[float] = []
        self.fills: list[tuple[str, int]] = []

    def requested(self, store: str, outcome: Outcome) -> None:
        self.outcomes[outcome] += 1

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def filled(self, pool: str, count: int, seconds: float) -> None:
        self.fills.append((pool, count))


def pool_settings(directory: Path, *, room: int = 256 * MiB, name: str = "pool") -> PoolSettings:
    """`room`: bytes for entries and reservations."""
    return PoolSettings(name=name, directory=directory, limit=room + HOUSEKEEPING, high=1.0, low=1.0)


def make_pool(settings: PoolSettings) -> Pool:
    return Pool(settings, SqliteDatabase(settings.directory / LEDGER))


@asynccontextmanager
async def running(settings: PoolSettings) -> AsyncIterator[Pool]:
    pool = make_pool(settings)
    await pool.start()
    assert pool.healthy, pool.ailment
    try:
        yield pool
    finally:
        await pool.stop()


@asynccontextmanager
async def cache_over(
    engine: TransferEngine, *settings: PoolSettings, observer: Requests | None = None
) -> AsyncIterator[Cache]:
    """A cache over fresh pools. At its end nothing is pinned, reserved, waiting, or in a file that no entry has."""
    async with AsyncExitStack() as stack:
        pools = [await stack.enter_async_context(running(each)) for each in settings]
        cache = Cache(pools, engine, observer=observer)
        yield cache
        await cache.aclose()
        for pool in pools:
            if pool.healthy:
                await nothing_left(pool)


async def numbers_of(pool: Pool) -> ledger.Statistics:
    return await pool.transact(lambda tx: ledger.statistics(tx, pool.name))


async def entries_of(pool: Pool) -> Sequence[ledger.Entry]:
    shown = await pool.transact(lambda tx: ledger.list_entries(tx, pool.name, limit=10_000))
    return [each.entry for each in shown]


async def nothing_left(pool: Pool) -> None:
    """Entries, their files and descriptions, and nothing else."""
    numbers = await numbers_of(pool)
    assert (numbers.reserved, numbers.fills, numbers.pinned, numbers.waiting) == (0, 0, 0, 0), numbers
    entries = await entries_of(pool)
    assert numbers.used == sum(entry.charge for entry in entries)
    directory = pool.settings.directory
    assert not list((directory / "fill").iterdir())
    found = {path.name for path in (directory / "objects").rglob("*") if not path.is_dir()}
    known = {entry.file for entry in entries if entry.state is not EntryState.QUARANTINED}
    assert found == known | {f"{name}.json" for name in known}
    await pool.transact(lambda tx: ledger.check_sums(tx, pool.name))


async def until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    """Waits for something that is about to happen."""
    late = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < late, "it did not happen"
        await asyncio.sleep(0.005)


def blocks_in(directory: Path) -> int:
    """Bytes on disk of all that is below a directory, itself included, as the file system counts them."""
    total = 0
    for path in (directory, *directory.rglob("*")):
        try:
            total += path.lstat().st_blocks * 512
        except FileNotFoundError:
            continue  # went meanwhile
    return total
