"""Sharing buffers and threads: within the limit, nobody starved, nothing lost when waiting is given up."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress

import pytest

from stores.transfer.buffers import PIECE, BufferPool
from stores.transfer.fairness import FairShare, may_take, quota


def test_the_first_permit_needs_only_a_free_one() -> None:
    assert may_take(held=0, free=1, limit=4, quota=1)
    assert not may_take(held=0, free=0, limit=4, quota=4)


def test_further_permits_stay_within_the_quota_and_leave_a_reserve() -> None:
    assert may_take(held=7, free=9, limit=16, quota=8)
    assert not may_take(held=8, free=8, limit=16, quota=8)
    assert not may_take(held=1, free=4, limit=16, quota=8)


def test_quotas_are_equal_parts_and_at_least_one() -> None:
    assert [quota(share=8, owners=owners) for owners in (0, 1, 2, 3, 8, 9)] == [8, 8, 4, 2, 1, 1]


async def test_beyond_the_share_each_owner_has_one_and_the_rich_are_pressed() -> None:
    share = FairShare(24, share=8)
    for _ in range(8):
        await asyncio.wait_for(share.acquire(0), 1)
    assert not share.pressed(0)
    for owner in range(1, 13):
        await asyncio.wait_for(share.acquire(owner), 1)
    assert share.pressed(0)
    for _ in range(7):
        share.release(0)
    assert not any(share.pressed(owner) for owner in range(13))
    waiting = asyncio.create_task(share.acquire(5))
    await asyncio.sleep(0)
    assert not waiting.done()
    for owner in range(7, 13):
        share.release(owner)
    for owner in range(4):
        share.release(owner)
    await asyncio.wait_for(waiting, 1)


async def test_a_newcomer_gets_one_while_a_greedy_owner_waits_for_more() -> None:
    share = FairShare(8)
    greedy = [asyncio.create_task(share.acquire("greedy")) for _ in range(20)]
    await asyncio.sleep(0)
    held = share.taken
    assert held < 8
    await asyncio.wait_for(share.acquire("new"), 1)
    assert share.taken == held + 1
    assert share.pressed("greedy")
    for task in greedy:
        task.cancel()
    await asyncio.gather(*greedy, return_exceptions=True)
    for _ in range(held - 4):
        share.release("greedy")
    assert not share.pressed("greedy")


async def test_one_permit_serves_any_number_of_owners() -> None:
    share = FairShare(1)
    done = []

    async def use(owner: int) -> None:
        for _ in range(3):
            await share.acquire(owner)
            await asyncio.sleep(0)
            share.release(owner)
        done.append(owner)

    await asyncio.wait_for(asyncio.gather(*(use(owner) for owner in range(12))), 5)
    assert sorted(done) == list(range(12))
    assert share.taken == 0


@pytest.mark.parametrize("seed", range(20))
async def test_never_more_than_the_limit_and_nothing_lost_under_cancellation(seed: int) -> None:
    rng = random.Random(seed)
    limit = rng.randint(1, 9)
    share = FairShare(limit)
    held: Counter[int] = Counter()

    async def work(owner: int) -> None:
        for _ in range(rng.randint(1, 12)):
            await share.acquire(owner)
            held[owner] += 1
            assert held.total() <= share.taken <= limit
            try:
                for _ in range(rng.randint(0, 3)):
                    await asyncio.sleep(0)
            finally:
                held[owner] -= 1
                share.release(owner)

    workers = [asyncio.create_task(work(rng.randrange(4))) for _ in range(15)]
    for _ in range(30):
        await asyncio.sleep(0)
        if rng.random() < 0.3:
            rng.choice(workers).cancel()
    for worker in workers:
        with suppress(asyncio.CancelledError):
            await asyncio.wait_for(worker, 5)
    assert share.taken == 0


async def test_buffers_are_aligned_reused_and_dropped_when_all_are_back() -> None:
    pool = BufferPool(4 * PIECE)
    first = await pool.acquire("a")
    second = await pool.acquire("a")
    first[:4] = b"mark"
    pool.release("a", first)
    assert await pool.acquire("a") is first
    assert len(second) == PIECE
    assert pool.taken == 2
    pool.release("a", first)
    pool.release("a", second)
    assert pool.taken == 0
    assert bytes((await pool.acquire("a"))[:4]) == bytes(4)


@pytest.mark.parametrize("memory", [0, PIECE - 1])
def test_a_budget_below_one_buffer_is_refused(memory: int) -> None:
    with pytest.raises(ValueError, match="memory budget"):
        BufferPool(memory)
