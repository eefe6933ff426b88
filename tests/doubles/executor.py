"""An executor whose commands do what the test tells them to, when it tells them to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from agent.commands import Command, Outcome
from agent.locks import Claim
from stores.cache.writeback.errors import UploadPending
from stores.contract import Progress


@dataclass
class Run:
    """One run of one command: the test ends it by setting `end`."""

    command: Command
    progress: Progress
    end: asyncio.Future[Outcome]


@dataclass
class HeldExecutor:
    """Every run waits until the test ends it. Commands of the ids in `keys` claim those names."""

    keys: dict[str, Sequence[Claim]] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)  # now under way
    started: list[str] = field(default_factory=list)  # all that ever began
    undone: list[str] = field(default_factory=list)  # by cancellation
    outcome_of_undo: Callable[[str], Outcome | None] = lambda token: None
    staged: set[str] = field(default_factory=set)  # of these the bytes are safe, and still have to get to a store

    def claims(self, command: Command) -> Sequence[Claim]:
        return self.keys.get(command.id or "", ())

    async def execute(self, command: Command, token: str, progress: Progress) -> Outcome:
        self.started.append(token)
        run = self.runs[token] = Run(command, progress, asyncio.get_running_loop().create_future())
        try:
            return await run.end
        except asyncio.CancelledError:
            self.undone.append(token)
            raise
        finally:
            del self.runs[token]

    async def settle(self, command: Command, token: str, *, give_up: bool) -> None:
        if give_up:
            self.staged.discard(token)
        elif token in self.staged:
            raise UploadPending(f"the upload of {token} goes on", upload=f"u-{token}")

    async def undo(self, command: Command, token: str) -> Outcome | None:
        return self.outcome_of_undo(token)


class AtOnce:
    """Every run succeeds immediately."""

    def claims(self, command: Command) -> Sequence[Claim]:
        return ()

    async def execute(self, command: Command, token: str, progress: Progress) -> Outcome:
        return Outcome()

    async def settle(self, command: Command, token: str, *, give_up: bool) -> None:
        """Nothing is ever left."""
