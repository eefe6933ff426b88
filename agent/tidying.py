"""What dead processes left at hypervisors, looked for after each start."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from hypervisors.contract import HypervisorHandler
from stores.errors import StorageError

_log = structlog.get_logger(__name__)

AGAIN_S = 60.0


async def tidy(
    handlers: Sequence[HypervisorHandler], *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Returns when each handler has come to an end with it. Beside the commands: hosts that are away keep no agent from
    starting. Every command of the journal is accounted for by now, so none of them claims anything."""
    async with asyncio.TaskGroup() as group:
        for handler in handlers:
            group.create_task(_until_done(handler, sleep))


async def _until_done(handler: HypervisorHandler, sleep: Callable[[float], Awaitable[None]]) -> None:
    while True:
        try:
            await handler.reconcile()
            return
        except StorageError as problem:
            _log.warning("leftovers not looked for", hypervisor=handler.type.value, error=problem.message)
        except Exception:  # noqa: BLE001  the commands go on, whatever is wrong here
            _log.error("looking for leftovers crashed", hypervisor=handler.type.value, exc_info=True)
        await sleep(AGAIN_S)
