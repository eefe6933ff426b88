"""An image that is only laid out, read as if it were finished: by nobody's disk but the one that it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

from hypervisors.images.pieces import Data, ImageLayout, Metadata
from stores.contract import Ahead, BlockingCalls, ObjectInfo, RangeReader
from stores.errors import IntegrityError
from stores.streams import read_one


class LayoutReader(RangeReader):
    """The image of `layout`, whose data is read from `disk`, straight into the caller's buffers.

    Every reader of ranges can have it, as many at once as `disk` bears: to send it as a stream that is read ahead, to send
    its parts in any order, to digest it. It is as constant as `disk` is: read from a disk that changes, it would be an image
    of no moment.
    """

    def __init__(self, layout: ImageLayout, disk: RangeReader, threads: BlockingCalls) -> None:
        """`threads`: for `read_into`, whose reads of scattered clusters are then done without a task for each."""
        self.info = ObjectInfo(disk.info.ref, layout.size, version=disk.info.version)
        self.parallel = disk.parallel
        self._layout = layout
        self._disk = disk
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
        assembly = _Assembly(self._layout, take, put, ahead)
        await self._disk.read_each(assembly.take, lambda offset, buffer: None, threads, ahead=assembly.ahead)


class _Assembly:
    """Buffers for the image as reads of the disk: the arguments of `RangeReader.read_each`.

    Tables are put in place on the way. A buffer is done when the disk's reader comes back for more.
    """

    def __init__(
        self,
        layout: ImageLayout,
        take: Callable[[], tuple[int, memoryview] | None],
        put: Callable[[int, memoryview], None],
        ahead: Ahead,
    ) -> None:
        self._layout = layout
        self._take = take
        self._put = put
        self._ahead = ahead
        self._reads = self._all_reads()
        self._end = 0  # in the image, of the buffer being filled
        self._read_to = 0  # in the image, what the reads so far fill

    def take(self) -> tuple[int, memoryview] | None:
        return next(self._reads, None)

    def ahead(self) -> Iterator[tuple[int, int]]:
        """The disk's data in the rest of the buffer, and in what is taken next."""
        for offset, length in chain([(self._read_to, self._end - self._read_to)], self._ahead()):
            for piece in self._layout.pieces(offset, offset + length):
                match piece:
                    case Data(position, count):
                        yield position, count

    def _all_reads(self) -> Iterator[tuple[int, memoryview]]:
        while (wanted := self._take()) is not None:
            yield from self._reads_of(*wanted)
            self._put(*wanted)

    def _reads_of(self, offset: int, buffer: memoryview) -> Iterator[tuple[int, memoryview]]:
        self._read_to, self._end = offset, offset + len(buffer)
        if self._end > self._layout.size:
            raise IntegrityError(
                f"the image has {self._layout.size} bytes, and byte {self._end - 1} was asked for",
                needed=self._end,
                seen=self._layout.size,
            )
        for piece in self._layout.pieces(offset, self._end):
            match piece:
                case Metadata(content):
                    part = buffer[self._read_to - offset :][: len(content)]
                    self._read_to += len(part)
                    part[:] = content
                case Data(position, length):
                    part = buffer[self._read_to - offset :][:length]
                    self._read_to += length
                    yield position, part
