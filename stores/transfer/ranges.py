"""Which parts of an object are there: ranges of bytes, joined where they touch, as text for whoever goes on later."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Ranges:
    """A set of bytes as disjoint ranges (start, end), in order. Reading it from other threads is fine while nobody adds."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """`ValueError` unless 0 <= start <= end."""
        if not 0 <= start <= end:
            raise ValueError(f"{start}-{end} is not a range")
        if start == end:
            return
        first = bisect_left(self._ends, start)  # the first range that ends at or after `start`: it touches or follows
        last = bisect_right(self._starts, end)  # the first range that begins after `end`
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def cover(self, start: int, end: int) -> bool:
        """Whether all bytes from `start` up to `end` are there. An empty range always is."""
        return start >= end or self.reach(start) >= end

    def reach(self, start: int) -> int:
        """The end of what is there without a gap from `start` on; `start` itself where nothing is."""
        at = bisect_right(self._starts, start) - 1
        return max(start, self._ends[at]) if at >= 0 else start

    @property
    def total(self) -> int:
        """How many bytes are there."""
        return sum(self._ends) - sum(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._ends, strict=True))

    def __str__(self) -> str:
        return ",".join(f"{start}-{end}" for start, end in self)

    @classmethod
    def parse(cls, text: str) -> Ranges:
        """What `str` gave. `ValueError` for anything else."""
        ranges = cls()
        for part in filter(None, text.split(",")):
            start, _, end = part.partition("-")
            ranges.add(int(start), int(end))
        return ranges
