"""What a server asks, run: in order within a request, all requests at once, none without an end.

Requests belong to the link and not to a connection: when that is lost they go on, since the server may have acted on them
already, and their answers are dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

import structlog

from agent.failures import tell
from agent.transports.cloudstack.json_codec import Decoded, Refused, Unknown
from agent.transports.cloudstack.models import CLASSES, UnsupportedAnswer, WireAnswer, WireCommand
from agent.transports.cloudstack.wire import Flag, Message
from stores.contract import MiB

_log = structlog.get_logger(__name__)

MOST = 4096  # requests at once; a server queues by itself what has to be in sequence
MOST_BYTES = 64 * MiB  # of their texts together
DEFAULT_WAIT_S = 1800  # a server's own, for commands that carry none
PERIODS = 2  # a server waits a second period for the answer before it forgets the request

Execute = Callable[[WireCommand, float], Awaitable[WireAnswer]]
"""A command, and the seconds within which its answer is of use."""
Tell = Callable[[Sequence[WireAnswer]], Awaitable[None]]
"""The answers of a request, one for each command."""


@dataclass(slots=True, eq=False)
class _Running:
    sequence: int
    size: int
    task: asyncio.Task[None] | None = None
    cancelled: bool = False
    answering: bool = False  # it is over, and half a message must not be left on the connection


class Requests:
    """Entered before use; leaving it cancels what still runs and waits for it."""

    def __init__(self, execute: Execute) -> None:
        self._execute = execute
        self._group = asyncio.TaskGroup()
        self._running: set[_Running] = set()
        self._bytes = 0
        self._ended = asyncio.Event()

    async def __aenter__(self) -> Requests:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for running in self._running:
            _cancel(running)
        await self._group.__aexit__(kind, error, trace)

    def __len__(self) -> int:
        return len(self._running)

    @property
    def full(self) -> bool:
        """Whether no further request is read until one ended."""
        return len(self._running) >= MOST or self._bytes >= MOST_BYTES

    async def room(self) -> None:
        """Wait until another request may be started."""
        while self.full:
            await self._one_ended()

    async def idle(self) -> None:
        """Wait until nothing runs."""
        while self._running:
            await self._one_ended()

    def start(self, message: Message, items: Sequence[Decoded], size: int, answer: Tell) -> None:
        """Run the commands of a request and hand over their answers, one each, in order. `size`: bytes that count against
        `MOST_BYTES`."""
        running = _Running(message.sequence, size)
        work = self._run(running, items, answer, stop=Flag.STOP_ON_ERROR in message.flags)
        running.task = self._group.create_task(work, name=f"request-{message.sequence}")
        running.task.add_done_callback(lambda _: self._forget(running))
        self._running.add(running)
        self._bytes += size

    def cancel(self, sequence: int, *, only_ask: bool) -> bool:
        """Stop what came with that number: it is undone, and answered as failed. Whether there is something to stop."""
        found = [running for running in self._running if running.sequence == sequence and not running.answering]
        if not only_ask:
            for running in found:
                running.cancelled = True
                _cancel(running)
        return bool(found)

    def _forget(self, running: _Running) -> None:
        self._running.remove(running)
        self._bytes -= running.size
        self._ended.set()

    async def _one_ended(self) -> None:
        self._ended.clear()
        await self._ended.wait()

    async def _run(self, running: _Running, items: Sequence[Decoded], answer: Tell, *, stop: bool) -> None:
        try:
            answers = await self._answers(items, stop=stop)
        except asyncio.CancelledError:
            if running.task is None or not running.cancelled:
                raise
            running.task.uncancel()
            answers = [WireAnswer(result=False, details="Cancelled, and undone")] * len(items)
        running.answering = True
        await answer(answers)

    async def _answers(self, items: Sequence[Decoded], *, stop: bool) -> list[WireAnswer]:
        answers: list[WireAnswer] = []
        for item in items:
            if stop and answers and not answers[-1].result:
                answers += [WireAnswer(result=False, details="Stopped by previous failure")] * (
                    len(items) - len(answers)
                )
                break
            answers.append(await self._answer(item))
        return answers

    async def _answer(self, item: Decoded) -> WireAnswer:
        match item:
            case Unknown():
                return UnsupportedAnswer(result=False, details=f"Unsupported command issued: {item.java}")
            case Refused():
                return _answer_class(item.java)(result=False, details=item.error.message)
            case WireCommand():
                return await self._executed(item)
            case _:
                return UnsupportedAnswer(result=False, details=f"{item.java} is no command")

    async def _executed(self, command: WireCommand) -> WireAnswer:
        within_s = PERIODS * (command.wait if command.wait > 0 else DEFAULT_WAIT_S)
        scope = asyncio.timeout(within_s)
        try:
            async with scope:
                return await self._execute(command, within_s)
        except Exception as error:  # noqa: BLE001  becomes the command's answer; `tell` logs what nobody foresaw
            if isinstance(error, TimeoutError) and scope.expired():
                _log.warning("command abandoned", command=command.java, within_s=within_s)
                return command.answered_by(result=False, details=f"not done within {within_s} s; it was undone")
            return command.answered_by(result=False, details=tell(error).failure.message)


def _cancel(running: _Running) -> None:
    if running.task is not None:
        running.task.cancel()


def _answer_class(java: str | None) -> type[WireAnswer]:
    """Of a command that could not be read."""
    known = CLASSES.get(java or "")
    return known.answered_by if known is not None and issubclass(known, WireCommand) else WireAnswer
