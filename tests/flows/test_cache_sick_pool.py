"""A pool whose disk is full, read-only or hangs: it says so within its deadline, is left alone, and comes back by itself."""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from stores.cache.database import Transaction
from stores.cache.health import PoolSick
from stores.cache.pool import Held, Pool
from stores.cache.sqlite import SqliteDatabase
from stores.contract import MiB
from tests.doubles.mounts import mounted_ext4, mounted_tmpfs
from tests.pools import (
    SIZE,
    add,
    bytes_on_disk,
    content_of,
    has,
    is_tidy,
    key_of,
    make_pool,
    put,
    reserve,
    running,
    settings_of,
)


async def is_well_again(pool: Pool) -> None:
    async with asyncio.timeout(60):
        while not pool.healthy:
            await asyncio.sleep(0.01)
    await add(pool, "after")
    assert await has(pool, "after")
    assert await is_tidy(pool)


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    with mounted_tmpfs(tmp_path / "mount", options="size=12m,mode=700") as mount:
        yield mount


async def test_a_disk_that_others_fill_makes_the_pool_sick_until_there_is_room(small_tmpfs: Path) -> None:
    async with running(small_tmpfs / "pool", units=3) as pool:
        await add(pool, "a")
        fill = await reserve(pool, "b")
        others = small_tmpfs / "others"
        with others.open("wb") as file, suppress(OSError):
            while file.write(bytes(64 * 1024)):
                file.flush()
        with pytest.raises(PoolSick):
            await pool.publish(fill, store="s", ref="b", version=None, size=0, digest=None, reason="test")
        assert not pool.healthy
        assert fill.lost
        with pytest.raises(PoolSick):
            await pool.find(key_of("a"), "test")
        await pool.abandon(fill)
        others.unlink()
        await is_well_again(pool)
        assert pool.counts.ailments == 1
        assert await has(pool, "a")


async def test_free_space_that_others_take_is_waited_for(small_tmpfs: Path) -> None:
    async with running(small_tmpfs / "pool", units=100, leave_free=2 * MiB) as pool:
        (small_tmpfs / "others").write_bytes(bytes(8 * MiB))
        await add(pool, "a")
        await add(pool, "b")  # instead of the first
        assert pool.healthy
        assert await is_tidy(pool)
        (small_tmpfs / "others").unlink()
        for name in "cdef":
            await add(pool, name)
        assert await is_tidy(pool)


async def test_a_read_only_disk_is_bypassed_and_taken_back(small_tmpfs: Path, tmp_path: Path) -> None:
    """The ledger is elsewhere: nothing can be made read-only while a file there is open for writing."""
    pool = Pool(settings_of(small_tmpfs / "pool"), SqliteDatabase(tmp_path / "ledger.sqlite"))
    await pool.start()
    try:
        held = await put(pool, "a")
        subprocess.run(["mount", "-o", "remount,ro", str(small_tmpfs)], check=True)
        with pytest.raises(PoolSick):
            await pool.reserve(key_of("b"), SIZE)
        assert not pool.healthy
        assert held.path.read_bytes() == content_of("a")
        await pool.unpin(held)
        await asyncio.sleep(1.2)  # a probe fails
        assert not pool.healthy
        subprocess.run(["mount", "-o", "remount,rw", str(small_tmpfs)], check=True)
        await is_well_again(pool)
        assert await has(pool, "a")
    finally:
        await pool.stop()


async def test_a_pool_that_cannot_be_opened_at_start_is_sick_and_comes_up_later(tmp_path: Path) -> None:
    (tmp_path / "pool").write_text("not a directory")
    pool = make_pool(tmp_path / "pool")
    await pool.start()
    assert not pool.healthy
    with pytest.raises(PoolSick):
        await pool.find(key_of("a"), "test")
    (tmp_path / "pool").unlink()
    await is_well_again(pool)
    await pool.stop()


async def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir(mode=0o777)
    (tmp_path / "pool").chmod(0o777)
    pool = make_pool(tmp_path / "pool")
    await pool.start()
    assert "mode 777" in (pool.ailment or "")
    await pool.stop()


async def test_a_mount_that_hangs_does_not_hold_the_pool(tmp_path: Path) -> None:
    async with running(tmp_path / "pool", call_s=0.3) as pool:
        await add(pool, "a")
        fill = await reserve(pool, "b")
        mount = threading.Event()
        for name in ("prove", "discard", "remove"):
            setattr(pool.access.entries, name, lambda *args: mount.wait())
        begun = time.monotonic()
        calls = [asyncio.create_task(pool.find(key_of("a"), "test")) for _ in range(20)]
        await asyncio.wait(calls)
        assert all(isinstance(call.exception(), PoolSick) for call in calls)
        await pool.abandon(fill)
        assert time.monotonic() - begun < 30
        assert 1 <= pool.access.hanging <= 8
        assert sum(thread.name.startswith("cache-pool") for thread in threading.enumerate()) <= 8
        mount.set()
        await is_well_again(pool)
        assert pool.access.hanging == 0
        assert not (fill.path).exists()
        assert await has(pool, "a")


async def test_a_ledger_that_hangs_or_fails_is_a_sick_pool(tmp_path: Path) -> None:
    async with running(tmp_path / "pool", call_s=0.5) as pool:
        held = await put(pool, "a")
        begun, ledger_hangs = threading.Event(), threading.Event()

        def hang(tx: Transaction) -> None:
            begun.set()
            ledger_hangs.wait()

        stuck = asyncio.create_task(pool._database.transact(hang))
        await asyncio.to_thread(begun.wait)
        with pytest.raises(PoolSick):
            await pool.find(key_of("a"), "test")
        await pool.unpin(held)
        ledger_hangs.set()
        await stuck
        await is_well_again(pool)
        found = await pool.find(key_of("a"), "test")
        assert isinstance(found, Held)
        await pool.unpin(found)
        assert await is_tidy(pool)


@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
async def test_real_blocks_stay_below_the_limit_all_the_time(tmp_path: Path, kind: str) -> None:
    """Sampled from the file system while objects come and go, written in any order and with holes."""
    mounted = (
        mounted_tmpfs(tmp_path / "mount", options="size=64m")
        if kind == "tmpfs"
        else mounted_ext4(tmp_path / "mount", tmp_path / "image", size=64 * MiB)
    )
    with mounted as mount:
        samples: list[int] = []
        over = threading.Event()
        pool = make_pool(mount / "pool", units=6)
        await pool.start()

        def sample() -> None:
            while not over.is_set():
                samples.append(bytes_on_disk(mount / "pool"))

        sampler = threading.Thread(target=sample, name="sampler")
        sampler.start()
        try:
            for number in range(30):
                size = 300_001 * (1 + number % 5)
                fill = await reserve(pool, f"o{number}", size)
                with fill.path.open("r+b") as file:
                    file.truncate(size)
                    for offset in range((size - 1) // 8192 * 8192, -1, -16384):
                        file.seek(offset)
                        file.write(b"x" * min(8192, size - offset))
                        file.flush()
                held = await pool.publish(fill, store="s", ref="r", version=None, size=size, digest=None, reason="test")
                assert held.path.stat().st_blocks * 512 <= held.entry.charge
                await pool.unpin(held)
        finally:
            over.set()
            sampler.join()
            await pool.stop()
        assert len(samples) > 20
        assert max(samples) <= pool.settings.limit
