"""Objects that stay in the cache for somebody outside of this process, a running guest say, until they are let go.

A claim is a pin without an owner: it outlives the process, the daemon and the host, and nothing evicts what it holds. Its id is
chosen by who claims, so that asking again finds what was claimed before.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import select

from stores.cache import ledger
from stores.cache.cache import Cache
from stores.cache.database import Transaction
from stores.cache.health import PoolSick
from stores.cache.ledger import Entry
from stores.cache.pool import Pool
from stores.cache.schema import EntryState, pins
from stores.contract import DataStore, ObjectInfo, Progress
from stores.errors import NotFound


@dataclass(frozen=True, slots=True)
class Claim:
    """`id` names what is claimed: the same each time, but another on each host that shares the pool. `reason` says which
    command asked, to be shown and to be compared."""

    id: str
    reason: str

    @classmethod
    def of(cls, what: str, token: str = "", *, host: str = "") -> Claim:
        """`what`, such as `attached:vm/iso`, for the command `token`."""
        return cls(f"{what} on {host or socket.gethostname()}", f"{what} (command {token})")


async def keep(
    cache: Cache, store: DataStore, info: ObjectInfo, claim: Claim, *, wait_s: float, progress: Progress | None = None
) -> Path:
    """The object as a file that stays until `let_go`, over restarts. Idempotent by the claim's id: what it holds already is
    given again, whatever has become of the object in its store.

    Raises what `Cache.whole` raises.
    """
    held = await _held(cache, claim)
    if held is not None:
        return held
    async with cache.whole(store, info, wait_s=wait_s, progress=progress) as flight:
        landed = flight.result()
        pool, entry = landed.copy.pool, landed.held.entry
        try:
            await pool.transact(
                lambda tx: ledger.pin(tx, pool.name, entry.id, pin=claim.id, owner=None, reason=claim.reason)
            )
        except BaseException:
            await pool.unpin_id(claim.id)
            raise
        return landed.copy.path


async def kept(cache: Cache, claim: Claim) -> Path | None:
    """What the claim holds, fit to be used or not. Raises `PoolSick` while a pool cannot be asked: it may be there."""
    for pool in cache.pools:
        found = await pool.transact(partial(_claimed, pool=pool.name, claim=claim.id))
        if found is not None:
            return pool.access.entries.path_of(found[0])
    return None


async def let_go(cache: Cache, claim: Claim, *, only_if_same: bool = False) -> None:
    """The claim holds nothing any more. `only_if_same`: unless somebody else has made it, for another reason. Idempotent.
    Raises `PoolSick` while a pool cannot be asked: it may be there."""
    sick: PoolSick | None = None
    for pool in cache.pools:
        try:
            await pool.transact(partial(_let_go, pool=pool.name, claim=claim, only_if_same=only_if_same))
        except PoolSick as error:
            sick = error
    if sick is not None:
        raise sick


def _let_go(tx: Transaction, pool: str, claim: Claim, only_if_same: bool) -> None:
    found = _claimed(tx, pool, claim.id)
    if found is not None and (not only_if_same or found[1] == claim.reason):
        ledger.unpin(tx, pool, claim.id)


async def _held(cache: Cache, claim: Claim) -> Path | None:
    """What the claim holds, if it is fit to be used; otherwise the claim is given up for a better copy."""
    for pool in cache.pools:
        try:
            found = await pool.transact(partial(_claimed, pool=pool.name, claim=claim.id))
            if found is None:
                continue
            fault = await _fault(pool, found[0])
            if fault is None:
                return pool.access.entries.path_of(found[0])
            await pool.quarantine(found[0], fault)
        except PoolSick:
            continue
        except NotFound:
            pass
        await pool.unpin_id(claim.id)
    return None


async def _fault(pool: Pool, entry: Entry) -> str | None:
    if entry.state is EntryState.QUARANTINED:
        return "it did not prove itself before"
    return await pool.access.touch(lambda: pool.access.entries.prove(entry))


def _claimed(tx: Transaction, pool: str, claim: str) -> tuple[Entry, str] | None:
    """What the claim holds, and the reason it was made for."""
    row = tx.connection.execute(
        select(pins.c.entry, pins.c.reason).where(pins.c.pool == pool, pins.c.id == claim)
    ).one_or_none()
    entry = None if row is None else ledger.entry_by_id(tx, pool, row.entry)
    return None if row is None or entry is None else (entry, row.reason)
