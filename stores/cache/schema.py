"""The ledger's tables, and how an older database becomes a newer one. One schema for SQLite and PostgreSQL.

A pool's row holds the sums over its entries and reservations, so that a bound is checked by reading one row; every
transaction that changes a part changes the sum with it (`stores.cache.ledger.check_sums` compares them).

Every row belongs to one pool, and transactions of one pool come one after the other: no two of them meet on a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    inspect,
    text,
)

from stores.errors import Retry, StoreError

metadata = MetaData()
_Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up by itself only in a column of type INTEGER


class EntryState(StrEnum):
    """Of what is whole on disk. What is still being filled is a reservation with a key."""

    READY = "ready"
    DIRTY = "dirty"  # holds what no store has yet
    UPLOADING = "uploading"
    EVICTING = "evicting"  # chosen to go; its file may be gone already
    QUARANTINED = "quarantined"  # did not prove itself; never served again


class UploadState(StrEnum):
    """What an upload is at."""

    QUEUED = "queued"  # waits for room; nothing of it is on disk
    STAGING = "staging"  # its file is being filled
    WAITING = "waiting"  # for its turn, or for its next attempt
    SENDING = "sending"
    REFUSED = "refused"  # the store refuses our credentials: goes on with new ones, or when an operator says so
    FAILED = "failed"  # trying again would not help: an operator retries or cancels it
    CANCELLING = "cancelling"  # what the store has of it is still to be removed
    STORED = "stored"  # the store confirmed it
    CANCELLED = "cancelled"


versions = Table("ledger_version", metadata, Column("version", Integer, nullable=False))

pools = Table(
    "pools",
    metadata,
    Column("id", String, primary_key=True),
    Column("limit_bytes", BigInteger, nullable=False),
    Column("used", BigInteger, nullable=False),  # charges of all entries
    Column("reserved", BigInteger, nullable=False),  # charges of all reservations
    Column("held", BigInteger, nullable=False),  # part of `used` that may not be evicted now (`ledger.is_held`)
    Column("small", BigInteger, nullable=False),  # part of `used` that was used once only
    Column("entries", BigInteger, nullable=False),  # how many
    Column("ghosts", BigInteger, nullable=False),  # charges of all ghosts
    Column("next_turn", BigInteger, nullable=False),  # counts up with every use: the order of recency
    # The running comparison with plain LRU: see `stores.cache.policy.Comparison`.
    Column("horizon", BigInteger, nullable=False),
    Column("recent", BigInteger, nullable=False),
    Column("bias", Float, nullable=False),
    Column("credit", Float, nullable=False),
)

owners = Table(
    "owners",
    metadata,
    Column("id", String, primary_key=True),  # one per pool and start of a process
    Column("pool", String, ForeignKey("pools.id"), nullable=False),
    Column("host", String, nullable=False),
    Column("boot", String, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("expires", Float, nullable=False),  # clock of leases
)
Index("owners_by_pool", owners.c.pool, owners.c.expires)

entries = Table(
    "entries",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("pool", String, ForeignKey("pools.id"), nullable=False),
    Column("key", String, nullable=False),
    Column("file", String, nullable=False),  # its name: unique for ever, so that removing one can never hit a later one
    Column("store", String, nullable=False),
    Column("ref", String, nullable=False),
    Column("version", String, nullable=True),
    Column("size", BigInteger, nullable=False),
    Column("charge", BigInteger, nullable=False),
    Column("state", String, nullable=False),
    Column("evictor", String, nullable=True),  # the owner who removes it, while it is evicting
    Column("queue", String, nullable=False),
    Column("turn", BigInteger, nullable=False),  # of its last use
    Column("hits", BigInteger, nullable=False),
    Column("pins", Integer, nullable=False),
    Column("digest", String, nullable=True),
    Column("inode", BigInteger, nullable=True),
    Column("mtime_ns", BigInteger, nullable=True),
    Column("published", Float, nullable=False),  # wall clock
    Column("used_at", Float, nullable=False),  # wall clock
    Column("proved_at", Float, nullable=False),  # wall clock; when its digest was last checked in full
)
Index("entries_by_key", entries.c.pool, entries.c.key, unique=True)
Index("entries_by_recency", entries.c.pool, entries.c.turn)
Index("entries_by_queue", entries.c.pool, entries.c.state, entries.c.pins, entries.c.queue, entries.c.turn)
Index("entries_by_use", entries.c.pool, entries.c.state, entries.c.pins, entries.c.used_at)
Index("entries_by_age", entries.c.pool, entries.c.state, entries.c.pins, entries.c.published)
Index("entries_by_proof", entries.c.pool, entries.c.state, entries.c.proved_at, entries.c.id)
_by_file = Index("entries_by_file", entries.c.pool, entries.c.file)

pins = Table(
    "pins",
    metadata,
    Column("pool", String, ForeignKey("pools.id"), primary_key=True),
    Column("id", String, primary_key=True),  # chosen by who pins
    Column("entry", _Id, ForeignKey("entries.id"), nullable=False),
    Column("owner", String, nullable=True),  # None: until somebody unpins it, over restarts
    Column("reason", String, nullable=False),
    Column("since", Float, nullable=False),  # wall clock
)
Index("pins_by_entry", pins.c.entry, pins.c.since)
Index("pins_by_owner", pins.c.pool, pins.c.owner)
Index("pins_by_age", pins.c.pool, pins.c.since)

reservations = Table(
    "reservations",
    metadata,
    Column("id", String, primary_key=True),  # chosen by who asks
    Column("pool", String, ForeignKey("pools.id"), nullable=False),
    Column("owner", String, nullable=False),
    Column("charge", BigInteger, nullable=False),
    Column("key", String, nullable=True),  # what is being filled; one filler for each key
    Column("arrived", BigInteger, nullable=False),  # bytes so far, for those who wait for them
    Column("parts", String, nullable=False),  # which parts are whole on disk, for whoever takes over
    Column("since", Float, nullable=False),  # wall clock
)
Index("reservations_by_key", reservations.c.pool, reservations.c.key, unique=True)
Index("reservations_by_owner", reservations.c.pool, reservations.c.owner)
Index("reservations_by_age", reservations.c.pool, reservations.c.since)

waiters = Table(
    "waiters",
    metadata,
    Column("place", _Id, primary_key=True, autoincrement=True),  # FIFO
    Column("pool", String, ForeignKey("pools.id"), nullable=False),
    Column("id", String, nullable=False, unique=True),  # chosen by who waits
    Column("owner", String, nullable=False),
    Column("charge", BigInteger, nullable=False),
    Column("deadline", Float, nullable=False),  # clock of leases
    sqlite_autoincrement=True,  # a place is never given twice
)
Index("waiters_by_place", waiters.c.pool, waiters.c.place)
Index("waiters_by_owner", waiters.c.pool, waiters.c.owner)

ghosts = Table(  # keys that went by the policy's choice, to judge that choice by
    "ghosts",
    metadata,
    Column("pool", String, ForeignKey("pools.id"), primary_key=True),
    Column("key", String, primary_key=True),
    Column("queue", String, nullable=False),
    Column("turn", BigInteger, nullable=False),
    Column("charge", BigInteger, nullable=False),
)
Index("ghosts_by_recency", ghosts.c.pool, ghosts.c.turn)

uploads = Table(  # what has to get to a store; those that have ended, until that was acknowledged
    "uploads",
    metadata,
    Column("number", _Id, primary_key=True, autoincrement=True),  # the order of age, whatever the clocks did
    Column("id", String, nullable=False, unique=True),  # chosen by who stages
    Column("pool", String, ForeignKey("pools.id"), nullable=False),
    Column("key", String, nullable=False),  # of store, ref and token: the same write again finds it
    Column("entry", _Id, ForeignKey("entries.id"), nullable=True),  # what is to be uploaded
    Column("owner", String, nullable=True),  # who stages, sends or removes it now
    Column("state", String, nullable=False),
    Column("store", String, nullable=False),
    Column("target", String, nullable=False),  # the store's TO as JSON, without its secrets
    Column("ref", String, nullable=False),
    Column("token", String, nullable=False),
    Column("replaces", Boolean, nullable=False),
    Column("announce", Boolean, nullable=False),
    Column("size", BigInteger, nullable=False),  # while it is staged: what was reserved
    Column("created", Float, nullable=False),  # wall clock
    Column("attempts", BigInteger, nullable=False),
    Column("next_at", Float, nullable=False),  # clock of leases
    Column("error", String, nullable=True),  # of the latest attempt, as JSON
    Column("sent", BigInteger, nullable=False),
    Column("resumed", BigInteger, nullable=False),  # of `sent`: what was there before the latest attempt
    Column("version", String, nullable=True),  # what the store said of what it has
    Column("finished", Float, nullable=True),  # wall clock
    Column("follows", String, nullable=True),  # id of the upload before whose end this one does not begin
    sqlite_autoincrement=True,  # a number is never given twice
)
Index("uploads_by_key", uploads.c.pool, uploads.c.key, unique=True)
Index("uploads_by_state", uploads.c.pool, uploads.c.state, uploads.c.store, uploads.c.number)
Index("uploads_by_time", uploads.c.pool, uploads.c.state, uploads.c.next_at)
Index("uploads_by_owner", uploads.c.pool, uploads.c.owner)
Index("uploads_by_end", uploads.c.pool, uploads.c.announce, uploads.c.finished)
Index("uploads_by_entry", uploads.c.entry)
_by_followed = Index("uploads_by_followed", uploads.c.follows)


def _create(connection: Connection) -> None:
    metadata.create_all(connection)


def _add_uploads(connection: Connection) -> None:
    """Where `_create` has just made the tables of this release, they are there."""
    uploads.create(connection, checkfirst=True)
    _by_file.create(connection, checkfirst=True)


def _add_followers(connection: Connection) -> None:
    """As `_add_uploads`."""
    if "follows" not in {column["name"] for column in inspect(connection).get_columns(uploads.name)}:
        connection.execute(text("ALTER TABLE uploads ADD COLUMN follows VARCHAR"))
    _by_followed.create(connection, checkfirst=True)


Migration = Callable[[Connection], None]

MIGRATIONS: tuple[Migration, ...] = (_create, _add_uploads, _add_followers)
"""Step n takes a database of version n to n + 1. Never edited once released; only appended to."""


class LedgerTooNew(StoreError):
    """The database was made by a later release, and was left as it is."""

    retry = Retry.OPERATOR


def migrate(connection: Connection, steps: Sequence[Migration] = MIGRATIONS) -> None:
    """Bring the database to this release's version, in the caller's transaction, which others have to be kept out of."""
    found = 0
    if inspect(connection).has_table(versions.name):
        found = connection.execute(versions.select()).scalar_one()
    if found == len(steps):
        return
    if found > len(steps):
        raise LedgerTooNew(
            f"the cache ledger has version {found} and this release knows {len(steps)}: install the newer release again",
            found=found,
            known=len(steps),
        )
    for step in steps[found:]:
        step(connection)
    if found == 0:
        connection.execute(versions.insert().values(version=len(steps)))
    else:
        connection.execute(versions.update().values(version=len(steps)))
