"""A cache pool in a process of its own that dies at a chosen durable step.

A durable step is whatever another process could see afterwards: a file made, renamed or removed, a folder made, an fsync, a
commit of the ledger. They are counted as they happen, so that no test has a list of them.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import structlog

from stores.cache import upkeep
from stores.cache.pool_claims import PoolClaims
from stores.cache.reconcile import Report
from stores.cache.sqlite import SqliteDatabase
from tests.pools import add, content_of, publish, reserve, running
from tests.processes import told_by


@dataclass(frozen=True)
class Life:
    """Two objects come, then a third, which takes the room of the first: its steps are counted. Or those of a start, after
    which nothing comes."""

    root: Path
    counts: Literal["use", "start"] = "use"
    die_at: int | None = None

    @property
    def directory(self) -> Path:
        return self.root / "pool"


class Steps:
    """Counts durable steps while `counting`, and dies after that one."""

    def __init__(self, die_at: int | None) -> None:
        self._die_at = die_at
        self.counting = False
        self.taken: list[str] = []

    def step(self, name: str) -> None:
        if self.counting:
            self.taken.append(name)
            if len(self.taken) == self._die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, *, reading: bool = True) -> None:
        """`reading`: whether transactions that change nothing count as well."""
        sys.addaudithook(self._audit)
        for name in ("fsync", "fdatasync"):
            setattr(os, name, self.counted(getattr(os, name)))
        setattr(upkeep, "reconcile", _nothing)  # noqa: B010  hundreds of transactions that change nothing
        run = self.counted(SqliteDatabase._run) if reading else self._changing(SqliteDatabase._run)
        setattr(SqliteDatabase, "_run", run)  # noqa: B010  mypy would not have it

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        makes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
        if makes or event in ("os.rename", "os.remove", "os.mkdir"):
            self.step(event)

    def _changing(self, run: Any) -> Any:
        @functools.wraps(run)
        def counted(database: Any, batch: Any) -> None:
            before = _changes(database)
            run(database, batch)
            if _changes(database) != before:
                self.step(run.__name__)

        return counted

    def counted(self, function: Any) -> Any:
        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            self.step(function.__name__)
            return result

        return counted


def _changes(database: Any) -> int:
    """Rows that were changed through its connection so far."""
    connection = database._connection
    return 0 if connection is None else int(connection.connection.dbapi_connection.total_changes)


async def _nothing(pool: PoolClaims) -> Report:
    return Report()


async def _use(life: Life, steps: Steps) -> None:
    steps.counting = life.counts == "start"
    async with running(life.directory, units=2, high=1.0) as pool:
        steps.counting = False
        if life.counts == "start":
            return
        for name in "ab":
            await add(pool, name)
        steps.counting = life.counts == "use"
        fill = await reserve(pool, "c")
        fill.path.write_bytes(content_of("c"))
        await pool.note(fill, [(0, fill.size // 2)])
        await pool.unpin(await publish(pool, fill, "c"))
        steps.counting = False


def _live(life: Life, told: Path) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    steps = Steps(life.die_at)
    steps.watch()
    asyncio.run(_use(life, steps))
    told.write_text(json.dumps(steps.taken))


def live(life: Life) -> list[str] | None:
    """In a new process: the steps that it took. None: died as told."""
    return steps_of(_live, life, life.root, life.die_at)


def steps_of(target: Callable[[Any, Path], None], life: object, root: Path, die_at: int | None) -> list[str] | None:
    """What `target`, given `life` and where to tell its steps, told of itself in a new process. None: died as told."""
    steps: list[str] | None = told_by(target, life, root / "steps.json", killed=die_at is not None)
    return steps
