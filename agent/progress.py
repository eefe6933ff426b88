"""How far a running command is: written by whoever does the work, read by whoever asks."""

from __future__ import annotations

import threading
from collections.abc import Callable

from agent.commands import ProgressReport


class Tracker:
    """A `stores.contract.Progress` that can be read. Cheap enough to be told of every buffer, from any thread."""

    def __init__(self, clock: Callable[[], float], *, count: Callable[[int], None] | None = None) -> None:
        """`clock` in seconds, monotonic. `count` is told of every byte as well."""
        self._clock = clock
        self._count = count
        self._lock = threading.Lock()
        self._phase: str | None = None
        self._total: int | None = None
        self._bytes = 0
        self._since = 0.0

    def phase(self, name: str, total: int | None = None) -> None:
        with self._lock:
            self._phase, self._total, self._bytes, self._since = name, total, 0, self._clock()

    def advance(self, count: int) -> None:
        with self._lock:
            self._bytes += count
        if self._count is not None:
            self._count(count)

    def report(self) -> ProgressReport | None:
        """None before the first phase."""
        with self._lock:
            if self._phase is None:
                return None
            elapsed = self._clock() - self._since
            rate = self._bytes / elapsed if elapsed > 0 else 0.0
            return ProgressReport(phase=self._phase, bytes=self._bytes, total=self._total, rate=round(rate))
