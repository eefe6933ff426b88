"""Which clusters of a disk an image has to hold: extents of bytes in, runs of clusters out. No I/O.

Extents have any alignment, clusters do not. What meets in one cluster:

* Any data: the whole cluster is data.
* No data, in a full image: the cluster is left out. It reads as zeroes, whether it is known to or nothing is said of it.
* No data, in a delta: the cluster is zero if zero extents cover all of it, up to the disk's end. If they cover a part, the
  rest is unchanged, which only the disk itself can tell: the whole cluster is data. If none touches it, it is left out.

Time and memory follow the number of extents, not what they cover.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from stores.contract import Extent


class Runs:
    """Runs of clusters, in order, with gaps between them: `starts[i]` up to, and without, `stops[i]`."""

    def __init__(self) -> None:
        self.starts = array("Q")
        self.stops = array("Q")

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.starts, self.stops, strict=True)

    def add(self, start: int, stop: int) -> None:
        """One more, not before the last one; it may overlap its end, and becomes a part of it where they touch."""
        if self.stops and start <= self.stops[-1]:
            self.stops[-1] = max(self.stops[-1], stop)
        elif start < stop:
            self.starts.append(start)
            self.stops.append(stop)

    def within(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The index and the part between `start` and `stop` of each run that has one."""
        for index in range(bisect_right(self.stops, start), bisect_left(self.starts, stop)):
            yield index, max(self.starts[index], start), min(self.stops[index], stop)


@dataclass(frozen=True, slots=True)
class Clusters:
    """`data` and `zero` have no cluster in common. `zero` is empty for a full image."""

    data: Runs
    zero: Runs


def classify(extents: Iterable[Extent], virtual_size: int, cluster: int, *, delta: bool) -> Clusters:
    """The clusters of a disk of `virtual_size` bytes. ValueError unless `extents` are in order, apart and inside the disk."""
    data, zero = Runs(), Runs()
    for extent in _joined(extents, virtual_size):
        start, end = extent.offset, extent.offset + extent.length
        first, stop = start // cluster, -(-end // cluster)
        if not extent.zero:
            data.add(first, stop)
        elif delta:
            covered_first = -(-start // cluster)
            covered_stop = stop if end == virtual_size else end // cluster
            data.add(first, min(covered_first, stop))
            zero.add(covered_first, covered_stop)
            data.add(max(covered_stop, first), stop)
    return Clusters(data, zero)


def _joined(extents: Iterable[Extent], virtual_size: int) -> Iterator[Extent]:
    """The same, neighbours of one kind joined, empty ones left out."""
    last = Extent(0, 0, zero=True)
    for extent in extents:
        end = last.offset + last.length
        if not end <= extent.offset <= extent.offset + extent.length <= virtual_size:
            raise ValueError(f"{extent} does not lie between {end} and the disk's end at {virtual_size}")
        if extent.zero == last.zero and extent.offset == end:
            last = replace(last, length=last.length + extent.length)
        elif extent.length:
            if last.length:
                yield last
            last = extent
    if last.length:
        yield last
