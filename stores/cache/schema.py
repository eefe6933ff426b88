"""The ledger's tables, and how an older database becomes a newer one. One schema for SQLite and PostgreSQL.

A pool's row holds the sums over its entries and reservations, so that a bound is checked by reading one row; every
transaction that changes a part changes the sum with it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from sqlalchemy import (
    BigInteger,
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
)

metadata = MetaData()
_Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up by itself only in a column of type INTEGER


class EntryState(StrEnum):
    """Of what is whole on disk. What is still being filled is a reservation with a key."""

    READY = "ready"
    DIRTY = "dirty"  # holds what no store has yet
    UPLOADING = "uploading"
    EVICTING = "evicting"  # chosen to go; its file may be gone already
    QUARANTINED = "quarantined"  # did not prove itself; never served again


versions = Table("ledger_version", metadata, Column("version", Integer, nullable=False))

pools = Table(
    "pools",
    metadata,
    Column("id", String, primary_key=True),
    Column("limit_bytes", BigInteger, nullable=False),
    Column("used", BigInteger, nullable=False),  # charges of all entries that are on disk
    Column("reserved", BigInteger, nullable=False),
    Column(
        "held", BigInteger, nullable=False
    ),  # part of `used` that may not be evicted: pinned, dirty, evicting, quarantined
    Column("small", BigInteger, nullable=False),  # part of `used` in the probationary queue
    Column("next_turn", BigInteger, nullable=False),  # counts up: the order of the queues
)

owners = Table(
    "owners",
    metadata,
    Column("id", String, primary_key=True),  # one per start of a process
    Column("host", String, nullable=False),
    Column("boot", String, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("expires", Float, nullable=False),
)

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
    Column("queue", String, nullable=False),
    Column("turn", BigInteger, nullable=False),
    Column("frequency", Integer, nullable=False),
    Column("pins", Integer, nullable=False),
    Column("digest", String, nullable=True),
    Column("inode", BigInteger, nullable=True),
    Column("mtime_ns", BigInteger, nullable=True),
    Column("published", Float, nullable=False),  # wall clock
    Column("used_at", Float, nullable=False),  # wall clock
)
Index("entries_by_key", entries.c.pool, entries.c.key, unique=True)
Index("entries_by_turn", entries.c.pool, entries.c.state, entries.c.queue, entries.c.turn)
Index("entries_by_use", entries.c.pool, entries.c.state, entries.c.used_at)

pins = Table(
    "pins",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("entry", _Id, ForeignKey("entries.id"), nullable=False),
    Column("owner", String, nullable=True),  # None: until somebody unpins it, over restarts
    Column("reason", String, nullable=False),
    Column("since", Float, nullable=False),  # wall clock
)
Index("pins_by_entry", pins.c.entry)
Index("pins_by_owner", pins.c.owner)

reservations = Table(
    "reservations",
    metadata,
    Column("id", String, primary_key=True),
    Column("pool", String, ForeignKey("pools.id"), nullable=False),
    Column("owner", String, nullable=False),
    Column("charge", BigInteger, nullable=False),
    Column("key", String, nullable=True),  # what is being filled; one filler for each key
    Column("arrived", BigInteger, nullable=False),  # bytes so far, for those who wait for them
    Column("parts", String, nullable=False),  # which parts are whole on disk, for whoever takes over
    Column("since", Float, nullable=False),  # wall clock
)
Index("reservations_by_key", reservations.c.pool, reservations.c.key, unique=True)
Index("reservations_by_owner", reservations.c.owner)

waiters = Table(
    "waiters",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),  # FIFO
    Column("pool", String, ForeignKey("pools.id"), nullable=False),
    Column("owner", String, nullable=False),
    Column("charge", BigInteger, nullable=False),
    Column("deadline", Float, nullable=False),
)
Index("waiters_by_pool", waiters.c.pool, waiters.c.id)

ghosts = Table(
    "ghosts",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),  # oldest first
    Column("pool", String, ForeignKey("pools.id"), nullable=False),
    Column("key", String, nullable=False),
)
Index("ghosts_by_key", ghosts.c.pool, ghosts.c.key, unique=True)


def _create(connection: Connection) -> None:
    metadata.create_all(connection)


MIGRATIONS: tuple[Callable[[Connection], None], ...] = (_create,)
"""Step n takes a database of version n to n + 1. Never edited once released; only appended to."""


class LedgerTooNew(Exception):
    """The database was made by a later release."""


def migrate(connection: Connection) -> None:
    """Bring the database to this release's version, in the caller's transaction."""
    found = 0
    if inspect(connection).has_table(versions.name):
        found = connection.execute(versions.select()).scalar_one()
    if found > len(MIGRATIONS):
        raise LedgerTooNew(
            f"the ledger has version {found}, this release knows {len(MIGRATIONS)}: install the newer release"
        )
    for step in MIGRATIONS[found:]:
        step(connection)
    connection.execute(versions.delete())
    connection.execute(versions.insert().values(version=len(MIGRATIONS)))
