"""What a disk holds, as one number that does not ask in which order it was written or is read. No I/O.

Content is cut into cells on a fixed grid. A cell's digest has its place in it, and the sum of all digests is that of the disk;
cells of zeroes do not count, so that a cell that was never written and one of zeroes are the same. It tells content that was
lost or misplaced, not a forger.
"""

from __future__ import annotations

import threading
from hashlib import blake2b

from stores.contract import KiB

CELL = 64 * KiB
"""What `hypervisors.xen.chunks` and `stores.transfer.placed` leave zeroes out by: a cell is sent whole or not at all."""

_DIGEST = 16
_MODULUS = 1 << 8 * _DIGEST
_ZEROES = bytes(CELL)


class ContentSum:
    """Several threads may add to it."""

    def __init__(self) -> None:
        self._sum = 0
        self._adding = threading.Lock()

    @property
    def value(self) -> int:
        return self._sum

    def add(self, offset: int, data: memoryview) -> None:
        """The disk's bytes from `offset` on, a multiple of `CELL`: whole cells, but for the last one of the disk."""
        if offset % CELL:
            raise ValueError(f"{offset} is not where a cell begins")
        found = sum(_digest(offset + start, data[start : start + CELL]) for start in range(0, len(data), CELL))
        with self._adding:
            self._sum = (self._sum + found) % _MODULUS


class CellJoiner:
    """Parts of a disk in order, cut anywhere, into a sum. What lies between them is zero."""

    def __init__(self, total: ContentSum) -> None:
        self._total = total
        self._cell = memoryview(bytearray(CELL))
        self._offset = 0  # in the disk, of the cell

    def add(self, offset: int, data: memoryview) -> None:
        while data:
            within = offset % CELL
            if offset - within != self._offset:
                self.end()
                self._offset = offset - within
            part = data[: CELL - within]
            self._cell[within : within + len(part)] = part
            offset, data = offset + len(part), data[len(part) :]

    def end(self) -> None:
        """Nothing more comes of the last cell."""
        self._total.add(self._offset, self._cell)
        self._cell[:] = _ZEROES


def _digest(offset: int, cell: memoryview) -> int:
    content = bytes(cell).ljust(CELL, b"\0")
    if content == _ZEROES:
        return 0
    return int.from_bytes(blake2b(content, digest_size=_DIGEST, person=offset.to_bytes(16, "little")).digest())
