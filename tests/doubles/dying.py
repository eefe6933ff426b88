"""A process that is killed before a chosen durable step of what it does."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import traceback
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
    return killed(lambda: in_world(base, work), step, lambda count: watch_files(count, durable, tools))


def killed(run: Callable[[], Any], step: int, watch: Callable[[Callable[[], None]], None]) -> bool:
    """Whether `run`, in a process of its own, was killed at its `step`th call of what `watch` was given. AssertionError if it
    ended in any other way than well."""
    child = os.fork()
    if child == 0:
        watch(_countdown(step))
        code = 1
        try:
            run()
            code = 0
        except BaseException:  # noqa: BLE001  the process ends here, whatever it is
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    dead = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert dead or status == 0, f"not killed at step {step}, and failed: its traceback is above"
    return dead


def _countdown(step: int) -> Callable[[], None]:
    left = step

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return count


def watch_files(count: Callable[[], None], durable: Sequence[str], tools: Sequence[str]) -> None:
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
