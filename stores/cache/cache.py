"""The cache of one process: brings objects into its pools, one flight for each object, and holds them while they are used."""

from __future__ import annotations

import asyncio
import hashlib
import random
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from functools import partial
from typing import Protocol, TypeAlias

import structlog

from stores.cache.errors import LeaseLost
from stores.cache.filling import Copy, Filling, Landed, Source
from stores.cache.flights import Flight, Flights, Stage
from stores.cache.health import PoolSick
from stores.cache.ladder import STEP, CacheUnavailable, Ladder, Room, Turn
from stores.cache.pool import Fill, Following, Held, Missing, Pool
from stores.contract import DataStore, ObjectInfo, Progress, Silent
from stores.errors import AccessDenied, AlreadyExists, NotFound, StorageError
from stores.transfer.engine import Fetched, TransferEngine
from stores.transfer.ranges import Ranges
from stores.uninterrupted import uninterrupted

_log = structlog.get_logger(__name__)

FOLLOW_S = (0.1, 0.3)
"""Between two looks at what another process fetches, at random, so that those who wait do not all ask at once."""

ATTEMPTS = 5
"""How often a flight begins again because a pool or a lease was lost under it."""


Ready: TypeAlias = Callable[[Flight[Copy, Landed]], bool]


class Outcome(StrEnum):
    """What became of a request to the cache."""

    HIT = "hit"
    MISS = "miss"  # it had to be fetched, and this request had it fetched
    JOIN = "join"  # somebody else was fetching it already
    BYPASS = "bypass"  # the cache could not, and the store itself was read


class CacheObserver(Protocol):
    """For metrics. Called in the event loop. Never blocks, never raises."""

    def requested(self, store: str, outcome: Outcome) -> None:
        """One request for an object of that store."""
        ...

    def waited(self, seconds: float) -> None:
        """A request stood in line for room for so long, granted or not."""
        ...

    def filled(self, pool: str, count: int, seconds: float) -> None:
        """An object of `count` bytes is in that pool, so long after its fetching began."""
        ...


class Unobserved:
    """For who does not look."""

    def requested(self, store: str, outcome: Outcome) -> None: ...

    def waited(self, seconds: float) -> None: ...

    def filled(self, pool: str, count: int, seconds: float) -> None: ...


def key_of(store_id: str, info: ObjectInfo) -> str:
    """The object's name in the cache: for each store, reference and version another one, in hex.

    An object without a version could change without anybody noticing: it gets a name that is used once, so that a copy of it
    serves those for whom it was made and nobody later.
    """
    version = info.version if info.version is not None else secrets.token_hex(16)
    parts = (store_id, info.ref, "version" if info.version is not None else "once", version)
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


class Cache:
    """One per process, over its pools, which somebody else starts and stops. `spread`: random numbers in [0, 1)."""

    def __init__(
        self,
        pools: Sequence[Pool],
        engine: TransferEngine,
        *,
        observer: CacheObserver | None = None,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self.pools = tuple(pools)
        self.engine = engine
        self.observer = observer or Unobserved()
        self._spread = spread
        self._turn = Turn()
        self._ladder = Ladder(pools, turn=self._turn, spread=spread)
        self._flights: Flights[Copy, Landed] = Flights()
        self._stragglers: set[asyncio.Task[Fetched]] = set()

    @asynccontextmanager
    async def whole(
        self, store: DataStore, info: ObjectInfo, *, wait_s: float, progress: Progress | None = None
    ) -> AsyncIterator[Flight[Copy, Landed]]:
        """The object as a whole file (`flight.result()`), which stays until the context ends.

        Waits at most `wait_s` seconds for room. Then, or as soon as it is known that there never will be any:
        `CacheExhausted`, `LargerThanCache`, `CacheUnavailable`. Raises what the store raises while the object is fetched.
        """
        async with self._joined(store, info, wait_s, _is_over, progress or Silent()) as flight:
            yield flight

    @asynccontextmanager
    async def arriving(
        self, store: DataStore, info: ObjectInfo, *, wait_s: float, progress: Progress | None = None
    ) -> AsyncIterator[Flight[Copy, Landed]]:
        """As `whole`, but as soon as something of it arrived."""
        async with self._joined(store, info, wait_s, _has_begun, progress or Silent()) as flight:
            yield flight

    def under_way(self) -> list[Flight[Copy, Landed]]:
        """What is being brought now, for those who want to see how far it is."""
        return self._flights.under_way()

    async def aclose(self) -> None:
        """Ends what is under way. Idempotent."""
        await self._flights.aclose()

    @asynccontextmanager
    async def _joined(
        self, store: DataStore, info: ObjectInfo, wait_s: float, ready: Ready, progress: Progress
    ) -> AsyncIterator[Flight[Copy, Landed]]:
        """A flight that is over or `ready`. When one fails whose leader has left, or had other rights than the caller, the
        next one is begun by somebody who stayed: each leads once at most."""
        deadline = asyncio.get_running_loop().time() + wait_s
        journey = partial(self._journey, Source(store, info))
        key = key_of(store.id, info)
        while True:
            async with self._flights.joined(key, journey, deadline=deadline) as (flight, leads):
                try:
                    await self._until(flight, ready, info, deadline, progress)
                except StorageError as error:
                    if leads or not flight.over or (flight.leader_stays and not isinstance(error, AccessDenied)):
                        raise
                    continue
                self.observer.requested(store.id, _outcome(flight, leads))
                yield flight
                return

    async def _until(
        self, flight: Flight[Copy, Landed], ready: Ready, info: ObjectInfo, deadline: float, progress: Progress
    ) -> None:
        clock = asyncio.get_running_loop().time
        progress.phase("fetching into the cache", info.size)
        told = 0
        while not ready(flight):
            left = deadline - clock() if flight.stage is Stage.WAITING else None
            if left is not None and left <= 0:
                raise await self._ladder.exhausted(_wanted(info))
            await flight.change(left)
            progress.advance(max(0, flight.arrived.total - told))
            told = max(told, flight.arrived.total)
        if flight.over:
            flight.result()

    # ------------------------------------------------------------------------------------- in the flight's own task

    @asynccontextmanager
    async def _journey(self, source: Source, flight: Flight[Copy, Landed]) -> AsyncIterator[Landed]:
        landed = await self._bring(source, flight)
        try:
            yield landed
        finally:
            await uninterrupted(self._let_go(landed, once=source.info.version is None))

    async def _bring(self, source: Source, flight: Flight[Copy, Landed]) -> Landed:
        """Looks, follows, or fetches; and begins again when a pool turned sick, a lease was lost, or others were faster."""
        reason = f"in use: {source.info.ref}"
        for attempt in range(ATTEMPTS):
            try:
                found = await self._find(source, flight, reason)
                if isinstance(found, Landed):
                    return found
                return await self._fill(source, found or await self._climb(source, flight), flight, reason)
            except (PoolSick, LeaseLost, AlreadyExists) as error:
                _log.warning("cache fill begins again", ref=source.info.ref, why=error.message, attempt=attempt + 1)
                await self._pause()
        raise CacheUnavailable(f"the cache lost its copy of {source.info.ref} {ATTEMPTS} times before it was whole")

    async def _find(self, source: Source, flight: Flight[Copy, Landed], reason: str) -> Landed | Room | None:
        """The object in a pool; or a fill to go on with; or None. Waits while another process fetches it."""
        while True:
            flight.enter(Stage.LOOKING)
            following = None
            for pool in self.pools:
                found = await self._find_in(pool, source, flight, reason)
                if isinstance(found, Following):
                    following = Copy(pool, found.path)
                    self._show(flight, following, Ranges(found.whole), source.info.size)
                    break
                if found is not None:
                    return found
            if following is None:
                return None
            await self._pause()

    async def _find_in(
        self, pool: Pool, source: Source, flight: Flight[Copy, Landed], reason: str
    ) -> Landed | Room | Following | None:
        try:
            found = await pool.find(flight.key, reason)
        except PoolSick:
            return None
        match found:
            case Held():
                return Landed(Copy(pool, found.path), found)
            case Fill() if source.ranges and found.whole:
                return Room(pool, found)
            case Fill():
                # Nothing of it can be used; who reads its file keeps what they have.
                await uninterrupted(self._give_back(pool, found))
                return None
            case Following():
                return found
            case Missing():
                return None

    async def _pause(self) -> None:
        low, high = FOLLOW_S
        await asyncio.sleep(low + (high - low) * self._spread())

    def _show(self, flight: Flight[Copy, Landed], copy: Copy, arrived: Ranges, size: int | None) -> None:
        """How far another process is."""
        flight.fetched = True
        flight.stage = Stage.FOLLOWING
        flight.begin(copy, arrived, size)

    async def _climb(self, source: Source, flight: Flight[Copy, Landed]) -> Room:
        began = asyncio.get_running_loop().time()
        try:
            return await self._ladder.climb(
                flight.key,
                _wanted(source.info),
                deadline=lambda: flight.deadline,
                waits=partial(flight.enter, Stage.WAITING),
            )
        finally:
            if flight.stage is Stage.WAITING:
                self.observer.waited(asyncio.get_running_loop().time() - began)

    async def _fill(self, source: Source, room: Room, flight: Flight[Copy, Landed], reason: str) -> Landed:
        began = asyncio.get_running_loop().time()
        flight.fetched = True
        try:
            flight.enter(Stage.FILLING)
            filling = Filling(
                source, room, flight, engine=self.engine, ladder=self._ladder, stragglers=self._stragglers
            )
            held = await filling.run(reason)
        except BaseException:
            await uninterrupted(self._give_back(room.pool, room.fill))
            raise
        self.observer.filled(room.pool.name, held.entry.size, asyncio.get_running_loop().time() - began)
        self._turn.freed()  # what was reserved and not needed
        return Landed(Copy(room.pool, held.path), held)

    async def _give_back(self, pool: Pool, claim: Fill | Held) -> None:
        if isinstance(claim, Held):
            await pool.unpin(claim)
        else:
            await pool.abandon(claim)
        self._turn.freed()

    async def _let_go(self, landed: Landed, *, once: bool) -> None:
        pool, held = landed.copy.pool, landed.held
        await self._give_back(pool, held)
        if once:
            with suppress(PoolSick, LeaseLost, NotFound):  # nobody finds it again: it goes when its room is needed
                await pool.evict(held.entry)
            self._turn.freed()


def _is_over(flight: Flight[Copy, Landed]) -> bool:
    return flight.over


def _has_begun(flight: Flight[Copy, Landed]) -> bool:
    return flight.over or flight.arrived.total > 0


def _wanted(info: ObjectInfo) -> int:
    """Bytes to reserve before anything is fetched."""
    return STEP if info.size is None else info.size


def _outcome(flight: Flight[Copy, Landed], leads: bool) -> Outcome:
    if not flight.fetched:
        return Outcome.HIT
    return Outcome.MISS if leads else Outcome.JOIN
