"""One upload as the ledger knows it, and how its row is read and changed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, func, select, update

from stores.cache.database import Transaction
from stores.cache.schema import UploadState, owners, uploads

STAGED = (UploadState.WAITING, UploadState.SENDING, UploadState.REFUSED, UploadState.FAILED)
"""Safe on this host, and in no store yet."""

UNSTORED = (UploadState.STAGING, *STAGED)
"""What takes room that cannot be had back before a store has it."""

WAIT = (UploadState.WAITING, UploadState.CANCELLING)
"""Something is to be done by itself, now or later."""

BLOCKED = (UploadState.REFUSED, UploadState.FAILED)
"""Somebody has to do something first."""

OVER = (UploadState.STORED, UploadState.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What somebody wants to stage: see the table's columns."""

    id: str
    key: str
    store: str
    target: str
    ref: str
    token: str
    replaces: bool
    announce: bool
    size: int
    follows: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload(Wanted):
    """One upload as it is now. Free of secrets."""

    number: int
    pool: str
    entry: int | None
    owner: str | None
    state: UploadState
    created: float  # seconds since the epoch
    age_s: float  # since it was staged
    attempts: int
    next_attempt_s: float | None  # in so many seconds at the earliest, of one that waits
    error: dict[str, Any] | None  # of the latest attempt: kind, message, details
    sent: int  # confirmed by the store
    resumed: int  # of these, what was there before the latest attempt
    version: str | None  # what the store said of what it has
    finished: float | None  # seconds since the epoch


def find(tx: Transaction, pool: str, upload: str) -> Upload | None:
    found = read(tx, uploads.c.id == upload, uploads.c.pool == pool)
    return found[0] if found else None


def find_by_key(tx: Transaction, pool: str, key: str) -> Upload | None:
    found = read(tx, uploads.c.pool == pool, uploads.c.key == key)
    return found[0] if found else None


def get(tx: Transaction, pool: str, upload: str) -> Upload:
    """One that is known to be there."""
    (found,) = read(tx, uploads.c.id == upload, uploads.c.pool == pool)
    return found


def unstored_bytes(tx: Transaction, pool: str) -> int:
    """Of what is staged or being staged."""
    total = select(func.coalesce(func.sum(uploads.c.size), 0))
    return int(tx.connection.execute(total.where(uploads.c.pool == pool, uploads.c.state.in_(UNSTORED))).scalar_one())


def read(
    tx: Transaction, *where: ColumnElement[bool], limit: int | None = None, order: ColumnElement[Any] | None = None
) -> tuple[Upload, ...]:
    """In that order, or by age."""
    by = [uploads.c.number] if order is None else [order, uploads.c.number]
    rows = tx.connection.execute(select(uploads).where(*where).order_by(*by).limit(limit))
    return tuple(_to_upload(tx, row) for row in rows)


def _to_upload(tx: Transaction, row: Row[Any]) -> Upload:
    values = {name: getattr(row, name) for name in row._fields if name != "next_at"}
    return Upload(
        **values
        | {
            "state": UploadState(row.state),
            "error": None if row.error is None else json.loads(row.error),
            "age_s": max(0.0, tx.wall - row.created),
            "next_attempt_s": max(0.0, row.next_at - tx.now) if row.state in WAIT else None,
        }
    )


def followers(tx: Transaction, pool: str, upload: str) -> tuple[Upload, ...]:
    """Those that are staged and do not begin before that one is stored."""
    return read(tx, uploads.c.pool == pool, uploads.c.follows == upload, uploads.c.state.in_(STAGED))


def living(tx: Transaction, pool: str) -> Any:
    return select(owners.c.id).where(owners.c.pool == pool, owners.c.expires > tx.now)


def end(tx: Transaction, found: Upload, state: UploadState, **values: Any) -> None:
    change(tx, found.id, state=state, entry=None, owner=None, error=None, finished=tx.wall, **values)


def change(tx: Transaction, upload: str, **values: Any) -> None:
    tx.connection.execute(update(uploads).where(uploads.c.id == upload).values(values))
