"""One pool: a directory, its ledger, and the tasks that keep both in order.

Everything that touches the directory runs in the pool's own threads with a deadline, and every transaction of the ledger has
one. What fails or hangs makes the pool sick (`PoolSick`): it is bypassed, probed, and taken back when it is well.

Several pools of one name, in processes of one host or of several, may share directory and ledger: nothing is locked but what
a transaction takes. The ledger brings its tables up to date by itself; a directory of another layout is refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from stores.cache.claims import Counts, Fill, Following, Found, Gone, Held, Missing
from stores.cache.database import Database
from stores.cache.health import PoolSick
from stores.cache.pool_claims import PoolClaims
from stores.cache.recovery import open_up
from stores.cache.settings import PoolSettings
from stores.cache.sqlite import boot_clock
from stores.cache.upkeep import Upkeep

__all__ = ["Counts", "Fill", "Following", "Found", "Gone", "Held", "Missing", "Pool", "PoolSettings"]


class Pool(PoolClaims):
    """`start` before use, `stop` after."""

    def __init__(
        self,
        settings: PoolSettings,
        database: Database,
        *,
        clock: Callable[[], float] = time.monotonic,
        lease_clock: Callable[[], float] = boot_clock,
    ) -> None:
        """`database` belongs to the pool from now on. `clock` times probes, `lease_clock` leases."""
        super().__init__(settings, database, clock=clock, lease_clock=lease_clock)
        self._database = database
        self._upkeep = Upkeep(self)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Recovers what earlier processes left, in time proportional to what was in flight. A pool that cannot be opened is
        sick, and tried again later."""
        await self.access.mend(lambda: open_up(self))
        self._task = asyncio.create_task(self._upkeep.run(), name=f"cache-upkeep-{self.name}")

    async def stop(self) -> None:
        """What is still held or being filled is left to whoever comes next. Takes a bounded time. Idempotent."""
        if self._task is None:
            return
        task, self._task = self._task, None
        task.cancel()
        try:
            with suppress(asyncio.CancelledError):
                await task
            with suppress(PoolSick):
                await self.lease.end()
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.settings.call_s):
                    await self._database.aclose()
            self.access.close()

    def changed(self) -> None:
        self._upkeep.wake()
