"""A scrub that tells how far it is."""

from __future__ import annotations

from stores.cache.scrub import Pace
from stores.contract import Progress


class TellingPace(Pace):
    """At most `rate` bytes per second, each of them told."""

    def __init__(self, rate: int, progress: Progress) -> None:
        super().__init__(rate)
        self._progress = progress

    async def passed(self, count: int) -> None:
        self._progress.advance(count)
        await super().passed(count)
