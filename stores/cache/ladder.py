"""How room is found for an object: the rungs, in this order, and nothing left to chance.

1. The pool with the most room among those that the object fits into. There, what may go is evicted if need be.
2. The next pool, in the same order.
3. Wait in all of these, first come first served, until the deadline.
4. Whoever can do without a local copy does (`stores.cache.proxy` and `stores.resolver`).
5. `CacheExhausted` for the others, with the numbers.

Before the first: an object larger than every pool is refused at once (`LargerThanCache`), and sick pools do not count.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Self

from stores.cache.health import PoolSick
from stores.cache.ledger import Statistics, charge_of, statistics
from stores.cache.policy import PoolState
from stores.cache.pool import Fill, Pool
from stores.contract import MiB
from stores.errors import CacheFailure, Retry, TooLarge
from stores.uninterrupted import uninterrupted

STEP = 4 * MiB
"""What is reserved at first for an object of unknown size, and at least what is added when that is not enough."""

POLL_S = (0.05, 0.5)
"""Shortest and longest pause between two looks at the queue. Within the process nobody waits for them: see `Turn`."""

PLACE_S = 5.0
"""For how much longer than needed a place is kept, if nobody gives it up: longer than the last look of who stands there."""

CLOCKS_DIFFER_S = 0.01
"""A place is not given up for less."""


class CacheExhausted(CacheFailure):
    """No pool had room until the deadline. Details carry bytes: `needed`, and for each of the `pools` `limit`, `used`,
    `reserved`, `pinned`, `dirty`, and who has held any of it for the longest."""


class LargerThanCache(TooLarge, CacheFailure):
    """The object is larger than every pool: waiting will not help."""

    retry = Retry.NO


class CacheUnavailable(CacheFailure):
    """Every pool that could take the object is sick, or was lost while it arrived."""


@dataclass(frozen=True, slots=True)
class Room:
    """What was found: a reservation in a pool."""

    pool: Pool
    fill: Fill


def by_room(states: Mapping[str, PoolState], charge: int) -> list[str]:
    """The pools that an object of that charge fits into, the one with the most room left first; by name among equals."""
    fitting = [name for name, state in states.items() if charge <= state.limit]
    return sorted(fitting, key=lambda name: (states[name].used + states[name].reserved - states[name].limit, name))


def _in_words(numbers: Statistics) -> str:
    oldest = f", oldest holder: {numbers.oldest[0].reason}" if numbers.oldest else ""
    return (
        f"has {numbers.limit}, of which {numbers.reserved} are reserved, {numbers.pinned} pinned and {numbers.dirty} not yet"
        f" uploaded{oldest}"
    )


def _in_numbers(numbers: Statistics) -> dict[str, object]:
    return {
        "limit": numbers.limit,
        "used": numbers.used,
        "reserved": numbers.reserved,
        "pinned": numbers.pinned,
        "dirty": numbers.dirty,
        "holders": [asdict(holder) for holder in numbers.oldest],
    }


class Turn:
    """Wakes those who wait for room when this process has given some back."""

    def __init__(self) -> None:
        self._freed = asyncio.Event()

    def freed(self) -> None:
        self._freed.set()
        self._freed = asyncio.Event()

    def next(self) -> asyncio.Event:
        """Set when something is given back after this. Who asks for it before a look misses nothing in between."""
        return self._freed

    async def wait(self, timeout_s: float, event: asyncio.Event | None = None) -> None:
        """For `event`, which `next` gave, or the next one."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await (event or self._freed).wait()


class Ladder:
    """Over the pools of one process. `spread` gives random numbers in [0, 1): only the pauses between looks are random."""

    def __init__(self, pools: Sequence[Pool], *, turn: Turn, spread: Callable[[], float] = random.random) -> None:
        self._pools = {pool.name: pool for pool in pools}
        self._turn = turn
        self._spread = spread

    async def climb(self, key: str, size: int, *, deadline: Callable[[], float], waits: Callable[[], None]) -> Room:
        """A reservation for `size` bytes of the object `key`, and its empty file.

        `deadline`: until when somebody waits, of the loop's clock; asked again and again, since others may join. `waits`:
        called when the third rung is reached. Raises `CacheExhausted`, `LargerThanCache`, `CacheUnavailable`.
        """
        rungs = await self._rungs(size)
        room = await self._try(rungs, key, size)
        if room is None:
            waits()
            room = await self._wait(rungs, key, size, deadline)
        return room

    async def grow(self, pool: Pool, fill: Fill, size: int, *, deadline: Callable[[], float]) -> None:
        """Room in the same pool for at least `size` bytes of an object of unknown size, in growing steps.

        Waits until the deadline, whoever else waits: they may be waiting for this very object to be whole. Raises
        `CacheExhausted`, or `LargerThanCache` when the pool could never hold it.
        """
        clock = asyncio.get_running_loop().time
        wanted = max(size, fill.size + max(STEP, fill.size // 4))
        while await pool.grow(fill, wanted) is not None:
            if wanted > size:
                wanted = size  # no more than is needed now
                continue
            limit, charge = (await pool.state()).limit, charge_of(size)
            if charge > limit:
                raise LargerThanCache(
                    f"an object of unknown size turned out larger than pool {pool.name}: {charge} bytes are needed, and it"
                    f" holds {limit}",
                    limit=limit,
                    seen=charge,
                )
            left = deadline() - clock()
            if left <= 0:
                raise await self.exhausted(size)
            await self._turn.wait(min(left, POLL_S[1]))

    async def exhausted(self, size: int) -> CacheExhausted:
        """The error for who waited in vain for room for `size` bytes."""
        needed = charge_of(size)
        found: dict[str, Statistics] = {}
        for pool in self._pools.values():
            with suppress(PoolSick):
                found[pool.name] = await pool.transact(partial(statistics, pool=pool.name))
        said = "; ".join(f"pool {name} {_in_words(numbers)}" for name, numbers in found.items())
        return CacheExhausted(
            f"no room in the cache for {needed} bytes until the deadline: {said or 'no pool is well'}; try again later, or"
            " give the cache more room",
            needed=needed,
            pools={name: _in_numbers(numbers) for name, numbers in found.items()},
        )

    async def _rungs(self, size: int) -> list[Pool]:
        """The pools that may take the object, best first."""
        charge = charge_of(size)
        states = {}
        for name, pool in self._pools.items():
            with suppress(PoolSick):
                states[name] = await pool.state()
        names = by_room(states, charge)
        if names:
            return [self._pools[name] for name in names]
        sick = [name for name in self._pools if name not in states]
        if sick:
            raise CacheUnavailable(f"no pool that is well can take {charge} bytes; sick: {', '.join(sick)}", sick=sick)
        limit = max((state.limit for state in states.values()), default=0)
        raise LargerThanCache(
            f"{charge} bytes are needed, and the largest pool of the cache holds {limit}", limit=limit, seen=charge
        )

    async def _try(
        self, rungs: Sequence[Pool], key: str, size: int, places: Mapping[str, str] | None = None
    ) -> Room | None:
        """Each pool once. None: there is no room now."""
        sick = []
        for pool in rungs:
            try:
                answer = await pool.reserve(key, size, waiter=(places or {}).get(pool.name))
            except PoolSick:
                sick.append(pool.name)
                continue
            if isinstance(answer, Fill):
                return Room(pool, answer)
        if len(sick) == len(rungs):
            raise CacheUnavailable(f"no pool that is well can take {size} bytes; sick: {', '.join(sick)}", sick=sick)
        return None

    async def _wait(self, rungs: Sequence[Pool], key: str, size: int, deadline: Callable[[], float]) -> Room:
        room: Room | None = None
        try:
            async with _Places(rungs, size) as places:
                room = await self._queue(places, rungs, key, size, deadline)
        except BaseException:
            if room is not None:  # cancelled while the other places were given up
                await uninterrupted(room.pool.abandon(room.fill))
            raise
        return room

    async def _queue(
        self, places: _Places, rungs: Sequence[Pool], key: str, size: int, deadline: Callable[[], float]
    ) -> Room:
        clock = asyncio.get_running_loop().time
        pause = POLL_S[0]
        while True:
            await places.keep(deadline() - clock())
            room = await self._try(rungs, key, size, places.by_pool)
            if room is not None:
                places.taken(room.pool)
                return room
            left = deadline() - clock()
            if left <= 0:
                raise await self.exhausted(size)
            await self._turn.wait(min(left, pause * (0.5 + self._spread() / 2)))
            pause = min(2 * pause, POLL_S[1])


class _Places:
    """Our places in the queues of several pools; given up at the end of the context."""

    def __init__(self, pools: Sequence[Pool], size: int) -> None:
        self.by_pool: dict[str, str] = {}
        self._pools = pools
        self._size = size
        self._until = float("-inf")

    async def keep(self, seconds: float) -> None:
        """Places that are ours for that long. One whose time is shorter is given up for another, at the end."""
        clock = asyncio.get_running_loop().time
        if clock() + seconds <= self._until + CLOCKS_DIFFER_S:
            return
        await self._leave()
        self._until = clock() + seconds
        for pool in self._pools:
            with suppress(PoolSick):
                self.by_pool[pool.name] = await pool.join_queue(self._size, seconds + PLACE_S)

    def taken(self, pool: Pool) -> None:
        """This pool's place was used up."""
        self.by_pool.pop(pool.name, None)

    async def _leave(self) -> None:
        for pool in self._pools:
            place = self.by_pool.pop(pool.name, None)
            if place is not None:
                await pool.leave_queue(place)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await uninterrupted(self._leave())
