"""The way to one pool's directory and ledger: every call has a deadline, and what fails or hangs makes the pool sick.

A sick pool is not touched any more, but for `Access.mend`, until that says that it is well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TypeVar

import structlog

from stores.cache.database import Database, Transaction
from stores.cache.directory import PoolDirectory
from stores.cache.entries import Entries
from stores.cache.health import Health, PoolSick, is_ailment
from stores.cache.settings import PoolSettings
from stores.errors import StoreError
from stores.touches import Touches

T = TypeVar("T")
THREADS = 8
_mending: ContextVar[object] = ContextVar(
    "mending", default=None
)  # the access that this task may use although it is sick
_log = structlog.get_logger(__name__)


class Access:
    """Shared by all parts of one pool. `sickened` is called once whenever the pool turns from healthy to sick."""

    def __init__(
        self,
        settings: PoolSettings,
        database: Database,
        *,
        clock: Callable[[], float] = time.monotonic,
        sickened: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings
        self.pool = settings.name
        self.directory = PoolDirectory(settings.name, settings.directory, file_mode=settings.file_mode)
        self.entries = Entries(self.directory)
        self.health = Health(clock)
        self._database = database
        self._touches = Touches(f"cache-{settings.name}", THREADS, late=_late)
        self._sickened = sickened
        self._replaced: list[PoolDirectory] = []  # what calls that hang may still use

    @property
    def hanging(self) -> int:
        """Threads that are stuck in the directory now: at most `THREADS`."""
        return self._touches.hanging

    async def touch(self, call: Callable[[], T], *, size: int = 0) -> T:
        """`call` on the directory, in a thread. `size`: bytes that it may have to sync.

        `PoolSick` when the pool is or turns sick. Errors that say nothing about the pool are raised as they are.
        """
        deadline_s = self.settings.call_s + size / self.settings.sync_rate
        return await self._judged(lambda: self._touches.run(call, deadline_s=deadline_s))

    async def transact(self, work: Callable[[Transaction], T], *, within_s: float | None = None) -> T:
        """`work` in a transaction of the ledger: see `Database.transact`. Errors as in `touch`."""
        deadline_s = self.settings.call_s if within_s is None else within_s

        async def bounded() -> T:
            try:
                async with asyncio.timeout(deadline_s):
                    return await self._database.transact(work)
            except TimeoutError:
                raise PoolSick(
                    f"the ledger of the cache pool {self.pool} did not answer within {deadline_s:g} s", pool=self.pool
                ) from None

        return await self._judged(bounded)

    async def mend(self, attempt: Callable[[], Awaitable[None]]) -> bool:
        """Open the directory anew, probe it, and make `attempt` to use the pool. Whether it is well now."""
        old, new = self.directory, PoolDirectory(self.pool, self.settings.directory, file_mode=self.settings.file_mode)
        token = _mending.set(self)
        try:
            new.inherit(old)
            self.directory, self.entries = new, Entries(new)
            await attempt()
        except StoreError as error:
            self._return_to(old)
            self.health.fails(error.message)
            self.health.probe_failed(error.message)
            _log.warning("cache pool sick", pool=self.pool, why=error.message, next_probe_s=self.health.probe_in_s)
            return False
        except BaseException:
            self._return_to(old)
            raise
        else:
            self._replaced.append(old)
            if not self.health.healthy:
                _log.info("cache pool well", pool=self.pool)
            self.health.recovers()
            return True
        finally:
            _mending.reset(token)
            self._close_replaced()

    def _return_to(self, old: PoolDirectory) -> None:
        old.inherit(self.directory)
        self._replaced.append(self.directory)
        self.directory, self.entries = old, Entries(old)

    def close(self) -> None:
        """Lets go of threads and descriptors, but for those that hang."""
        self._touches.close()
        self._replaced.append(self.directory)
        self._close_replaced()

    def _close_replaced(self) -> None:
        """A descriptor that a hanging call still uses must not get another meaning."""
        if not self.hanging:
            for directory in self._replaced:
                directory.close()
            self._replaced.clear()

    async def _judged(self, call: Callable[[], Awaitable[T]]) -> T:
        if not self.health.healthy and _mending.get() is not self:
            raise PoolSick(f"the cache pool {self.pool} is sick: {self.health.ailment}", pool=self.pool)
        try:
            return await call()
        except StoreError as error:
            if not is_ailment(error):
                raise
            if _mending.get() is not self and self.health.fails(error.message):
                _log.warning("cache pool sick", pool=self.pool, why=error.message)
                self._sickened()
            raise PoolSick(
                f"the cache pool {self.pool} is sick: {error.message}", pool=self.pool, ailment=error.kind
            ) from error


def _late(what: str) -> PoolSick:
    return PoolSick(f"{what}; check the disk or mount below it")
