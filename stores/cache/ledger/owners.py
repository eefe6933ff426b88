"""Who lives, and what the dead have left."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy import and_, bindparam, delete, exists, insert, select, update

from stores.cache.database import Transaction
from stores.cache.errors import LeaseLost
from stores.cache.ledger.content import unpin
from stores.cache.ledger.rows import OF_STAGED, Entry, Reservation, require_lease, to_entry, to_reservation
from stores.cache.schema import EntryState, entries, owners, pins, reservations, waiters

_RENEW = (
    update(owners)
    .where(owners.c.id == bindparam("owner"), owners.c.pool == bindparam("of"), owners.c.expires > bindparam("now"))
    .values(expires=bindparam("until"))
)


@dataclass(frozen=True, slots=True)
class Abandoned:
    """What owners who are gone have left, and the caller's now: files to remove or adopt, then to be struck out with `release`
    or `publish`, and `evicted`."""

    fillings: tuple[Reservation, ...]
    leaving: tuple[Entry, ...]


def register(tx: Transaction, pool: str, owner: str, *, host: str, boot: str, pid: int, lease_s: float) -> None:
    """A process says that it lives. Owners of an earlier boot of this host are dead at once, whatever their lease says."""
    gone = and_(owners.c.pool == pool, owners.c.host == host, owners.c.boot != boot)
    tx.connection.execute(update(owners).where(gone).values(expires=0.0))
    row = {"id": owner, "pool": pool, "host": host, "boot": boot, "pid": pid, "expires": tx.now + lease_s}
    tx.connection.execute(insert(owners).values(row))


def renew(tx: Transaction, pool: str, owner: str, lease_s: float) -> None:
    """The lease runs for `lease_s` seconds from now on: not shorter than from the moment at which the caller asked.

    `LeaseLost`: it had run out. The owner must let go of everything, and register under another id.
    """
    renewal = {"owner": owner, "of": pool, "now": tx.now, "until": tx.now + lease_s}
    if tx.connection.execute(_RENEW, renewal).rowcount == 0:
        raise LeaseLost(f"the lease of {owner} on the cache pool {pool} has run out", pool=pool, owner=owner)


def retire(tx: Transaction, pool: str, owner: str) -> None:
    """The owner has ended, or is known to be dead: its lease has run out now. Idempotent."""
    alive = and_(owners.c.id == owner, owners.c.pool == pool, owners.c.expires > tx.now)
    tx.connection.execute(update(owners).where(alive).values(expires=tx.now))


def reap(tx: Transaction, pool: str, *, owner: str, grace_s: float = 0.0) -> Abandoned:
    """Let go of what dead owners hold in this pool, in time proportional to that: their pins and places in the queue at once;
    their fills and half-done evictions become the caller's and are returned, since files come first.

    `grace_s`: fills of a key are left to those who may want to take them over (`look`), until their owner's lease has been over
    for so long; but for what was being staged, which nobody can go on with. Raises `LeaseLost`.
    """
    require_lease(tx, pool, owner)
    dead = [
        row.id
        for row in tx.connection.execute(
            select(owners.c.id).where(owners.c.pool == pool, owners.c.expires <= tx.now)
        ).all()
    ]
    for gone in dead:
        tx.connection.execute(delete(waiters).where(waiters.c.pool == pool, waiters.c.owner == gone))
        held = select(pins.c.id).where(pins.c.pool == pool, pins.c.owner == gone)
        for row in tx.connection.execute(held).all():
            unpin(tx, pool, row.id)
    tx.connection.execute(delete(waiters).where(waiters.c.pool == pool, waiters.c.deadline <= tx.now))
    fillings = _take_fillings(tx, pool, owner, tx.now - grace_s)
    leaving = _take_evictions(tx, pool, owner)
    left = exists().where(reservations.c.pool == pool, reservations.c.owner == owners.c.id)
    tx.connection.execute(delete(owners).where(owners.c.pool == pool, owners.c.expires <= tx.now, ~left))
    return Abandoned(fillings, leaving)


def _take_fillings(tx: Transaction, pool: str, owner: str, before: float) -> tuple[Reservation, ...]:
    may_go_on = reservations.c.key.is_not(None) & ~reservations.c.key.endswith(OF_STAGED)
    kept = exists().where(
        owners.c.id == reservations.c.owner,
        (owners.c.expires > tx.now) | ((owners.c.expires > before) & may_go_on),
    )
    orphaned = tx.connection.execute(select(reservations).where(reservations.c.pool == pool, ~kept)).all()
    for row in orphaned:
        tx.connection.execute(update(reservations).where(reservations.c.id == row.id).values(owner=owner))
    return tuple(replace(to_reservation(row), owner=owner) for row in orphaned)


def _take_evictions(tx: Transaction, pool: str, owner: str) -> tuple[Entry, ...]:
    living = exists().where(owners.c.id == entries.c.evictor, owners.c.expires > tx.now)
    going = select(entries).where(entries.c.pool == pool, entries.c.state == EntryState.EVICTING.value, ~living)
    taken = tx.connection.execute(going).all()
    for row in taken:
        tx.connection.execute(update(entries).where(entries.c.id == row.id).values(evictor=owner))
    return tuple(replace(to_entry(row), evictor=owner) for row in taken)
