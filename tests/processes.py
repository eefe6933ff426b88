"""Processes of tests: forked from one that has everything imported, and counted."""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

LIMIT_S = 60.0


def forking() -> ForkServerContext:
    """For processes that need not import anything first, which takes far longer than what they are for.

    One server forks for all tests of a run, and whoever comes first decides what it imports: so all ask for the same.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["agent.daemon", "tests.doubles.hammer", "tests.doubles.mortal", "tests.doubles.mortal_pool"]
    )
    return context


def told_by(target: Callable[[Any, Path], None], life: object, told: Path, *, killed: bool) -> Any | None:
    """What `target`, given `life` and that path, wrote there as JSON, in a process of its own. None: it was killed before it
    did, which `killed` allows. Anything else that is wrong is an AssertionError."""
    process = forking().Process(target=target, args=(life, told))
    process.start()
    process.join(LIMIT_S)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"{life} did not end")
    code = process.exitcode
    process.close()
    if killed and code == -signal.SIGKILL:
        assert not told.exists()
        return None
    assert code == 0, f"exit code {code} of {life}"
    found = json.loads(told.read_text())
    told.unlink()
    return found


def children() -> list[str]:
    """The numbers of all processes that this one started and that have not ended."""
    found: list[str] = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # the thread has just ended
            found += (task / "children").read_text().split()
    return found
