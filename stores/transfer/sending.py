"""Carrying out an upload: every part, several at a time, then the commit."""

from __future__ import annotations

import asyncio

from stores.contract import ObjectInfo, PendingUpload, Progress
from stores.transfer.groups import first_failure


async def send_all(upload: PendingUpload, *, progress: Progress) -> ObjectInfo:
    """Sends the parts in order, `upload.parallel` at a time, and commits. Raises the first failure, as it is; the other parts
    are then given up. `progress` is advanced by every part that the store has, sent now or found there."""
    numbers = iter(range(1, upload.parts + 1))

    async def send_some() -> None:
        for number in numbers:
            await upload.send(number)
            progress.advance(upload.length(number))

    with first_failure():
        async with asyncio.TaskGroup() as group:
            for turn in range(min(upload.parallel, upload.parts)):
                group.create_task(send_some(), name=f"upload {turn}")
    return await upload.commit()
