"""Looks at the uploads again and again: for the metrics, and for an alarm in the log when they do not get on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from agent.metrics import UploadMetrics

if TYPE_CHECKING:  # what the queue stands on is only imported where there is a cache
    from stores.cache.writeback.queue import Figures, UploadQueue

INTERVAL_S = 5.0
_log = structlog.get_logger(__name__)


async def watch(queue: UploadQueue, metrics: UploadMetrics, *, alarm_s: float, interval_s: float = INTERVAL_S) -> None:
    """Until cancelled. A scrape shows what was seen last, and so never waits for a disk."""
    late = False
    while True:
        figures = await queue.figures()
        metrics.measure(figures)
        late = _told(figures, late, alarm_s)
        await asyncio.sleep(interval_s)


def _told(now: Figures, late: bool, alarm_s: float) -> bool:
    """Whether an upload is older than `alarm_s` and not stored: told once, and once more when that is over."""
    is_late = now.oldest_s > alarm_s
    if is_late and not late:
        _log.error("uploads are late", oldest_s=round(now.oldest_s), uploads=now.unstored, bytes=now.unstored_bytes)
    elif late and not is_late:
        _log.info("uploads are in time again", uploads=now.unstored, bytes=now.unstored_bytes)
    return is_late
