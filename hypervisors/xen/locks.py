"""Locks on names in an SR that the agents of several hosts respect: see `marks.Held`.

They keep two agents from doing the same work, and are held for as long as a disk is written. An agent that dies leaves its
lock, which expires. So whoever commits asks once more whether it is still the holder.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from hypervisors.contract import ImageLocked
from hypervisors.xen.marks import Held, holder, lock_key, lock_keys
from hypervisors.xen.pool import XenPool
from hypervisors.xen.repository import Repository
from stores.errors import StorageError
from stores.transfer.groups import first_failure
from stores.uninterrupted import uninterrupted

_log = structlog.get_logger(__name__)

_ATTEMPTS = 3


class Lock:
    """One that is held. For `locked`."""

    def __init__(self, sr: Repository, ref: str) -> None:
        self._sr = sr
        self._ref = ref
        self.id = sr.pool.fresh()
        self._until = 0.0
        self._renewals = 0

    async def take(self) -> None:
        """`ImageLocked` says who has it and until when."""
        pool = self._sr.pool
        for _ in range(_ATTEMPTS):
            self._until = pool.clock() + pool.settings.lock_s
            if await self._sr.add_key("SR", self._sr.handle, lock_key(self._ref), self._held().text()):
                return
            config = await self._sr.config()
            other = holder(self._ref, config)
            if other is not None:
                if not abandoned(pool, other):
                    raise self._busy(other)
                _log.warning("lock taken over", ref=self._ref, sr=self._sr.uuid, owner=other.owner, until=other.until)
                await remove_lock(self._sr, other.id, config)
        raise ImageLocked(f"{self._ref} is being locked by several agents at once; try again", ref=self._ref)

    async def renew(self) -> None:
        """Until cancelled. Raises when it is lost."""
        pool = self._sr.pool
        while True:
            await pool.sleep(pool.settings.lock_s / 4)
            try:
                await self.check()
                self._until = pool.clock() + pool.settings.lock_s
                await self._sr.add_key(
                    "SR", self._sr.handle, lock_key(self._ref, self._renewals + 1), self._held().text()
                )
                self._renewals += 1
                if self._renewals > 1:
                    await self._sr.remove_keys("SR", self._sr.handle, [lock_key(self._ref, self._renewals - 1)])
            except ImageLocked:
                raise
            except StorageError as problem:  # there are more attempts before it expires
                _log.warning("lock not renewed", ref=self._ref, sr=self._sr.uuid, error=problem.message)

    async def check(self) -> None:
        """`ImageLocked` if it is not ours any more."""
        other = holder(self._ref, await self._sr.config())
        if other is None or other.id != self.id:
            raise ImageLocked(
                f"the lock on {self._ref} in SR {self._sr.name} was lost while it was written: this host could not renew it in"
                " time; nothing of it was kept, try again",
                ref=self._ref,
                sr=self._sr.uuid,
            )

    async def release(self) -> None:
        """Idempotent. What cannot be released expires."""
        try:
            await remove_lock(self._sr, self.id, await self._sr.config())
        except StorageError as problem:
            _log.warning("lock left behind", ref=self._ref, sr=self._sr.uuid, error=problem.message)

    def _held(self) -> Held:
        return Held(owner=self._sr.pool.settings.originator, id=self.id, until=self._until)

    def _busy(self, other: Held) -> ImageLocked:
        left = max(0.0, other.until - self._sr.pool.clock())
        return ImageLocked(
            f"{self._ref} is being written to SR {self._sr.name} by {other.owner}, which has it locked for {left:.0f} s more;"
            " try again later",
            ref=self._ref,
            sr=self._sr.uuid,
            owner=other.owner,
            until=other.until,
        )


async def remove_lock(sr: Repository, holder_id: str, config: dict[str, str]) -> None:
    """Of that holder alone; renewals first, so that it does not live longer than it is seen."""
    keys = [key for key, held in lock_keys(config).items() if held.id == holder_id]
    await sr.remove_keys("SR", sr.handle, sorted(keys, key=len, reverse=True))


def abandoned(pool: XenPool, held: Held) -> bool:
    """Whether its holder is surely dead: it expired, allowing for clocks that differ, or a dead process of ours had it."""
    if held.owner == pool.settings.originator:
        return held.id not in pool.busy
    return pool.clock() > held.until + pool.settings.lock_s / 4


@asynccontextmanager
async def locked(sr: Repository, ref: str) -> AsyncIterator[Lock]:
    """Nobody else's agent writes `ref` until the context ends. Raises in it when the lock is lost."""
    lock = Lock(sr, ref)
    sr.pool.busy.add(lock.id)
    try:
        await uninterrupted(lock.take())
        with first_failure():
            async with asyncio.TaskGroup() as group:
                renewing = group.create_task(lock.renew(), name="xen lock")
                yield lock
                renewing.cancel()
    finally:
        await uninterrupted(lock.release())
        sr.pool.busy.discard(lock.id)
