"""An agent that dies at a chosen durable step: the real journal, dispatcher, operations and tools in a process of their own.

A durable step is whatever another process could see afterwards: a file made, renamed, linked, removed or cut, a folder made
or removed, an fsync, a journal transaction, a tool started. They are counted as they happen, so that no test has a list of
them; dying before step n is dying between steps n-1 and n.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import structlog

from agent import wiring
from agent.commands import COMMAND
from agent.config import Config
from agent.failures import tell
from agent.journal_file import JournalFile
from agent.recovery import recover
from stores.backends import draft
from tests.processes import told_by

LIMIT_S = 60.0


@dataclass(frozen=True)
class Life:
    """What one process of the agent does: recover, then one command after the other."""

    root: Path  # of the pool, the state and the sockets
    images: Path
    commands: list[dict[str, Any]]
    die_at: int | None = None
    counts: Literal["last command", "recovery"] = "last command"  # where steps are counted

    @property
    def pool(self) -> Path:
        return self.root / "pool"

    @property
    def config(self) -> Config:
        return Config.model_validate(
            {
                "agent": {"state_dir": self.root / "state", "runtime_dir": self.root / "run"},
                "pools": {"roots": [self.root, self.images]},
            }
        )


@dataclass(frozen=True)
class Story:
    """What came of a life that ended by itself."""

    recovered: dict[str, list[str]]
    answers: list[dict[str, Any]]  # for each command
    files: list[list[str]]  # in the pool after each command; the first: after recovery
    steps: list[str]


class _Steps:
    def __init__(self, die_at: int | None) -> None:
        self._die_at = die_at
        self.counting = False
        self.taken: list[str] = []

    def step(self, name: str) -> None:
        if not self.counting:
            return
        self.taken.append(name)
        if len(self.taken) == self._die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        sys.addaudithook(self._audit)
        for name in ("fsync", "fdatasync"):
            setattr(os, name, self._counted(getattr(os, name)))
        draft.rename_noreplace = self._counted(draft.rename_noreplace)
        transaction = JournalFile.transaction

        @contextmanager
        def counted(file: JournalFile) -> Iterator[None]:
            with transaction(file):
                yield
                self.step("journal commit")

        setattr(JournalFile, "transaction", counted)  # noqa: B010  mypy would not have it

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in (
            "os.rename",
            "os.link",
            "os.remove",
            "os.mkdir",
            "os.rmdir",
            "os.truncate",
            "subprocess.Popen",
        ) or (event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT):
            self.step(event)

    def _counted(self, function: Any) -> Any:
        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.step(function.__name__)
            return function(*args, **kwargs)

        return counted


def files_in(pool: Path) -> list[str]:
    return sorted(str(path.relative_to(pool)) for path in pool.rglob("*") if not path.is_dir())


def _live(life: Life, story: Path) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    steps = _Steps(life.die_at)
    steps.watch()
    told = asyncio.run(_tell(life, steps))
    story.write_text(json.dumps(told))


async def _tell(life: Life, steps: _Steps) -> dict[str, Any]:
    parts = wiring.build(life.config)
    try:
        async with parts.journal:
            steps.counting = life.counts == "recovery"
            report = await recover(parts.journal, parts.execution)
            steps.counting = False
            answers, files = [], [files_in(life.pool)]
            async with parts.dispatcher() as dispatcher:
                for body in life.commands:
                    steps.counting = life.counts == "last command" and body is life.commands[-1]
                    command = COMMAND.validate_python(body)
                    accepted = await dispatcher.submit(command)
                    answers.append(json.loads((await dispatcher.wait(accepted.id, LIMIT_S)).wire()))
                    steps.counting = False
                    files.append(files_in(life.pool))
        recovered = {name: list(getattr(report, name)) for name in report.__dataclass_fields__}
        return {"recovered": recovered, "answers": answers, "files": files, "steps": steps.taken}
    except Exception as error:
        raise RuntimeError(tell(error).failure.message) from error
    finally:
        await parts.aclose()


def live(life: Life) -> Story | None:
    """Live it in a new process. None: died as told. Anything else that is wrong is an AssertionError."""
    found = told_by(_live, life, life.root / "story.json", killed=life.die_at is not None)
    return None if found is None else Story(**found)
