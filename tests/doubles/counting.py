"""A store observer that remembers."""

from __future__ import annotations

from collections import Counter

from stores.wrappers.reporting import Direction


class Counting:
    """Calls by operation and outcome, bytes by direction."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self.bytes: Counter[Direction] = Counter()
        self.seconds: list[float] = []

    def call(self, store: str, operation: str, outcome: str, seconds: float) -> None:
        self.calls[operation, outcome] += 1
        self.seconds.append(seconds)

    def moved(self, store: str, direction: Direction, count: int) -> None:
        self.bytes[direction] += count
