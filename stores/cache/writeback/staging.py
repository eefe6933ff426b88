"""From the wish to write an object to a file in a pool that is durable, and has to get to its store.

First a place among what no store has yet (`unstored_limit`, first come first served), then room in the pool (the ladder's,
the same as for every other file), then the file. The other way round what waits for the first would keep the second from
those who read.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import ClassVar

from stores.cache.claims import Fill, Following, Held
from stores.cache.description import Description
from stores.cache.errors import LeaseLost
from stores.cache.health import PoolSick
from stores.cache.ladder import POLL_S, STEP, CacheUnavailable, Ladder, LargerThanCache, Turn
from stores.cache.ledger import WrongState, charge_of, uploads
from stores.cache.ledger.uploads import Admission, Upload, Wanted
from stores.cache.pool import Pool
from stores.cache.schema import UploadState
from stores.cache.settings import WritebackSettings
from stores.cache.writeback.errors import AlreadyStaged, UploadCancelled, UploadsFull
from stores.contract import Kind, ObjectInfo
from stores.errors import AlreadyExists, TooLarge
from stores.uninterrupted import uninterrupted

UNFINISHED = (UploadState.QUEUED, UploadState.STAGING)


class StagedFile:
    """A `PendingFile` in a pool: at most `size` bytes may be written to `path`."""

    kind: ClassVar[Kind] = Kind.LOCAL_PATH

    def __init__(self, stager: Stager, pool: Pool, wanted: Wanted, fill: Fill, wait_s: float) -> None:
        self.path: Path = fill.path
        self.size = wanted.size
        self._stager = stager
        self._pool = pool
        self._wanted = wanted
        self._fill = fill
        self._wait_s = wait_s
        self._staged: ObjectInfo | None = None

    async def grow(self, size: int) -> None:
        """Room for at least `size` bytes in all, to be had before more is written: `size` tells how many it are then. Waits as
        long as the staging did; then `UploadsFull` or `CacheExhausted`. `LargerThanCache` when there never is any."""
        if size > self.size:
            deadline = asyncio.get_running_loop().time() + self._wait_s
            self.size = await self._stager.enlarge(self._pool, self._wanted, self._fill, size, self.size, deadline)

    async def commit(self) -> ObjectInfo:
        """Entry and upload are durable, in one step, when this returns. Idempotent. The info's `upload` is the upload's id; it
        has no version, since no store has it yet. `TooLarge` when more was written than was reserved; `UploadCancelled` when
        what it follows was cancelled."""
        if self._staged is None:
            self._staged = await uninterrupted(self._commit())
        return self._staged

    async def _commit(self) -> ObjectInfo:
        pool, fill, wanted = self._pool, self._fill, self._wanted
        pool.lease.require()
        if fill.lost:
            raise LeaseLost(f"the staging of {wanted.ref} was lost with pool {pool.name}", pool=pool.name)
        size = (await pool.access.touch(partial(os.stat, fill.path, follow_symlinks=False))).st_size
        if size > self.size:
            raise TooLarge(
                f"{wanted.ref}: room for {self.size} bytes was reserved and {size} were written; say the size that it has at"
                " most",
                limit=self.size,
                seen=size,
            )
        made = Description(
            key=fill.key,
            fill=fill.reservation,
            store=wanted.store,
            ref=wanted.ref,
            version=None,
            size=size,
            digest=None,
        )
        facts = await pool.access.touch(lambda: pool.access.entries.publish(made), size=size)
        try:
            await pool.transact(
                lambda tx: uploads.stage(
                    tx, fill.reservation, facts, pool=pool.name, upload=wanted.id, owner=fill.owner
                )
            )
        except WrongState as error:
            raise UploadCancelled(error.message, upload=wanted.follows) from None
        return ObjectInfo(wanted.ref, size, upload=wanted.id)


class StoredFile:
    """A staged file for who wants to hear that it is stored: `commit` returns when the store has confirmed it, and raises what
    `stored` raises, `UploadPending` among it: the bytes are safe then, and on their way."""

    kind: ClassVar[Kind] = Kind.LOCAL_PATH

    def __init__(self, staged: StagedFile, stored: Callable[[str], Awaitable[ObjectInfo]]) -> None:
        self.path = staged.path
        self._staged = staged
        self._stored = stored

    async def commit(self) -> ObjectInfo:
        info = await self._staged.commit()
        assert info.upload is not None
        return await self._stored(info.upload)


class Stager:
    """Of one process, over its pools. `turn` wakes those who wait when something was given back; `staged` is called after
    each commit. `at_work` has the ids of what is being staged now."""

    def __init__(
        self, pools: Sequence[Pool], settings: WritebackSettings, *, turn: Turn, staged: Callable[[], None]
    ) -> None:
        self.at_work: set[str] = set()
        self._pools = {pool.name: pool for pool in pools}
        self._settings = settings
        self._turn = turn
        self._staged = staged
        self._ladders = {pool.name: Ladder([pool], turn=turn) for pool in pools}

    @asynccontextmanager
    async def staging(
        self, wanted: Wanted, *, wait_s: float, admitted: Callable[[], Awaitable[None]]
    ) -> AsyncIterator[StagedFile]:
        """See `UploadQueue.staging`. `admitted` is awaited before there is a file."""
        deadline = asyncio.get_running_loop().time() + wait_s
        pool = await self._pool_of(wanted.follows) or await self._pool_for(wanted.size)
        self.at_work.add(wanted.id)
        try:
            await self._admission(pool, wanted, deadline)
            await admitted()
            fill = await self._room(pool, wanted, deadline)
            try:
                yield StagedFile(self, pool, wanted, fill, wait_s)
            finally:
                await uninterrupted(pool.abandon(fill))  # nothing, where it was committed
        finally:
            await uninterrupted(self._withdraw(pool, wanted))
            self.at_work.discard(wanted.id)
            self._turn.freed()
            self._staged()

    async def enlarge(self, pool: Pool, wanted: Wanted, fill: Fill, size: int, now: int, deadline: float) -> int:
        """The bytes that may be written then: `size`, or some more, so that not every piece has to ask."""
        limit = self._settings.unstored_limit(pool.settings)
        self._refuse_larger(size, limit)
        wished = max(size, now + max(STEP, now // 4))
        while True:
            change = self._turn.next()
            answer = await pool.transact(
                partial(uploads.enlarge, pool=pool.name, upload=wanted.id, size=wished, limit=limit)
            )
            if answer.admitted:
                break
            if wished > size:
                wished = size  # no more than is needed now
            else:
                await self._wait(pool, size - now, answer, deadline, change)
        await self._ladders[pool.name].grow(pool, fill, wished, deadline=lambda: deadline)
        return wished

    # ------------------------------------------------------------------------------------------------------ helpers

    async def _pool_of(self, upload: str | None) -> Pool | None:
        """Where that upload is: one that follows it has to be in the same ledger. None for one that is over and forgotten."""
        if upload is None:
            return None
        for pool in self._pools.values():
            if await pool.transact(partial(uploads.find, pool=pool.name, upload=upload)) is not None:
                return pool
        return None

    async def _pool_for(self, size: int) -> Pool:
        """The one with the most bytes left for what no store has yet; it is waited for, if need be, and no other."""
        limits = {name: self._settings.unstored_limit(pool.settings) for name, pool in self._pools.items()}
        room: dict[str, int] = {}
        for name, pool in self._pools.items():
            with suppress(PoolSick):
                room[name] = limits[name] - await pool.transact(partial(uploads.unstored_bytes, pool=name))
        fitting = [name for name in room if size <= limits[name] and charge_of(size) <= self._limit_of(name)]
        if fitting:
            return self._pools[max(fitting, key=lambda name: (room[name], name))]
        sick = [name for name in self._pools if name not in room]
        if sick:
            raise CacheUnavailable(f"no pool that is well can take {size} bytes; sick: {', '.join(sick)}", sick=sick)
        self._refuse_larger(size, max((min(limits[name], self._limit_of(name)) for name in room), default=0))
        raise CacheUnavailable("there is no pool to stage in", sick=[])

    def _limit_of(self, name: str) -> int:
        return self._pools[name].settings.limits.limit

    def _refuse_larger(self, size: int, limit: int) -> None:
        if size > limit:
            raise LargerThanCache(
                f"{size} bytes are to be staged, and no pool takes more than {limit} that no store has yet: give the cache"
                " more room, or a larger share of it to what is not stored",
                limit=limit,
                seen=size,
            )

    async def _admission(self, pool: Pool, wanted: Wanted, deadline: float) -> None:
        limit = self._settings.unstored_limit(pool.settings)
        while True:
            change = self._turn.next()
            answer = await pool.transact(
                lambda tx: uploads.admit(tx, pool.name, wanted, owner=pool.lease.owner, limit=limit)
            )
            if answer.admitted:
                return
            if answer.twin is None:
                await self._wait(pool, wanted.size, answer, deadline, change)
            elif not await self._is_lost(pool, answer.twin):
                raise AlreadyStaged(
                    f"{wanted.ref} is {answer.twin.state} by the same write already: wait for upload {answer.twin.id}",
                    upload=answer.twin.id,
                    state=answer.twin.state,
                )

    async def _is_lost(self, pool: Pool, twin: Upload) -> bool:
        """Whether it was being staged by somebody who is gone: then it is not there any more."""
        if twin.state not in UNFINISHED:
            return False
        await pool.transact(
            lambda tx: uploads.reclaim(tx, pool.name, owner=pool.lease.owner, at_work=self.at_work | {twin.id})
        )
        return await pool.transact(partial(uploads.find, pool=pool.name, upload=twin.id)) is None

    async def _wait(self, pool: Pool, needed: int, answer: Admission, deadline: float, change: asyncio.Event) -> None:
        """For a change; `UploadsFull` when the time is over."""
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            limit = self._settings.unstored_limit(pool.settings)
            raise UploadsFull(
                f"{needed} bytes are to be staged in pool {pool.name}, where {answer.unstored} of at most {limit} wait for"
                " their stores already, and others came first: see what keeps those stores from taking them, or try again"
                " later",
                needed=needed,
                limit=limit,
                unstored=answer.unstored,
                pool=pool.name,
            )
        await self._turn.wait(min(left, POLL_S[1]), change)

    async def _room(self, pool: Pool, wanted: Wanted, deadline: float) -> Fill:
        """In place of what an earlier process may have left of the same write."""
        while True:
            match await pool.find(wanted.key, "staging"):
                case Fill() as left:
                    await pool.abandon(left)
                case Held() as held:  # a copy of an upload that has ended, which somebody had pinned
                    await pool.unpin(held)
                    if (hold := await pool.evict(held.entry)) is not None:
                        raise AlreadyExists(f"the copy of an earlier upload of {wanted.ref} is {hold}", ref=wanted.ref)
                case Following():
                    raise AlreadyExists(f"{wanted.ref} is being staged by the same write", ref=wanted.ref)
            with suppress(AlreadyExists):  # somebody was faster: look again
                room = await self._ladders[pool.name].climb(
                    wanted.key, wanted.size, deadline=lambda: deadline, waits=lambda: None
                )
                return room.fill

    async def _withdraw(self, pool: Pool, wanted: Wanted) -> None:
        with suppress(PoolSick):  # `reclaim` finds it
            await pool.transact(partial(uploads.withdraw, pool=pool.name, upload=wanted.id))
