"""From an accepted command to its recorded outcome: journal, locks, turns, deadlines, cancellation, progress."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from agent.commands import Answer, Command, Event, State


@dataclass(frozen=True, slots=True)
class DispatcherStatus:
    """What the dispatcher is doing at this moment."""

    accepting: bool
    journal_usable: bool
    accepted: int  # journalled and not yet running
    running: int
    queue_limit: int
    concurrency: int


class Dispatcher:
    """Runs commands."""

    async def submit(self, command: Command) -> Answer:
        """Journal the command, put it in the queue, and say so. Durable when this returns.

        A command whose id was seen before is not run again: its present or final answer is returned. `IdReused` if the
        content differs, `Overloaded` if the queue is full, `Stopping` while the agent stops, `JournalUnusable` if it
        could not be journalled. Cancelling this call does not cancel the command.
        """
        raise NotImplementedError

    async def get(self, command_id: str) -> Answer:
        """The command's present answer. `UnknownCommand` if there is none, or no longer."""
        raise NotImplementedError

    async def wait(self, command_id: str, seconds: float) -> Answer:
        """The final answer, or after that many seconds the present one. `UnknownCommand`."""
        raise NotImplementedError

    async def cancel(self, command_id: str) -> Answer:
        """Stop the command wherever it is and wait until nothing of it is left. One that already ended stays as it ended.
        `UnknownCommand`."""
        raise NotImplementedError

    def events(self, command_id: str) -> AsyncIterator[Event]:
        """Progress until the command ends; the last event has the final state. A slow consumer misses steps, never the
        last one. `UnknownCommand` on the first step."""
        raise NotImplementedError

    async def list(self, *, state: State | None = None, limit: int = 100) -> list[Answer]:
        """The newest commands first, at most `limit`."""
        raise NotImplementedError

    def status(self) -> DispatcherStatus:
        raise NotImplementedError

    async def drain(self, seconds: float) -> None:
        """Stop accepting; what waits is answered `interrupted`; what runs gets that many seconds, then is interrupted
        too. Every outcome is recorded when this returns."""
        raise NotImplementedError
