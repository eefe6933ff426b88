"""Runs a tool: fixed argv, no shell, an empty environment, limits, a deadline; nothing of it is left afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hypervisors.contract import HandlerError
from stores.contract import GiB, MiB
from stores.errors import Retry


class ToolError(HandlerError):
    """Base of what goes wrong with a tool."""


class ToolFailed(ToolError):
    """The tool ended with an error, by a signal, or wrote more than it may."""


class ToolTimeout(ToolError):
    """The tool was stopped at its deadline."""

    retry = Retry.YES


class ToolMissing(ToolError):
    """The tool is not installed: `package` in the details is the Debian package that has it."""

    retry = Retry.OPERATOR


@dataclass(frozen=True, slots=True)
class ToolLimits:
    """Resource limits of one run; bytes and seconds. None: as the agent has it."""

    address_space: int | None = 4 * GiB
    cpu_s: int | None = None
    file_size: int | None = None
    output: int = 1 * MiB


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool wrote before it ended with success."""

    stdout: bytes
    stderr: bytes


class ToolRunner:
    """Runs tools as children of this process. Stateless; one for all."""

    async def run(
        self,
        argv: Sequence[str],
        *,
        deadline_s: float | None,
        limits: ToolLimits = ToolLimits(),
        on_progress: Callable[[float], None] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> ToolResult:
        """Run `argv` to its end. `argv[0]` is a plain name, looked up in the system's directories.

        `on_progress` gets the fraction done, 0 to 1, from what `qemu-img ... -p` prints; stdout is then not collected.
        """
        raise NotImplementedError
