"""What dead processes left in a pool of hosts, and no command knows of: found at start, by our marks alone, and removed.

Transfers that a host goes on with, disks that it keeps attached, VDIs that were never finished or that were replaced, locks.
`SrStore.discard` does the same for what one command is known to have left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress

import structlog

from hypervisors.xen.errors import HANDLE_INVALID, XapiFailure
from hypervisors.xen.locks import abandoned, remove_lock
from hypervisors.xen.marks import Copying, Disk, Held, holder, left_of, lock_keys
from hypervisors.xen.pool import XenPool
from hypervisors.xen.removing import copying_ended, end_copying, remove_replaced, remove_unfinished, replaced_by
from hypervisors.xen.repository import Repository, unplug_from_control_domains
from stores.errors import NotFound, StorageError

_log = structlog.get_logger(__name__)

_VBD_TASK = "task_id"
"""What XAPI notes in the `other_config` of a VBD that it attaches to a control domain for a task of its own (vbd_task_key of
xen-api's xapi_globs.ml)."""


async def reconcile(pool: XenPool, *, claimed: Collection[str] = ()) -> None:
    """Idempotent; may run beside commands. What belongs to a command whose token is `claimed` is let be.

    Of other agents' only what they cannot want any more is removed: their lock has expired. What cannot be removed now is
    logged and left for the next time. Raises only where the pool cannot be asked what there is.
    """
    await _end_tasks(pool)
    for handle, record in (await pool.call("SR.get_all_records")).items():
        sr = Repository.of(pool, handle, record)
        await _tidy(sr, claimed)


# ------------------------------------------------------------------------------------------------------------ tasks


async def _end_tasks(pool: XenPool) -> None:
    records = await pool.call("task.get_all_records")
    ours = [
        task
        for task, record in records.items()
        if record["name_label"].startswith(pool.task_prefix) and record["name_label"] != pool.task_label
    ]
    if not ours:
        return
    await asyncio.gather(*(_until_ended(pool, task) for task in ours))
    vbds = await pool.call("VBD.get_all_records")
    await unplug_from_control_domains(pool, [vbd for vbd in vbds if vbds[vbd]["other_config"].get(_VBD_TASK) in ours])
    for task in ours:
        await _destroy_task(pool, task)


async def _until_ended(pool: XenPool, task: str) -> None:
    """A host that was at work notices that its client is gone."""
    tasks = (await pool.connection()).tasks
    with suppress(TimeoutError, StorageError):
        async with asyncio.timeout(pool.settings.grace_s):
            await tasks.ended(task)


async def _destroy_task(pool: XenPool, task: str) -> None:
    try:
        if await pool.call("task.get_status", task) == "pending":
            await pool.surely("task.set_status", task, "cancelled")
        await pool.surely("task.destroy", task)
        _log.warning("xapi task removed", task=task)
    except XapiFailure as problem:
        if problem.code != HANDLE_INVALID:
            _log.warning("xapi task left behind", task=task, error=problem.message)


# ------------------------------------------------------------------------------------------------------------ disks


async def _tidy(sr: Repository, claimed: Collection[str]) -> None:
    disks = await sr.disks()
    config = await sr.config()
    for disk in disks:
        try:
            if await _is_dead(sr, disk, claimed):
                await remove_unfinished(sr, disk)
            copying = disk.copying
            if copying is not None and copying.token not in claimed and copying_ended(sr, copying):
                await end_copying(sr, disk, copying)
        except StorageError as problem:
            _log.warning("unfinished disk left behind", ref=disk.name, sr=sr.uuid, error=problem.message)
        await remove_replaced(sr, replaced_by(disk, disks))
    for held in _last(lock_keys(config).values()):
        if abandoned(sr.pool, held):
            await remove_lock(sr, held.id, config)
            _log.warning("lock removed", sr=sr.uuid, owner=held.owner, until=held.until)


async def _is_dead(sr: Repository, disk: Disk, claimed: Collection[str]) -> bool:
    """Whether it is unfinished and nobody is at it any more. What one is at is locked; so the lock is looked at before the disk
    is looked at again."""
    left = left_of(disk)
    if left is None or left.token in claimed:
        return False
    if left.owner == sr.pool.settings.originator:
        if left.id in sr.pool.busy:
            return False
    else:
        held = holder(left.ref, await sr.config())
        if (held is not None and not abandoned(sr.pool, held)) or not _expired(sr, left):
            return False
    try:
        return left_of(await sr.disk(disk.handle)) == left
    except NotFound:
        return False


def _expired(sr: Repository, left: object) -> bool:
    match left:
        case Copying():
            return copying_ended(sr, left)
        case _:
            return True  # its lock says it


def _last(keys: Collection[Held]) -> list[Held]:
    """Each lock once, with the time until which it was renewed."""
    last: dict[str, Held] = {}
    for held in keys:
        if held.id not in last or held.until > last[held.id].until:
            last[held.id] = held
    return list(last.values())
