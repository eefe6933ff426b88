"""What keeps a pool in order while it is used: leases, leftovers, evictions in advance, and probes while it is sick."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from sqlalchemy import select

from stores.cache import ledger
from stores.cache.bound import available
from stores.cache.claims import Gone
from stores.cache.database import Transaction
from stores.cache.errors import LeaseLost
from stores.cache.health import PoolSick
from stores.cache.ledger import Entry, Relief
from stores.cache.pool_claims import PoolClaims
from stores.cache.reconcile import reconcile
from stores.cache.recovery import bury_dead, open_up, recover
from stores.cache.schema import EntryState, entries
from stores.uninterrupted import uninterrupted

TICK_S = 5.0
"""Longest time between two looks at what there is to do. Each is also the pool's heartbeat: it finds a mount that hangs."""

RECONCILE_S = 24 * 3600.0


class Upkeep:
    """The tasks of one pool. `run` until cancelled."""

    def __init__(self, pool: PoolClaims) -> None:
        self._pool = pool
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """There may be something to do."""
        self._woken.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._renewals())
            tasks.create_task(self._chores())
            tasks.create_task(self._reconciliations())

    async def _renewals(self) -> None:
        """In a task of its own: a lease must not run out because something else takes long."""
        lease = self._pool.lease
        while True:
            if self._pool.healthy:
                with suppress(PoolSick):
                    try:
                        await lease.renew()
                    except LeaseLost:
                        await self._pool.begin_again()
            await asyncio.sleep(lease.renew_in_s if self._pool.healthy and lease.left_s else TICK_S / 10)

    async def _chores(self) -> None:
        while True:
            self._woken.clear()
            pause_s = min(TICK_S, self._pool.lease.length_s / 4)
            if self._pool.healthy:
                with suppress(PoolSick, LeaseLost):
                    await self._tidy()
            else:
                pause_s = self._pool.access.health.probe_in_s
                if pause_s <= 0 and await self._pool.access.mend(lambda: open_up(self._pool)):
                    continue
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._woken.wait()

    async def _tidy(self) -> None:
        await bury_dead(self._pool)
        await recover(self._pool)
        while await uninterrupted(self._relieve()):
            pass

    async def _relieve(self) -> bool:
        """Whether anything went. Done even when cancelled: what is chosen goes."""
        pool = self._pool
        free = await pool.access.touch(pool.access.directory.free)

        def work(tx: Transaction) -> tuple[Relief, tuple[Entry, ...]]:
            bound = available(tx, pool.settings, free=free, strays=pool.counts.stray_bytes)
            owner = pool.lease.owner
            relief = ledger.relieve(tx, pool.name, pool.settings.limits, owner=owner, free_limit=bound)
            return relief, _old_evidence(tx, pool)

        relief, evidence = await pool.transact(work)
        await pool.remove(relief.overdue, Gone.AGE)
        await pool.remove(relief.pressed, Gone.PRESSURE)
        await pool.remove(evidence, Gone.AGE, remember=False)
        return bool(relief.entries or evidence)

    async def _reconciliations(self) -> None:
        while True:
            done = False
            if self._pool.healthy:
                with suppress(PoolSick, LeaseLost):
                    await reconcile(self._pool)
                    done = True
            await asyncio.sleep(RECONCILE_S if done else TICK_S)


def _old_evidence(tx: Transaction, pool: PoolClaims) -> tuple[Entry, ...]:
    """What has been in quarantine for long enough."""
    old = select(entries.c.id).where(
        entries.c.pool == pool.name,
        entries.c.state == EntryState.QUARANTINED,
        entries.c.pins == 0,
        entries.c.used_at < tx.wall - pool.settings.quarantine_s,
    )
    chosen = [
        ledger.evict(tx, pool.name, row, owner=pool.lease.owner) for row in tx.connection.execute(old).scalars().all()
    ]
    return tuple(entry for entry in chosen if isinstance(entry, Entry))
