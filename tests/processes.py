"""Processes of tests: forked from one that has everything imported, and counted."""

from __future__ import annotations

import multiprocessing
from contextlib import suppress
from multiprocessing.context import ForkServerContext
from pathlib import Path


def forking() -> ForkServerContext:
    """For processes that need not import anything first, which takes far longer than what they are for.

    One server forks for all tests of a run, and whoever comes first decides what it imports: so all ask for the same.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["agent.daemon", "tests.doubles.hammer", "tests.doubles.mortal", "tests.doubles.mortal_pool"]
    )
    return context


def children() -> list[str]:
    """The numbers of all processes that this one started and that have not ended."""
    found: list[str] = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # the thread has just ended
            found += (task / "children").read_text().split()
    return found
