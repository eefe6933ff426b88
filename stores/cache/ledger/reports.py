"""What an operator, a metric or a refusal wants to know. Nothing here changes anything."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import func, select

from stores.cache.database import Transaction
from stores.cache.ledger.eviction import hold_now
from stores.cache.ledger.rows import Entry, entry, to_entry
from stores.cache.ledger.sums import pool_row
from stores.cache.policy import Hold
from stores.cache.schema import EntryState, entries, owners, pins, reservations, waiters


class Holding(StrEnum):
    """By what bytes are held."""

    FILL = "fill"
    PIN = "pin"


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody who keeps bytes from others. `owner` is None for a pin over restarts; `host` and `pid` are None when the owner
    is gone."""

    by: Holding
    charge: int
    what: str | None  # key of the object
    reason: str
    owner: str | None
    host: str | None
    pid: int | None
    since: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class Shown:
    """An entry, why it may not go now, and who pins it (the oldest first)."""

    entry: Entry
    hold: Hold | None
    pins: tuple[PinShown, ...] = ()


@dataclass(frozen=True, slots=True)
class PinShown:
    id: str
    owner: str | None
    reason: str
    since: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class Statistics:
    """One pool in numbers of bytes, where nothing else is said."""

    limit: int
    used: int
    reserved: int
    held: int  # of `used`, what may not go now
    pinned: int
    dirty: int
    quarantined: int
    used_once: int
    entries: int  # count
    fills: int  # count
    waiting: int  # count, of requests
    bias: float  # the policy's, 0 is plain LRU
    oldest: tuple[Holder, ...]


def list_entries(
    tx: Transaction,
    pool: str,
    *,
    after: str = "",
    limit: int = 100,
    state: EntryState | None = None,
    min_age_s: float = 0.0,
) -> tuple[Shown, ...]:
    """A page of entries, in the order of their keys; the next page begins `after` the last key. Pins are not listed."""
    query = select(entries).where(entries.c.pool == pool, entries.c.key > after).order_by(entries.c.key).limit(limit)
    if state is not None:
        query = query.where(entries.c.state == state)
    found = map(to_entry, tx.connection.execute(query))
    return tuple(Shown(each, hold_now(tx, each, min_age_s=min_age_s)) for each in found)


def show_entry(tx: Transaction, pool: str, key: str, *, min_age_s: float = 0.0) -> Shown | None:
    """One entry with everything that holds it."""
    found = entry(tx, pool, key)
    if found is None:
        return None
    rows = tx.connection.execute(select(pins).where(pins.c.entry == found.id).order_by(pins.c.since))
    shown = tuple(PinShown(row.id, row.owner, row.reason, row.since) for row in rows)
    return Shown(found, hold_now(tx, found, min_age_s=min_age_s), shown)


def statistics(tx: Transaction, pool: str, *, oldest: int = 5) -> Statistics:
    """Costs as much as is pinned, dirty, quarantined, reserved or waiting."""
    row = pool_row(tx, pool)
    in_state = {
        state: _sum(tx, entries.c.pool == pool, entries.c.state == state)
        for state in (EntryState.DIRTY, EntryState.UPLOADING, EntryState.QUARANTINED)
    }
    living = select(owners.c.id).where(owners.c.pool == pool, owners.c.expires > tx.now)
    waiting = select(func.count()).where(
        waiters.c.pool == pool, waiters.c.deadline > tx.now, waiters.c.owner.in_(living)
    )
    fills = select(func.count()).select_from(reservations).where(reservations.c.pool == pool)
    return Statistics(
        limit=row.limit_bytes,
        used=row.used,
        reserved=row.reserved,
        held=row.held,
        pinned=sum(
            _sum(tx, entries.c.pool == pool, entries.c.state == state, entries.c.pins > 0) for state in EntryState
        ),
        dirty=in_state[EntryState.DIRTY] + in_state[EntryState.UPLOADING],
        quarantined=in_state[EntryState.QUARANTINED],
        used_once=row.small,
        entries=row.entries,
        fills=tx.connection.execute(fills).scalar_one(),
        waiting=tx.connection.execute(waiting).scalar_one(),
        bias=row.bias,
        oldest=holders(tx, pool, oldest),
    )


def holders(tx: Transaction, pool: str, limit: int) -> tuple[Holder, ...]:
    """Who has held bytes for the longest, the oldest first."""
    filling = (
        select(reservations, owners.c.host, owners.c.pid)
        .outerjoin(owners, owners.c.id == reservations.c.owner)
        .where(reservations.c.pool == pool)
        .order_by(reservations.c.since)
        .limit(limit)
    )
    pinning = (
        select(pins, entries.c.key, entries.c.charge, owners.c.host, owners.c.pid)
        .join(entries, entries.c.id == pins.c.entry)
        .outerjoin(owners, owners.c.id == pins.c.owner)
        .where(pins.c.pool == pool)
        .order_by(pins.c.since)
        .limit(limit)
    )
    found = [
        Holder(
            Holding.FILL,
            row.charge,
            row.key,
            f"{row.arrived} bytes have arrived",
            row.owner,
            row.host,
            row.pid,
            row.since,
        )
        for row in tx.connection.execute(filling)
    ] + [
        Holder(Holding.PIN, row.charge, row.key, row.reason, row.owner, row.host, row.pid, row.since)
        for row in tx.connection.execute(pinning)
    ]
    return tuple(sorted(found, key=lambda holder: holder.since)[:limit])


def _sum(tx: Transaction, *where: Any) -> int:
    return int(tx.connection.execute(select(func.coalesce(func.sum(entries.c.charge), 0)).where(*where)).scalar_one())
