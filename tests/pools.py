"""A cache pool to try: small, on a real file system, with content that can be told apart."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from stores.cache import ledger
from stores.cache.directory import LEDGER
from stores.cache.pool import Fill, Held, Pool, PoolSettings
from stores.cache.sqlite import SqliteDatabase
from stores.contract import MiB

HOUSEKEEPING = 8 * MiB
SIZE = MiB
UNIT = ledger.charge_of(SIZE)


def settings_of(directory: Path, *, units: int = 4, **changes: Any) -> PoolSettings:
    """Room for so many objects of `SIZE` bytes."""
    values: dict[str, Any] = {
        "name": "pool",
        "directory": directory,
        "limit": HOUSEKEEPING + units * UNIT,
        "housekeeping": HOUSEKEEPING,
    }
    values.update(changes)
    return PoolSettings(**values)


def make_pool(directory: Path, *, units: int = 4, **changes: Any) -> Pool:
    clocks = {name: changes.pop(name) for name in ("clock", "lease_clock") if name in changes}
    lease = {"clock": clocks["lease_clock"]} if "lease_clock" in clocks else {}
    return Pool(settings_of(directory, units=units, **changes), SqliteDatabase(directory / LEDGER, **lease), **clocks)


@asynccontextmanager
async def running(directory: Path, *, units: int = 4, **changes: Any) -> AsyncIterator[Pool]:
    pool = make_pool(directory, units=units, **changes)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.stop()


def key_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


@lru_cache(maxsize=8)
def content_of(name: str, size: int = SIZE) -> bytes:
    return random.Random(name).randbytes(size)


async def reserve(pool: Pool, name: str, size: int = SIZE) -> Fill:
    fill = await pool.reserve(key_of(name), size)
    assert isinstance(fill, Fill), fill
    return fill


async def publish(pool: Pool, fill: Fill, name: str, size: int = SIZE) -> Held:
    content = content_of(name, size)
    fill.path.write_bytes(content)
    return await pool.publish(
        fill,
        store="store",
        ref=name,
        version="v1",
        size=size,
        digest="{sha256}" + hashlib.sha256(content).hexdigest(),
        reason="fill",
    )


async def put(pool: Pool, name: str, size: int = SIZE) -> Held:
    """Fetched and held."""
    return await publish(pool, await reserve(pool, name, size), name, size)


async def add(pool: Pool, name: str, size: int = SIZE) -> None:
    """Fetched, and not in use any more."""
    await pool.unpin(await put(pool, name, size))


async def has(pool: Pool, name: str) -> bool:
    """Without using it. What is there has the right content."""
    entry = await pool.transact(partial(ledger.entry, pool=pool.name, key=key_of(name)))
    if entry is None:
        return False
    assert pool.access.entries.path_of(entry).read_bytes() == content_of(name, entry.size)
    return True


def files_in(pool: Pool) -> list[str]:
    """Of objects, in whatever state: nothing of what a pool always has."""
    root = pool.access.directory.path
    return sorted(
        str(path.relative_to(root))
        for folder in ("fill", "objects", "quarantine")
        for path in (root / folder).rglob("*")
        if not path.is_dir()
    )


def bytes_on_disk(directory: Path) -> int:
    """As du(1) counts: real blocks of everything below."""
    seen: dict[tuple[int, int], int] = {}
    for path in (directory, *directory.rglob("*")):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


async def is_tidy_soon(pool: Pool) -> None:
    """Where the pool may be making room by itself, whose files and rows go one after the other."""
    async with asyncio.timeout(30):
        while True:
            try:
                assert await is_tidy(pool)
            except AssertionError:
                await asyncio.sleep(0.01)
            else:
                return


async def is_tidy(pool: Pool) -> bool:
    """The book agrees with itself and with the disk, and nothing is claimed by anybody."""
    says, comes_to = await pool.transact(partial(ledger.check_sums, pool=pool.name))
    assert says == comes_to
    shown = await pool.transact(partial(ledger.statistics, pool=pool.name))
    assert (shown.reserved, shown.fills, shown.waiting, shown.pinned) == (0, 0, 0, 0), shown
    assert shown.used <= shown.limit
    assert len(files_in(pool)) == 2 * shown.entries, files_in(pool)
    assert bytes_on_disk(pool.settings.directory) <= pool.settings.limit
    return True
