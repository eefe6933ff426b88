"""The order of pools, and the rungs over pools that answer as the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.cache.health import PoolSick
from stores.cache.ladder import STEP, CacheExhausted, CacheUnavailable, Ladder, LargerThanCache, Turn, by_room
from stores.cache.ledger import Statistics, charge_of
from stores.cache.policy import PoolState, Refuse, Wait
from stores.cache.pool import Fill, Pool
from stores.contract import MiB

T = TypeVar("T")
SIZE = 1 * MiB
CHARGE = charge_of(SIZE)

STATES = st.builds(
    lambda limit, used, reserved: PoolState(limit=limit, used=used, reserved=reserved, held=0),
    st.integers(0, 100),
    st.integers(0, 50),
    st.integers(0, 50),
)


@given(states=st.dictionaries(st.sampled_from("abcdef"), STATES), charge=st.integers(0, 100))
def test_the_most_room_comes_first_among_those_that_fit(states: dict[str, PoolState], charge: int) -> None:
    order = by_room(states, charge)
    assert set(order) == {name for name, state in states.items() if state.limit >= charge}
    room = [states[name].limit - states[name].used - states[name].reserved for name in order]
    assert room == sorted(room, reverse=True)
    assert order == by_room(dict(reversed(states.items())), charge)


class Scripted(Pool):
    """Grants what is in `room`; or is sick."""

    def __init__(self, name: str, *, limit: int, room: int = 0, sick: bool = False) -> None:
        self.name = name
        self.limit = limit
        self.room = room
        self.sick = sick
        self.asked: list[str | None] = []
        self.queue: list[str] = []
        self.waits: list[float] = []
        self.abandoned = 0

    def check(self) -> None:
        if self.sick:
            raise PoolSick(f"{self.name} is sick")

    async def state(self) -> PoolState:
        self.check()
        return PoolState(limit=self.limit, used=self.limit - self.room, reserved=0, held=0)

    async def reserve(self, key: str, size: int, *, waiter: str | None = None) -> Fill | Wait | Refuse:
        self.check()
        self.asked.append(waiter)
        if charge_of(size) > self.room or (self.queue and self.queue[0] != waiter):
            return Wait("no room")
        if waiter is not None:
            self.queue.remove(waiter)
        self.room -= charge_of(size)
        return Fill(key, "reservation", "owner", Path("/nowhere"), size, charge_of(size))

    async def grow(self, fill: Fill, size: int) -> Wait | Refuse | None:
        more = charge_of(size) - fill.charge
        if more > self.room:
            return Wait("no room")
        self.room -= more
        fill.size, fill.charge = size, charge_of(size)
        return None

    async def join_queue(self, size: int, wait_s: float) -> str:
        self.check()
        self.waits.append(wait_s)
        self.queue.append(f"{self.name}-{len(self.waits)}")
        return self.queue[-1]

    async def leave_queue(self, waiter: str) -> None:
        if waiter in self.queue:
            self.queue.remove(waiter)

    async def abandon(self, fill: Fill) -> None:
        self.abandoned += 1

    async def transact(self, work: object) -> T:
        self.check()
        return Statistics(  # type: ignore[return-value]
            limit=self.limit,
            used=self.limit - self.room,
            reserved=0,
            held=0,
            pinned=0,
            dirty=0,
            quarantined=0,
            used_once=0,
            entries=0,
            fills=0,
            waiting=len(self.queue),
            bias=0.0,
            oldest=(),
        )


class Climber:
    def __init__(self, pools: Sequence[Scripted], wait_s: float = 0.0) -> None:
        self.turn = Turn()
        self.ladder = Ladder(pools, turn=self.turn, spread=lambda: 0.5)
        self.deadline = asyncio.get_running_loop().time() + wait_s
        self.waited = 0

    def _wait(self) -> None:
        self.waited += 1

    async def climb(self, size: int = SIZE) -> str:
        room = await self.ladder.climb("key", size, deadline=lambda: self.deadline, waits=self._wait)
        return room.pool.name


async def test_first_the_pool_with_the_most_room() -> None:
    pools = [Scripted("a", limit=9 * CHARGE, room=CHARGE), Scripted("b", limit=9 * CHARGE, room=2 * CHARGE)]
    climber = Climber(pools)
    assert await climber.climb() == "b"
    assert (pools[0].asked, climber.waited) == ([], 0)


async def test_then_the_others_in_the_same_order() -> None:
    pools = [Scripted("a", limit=9 * CHARGE), Scripted("b", limit=CHARGE // 2), Scripted("c", limit=9 * CHARGE)]
    pools[2].room = CHARGE - 1
    pools[0].room = CHARGE - 2
    climber = Climber(pools, wait_s=20)
    waiting = asyncio.create_task(climber.climb())
    while not climber.waited:
        await asyncio.sleep(0)
    pools[0].room = CHARGE
    climber.turn.freed()
    assert await waiting == "a"
    assert pools[1].asked == []
    assert [pool.queue for pool in pools] == [[], [], []]


async def test_sick_pools_do_not_count() -> None:
    pools = [Scripted("a", limit=9 * CHARGE, room=CHARGE), Scripted("b", limit=9 * CHARGE, room=CHARGE, sick=True)]
    assert await Climber(pools).climb() == "a"
    pools[0].sick = True
    with pytest.raises(CacheUnavailable):
        await Climber(pools, wait_s=3600).climb()


async def test_too_large_is_known_at_once_unless_a_sick_pool_might_do() -> None:
    pools = [Scripted("a", limit=CHARGE - 1), Scripted("b", limit=9 * CHARGE, sick=True)]
    with pytest.raises(CacheUnavailable):
        await Climber(pools, wait_s=3600).climb()
    pools[1].sick, pools[1].limit = False, CHARGE - 2
    with pytest.raises(LargerThanCache) as caught:
        await Climber(pools, wait_s=3600).climb()
    assert caught.value.details == {"limit": CHARGE - 1, "seen": CHARGE}


async def test_the_deadline_may_move_while_waiting() -> None:
    pool = Scripted("a", limit=9 * CHARGE)
    climber = Climber([pool], wait_s=0.05)
    waiting = asyncio.create_task(climber.climb())
    await asyncio.sleep(0)
    climber.deadline += 0.4
    done, _ = await asyncio.wait([waiting], timeout=0.2)
    assert not done
    with pytest.raises(CacheExhausted):
        await waiting
    assert pool.queue == []


async def test_cancelling_leaves_every_line() -> None:
    pools = [Scripted("a", limit=9 * CHARGE), Scripted("b", limit=9 * CHARGE)]
    waiting = asyncio.create_task(Climber(pools, wait_s=60).climb())
    while not all(pool.queue for pool in pools):
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert [pool.queue for pool in pools] == [[], []]


async def test_an_unknown_size_grows_by_more_than_it_needs_while_there_is_room() -> None:
    pool = Scripted("a", limit=8 * STEP, room=3 * STEP)
    climber = Climber([pool])
    fill = Fill("key", "reservation", "owner", Path("/nowhere"), STEP, charge_of(STEP))
    await climber.ladder.grow(pool, fill, STEP + 1, deadline=lambda: climber.deadline)
    assert fill.size == 2 * STEP
    pool.room = 10 * 4096
    await climber.ladder.grow(pool, fill, 2 * STEP + 1, deadline=lambda: climber.deadline)
    assert fill.size == 2 * STEP + 1
    pool.room = 0
    with pytest.raises(CacheExhausted):
        await climber.ladder.grow(pool, fill, 3 * STEP, deadline=lambda: climber.deadline)
    with pytest.raises(LargerThanCache):
        await climber.ladder.grow(pool, fill, 9 * STEP, deadline=lambda: climber.deadline + 3600)
