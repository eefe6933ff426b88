"""A part of an object, as an object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stores.contract import Extent, RangeReader


class Slice(RangeReader):
    """Bytes `start` to `end` of what `inner` reads."""

    def __init__(self, inner: RangeReader, start: int, end: int) -> None:
        self.info = replace(inner.info, size=end - start)
        self.parallel = inner.parallel
        self._inner = inner
        self._start = start

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        await self._inner.read_into(self._start + offset, buffer)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        found = await self._inner.extents(self._start + offset, length)
        return [replace(extent, offset=extent.offset - self._start) for extent in found]
