"""The last step of everything that makes an image: record, then image, both or neither."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hypervisors.primary import Pool
from hypervisors.records import Record
from stores.contract import ObjectInfo, PendingWrite
from stores.uninterrupted import uninterrupted


class Publication:
    """What of an image has been published so far."""

    def __init__(self, pool: Pool, ref: str) -> None:
        self._pool = pool
        self._ref = ref
        self._record: Record | None = None
        self._image: ObjectInfo | None = None

    async def publish(self, pending: PendingWrite, record: Record) -> ObjectInfo:
        """Durable when it returns. The record comes first, so that there is never an image of unknown format; a crash between
        the two leaves a record without an image, which recovery removes.

        `AlreadyExists` if somebody else published the name meanwhile; theirs is not touched.
        """
        await uninterrupted(self._save(record))
        return await uninterrupted(self._commit(pending))

    async def undo(self) -> None:
        """Take back what was published here, and nothing else."""
        if self._image is not None:
            await self._pool.store.delete(self._ref)
        if self._record is not None:
            await self._pool.records.remove(self._ref, self._record.parent)

    async def _save(self, record: Record) -> None:
        await self._pool.records.save(self._ref, record, token=record.token)
        self._record = record

    async def _commit(self, pending: PendingWrite) -> ObjectInfo:
        self._image = await pending.commit()
        return self._image


@asynccontextmanager
async def publishing(pool: Pool, ref: str) -> AsyncIterator[Publication]:
    """The outermost context of whoever makes an image. Failed or cancelled anywhere in it, also while the contexts inside are
    being left, neither image nor record is there afterwards."""
    publication = Publication(pool, ref)
    try:
        yield publication
    except BaseException:
        await uninterrupted(publication.undo())
        raise
