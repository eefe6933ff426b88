"""A disk whose parts lie in one object, as a map of it says: read straight from there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from hypervisors.images.overlay import Layer, Overlay
from stores.contract import Ahead, BlockingCalls, Extent, ObjectInfo, RangeReader
from stores.streams import read_one


class MappedDisk(RangeReader):
    """What the map does not have is zero."""

    def __init__(self, image: RangeReader, layer: Layer, threads: BlockingCalls) -> None:
        """`threads`: for `read_into`. Blocking: all of the map is walked through."""
        self.info = ObjectInfo(image.info.ref, layer.virtual_size, version=image.info.version)
        self.parallel = image.parallel
        self._image = image
        self._map = Overlay([layer], layer.virtual_size)
        self._threads = threads

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        await read_one(self, offset, buffer, self._threads)

    async def read_each(
        self,
        take: Callable[[], tuple[int, memoryview] | None],
        put: Callable[[int, memoryview], None],
        threads: BlockingCalls,
        *,
        ahead: Ahead = lambda: (),
    ) -> None:
        reads = _Reads(self._map, take, put, ahead)
        await self._image.read_each(reads.take, lambda offset, buffer: None, threads, ahead=reads.ahead)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        found, end = [], offset
        for part in self._map.parts(offset, offset + length):
            if part.offset > end:
                found.append(Extent(end, part.offset - end, zero=True))
            found.append(Extent(part.offset, part.length, zero=False))
            end = part.end
        if end < offset + length:
            found.append(Extent(end, offset + length - end, zero=True))
        return found


class _Reads:
    """Buffers for the disk as reads of the object: the arguments of `RangeReader.read_each`. A buffer is done when the object's
    reader comes back for more."""

    def __init__(
        self,
        map_: Overlay,
        take: Callable[[], tuple[int, memoryview] | None],
        put: Callable[[int, memoryview], None],
        ahead: Ahead,
    ) -> None:
        self._map = map_
        self._take = take
        self._put = put
        self._ahead = ahead
        self._reads = self._all_reads()
        self._at = self._end = 0  # in the disk: where the last read ends, and the buffer

    def take(self) -> tuple[int, memoryview] | None:
        return next(self._reads, None)

    def ahead(self) -> Iterator[tuple[int, int]]:
        """Where the rest of the buffer, and what is taken next, lies in the object."""
        for offset, length in chain([(self._at, self._end - self._at)], self._ahead()):
            for part in self._map.parts(offset, offset + length):
                yield part.host or 0, part.length

    def _all_reads(self) -> Iterator[tuple[int, memoryview]]:
        while (wanted := self._take()) is not None:
            offset, buffer = wanted
            self._end, end = offset + len(buffer), offset
            for part in self._map.parts(offset, self._end):
                buffer[end - offset : part.offset - offset] = bytes(part.offset - end)
                end = part.end
                self._at = end
                yield part.host or 0, buffer[part.offset - offset :][: part.length]
            buffer[end - offset :] = bytes(self._end - end)
            self._put(*wanted)
