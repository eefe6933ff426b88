"""An image whose bytes the gate has judged, kept such that whoever reads it next gets the very bytes that were judged.

A hostile server could show a harmless head to the gate and another one to the tool that converts; a version that the
server itself invents does not prevent that. What the gate has read is therefore kept, some hundred KiB at most, and laid over
every later read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from stores.contract import Ahead, BlockingCalls, DataStore, Extent, Kind, MiB, ObjectInfo, Presentation, RangeReader
from stores.errors import TooLarge
from stores.wrappers.base import WrapperStore

KEPT_LIMIT = 32 * MiB
"""More than any admissible image makes the gate read. Bytes."""


class InspectedReader(RangeReader):
    """Remembers what is read through it until `seal`, and repeats it from then on."""

    def __init__(self, inner: RangeReader) -> None:
        self.info = inner.info
        self._inner = inner
        self._kept: list[tuple[int, bytes]] = []
        self._size = 0
        self._sealed = False

    def seal(self) -> None:
        """The gate is done: nothing more is kept."""
        self._sealed = True

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """`TooLarge` when more than `KEPT_LIMIT` is read before `seal`."""
        await self._inner.read_into(offset, buffer)
        if self._sealed:
            lay_over(buffer, offset, self._kept)
            return
        if self._size + len(buffer) > KEPT_LIMIT:
            raise TooLarge(
                "the image has more metadata than its inspection may read",
                limit=KEPT_LIMIT,
                seen=self._size + len(buffer),
            )
        lay_over(buffer, offset, self._kept)
        self._kept.append((offset, bytes(buffer)))
        self._size += len(buffer)

    async def read_each(
        self,
        take: Callable[[], tuple[int, memoryview] | None],
        put: Callable[[int, memoryview], None],
        threads: BlockingCalls,
        *,
        ahead: Ahead = lambda: (),
    ) -> None:
        if not self._sealed:
            await super().read_each(take, put, threads)
            return

        def lay_over_and_put(offset: int, buffer: memoryview) -> None:
            lay_over(buffer, offset, self._kept)
            put(offset, buffer)

        await self._inner.read_each(take, lay_over_and_put, threads, ahead=ahead)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        return await self._inner.extents(offset, length)


def lay_over(buffer: memoryview, offset: int, pieces: Sequence[tuple[int, bytes]]) -> None:
    """Put those parts of `pieces` (offset, content) that fall into `buffer`, which begins at `offset`, in their places."""
    end = offset + len(buffer)
    for start, content in pieces:
        first, last = max(offset, start), min(end, start + len(content))
        if first < last:
            buffer[first - offset : last - offset] = content[first - start : last - start]


class InspectedStore(WrapperStore):
    """`inner`, with one object of it read through `reader` wherever ranges of it are asked for, the bridge included."""

    def __init__(self, inner: DataStore, reader: RangeReader) -> None:
        super().__init__(inner)
        self._reader = reader

    def present(self, info: ObjectInfo, kind: Kind) -> AbstractAsyncContextManager[Presentation]:
        if kind is Kind.RANGE_READER and info == self._reader.info:
            return self._already_open()
        return self.inner.present(info, kind)

    @asynccontextmanager
    async def _already_open(self) -> AsyncIterator[Presentation]:
        yield self._reader
