"""Whom the dispatcher works with: who does what commands ask for, and who counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from agent.commands import Answer, Command, Outcome
from agent.locks import Claim
from stores.contract import Progress


class Executor(Protocol):
    """Who does what commands ask for (`agent.execution`)."""

    def claims(self, command: Command) -> Sequence[Claim]:
        """The objects that the command touches."""
        ...

    async def execute(self, command: Command, token: str, progress: Progress) -> Outcome:
        """Do it, durably. Raises if it could not be done; cancelled or failed, it leaves nothing behind, but for what it has
        staged for a store."""
        ...

    async def settle(self, command: Command, token: str, *, give_up: bool) -> None:
        """After `execute` was stopped: returns when nothing of that run is left. `UploadPending` where what it has staged goes
        on to its store; with `give_up` that is given up as well."""
        ...


class Observer(Protocol):
    """Who counts what happens (metrics). Never blocks, never raises."""

    def accepted(self, command: str) -> None: ...

    def finished(self, answer: Answer) -> None: ...

    def advanced(self, count: int) -> None: ...


class Unobserved:
    """For callers who do not count."""

    def accepted(self, command: str) -> None: ...

    def finished(self, answer: Answer) -> None: ...

    def advanced(self, count: int) -> None: ...
