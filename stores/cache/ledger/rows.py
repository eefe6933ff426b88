"""What the ledger knows of one entry, one fill, one pin; and how it becomes that from a row."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, bindparam, select

from stores.cache.database import Transaction
from stores.cache.errors import LeaseLost
from stores.cache.policy import Queue
from stores.cache.schema import EntryState, entries, owners
from stores.contract import KiB
from stores.errors import NotFound

BLOCK = 4 * KiB
METADATA = 8 * KiB  # the entry's own description, its names in directories, its row
# Bytes of a file for each byte in which its file system keeps where they are: ext4 has 340 extents in a block
# (fs/ext4/ext4_extents.h), so this suffices for pieces of 12 KiB on average.
MAPPED = 1024
OF_STAGED = ".staged"  # how keys of what no store has yet end


def charge_of(size: int) -> int:
    """Bytes on disk that an object of `size` bytes takes at most."""
    blocks = -(-size // BLOCK)
    return (blocks + -(-blocks // MAPPED)) * BLOCK + METADATA


def file_of(key: str, reservation: str) -> str:
    """The name of an entry's file: one for each fill. Two fills of one key never meet under one name."""
    return f"{key}.{reservation}"


def staged_key(store: str, ref: str, token: str) -> str:
    """The name in the cache of what no store has yet: the same write has the same one. Nobody who looks for an object of the
    store finds it by that."""
    return hashlib.sha256("\0".join((store, ref, token)).encode("utf-8", "surrogatepass")).hexdigest() + OF_STAGED


def is_staged(key: str) -> bool:
    return key.endswith(OF_STAGED)


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
    evictor: str | None
    queue: Queue
    turn: int
    hits: int
    pins: int
    digest: str | None
    inode: int | None
    mtime_ns: int | None
    published: float  # seconds since the epoch, like those below
    used_at: float
    proved_at: float

    @property
    def dirty(self) -> bool:
        return self.state in (EntryState.DIRTY, EntryState.UPLOADING)


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
    """Room that was granted. With a key, it is also the claim to fill that key."""

    id: str
    pool: str
    owner: str
    charge: int
    key: str | None
    arrived: int
    parts: str
    since: float


def is_held(state: str, pins: int) -> bool:
    """Whether an entry may not be chosen to go (its age apart): its charge is then part of the pool's `held`."""
    return pins > 0 or state in (EntryState.DIRTY, EntryState.UPLOADING, EntryState.EVICTING)


def to_reservation(row: Row[Any]) -> Reservation:
    return Reservation(row.id, row.pool, row.owner, row.charge, row.key, row.arrived, row.parts, row.since)


def to_entry(row: Row[Any]) -> Entry:
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
        evictor=row.evictor,
        queue=Queue(row.queue),
        turn=row.turn,
        hits=row.hits,
        pins=row.pins,
        digest=row.digest,
        inode=row.inode,
        mtime_ns=row.mtime_ns,
        published=row.published,
        used_at=row.used_at,
        proved_at=row.proved_at,
    )


_BY_KEY = select(entries).where(entries.c.pool == bindparam("pool"), entries.c.key == bindparam("key"))
_BY_ID = select(entries).where(entries.c.id == bindparam("id"), entries.c.pool == bindparam("pool"))
_LIVES = select(owners.c.id).where(
    owners.c.id == bindparam("owner"), owners.c.pool == bindparam("pool"), owners.c.expires > bindparam("now")
)


def entry(tx: Transaction, pool: str, key: str) -> Entry | None:
    """What is known of `key`, without a claim on it."""
    row = tx.connection.execute(_BY_KEY, {"pool": pool, "key": key}).one_or_none()
    return None if row is None else to_entry(row)


def entry_by_id(tx: Transaction, pool: str, entry_id: int) -> Entry | None:
    row = tx.connection.execute(_BY_ID, {"pool": pool, "id": entry_id}).one_or_none()
    return None if row is None else to_entry(row)


def existing(tx: Transaction, pool: str, entry_id: int) -> Entry:
    """`NotFound` when the entry has gone."""
    found = entry_by_id(tx, pool, entry_id)
    if found is None:
        raise NotFound(f"the cache pool {pool} has no entry {entry_id} any more", pool=pool, entry=entry_id)
    return found


def lives(tx: Transaction, pool: str, owner: str | None) -> bool:
    """Whether that owner's lease runs."""
    if owner is None:
        return False
    return tx.connection.execute(_LIVES, {"owner": owner, "pool": pool, "now": tx.now}).one_or_none() is not None


def require_lease(tx: Transaction, pool: str, owner: str) -> None:
    """Nobody makes a claim that others may take away at once."""
    if not lives(tx, pool, owner):
        raise LeaseLost(f"the lease of {owner} on the cache pool {pool} has run out", pool=pool, owner=owner)
