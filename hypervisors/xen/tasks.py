"""XAPI's tasks of ours: brought to an end, those of dead processes too.

Tasks that we make are called after the process that is at them. Those that XAPI makes for us (`Async.` calls) have names of
their own, and say it in their `other_config`. Before that mark a task is known only by what it attaches; of one that ended
before anybody looked nothing is left but itself, and XAPI forgets it after an hour.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import structlog

from hypervisors.xen.errors import HANDLE_INVALID, XapiFailure
from hypervisors.xen.events import plain
from hypervisors.xen.marks import OURS, Disk
from hypervisors.xen.pool import XenPool
from hypervisors.xen.repository import Repository, add_key, disk_of
from stores.errors import StorageError

_log = structlog.get_logger(__name__)

BY = f"{OURS}by"
"""In a task's `other_config`: what it would be called if we had made it."""

_LOOKS = 3

_VBD_TASK = "task_id"
"""What XAPI notes in the `other_config` of a VBD that it attaches to a control domain for a task (vbd_task_key of xen-api's
xapi_globs.ml)."""

_GOING_ON = {"pending", "cancelling"}

_UNLISTED = "DummyRef:"
"""What references of tasks begin with that XAPI keeps to itself, whether they go on or not (ref.ml of xen-api)."""


async def mark(pool: XenPool, task: str) -> None:
    """As one that is this process's. Whoever waits for it says what is wrong with it."""
    with suppress(StorageError):
        await add_key(pool, "task", task, BY, pool.task_label)


async def lost(pool: XenPool, name: str, vdi: str) -> str | None:
    """The task of that name that was made although nobody said so: it is at work on that VDI, or has returned it."""
    for _ in range(_LOOKS):
        vbds = (await pool.call("VBD.get_all_records")).values()
        at_work = {vbd["other_config"].get(_VBD_TASK) for vbd in vbds if vbd["VDI"] == vdi}
        for task, record in (await pool.call("task.get_all_records")).items():
            if record["name_label"] == name and (task in at_work or plain(str(record["result"])) == vdi):
                return str(task)
        await pool.sleep(pool.settings.pause_s)
    return None


async def end_dead_tasks(pool: XenPool) -> None:
    """Those of dead processes of this agent, and what hosts keep attached for them. What cannot be ended is logged."""
    records = await pool.call("task.get_all_records")
    ours = [task for task, record in records.items() if _is_dead(pool, record)]
    if not ours:
        return
    await asyncio.gather(*(_stop(pool, task) for task in ours))
    vbds = await pool.call("VBD.get_all_records")
    await _unplug(pool, [vbd for vbd in vbds if vbds[vbd]["other_config"].get(_VBD_TASK) in ours])
    for task in ours:
        if await _forget(pool, task):
            _log.warning("xapi task removed", task=task)


async def end_leaks(pool: XenPool) -> None:
    """What control domains keep of disks that this agent made, although the task that it was for is over: its host could not
    detach it, or nobody was there to see to it. XAPI goes by the same rule, when it starts (`has_vbd_leaked` of xen-api's
    attach_helpers.ml). What cannot be detached is logged."""
    vbds = await pool.call("VBD.get_all_records")
    noted = {vbd: record["other_config"].get(_VBD_TASK) for vbd, record in vbds.items()}
    if not any(noted.values()):
        return
    tasks = await pool.call(
        "task.get_all_records"
    )  # after the VBDs, so that the task of a transfer that began since is there
    going_on = {task for task, record in tasks.items() if record["status"] in _GOING_ON}
    for vbd, task in noted.items():
        over = task is not None and task not in going_on and not task.startswith(_UNLISTED)
        if over and await _is_ours(pool, vbds[vbd]["VDI"]):
            await _unplug(pool, [vbd])


async def let_go(sr: Repository, disk: Disk) -> None:
    """After a transfer that went well: a host that could not detach the disk does not say so."""
    with suppress(StorageError):  # a later start finds it too
        if await sr.vbds(disk):
            await end_leaks(sr.pool)


async def _is_ours(pool: XenPool, vdi: str) -> bool:
    try:
        image = disk_of(vdi, await pool.call("VDI.get_record", vdi)).image
    except XapiFailure as problem:
        if problem.code != HANDLE_INVALID:
            raise
        return False
    return image is not None and image.owner == pool.settings.originator


async def end_work(pool: XenPool, vbds: Iterable[str]) -> None:
    """What control domains have attached with these, and the tasks that it is for, whoever made them. What cannot be ended is
    logged."""
    for vbd in vbds:
        with suppress(StorageError):
            record = await pool.call("VBD.get_record", vbd)
            if _VBD_TASK in record["other_config"] and await pool.call("VM.get_is_control_domain", record["VM"]):
                await _end(pool, str(record["other_config"][_VBD_TASK]))
        await _unplug(pool, [vbd])


async def _unplug(pool: XenPool, vbds: Iterable[str]) -> None:
    """Those of `vbds` that attach a disk to a control domain. What cannot be unplugged is left: whoever needs it finds out."""
    for vbd in vbds:
        try:
            record = await pool.call("VBD.get_record", vbd)
            if not await pool.call("VM.get_is_control_domain", record["VM"]):
                continue
            if record["currently_attached"]:
                await pool.surely("VBD.unplug", vbd)
            await pool.surely("VBD.destroy", vbd)
            _log.warning("disk detached from a control domain", vbd=vbd)
        except XapiFailure as problem:
            _log.info("disk not detached from a control domain", vbd=vbd, error=problem.message)


def _is_dead(pool: XenPool, record: Mapping[str, Any]) -> bool:
    label = record["other_config"].get(BY) or record["name_label"]
    return str(label).startswith(pool.task_prefix) and label != pool.task_label


async def _end(pool: XenPool, task: str) -> None:
    await _stop(pool, task)
    await _forget(pool, task)


async def _stop(pool: XenPool, task: str) -> None:
    """It is cancelled where XAPI allows that; a host that is at a transfer notices that its client is gone."""
    with suppress(TimeoutError, StorageError):
        record = await pool.call("task.get_record", task)
        if record["status"] != "pending":
            return
        if "cancel" in record["allowed_operations"]:
            await pool.surely("task.cancel", task)
        async with asyncio.timeout(pool.settings.grace_s):
            await (await pool.connection()).tasks.ended(task)


async def _forget(pool: XenPool, task: str) -> bool:
    """Whether it was there, and is not any more."""
    try:
        if await pool.call("task.get_status", task) == "pending":
            await pool.surely("task.set_status", task, "cancelled")
        await pool.surely("task.destroy", task)
    except StorageError as problem:
        if not isinstance(problem, XapiFailure) or problem.code != HANDLE_INVALID:
            _log.warning("xapi task left behind", task=task, error=problem.message)  # XAPI removes it after a day
        return False
    return True
