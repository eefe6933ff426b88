"""The life of this process in one pool: an owner in the ledger, for as long as it is renewed."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from stores.cache import ledger
from stores.cache.access import Access
from stores.cache.errors import LeaseLost
from stores.cache.sqlite import boot_clock

MARGIN = 0.1
"""Share of a lease that is given away, so that clocks of two hosts may differ in speed, and a thread may be late."""

RENEWALS = 4
"""How often a lease is renewed in the time that it lasts."""


@lru_cache(1)
def boot_id() -> str:
    """Another one after each boot of this host (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Lease:
    """`owner` is the id under which this process makes its claims now; it changes when a lease is lost."""

    def __init__(
        self, access: Access, *, new_id: Callable[[], str], clock: Callable[[], float] = boot_clock, host: str = ""
    ) -> None:
        self.owner = ""
        self._access = access
        self._new_id = new_id
        self._clock = clock
        self._until = 0.0
        self.host = host or socket.gethostname()

    @property
    def length_s(self) -> float:
        return self._access.settings.lease_s

    @property
    def left_s(self) -> float:
        """For so long the ledger surely takes us for alive. Measured from before the last renewal was asked for."""
        return max(0.0, self._until - self._clock())

    @property
    def renew_in_s(self) -> float:
        return max(0.0, self.left_s - self.length_s * (1 - MARGIN) * (1 - 1 / RENEWALS))

    def require(self) -> None:
        """`LeaseLost` when others may take us for dead by now."""
        if not self.left_s:
            raise LeaseLost(f"the lease on the cache pool {self._access.pool} has run out", pool=self._access.pool)

    async def begin(self) -> None:
        """Under a new id."""
        owner, asked = self._new_id(), self._clock()
        await self._access.touch(lambda: self._access.directory.live(owner))
        await self._access.transact(
            lambda tx: ledger.register(
                tx,
                self._access.pool,
                owner,
                host=self.host,
                boot=boot_id(),
                pid=os.getpid(),
                lease_s=self.length_s,
            )
        )
        self.owner, self._until = owner, asked + self.length_s * (1 - MARGIN)

    async def renew(self) -> None:
        """`LeaseLost` when it had run out; then `begin`. `PoolSick` when the ledger does not answer before it would."""
        asked, owner = self._clock(), self.owner
        await self._access.transact(
            lambda tx: ledger.renew(tx, self._access.pool, owner, self.length_s),
            within_s=max(self.left_s, self.length_s / RENEWALS),
        )
        self._until = asked + self.length_s * (1 - MARGIN)

    async def end(self) -> None:
        """Others take over at once what we still hold."""
        owner, self._until = self.owner, 0.0
        await self._access.transact(lambda tx: ledger.retire(tx, self._access.pool, owner))
        await self._access.touch(lambda: self._access.directory.bury(owner))
