"""What dead processes left in a pool of hosts, and no command knows of: found at start, by our marks alone, and removed.

Transfers that a host goes on with, disks that it keeps attached, VDIs that were never finished or that were replaced, locks.
`SrStore.discard` does the same for what one command is known to have left.
"""

from __future__ import annotations

from collections.abc import Collection

import structlog

from hypervisors.xen.locks import abandoned, remove_lock
from hypervisors.xen.marks import Copying, Disk, Held, holder, left_of, lock_keys
from hypervisors.xen.pool import XenPool
from hypervisors.xen.removing import copying_ended, end_copying, remove_replaced, remove_unfinished, replaced_by
from hypervisors.xen.repository import Repository
from hypervisors.xen.tasks import end_dead_tasks, end_leaks
from stores.errors import NotFound, StorageError

_log = structlog.get_logger(__name__)


async def reconcile(pool: XenPool, *, claimed: Collection[str] = ()) -> None:
    """Idempotent; may run beside commands. What belongs to a command whose token is `claimed` is let be.

    Of other agents' only what they cannot want any more is removed: their lock has expired. What cannot be removed now is
    logged and left for the next time. Raises only where the pool cannot be asked what there is.
    """
    await end_dead_tasks(pool)
    await end_leaks(pool)
    for handle, record in (await pool.call("SR.get_all_records")).items():
        sr = Repository.of(pool, handle, record)
        await _tidy(sr, claimed)


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
        if held is not None and not abandoned(sr.pool, held):
            return False
        if isinstance(left, Copying) and not copying_ended(sr, left):
            return False
    try:
        return left_of(await sr.disk(disk.handle)) == left
    except NotFound:
        return False


def _last(keys: Collection[Held]) -> list[Held]:
    """Each lock once, with the time until which it was renewed."""
    last: dict[str, Held] = {}
    for held in keys:
        if held.id not in last or held.until > last[held.id].until:
            last[held.id] = held
    return list(last.values())
