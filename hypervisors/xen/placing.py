"""A new disk of the pool as a place for pieces of its content, which go to its host in whatever order they come."""

from __future__ import annotations

from hypervisors.images.parsing import SECTOR
from hypervisors.xen.chunks import frame_head
from hypervisors.xen.content_sum import ContentSum
from hypervisors.xen.wire import Exchange
from stores.transfer.placed import data_runs


class NewContent:
    """A `stores.transfer.placed.Place`. Zeroes are left out: the disk is new. Pieces are those of the engine, which lie within
    multiples of 2 MiB; each becomes frames of its data, straight from the memory in which it came."""

    def __init__(self, exchange: Exchange, size: int, sums: ContentSum | None) -> None:
        """`size` of the content in bytes: its last sector is filled up with zeroes. `sums` gets all that is sent."""
        self._exchange = exchange
        self._size = size
        self._sums = sums

    def write(self, offset: int, view: memoryview) -> None:
        """`HostEnded`, `Unavailable`."""
        for start, end in data_runs(view, offset):
            padding = bytes(-self._size % SECTOR) if offset + end == self._size else b""
            head = frame_head(offset + start, end - start + len(padding))
            self._exchange.put(head, view[start:end], padding)
            if self._sums is not None:
                self._sums.add(offset + start, view[start:end])

    def zero(self, offset: int, length: int) -> None:
        """Nothing to do."""

    def abort(self) -> None:
        self._exchange.abort()
