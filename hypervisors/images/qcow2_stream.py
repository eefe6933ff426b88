"""A qcow2 image in the order of its bytes, laid out from the disk's extents before a byte of the disk is read.

Source of the format: QEMU's docs/interop/qcow2.txt, version 3; all numbers big-endian. What is written has no backing file,
no data file, no snapshots, no compression, no feature bits, and reference counts of 16 bits that are all 1:

    header | L1 table | reference count table | reference count blocks | L2 tables | data clusters

each part from a cluster border on. Only L2 tables that map something are there. Data clusters are in the order of the disk.

The same extents give the same bytes, always: what an object of ours holds can be told, and proven, from its map alone
(`hypervisors.images.qcow2_readback`).
"""

from __future__ import annotations

import heapq
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from hypervisors.images.clusters import Clusters, classify
from hypervisors.images.parsing import SECTOR
from hypervisors.images.pieces import Data, Metadata, Piece
from hypervisors.images.qcow2 import CLUSTER_BITS, HEADER, HEADER_3, LARGEST_L1, LARGEST_REFCOUNT_TABLE, MAGIC
from stores.contract import Extent, KiB
from stores.errors import TooLarge

ENTRY = 8  # bytes of an entry in the L1, L2 and reference count tables
ZERO_CLUSTER = 1  # the L2 entry of a cluster that reads as zeroes whatever is below it
_COPIED = 1 << 63  # in L1 and L2 entries: what this points at has a reference count of exactly one
_REFCOUNT = 2  # bytes
_ONE = (1).to_bytes(_REFCOUNT, "big")
_REFCOUNT_ORDER = 4


@dataclass(frozen=True, slots=True)
class Run:
    """A part of the disk that the image maps, in whole clusters up to the disk's end.

    `host`: where in the image its bytes begin; None where it is zero without having any.
    """

    offset: int
    length: int
    host: int | None


def layout(virtual_size: int, extents: Iterable[Extent], *, cluster: int = 64 * KiB, delta: bool = False) -> Layout:
    """The image of a disk of `virtual_size` bytes that has data in `extents`, which are in order, apart, and of any alignment.

    A full image leaves out what no data extent touches. With `delta`, what no extent touches is left out too but means
    unchanged, and zero extents become explicit zero clusters, which hide what an older image has there. How extents share
    clusters: `hypervisors.images.clusters`. The disk that a delta is laid over may have another size; what it lacks is zero.

    Nothing is read and no table of the second level is made yet: time and memory follow the number of extents, plus 8 bytes
    for each L1 entry (128 KiB for 8 TiB at 64 KiB clusters).

    `TooLarge` where the disk, or its data, is more than QEMU opens with clusters of that size. ValueError for a cluster size
    or extents that cannot be, and for a disk that is not whole sectors of 512 bytes (QEMU's disks are).
    """
    if cluster.bit_length() - 1 not in CLUSTER_BITS or cluster.bit_count() != 1:
        raise ValueError(f"qcow2 has no clusters of {cluster} bytes")
    if virtual_size < SECTOR or virtual_size % SECTOR:
        raise ValueError(f"a disk of {virtual_size} bytes is not whole sectors")
    largest = LARGEST_L1 // ENTRY * (cluster // ENTRY) * cluster
    if virtual_size > largest:
        raise TooLarge(
            f"a disk of {virtual_size} bytes does not fit in a qcow2 image with clusters of {cluster} bytes, which holds"
            f" {largest}: use larger clusters",
            limit=largest,
            seen=virtual_size,
        )
    return Layout(virtual_size, classify(extents, virtual_size, cluster, delta=delta), cluster)


class Layout:
    """The finished image, but for its data. `layout` makes it; it never changes, and any thread may use it.

    `size`: exactly how many bytes the image has. `data_at`: where in it the data clusters begin, right after all tables.
    """

    def __init__(self, virtual_size: int, clusters: Clusters, cluster: int) -> None:
        self.virtual_size = virtual_size
        self.cluster = cluster
        self._data, self._zero = clusters.data, clusters.zero
        self._before = array("Q", accumulate((stop - start for start, stop in self._data), initial=0))
        self._entries = cluster // ENTRY
        self._tables = _tables(clusters, self._entries)
        l1_entries = -(-virtual_size // (self._entries * cluster))
        l1_clusters = -(-l1_entries * ENTRY // cluster)
        counted = 1 + l1_clusters + len(self._tables) + self._before[-1]
        table_clusters, blocks = _refcounts(counted, cluster)
        self._counted = counted + table_clusters + blocks
        self._first_block = 1 + l1_clusters + table_clusters
        self._first_l2 = self._first_block + blocks
        self.data_at = (self._first_l2 + len(self._tables)) * cluster
        self.size = self._counted * cluster
        if table_clusters * cluster > LARGEST_REFCOUNT_TABLE:
            limit = LARGEST_REFCOUNT_TABLE // ENTRY * (cluster // _REFCOUNT) * cluster
            raise TooLarge(
                f"a qcow2 image of {self.size} bytes cannot have clusters of {cluster} bytes: with these, {limit} is the"
                " most; use larger clusters",
                limit=limit,
                seen=self.size,
            )
        l1_table = array("Q", bytes(l1_entries * ENTRY))
        for number, index in enumerate(self._tables, self._first_l2):
            l1_table[index] = number * cluster | _COPIED
        refcount_table = array("Q", range(self._first_block * cluster, self._first_l2 * cluster, cluster))
        parts = (
            _header(virtual_size, cluster, l1_entries, 1 + l1_clusters, table_clusters),
            _big_endian(l1_table),
            _big_endian(refcount_table),
        )
        self._head = b"".join(part + bytes(-len(part) % cluster) for part in parts)

    def pieces(self, start: int = 0, stop: int | None = None) -> Iterator[Piece]:
        """The image's bytes from `start` to `stop`, all of them unless told, in order and without gaps.

        `Data` is as long as the disk's clusters follow one another, within the disk: what the last cluster has beyond the
        disk's end follows as `Metadata`. Tables are made when their turn comes, one cluster at a time.
        """
        stop = self.size if stop is None else stop
        yield from self._metadata_pieces(start, min(stop, self.data_at))
        yield from self._data_pieces(max(start, self.data_at), stop)

    def runs(self) -> Iterator[Run]:
        """What the image maps, in the order of the disk. What lies between is left out."""
        data = (
            (start, stop, self.data_at + before * self.cluster)
            for (start, stop), before in zip(self._data, self._before, strict=False)
        )
        zero = ((start, stop, None) for start, stop in self._zero)
        for start, stop, host in heapq.merge(data, zero, key=lambda run: run[0]):
            offset = start * self.cluster
            yield Run(offset, min(stop * self.cluster, self.virtual_size) - offset, host)

    # ------------------------------------------------------------------------------------------------- in the image

    def _metadata_pieces(self, position: int, stop: int) -> Iterator[Metadata]:
        while position < stop:
            if position < len(self._head):
                content = self._head[position:stop]
            else:
                number, within = divmod(position, self.cluster)
                made = self._block(number) if number < self._first_l2 else self._l2_table(number)
                content = made[within : within + stop - position]
            yield Metadata(content)
            position += len(content)

    def _data_pieces(self, position: int, stop: int) -> Iterator[Piece]:
        index = bisect_right(self._before, (position - self.data_at) // self.cluster) - 1
        while position < stop:
            begin, end = (self.data_at + before * self.cluster for before in self._before[index : index + 2])
            length = min(end, stop) - position
            offset = self._data.starts[index] * self.cluster + position - begin
            within_disk = max(0, min(length, self.virtual_size - offset))
            if within_disk:
                yield Data(offset, within_disk)
            if within_disk < length:
                yield Metadata(bytes(length - within_disk))
            position += length
            index += 1

    # ------------------------------------------------------------------------------------------------------- tables

    def _block(self, number: int) -> bytes:
        """The reference count block in that cluster of the image."""
        counts = self.cluster // _REFCOUNT
        used = min(counts, self._counted - (number - self._first_block) * counts)
        return (_ONE * used).ljust(self.cluster, b"\0")

    def _l2_table(self, number: int) -> bytes:
        """The L2 table in that cluster of the image."""
        first = self._tables[number - self._first_l2] * self._entries
        table = array("Q", bytes(self.cluster))
        for index, start, stop in self._data.within(first, first + self._entries):
            host = self.data_at + (self._before[index] + start - self._data.starts[index]) * self.cluster
            begin = host | _COPIED
            run = range(begin, begin + (stop - start) * self.cluster, self.cluster)
            table[start - first : stop - first] = array("Q", run)
        for _, start, stop in self._zero.within(first, first + self._entries):
            table[start - first : stop - first] = array("Q", (ZERO_CLUSTER,)) * (stop - start)
        return _big_endian(table)


def _header(virtual_size: int, cluster: int, l1_entries: int, refcount_table: int, refcount_clusters: int) -> bytes:
    """The L1 table is in the cluster after it, the reference count table in cluster `refcount_table`. No extensions: zeroes
    end them."""
    length = HEADER.size + HEADER_3.size
    return HEADER.pack(
        MAGIC,
        3,  # the version
        0,  # no backing file,
        0,  # whose name has no length
        cluster.bit_length() - 1,
        virtual_size,
        0,  # no encryption
        l1_entries,
        cluster,
        refcount_table * cluster,
        refcount_clusters,
        0,  # no snapshots,
        0,  # and no table of them
    ) + HEADER_3.pack(0, 0, 0, _REFCOUNT_ORDER, length)  # no incompatible, compatible and auto-clear features


def _refcounts(counted: int, cluster: int) -> tuple[int, int]:
    """Clusters of the table and of the blocks that count `counted` clusters and themselves."""
    table = blocks = 0
    while True:
        needed = -(-(counted + table + blocks) // (cluster // _REFCOUNT))
        if needed == blocks:
            return table, blocks
        table, blocks = -(-needed * ENTRY // cluster), needed


def _tables(clusters: Clusters, entries: int) -> array[int]:
    """The indices of the L2 tables, of so many entries each, that map anything."""
    tables = array("Q")
    following = 0
    for start, stop in heapq.merge(clusters.data, clusters.zero):
        first, following = max(start // entries, following), -(-stop // entries)
        tables.extend(range(first, following))
    return tables


def _big_endian(table: array[int]) -> bytes:
    if sys.byteorder == "little":
        table.byteswap()
    return table.tobytes()
