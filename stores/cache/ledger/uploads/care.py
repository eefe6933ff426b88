"""What operators do with uploads, what they see of them, and what is told of their end."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, func, select

from stores.cache.database import Transaction
from stores.cache.ledger.content import set_state
from stores.cache.ledger.eviction import mark
from stores.cache.ledger.rows import Entry, require_lease
from stores.cache.ledger.uploads.rows import OVER, STAGED, UNSTORED, Upload, change, end, find, followers, read
from stores.cache.schema import EntryState, UploadState, uploads


@dataclass(frozen=True, slots=True)
class Totals:
    """Of one pool."""

    bytes: int
    count: int
    by_state: dict[UploadState, int]  # how many
    oldest_s: float


def retry(tx: Transaction, pool: str, *, upload: str | None = None, refused_by: str | None = None) -> int:
    """Due now: that one, those that a store refused, or all that do not get on; each with those that follow it. How many."""
    states = [UploadState.REFUSED]
    if refused_by is None:
        states += [UploadState.WAITING, UploadState.FAILED, UploadState.CANCELLING]
    where = [uploads.c.pool == pool, uploads.c.state.in_(states), uploads.c.owner.is_(None)]
    if upload is not None:
        where.append(uploads.c.id == upload)
    if refused_by is not None:
        where.append(uploads.c.store == refused_by)
    rows = tx.connection.execute(select(uploads.c.id, uploads.c.state).where(*where)).all()
    for row in rows:
        state = UploadState.CANCELLING if row.state == UploadState.CANCELLING else UploadState.WAITING
        change(tx, row.id, state=state, next_at=tx.now)
    return len(rows) + (sum(retry(tx, pool, upload=each.id) for each in followers(tx, pool, upload)) if upload else 0)


def begin_cancel(tx: Transaction, pool: str, upload: str) -> Upload | None:
    """It is not to be sent any more, nor is what follows it. Who sends it now learns of that by `note`. What is being staged,
    or is over, stays as it is. None: there is none."""
    found = find(tx, pool, upload)
    if found is not None and found.state in STAGED:
        if found.state is UploadState.SENDING:
            assert found.entry is not None
            set_state(tx, pool, found.entry, EntryState.DIRTY)
        change(tx, upload, state=UploadState.CANCELLING, next_at=tx.now)
        for follower in followers(tx, pool, upload):
            begin_cancel(tx, pool, follower.id)
    return find(tx, pool, upload)


def drop_copies(tx: Transaction, pool: str, *, owner: str) -> tuple[Entry, ...]:
    """The copies of uploads that are being cancelled and that nobody sends: the caller's to remove. Raises `LeaseLost`."""
    require_lease(tx, pool, owner)
    given_up = (uploads.c.pool == pool, uploads.c.state == UploadState.CANCELLING, uploads.c.entry.is_not(None))
    leaving: list[Entry] = []
    for found in read(tx, *given_up, uploads.c.owner.is_(None)):
        assert found.entry is not None
        copy = set_state(tx, pool, found.entry, EntryState.READY)
        change(tx, found.id, entry=None)
        if not copy.pins:
            leaving += mark(tx, pool, [(copy.id, copy.charge)], owner=owner)
    return tuple(leaving)


def cancelled(tx: Transaction, pool: str, upload: str, *, owner: str) -> None:
    """The store has nothing of it any more."""
    found = find(tx, pool, upload)
    if found is not None and found.owner == owner and found.state is UploadState.CANCELLING and found.entry is None:
        end(tx, found, UploadState.CANCELLED, key=f"{found.key}.cancelled-{found.number}")


def ended(tx: Transaction, pool: str, *, limit: int) -> tuple[Upload, ...]:
    """What is over and was to be announced, in the order in which it ended."""
    over = (uploads.c.pool == pool, uploads.c.announce.is_(True), uploads.c.finished.is_not(None))
    return read(tx, *over, limit=limit, order=uploads.c.finished)


def acknowledge(tx: Transaction, pool: str, upload: str) -> None:
    """That it is over is known where it has to be. Idempotent."""
    tx.connection.execute(
        delete(uploads).where(uploads.c.id == upload, uploads.c.pool == pool, uploads.c.state.in_(OVER))
    )


def forget_ended(tx: Transaction, pool: str, *, age_s: float) -> None:
    """What is over for so long and was not to be announced."""
    old = (uploads.c.announce.is_(False), uploads.c.finished < tx.wall - age_s)
    tx.connection.execute(delete(uploads).where(uploads.c.pool == pool, *old))


def list_uploads(tx: Transaction, pool: str) -> tuple[Upload, ...]:
    """All, the oldest first."""
    return read(tx, uploads.c.pool == pool)


def totals(tx: Transaction, pool: str) -> Totals:
    numbers = select(uploads.c.state, func.count(), func.sum(uploads.c.size), func.min(uploads.c.created))
    rows = tx.connection.execute(numbers.where(uploads.c.pool == pool).group_by(uploads.c.state)).all()
    staged = [row for row in rows if row[0] in STAGED]
    return Totals(
        bytes=sum(int(row[2]) for row in rows if row[0] in UNSTORED),
        count=sum(row[1] for row in staged),
        by_state={UploadState(row[0]): row[1] for row in rows},
        oldest_s=max((tx.wall - row[3] for row in staged), default=0.0),
    )
