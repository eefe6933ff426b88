"""A pool's own row: its limit, the sums over what it holds, and the comparison with LRU."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Row, bindparam, case, func, insert, select, update

from stores.cache import policy
from stores.cache.database import Transaction
from stores.cache.policy import Comparison, PoolState, Queue
from stores.cache.schema import EntryState, entries, ghosts, owners, pools, reservations, waiters
from stores.errors import NotFound

STEPS = 256  # of LRU's horizon in one transaction, after a limit has shrunk; the rest follows in the next ones

_COUNTERS = ("used", "reserved", "held", "small", "entries", "ghosts", "next_turn")
_POOL = select(pools).where(pools.c.id == bindparam("pool"))
_ADD = (
    update(pools)
    .where(pools.c.id == bindparam("of"))
    .values({name: pools.c[name] + bindparam(f"d_{name}") for name in _COUNTERS})
    .returning(pools)
)
_NOTHING = {f"d_{name}": 0 for name in _COUNTERS}
_COMPARE = (
    update(pools)
    .where(pools.c.id == bindparam("of"))
    .values({name: bindparam(f"to_{name}") for name in ("horizon", "recent", "bias", "credit")})
)
_IN_LINE = select(func.count()).where(
    waiters.c.pool == bindparam("pool"),
    waiters.c.place < bindparam("before"),
    waiters.c.deadline > bindparam("now"),
    waiters.c.owner.in_(
        select(owners.c.id).where(owners.c.pool == bindparam("pool"), owners.c.expires > bindparam("now"))
    ),
)
_NEXT_ENTRIES, _NEXT_GHOSTS = (
    select(table.c.turn, table.c.charge)
    .where(table.c.pool == bindparam("pool"), table.c.turn > bindparam("horizon"))
    .order_by(table.c.turn)
    .limit(bindparam("some"))
    for table in (entries, ghosts)
)
LAST_PLACE = 2**62


def open_pool(tx: Transaction, pool: str, limit: int) -> None:
    """Make the pool known, or give it a new limit. A limit below what is used only keeps new bytes out until enough went."""
    row = tx.connection.execute(_POOL, {"pool": pool}).one_or_none()
    if row is None:
        first = dict.fromkeys(_COUNTERS, 0) | asdict(Comparison())
        tx.connection.execute(insert(pools).values(first | {"id": pool, "limit_bytes": limit}))
        return
    tx.connection.execute(update(pools).where(pools.c.id == pool).values(limit_bytes=limit))
    learn(tx, row, policy.forgiven(comparison(row)))


def pool_row(tx: Transaction, pool: str) -> Row[Any]:
    row = tx.connection.execute(_POOL, {"pool": pool}).one_or_none()
    if row is None:
        raise NotFound(f"the cache ledger knows no pool {pool}", pool=pool)
    return row


def pool_state(tx: Transaction, pool: str, *, free_limit: int | None = None, before: int = LAST_PLACE) -> PoolState:
    """The pool's counters.

    `free_limit`: what the free space to leave on the file system allows, if that is stricter. `before`: count only those who
    wait at an earlier place. Who waits past its deadline, or is dead, does not count.
    """
    row = pool_row(tx, pool)
    in_line = tx.connection.execute(_IN_LINE, {"pool": pool, "before": before, "now": tx.now})
    return PoolState(
        limit=row.limit_bytes if free_limit is None else min(row.limit_bytes, free_limit),
        used=row.used,
        reserved=row.reserved,
        held=row.held,
        waiting=in_line.scalar_one(),
        turn=row.next_turn,
        bias=row.bias,
    )


def account(tx: Transaction, pool: str, **change: int) -> Row[Any]:
    """Add to the pool's counters. Returns the row after that."""
    changes = {f"d_{name}": by for name, by in change.items()}
    return tx.connection.execute(_ADD, _NOTHING | changes | {"of": pool}).one()


def take_turn(tx: Transaction, pool: str, **change: int) -> tuple[int, Row[Any]]:
    """The number of this use. Counters may be changed on the way."""
    row = account(tx, pool, next_turn=1, **change)
    return row.next_turn - 1, row


# ------------------------------------------------------------------------------------- the comparison with LRU


def comparison(row: Row[Any]) -> Comparison:
    return Comparison(row.horizon, row.recent, row.bias, row.credit)


def learn(tx: Transaction, row: Row[Any], seen: Comparison) -> None:
    """Write down what was learned, after LRU has dropped what would not fit any more. `row` is the pool's."""
    for _ in range(STEPS):
        if seen.recent <= row.limit_bytes:
            break
        seen = _drop(tx, row, seen)
    if seen != comparison(row):
        changes = {f"to_{name}": value for name, value in asdict(seen).items()}
        tx.connection.execute(_COMPARE, changes | {"of": row.id})


def _drop(tx: Transaction, row: Row[Any], seen: Comparison) -> Comparison:
    where = {"pool": row.id, "horizon": seen.horizon, "some": 4}
    oldest = sorted(
        (found.turn, found.charge)
        for query in (_NEXT_ENTRIES, _NEXT_GHOSTS)
        for found in tx.connection.execute(query, where)
    )
    if not oldest:
        return replace(seen, recent=0)
    for turn, charge in oldest[:4]:  # as many as one query brought: there is no other between them
        if seen.recent <= row.limit_bytes:
            break
        seen = policy.beyond(seen, turn=turn, charge=charge)
    return seen


def forget(tx: Transaction, pool: str, *, turn: int, charge: int) -> None:
    """Something went that LRU could not have kept either."""
    row = pool_row(tx, pool)
    learn(tx, row, policy.forgotten(comparison(row), turn=turn, charge=charge))


# ------------------------------------------------------------------------------------------------------- checks


@dataclass(frozen=True, slots=True)
class Sums:
    """What a pool's row must say."""

    used: int
    reserved: int
    held: int
    small: int
    entries: int
    ghosts: int
    recent: int


def check_sums(tx: Transaction, pool: str) -> tuple[Sums, Sums]:
    """What the pool's row says, and what its parts come to: equal, unless the ledger was damaged. Reads every row."""
    row = pool_row(tx, pool)
    says = Sums(row.used, row.reserved, row.held, row.small, row.entries, row.ghosts, row.recent)
    held = (entries.c.pins > 0) | entries.c.state.in_([EntryState.DIRTY, EntryState.UPLOADING, EntryState.EVICTING])
    charge = entries.c.charge

    def total(what: Any) -> Any:
        return func.coalesce(func.sum(what), 0)

    of_entries = tx.connection.execute(
        select(
            total(charge).label("used"),
            total(case((held, charge), else_=0)).label("held"),
            total(case((entries.c.queue == Queue.SMALL, charge), else_=0)).label("small"),
            func.count().label("entries"),
            total(case((entries.c.turn > row.horizon, charge), else_=0)).label("recent"),
        ).where(entries.c.pool == pool)
    ).one()
    of_ghosts = tx.connection.execute(
        select(
            total(ghosts.c.charge).label("ghosts"),
            total(case((ghosts.c.turn > row.horizon, ghosts.c.charge), else_=0)).label("recent"),
        ).where(ghosts.c.pool == pool)
    ).one()
    reserved = tx.connection.execute(select(total(reservations.c.charge)).where(reservations.c.pool == pool))
    comes_to = Sums(
        used=int(of_entries.used),
        reserved=int(reserved.scalar_one()),
        held=int(of_entries.held),
        small=int(of_entries.small),
        entries=int(of_entries.entries),
        ghosts=int(of_ghosts.ghosts),
        recent=int(of_entries.recent) + int(of_ghosts.recent),
    )
    return says, comes_to


def correct_sums(tx: Transaction, pool: str) -> bool:
    """Make the pool's row say what its parts come to. True: it did not, which only damage or a fault of ours explains."""
    says, comes_to = check_sums(tx, pool)
    if says == comes_to:
        return False
    tx.connection.execute(update(pools).where(pools.c.id == pool).values(asdict(comes_to)))
    return True
