"""A store whose objects arrive as far as the test lets them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from stores.contract import ByteStream, DataStore, Extent, Kind, ObjectInfo, Presentation, RangeReader
from stores.errors import StoreError
from stores.streams import presented
from stores.wrappers.base import WrapperStore


class GatedStore(WrapperStore):
    """Bytes from `gate` on wait until it is moved. `failure`: raised there instead. `sized`, `ranged`, `versioned`: whether the
    store knows sizes, has ranges, and gives versions. `read` counts the bytes that were read, `opened` the presentations."""

    def __init__(
        self, inner: DataStore, *, gate: int = 1 << 60, sized: bool = True, ranged: bool = True, versioned: bool = True
    ) -> None:
        super().__init__(inner)
        self.failure: StoreError | None = None
        self.read = 0
        self.opened = 0
        self.stops: set[int] = set()  # tasks that wait
        self._gate = gate
        self._moved = asyncio.Event()
        self._sized, self._ranged, self._versioned = sized, ranged, versioned

    def move(self, gate: int = 1 << 60) -> None:
        self._gate = gate
        self._moved.set()
        self._moved = asyncio.Event()

    def fail(self, error: StoreError) -> None:
        self.failure = error
        self.move(self._gate)

    def offers(self, info: ObjectInfo | None = None) -> frozenset[Kind]:
        return frozenset({Kind.RANGE_READER, Kind.BYTE_STREAM} if self._ranged else {Kind.BYTE_STREAM})

    async def stat(self, ref: str) -> ObjectInfo:
        info = await self.inner.stat(ref)
        return replace(
            info,
            size=info.size if self._sized else None,
            ranges=self._ranged,
            version=info.version if self._versioned else None,
        )

    @asynccontextmanager
    async def present(self, info: ObjectInfo, kind: Kind) -> AsyncIterator[Presentation]:
        self.opened += 1
        real = await self.inner.stat(info.ref) if info.version is None or info.size is None else info
        async with self.inner.present(replace(info, size=real.size), kind) as presentation:
            if isinstance(presentation, RangeReader):
                yield _Reader(presentation, self)
            elif isinstance(presentation, ByteStream):
                async with presented(_Stream(presentation, self, info)) as stream:
                    yield stream

    async def pass_to(self, end: int) -> None:
        while end > self._gate:
            if self.failure is not None:
                raise self.failure
            moved = self._moved
            task = id(asyncio.current_task())
            self.stops.add(task)
            try:
                await moved.wait()
            finally:
                self.stops.discard(task)


class _Reader(RangeReader):
    def __init__(self, inner: RangeReader, store: GatedStore) -> None:
        self.info = inner.info
        self._inner = inner
        self._store = store

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        await self._store.pass_to(offset + len(buffer))
        await self._inner.read_into(offset, buffer)
        self._store.read += len(buffer)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        return await self._inner.extents(offset, length)


class _Stream(ByteStream):
    def __init__(self, inner: ByteStream, store: GatedStore, info: ObjectInfo) -> None:
        self.info = info
        self._inner = inner
        self._store = store

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        end = 0
        async for piece in self._inner:
            end += len(piece)
            await self._store.pass_to(end)
            self._store.read += len(piece)
            yield piece
