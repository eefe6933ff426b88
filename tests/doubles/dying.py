"""A process that is killed before a chosen durable step of what it does."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from stores.backends import draft
from tests.doubles.world import World, world

DURABLE = ("fsync", "fdatasync", "rename", "replace", "link", "unlink", "mkdir")
"""What makes or unmakes something that a crash does not."""


def in_world(base: Path, work: Callable[[World], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with world(root=base) as here:
            return await work(here)

    return asyncio.run(run())


def killed_in(
    base: Path,
    work: Callable[[World], Awaitable[Any]],
    step: int,
    *,
    durable: Sequence[str] = DURABLE,
    tools: Sequence[str] = (),
) -> bool:
    """Run `work` in a process that is killed before its durable step of that number. False if there are fewer. `durable`:
    functions of os; `tools`: what an argv has in it that changes something."""
    child = os.fork()
    if child == 0:
        _die_before(step, durable, tools)
        try:
            in_world(base, work)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _die_before(step: int, durable: Sequence[str], tools: Sequence[str]) -> None:
    left = step

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            count()
            return real(*args, **kwargs)

        return call

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen" and any(part in tools for part in arguments[1]):
            count()

    for name in durable:
        setattr(os, name, deadly(getattr(os, name)))
    if "rename" in durable:
        draft.rename_noreplace = deadly(draft.rename_noreplace)
    if tools:
        sys.addaudithook(audit)
