"""From the wish to stage something to its upload."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import delete, insert, select

from stores.cache.database import Transaction
from stores.cache.errors import LeaseLost
from stores.cache.ledger.content import WrongState, publish, unpin
from stores.cache.ledger.rows import Entry, Facts, existing, require_lease
from stores.cache.ledger.uploads.rows import BLOCKED, Upload, Wanted, change, find, find_by_key, living, unstored_bytes
from stores.cache.schema import UploadState, uploads


@dataclass(frozen=True, slots=True)
class Admission:
    """To a wish: whether it may be staged now; `twin` is the same write, staged before by whomever. `unstored`: bytes of all
    that no store has yet."""

    admitted: bool
    unstored: int
    twin: Upload | None = None


def admit(tx: Transaction, pool: str, wanted: Wanted, *, owner: str, limit: int) -> Admission:
    """Let one be staged if all that no store has then takes no more than `limit` bytes, and nobody who lives came first. If
    not, it has its place among those who wait, for as long as `owner` lives and until `withdraw`. Idempotent by the id; ask
    again. Raises `LeaseLost`."""
    require_lease(tx, pool, owner)
    unstored = unstored_bytes(tx, pool)
    twin = find_by_key(tx, pool, wanted.key)
    if twin is not None and twin.id != wanted.id:
        return Admission(False, unstored, twin)
    if twin is None:
        values = {name: getattr(wanted, name) for name in Wanted.__dataclass_fields__}
        values |= {"pool": pool, "owner": owner, "state": UploadState.QUEUED, "created": tx.wall, "next_at": tx.now}
        tx.connection.execute(insert(uploads).values(values | {"attempts": 0, "sent": 0, "resumed": 0}))
        twin = find_by_key(tx, pool, wanted.key)
    assert twin is not None
    if twin.state is not UploadState.QUEUED:
        return Admission(True, unstored)
    earlier = select(uploads.c.id).where(
        uploads.c.pool == pool,
        uploads.c.state == UploadState.QUEUED,
        uploads.c.number < twin.number,
        uploads.c.owner.in_(living(tx, pool)),
    )
    if unstored + wanted.size > limit or tx.connection.execute(earlier.limit(1)).first() is not None:
        return Admission(False, unstored)
    change(tx, wanted.id, state=UploadState.STAGING)
    return Admission(True, unstored + wanted.size)


def enlarge(tx: Transaction, pool: str, upload: str, size: int, *, limit: int) -> Admission:
    """So many bytes instead, for one that is being staged. Nobody comes first: what is half written waits for nobody. Raises
    `LeaseLost` when it was given up for dead."""
    found = _staging(tx, pool, upload)
    unstored = unstored_bytes(tx, pool)
    if unstored - found.size + size > limit:
        return Admission(False, unstored)
    change(tx, upload, size=size)
    return Admission(True, unstored - found.size + size)


def stage(tx: Transaction, reservation: str, facts: Facts, *, pool: str, upload: str, owner: str) -> Entry:
    """The last step of a staging, after the file has its name: a dirty entry, and its upload. Idempotent. Raises
    `LeaseLost`; `WrongState` when what it follows is cancelled."""
    found = find(tx, pool, upload)
    if found is not None and found.entry is not None:
        return existing(tx, pool, found.entry)
    followed = _staging(tx, pool, upload).follows
    before = None if followed is None else find(tx, pool, followed)
    if before is not None and before.state in (UploadState.CANCELLING, UploadState.CANCELLED):
        raise WrongState(f"{before.ref}, which goes first, was cancelled", state=before.state, upload=before.id)
    blocked = before is not None and before.state in BLOCKED
    added = publish(tx, reservation, facts, owner=owner, pin=upload, reason="staging", dirty=True)
    unpin(tx, pool, upload)
    change(
        tx,
        upload,
        state=before.state if before is not None and blocked else UploadState.WAITING,
        error=json.dumps(before.error) if before is not None and blocked else None,
        entry=added.id,
        size=facts.size,
        owner=None,
        created=tx.wall,
        next_at=tx.now,
    )
    return added


def withdraw(tx: Transaction, pool: str, upload: str) -> None:
    """It is not staged after all. Idempotent; what was staged already stays."""
    given_up = uploads.c.state.in_([UploadState.QUEUED, UploadState.STAGING])
    tx.connection.execute(delete(uploads).where(uploads.c.id == upload, uploads.c.pool == pool, given_up))


def _staging(tx: Transaction, pool: str, upload: str) -> Upload:
    found = find(tx, pool, upload)
    if found is None or found.state is not UploadState.STAGING:
        raise LeaseLost(f"the staging of upload {upload} was given up for dead", pool=pool, upload=upload)
    return found
