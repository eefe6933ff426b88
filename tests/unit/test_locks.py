"""Locks: many readers or one writer, first come first served, nothing left behind."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.locks import Claim, Locks


def read(*keys: str) -> list[Claim]:
    return [Claim(key, exclusive=False) for key in keys]


def write(*keys: str) -> list[Claim]:
    return [Claim(key) for key in keys]


class Holder:
    """A task that holds claims until told to let go."""

    def __init__(self, locks: Locks, claims: list[Claim]) -> None:
        self.holding = False
        self._let_go = asyncio.Event()
        self.task = asyncio.create_task(self._hold(locks, claims))

    async def _hold(self, locks: Locks, claims: list[Claim]) -> None:
        async with locks.hold(claims):
            self.holding = True
            await self._let_go.wait()
        self.holding = False

    async def let_go(self) -> None:
        self._let_go.set()
        await self.task


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_writers_of_one_name_take_turns_in_the_order_of_asking() -> None:
    locks = Locks()
    holders = [Holder(locks, write("a")) for _ in range(4)]
    for number, holder in enumerate(holders):
        await settle()
        assert [h.holding for h in holders] == [n == number for n in range(4)]
        await holder.let_go()
    assert len(locks) == 0


async def test_readers_share_and_a_writer_waits_for_all_of_them() -> None:
    locks = Locks()
    first, second = Holder(locks, read("a")), Holder(locks, read("a"))
    writer = Holder(locks, write("a"))
    await settle()
    assert first.holding
    assert second.holding
    assert not writer.holding
    await first.let_go()
    await settle()
    assert not writer.holding
    await second.let_go()
    await settle()
    assert writer.holding
    await writer.let_go()
    assert len(locks) == 0


async def test_a_reader_does_not_overtake_a_writer() -> None:
    locks = Locks()
    first, writer, late = Holder(locks, read("a")), Holder(locks, write("a")), Holder(locks, read("a"))
    await settle()
    assert not late.holding
    await first.let_go()
    await settle()
    assert writer.holding
    assert not late.holding
    await writer.let_go()
    await settle()
    assert late.holding
    await late.let_go()


async def test_names_in_opposite_order_do_not_deadlock() -> None:
    locks = Locks()
    one, other = Holder(locks, write("a", "b")), Holder(locks, write("b", "a"))
    await settle()
    assert one.holding
    assert not other.holding
    await one.let_go()
    await settle()
    assert other.holding
    await other.let_go()
    assert len(locks) == 0


async def test_reading_and_writing_the_same_name_is_writing() -> None:
    locks = Locks()
    both = Holder(locks, read("a") + write("a"))
    reader = Holder(locks, read("a"))
    await settle()
    assert both.holding
    assert not reader.holding
    await both.let_go()
    await reader.let_go()


async def test_no_claims_wait_for_nobody() -> None:
    locks = Locks()
    async with locks.hold(write("a")), locks.hold([]):
        assert len(locks) == 1
    assert len(locks) == 0


async def test_whoever_is_cancelled_while_waiting_leaves_every_queue() -> None:
    locks = Locks()
    holder, waiter, next_one = Holder(locks, write("a")), Holder(locks, write("a", "b")), Holder(locks, write("b"))
    await settle()
    assert not next_one.holding  # "b" belongs to the waiter, which waits for "a"
    waiter.task.cancel()
    await settle()
    assert waiter.task.cancelled()
    assert next_one.holding
    await holder.let_go()
    await next_one.let_go()
    assert len(locks) == 0


async def test_a_holder_cancelled_in_the_moment_of_its_turn_lets_the_next_one_in() -> None:
    locks = Locks()
    holder, unlucky, next_one = Holder(locks, write("a")), Holder(locks, write("a")), Holder(locks, write("a"))
    await settle()
    holder._let_go.set()
    await holder.task  # the turn is granted, the waiter has not run yet or has just begun
    unlucky.task.cancel()
    await settle()
    assert not unlucky.holding or unlucky.task.cancelled()
    assert next_one.holding
    await next_one.let_go()
    assert len(locks) == 0


async def test_an_error_inside_releases() -> None:
    locks = Locks()
    with pytest.raises(RuntimeError):
        async with locks.hold(write("a")):
            raise RuntimeError
    assert len(locks) == 0


claim_sets = st.lists(
    st.lists(st.builds(Claim, st.sampled_from("abc"), st.booleans()), max_size=3), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(claim_sets, st.randoms(use_true_random=False))
def test_never_two_that_exclude_each_other_and_everybody_gets_a_turn(
    claims: list[list[Claim]], chance: random.Random
) -> None:
    async def scenario() -> None:
        locks = Locks()
        readers: Counter[str] = Counter()
        writers: Counter[str] = Counter()

        async def work(mine: list[Claim]) -> None:
            wants = {c.key: any(o.exclusive for o in mine if o.key == c.key) for c in mine}
            async with locks.hold(mine):
                for key, exclusive in wants.items():
                    (writers if exclusive else readers)[key] += 1
                try:
                    assert not [key for key in wants if writers[key] > 1 or (writers[key] and readers[key])]
                    for _ in range(chance.randrange(4)):
                        await asyncio.sleep(0)
                finally:
                    for key, exclusive in wants.items():
                        (writers if exclusive else readers)[key] -= 1

        tasks = [asyncio.create_task(work(mine)) for mine in claims]
        for task in tasks:
            if chance.random() < 0.3:
                await asyncio.sleep(0)
                task.cancel()
        async with asyncio.timeout(10):
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(r is None or isinstance(r, asyncio.CancelledError) for r in results)
        assert len(locks) == 0

    asyncio.run(scenario())
