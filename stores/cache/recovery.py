"""What a pool does before it is used: open it, see who lives, and finish or remove what the dead have left.

It takes time in proportion to what was in flight, not to what the pool holds: everything is found by the ledger's owners.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from sqlalchemy import select

from stores.cache import ledger
from stores.cache.claims import Gone
from stores.cache.database import Transaction
from stores.cache.errors import LeaseLost
from stores.cache.lease import boot_id
from stores.cache.ledger import Entry, Reservation
from stores.cache.ledger.rows import to_entry, to_reservation
from stores.cache.ledger.sums import pool_row
from stores.cache.pool_claims import PoolClaims
from stores.cache.schema import EntryState, entries, owners, pins, reservations, waiters
from stores.errors import NotFound


@dataclass(frozen=True, slots=True)
class Claimed:
    """What the ledger says an owner has."""

    fillings: tuple[Reservation, ...]
    pins: tuple[str, ...]
    waiters: tuple[str, ...]
    leaving: tuple[Entry, ...]


async def open_up(pool: PoolClaims) -> None:
    """Make a pool that was just started, or that was sick, fit for use. Raises what keeps it from that."""
    access = pool.access
    known = await access.touch(access.directory.open)
    entries_there = await access.transact(lambda tx: _open_ledger(tx, pool))
    if entries_there and not known:
        raise NotFound(
            f"{access.directory.path} is not the directory of the cache pool {pool.name}, whose ledger has {entries_there}"
            " entries; mount its file system there",
            directory=str(access.directory.path),
        )
    await access.touch(access.directory.probe)
    if not known:
        await access.touch(access.directory.lay_out)
    try:
        await (pool.lease.renew() if pool.lease.owner else pool.lease.begin())
    except LeaseLost:
        await pool.begin_again()
    await forget(pool)
    await bury_dead(pool)
    await recover(pool)


def _open_ledger(tx: Transaction, pool: PoolClaims) -> int:
    ledger.open_pool(tx, pool.name, pool.settings.limits.limit)
    return int(pool_row(tx, pool.name).entries)


async def recover(pool: PoolClaims) -> None:
    """Finish or undo what owners have left who are gone. Unfinished fills are left for one lease to those who may want to go
    on with them."""
    left = await pool.transact(
        lambda tx: ledger.reap(tx, pool.name, owner=pool.lease.owner, grace_s=pool.lease.length_s)
    )
    for filling in left.fillings:
        adopted = await pool.adopt(filling, "recovery")
        if adopted is not None:
            await pool.unpin(adopted)
        else:
            await discard(pool, filling)
    await pool.remove(left.leaving, Gone.LEFT)


async def discard(pool: PoolClaims, filling: Reservation) -> None:
    """A fill of this process that nobody goes on with."""
    await pool.access.touch(lambda: pool.access.entries.discard(filling.key, filling.id))
    await pool.transact(lambda tx: ledger.release(tx, filling.id, owner=filling.owner))


async def bury_dead(pool: PoolClaims) -> None:
    """Processes of this host whose lock is free are dead, however long their leases still run."""
    for owner in await pool.transact(lambda tx: _neighbours(tx, pool)):
        if not await pool.access.touch(partial(pool.access.directory.lives, owner)):
            await pool.transact(partial(ledger.retire, pool=pool.name, owner=owner))
            await pool.access.touch(partial(pool.access.directory.bury, owner))


def _neighbours(tx: Transaction, pool: PoolClaims) -> list[str]:
    here = owners.c.pool == pool.name, owners.c.host == pool.lease.host, owners.c.boot == boot_id()
    others = select(owners.c.id).where(*here, owners.c.id != pool.lease.owner, owners.c.expires > tx.now)
    return list(tx.connection.execute(others).scalars())


async def forget(pool: PoolClaims) -> None:
    """Give back what the ledger says this process has and nobody in it knows of: outcomes that got lost while the pool was
    sick. Nothing else of this process may be under way."""
    claimed = await pool.transact(lambda tx: _claimed(tx, pool.name, pool.lease.owner))
    for pin in claimed.pins:
        if not pool.holds(pin):
            await pool.transact(partial(ledger.unpin, pool=pool.name, pin=pin))
    for waiter in claimed.waiters:
        await pool.transact(partial(ledger.leave, waiter=waiter))
    for filling in claimed.fillings:
        if not pool.holds(filling.id):
            await discard(pool, filling)
    await pool.remove(claimed.leaving, Gone.ROOM)


def _claimed(tx: Transaction, pool: str, owner: str) -> Claimed:
    run = tx.connection.execute
    leaving = select(entries).where(
        entries.c.pool == pool, entries.c.state == EntryState.EVICTING, entries.c.evictor == owner
    )
    return Claimed(
        tuple(
            map(
                to_reservation,
                run(select(reservations).where(reservations.c.pool == pool, reservations.c.owner == owner)),
            )
        ),
        tuple(run(select(pins.c.id).where(pins.c.pool == pool, pins.c.owner == owner)).scalars()),
        tuple(run(select(waiters.c.id).where(waiters.c.pool == pool, waiters.c.owner == owner)).scalars()),
        tuple(map(to_entry, run(leaving))),
    )
