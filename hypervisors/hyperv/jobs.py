"""What a host does under the id of an operation: at once, or in a job of its own that no connection can take with it.

The host keeps a record of each (`get-operations`), by which a script that is run again knows what is its own. Whoever is
killed here finds it there: `remove_operation` ends it and takes away what it left.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog

from hypervisors.hyperv.errors import HypervBusy, failure
from hypervisors.hyperv.powershell import PowerShellPort
from stores.errors import InvalidReference, StorageError
from stores.uninterrupted import uninterrupted

_log = structlog.get_logger(__name__)

_OPERATION = re.compile(r"[0-9A-Za-z-]{1,64}")
_CLEANUP_S = 30.0  # for each call, once the caller wants to go

Sleep = Callable[[float], Awaitable[None]]


def partial_path(path: str, operation: str) -> str:
    """Where a disk is until it is whole: beside `path`, with its extension. `InvalidReference` for an id that cannot be."""
    if not _OPERATION.fullmatch(operation):
        raise InvalidReference("an operation's id is at most 64 letters, digits and hyphens", seen=operation)
    stem, dot, extension = path.rpartition(".")
    if not dot or "\\" in extension:
        raise InvalidReference("a disk's path ends with the extension of its format", seen=path)
    return f"{stem}.{operation}.partial.{extension}"


async def make_disk(port: PowerShellPort, argument: Mapping[str, Any], *, operation: str) -> Any:
    """What `new-vhd` answers, for its argument without `operation` and `partial`. Once it has returned, the disk is whole and
    has its name. If it fails or is cancelled, nothing is left, unless the host cannot be reached: then its record is."""
    started = {**argument, "operation": operation, "partial": partial_path(argument["path"], operation)}
    done = False
    try:
        made = await port.run("new-vhd", started)
        done = True
        return made
    finally:
        await uninterrupted(_forget(port, operation, discard=not done))


async def convert(
    port: PowerShellPort,
    argument: Mapping[str, Any],
    *,
    operation: str,
    tell: Callable[[int], None] = lambda percent: None,
    poll_s: float = 2.0,
    sleep: Sleep = asyncio.sleep,
) -> None:
    """`start-convert-vhd` of its argument without `operation` and `partial`, to its end. `tell` hears the percentage.
    Otherwise as `make_disk`."""
    started = {**argument, "operation": operation, "partial": partial_path(argument["destination"], operation)}
    await _to_its_end(port, "start-convert-vhd", started, tell, poll_s, sleep)


async def merge(
    port: PowerShellPort,
    argument: Mapping[str, Any],
    *,
    operation: str,
    tell: Callable[[int], None] = lambda percent: None,
    poll_s: float = 2.0,
    sleep: Sleep = asyncio.sleep,
) -> None:
    """`start-merge-vhd` of its argument without `operation`, to its end. The file of the merged disk stays. If it fails or is
    cancelled, the disk has to be merged again, under the same id or another, before it is used: the one below may have
    some of its data already, and is no longer what it names as its parent."""
    await _to_its_end(port, "start-merge-vhd", {**argument, "operation": operation}, tell, poll_s, sleep)


async def _to_its_end(
    port: PowerShellPort,
    script: str,
    argument: Mapping[str, Any],
    tell: Callable[[int], None],
    poll_s: float,
    sleep: Sleep,
) -> None:
    operation = argument["operation"]
    done = False
    try:
        await port.run(script, argument)
        while (told := await port.run("get-job", {"operation": operation}))["state"] != "completed":
            if told["state"] == "failed":
                raise failure(told, doing=script)
            if told["state"] == "running":
                tell(told["percent"])
            else:
                await port.run(script, argument)
            await sleep(poll_s)
        done = True
    finally:
        await uninterrupted(_forget(port, operation, discard=not done))


async def _forget(port: PowerShellPort, operation: str, *, discard: bool) -> None:
    try:
        await remove_operation(port, operation, discard=discard)
    except StorageError as error:  # whoever looks at `get-operations` later finds it
        _log.warning("operation left on host", operation=operation, error=error.message)


async def remove_operation(
    port: PowerShellPort,
    operation: str,
    *,
    discard: bool,
    tries: int = 30,
    poll_s: float = 1.0,
    sleep: Sleep = asyncio.sleep,
) -> None:
    """Ends what runs under that id and removes its record, with `discard` also the disk that it has made. Idempotent.
    `HypervBusy` if it does not end."""
    for _ in range(tries):
        if (await port.run("remove-operation", {"operation": operation, "discard": discard}, timeout_s=_CLEANUP_S))[
            "gone"
        ]:
            return
        await sleep(poll_s)
    raise HypervBusy(f"operation {operation} was told to end and did not; remove it later", id="StorageAgent.NotEnded")
