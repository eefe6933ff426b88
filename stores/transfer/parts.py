"""How an upload is cut into parts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Parts:
    """Parts of `part` bytes, numbered from 1; the last one has the rest. An empty object has one empty part."""

    size: int
    part: int

    @property
    def count(self) -> int:
        return max(1, -(-self.size // self.part))

    def range(self, number: int) -> tuple[int, int]:
        """Start and end of that part."""
        start = (number - 1) * self.part
        return start, min(start + self.part, self.size)

    def length(self, number: int) -> int:
        """Its bytes."""
        start, end = self.range(number)
        return end - start
