"""One flight for all who want the same thing at the same time: sharing, leaving, failing, cleaning up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from stores.cache.flights import Flight, Flights, Stage
from stores.errors import StoreError, Unavailable
from stores.transfer.ranges import Ranges

LATER = 3600.0


class Journeys:
    """Counts what begins and ends; each waits for `go` before it lands."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0
        self.go = asyncio.Event()
        self.failure: Exception | None = None
        self.cleaning: Exception | None = None

    @asynccontextmanager
    async def fly(self, flight: Flight[str, int]) -> AsyncIterator[int]:
        self.begun += 1
        number = self.begun
        try:
            flight.enter(Stage.FILLING)
            flight.begin("copy", Ranges(), 10)
            await self.go.wait()
            if self.failure is not None:
                raise self.failure
            flight.add(0, 10)
            yield number
        finally:
            await asyncio.sleep(0)
            self.ended += 1
            if self.cleaning is not None:
                raise self.cleaning


@pytest.fixture
def journeys() -> Journeys:
    return Journeys()


@pytest.fixture
async def flights() -> AsyncIterator[Flights[str, int]]:
    """Nothing of them is left at the end."""
    found: Flights[str, int] = Flights()
    yield found
    assert found.under_way() == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def want(flights: Flights[str, int], journeys: Journeys, key: str = "key") -> tuple[int, bool]:
    async with flights.joined(key, journeys.fly, deadline=LATER) as (flight, leads):
        while not flight.over:
            await flight.change()
        return flight.result(), leads


async def started(*wanted: asyncio.Task[tuple[int, bool]]) -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_all_who_come_meanwhile_share_one(flights: Flights[str, int], journeys: Journeys) -> None:
    wanted = [asyncio.create_task(want(flights, journeys)) for _ in range(50)]
    await started(*wanted)
    assert journeys.begun == 1
    journeys.go.set()
    found = await asyncio.gather(*wanted)
    assert {number for number, _ in found} == {1}
    assert [leads for _, leads in found].count(True) == 1
    assert journeys.ended == 1


async def test_what_it_brought_stays_until_the_last_one_leaves(flights: Flights[str, int], journeys: Journeys) -> None:
    journeys.go.set()
    async with flights.joined("key", journeys.fly, deadline=LATER) as (first, _):
        async with flights.joined("key", journeys.fly, deadline=LATER) as (second, leads):
            assert second is first
            assert not leads
            while not first.over:
                await first.change()
        assert journeys.ended == 0
        assert first.landed == 1
    assert journeys.ended == 1


async def test_who_comes_after_the_landing_starts_another_one(flights: Flights[str, int], journeys: Journeys) -> None:
    journeys.go.set()
    async with flights.joined("key", journeys.fly, deadline=LATER) as (flight, _):
        while not flight.over:
            await flight.change()
        assert await want(flights, journeys) == (2, True)
        assert flight.result() == 1
    assert journeys.ended == 2


async def test_different_keys_fly_apart(flights: Flights[str, int], journeys: Journeys) -> None:
    wanted = [asyncio.create_task(want(flights, journeys, key)) for key in ("a", "b")]
    await started(*wanted)
    assert sorted(flight.key for flight in flights.under_way()) == ["a", "b"]
    journeys.go.set()
    await asyncio.gather(*wanted)
    assert journeys.begun == journeys.ended == 2


@pytest.mark.parametrize("who", [0, 1])
async def test_cancelling_one_cancels_nobody_else(flights: Flights[str, int], journeys: Journeys, who: int) -> None:
    wanted = [asyncio.create_task(want(flights, journeys)) for _ in range(3)]
    await started(*wanted)
    wanted[who].cancel()
    with pytest.raises(asyncio.CancelledError):
        await wanted.pop(who)
    journeys.go.set()
    assert {number for number, _ in await asyncio.gather(*wanted)} == {1}
    assert journeys.begun == 1


async def test_when_nobody_is_left_it_is_cancelled_and_cleans_up(
    flights: Flights[str, int], journeys: Journeys
) -> None:
    wanted = [asyncio.create_task(want(flights, journeys)) for _ in range(3)]
    await started(*wanted)
    for task in wanted:
        task.cancel()
    await asyncio.gather(*wanted, return_exceptions=True)
    assert (journeys.begun, journeys.ended) == (1, 1)
    assert flights.under_way() == []


async def test_its_failure_is_everybodys(flights: Flights[str, int], journeys: Journeys) -> None:
    journeys.failure = Unavailable("broken on purpose")
    wanted = [asyncio.create_task(want(flights, journeys)) for _ in range(3)]
    await started(*wanted)
    journeys.go.set()
    found = await asyncio.gather(*wanted, return_exceptions=True)
    assert found == [journeys.failure] * 3
    assert journeys.ended == 1


async def test_after_a_failure_the_next_one_starts_anew(flights: Flights[str, int], journeys: Journeys) -> None:
    journeys.failure = Unavailable("broken on purpose")
    journeys.go.set()
    with pytest.raises(Unavailable):
        await want(flights, journeys)
    journeys.failure = None
    assert await want(flights, journeys) == (2, True)


async def test_it_is_known_whether_the_leader_stayed(flights: Flights[str, int], journeys: Journeys) -> None:
    leader = asyncio.create_task(want(flights, journeys))
    await started(leader)
    async with flights.joined("key", journeys.fly, deadline=LATER) as (flight, leads):
        assert not leads
        assert flight.leader_stays
        leader.cancel()
        await asyncio.gather(leader, return_exceptions=True)
        assert not flight.leader_stays
        assert not flight.over


async def test_the_latest_deadline_counts(flights: Flights[str, int], journeys: Journeys) -> None:
    async with flights.joined("key", journeys.fly, deadline=5.0) as (flight, _):
        async with flights.joined("key", journeys.fly, deadline=9.0):
            pass
        async with flights.joined("key", journeys.fly, deadline=3.0):
            assert flight.deadline == 9.0


async def test_progress_is_seen_by_all_and_no_change_is_missed(flights: Flights[str, int], journeys: Journeys) -> None:
    seen: list[int] = []

    async def watch() -> None:
        async with flights.joined("key", journeys.fly, deadline=LATER) as (flight, _):
            while flight.arrived.total < 10:
                seen.append(flight.arrived.total)
                await flight.change()
            assert flight.copy == "copy"
            assert flight.size == 10

    watchers = [asyncio.create_task(watch()) for _ in range(2)]
    await asyncio.sleep(0.01)
    journeys.go.set()
    await asyncio.gather(*watchers)
    assert set(seen) == {0}


async def test_waiting_for_a_change_ends_with_its_time(flights: Flights[str, int], journeys: Journeys) -> None:
    async with flights.joined("key", journeys.fly, deadline=LATER) as (flight, _):
        await asyncio.sleep(0)
        await flight.change(0.01)
        assert not flight.over


async def test_closing_ends_all_and_says_so(flights: Flights[str, int], journeys: Journeys) -> None:
    wanted = [asyncio.create_task(want(flights, journeys, key)) for key in ("a", "b", "b")]
    await started(*wanted)
    await flights.aclose()
    assert journeys.ended == 2
    found = await asyncio.gather(*wanted, return_exceptions=True)
    assert [type(error) for error in found] == [Unavailable] * 3
    await flights.aclose()


async def test_a_failure_to_clean_up_is_told_to_who_leaves_last(flights: Flights[str, int], journeys: Journeys) -> None:
    journeys.go.set()
    journeys.cleaning = StoreError("cannot give it back")
    with pytest.raises(StoreError, match="cannot give it back"):
        await want(flights, journeys)
