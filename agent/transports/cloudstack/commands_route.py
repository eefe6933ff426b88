"""One wire command and what the agent makes of it: a pure function there, one back, and the answer to a failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agent import commands
from agent.commands import Answer, Command
from agent.transports.cloudstack.models import WireAnswer, WireCommand


def _nothing(command: Any, answer: Answer) -> None:
    return None


def failure(command: WireCommand, text: str) -> WireAnswer:
    """No success, in the class that the server waits for."""
    return command.answered_by(result=False, details=text)


def _failed(command: Any, error: commands.Failure) -> WireAnswer:
    return failure(command, text_of(error))


@dataclass(frozen=True, slots=True)
class Route:
    """`asks` raises a `StorageError` for what cannot be asked of the agent. `told` is given answers of success only."""

    asks: Callable[[Any], Command]
    told: Callable[[Any, Answer], WireAnswer]
    failed: Callable[[Any, commands.Failure], WireAnswer] = _failed
    then: Callable[[Any, Answer], Command | None] = _nothing
    """What has to follow a success. If that fails, the success stays one, and says so."""


def text_of(error: commands.Failure) -> str:
    """A failure in one line, for people who read the management server's log."""
    return f"{error.kind}: {error.message}"
