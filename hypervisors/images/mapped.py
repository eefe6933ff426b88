"""A disk whose parts lie in one object, as a map of it says: read straight from there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from hypervisors.images.overlay import Layer, Overlay
from stores.contract import BlockingCalls, Extent, ObjectInfo, RangeReader
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
        ahead: Callable[[], int] = lambda: 0,
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
        ahead: Callable[[], int],
    ) -> None:
        self._map = map_
        self._take = take
        self._put = put
        self._ahead = ahead
        self._reads = self._all_reads()
        self._at = self._end = 0  # in the disk: where the last read ends, and the buffer
        self._host = 0  # in the object, where it ends

    def take(self) -> tuple[int, memoryview] | None:
        return next(self._reads, None)

    def ahead(self) -> int:
        """What of the rest of the buffer, and of what follows it, is next in the object as well."""
        stop = self._end + self._ahead()
        following = next(self._map.parts(self._at, stop), None) if stop > self._at else None
        if following is None or (following.offset, following.host) != (self._at, self._host):
            return 0
        return following.length

    def _all_reads(self) -> Iterator[tuple[int, memoryview]]:
        while (wanted := self._take()) is not None:
            offset, buffer = wanted
            self._end, end = offset + len(buffer), offset
            for part in self._map.parts(offset, self._end):
                buffer[end - offset : part.offset - offset] = bytes(part.offset - end)
                end = part.end
                host = part.host or 0
                self._at, self._host = end, host + part.length
                yield host, buffer[part.offset - offset :][: part.length]
            buffer[end - offset :] = bytes(self._end - end)
            self._put(*wanted)
