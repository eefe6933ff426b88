"""Calls that take their time: made by their task, so that one can stop waiting for them."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from hypervisors.xen.errors import HANDLE_INVALID, XapiFailure
from hypervisors.xen.events import Progress
from hypervisors.xen.pool import XenPool
from hypervisors.xen.tasks import lost, mark
from stores.errors import StorageError, Unavailable
from stores.uninterrupted import uninterrupted

_log = structlog.get_logger(__name__)

_CANCEL_S = 5.0
"""How long a cancelled task has to end before it is left to itself: not everything can be cancelled."""


async def carried_out(
    pool: XenPool,
    method: str,
    *params: Any,
    within_s: float | None = None,
    on: str | None = None,
    progress: Progress = lambda done: None,
) -> str:
    """What `method` returned, decoded. `TimeoutError` after `within_s` seconds. The task is gone when this returns or raises;
    what it was about may still be done where XAPI could not be stopped. `progress` gets 0 to 1.

    `Unavailable` where nobody says whether the call was made, unless it shows at the VDI `on`, which it returns.
    """
    begun: list[str] = []

    async def begin() -> None:
        try:
            begun.append(str(await pool.call(f"Async.{method}", *params)))
        except Unavailable:
            found = await lost(pool, f"Async.{method}", on) if on is not None else None
            if found is None:
                raise
            begun.append(found)
        await mark(pool, begun[0])

    try:
        await uninterrupted(begin())
        async with asyncio.timeout(within_s):
            return await (await pool.connection()).tasks.result(begun[0], progress=progress)
    finally:
        for task in begun:
            await uninterrupted(_over(pool, task))


async def _over(pool: XenPool, task: str) -> None:
    """Cancelled where it is still at work, and removed."""
    try:
        if await pool.call("task.get_status", task) == "pending":
            await _cancelled(pool, task)
        await pool.surely("task.destroy", task)
    except StorageError as problem:
        if problem.details.get("code") != HANDLE_INVALID:
            _log.warning("task left behind", task=task, error=problem.message)


async def _cancelled(pool: XenPool, task: str) -> None:
    try:
        await pool.call("task.cancel", task)
    except XapiFailure as problem:
        _log.info("task cannot be cancelled", task=task, error=problem.message)
    try:
        async with asyncio.timeout(min(_CANCEL_S, pool.settings.grace_s)):
            await (await pool.connection()).tasks.ended(task)
    except TimeoutError:
        _log.warning("cancelled task goes on", task=task)
