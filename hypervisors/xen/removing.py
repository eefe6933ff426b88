"""Removing what is left of writes that did not end: of this process's own, and of dead ones."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from hypervisors.xen.errors import XapiBusy, of_disk
from hypervisors.xen.marks import CONDEMNED, COPYING, READY, Copying, Disk, Sort, sort_of
from hypervisors.xen.repository import Repository
from hypervisors.xen.tasks import end_work
from stores.errors import NotFound, StorageError

_log = structlog.get_logger(__name__)


async def remove_unfinished(sr: Repository, disk: Disk) -> None:
    """A dead process's disk that was never finished. Whoever made it, should it live after all, cannot finish it any more; what
    was finished meanwhile is let be. `ImageLocked` while it is attached."""
    try:
        with sr.telling(disk.name):
            if sort_of(disk) is Sort.WRITING and not await sr.add_key("VDI", disk.handle, READY, CONDEMNED):
                return
        await destroy_unfinished(sr, disk, dead=True)
    except NotFound:
        return
    _log.warning("unfinished disk removed", vdi=disk.uuid, sr=sr.uuid, ref=disk.name)


async def destroy_unfinished(sr: Repository, disk: Disk, *, dead: bool = False) -> None:
    """What nobody else knows yet. A host that is still at work on it is waited for, or, when that takes long, or whoever it was
    for is `dead`, ended. `ImageLocked` if it goes on all the same."""
    told = sr.pool.settings
    turns = max(1, round(told.grace_s / told.pause_s)) if told.pause_s > 0 else 1
    for turn in range(turns + 1):
        try:
            await sr.try_to_destroy(disk)
            return
        except XapiBusy as problem:
            if turn == turns:
                raise of_disk(problem, disk.name) from problem
            if dead or 4 * turn >= turns:
                await end_work(sr.pool, await sr.vbds(disk))
            await sr.pool.sleep(told.pause_s)


async def remove_replaced(sr: Repository, disks: Sequence[Disk]) -> None:
    """They count no more, so that what cannot be removed now is no failure: it is found by `discard`, or at the next start."""
    for disk in disks:
        try:
            await sr.destroy(disk)
        except StorageError as problem:
            _log.warning("replaced disk left behind", vdi=disk.uuid, sr=sr.uuid, error=problem.message)


def replaced_by(disk: Disk, disks: Sequence[Disk]) -> list[Disk]:
    """Those that it replaced and that are still there."""
    over = disk.ready.over if disk.ready is not None else ()
    return [other for other in disks if other.uuid in over]


def copying_ended(sr: Repository, copying: Copying) -> bool:
    """Whether whoever announced it is surely not at it any more."""
    if copying.owner == sr.pool.settings.originator:
        return copying.id not in sr.pool.busy
    return sr.pool.clock() > copying.until


async def end_copying(sr: Repository, source: Disk, copying: Copying | None) -> None:
    """Take the announcement back, if it is still that one; None: it is none of that disk. Idempotent."""
    try:
        shown = await sr.disk(source.handle)
        if shown.copying == copying:
            await sr.remove_keys("VDI", source.handle, [COPYING])
    except NotFound:
        return
