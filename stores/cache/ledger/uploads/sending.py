"""From an upload that waits to one that its store has."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from itertools import product
from typing import Any

from sqlalchemy import and_, exists, func, or_, select

from stores.cache.database import Transaction
from stores.cache.errors import LeaseLost
from stores.cache.ledger.content import confirm, set_state
from stores.cache.ledger.eviction import mark
from stores.cache.ledger.rows import Entry, require_lease
from stores.cache.ledger.uploads.rows import (
    BLOCKED,
    OVER,
    WAIT,
    Upload,
    change,
    end,
    find,
    followers,
    get,
    living,
    read,
)
from stores.cache.ledger.uploads.staging import withdraw
from stores.cache.schema import EntryState, UploadState, uploads

_followed = uploads.alias()


@dataclass(frozen=True, slots=True)
class Finished:
    """What became of an upload that its store has confirmed, and the copy of it that is the caller's to remove, if any."""

    upload: Upload
    leaving: Entry | None


def reclaim(tx: Transaction, pool: str, *, owner: str, at_work: Collection[str]) -> None:
    """What owners who are gone have left, and what `owner` has lost sight of (all but `at_work`): what was sent waits again,
    what was staged never was."""
    lost = and_(
        uploads.c.pool == pool,
        uploads.c.owner.is_not(None),
        or_(
            uploads.c.owner.not_in(living(tx, pool)),
            and_(uploads.c.owner == owner, uploads.c.id.not_in(list(at_work))),
        ),
    )
    for row in tx.connection.execute(select(uploads).where(lost)).all():
        match UploadState(row.state):
            case UploadState.QUEUED | UploadState.STAGING:
                withdraw(tx, pool, row.id)
            case UploadState.SENDING:
                set_state(tx, pool, row.entry, EntryState.DIRTY)
                change(tx, row.id, state=UploadState.WAITING, owner=None, next_at=tx.now)
            case _:
                change(tx, row.id, owner=None, next_at=tx.now)


def stores_waiting(tx: Transaction, pool: str) -> set[str]:
    """Ids of stores for which there is something to do, now or later."""
    found = select(uploads.c.store).where(uploads.c.pool == pool, uploads.c.state.not_in(OVER))
    return set(tx.connection.execute(found.group_by(uploads.c.state, uploads.c.store)).scalars())


def due(
    tx: Transaction, pool: str, store: str, *, horizon_s: float, large: int, some: int, without: Collection[str] = ()
) -> tuple[Upload, ...]:
    """What may be sent to that store, or removed from it, now: up to `some` of less than `large` bytes, and as many others, in
    the order of age. One that follows another only when that one is stored.

    One that is to wait for longer than `horizon_s`, longer than anybody ever waits, dates from another clock: the host was
    booted since, or the server's clock was set back. It is due.
    """
    where = (
        uploads.c.pool == pool,
        uploads.c.store == store,
        uploads.c.owner.is_(None),
        or_(uploads.c.next_at <= tx.now, uploads.c.next_at > tx.now + horizon_s),
        uploads.c.id.not_in(list(without)),
        or_(
            uploads.c.state == UploadState.CANCELLING,
            ~exists().where(_followed.c.id == uploads.c.follows, _followed.c.state != UploadState.STORED),
        ),
    )
    found: list[Upload] = []
    for state, lane in product(WAIT, (uploads.c.size < large, uploads.c.size >= large)):
        found += read(tx, *where, uploads.c.state == state, lane, limit=some)
    return tuple(sorted(found, key=lambda upload: upload.number))


def next_due_s(tx: Transaction, pool: str) -> float | None:
    """Seconds until the next of those that wait is due; None where none waits for its time."""
    soonest = select(func.min(uploads.c.next_at)).where(
        uploads.c.pool == pool,
        uploads.c.state.in_(WAIT),
        uploads.c.next_at > tx.now,
    )
    at = tx.connection.execute(soonest).scalar_one()
    return None if at is None else float(at) - tx.now


def claim(tx: Transaction, pool: str, upload: str, *, owner: str) -> Upload | None:
    """It is `owner`'s to send, or to remove from its store where it is being cancelled and its copy is gone. None: it is not to
    be had. Raises `LeaseLost`."""
    require_lease(tx, pool, owner)
    found = find(tx, pool, upload)
    if found is None or found.owner not in (None, owner):
        return None
    attempt = {"owner": owner, "attempts": found.attempts + 1}
    if found.state is UploadState.CANCELLING and found.entry is None:
        change(tx, upload, **attempt)
    elif found.state is UploadState.WAITING:
        assert found.entry is not None
        set_state(tx, pool, found.entry, EntryState.UPLOADING)
        change(tx, upload, state=UploadState.SENDING, sent=0, resumed=0, **attempt)
    else:
        return None
    return find(tx, pool, upload)


def note(tx: Transaction, pool: str, upload: str, *, owner: str, sent: int, resumed: int) -> bool:
    """How far an attempt is. Whether to go on: it is `owner`'s still, and nobody has cancelled it."""
    found = find(tx, pool, upload)
    if found is None or found.owner != owner:
        return False
    change(tx, upload, sent=sent, resumed=resumed)
    return found.state is UploadState.SENDING


def put_back(
    tx: Transaction, pool: str, upload: str, *, owner: str, state: UploadState, after_s: float, error: dict[str, Any]
) -> None:
    """An attempt has failed: to be tried again after so many seconds (`waiting`), or when somebody has done something about it;
    then the same is true of those that follow it. One that is being cancelled is tried again. Nothing happens to one that is
    not `owner`'s any more."""
    found = find(tx, pool, upload)
    if found is None or found.owner != owner:
        return
    if found.state is UploadState.SENDING:
        assert found.entry is not None
        set_state(tx, pool, found.entry, EntryState.DIRTY)
    else:
        state = found.state
    told = json.dumps(error, default=str)
    change(tx, upload, state=state, owner=None, next_at=tx.now + after_s, error=told)
    if state in BLOCKED:
        for follower in followers(tx, pool, upload):
            change(tx, follower.id, state=state, error=told)


def finish(tx: Transaction, pool: str, upload: str, *, owner: str, key: str | None, version: str | None) -> Finished:
    """The store has confirmed it. Its entry is an ordinary one under `key` from now on; where that is taken, or there is none,
    it goes. Raises `LeaseLost` when the upload is not `owner`'s any more: whoever has it now will learn the same."""
    require_lease(tx, pool, owner)
    found = find(tx, pool, upload)
    if found is None or found.owner != owner or found.entry is None:
        raise LeaseLost(f"the upload {upload} was taken over by somebody", pool=pool, upload=upload)
    copy = confirm(tx, pool, found.entry, key=key, version=version)
    leaving = mark(tx, pool, [(copy.id, copy.charge)], owner=owner) if copy.key != key and not copy.pins else ()
    end(tx, found, UploadState.STORED, version=version)
    return Finished(get(tx, pool, upload), leaving[0] if leaving else None)
