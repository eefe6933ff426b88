"""What a dead agent left: every command that its journal holds unfinished is finished or undone, and gets its answer.

Runs once, after the journal is open and before anybody may send a command.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Protocol

import structlog
from pydantic import ValidationError

from agent.commands import COMMAND, Answer, Command, Outcome, State
from agent.failures import AgentError, Interrupted, NotUndone, tell
from agent.journal import Journal
from agent.journal_file import Entry
from stores.cache.writeback.errors import UploadPending
from stores.errors import StorageError

_log = structlog.get_logger(__name__)

UNDO_LIMIT_S = 60.0
"""Time to account for one command: a mount that hangs must not keep the agent from starting."""


class Undoer(Protocol):
    """Who can tell how far a command came (`agent.execution`)."""

    async def undo(self, command: Command, token: str) -> Outcome | None:
        """The outcome of a run that had come to its end; None once what it left is removed. `UploadPending` where what it wrote
        is safe on this host and on its way to a store. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class Report:
    """Command ids, by what became of them."""

    finished: tuple[str, ...] = ()  # had come to their end: answered as succeeded
    pending: tuple[str, ...] = ()  # what they wrote is safe on this host, and still has to get to its store
    undone: tuple[str, ...] = ()
    never_begun: tuple[str, ...] = ()
    not_undone: tuple[str, ...] = ()  # an operator has to look

    def __str__(self) -> str:
        """One line for the log and for systemd's status."""
        parts = {
            "found finished": self.finished,
            "upload pending": self.pending,
            "undone": self.undone,
            "had not begun": self.never_begun,
            "NOT undone": self.not_undone,
        }
        said = [f"{len(ids)} {what}" for what, ids in parts.items() if ids]
        return ", ".join(said) if said else "nothing to recover"


async def recover(
    journal: Journal,
    undoer: Undoer,
    *,
    clock: Callable[[], float] = time.time,
    limit_s: float = UNDO_LIMIT_S,
) -> Report:
    """Account for all of them. Killed in the middle, it starts over: undoing is idempotent, and each answer is journalled as
    soon as it is known. `JournalUnusable`.

    All at once, since they ran at once and none touched what another touched. So one hanging mount costs one limit.
    """
    entries = await journal.unfinished()

    async def account(entry: Entry) -> str:
        fate, answer = await _account(entry, undoer, clock, limit_s)
        await journal.finish(answer)
        _log.warning("recovered a command", command_id=entry.id, command=entry.command, fate=fate)
        return fate

    async with asyncio.TaskGroup() as group:
        fates = [(entry.id, group.create_task(account(entry))) for entry in entries]
    became: dict[str, list[str]] = {field.name: [] for field in fields(Report)}
    for command_id, fate in fates:
        became[fate.result()].append(command_id)
    return Report(**{fate: tuple(ids) for fate, ids in became.items()})


async def _account(entry: Entry, undoer: Undoer, clock: Callable[[], float], limit_s: float) -> tuple[str, Answer]:
    if entry.state is State.ACCEPTED:
        error: AgentError = Interrupted(
            f"the agent died before command {entry.id} did anything; its secrets are not in the journal, so it cannot"
            " be run from there: send it again"
        )
        return "never_begun", _failed(entry, error, clock)
    try:
        async with asyncio.timeout(limit_s):
            outcome = await undoer.undo(COMMAND.validate_json(entry.request), entry.id)
    except UploadPending as pending:
        return "pending", _failed(entry, pending, clock, State.FAILED)
    except Exception as cause:  # noqa: BLE001  becomes the command's answer; the others still have to be looked at
        if isinstance(cause, TimeoutError):
            reason = f"no end after {limit_s:g} s"
        elif isinstance(cause, ValidationError):
            reason = "another version of the agent wrote its record"
        else:
            reason = tell(cause).failure.message
        _log.error("a command could not be undone", command_id=entry.id, reason=reason)
        error = NotUndone(
            f"the agent died while command {entry.id} ran, and what it may have left could not be removed: {reason}",
            reason=reason,
        )
        return "not_undone", _failed(entry, error, clock)
    if outcome is None:
        error = Interrupted(
            f"the agent died while command {entry.id} ran; what it had written on this host was removed: send it again"
        )
        return "undone", _failed(entry, error, clock)
    answer = Answer.final(
        entry.id,
        entry.command,
        State.SUCCEEDED,
        accepted_at=entry.accepted_at,
        started_at=entry.started_at,
        finished_at=clock(),
        outcome=outcome,
    )
    return "finished", answer


def _failed(entry: Entry, error: StorageError, clock: Callable[[], float], state: State = State.INTERRUPTED) -> Answer:
    return Answer.final(
        entry.id,
        entry.command,
        state,
        accepted_at=entry.accepted_at,
        started_at=entry.started_at,
        finished_at=clock(),
        error=tell(error).failure,
    )
