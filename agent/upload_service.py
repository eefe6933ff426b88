"""What the agent sees of the upload queue and does with it: for commands, the API, the command line and the outbox."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from agent.upload_models import UploadShown, UploadsShown
from stores.cache.health import PoolSick
from stores.cache.writeback.errors import UploadUnknown
from stores.contract import ObjectInfo
from stores.errors import StoreError

if TYPE_CHECKING:  # what the queue stands on is only imported where there is a cache
    from stores.cache.ledger.uploads import Upload
    from stores.cache.pool import Pool
    from stores.cache.writeback.queue import UploadQueue

EVENTS = 10_000
"""Ended uploads that are looked at together: more than any reader leaves unacknowledged."""
ENDED = ("stored", "cancelled")
GOING = ("cancelling", *ENDED)
"""States of uploads that nobody waits for any more: their bytes are in the store, or were given up."""
BLOCKED = ("failed", "refused")
"""States that only an operator's help ends."""


class UploadService:
    """Over the process's queue and its pools, or over none where there is no cache: then there is no upload.

    Lists leave out what a sick pool has; all else raises `PoolSick` where it would have to know that.
    """

    def __init__(self, queue: UploadQueue | None = None, pools: Sequence[Pool] = ()) -> None:
        self._queue = queue
        self._pools = pools

    async def uploads(self) -> UploadsShown:
        if self._queue is None:
            return UploadsShown(uploads=[])
        uploads = [shown(upload) for upload in await self._queue.list()]
        breakers = (await self._queue.figures()).breakers
        return UploadsShown(uploads=uploads, breakers={store: state.value for store, state in breakers.items()})

    async def show(self, upload: str) -> UploadShown:
        """`UploadUnknown`."""
        return shown(await self._of(upload).show(upload))

    async def wait(self, upload: str, seconds: float) -> UploadShown:
        """The upload when it has ended, when only an operator can help it, or after that many seconds. `UploadUnknown`."""
        queue = self._of(upload)
        now = shown(await queue.show(upload))
        if now.state in (*GOING, *BLOCKED):
            return now
        stored: ObjectInfo | None = None
        with suppress(StoreError):  # what it says is in what is shown
            stored = await queue.stored(upload, deadline_s=seconds)
        try:
            return await self.show(upload)
        except UploadUnknown:
            if stored is None:
                raise
            done = {"state": "stored", "sent": now.size, "version": stored.version, "error": None, "nextAttempt": None}
            return now.model_copy(update=done)

    async def retry(self, upload: str | None) -> int:
        """Try that one now, or all that wait, were refused or failed. How many. `UploadUnknown`, `UploadOver`."""
        if upload is None and self._queue is None:
            return 0
        return await self._of(upload or "").retry(upload)

    async def cancel(self, upload: str) -> UploadShown:
        """Give it up: its bytes go from this host and, as soon as it can be reached, from the store. Idempotent.
        `UploadUnknown`; `UploadOver` when it was stored before that."""
        return shown(await self._of(upload).cancel(upload))

    # ------------------------------------------------------------------------------------------------- for commands

    async def stored(self, upload: str) -> None:
        """Returns when the store has confirmed it, and whatever else its command has staged. Raises the error of an upload that
        failed, `UploadCancelled`."""
        for each in await self._with_others(upload):
            await self._of(each).stored(each, deadline_s=None)

    async def settle(self, token: str, *, give_up: bool) -> None:
        """What the command of that id has staged is stored, or with `give_up` given up, when this returns. Otherwise the error
        that says how far it is: `UploadPending`, or why it failed."""
        for upload in await self.left():
            if upload.command == token:
                if give_up:
                    await self.cancel(upload.id)
                else:
                    await self._of(upload.id).stored(upload.id, deadline_s=0)

    async def pending_of(self, token: str) -> str | None:
        """An upload of what the command of that id has staged, while there is one that is not stored."""
        return next((upload.id for upload in await self.left() if upload.command == token), None)

    async def require_stored(self, upload: str) -> None:
        """As `stored`, without waiting: `UploadPending` where it would have to."""
        for each in await self._with_others(upload):
            await self._of(each).stored(each, deadline_s=0)

    # -------------------------------------------------------------------------------------------------- for draining

    async def emptied(self, seconds: float) -> None:
        """Stages nothing new from now on, and returns when nothing is left to upload, when only an operator can help what is
        left, or after that many seconds."""
        if self._queue is not None:
            await self._queue.drain(deadline_s=seconds)

    def resume(self) -> None:
        """Stage again."""
        if self._queue is not None:
            self._queue.resume()

    async def left(self) -> list[UploadShown]:
        """All that no store has yet."""
        left = [upload for upload in (await self.uploads()).uploads if upload.state not in GOING]
        for pool in self._pools:
            if not pool.healthy:
                raise PoolSick(
                    f"the cache pool {pool.name} is sick, and nobody can say what of it no store has yet: {pool.ailment}",
                    pool=pool.name,
                )
        return left

    # ---------------------------------------------------------------------------------------------------- for events

    async def finished(self) -> dict[str, list[UploadShown]]:
        """Uploads of commands that were answered `staged`, by the command's id: of those of which all have ended, and nobody
        has acknowledged that."""
        found: dict[str, list[UploadShown]] = {}
        if self._queue is None or not await self._queue.events(limit=1):
            return found
        # Asked for first: what ends between the two questions is left for the next time.
        going = {upload.command for upload in (await self.uploads()).uploads if upload.state not in ENDED}
        for upload in await self._queue.events(limit=EVENTS):
            if upload.token not in going:
                found.setdefault(upload.token, []).append(shown(upload))
        return found

    async def acknowledge(self, upload: str) -> None:
        """Its end is known where it matters: forget it. Idempotent."""
        if self._queue is not None:
            await self._queue.acknowledge(upload)

    async def _with_others(self, upload: str) -> list[str]:
        """That one, and what its command has staged besides."""
        command = (await self.show(upload)).command
        return [upload, *(each.id for each in await self.left() if each.command == command and each.id != upload)]

    def _of(self, upload: str) -> UploadQueue:
        if self._queue is None:
            raise UploadUnknown(f"there is no upload {upload}: this agent has no cache, which is where uploads wait")
        return self._queue


def shown(upload: Upload) -> UploadShown:
    return UploadShown(
        id=upload.id,
        pool=upload.pool,
        store=upload.store,
        ref=upload.ref,
        command=upload.token,
        size=upload.size,
        state=upload.state.value,
        created=upload.created,
        age=upload.age_s,
        attempts=upload.attempts,
        sent=upload.sent,
        resumed=upload.resumed,
        error=upload.error,
        nextAttempt=upload.next_attempt_s if upload.state.value == "waiting" else None,
        version=upload.version,
        finished=upload.finished,
    )
