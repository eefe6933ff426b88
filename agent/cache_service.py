"""What operators see of the cache and do with it: for the API, the command line and the commands that look after it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

from agent import commands
from agent.cache_models import CopyShown, EntriesPage, EntryShown, Evicted, Explained, FillShown, PinShown, PoolShown
from agent.failures import EntryHeld
from stores.contract import Progress
from stores.errors import NotFound

if TYPE_CHECKING:  # what the cache stands on is only imported where there is one
    from stores.cache.cache import Cache
    from stores.cache.ledger import Shown
    from stores.cache.pool import Pool

PAGE = 1000
OPERATOR_PIN = "operator"
NUMBERS = ("limit", "used", "reserved", "pinned", "dirty", "quarantined", "entries", "fills", "waiting", "bias")
"""Those that a pool shows as its ledger has them."""


class CacheService:
    """Over the process's cache, or over none: then every question about a pool is `NotFound`.

    All methods raise `PoolSick` while the pool in question is sick, but for `pools`.
    """

    def __init__(self, cache: Cache | None, *, clock: Callable[[], float] = time.time) -> None:
        self._cache = cache
        self._clock = clock

    async def pools(self) -> list[PoolShown]:
        """Every pool with its numbers; a sick one with what ails it."""
        return [await self._pool_shown(pool) for pool in self._pools(None)]

    async def entries(self, pool: str, *, after: str = "", limit: int = 100) -> EntriesPage:
        """A page, in the order of keys."""
        from stores.cache.ledger import list_entries

        found = self._one(pool)
        rows = await found.transact(partial(list_entries, pool=pool, after=after, limit=limit))
        shown = [_entry_shown(pool, row) for row in rows]
        return EntriesPage(entries=shown, next=shown[-1].key if len(shown) == limit else None)

    async def show(self, key: str) -> list[EntryShown]:
        """The entry in every pool that has it, with its pins. `NotFound`."""
        found = [_entry_shown(pool.name, shown) for pool, shown in await self._holding(key)]
        if not found:
            raise NotFound(f"no pool of the cache has an entry {key}", key=key)
        return found

    async def explain(self, wanted: str) -> Explained:
        """Why an object is in the cache, and why it may not go: by its key, the beginning of its key, or its path in its store.
        Looks through all entries where it has to, in small transactions."""
        copies = []
        for pool in self._pools(None):
            async with aclosing(self._matching(pool, wanted)) as matching:
                copies += [self._copy_shown(pool, shown) async for shown in matching]
        under_way = self._cache.under_way() if self._cache is not None else []
        fills = [
            FillShown(key=flight.key, stage=flight.stage.value, arrived=flight.arrived.total)
            for flight in under_way
            if wanted and flight.key.startswith(wanted)
        ]
        return Explained(object=wanted, copies=copies, arriving=fills)

    async def pin(self, key: str, reason: str) -> list[EntryShown]:
        """Keep it until `unpin`, over restarts. Idempotent. `NotFound`."""
        from stores.cache import ledger

        for pool, shown in await self._required(key):
            work = partial(
                ledger.pin,
                pool=pool.name,
                entry_id=shown.entry.id,
                pin=_operator_pin(key),
                owner=None,
                reason=f"{OPERATOR_PIN}: {reason}" if reason else OPERATOR_PIN,
            )
            await pool.transact(work)
        return await self.show(key)

    async def unpin(self, key: str) -> list[EntryShown]:
        """Take back what `pin` did, and nothing else. Idempotent. `NotFound`."""
        from stores.cache import ledger

        for pool, _ in await self._required(key):
            await pool.transact(partial(ledger.unpin, pool=pool.name, pin=_operator_pin(key)))
        return await self.show(key)

    async def evict(self, key: str) -> Evicted:
        """Let it go from every pool that has it. `NotFound`, `EntryHeld`."""
        freed = 0
        for pool, shown in await self._required(key):
            hold = await pool.evict(shown.entry)
            if hold is not None:
                pins = [f"{pin.reason}" for pin in shown.pins]
                raise EntryHeld(
                    f"{shown.entry.ref} may not go from pool {pool.name}: it is {hold}"
                    + (f" ({'; '.join(pins)})" if pins else ""),
                    hold=hold.value,
                    pins=pins,
                    pool=pool.name,
                )
            freed += shown.entry.charge
        return Evicted(key=key, bytes=freed)

    # ------------------------------------------------------------------------------------------------- commands

    async def scrub(self, command: commands.ScrubCache, progress: Progress) -> commands.Outcome:
        from agent.cache_care import TellingPace
        from stores.cache.scrub import scrub

        seen = {}
        for pool in self._pools(command.pool):
            progress.phase(f"scrub {pool.name}", (await self._pool_shown(pool)).used)
            done = await scrub(pool, older_than_s=command.olderThan, pace=TellingPace(command.rate, progress))
            seen[pool.name] = commands.PoolScrubbed(
                entries=done.entries, bytes=done.bytes, quarantined=[entry.ref for entry in done.quarantined]
            )
        return commands.Outcome(scrubbed=seen)

    async def reconcile(self, command: commands.ReconcileCache, progress: Progress) -> commands.Outcome:
        from stores.cache.reconcile import reconcile

        seen = {}
        for pool in self._pools(command.pool):
            progress.phase(f"reconcile {pool.name}")
            report = await reconcile(pool)
            seen[pool.name] = commands.PoolReconciled(
                strays=report.strays,
                vanished=[entry.ref for entry in report.vanished],
                correctedSums=report.corrected_sums,
            )
        return commands.Outcome(reconciled=seen)

    # -------------------------------------------------------------------------------------------------- helpers

    def _pools(self, name: str | None) -> Sequence[Pool]:
        """All, or the one of that name."""
        if name is not None:
            return [self._one(name)]
        return self._cache.pools if self._cache is not None else ()

    def _one(self, name: str) -> Pool:
        known = {pool.name: pool for pool in self._pools(None)}
        if name not in known:
            raise NotFound(f"the cache has no pool {name}; there are: {', '.join(known) or 'none'}", pool=name)
        return known[name]

    async def _pool_shown(self, pool: Pool) -> PoolShown:
        from stores.cache.health import PoolSick
        from stores.cache.ledger import statistics

        directory, limit = str(pool.settings.directory), pool.settings.limit
        counts = pool.counts
        known = PoolShown(
            name=pool.name,
            directory=directory,
            configured=limit,
            evictions={reason.value: count for reason, count in sorted(counts.evictions.items())},
            quarantinedSinceStart=counts.quarantined,
            leaseLosses=counts.lease_losses,
            strayFiles=counts.stray_files,
            strayBytes=counts.stray_bytes,
        )
        try:
            now = await pool.transact(partial(statistics, pool=pool.name))
        except PoolSick as error:
            return known.model_copy(update={"ailment": pool.ailment or error.message})
        numbers = {name: getattr(now, name) for name in NUMBERS}
        holders = [f"{holder.reason} ({holder.charge} bytes)" for holder in now.oldest]
        return known.model_copy(update={**numbers, "holders": holders})

    async def _holding(self, key: str) -> list[tuple[Pool, Shown]]:
        from stores.cache.ledger import show_entry

        found = [
            (pool, await pool.transact(partial(show_entry, pool=pool.name, key=key))) for pool in self._pools(None)
        ]
        return [(pool, shown) for pool, shown in found if shown is not None]

    async def _required(self, key: str) -> list[tuple[Pool, Shown]]:
        found = await self._holding(key)
        if not found:
            raise NotFound(f"no pool of the cache has an entry {key}", key=key)
        return found

    async def _matching(self, pool: Pool, wanted: str) -> AsyncGenerator[Shown, None]:
        from stores.cache.ledger import list_entries, show_entry

        after = ""
        while page := await pool.transact(partial(list_entries, pool=pool.name, after=after, limit=PAGE)):
            for row in page:
                if row.entry.key.startswith(wanted) or row.entry.ref == wanted.removeprefix("/"):
                    shown = await pool.transact(partial(show_entry, pool=pool.name, key=row.entry.key))
                    if shown is not None:
                        yield shown
            after = page[-1].entry.key

    def _copy_shown(self, pool: Pool, shown: Shown) -> CopyShown:
        entry, now = shown.entry, self._clock()
        here = [f"fetched from {entry.store} {_ago(now - entry.published)}"]
        here.append(
            f"used {entry.hits} times since, last {_ago(now - entry.used_at)}" if entry.hits else "not used again since"
        )
        stays = [f"{pin.reason}, {_ago(now - pin.since)}" for pin in shown.pins]
        if shown.hold is not None and not stays:
            stays.append(shown.hold.value)
        return CopyShown(entry=_entry_shown(pool.name, shown), here=here, stays=stays)


def _operator_pin(key: str) -> str:
    return f"{OPERATOR_PIN} {key}"


def _entry_shown(pool: str, shown: Shown) -> EntryShown:
    entry = shown.entry
    return EntryShown(
        key=entry.key,
        pool=pool,
        store=entry.store,
        ref=entry.ref,
        version=entry.version,
        size=entry.size,
        charge=entry.charge,
        state=entry.state.value,
        hold=shown.hold.value if shown.hold else None,
        hits=entry.hits,
        digest=entry.digest,
        published=entry.published,
        used=entry.used_at,
        proved=entry.proved_at,
        pins=[PinShown(reason=pin.reason, since=pin.since, lasting=pin.owner is None) for pin in shown.pins],
    )


def _ago(seconds: float) -> str:
    for length, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit} ago"
    return f"{max(0.0, seconds):.0f} s ago"
