"""What goes: chosen in one transaction, removed by the chooser, struck out in another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, delete, insert, select, update

from stores.cache import policy
from stores.cache.database import Transaction
from stores.cache.ledger.rows import Entry, entry_by_id, existing, is_held, require_lease, to_entry
from stores.cache.ledger.sums import account, comparison, learn, pool_row, pool_state
from stores.cache.policy import Candidate, Ghost, Hold, Limits, PoolState, Queue
from stores.cache.schema import EntryState, entries, ghosts, pins

CHUNK = 32  # rows of a queue that an eviction run draws at a time
AT_MOST = 512  # entries that one transaction chooses: others wait for it

_FREE = (entries.c.pool == bindparam("pool"), entries.c.pins == 0)
_READY = (*_FREE, entries.c.state == EntryState.READY.value)
_QUEUE = (
    select(entries.c.id, entries.c.charge, entries.c.turn, entries.c.published)
    .where(*_READY, entries.c.queue == bindparam("queue"), entries.c.turn > bindparam("turn"))
    .order_by(entries.c.turn)
    .limit(CHUNK)
)
_QUARANTINED = (
    select(entries.c.id, entries.c.charge)
    .where(*_FREE, entries.c.state == EntryState.QUARANTINED.value)
    .order_by(entries.c.used_at)
    .limit(AT_MOST)
)
_IDLE, _OLD = (
    select(entries.c.id, entries.c.charge)
    .where(*_READY, column < bindparam("since"))
    .order_by(column)
    .limit(bindparam("some"))
    for column in (entries.c.used_at, entries.c.published)
)
_MARK = (
    update(entries)
    .where(entries.c.id.in_(bindparam("ids", expanding=True)))
    .values(state=EntryState.EVICTING.value, evictor=bindparam("by"))
    .returning(entries)
)
_SPARE = update(entries).where(entries.c.id == bindparam("of")).values(state=bindparam("to_state"), evictor=None)
_UNPIN_ALL = delete(pins).where(pins.c.entry == bindparam("of"))
_STRIKE_OUT = delete(entries).where(entries.c.id == bindparam("of"))
_GHOST = select(ghosts).where(ghosts.c.pool == bindparam("pool"), ghosts.c.key == bindparam("key"))
_DROP_GHOST = delete(ghosts).where(ghosts.c.pool == bindparam("pool"), ghosts.c.key == bindparam("key"))
_ADD_GHOST = insert(ghosts)
_OLDEST_GHOST = (
    select(ghosts).where(ghosts.c.pool == bindparam("pool")).order_by(ghosts.c.turn).limit(bindparam("some"))
)


@dataclass(frozen=True, slots=True)
class Relief:
    """What has to go although nobody asks for room, by reason."""

    overdue: tuple[Entry, ...]  # by age
    pressed: tuple[Entry, ...]  # above the high water mark

    @property
    def entries(self) -> tuple[Entry, ...]:
        return self.overdue + self.pressed


def relieve(tx: Transaction, pool: str, limits: Limits, *, owner: str, free_limit: int | None = None) -> Relief:
    """What has to go by age, and down to the low water mark, `AT_MOST` of each: marked `evicting`, for the caller to remove as
    `Answer` says, who then asks again until there is nothing. Raises `LeaseLost`."""
    require_lease(tx, pool, owner)
    overdue = mark(tx, pool, _overdue(tx, pool, limits), owner=owner)
    state = pool_state(tx, pool, free_limit=free_limit)
    need = policy.pressure(state, limits) - sum(entry.charge for entry in overdue)
    if need <= 0:
        return Relief(overdue, ())
    pressed = mark_victims(tx, pool, state, need, owner=owner, min_age_s=limits.min_age_s, partly=True)
    return Relief(overdue, pressed)


def evict(tx: Transaction, pool: str, entry_id: int, *, owner: str) -> Entry | Hold:
    """Let one entry go because somebody says so, quarantined or not, too young or not: it is `evicting` then, and the caller's
    to remove. A `Hold`: it may not go now. Raises `NotFound` and `LeaseLost`."""
    require_lease(tx, pool, owner)
    found = existing(tx, pool, entry_id)
    hold = hold_now(tx, found, min_age_s=0.0)
    if hold is not None:
        return hold
    return mark(tx, pool, [(found.id, found.charge)], owner=owner)[0]


def hold_now(tx: Transaction, found: Entry, *, min_age_s: float) -> Hold | None:
    """Why `found` may not go now."""
    return policy.hold_of(
        pins=found.pins,
        dirty=found.dirty,
        evicting=found.state is EntryState.EVICTING,
        age=tx.wall - found.published,
        min_age_s=min_age_s,
    )


def spare(tx: Transaction, pool: str, entry_ids: Sequence[int], *, owner: str) -> None:
    """Those are whole still, and may be used again: the caller did not remove what it was to evict. Idempotent."""
    for entry_id in entry_ids:
        found = entry_by_id(tx, pool, entry_id)
        if found is None or found.state is not EntryState.EVICTING or found.evictor != owner:
            continue
        state = EntryState.QUARANTINED if found.turn < 0 else EntryState.READY
        tx.connection.execute(_SPARE, {"of": entry_id, "to_state": state})
        account(tx, pool, held=-found.charge)


def evicted(tx: Transaction, pool: str, entry_ids: Sequence[int], *, owner: str, remember: bool = True) -> int:
    """Their files are gone: strike them out. Returns the bytes this gave back. Idempotent; what somebody else evicts by now
    is left to them. `remember`: the policy chose them, and will learn whether that was right."""
    freed = 0
    for entry_id in entry_ids:
        found = entry_by_id(tx, pool, entry_id)
        if found is None or found.state is not EntryState.EVICTING or found.evictor != owner:
            continue
        strike_out(tx, found, remember=remember)
        freed += found.charge
    return freed


def strike_out(tx: Transaction, found: Entry, *, remember: bool) -> None:
    tx.connection.execute(_UNPIN_ALL, {"of": found.id})
    tx.connection.execute(_STRIKE_OUT, {"of": found.id})
    remembered = remember and found.turn >= 0
    row = account(
        tx,
        found.pool,
        used=-found.charge,
        small=-found.charge if found.queue is Queue.SMALL else 0,
        held=-found.charge if is_held(found.state, found.pins) else 0,
        entries=-1,
        ghosts=found.charge if remembered else 0,
    )
    if not remembered:
        learn(tx, row, policy.forgotten(comparison(row), turn=found.turn, charge=found.charge))
        return
    ghost = {"pool": found.pool, "key": found.key, "queue": found.queue, "turn": found.turn, "charge": found.charge}
    tx.connection.execute(_ADD_GHOST, ghost)
    if row.ghosts > row.limit_bytes:
        _trim_ghosts(tx, found.pool)


def _trim_ghosts(tx: Transaction, pool: str) -> None:
    """As many bytes are remembered as the pool can hold."""
    row = pool_row(tx, pool)
    seen, gone = comparison(row), 0
    for old in tx.connection.execute(_OLDEST_GHOST, {"pool": pool, "some": CHUNK}).all():
        if row.ghosts - gone <= row.limit_bytes:
            break
        tx.connection.execute(_DROP_GHOST, {"pool": pool, "key": old.key})
        seen = policy.forgotten(seen, turn=old.turn, charge=old.charge)
        gone += old.charge
    learn(tx, account(tx, pool, ghosts=-gone), seen)


def recall(tx: Transaction, pool: str, key: str) -> Ghost | None:
    """The ghost of `key`, which is none after this. The caller accounts for it."""
    row = tx.connection.execute(_GHOST, {"pool": pool, "key": key}).one_or_none()
    if row is None:
        return None
    tx.connection.execute(_DROP_GHOST, {"pool": pool, "key": key})
    return Ghost(Queue(row.queue), row.turn, row.charge)


# ------------------------------------------------------------------------------------------------------ choosing


def mark_victims(
    tx: Transaction,
    pool: str,
    state: PoolState,
    need: int,
    *,
    owner: str,
    min_age_s: float,
    partly: bool = False,
) -> tuple[Entry, ...]:
    """Entries of `need` bytes or, where that are too many, the first `AT_MOST`. None at all when youth holds too much of the
    rest, unless `partly`: nothing goes in vain. What is quarantined goes before anything else."""
    chosen: list[tuple[int, int]] = []
    freed = 0
    for row in tx.connection.execute(_QUARANTINED, {"pool": pool}):
        if freed >= need:
            break
        chosen.append((row.id, row.charge))
        freed += row.charge
    if freed < need and len(chosen) < AT_MOST:
        plan = policy.victims(
            state,
            _queue(tx, pool, Queue.SMALL),
            _queue(tx, pool, Queue.MAIN),
            need - freed,
            min_age_s=min_age_s,
            at_most=AT_MOST - len(chosen),
        )
        chosen += [(candidate.id, candidate.charge) for candidate in plan.evict]
        freed += plan.freed
    if freed < need and len(chosen) < AT_MOST and not partly:
        return ()
    return mark(tx, pool, chosen, owner=owner)


def mark(tx: Transaction, pool: str, chosen: Sequence[tuple[int, int]], *, owner: str) -> tuple[Entry, ...]:
    """These (id, charge), which nothing holds, are the owner's to remove from now on. In the order given."""
    if not chosen:
        return ()
    rows = tx.connection.execute(_MARK, {"ids": [entry_id for entry_id, _ in chosen], "by": owner}).all()
    account(tx, pool, held=sum(charge for _, charge in chosen))
    marked = {row.id: to_entry(row) for row in rows}
    return tuple(marked[entry_id] for entry_id, _ in chosen)


def _overdue(tx: Transaction, pool: str, limits: Limits) -> list[tuple[int, int]]:
    late: dict[int, int] = {}
    for query, age_s in ((_IDLE, limits.max_idle_s), (_OLD, limits.max_age_s)):
        if age_s is not None and len(late) < AT_MOST:
            some = {"pool": pool, "since": tx.wall - age_s, "some": AT_MOST - len(late)}
            late |= {row.id: row.charge for row in tx.connection.execute(query, some)}
    return list(late.items())


def _queue(tx: Transaction, pool: str, queue: Queue) -> Iterator[Candidate]:
    """One queue's entries that may be evicted, least recently used first, drawn a few at a time."""
    turn = -1
    while True:
        rows = tx.connection.execute(_QUEUE, {"pool": pool, "queue": queue, "turn": turn}).all()
        for row in rows:
            yield Candidate(row.id, row.charge, row.turn, tx.wall - row.published)
        if len(rows) < CHUNK:
            return
        turn = rows[-1].turn
