"""One object on its way from its store into a file of a pool: by ranges in parallel, or as a stream where there are none.

Never past its reservation: ranges end with the object, whose size was reserved, and a stream stops at the next piece that
would pass it, until more was granted. Nothing is written once the lease is lost or the pool is sick.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from stores.cache.errors import LeaseLost
from stores.cache.flights import Flight
from stores.cache.health import PoolSick
from stores.cache.ladder import Ladder, Room
from stores.cache.pool import Held, Pool
from stores.contract import ByteStream, DataStore, Kind, ObjectInfo, RangeReader, Silent
from stores.errors import IntegrityError, NoSpace, StoreError
from stores.transfer.engine import Fetched, TransferEngine
from stores.transfer.ranges import Ranges
from stores.uninterrupted import uninterrupted

DIGEST = "sha256"

WATCH_S = 0.1
"""How often a fill looks whether it may go on. A lease is renewed long before it ends, so this is soon enough."""

NOTE_S = 1.0
"""How often the parts that are whole are made durable and known. What arrived since is what a takeover fetches again."""


@dataclass(frozen=True, slots=True)
class Source:
    """What is fetched, and from where."""

    store: DataStore
    info: ObjectInfo

    @property
    def ranges(self) -> bool:
        """Whether it can be fetched in parallel, and gone on with where it was left."""
        return self.info.ranges and self.info.size is not None and Kind.RANGE_READER in self.store.offers(self.info)


@dataclass(frozen=True, slots=True)
class Copy:
    """A file of a pool that holds the object, or some of it."""

    pool: Pool
    path: Path


@dataclass(frozen=True, slots=True)
class Landed:
    """A copy that is whole, pinned for as long as the flight that brought it lasts."""

    copy: Copy
    held: Held


class Filling:
    """One fill. `stragglers` takes a transfer that does not end because its disk hangs."""

    def __init__(
        self,
        source: Source,
        room: Room,
        flight: Flight[Copy, Landed],
        *,
        engine: TransferEngine,
        ladder: Ladder,
        stragglers: set[asyncio.Task[Fetched]],
    ) -> None:
        self._source = source
        self._pool = room.pool
        self._fill = room.fill
        self._flight = flight
        self._engine = engine
        self._ladder = ladder
        self._stragglers = stragglers

    async def run(self, reason: str) -> Held:
        """The entry, pinned for `reason`. Raises `PoolSick`, `LeaseLost`, `CacheExhausted`, and what the source raises; the
        file is then the caller's to abandon, unless the lease was lost."""
        info = self._source.info
        fetched = await self._watched()
        if info.size not in (None, fetched.size):
            raise IntegrityError(
                f"{info.ref} should have {info.size} bytes and has {fetched.size}", needed=info.size, seen=fetched.size
            )
        return await self._pool.publish(
            self._fill,
            store=self._source.store.id,
            ref=info.ref,
            version=info.version,
            size=fetched.size,
            digest=f"{{{DIGEST}}}{fetched.digests[DIGEST]}",
            reason=reason,
        )

    async def _watched(self) -> Fetched:
        """The transfer, ended as soon as it may not go on."""
        clock = asyncio.get_running_loop().time
        transfer = asyncio.create_task(self._transfer(), name="cache-fill")
        noted, total = clock(), self._flight.arrived.total
        try:
            while not transfer.done():
                await asyncio.wait({transfer}, timeout=WATCH_S)
                self._check()
                if clock() - noted >= NOTE_S and self._flight.arrived.total != total and not transfer.done():
                    total = self._flight.arrived.total
                    await self._pool.note(self._fill, tuple(self._flight.arrived))
                    noted = clock()
            return transfer.result()
        except StoreError as error:
            if self._is_of_the_disk(error):
                await self._pool.access.touch(partial(_fail, error))
            raise
        finally:
            await uninterrupted(self._stopped(transfer))

    def _check(self) -> None:
        if self._fill.lost:
            raise LeaseLost(f"the lease of pool {self._pool.name} ran out during a fill", pool=self._pool.name)
        if not self._pool.healthy:
            raise PoolSick(f"pool {self._pool.name} turned sick during a fill", pool=self._pool.name)

    def _is_of_the_disk(self, error: StoreError) -> bool:
        """Whether it was the pool that failed, not the source: which is never written, and has another path."""
        return isinstance(error, NoSpace) or error.details.get("path") == str(self._fill.path)

    async def _stopped(self, transfer: asyncio.Task[Fetched]) -> None:
        """Nothing is written any more; or the disk hangs, and what hangs on it is left behind."""
        transfer.cancel()
        while not transfer.done() and self._pool.healthy:
            await asyncio.wait({transfer}, timeout=WATCH_S)
        self._stragglers.add(transfer)
        transfer.add_done_callback(self._ended)

    def _ended(self, transfer: asyncio.Task[Fetched]) -> None:
        self._stragglers.discard(transfer)
        if not transfer.cancelled():
            transfer.exception()  # looked at: the fill has failed already, or this is what it failed with

    async def _transfer(self) -> Fetched:
        store, info = self._source.store, self._source.info
        if self._source.ranges:
            async with store.present(info, Kind.RANGE_READER) as presentation:
                return await self._in_parallel(cast(RangeReader, presentation))
        async with store.present(info, Kind.BYTE_STREAM) as presentation:
            return await self._in_order(cast(ByteStream, presentation))

    async def _in_parallel(self, reader: RangeReader) -> Fetched:
        whole = self._fill.whole
        if reader.info.size is None or reader.info.size > self._fill.size:
            raise IntegrityError(f"{reader.info.ref} is larger than it was said to be", seen=reader.info.size)
        self._flight.begin(Copy(self._pool, self._fill.path), Ranges(whole), reader.info.size)
        return await self._engine.fetch(
            reader, self._fill.path, digests=[DIGEST], whole=whole, arrived=self._flight.add
        )

    async def _in_order(self, stream: ByteStream) -> Fetched:
        self._flight.begin(Copy(self._pool, self._fill.path), Ranges(), self._source.info.size)
        async with aclosing(self._bounded(stream)) as pieces:
            return await self._engine.store_stream(
                pieces, self._fill.path, digests=[DIGEST], progress=_Prefix(self._flight)
            )

    async def _bounded(self, stream: ByteStream) -> AsyncGenerator[memoryview, None]:
        """The stream, each piece only when there is room for it."""
        info, seen = self._source.info, 0
        async for piece in stream:
            seen += len(piece)
            if info.size is not None and seen > info.size:
                raise IntegrityError(f"{info.ref} is larger than it was said to be", needed=info.size, seen=seen)
            if seen > self._fill.size:
                await self._ladder.grow(self._pool, self._fill, seen, deadline=lambda: self._flight.deadline)
            yield piece


def _fail(error: StoreError) -> None:
    """As a call on the pool's directory: the pool judges by it."""
    raise error


class _Prefix(Silent):
    """Progress of a stream, as the flight wants it."""

    def __init__(self, flight: Flight[Copy, Landed]) -> None:
        self._flight = flight
        self._seen = 0

    def advance(self, count: int) -> None:
        self._flight.add(self._seen, self._seen + count)
        self._seen += count
