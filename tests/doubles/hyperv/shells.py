"""Shells and the pipelines in them: PowerShell remoting's server half, by psrpcore. What is run is somebody else's business."""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import psrpcore
from psrpcore.types import ErrorCategory, ErrorCategoryInfo, ErrorRecord, NETException, PSInvocationState

from tests.doubles.hyperv.wsman import MAX_SHELLS, NO_SUCH_COMMAND, NO_SUCH_SHELL, TIMED_OUT, Message, WsmanFault

FRAGMENT = 300 * 1024
"""Bytes of one answer: with base64 and the envelope less than MaxEnvelopeSize, 500 KiB."""


class ScriptEnded(Exception):
    """PowerShell itself ends a script: an error record, and the pipeline has failed."""

    def __init__(self, identifier: str, text: str) -> None:
        super().__init__(text)
        self.identifier = identifier


Run = Callable[[str, dict[str, object]], Awaitable[str]]
"""The script's text and its parameters; the text that it writes."""


@dataclass
class Shell:
    id: str
    pool: psrpcore.ServerRunspacePool
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    output: dict[str | None, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    """By command; of the shell itself: None."""
    pipelines: dict[str, psrpcore.ServerPipeline] = field(default_factory=dict)
    running: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    gone: bool = False


class Shells:
    """All of the host's. `most`: MaxShellsPerUser."""

    def __init__(self, run: Run, most: int) -> None:
        self._run = run
        self.most = most
        self.open: dict[str, Shell] = {}

    def create(self, message: Message) -> None:
        if len(self.open) >= self.most:
            raise WsmanFault(MAX_SHELLS, "The maximum number of concurrent shells for this user has been exceeded.")
        shell = Shell(message.shell or "", psrpcore.ServerRunspacePool())
        self.open[shell.id] = shell
        self._feed(shell, message.data, None)

    async def command(self, message: Message) -> None:
        shell, command = self._of(message), message.command or ""
        pipeline = psrpcore.ServerPipeline(shell.pool, uuid.UUID(command))
        shell.pipelines[command] = pipeline
        self._feed(shell, message.data, command)

    def send(self, message: Message) -> None:
        self._feed(self._of(message), message.data, message.command)

    async def signal(self, message: Message) -> None:
        shell, command = self._of(message), message.command or ""
        pipeline = shell.pipelines.get(command)
        if pipeline is None:
            return
        await self._end(shell, command)
        if message.signal is not None and "terminate" in message.signal.lower():
            shell.pipelines.pop(command)
            shell.output.pop(command, None)
            shell.pool.pipeline_table.pop(pipeline.pipeline_id, None)
        elif pipeline.state == PSInvocationState.Running:
            pipeline.begin_stop()
            pipeline.stop()
            await self._drain(shell)

    async def receive(self, message: Message) -> tuple[list[bytes], bool]:
        """What there is for that command, or as soon as there is, and whether it was the last."""
        shell, command = self._of(message), message.command
        if command is not None and command not in shell.pipelines:
            raise WsmanFault(NO_SUCH_COMMAND, "There is no such command.", "w:InvalidSelectors")
        async with shell.changed:
            try:
                async with asyncio.timeout(message.timeout_s):
                    await shell.changed.wait_for(lambda: bool(shell.output[command]) or shell.gone)
            except TimeoutError:
                raise WsmanFault(
                    TIMED_OUT, "The operation did not complete within the time specified.", "w:TimedOut"
                ) from None
            if shell.gone:
                raise _no_shell()
            parts = [shell.output[command].pop(0)]
        state = shell.pipelines[command].state if command is not None else PSInvocationState.Running
        ended = (PSInvocationState.Completed, PSInvocationState.Failed, PSInvocationState.Stopped)
        return parts, state in ended and not shell.output[command]

    async def delete(self, message: Message) -> None:
        await self.remove(self._of(message))

    async def remove(self, shell: Shell) -> None:
        """Whatever runs in it ends."""
        self.open.pop(shell.id, None)
        for command in list(shell.running):
            await self._end(shell, command)
        async with shell.changed:
            shell.gone = True
            shell.changed.notify_all()

    async def close(self) -> None:
        for shell in list(self.open.values()):
            await self.remove(shell)

    @property
    def running(self) -> int:
        """How many scripts run."""
        return sum(len(shell.running) for shell in self.open.values())

    # ------------------------------------------------------------------------------------------------------ inside

    def _of(self, message: Message) -> Shell:
        try:
            return self.open[message.shell or ""]
        except KeyError:
            raise _no_shell() from None

    def _feed(self, shell: Shell, data: bytes, command: str | None) -> None:
        pipeline = uuid.UUID(command) if command is not None else None
        shell.pool.receive_data(psrpcore.PSRPPayload(data, psrpcore.StreamType.default, pipeline))
        while (event := shell.pool.next_event()) is not None:
            if isinstance(event, psrpcore.CreatePipelineEvent) and command is not None:
                work = self._work(shell, command, event.pipeline)
                shell.running[command] = asyncio.create_task(work, name="fake powershell")
        self._take(shell)

    async def _work(self, shell: Shell, command: str, asked: psrpcore.PowerShell) -> None:
        pipeline = shell.pipelines[command]
        pipeline.start()
        try:
            text, parameters = _script(asked)
            pipeline.write_output(await self._run(text, parameters))
            pipeline.complete()
        except ScriptEnded as error:
            record = ErrorRecord(
                Exception=NETException(Message=str(error), HResult=-2146233087),
                CategoryInfo=ErrorCategoryInfo(Category=ErrorCategory.NotSpecified, Reason="RuntimeException"),
                FullyQualifiedErrorId=error.identifier,
            )
            pipeline._change_state(PSInvocationState.Failed, record)
        shell.running.pop(command, None)
        await self._drain(shell)

    async def _end(self, shell: Shell, command: str) -> None:
        task = shell.running.pop(command, None)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _drain(self, shell: Shell) -> None:
        self._take(shell)
        async with shell.changed:
            shell.changed.notify_all()

    def _take(self, shell: Shell) -> None:
        while (payload := shell.pool.data_to_send(FRAGMENT)) is not None:
            command = str(payload.pipeline_id).upper() if payload.pipeline_id is not None else None
            shell.output[command].append(payload.data)


def _script(asked: psrpcore.PowerShell) -> tuple[str, dict[str, object]]:
    """The text, whether it is the pipeline itself or handed to Invoke-Expression, as pypsrp's `Client.execute_ps` does."""
    first = asked.commands[0]
    parameters = {str(name): value for name, value in first.parameters}
    if first.command_text == "Invoke-Expression":
        return str(parameters["Command"]), {}
    return first.command_text, parameters


def _no_shell() -> WsmanFault:
    return WsmanFault(NO_SUCH_SHELL, "The shell was not found on the server.", "w:InvalidSelectors")
