"""The body of `PUT /import_raw_vdi` with `chunked`: parts of a disk, each in a frame that says where it belongs. No I/O.

Source of the format: chunked.ml of xen-api's vhd-tool. A frame is the offset (8 bytes), the length (4 bytes), both
little-endian, and the data; one of length 0 at offset 0 is the end. XAPI writes each frame where it belongs, in the order
in which they come, and takes whole sectors only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from hypervisors.images.parsing import SECTOR
from hypervisors.xen.content_sum import CELL, CellJoiner, ContentSum
from stores.contract import MiB

FRAME = 2 * MiB
"""The most that is in one frame, and what none crosses a multiple of: XAPI writes in such steps, and VHD has such blocks."""

END = bytes(12)

_HEAD = struct.Struct("<QI")
_RUN = CELL
"""Zeroes are left out in multiples of it: to send less of them costs less than another write costs the host."""

_ZEROES = bytes(_RUN)


def frame_head(offset: int, length: int) -> bytes:
    """What goes before `length` bytes of the disk from `offset` on, both multiples of a sector."""
    return _HEAD.pack(offset, length)


class ChunkEncoder:
    """Pieces of a disk in, the bytes to send out. One for each body."""

    def __init__(self, *, skip_zeroes: bool, sums: ContentSum | None = None) -> None:
        """`skip_zeroes`: the disk is new, and what is not sent reads as zero. Otherwise zeroes are sent as all data is. `sums`
        gets all that is sent."""
        self._skip_zeroes = skip_zeroes
        self._sums = CellJoiner(sums) if sums is not None else None  # sectors that are there begin anywhere in a cell
        self._buffer = memoryview(bytearray(FRAME))
        self._offset = 0  # in the disk, of the buffer's first byte
        self._length = 0  # how much of the buffer is filled

    def add(self, offset: int, data: bytes | bytearray | memoryview) -> Iterator[bytes | memoryview]:
        """The frames that are full by now. `data` is the disk's from `offset` on; later pieces overwrite earlier ones.

        Pieces of any length that follow one another are joined: what is joined has to be whole sectors in the end (ValueError).
        What is given out is valid until the next is asked for, and all of it has to be taken. `data` is not kept.
        """
        view = memoryview(data).cast("B")
        while view:
            if offset != self._offset + self._length or (self._length and offset % FRAME == 0):
                yield from self._frames()
                self._offset = offset
            part = view[: FRAME - offset % FRAME]
            self._buffer[self._length : self._length + len(part)] = part
            self._length += len(part)
            offset += len(part)
            view = view[len(part) :]

    def finish(self) -> Iterator[bytes | memoryview]:
        """The rest, and the end."""
        yield from self._frames()
        if self._sums is not None:
            self._sums.end()
        yield END

    def _frames(self) -> Iterator[bytes | memoryview]:
        if self._offset % SECTOR or self._length % SECTOR:
            raise ValueError(f"{self._length} bytes at {self._offset} are not whole sectors")
        for start, stop in self._runs():
            if self._sums is not None:
                self._sums.add(self._offset + start, self._buffer[start:stop])
            yield frame_head(self._offset + start, stop - start)
            yield self._buffer[start:stop]
        self._length = 0

    def _runs(self) -> Iterator[tuple[int, int]]:
        """The parts of the buffer to send."""
        start = position = 0
        while position < self._length:
            end = min(position + _RUN - (self._offset + position) % _RUN, self._length)
            if self._skip_zeroes and _ZEROES.startswith(bytes(self._buffer[position:end])):
                if start < position:
                    yield start, position
                start = end
            position = end
        if start < position:
            yield start, position
