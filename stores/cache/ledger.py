"""The pool's book: who holds how many bytes, and what may go.

`used + reserved <= limit` holds after every transaction, in every process that shares the database. Every function here is one
transaction or a part of one: it reads, decides (`stores.cache.policy`) and writes without waiting; files are touched by others,
before or after.

A charge is what an object occupies on disk at most: its size rounded up to whole blocks, and its metadata.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from sqlalchemy import Row, and_, delete, func, insert, or_, select, update

from stores.cache import policy
from stores.cache.database import Transaction
from stores.cache.policy import Candidate, Decision, Evict, Grant, Limits, PoolState, Queue, Wait
from stores.cache.schema import EntryState, entries, ghosts, owners, pins, pools, reservations, waiters
from stores.contract import KiB
from stores.errors import Retry, StoreError

BLOCK = 4 * KiB
METADATA = 8 * KiB  # the entry's own description and its names in two directories
CHUNK = 128  # rows that an eviction run draws at a time
GHOSTS = 10_000  # keys that are remembered after they went; a key takes about 100 bytes


def charge_of(size: int) -> int:
    """Bytes on disk that an object of `size` bytes is accounted for."""
    return -(-size // BLOCK) * BLOCK + METADATA


def file_of(key: str, reservation: str) -> str:
    """The name of an entry's file: one for each fill. Two fills of one key never meet under one name."""
    return f"{key}.{reservation}"


class LeaseLost(StoreError):
    """This process was silent for longer than its lease, and others went on without it. Nothing of it was published."""

    retry = Retry.YES


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the book about one file of the pool."""

    id: int
    pool: str
    key: str
    file: str
    store: str
    ref: str
    version: str | None
    size: int
    charge: int
    state: EntryState
    queue: Queue
    frequency: int
    pins: int
    digest: str | None
    inode: int | None
    mtime_ns: int | None
    published: float
    used_at: float


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an object that was filled: by it an entry proves itself later."""

    key: str
    store: str
    ref: str
    version: str | None
    size: int
    digest: str | None
    inode: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Reservation:
    id: str
    pool: str
    owner: str
    charge: int
    key: str | None
    arrived: int
    parts: str


@dataclass(frozen=True, slots=True)
class Answer:
    """To a request for room: the decision, and the entries that are now `evicting` and have to be removed first."""

    decision: Decision
    evict: tuple[Entry, ...] = ()


# ------------------------------------------------------------------------------------------------------- pools


def open_pool(tx: Transaction, pool: str, limit: int) -> None:
    """Make the pool known, or give it a new limit. A limit below what is used only keeps new bytes out until enough went."""
    known = tx.connection.execute(update(pools).where(pools.c.id == pool).values(limit_bytes=limit)).rowcount
    if not known:
        row = {"id": pool, "limit_bytes": limit, "used": 0, "reserved": 0, "held": 0, "small": 0, "next_turn": 0}
        tx.connection.execute(insert(pools).values(row))


def pool_state(tx: Transaction, pool: str, *, free_limit: int | None = None, before: int | None = None) -> PoolState:
    """The pool's counters, its row locked until the transaction ends.

    `free_limit`: what the free space to leave on the file system allows, if that is stricter. `before`: count only those who
    wait with a lower number.
    """
    row = tx.connection.execute(select(pools).where(pools.c.id == pool).with_for_update()).one()
    queue = select(func.count()).where(waiters.c.pool == pool, waiters.c.deadline > tx.now)
    if before is not None:
        queue = queue.where(waiters.c.id < before)
    return PoolState(
        limit=row.limit_bytes if free_limit is None else min(row.limit_bytes, free_limit),
        used=row.used,
        reserved=row.reserved,
        small=row.small,
        held=row.held,
        waiting=tx.connection.execute(queue).scalar_one(),
    )


def _account(tx: Transaction, pool: str, **delta: int) -> None:
    changes = {name: pools.c[name] + change for name, change in delta.items() if change}
    if changes:
        tx.connection.execute(update(pools).where(pools.c.id == pool).values(changes))


def _take_turns(tx: Transaction, pool: str, count: int) -> int:
    """The first of `count` new places at the end of the pool's queues."""
    tx.connection.execute(update(pools).where(pools.c.id == pool).values(next_turn=pools.c.next_turn + count))
    last = tx.connection.execute(select(pools.c.next_turn).where(pools.c.id == pool)).scalar_one()
    return int(last) - count


# ------------------------------------------------------------------------------------------------ reservations


def request(
    tx: Transaction,
    pool: str,
    charge: int,
    *,
    reservation: str,
    owner: str,
    key: str | None,
    waiter: int | None = None,
    free_limit: int | None = None,
) -> Answer:
    """Ask for room: a granted request is a reservation at once.

    `Evict` has marked its victims; whoever asked removes their files, says so with `evicted`, and asks again as a waiter, so
    that nobody takes the room meanwhile. A waiter passes its number and is judged only by those before it.
    """
    state = pool_state(tx, pool, free_limit=free_limit, before=waiter)
    decision = policy.decide(state, charge)
    if isinstance(decision, Evict):
        chosen = _mark_victims(tx, pool, state, decision.charge)
        if not chosen:
            return Answer(Wait("everything that could go is too young"))
        return Answer(decision, chosen)
    if isinstance(decision, Grant):
        row = {"id": reservation, "pool": pool, "owner": owner, "charge": charge, "key": key, "since": tx.wall}
        tx.connection.execute(insert(reservations).values(row | {"arrived": 0, "parts": ""}))
        _account(tx, pool, reserved=charge)
        if waiter is not None:
            leave(tx, waiter)
    return Answer(decision)


def grow(tx: Transaction, reservation: str, charge: int, *, free_limit: int | None = None) -> Answer:
    """More room for a fill of unknown size. Those who wait do not come first: what is half filled must not wait for them,
    since they may be waiting for it."""
    held = tx.connection.execute(select(reservations).where(reservations.c.id == reservation)).one()
    state = pool_state(tx, held.pool, free_limit=free_limit, before=0)
    decision = policy.decide(state, charge)
    if isinstance(decision, Evict):
        return Answer(decision, _mark_victims(tx, held.pool, state, decision.charge))
    if isinstance(decision, Grant):
        more = reservations.c.charge + charge
        tx.connection.execute(update(reservations).where(reservations.c.id == reservation).values(charge=more))
        _account(tx, held.pool, reserved=charge)
    return Answer(decision)


def release(tx: Transaction, reservation: str) -> bool:
    """Give back what is left of a reservation, after its temporary file is gone. False: it was gone already."""
    row = tx.connection.execute(select(reservations).where(reservations.c.id == reservation)).one_or_none()
    if row is None:
        return False
    tx.connection.execute(delete(reservations).where(reservations.c.id == reservation))
    _account(tx, row.pool, reserved=-row.charge)
    return True


def wait_in_line(tx: Transaction, pool: str, charge: int, *, owner: str, deadline: float) -> int:
    """A number in the pool's queue. `deadline` is of the clock of leases."""
    row = {"pool": pool, "owner": owner, "charge": charge, "deadline": deadline}
    result = tx.connection.execute(insert(waiters).values(row))
    assert result.inserted_primary_key is not None
    return int(result.inserted_primary_key[0])


def leave(tx: Transaction, waiter: int) -> None:
    """Out of the queue. Idempotent."""
    tx.connection.execute(delete(waiters).where(waiters.c.id == waiter))


# --------------------------------------------------------------------------------------------------- who has it


@dataclass(frozen=True, slots=True)
class Hit:
    """It is here, and pinned for the caller under `pin`."""

    entry: Entry
    pin: int


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
    """It is on its way out. The caller may finish that itself (`evicted` is idempotent), and look again."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Miss:
    """Nobody has it, and nobody fetches it."""


Found: TypeAlias = Hit | Follow | TakeOver | Leaving | Miss


def look(tx: Transaction, pool: str, key: str, *, owner: str, reason: str) -> Found:
    """What there is under `key`, with a claim on it in the same transaction."""
    tx.connection.execute(select(pools.c.id).where(pools.c.id == pool).with_for_update())
    row = tx.connection.execute(select(entries).where(entries.c.pool == pool, entries.c.key == key)).one_or_none()
    if row is not None:
        if row.state == EntryState.EVICTING:
            return Leaving(_entry(row))
        entry = _change(tx, row, frequency=min(row.frequency + 1, policy.MAX_FREQUENCY), used_at=tx.wall)
        return Hit(*_pin(tx, entry, owner=owner, reason=reason))
    filling = tx.connection.execute(
        select(reservations).where(reservations.c.pool == pool, reservations.c.key == key)
    ).one_or_none()
    if filling is None:
        return Miss()
    if filling.owner == owner or _lives(tx, filling.owner):
        return Follow(_reservation(filling))
    tx.connection.execute(update(reservations).where(reservations.c.id == filling.id).values(owner=owner))
    return TakeOver(replace(_reservation(filling), owner=owner))


def note_progress(tx: Transaction, reservation: str, *, arrived: int, parts: str) -> None:
    """How far a fill is. `parts` only names what is durable."""
    changes = {"arrived": arrived, "parts": parts}
    tx.connection.execute(update(reservations).where(reservations.c.id == reservation).values(changes))


def publish(
    tx: Transaction, reservation: str, facts: Facts, *, owner: str, reason: str, dirty: bool = False
) -> tuple[Entry, int]:
    """The reservation becomes an entry, pinned for its filler: the last step of a fill, after the file has its name.

    Raises `LeaseLost` when the reservation is no longer the caller's: somebody took over, or it was reclaimed.
    """
    held = tx.connection.execute(select(reservations).where(reservations.c.id == reservation)).one_or_none()
    charge = charge_of(facts.size)
    if held is None or held.owner != owner or charge > held.charge:
        raise LeaseLost(f"the reservation for {facts.ref} is not ours any more", ref=facts.ref)
    release(tx, reservation)
    queue = Queue.MAIN if _forget_ghost(tx, held.pool, facts.key) else Queue.SMALL
    row = {
        "pool": held.pool,
        "key": facts.key,
        "file": file_of(facts.key, reservation),
        "store": facts.store,
        "ref": facts.ref,
        "version": facts.version,
        "size": facts.size,
        "charge": charge,
        "state": EntryState.DIRTY if dirty else EntryState.READY,
        "queue": queue,
        "turn": _take_turns(tx, held.pool, 1),
        "frequency": 0,
        "pins": 0,
        "digest": facts.digest,
        "inode": facts.inode,
        "mtime_ns": facts.mtime_ns,
        "published": tx.wall,
        "used_at": tx.wall,
    }
    added = tx.connection.execute(insert(entries).values(row).returning(entries)).one()
    _account(tx, held.pool, used=charge, small=charge if queue is Queue.SMALL else 0, held=charge if dirty else 0)
    return _pin(tx, _entry(added), owner=owner, reason=reason)


# ----------------------------------------------------------------------------------------------------- entries


def entry(tx: Transaction, pool: str, key: str) -> Entry | None:
    row = tx.connection.execute(select(entries).where(entries.c.pool == pool, entries.c.key == key)).one_or_none()
    return None if row is None else _entry(row)


def pin(tx: Transaction, entry_id: int, *, owner: str | None, reason: str) -> int:
    """Keep an entry from going until `unpin`, or until `owner` is gone; None: over restarts."""
    return _pin(tx, _entry(_locked(tx, entry_id)), owner=owner, reason=reason)[1]


def unpin(tx: Transaction, pin_id: int) -> None:
    """Idempotent."""
    row = tx.connection.execute(delete(pins).where(pins.c.id == pin_id).returning(pins.c.entry)).one_or_none()
    if row is not None:
        held = _locked(tx, row.entry)
        _change(tx, held, pins=held.pins - 1)


def set_state(tx: Transaction, entry_id: int, state: EntryState) -> Entry:
    """`dirty -> uploading -> ready`, `ready -> evicting`, and back to `ready` where an eviction was not done."""
    return _change(tx, _locked(tx, entry_id), state=state)


def quarantine(tx: Transaction, entry_id: int) -> Entry:
    """It did not prove itself: never served again, and its key is free for a better copy."""
    row = _locked(tx, entry_id)
    return _change(tx, row, state=EntryState.QUARANTINED, key=f"{row.key}.quarantined-{entry_id}")


def evicted(tx: Transaction, entry_ids: Sequence[int], *, remember: bool = True) -> int:
    """Their files are gone: strike them out. Returns the bytes this gave back. `remember` leaves ghosts."""
    freed = 0
    for entry_id in entry_ids:
        row = tx.connection.execute(select(entries).where(entries.c.id == entry_id).with_for_update()).one_or_none()
        if row is None:
            continue
        tx.connection.execute(delete(pins).where(pins.c.entry == entry_id))
        tx.connection.execute(delete(entries).where(entries.c.id == entry_id))
        small = row.charge if row.queue == Queue.SMALL else 0
        _account(tx, row.pool, used=-row.charge, small=-small, held=-row.charge if _is_held(row.state, row.pins) else 0)
        if remember:
            _remember_ghost(tx, row.pool, row.key)
        freed += row.charge
    return freed


def relieve(tx: Transaction, pool: str, limits: Limits, *, free_limit: int | None = None) -> tuple[Entry, ...]:
    """What has to go without anybody asking for room: by age, and down to the low water mark. Marked `evicting`."""
    state = pool_state(tx, pool, free_limit=free_limit)
    gone = _mark_overdue(tx, pool, limits)
    need = policy.pressure(state, limits) - sum(entry.charge for entry in gone)
    return gone if need <= 0 else gone + _mark_victims(tx, pool, state, need)


def _is_held(state: str, pin_count: int) -> bool:
    return pin_count > 0 or state != EntryState.READY


def _locked(tx: Transaction, entry_id: int) -> Row[Any]:
    return tx.connection.execute(select(entries).where(entries.c.id == entry_id).with_for_update()).one()


def _change(tx: Transaction, row: Row[Any], **values: Any) -> Entry:
    """Change an entry, and its pool's sums with it."""
    new = {"state": row.state, "pins": row.pins, "queue": row.queue} | values
    held = _is_held(new["state"], new["pins"]) - _is_held(row.state, row.pins)
    small = (new["queue"] == Queue.SMALL) - (row.queue == Queue.SMALL)
    changed = tx.connection.execute(
        update(entries).where(entries.c.id == row.id).values(values).returning(entries)
    ).one()
    _account(tx, row.pool, held=held * row.charge, small=small * row.charge)
    return _entry(changed)


def _pin(tx: Transaction, found: Entry, *, owner: str | None, reason: str) -> tuple[Entry, int]:
    row = {"entry": found.id, "owner": owner, "reason": reason, "since": tx.wall}
    added = tx.connection.execute(insert(pins).values(row).returning(pins.c.id)).scalar_one()
    return _change(tx, _locked(tx, found.id), pins=found.pins + 1), int(added)


def _mark_victims(tx: Transaction, pool: str, state: PoolState, need: int) -> tuple[Entry, ...]:
    plan = policy.victims(state, _queue(tx, pool, Queue.SMALL), _queue(tx, pool, Queue.MAIN), need)
    turn = _take_turns(tx, pool, len(plan.keep))
    for offset, (entry_id, frequency) in enumerate(plan.keep):
        _change(tx, _locked(tx, entry_id), queue=Queue.MAIN, frequency=frequency, turn=turn + offset)
    return tuple(set_state(tx, entry_id, EntryState.EVICTING) for entry_id in plan.evict)


def _mark_overdue(tx: Transaction, pool: str, limits: Limits) -> tuple[Entry, ...]:
    late = []
    if limits.max_idle_s is not None:
        late.append(entries.c.used_at < tx.wall - limits.max_idle_s)
    if limits.max_age_s is not None:
        late.append(entries.c.published < tx.wall - limits.max_age_s)
    if not late:
        return ()
    free = and_(entries.c.pool == pool, entries.c.state == EntryState.READY, entries.c.pins == 0)
    rows = tx.connection.execute(select(entries.c.id).where(free, or_(*late))).all()
    return tuple(set_state(tx, row.id, EntryState.EVICTING) for row in rows)


def _queue(tx: Transaction, pool: str, queue: Queue) -> Iterator[Candidate]:
    """One queue's evictable entries, oldest first, drawn a few at a time."""
    turn = -1
    while True:
        rows = tx.connection.execute(
            select(entries)
            .where(entries.c.pool == pool, entries.c.state == EntryState.READY, entries.c.queue == queue)
            .where(entries.c.turn > turn, entries.c.pins == 0)
            .order_by(entries.c.turn)
            .limit(CHUNK)
        ).all()
        for row in rows:
            yield Candidate(row.id, row.charge, queue, row.frequency, None)
        if len(rows) < CHUNK:
            return
        turn = rows[-1].turn


def _remember_ghost(tx: Transaction, pool: str, key: str) -> None:
    _forget_ghost(tx, pool, key)
    added = tx.connection.execute(insert(ghosts).values(pool=pool, key=key).returning(ghosts.c.id)).scalar_one()
    tx.connection.execute(delete(ghosts).where(ghosts.c.pool == pool, ghosts.c.id <= added - GHOSTS))


def _forget_ghost(tx: Transaction, pool: str, key: str) -> bool:
    return tx.connection.execute(delete(ghosts).where(ghosts.c.pool == pool, ghosts.c.key == key)).rowcount > 0


# ------------------------------------------------------------------------------------------------------ owners


@dataclass(frozen=True, slots=True)
class Abandoned:
    """What owners who are gone have left: files to remove, then to be struck out with `release` and `evicted`."""

    fillings: tuple[Reservation, ...]
    leaving: tuple[Entry, ...]


def register(tx: Transaction, owner: str, *, host: str, boot: str, pid: int, lease_s: float) -> None:
    """A process says that it lives. Owners of an earlier boot of this host are dead at once, whatever their lease says."""
    stale = and_(owners.c.host == host, owners.c.boot != boot)
    tx.connection.execute(update(owners).where(stale).values(expires=0.0))
    row = {"id": owner, "host": host, "boot": boot, "pid": pid, "expires": tx.now + lease_s}
    tx.connection.execute(insert(owners).values(row))


def renew(tx: Transaction, owner: str, lease_s: float) -> bool:
    """False: the lease had run out and the owner was struck out. It must let go of everything and register again."""
    changed = update(owners).where(owners.c.id == owner, owners.c.expires > tx.now).values(expires=tx.now + lease_s)
    return tx.connection.execute(changed).rowcount > 0


def retire(tx: Transaction, owner: str) -> None:
    """An orderly end: as if the lease had run out now."""
    tx.connection.execute(update(owners).where(owners.c.id == owner).values(expires=0.0))


def reap(tx: Transaction, pool: str) -> Abandoned:
    """Let go of what dead owners hold in this pool: their pins and places in the queue at once; their reservations and
    half-done evictions are returned, since files come first. Costs as much as there is of those."""
    dead = [row.id for row in tx.connection.execute(select(owners.c.id).where(owners.c.expires <= tx.now))]
    for owner in dead:
        tx.connection.execute(delete(waiters).where(waiters.c.pool == pool, waiters.c.owner == owner))
        for row in tx.connection.execute(select(pins.c.id).where(pins.c.owner == owner)).all():
            unpin(tx, row.id)
    living = select(owners.c.id).where(owners.c.expires > tx.now)
    orphaned = tx.connection.execute(
        select(reservations).where(reservations.c.pool == pool, reservations.c.owner.not_in(living))
    )
    leaving = tx.connection.execute(
        select(entries).where(entries.c.pool == pool, entries.c.state == EntryState.EVICTING)
    )
    return Abandoned(tuple(map(_reservation, orphaned)), tuple(map(_entry, leaving)))


def _lives(tx: Transaction, owner: str) -> bool:
    alive = select(owners.c.id).where(owners.c.id == owner, owners.c.expires > tx.now)
    return tx.connection.execute(alive).one_or_none() is not None


# ------------------------------------------------------------------------------------------------------- rows


def _reservation(row: Row[Any]) -> Reservation:
    return Reservation(row.id, row.pool, row.owner, row.charge, row.key, row.arrived, row.parts)


def _entry(row: Row[Any]) -> Entry:
    return Entry(
        id=row.id,
        pool=row.pool,
        key=row.key,
        file=row.file,
        store=row.store,
        ref=row.ref,
        version=row.version,
        size=row.size,
        charge=row.charge,
        state=EntryState(row.state),
        queue=Queue(row.queue),
        frequency=row.frequency,
        pins=row.pins,
        digest=row.digest,
        inode=row.inode,
        mtime_ns=row.mtime_ns,
        published=row.published,
        used_at=row.used_at,
    )
