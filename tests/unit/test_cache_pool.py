"""A pool: what is claimed, held, filled and let go, and that nothing stays claimed or lying about."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from pathlib import Path

import pytest

from stores.cache import ledger
from stores.cache.claims import Gone
from stores.cache.errors import LeaseLost
from stores.cache.policy import Hold, Refuse, Wait
from stores.cache.pool import Fill, Following, Held, Missing, Pool
from stores.errors import AlreadyExists, IntegrityError
from tests.pools import (
    SIZE,
    UNIT,
    add,
    bytes_on_disk,
    content_of,
    files_in,
    has,
    is_tidy,
    is_tidy_soon,
    key_of,
    make_pool,
    publish,
    put,
    reserve,
    running,
)


async def test_an_object_is_missing_then_followed_then_held(tmp_path: Path) -> None:
    async with running(tmp_path / "pool") as pool:
        assert await pool.find(key_of("a"), "test") == Missing()
        fill = await reserve(pool, "a")
        await pool.note(fill, [(0, 4096), (8192, 12288)])
        following = await pool.find(key_of("a"), "test")
        assert isinstance(following, Following)
        assert (following.path, following.whole) == (fill.path, ((0, 4096), (8192, 12288)))
        held = await publish(pool, fill, "a")
        assert held.path.read_bytes() == content_of("a")
        again = await pool.find(key_of("a"), "test")
        assert isinstance(again, Held)
        assert (again.path, again.entry.id) == (held.path, held.entry.id)
        await pool.unpin(held)
        await pool.unpin(again)
        await pool.unpin(again)
        assert await is_tidy(pool)


async def test_room_is_made_by_what_was_used_longest_ago(tmp_path: Path) -> None:
    async with running(tmp_path / "pool", units=3, high=1.0) as pool:
        for name in "abc":
            await add(pool, name)
        used = await pool.find(key_of("a"), "test")
        assert isinstance(used, Held)
        await pool.unpin(used)
        await add(pool, "d")
        assert [await has(pool, name) for name in "abcd"] == [True, False, True, True]
        assert pool.counts.evictions == {Gone.ROOM: 1}
        assert await is_tidy(pool)


async def test_what_is_held_or_arriving_never_goes(tmp_path: Path) -> None:
    async with running(tmp_path / "pool", units=3) as pool:
        held, fill = await put(pool, "a"), await reserve(pool, "b")
        await add(pool, "c")
        answer = await pool.reserve(key_of("d"), 2 * SIZE)
        assert isinstance(answer, Wait)
        assert await has(pool, "a")
        assert fill.path.exists()
        await pool.abandon(fill)
        bigger = await reserve(pool, "d", SIZE)
        await pool.abandon(bigger)
        await pool.abandon(bigger)
        await pool.unpin(held)
        assert await is_tidy(pool)


async def test_what_can_never_fit_is_refused_and_what_may_fit_later_is_not(tmp_path: Path) -> None:
    async with running(tmp_path / "pool", units=2) as pool:
        assert isinstance(await pool.reserve(key_of("a"), 3 * SIZE), Refuse)
        assert await is_tidy(pool)
    async with running(tmp_path / "pool", units=2, leave_free=1 << 60) as pool:
        assert isinstance(await pool.reserve(key_of("a"), SIZE), Wait)
        assert (await pool.state()).limit == 0
        assert await is_tidy(pool)


async def test_a_key_is_filled_once_at_a_time(tmp_path: Path) -> None:
    async with running(tmp_path / "pool") as pool:
        fill = await reserve(pool, "a")
        with pytest.raises(AlreadyExists):
            await pool.reserve(key_of("a"), SIZE)
        await pool.abandon(fill)
        assert await is_tidy(pool)


async def test_a_fill_grows_in_steps_up_to_the_limit(tmp_path: Path) -> None:
    async with running(tmp_path / "pool", units=3, high=1.0) as pool:
        await add(pool, "old")
        fill = await reserve(pool, "a", 1)
        assert await pool.grow(fill, 2 * SIZE) is None
        assert fill.size == 2 * SIZE
        assert await pool.grow(fill, 3 * SIZE) is None  # the old one goes
        assert not await has(pool, "old")
        assert isinstance(await pool.grow(fill, 8 * SIZE), Refuse)
        await pool.unpin(await publish(pool, fill, "a", 3 * SIZE))
        assert await is_tidy(pool)


async def test_who_waits_comes_in_turn(tmp_path: Path) -> None:
    async with running(tmp_path / "pool", units=1) as pool:
        fill = await reserve(pool, "a")
        first, second = await pool.join_queue(SIZE, 60), await pool.join_queue(SIZE, 60)
        assert isinstance(await pool.reserve(key_of("b"), SIZE, waiter=first), Wait)
        await pool.abandon(fill)
        assert isinstance(await pool.reserve(key_of("c"), SIZE, waiter=second), Wait)
        assert isinstance(await pool.reserve(key_of("d"), SIZE), Wait)
        granted = await pool.reserve(key_of("b"), SIZE, waiter=first)
        assert isinstance(granted, Fill)
        await pool.abandon(granted)
        await pool.leave_queue(second)
        await pool.leave_queue(second)
        assert await is_tidy(pool)


async def test_a_file_of_another_size_is_not_published(tmp_path: Path) -> None:
    async with running(tmp_path / "pool") as pool:
        fill = await reserve(pool, "a")
        fill.path.write_bytes(b"short")
        with pytest.raises(IntegrityError):
            await pool.publish(fill, store="s", ref="a", version=None, size=SIZE, digest=None, reason="test")
        assert pool.healthy
        await pool.abandon(fill)
        assert await pool.find(key_of("a"), "test") == Missing()
        assert await is_tidy(pool)


async def test_a_changed_file_is_quarantined_and_never_served_again(tmp_path: Path) -> None:
    async with running(tmp_path / "pool", high=1.0) as pool:
        held = await put(pool, "a")
        await pool.unpin(held)
        with held.path.open("r+b") as file:
            file.write(b"other")
        assert await pool.find(key_of("a"), "test") == Missing()
        assert pool.counts.quarantined == 1
        assert [name.split("/")[0] for name in files_in(pool)] == ["quarantine", "quarantine"]
        await add(pool, "a")
        assert await has(pool, "a")
        assert (await pool.state()).used == 2 * UNIT  # evidence takes room
        for name in "bcd":  # and goes before anything else
            await add(pool, name)
        assert [await has(pool, name) for name in "abcd"] == [True] * 4
        assert await is_tidy(pool)


async def test_a_reader_can_refuse_what_it_got(tmp_path: Path) -> None:
    async with running(tmp_path / "pool") as pool:
        held = await put(pool, "a")
        other = await pool.find(key_of("a"), "reads it at the same time")
        assert isinstance(other, Held)
        await pool.refuse(held, "it has another digest")
        assert await pool.find(key_of("a"), "test") == Missing()
        await pool.refuse(other, "it has another digest")
        assert pool.counts.quarantined == 1
        assert await is_tidy(pool)


async def test_an_operator_evicts_what_nobody_holds(tmp_path: Path) -> None:
    async with running(tmp_path / "pool") as pool:
        held = await put(pool, "a")
        assert await pool.evict(held.entry) is Hold.PINNED
        await pool.unpin(held)
        assert await pool.evict(held.entry) is None
        assert files_in(pool) == []
        assert pool.counts.evictions == {Gone.ASKED: 1}
        assert await is_tidy(pool)


async def test_pressure_is_relieved_in_the_background_and_age_counts(tmp_path: Path) -> None:
    async with running(tmp_path / "pool", units=10, high=0.75, low=0.5) as pool:
        for name in "abcdefgh":
            await add(pool, name)
        async with asyncio.timeout(20):
            while (await pool.state()).used > 5 * UNIT:
                await asyncio.sleep(0.01)
        assert await has(pool, "h")
        assert pool.counts.evictions[Gone.PRESSURE] == 3
        assert await is_tidy(pool)
    async with running(tmp_path / "pool", units=10, max_idle_s=0.001) as pool:
        async with asyncio.timeout(20):
            while (await pool.state()).used:
                await asyncio.sleep(0.01)
        assert pool.counts.evictions[Gone.AGE] == 5
        assert await is_tidy(pool)


@pytest.mark.parametrize("turns", range(0, 24, 3))
async def test_a_cancelled_step_leaves_nothing_claimed(tmp_path: Path, turns: int) -> None:
    async with running(tmp_path / "pool", units=2) as pool:
        for name in "ab":
            await add(pool, name)

        async def work() -> None:
            fill = None
            try:
                fill = await reserve(pool, "c")
                held = await publish(pool, fill, "c")
            except BaseException:
                if fill is not None:
                    await pool.abandon(fill)
                raise
            await pool.unpin(held)
            held_again = await pool.find(key_of("c"), "test")
            assert isinstance(held_again, Held)
            await pool.unpin(held_again)

        task = asyncio.create_task(work())
        for _ in range(turns):
            await asyncio.sleep(0.0015)
        task.cancel()
        await asyncio.wait([task])
        shown = await pool.transact(partial(ledger.statistics, pool=pool.name))
        assert (shown.reserved, shown.fills, shown.waiting) == (0, 0, 0)
        await is_tidy_soon(pool)


async def test_two_pools_share_a_directory(tmp_path: Path) -> None:
    async with running(tmp_path / "pool") as one, running(tmp_path / "pool") as two:
        fill = await reserve(one, "a")
        assert isinstance(await two.find(key_of("a"), "test"), Following)
        held = await publish(one, fill, "a")
        seen = await two.find(key_of("a"), "test")
        assert isinstance(seen, Held)
        assert seen.path == held.path
        assert await one.evict(held.entry) is Hold.PINNED
        await one.unpin(held)
        assert await one.evict(held.entry) is Hold.PINNED
        await two.unpin(seen)
        assert await one.evict(held.entry) is None
        assert await two.find(key_of("a"), "test") == Missing()
        assert await is_tidy(one)


async def test_the_dead_leave_their_fills_to_whoever_wants_them(tmp_path: Path) -> None:
    dead = make_pool(tmp_path / "pool")
    await dead.start()
    fill = await reserve(dead, "a")
    fill.path.write_bytes(content_of("a"))
    await dead.note(fill, [(0, SIZE // 2)])
    await dead.stop()
    async with running(tmp_path / "pool", lease_s=1000) as pool:
        taken = await pool.find(key_of("a"), "test")
        assert isinstance(taken, Fill)
        assert (taken.path, taken.whole, taken.size) == (fill.path, ((0, SIZE // 2),), SIZE)
        assert pool.counts.taken_over == 1
        await pool.unpin(await publish(pool, taken, "a"))
        assert await is_tidy(pool)


async def test_a_fill_of_a_process_that_is_only_silent_is_not_gone_on_with(tmp_path: Path) -> None:
    """It may come back to life in the middle of a write."""
    now = 0.0
    silent = make_pool(tmp_path / "pool", lease_clock=lambda: now)
    await silent.start()
    fill = await reserve(silent, "a")
    await silent.note(fill, [(0, SIZE // 2)])
    now = 100.0
    async with running(tmp_path / "pool", lease_clock=lambda: 100.0) as pool:
        assert await pool.find(key_of("a"), "test") == Missing()
        assert not fill.path.exists()
        await add(pool, "a")
        with pytest.raises(LeaseLost):
            await publish(silent, fill, "a")
        await silent.abandon(fill)
        assert await has(pool, "a")
        (tmp_path / "pool" / "fill" / fill.path.name).unlink(missing_ok=True)  # the test wrote it by name
        await silent.stop()
        assert await is_tidy(pool)


async def test_who_lost_the_lease_goes_on_under_another_name(tmp_path: Path) -> None:
    now = 0.0
    async with running(tmp_path / "pool", lease_clock=lambda: now, lease_s=2.0) as pool:
        held, fill, owner = await put(pool, "a"), await reserve(pool, "b"), pool.lease.owner
        now = 50.0
        async with asyncio.timeout(20):
            while pool.lease.owner == owner:
                await asyncio.sleep(0.01)
        assert fill.lost
        with pytest.raises(LeaseLost):
            await pool.note(fill, [(0, 1)])
        await pool.abandon(fill)
        assert await pool.evict(held.entry) is Hold.PINNED
        await pool.unpin(held)
        assert pool.counts.lease_losses == 1
        assert await has(pool, "a")
        async with asyncio.timeout(20):
            while (await pool.state()).held:  # by the owner that it was before
                await asyncio.sleep(0.01)
        assert await is_tidy(pool)


async def test_a_row_without_file_is_struck_out_and_a_stray_file_counts_against_room(tmp_path: Path) -> None:
    async with running(tmp_path / "pool") as pool:
        await add(pool, "a")
        held = await put(pool, "b")
        held.path.unlink()
        stray = tmp_path / "pool" / "objects" / "ab" / "stranger"
        stray.write_bytes(content_of("stray", 2 * SIZE))
    async with running(tmp_path / "pool") as pool:
        async with asyncio.timeout(20):
            while not pool.counts.stray_files or await has_row(pool, "b"):
                await asyncio.sleep(0.01)
        assert stray.exists()
        assert pool.counts.stray_bytes >= 2 * SIZE
        assert pool.counts.evictions[Gone.VANISHED] == 1
        for name in "cdef":
            await add(pool, name)
            assert bytes_on_disk(tmp_path / "pool") <= pool.settings.limit
        assert isinstance(await pool.reserve(key_of("g"), 3 * SIZE), Wait)
        stray.unlink()


async def has_row(pool: Pool, name: str) -> bool:
    return await pool.transact(partial(ledger.entry, pool=pool.name, key=key_of(name))) is not None


async def test_files_may_be_read_by_the_group_if_configured(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        async with running(tmp_path / "pool", file_mode=0o640) as pool:
            held = await put(pool, "a")
            assert held.path.stat().st_mode & 0o777 == 0o640
            assert held.path.parent.stat().st_mode & 0o777 == 0o700
            await pool.unpin(held)
    finally:
        os.umask(before)
