"""What a process has of a pool at this moment, and how it is given back: on disk before the ledger hears of it, so that what is
on disk always has its room.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from stores.cache import ledger
from stores.cache.access import Access
from stores.cache.bound import available
from stores.cache.claims import Counts, Fill, Gone, Held
from stores.cache.database import Database, Transaction
from stores.cache.health import PoolSick
from stores.cache.lease import Lease
from stores.cache.ledger import Entry
from stores.cache.policy import PoolState
from stores.cache.settings import PoolSettings
from stores.cache.sqlite import boot_clock
from stores.errors import NotFound
from stores.uninterrupted import uninterrupted

T = TypeVar("T")


def new_id() -> str:
    """For owners, reservations, pins and places in the queue."""
    return uuid.uuid4().hex


class PoolBase:
    """The parts that all that is done with a pool needs."""

    def __init__(
        self,
        settings: PoolSettings,
        database: Database,
        *,
        clock: Callable[[], float] = time.monotonic,
        lease_clock: Callable[[], float] = boot_clock,
    ) -> None:
        """`database` belongs to the pool from now on. `clock` times probes, `lease_clock` leases."""
        self.name = settings.name
        self.settings = settings
        self.counts = Counts()
        self.access = Access(settings, database, clock=clock, sickened=self._sickened)
        self.lease = Lease(self.access, new_id=new_id, clock=lease_clock)
        self._fills: dict[str, Fill] = {}
        self._held: dict[str, Held] = {}

    @property
    def healthy(self) -> bool:
        return self.access.health.healthy

    @property
    def ailment(self) -> str | None:
        """Why the pool is sick, if it is."""
        return self.access.health.ailment

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        """For reports, and what else needs nothing but the ledger."""
        return await self.access.transact(work)

    async def state(self) -> PoolState:
        """The counters at this moment, `limit` being what the free space allows as well."""
        free = await self.access.touch(self.access.directory.free)

        def work(tx: Transaction) -> PoolState:
            return ledger.pool_state(tx, self.name, free_limit=self._available(tx, free))

        return await self.access.transact(work)

    async def remove(self, entries: Sequence[Entry], why: Gone, *, remember: bool = True) -> None:
        """Files, then rows, of entries that this process evicts. Done even when cancelled."""
        if entries:
            await self._give_back(lambda: self._remove(entries, why, remember))

    # ------------------------------------------------------------------------------------------------- for upkeep

    async def begin_again(self) -> None:
        """After a lease was lost: fills are lost, and what is held is held under a new owner, as far as it is there."""
        self.counts.lease_losses += 1
        self._lose_fills()
        await self.lease.begin()
        for held in list(self._held.values()):
            with suppress(NotFound):
                await self._hold_again(held)

    def changed(self) -> None:
        """Something may have to be done soon: the pool turned sick, or has got fuller."""

    def holds(self, claim: str) -> bool:
        """Whether that pin or reservation is in use by somebody in this process."""
        return claim in self._held or claim in self._fills

    # ------------------------------------------------------------------------------------------------------ helpers

    def _available(self, tx: Transaction, free: int) -> int:
        return available(tx, self.settings, free=free, strays=self.counts.stray_bytes)

    async def _hold_again(self, held: Held) -> None:
        pin = new_id()
        await self.access.transact(
            lambda tx: ledger.pin(tx, self.name, held.entry.id, pin=pin, owner=self.lease.owner, reason=held.reason)
        )
        self._held[pin] = self._held.pop(held.pin)
        held.pin = pin

    async def _give_back(self, work: Callable[[], Awaitable[None]]) -> None:
        """To its end, even when cancelled. What a sick pool does not take is found when it is well (`recovery.forget`)."""

        async def attempt() -> None:
            with suppress(PoolSick):
                await work()

        await uninterrupted(attempt())

    async def _release(self, key: str, reservation: str, owner: str) -> None:
        """The file first: what is on disk is reserved."""

        def ours(tx: Transaction) -> bool:
            filling = ledger.filling(tx, self.name, key)
            return filling is not None and (filling.id, filling.owner) == (reservation, owner)

        if await self.access.transact(ours):
            await self.access.touch(lambda: self.access.entries.discard(key, reservation))
            await self.access.transact(lambda tx: ledger.release(tx, reservation, owner=owner))

    async def _unpin(self, pin: str) -> None:
        await self.access.transact(lambda tx: ledger.unpin(tx, self.name, pin))

    async def _remove(self, entries: Sequence[Entry], why: Gone, remember: bool) -> None:
        await self.access.touch(lambda: self.access.entries.remove(entries))
        ids, owner = [entry.id for entry in entries], self.lease.owner
        await self.access.transact(lambda tx: ledger.evicted(tx, self.name, ids, owner=owner, remember=remember))
        self.counts.evictions[why] += len(ids)

    def _lose_fills(self) -> None:
        for fill in self._fills.values():
            fill.lost = True

    def _sickened(self) -> None:
        self.counts.ailments += 1
        self._lose_fills()
        self.changed()
