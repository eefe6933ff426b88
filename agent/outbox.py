"""Events for the management server: what was answered `staged` has ended. Each comes again until it is acknowledged.

The events are rows of the upload queue, written in the transaction in which an upload ends, and removed when they are
acknowledged. So they outlive the agent, and none is lost; whoever reads them has to bear to see one twice.

There is one for each command, since that is what the reader knows: it comes when the command is answered, and the last of its
uploads has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

from agent.upload_models import EventsShown, Finished, UploadShown
from agent.upload_service import UploadService

LOOK_S = 0.5
"""How often a waiting reader looks."""


class Outbox:
    """Holds no state."""

    def __init__(self, uploads: UploadService, under_way: Callable[[str], bool], *, look_s: float = LOOK_S) -> None:
        """`under_way`: whether the command of that id is not answered yet."""
        self._uploads = uploads
        self._under_way = under_way
        self._look_s = look_s

    async def events(self, *, limit: int, wait_s: float) -> EventsShown:
        """At most `limit` that were not acknowledged, the oldest first. Where there is none: as soon as there is one, or none
        after `wait_s` seconds."""
        clock = asyncio.get_running_loop().time
        late = clock() + wait_s
        while True:
            finished = await self._finished()
            if finished or clock() >= late:
                return EventsShown(events=[_event(*each) for each in finished.items()][:limit])
            await asyncio.sleep(min(self._look_s, max(0.0, late - clock())))

    async def acknowledge(self, event: str) -> None:
        """It has arrived and is not sent again. Idempotent: an event that there is not was acknowledged before. `PoolSick`."""
        for upload in (await self._finished()).get(event, ()):
            await self._uploads.acknowledge(upload.id)

    async def _finished(self) -> dict[str, list[UploadShown]]:
        finished = await self._uploads.finished()
        return {command: uploads for command, uploads in finished.items() if not self._under_way(command)}


def _event(command: str, uploads: list[UploadShown]) -> Finished:
    all_stored = all(upload.state == "stored" for upload in uploads)
    what: Literal["stored", "cancelled"] = "stored" if all_stored else "cancelled"
    return Finished(id=command, event=what, uploads=uploads)
