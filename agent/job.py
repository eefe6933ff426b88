"""One command between its arrival and its recorded end, and the answers that it can come to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum, auto

from agent.commands import Answer, Command, Outcome, State
from agent.failures import Cancelled, DeadlineExceeded, Interrupted, tell
from agent.journal_file import Entry
from agent.progress import Tracker


class Stop(Enum):
    """Why a command is stopped from outside."""

    CANCEL = auto()  # somebody asked for it
    INTERRUPT = auto()  # the agent itself stops


@dataclass(eq=False, slots=True)
class Job:
    """A command that has not ended. Times are seconds: `deadline` on the loop's clock, the others since the epoch."""

    id: str
    command: Command
    fingerprint: str
    deadline_s: float
    deadline: float
    accepted_at: float
    tracker: Tracker
    accepted: asyncio.Future[Entry | None]  # an entry: the id was known already
    ended: asyncio.Future[Answer]
    task: asyncio.Task[None] | None = None
    state: State = State.ACCEPTED
    started_at: float | None = None
    stop: Stop | None = None
    stoppable: bool = False  # neither being accepted nor already being recorded

    def request_stop(self, reason: Stop) -> None:
        """The first reason counts. What cannot be stopped now sees `stop` when it can."""
        if self.stop is None:
            self.stop = reason
            if self.stoppable and self.task is not None:
                self.task.cancel()

    def answer(self) -> Answer:
        """As things stand."""
        return Answer(
            id=self.id,
            command=self.command.command,
            state=self.state,
            accepted_at=self.accepted_at,
            started_at=self.started_at,
            progress=self.tracker.report() if self.state is State.RUNNING else None,
        )

    def late(self) -> DeadlineExceeded:
        doing = "ran" if self.started_at is not None else "waited"
        return DeadlineExceeded(
            f"command {self.id} still {doing} after {self.deadline_s:g} s and was undone; allow it more time",
            deadline_s=self.deadline_s,
        )

    def succeeded(self, outcome: Outcome, now: float) -> Answer:
        return self._final(State.SUCCEEDED, now, outcome=outcome)

    def failed(self, error: Exception, now: float) -> Answer:
        return self._final(State.FAILED, now, error=error)

    def stopped(self, reason: Stop, now: float) -> Answer:
        if reason is Stop.CANCEL:
            gone = Cancelled(f"command {self.id} was cancelled; nothing of it is left")
            return self._final(State.CANCELLED, now, error=gone)
        how_far = "it was undone" if self.started_at is not None else "it had not begun"
        left = Interrupted(f"the agent stopped before command {self.id} ended; {how_far}: send it again")
        return self._final(State.INTERRUPTED, now, error=left)

    def _final(
        self, state: State, now: float, *, outcome: Outcome | None = None, error: Exception | None = None
    ) -> Answer:
        return Answer.final(
            self.id,
            self.command.command,
            state,
            accepted_at=self.accepted_at,
            started_at=self.started_at,
            finished_at=now,
            outcome=outcome,
            error=None if error is None else tell(error).failure,
        )
