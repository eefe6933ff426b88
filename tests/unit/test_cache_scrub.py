"""Scrubbing: what changed on the disk without a trace is found, at a bounded rate, and what is whole stays."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from stores.cache import ledger
from stores.cache.pool import Held, Missing, Pool
from stores.cache.scrub import DIGEST, Pace, scrub
from stores.contract import KiB, MiB
from tests.pools import SIZE, add, files_in, has, is_tidy, key_of, put, reserve, running


def rot(path: Path, at: int) -> None:
    """Another bit, and nothing that a look at the file would show."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
        os.fsync(file.fileno())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


class Time:
    """Passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


async def entry_of(pool: Pool, name: str) -> ledger.Entry:
    entry = await pool.transact(partial(ledger.entry, pool=pool.name, key=key_of(name)))
    assert entry is not None
    return entry


async def test_rot_is_found_quarantined_and_fetched_again_once(tmp_path: Path) -> None:
    async with running(tmp_path / "pool", high=1.0) as pool:
        for name in "abc":
            await add(pool, name)
        rotten = pool.access.entries.path_of(await entry_of(pool, "b"))
        rot(rotten, SIZE - 1)
        held = await pool.find(key_of("b"), "a look does not tell")
        assert isinstance(held, Held)
        await pool.unpin(held)
        done = await scrub(pool)
        assert (done.entries, done.bytes) == (3, 3 * SIZE)
        assert [entry.ref for entry in done.quarantined] == ["b"]
        assert await pool.find(key_of("b"), "test") == Missing()
        await add(pool, "b")
        assert [await has(pool, name) for name in "abc"] == [True] * 3
        assert (await scrub(pool)).quarantined == []
        assert len([name for name in files_in(pool) if name.startswith("quarantine/")]) == 2
        assert await is_tidy(pool)


async def test_a_description_of_something_else_is_found(tmp_path: Path) -> None:
    async with running(tmp_path / "pool") as pool:
        await add(pool, "a")
        path = pool.access.entries.path_of(await entry_of(pool, "a"))
        description = path.with_name(f"{path.name}.json")
        description.write_text(description.read_text().replace('"v1"', '"v2"'))
        assert len((await scrub(pool)).quarantined) == 1


async def test_an_entry_without_digest_gets_one(tmp_path: Path) -> None:
    async with running(tmp_path / "pool") as pool:
        fill = await reserve(pool, "a", 5000)
        fill.path.write_bytes(b"x" * 5000)
        held = await pool.publish(fill, store="s", ref="a", version=None, size=5000, digest=None, reason="test")
        await pool.unpin(held)
        for _ in range(2):
            assert (await scrub(pool)).quarantined == []
        entry = await entry_of(pool, "a")
        assert entry.digest is not None
        assert entry.digest.startswith(f"{{{DIGEST}}}")
        rot(held.path, 4999)
        assert len((await scrub(pool)).quarantined) == 1


async def test_the_rate_is_bounded_by_the_clock_and_what_was_proved_lately_is_left_out(tmp_path: Path) -> None:
    async with running(tmp_path / "pool") as pool:
        for name in "abc":
            await add(pool, name)
        time = Time()
        pace = Pace(256 * KiB, clock=lambda: time.now, sleep=time.sleep)
        await scrub(pool, pace=pace)
        assert time.now == 3 * MiB / (256 * KiB)
        assert (await scrub(pool, older_than_s=3600, pace=pace)).entries == 0
        assert time.now == 12.0


async def test_it_may_run_beside_use_and_does_not_keep_what_has_to_go(tmp_path: Path) -> None:
    async with running(tmp_path / "pool", high=1.0) as pool:
        held = await put(pool, "a")
        await add(pool, "b")
        held_again = await entry_of(pool, "b")
        await pool.evict(held_again)
        done = await scrub(pool)
        assert done.entries == 1
        await pool.unpin(held)
        assert await is_tidy(pool)
