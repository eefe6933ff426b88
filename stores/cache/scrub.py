"""Reading entries in full, to find what changed on the disk without anybody having written it.

Those that were proved the longest ago come first, so that a scrub that is interrupted goes on where it was. An entry without a
digest gets one: from then on a change shows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from stores.cache import ledger
from stores.cache.description import Description
from stores.cache.ledger import Entry, is_staged
from stores.cache.pool_base import new_id
from stores.cache.pool_claims import PoolClaims
from stores.contract import MiB
from stores.errors import InvalidReference, NotFound
from stores.transfer.digests import Digester, parse_checksum

CHUNK = 4 * MiB
BATCH = 16
DIGEST = "sha256"
RATE = 64 * MiB
"""Bytes per second that a scrub reads at most, where nobody says otherwise."""


@dataclass(slots=True)
class Scrubbed:
    """What a scrub has seen."""

    entries: int = 0
    bytes: int = 0
    quarantined: list[Entry] = field(default_factory=list)


class Pace:
    """At most `rate` bytes per second on average, from the first on."""

    def __init__(
        self,
        rate: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._begun = clock()
        self._passed = 0

    async def passed(self, count: int) -> None:
        """So many bytes more: waits until that is not too fast."""
        self._passed += count
        ahead_s = self._passed / self._rate - (self._clock() - self._begun)
        if ahead_s > 0:
            await self._sleep(ahead_s)


async def scrub(pool: PoolClaims, *, older_than_s: float = 0.0, pace: Pace | None = None) -> Scrubbed:
    """Prove all entries that were last proved in full longer than `older_than_s` seconds ago; 0: all that are there now.

    What fails is quarantined: the next who wants it fetches it again. Raises `PoolSick`, `LeaseLost`.
    """
    pace = pace or Pace(RATE)
    before = await pool.transact(lambda tx: tx.wall) - older_than_s
    done = Scrubbed()
    seen: set[int] = set()
    while True:
        found = await pool.transact(partial(ledger.unproved, pool=pool.name, before=before, limit=BATCH))
        batch = [entry for entry in found if entry.id not in seen]  # the wall clock may have been set back meanwhile
        if not batch:
            return done
        for entry in batch:
            seen.add(entry.id)
            await _scrub_one(pool, entry, pace, done)


async def _scrub_one(pool: PoolClaims, entry: Entry, pace: Pace, done: Scrubbed) -> None:
    pin = new_id()
    try:
        owner = pool.lease.owner
        with suppress(NotFound):  # it went meanwhile
            await pool.transact(
                partial(ledger.pin, pool=pool.name, entry_id=entry.id, pin=pin, owner=owner, reason="scrub")
            )
            fault = await _fault_of(pool, entry, pace)
            done.entries += 1
            done.bytes += entry.size
            if fault is not None:
                await pool.quarantine(entry, fault)
                done.quarantined.append(entry)
    finally:
        await pool.unpin_id(pin)


def _is_of(made: Description, entry: Entry) -> bool:
    """What was staged had no version before its store gave it one."""
    if (made.store, made.ref, made.size) != (entry.store, entry.ref, entry.size):
        return False
    return made.version == entry.version or (made.version is None and is_staged(made.key))


async def _fault_of(pool: PoolClaims, entry: Entry, pace: Pace) -> str | None:
    """Why an entry is not what was published, by all that is known of it; None: it is, and that is noted."""
    files = pool.access.entries
    fault = await pool.access.touch(lambda: files.prove(entry))
    if fault is not None:
        return fault
    made = await pool.access.touch(lambda: files.describe(entry.file))
    if made is None or made.digest not in (None, entry.digest) or not _is_of(made, entry):
        return "its description is not the one that was published"
    try:
        algorithm = DIGEST if entry.digest is None else parse_checksum(entry.digest).algorithm
    except InvalidReference as error:
        return error.message
    digester = Digester([algorithm])
    position = 0
    while position < entry.size:
        count = await pool.access.touch(
            partial(files.read_past_cache, entry, position, CHUNK, digester.update), size=CHUNK
        )
        if not count:
            return f"it ends after {position} of {entry.size} bytes"
        position += count
        await pace.passed(count)
    digest = f"{{{algorithm}}}{digester.hexdigests()[algorithm]}"
    if entry.digest is not None and parse_checksum(entry.digest) != parse_checksum(digest):
        return f"its content has the digest {digest} and had {entry.digest}"
    await pool.transact(partial(ledger.proved, pool=pool.name, entry_id=entry.id, digest=digest))
    return None
