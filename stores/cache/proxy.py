"""A store around a store that has objects as local files, too: for whoever needs a file where there is none.

A cache is used for what nothing else can give. Where it is preferred, because an object will be wanted again, ranges and
streams are read from it as well; and when it has no room or is broken, from the store itself, as if there were no cache.

An object is its store, reference and version: `present` takes what a fresh `stat` said, so that a copy of another version is
never served. One that has no version is copied for each use anew.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial

import structlog

from stores.cache.arriving import CacheReader, CacheStream
from stores.cache.cache import Cache, Outcome
from stores.cache.filling import Copy, Landed
from stores.cache.flights import Flight
from stores.contract import DataStore, Kind, LocalPath, ObjectInfo, Presentation, Progress
from stores.errors import CacheFailure, StoreError
from stores.negotiation import CacheUse
from stores.paths import check_ref
from stores.streams import presented
from stores.wrappers.base import WrapperStore

_log = structlog.get_logger(__name__)

_OF_BYTES = frozenset({Kind.RANGE_READER, Kind.BYTE_STREAM})


class CachingStore(WrapperStore):
    """Writes, deletions and listings are the inner store's. `wait_s`: how long `present` may wait for room. `progress` is told
    of what it waits for."""

    def __init__(
        self,
        inner: DataStore,
        cache: Cache,
        *,
        use: CacheUse = CacheUse.NEEDED,
        wait_s: float,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(inner)
        self._cache = cache
        self._use = use
        self._wait_s = wait_s
        self._progress = progress

    def offers(self, info: ObjectInfo | None = None) -> frozenset[Kind]:
        added = {Kind.LOCAL_PATH} if self._use is CacheUse.NEEDED else {Kind.LOCAL_PATH, *_OF_BYTES}
        return self.inner.offers(info) | added

    @asynccontextmanager
    async def present(self, info: ObjectInfo, kind: Kind) -> AsyncIterator[Presentation]:
        """From the cache what the inner store does not offer; where the cache is preferred, whatever it can give.

        Raises what the inner store raises; and `CacheExhausted`, `CacheUnavailable`, `LargerThanCache` for what only the cache
        can give.
        """
        check_ref(info.ref)
        native = kind in self.inner.offers(info)
        from_cache = kind is Kind.LOCAL_PATH or kind in _OF_BYTES
        async with AsyncExitStack() as stack:
            presentation = None
            if from_cache and (not native or self._use is CacheUse.PREFERRED):
                try:
                    presentation = await self._cached(stack, info, kind)
                except CacheFailure as error:
                    if not native:
                        raise
                    self.bypassed(info, error)
            if presentation is None:
                presentation = await stack.enter_async_context(self.inner.present(info, kind))
            yield presentation

    async def _cached(self, stack: AsyncExitStack, info: ObjectInfo, kind: Kind) -> Presentation:
        cache, inner = self._cache, self.inner
        whole = kind is Kind.LOCAL_PATH or (kind is Kind.RANGE_READER and info.size is None)
        bring = cache.whole if whole else cache.arriving
        flight = await stack.enter_async_context(bring(inner, info, wait_s=self._wait_s, progress=self._progress))
        if kind is Kind.LOCAL_PATH:
            return LocalPath(flight.result().copy.path, info)
        if info.size is None and flight.over:
            info = replace(info, size=flight.result().held.entry.size)
        reader = await stack.enter_async_context(self._reader(flight, info))
        if kind is Kind.RANGE_READER:
            return reader
        stream = cache.engine.stream(reader) if flight.over else CacheStream(reader, info, cache.engine.buffers)
        return await stack.enter_async_context(presented(stream))

    def _reader(self, flight: Flight[Copy, Landed], info: ObjectInfo) -> CacheReader:
        ranges = info.ranges and Kind.RANGE_READER in self.inner.offers(info)
        return CacheReader(
            flight,
            info,
            direct=partial(self.inner.present, info, Kind.RANGE_READER) if ranges else None,
            bypassed=partial(self.bypassed, info),
        )

    def bypassed(self, info: ObjectInfo, error: StoreError) -> None:
        """Say that the store itself is read instead, and why."""
        _log.warning("cache bypassed", store=self.id, ref=info.ref, why=error.message)
        self._cache.observer.requested(self.id, Outcome.BYPASS)
