"""A disk that is made longer."""

from __future__ import annotations

from collections.abc import Sequence

from stores.contract import Extent, ObjectInfo, RangeReader


class Sized(RangeReader):
    """The first `known` bytes of a disk, and zeroes up to `size`."""

    def __init__(self, inner: RangeReader, known: int, size: int) -> None:
        self.info = ObjectInfo(inner.info.ref, size)
        self.parallel = inner.parallel
        self._inner = inner
        self._known = known

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        count = max(0, min(len(buffer), self._known - offset))
        if count:
            await self._inner.read_into(offset, buffer[:count])
        buffer[count:] = bytes(len(buffer) - count)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        count = max(0, min(length, self._known - offset))
        beyond = [Extent(offset + count, length - count, zero=True)] if count < length else []
        return [*(await self._inner.extents(offset, count) if count else ()), *beyond]
