"""Reservations, and the queue of those who wait for one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, bindparam, delete, insert, select, update

from stores.cache import policy
from stores.cache.database import Transaction
from stores.cache.errors import LeaseLost
from stores.cache.ledger.eviction import mark_victims
from stores.cache.ledger.rows import Entry, Reservation, entry, require_lease, to_reservation
from stores.cache.ledger.sums import LAST_PLACE, account, pool_state
from stores.cache.policy import Decision, Evict, Grant, Wait
from stores.cache.schema import reservations, waiters
from stores.errors import AlreadyExists

_BY_ID = select(reservations).where(reservations.c.id == bindparam("id"))
_BY_KEY = select(reservations).where(reservations.c.pool == bindparam("pool"), reservations.c.key == bindparam("key"))
_DROP = delete(reservations).where(reservations.c.id == bindparam("id"))
_GROW = (
    update(reservations)
    .where(reservations.c.id == bindparam("of"))
    .values(charge=reservations.c.charge + bindparam("more"))
)
_NOTE = (
    update(reservations)
    .where(reservations.c.id == bindparam("of"))
    .values(arrived=bindparam("to_arrived"), parts=bindparam("to_parts"))
)
_INSERT = insert(reservations)
_PLACE = select(waiters.c.place).where(waiters.c.id == bindparam("id"))
_LEAVE = delete(waiters).where(waiters.c.id == bindparam("id"))
_JOIN = insert(waiters).returning(waiters.c.place)


@dataclass(frozen=True, slots=True)
class Answer:
    """To a request for room: the decision, and the entries that are now `evicting` and that the caller has to remove.

    Whoever gets entries finishes them, even when cancelled: their files first, then `evicted`; or `spare`.
    """

    decision: Decision
    evict: tuple[Entry, ...] = ()


def request(
    tx: Transaction,
    pool: str,
    charge: int,
    *,
    reservation: str,
    owner: str,
    key: str | None,
    waiter: str,
    wait_s: float,
    free_limit: int | None = None,
    min_age_s: float = 0.0,
) -> Answer:
    """Ask for room: a granted request is the reservation `reservation` at once. Idempotent by that id.

    `waiter` is the caller's name in the queue, whether it stands there already or not: those behind it do not count. `Evict`
    puts it there (for `wait_s` seconds), so that nobody takes the room while the caller removes files; then it asks again.
    `Wait` does not: see `wait_in_line`. `Grant` and `Refuse` take it out.

    Raises `LeaseLost`; `AlreadyExists` when somebody has filled `key`, or does, since the caller looked: look again.
    """
    require_lease(tx, pool, owner)
    if (held := _find(tx, reservation)) is not None:
        _own(held, owner)
        return Answer(Grant())
    if key is not None and (_filling(tx, pool, key) or entry(tx, pool, key)) is not None:
        raise AlreadyExists(f"the cache pool {pool} has {key}, or somebody fills it: look again", pool=pool, key=key)
    place = tx.connection.execute(_PLACE, {"id": waiter}).scalar_one_or_none()
    state = pool_state(tx, pool, free_limit=free_limit, before=LAST_PLACE if place is None else place)
    decision = policy.decide(state, charge)
    if isinstance(decision, Evict):
        chosen = mark_victims(tx, pool, state, decision.charge, owner=owner, min_age_s=min_age_s)
        if not chosen:
            return Answer(Wait("what could go is too young"))
        if place is None:
            wait_in_line(tx, pool, charge, waiter=waiter, owner=owner, wait_s=wait_s)
        return Answer(decision, chosen)
    if isinstance(decision, Grant):
        row = {"id": reservation, "pool": pool, "owner": owner, "charge": charge, "key": key, "since": tx.wall}
        tx.connection.execute(_INSERT, row | {"arrived": 0, "parts": ""})
        account(tx, pool, reserved=charge)
    if not isinstance(decision, Wait):
        leave(tx, waiter)
    return Answer(decision)


def grow(
    tx: Transaction,
    reservation: str,
    charge: int,
    *,
    owner: str,
    free_limit: int | None = None,
    min_age_s: float = 0.0,
) -> Answer:
    """`charge` bytes more, for a fill of unknown size. Those who wait do not come first: what is half filled must not wait for
    them, since they may be waiting for it. After `Evict` ask again. Raises `LeaseLost`."""
    held = _owned(tx, reservation, owner)
    require_lease(tx, held.pool, owner)
    state = pool_state(tx, held.pool, free_limit=free_limit, before=0)
    decision = policy.decide(state, charge)
    if isinstance(decision, Evict):
        chosen = mark_victims(tx, held.pool, state, decision.charge, owner=owner, min_age_s=min_age_s)
        return Answer(decision, chosen) if chosen else Answer(Wait("what could go is too young"))
    if isinstance(decision, Grant):
        tx.connection.execute(_GROW, {"of": reservation, "more": charge})
        account(tx, held.pool, reserved=charge)
    return Answer(decision)


def release(tx: Transaction, reservation: str, *, owner: str) -> bool:
    """Give back a reservation, after its temporary file is gone. False: it was gone, or somebody took it over. Idempotent."""
    held = _find(tx, reservation)
    if held is None or held.owner != owner:
        return False
    drop(tx, held)
    return True


def drop(tx: Transaction, held: Row[Any]) -> None:
    tx.connection.execute(_DROP, {"id": held.id})
    account(tx, held.pool, reserved=-held.charge)


def note_progress(tx: Transaction, reservation: str, *, owner: str, arrived: int, parts: str) -> None:
    """How far a fill is. `parts` only names what is durable. Raises `LeaseLost`."""
    _owned(tx, reservation, owner)
    tx.connection.execute(_NOTE, {"of": reservation, "to_arrived": arrived, "to_parts": parts})


def filling(tx: Transaction, pool: str, key: str) -> Reservation | None:
    """Who fills `key`, dead or alive, without a claim on it."""
    row = _filling(tx, pool, key)
    return None if row is None else to_reservation(row)


def wait_in_line(tx: Transaction, pool: str, charge: int, *, waiter: str, owner: str, wait_s: float) -> int:
    """A place in the pool's queue for at most `wait_s` seconds: lower numbers come first. Idempotent by `waiter`; the place
    and the deadline are those of the first call. Raises `LeaseLost`."""
    require_lease(tx, pool, owner)
    place = tx.connection.execute(_PLACE, {"id": waiter}).scalar_one_or_none()
    if place is None:
        row = {"id": waiter, "pool": pool, "owner": owner, "charge": charge, "deadline": tx.now + wait_s}
        place = tx.connection.execute(_JOIN, row).scalar_one()
    return int(place)


def leave(tx: Transaction, waiter: str) -> None:
    """Out of the queue. Idempotent."""
    tx.connection.execute(_LEAVE, {"id": waiter})


def _find(tx: Transaction, reservation: str) -> Row[Any] | None:
    return tx.connection.execute(_BY_ID, {"id": reservation}).one_or_none()


def _filling(tx: Transaction, pool: str, key: str) -> Row[Any] | None:
    return tx.connection.execute(_BY_KEY, {"pool": pool, "key": key}).one_or_none()


def owned(tx: Transaction, reservation: str, owner: str) -> Row[Any] | None:
    """The reservation, if there is one. `LeaseLost` when it is somebody else's."""
    held = _find(tx, reservation)
    if held is not None:
        _own(held, owner)
    return held


def _owned(tx: Transaction, reservation: str, owner: str) -> Row[Any]:
    held = owned(tx, reservation, owner)
    if held is None:
        raise LeaseLost(f"the reservation {reservation} was given back", reservation=reservation)
    return held


def _own(held: Row[Any], owner: str) -> None:
    if held.owner != owner:
        raise LeaseLost(
            f"the reservation {held.id} of {owner} was taken over by {held.owner}", reservation=held.id, pool=held.pool
        )
