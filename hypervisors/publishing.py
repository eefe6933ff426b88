"""The last step of everything that makes an image: record, then image, both or neither."""

from __future__ import annotations

from hypervisors.context import Pool
from hypervisors.records import Record
from stores.contract import ObjectInfo, PendingWrite
from stores.uninterrupted import uninterrupted


async def publish(pool: Pool, ref: str, pending: PendingWrite, record: Record) -> ObjectInfo:
    """Durable when it returns. The record comes first, so that there is never an image of unknown format; a crash between the
    two leaves a record without an image, which recovery removes.

    Failed or cancelled, neither is left, not even when the cancellation came while the image was being renamed.
    `AlreadyExists` if somebody else published the name meanwhile; theirs is not touched.
    """
    published: list[ObjectInfo] = []
    recorded = False

    async def save() -> None:
        nonlocal recorded
        await pool.records.save(ref, record, token=record.token)
        recorded = True

    async def commit() -> None:
        published.append(await pending.commit())

    try:
        await uninterrupted(save())
        await uninterrupted(commit())
    except BaseException:
        if published:
            await uninterrupted(pool.store.delete(ref))
        if recorded:
            await uninterrupted(pool.records.remove(ref, record.parent))
        raise
    return published[0]
