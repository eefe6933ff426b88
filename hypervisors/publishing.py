"""The last step of everything that makes an image: record, then image, both or neither."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypervisors.context import Pool
from hypervisors.records import Record
from stores.contract import ObjectInfo, PendingWrite

T = TypeVar("T")


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
        await to_the_end(save())
        await to_the_end(commit())
    except BaseException:
        if published:
            await to_the_end(pool.store.delete(ref))
        if recorded:
            await to_the_end(pool.records.remove(ref, record.parent))
        raise
    return published[0]


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end even when cancelled, and only then be cancelled. For short steps that must not stop half way."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
        except Exception:  # noqa: BLE001 - raised below, from the task itself
            break
    if cancelled:
        task.exception()  # seen: the cancellation is what the caller is told
        raise asyncio.CancelledError
    return task.result()
