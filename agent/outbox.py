"""Events for the management server: what was answered `staged` has ended. Each comes again until it is acknowledged.

The events are rows of the upload queue, written in the transaction in which the upload ends, and removed when they are
acknowledged. So they outlive the agent, and none is lost; whoever reads them has to bear to see one twice.
"""

from __future__ import annotations

import asyncio

from agent.upload_models import EventsShown, FinishedUpload, UploadShown
from agent.upload_service import UploadService

LOOK_S = 0.5
"""How often a waiting reader looks."""


class Outbox:
    """Holds no state."""

    def __init__(self, uploads: UploadService, *, look_s: float = LOOK_S) -> None:
        self._uploads = uploads
        self._look_s = look_s

    async def events(self, *, limit: int, wait_s: float) -> EventsShown:
        """At most `limit` that were not acknowledged, per pool the oldest first. Where there is none: as soon as there is one,
        or none after `wait_s` seconds. `PoolSick`."""
        clock = asyncio.get_running_loop().time
        late = clock() + wait_s
        while True:
            ended = await self._uploads.ended(limit)
            if ended or clock() >= late:
                return EventsShown(events=[_event(upload) for upload in ended])
            await asyncio.sleep(min(self._look_s, max(0.0, late - clock())))

    async def acknowledge(self, event: str) -> None:
        """It has arrived and is not sent again. Idempotent: an event that nobody knows was acknowledged before. `PoolSick`."""
        await self._uploads.acknowledge(event)


def _event(upload: UploadShown) -> FinishedUpload:
    return FinishedUpload.model_validate({"id": upload.id, "event": upload.state, "upload": upload})
