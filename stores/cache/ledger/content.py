"""What the pool has: looking it up, publishing it, keeping it, doubting it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from sqlalchemy import bindparam, delete, insert, select, text, update

from stores.cache import policy
from stores.cache.database import Transaction
from stores.cache.errors import LeaseLost
from stores.cache.ledger.eviction import recall
from stores.cache.ledger.room import drop, owned
from stores.cache.ledger.rows import (
    Entry,
    Facts,
    Reservation,
    charge_of,
    entry,
    existing,
    file_of,
    is_held,
    lives,
    require_lease,
    to_entry,
    to_reservation,
)
from stores.cache.ledger.sums import account, comparison, forget, learn, pool_row, take_turn
from stores.cache.policy import Queue
from stores.cache.schema import EntryState, entries, owners, pins, reservations
from stores.errors import NotFound, StoreError

_FILLING = select(reservations).where(reservations.c.pool == bindparam("pool"), reservations.c.key == bindparam("key"))
_TAKE_OVER = update(reservations).where(reservations.c.id == bindparam("of")).values(owner=bindparam("by"))
_TAKE_EVICTION = update(entries).where(entries.c.id == bindparam("of")).values(evictor=bindparam("by"))
_CHANGE = (
    update(entries)
    .where(entries.c.id == bindparam("of"))
    .values({name: bindparam(f"to_{name}") for name in ("key", "state", "queue", "turn", "hits", "pins", "used_at")})
    .returning(entries)
)
_POOL_OF = select(owners.c.pool).where(owners.c.id == bindparam("owner"))
_INSERT = insert(entries).returning(entries)
_PIN = text(
    "INSERT INTO pins (pool, id, entry, owner, reason, since) VALUES (:pool, :id, :entry, :owner, :reason, :since)"
    " ON CONFLICT DO NOTHING"
)
_UNPIN = delete(pins).where(pins.c.pool == bindparam("pool"), pins.c.id == bindparam("id")).returning(pins.c.entry)
_PROVED = (
    update(entries)
    .where(entries.c.id == bindparam("of"))
    .values(proved_at=bindparam("to_proved_at"), digest=bindparam("to_digest"))
)
_CONFIRM = update(entries).where(entries.c.id == bindparam("of")).values(version=bindparam("to_version"))
_UNPROVED = (
    select(entries)
    .where(
        entries.c.pool == bindparam("pool"),
        entries.c.state == EntryState.READY.value,
        entries.c.proved_at < bindparam("before"),
    )
    .order_by(entries.c.proved_at, entries.c.id)
    .limit(bindparam("some"))
)


class WrongState(StoreError):
    """An entry is not in the state that this step begins from; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Hit:
    """It is here, and pinned for the caller."""

    entry: Entry
    pin: str


@dataclass(frozen=True, slots=True)
class Follow:
    """Somebody who lives is filling it."""

    filling: Reservation


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Whoever filled it is gone; the reservation, its temporary file and its whole parts are the caller's now."""

    filling: Reservation


@dataclass(frozen=True, slots=True)
class Leaving:
    """It is on its way out. `mine`: whoever began that is gone, and finishing it (file, then `evicted`) is up to the caller.
    Either way, look again then."""

    entry: Entry
    mine: bool


@dataclass(frozen=True, slots=True)
class Miss:
    """Nobody has it, and nobody fetches it."""


Found: TypeAlias = Hit | Follow | TakeOver | Leaving | Miss


def look(tx: Transaction, pool: str, key: str, *, owner: str, pin: str, reason: str) -> Found:
    """What there is under `key`, with a claim on it in the same transaction: a hit counts as a use, and is pinned under the id
    `pin` for as long as `owner` lives. Raises `LeaseLost`."""
    require_lease(tx, pool, owner)
    found = entry(tx, pool, key)
    if found is not None:
        if found.state is not EntryState.EVICTING:
            return Hit(_use(tx, found, owner=owner, pin=pin, reason=reason), pin)
        abandoned = not lives(tx, pool, found.evictor)
        if abandoned:
            tx.connection.execute(_TAKE_EVICTION, {"of": found.id, "by": owner})
        return Leaving(found, abandoned)
    row = tx.connection.execute(_FILLING, {"pool": pool, "key": key}).one_or_none()
    if row is None:
        return Miss()
    if row.owner == owner or lives(tx, pool, row.owner):
        return Follow(to_reservation(row))
    tx.connection.execute(_TAKE_OVER, {"of": row.id, "by": owner})
    return TakeOver(replace(to_reservation(row), owner=owner))


def publish(
    tx: Transaction, reservation: str, facts: Facts, *, owner: str, pin: str, reason: str, dirty: bool = False
) -> Entry:
    """The reservation becomes an entry, pinned for its filler under `pin`: the last step of a fill, after the file has its name
    (`file_of`). Idempotent by the reservation.

    Raises `LeaseLost` when the reservation is no longer the caller's: somebody took over, or it was reclaimed.
    """
    held = owned(tx, reservation, owner)
    if held is None:
        return _published_before(tx, reservation, facts, owner=owner, pin=pin, reason=reason)
    require_lease(tx, held.pool, owner)
    charge = charge_of(facts.size)
    if charge > held.charge or held.key != facts.key:
        raise WrongState(
            f"the reservation {reservation} is for {held.charge} bytes of {held.key}, not for {charge} of {facts.key}",
            reserved=held.charge,
            needed=charge,
        )
    drop(tx, held)
    state = EntryState.DIRTY if dirty else EntryState.READY
    ghost = recall(tx, held.pool, facts.key)
    before = pool_row(tx, held.pool)
    queue, seen = policy.missed(comparison(before), ghost, charge=charge, limit=before.limit_bytes)
    turn, row = take_turn(
        tx,
        held.pool,
        used=charge,
        small=charge if queue is Queue.SMALL else 0,
        held=charge,
        entries=1,
        ghosts=0 if ghost is None else -ghost.charge,
    )
    values = {
        "pool": held.pool,
        "key": facts.key,
        "file": file_of(facts.key, reservation),
        "store": facts.store,
        "ref": facts.ref,
        "version": facts.version,
        "size": facts.size,
        "charge": charge,
        "state": state,
        "evictor": None,
        "queue": queue,
        "turn": turn,
        "hits": 0,
        "pins": 1,
        "digest": facts.digest,
        "inode": facts.inode,
        "mtime_ns": facts.mtime_ns,
        "published": tx.wall,
        "used_at": tx.wall,
        "proved_at": tx.wall,
    }
    added = to_entry(tx.connection.execute(_INSERT, values).one())
    learn(tx, row, seen)
    _add_pin(tx, added, pin=pin, owner=owner, reason=reason)
    return added


def _published_before(tx: Transaction, reservation: str, facts: Facts, *, owner: str, pin: str, reason: str) -> Entry:
    """The outcome of a publication that was done without its caller hearing of it."""
    pool = tx.connection.execute(_POOL_OF, {"owner": owner}).scalar_one_or_none()
    found = None if pool is None else entry(tx, pool, facts.key)
    if found is not None and found.file == file_of(facts.key, reservation) and found.state is not EntryState.EVICTING:
        require_lease(tx, found.pool, owner)
        return _keep(tx, found, pin=pin, owner=owner, reason=reason)
    raise LeaseLost(f"the reservation for {facts.ref} was given back", ref=facts.ref, reservation=reservation)


def pin(tx: Transaction, pool: str, entry_id: int, *, pin: str, owner: str | None, reason: str) -> Entry:
    """Keep an entry from going until `unpin`, or until `owner` is gone; None: over restarts. Idempotent by the id `pin`.

    Raises `NotFound` when the entry has gone or is going, `LeaseLost`.
    """
    if owner is not None:
        require_lease(tx, pool, owner)
    found = existing(tx, pool, entry_id)
    if found.state is EntryState.EVICTING:
        raise NotFound(f"{found.ref} is on its way out of the cache pool {pool}", pool=pool, entry=entry_id)
    return _keep(tx, found, pin=pin, owner=owner, reason=reason)


def unpin(tx: Transaction, pool: str, pin: str) -> bool:
    """False: there was no such pin. Idempotent."""
    row = tx.connection.execute(_UNPIN, {"pool": pool, "id": pin}).one_or_none()
    if row is None:
        return False
    found = existing(tx, pool, row.entry)
    _change(tx, found, pins=found.pins - 1)
    return True


def set_state(tx: Transaction, pool: str, entry_id: int, state: EntryState) -> Entry:
    """Between `ready`, `dirty` and `uploading`. Raises `NotFound`, and `WrongState` for what leaves or is quarantined."""
    found = existing(tx, pool, entry_id)
    movable = (EntryState.READY, EntryState.DIRTY, EntryState.UPLOADING)
    if found.state not in movable or state not in movable:
        raise WrongState(f"{found.ref} is {found.state} and cannot be made {state}", state=found.state, wanted=state)
    return _change(tx, found, state=state)


def confirm(tx: Transaction, pool: str, entry_id: int, *, key: str | None, version: str | None) -> Entry:
    """A store has what was dirty, as that version: an ordinary entry under `key` from now on. It keeps its old key, which
    nobody looks for, where there is no other for it (None), or where that is taken: by another copy, or one that arrives."""
    found = set_state(tx, pool, entry_id, EntryState.READY)
    filling = tx.connection.execute(_FILLING, {"pool": pool, "key": key}).one_or_none()
    if key is None or filling is not None or entry(tx, pool, key) is not None:
        return found
    tx.connection.execute(_CONFIRM, {"of": entry_id, "to_version": version})
    confirmed = _change(tx, found, key=key)
    ghost = recall(tx, pool, key)
    if ghost is not None:
        row = account(tx, pool, ghosts=-ghost.charge)
        learn(tx, row, policy.forgotten(comparison(row), turn=ghost.turn, charge=ghost.charge))
    return confirmed


def quarantine(tx: Transaction, pool: str, entry_id: int) -> Entry:
    """It did not prove itself: never served again, and its key is free for a better copy. Who reads it now keeps their pins. It
    takes up room until it is evicted, which happens before anything else goes. Idempotent. Raises `NotFound`, `WrongState`."""
    found = existing(tx, pool, entry_id)
    if found.state is EntryState.QUARANTINED:
        return found
    if found.state is EntryState.EVICTING:
        raise WrongState(f"{found.ref} is on its way out", state=found.state)
    changed = _change(tx, found, state=EntryState.QUARANTINED, key=f"{found.key}.quarantined-{found.id}", turn=-1)
    forget(tx, pool, turn=found.turn, charge=found.charge)
    return changed


def proved(tx: Transaction, pool: str, entry_id: int, digest: str) -> None:
    """The whole file was read, and is what it was, or now has a digest for the first time."""
    existing(tx, pool, entry_id)
    tx.connection.execute(_PROVED, {"of": entry_id, "to_proved_at": tx.wall, "to_digest": digest})


def unproved(tx: Transaction, pool: str, *, before: float, limit: int) -> tuple[Entry, ...]:
    """Entries that were last proved in full before that wall clock time, the longest ago first."""
    rows = tx.connection.execute(_UNPROVED, {"pool": pool, "before": before, "some": limit})
    return tuple(map(to_entry, rows))


def _use(tx: Transaction, found: Entry, *, owner: str, pin: str, reason: str) -> Entry:
    before = pool_row(tx, found.pool)
    seen = policy.hit(comparison(before), turn=found.turn, charge=found.charge, limit=before.limit_bytes)
    added = _add_pin(tx, found, pin=pin, owner=owner, reason=reason)
    turn, row = take_turn(tx, found.pool)
    used = _change(
        tx, found, queue=Queue.MAIN, turn=turn, hits=found.hits + 1, pins=found.pins + added, used_at=tx.wall
    )
    learn(tx, row, seen)
    return used


def _keep(tx: Transaction, found: Entry, *, pin: str, owner: str | None, reason: str) -> Entry:
    added = _add_pin(tx, found, pin=pin, owner=owner, reason=reason)
    return _change(tx, found, pins=found.pins + 1) if added else found


def _add_pin(tx: Transaction, found: Entry, *, pin: str, owner: str | None, reason: str) -> int:
    """How many that were: none, when the pin was there."""
    row = {"pool": found.pool, "id": pin, "entry": found.id, "owner": owner, "reason": reason, "since": tx.wall}
    return tx.connection.execute(_PIN, row).rowcount


def _change(tx: Transaction, found: Entry, **values: Any) -> Entry:
    """Change an entry, and its pool's sums with it."""
    new = {
        "key": found.key,
        "state": found.state,
        "queue": found.queue,
        "turn": found.turn,
        "hits": found.hits,
        "pins": found.pins,
        "used_at": found.used_at,
    } | values
    changes = {f"to_{name}": value for name, value in new.items()}
    changed = tx.connection.execute(_CHANGE, changes | {"of": found.id}).one()
    held = is_held(changed.state, changed.pins) - is_held(found.state, found.pins)
    small = (changed.queue == Queue.SMALL) - (found.queue == Queue.SMALL)
    if held or small:
        account(tx, found.pool, held=held * found.charge, small=small * found.charge)
    return to_entry(changed)
