"""Ledger and directory, compared entry by entry: in the background, since it takes time in proportion to the pool.

A row without its file is struck out. A file without a row is reported and never deleted; its bytes are taken from what the pool
may hold, so that the limit holds on disk all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import structlog
from sqlalchemy import select

from stores.cache import ledger
from stores.cache.claims import Gone
from stores.cache.database import Transaction
from stores.cache.directory import BUCKETS, FILL, FOLDERS, LAYOUT_FILE, LEDGER, OWNERS, QUARANTINE, Seen
from stores.cache.ledger import Entry, WrongState
from stores.cache.ledger.rows import to_entry
from stores.cache.pool_claims import PoolClaims
from stores.cache.schema import EntryState, entries, owners, reservations
from stores.cache.sqlite import SUFFIXES
from stores.errors import NotFound

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Report:
    """What did not agree. Paths are below the pool's directory."""

    strays: dict[str, int] = field(default_factory=dict)  # path and bytes of each file that the ledger does not know
    vanished: list[Entry] = field(default_factory=list)  # entries whose files are gone
    corrected_sums: bool = False


async def reconcile(pool: PoolClaims) -> Report:
    """Compare all of it, folder by folder. Others may use the pool meanwhile."""
    report = Report()
    for folder in ("", OWNERS, FILL, QUARANTINE, *BUCKETS):
        await _compare(pool, folder, report)
        await asyncio.sleep(0)
    report.corrected_sums = await pool.transact(lambda tx: ledger.correct_sums(tx, pool.name))
    pool.counts.stray_files, pool.counts.stray_bytes = len(report.strays), sum(report.strays.values())
    if report.strays:
        some = sorted(report.strays)[:10]
        _log.warning("cache strays", pool=pool.name, files=len(report.strays), bytes=pool.counts.stray_bytes, some=some)
    return report


async def _compare(pool: PoolClaims, folder: str, report: Report) -> None:
    """What was there before the ledger was asked and is there after: what is in both and not in the ledger has no owner."""
    before = await _listing(pool, folder)
    rows, known = await pool.transact(partial(_expected, pool=pool.name, folder=folder))
    unknown = {seen.name for seen in before} - known
    missing = [row for row in rows if row.file not in {seen.name for seen in before}]
    if not unknown and not missing:
        return
    after = {seen.name: seen for seen in await _listing(pool, folder)}
    for name in unknown & after.keys():
        if folder == OWNERS:
            if not await pool.access.touch(partial(pool.access.directory.lives, name)):
                await pool.access.touch(partial(pool.access.directory.bury, name))
        else:
            report.strays[f"{folder}/{name}".lstrip("/")] = after[name].blocks
    for row in missing:
        if row.file not in after and await _strike_out(pool, row):
            report.vanished.append(row)


async def _listing(pool: PoolClaims, folder: str) -> list[Seen]:
    return await pool.access.touch(partial(pool.access.directory.listing, folder))


def _expected(tx: Transaction, pool: str, folder: str) -> tuple[list[Entry], set[str]]:
    """Entries whose files must be in the folder, and all names that may be."""
    run = tx.connection.execute
    fills = run(select(reservations.c.id, reservations.c.key).where(reservations.c.pool == pool)).all()
    if folder == "":
        return [], {name for name in FOLDERS if "/" not in name} | {LAYOUT_FILE, "lost+found"} | {
            LEDGER + suffix for suffix in SUFFIXES
        }
    if folder == OWNERS:
        return [], set(run(select(owners.c.id).where(owners.c.pool == pool)).scalars())
    if folder == FILL:
        return [], {f"{row.id}{suffix}" for row in fills for suffix in (".part", ".json")}
    some = select(entries).where(entries.c.pool == pool)
    if folder == QUARANTINE:
        rows = [to_entry(row) for row in run(some.where(entries.c.state == EntryState.QUARANTINED))]
        return [], set(_names(row.file for row in rows))
    bucket = folder.rpartition("/")[2]
    rows = [to_entry(row) for row in run(some.where(entries.c.file >= bucket, entries.c.file < bucket + "~"))]
    names = [row.file for row in rows] + [ledger.file_of(row.key, row.id) for row in fills if row.key]
    return [row for row in rows if row.state is EntryState.READY], set(_names(names))


def _names(files: Iterable[str]) -> Iterable[str]:
    for file in files:
        yield file
        yield f"{file}.json"


async def _strike_out(pool: PoolClaims, entry: Entry) -> bool:
    """Whether its file is gone indeed. It is not served any more then, and its row goes when nobody holds it."""
    if await pool.access.touch(lambda: pool.access.entries.prove(entry)) is None:
        return False
    await pool.quarantine(entry, "its file is gone")
    with suppress(NotFound, WrongState):
        chosen = await pool.transact(lambda tx: ledger.evict(tx, pool.name, entry.id, owner=pool.lease.owner))
        if isinstance(chosen, Entry):
            await pool.remove([chosen], Gone.VANISHED, remember=False)
    return True
