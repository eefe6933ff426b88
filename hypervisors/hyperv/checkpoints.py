"""Removing a checkpoint for good: the host merges its disks some time after it has said that it is gone."""

from __future__ import annotations

import asyncio

from hypervisors.hyperv.jobs import Sleep
from hypervisors.hyperv.powershell import PowerShellPort


async def remove_checkpoint(
    port: PowerShellPort, vm: str, checkpoint: str, *, poll_s: float = 2.0, sleep: Sleep = asyncio.sleep
) -> None:
    """Until its disks are merged, however long that takes. Idempotent; when it is cancelled, the host goes on.

    That nothing is merged has to be seen twice in a row: the host begins a while after the checkpoint is gone.
    """
    await port.run("remove-checkpoint", {"vm": vm, "checkpoint": checkpoint})
    quiet = 0
    while True:
        told = await port.run("get-checkpoints", {"vm": vm})
        there = any(one["id"].lower() == checkpoint.lower() for one in told["checkpoints"])
        quiet = 0 if told["merging"] or there else quiet + 1
        if quiet == 2:
            return
        await sleep(poll_s)
