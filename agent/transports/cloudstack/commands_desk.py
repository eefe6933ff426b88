"""Where wire commands become commands of the agent and are waited for. The only effects are the dispatcher's."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog
from pydantic import ValidationError

from agent.commands import MAX_DEADLINE_S, Answer, Command, canonical
from agent.failures import UnknownCommand, tell
from agent.transports.cloudstack.commands_route import Route, text_of
from agent.transports.cloudstack.models import WireAnswer, WireCommand
from stores.errors import StorageError
from stores.uninterrupted import uninterrupted

_log = structlog.get_logger(__name__)

_LOOK_S = 3600.0
_DOWNLOAD = "cs-download-"
_MAX_DOWNLOADS = 4096


class Commands(Protocol):
    """The dispatcher (`agent.dispatcher`), as far as it is needed here."""

    async def submit(self, command: Command) -> Answer: ...

    async def get(self, command_id: str) -> Answer: ...

    async def wait(self, command_id: str, seconds: float) -> Answer: ...

    async def cancel(self, command_id: str) -> Answer: ...


@dataclass(slots=True)
class _Shared:
    """A command that is under way, and how many wait for it."""

    id: str
    waiters: int = 0


class Desk:
    """Runs what a link is asked for. A command that asks the same as one under way is that one: the server sends work again
    when it has lost the connection, and must get the answer of what is still going on."""

    def __init__(self, dispatcher: Commands, *, new_id: Callable[[], str] = lambda: uuid.uuid4().hex) -> None:
        self._dispatcher = dispatcher
        self._new_id = new_id
        self._shared: dict[str, _Shared] = {}
        self._downloads: dict[str, str] = {}  # newest last: the id of the last download that asked for this

    async def serve(self, route: Route, command: WireCommand, *, within_s: float) -> WireAnswer:
        """What the agent made of it. Never raises a `StorageError`: that is an answer. When cancelled, the agent's command
        is cancelled too, unless somebody else waits for it, and nothing of it is left."""
        loop = asyncio.get_running_loop()
        until = loop.time() + within_s
        try:
            asked = route.asks(command)
            answer = await self.run(asked, within_s=within_s)
        except (StorageError, ValidationError) as error:
            return route.failed(command, tell(error).failure)
        if answer.error is not None:
            return route.failed(command, answer.error)
        told, following = route.told(command, answer), route.then(command, answer)
        if following is None:
            return told
        try:
            ended = await self.run(following, within_s=max(1.0, until - loop.time()))
            problem = text_of(ended.error) if ended.error else None
        except StorageError as error:
            problem = text_of(tell(error).failure)
        if problem is None:
            return told
        _log.warning("what follows a command failed", command=type(command).__name__, error=problem)
        return told.model_copy(update={"details": f"done, but what was to follow failed: {problem}"})

    async def run(self, command: Command, *, within_s: float) -> Answer:
        """The agent's final answer, at most that many seconds later. Raises what `Commands.submit` does."""
        key = _digest(command)
        shared = self._shared.setdefault(key, _Shared(f"cs-{self._new_id()}"))
        shared.waiters += 1
        try:
            named = {"id": shared.id, "deadline_s": min(within_s, MAX_DEADLINE_S)}
            answer = await self._dispatcher.submit(command.model_copy(update=named))
            while not answer.state.final:
                answer = await self._dispatcher.wait(shared.id, _LOOK_S)
            return answer
        except asyncio.CancelledError:
            if shared.waiters == 1:
                await uninterrupted(self._cancel(shared.id))
            raise
        finally:
            shared.waiters -= 1
            if not shared.waiters:
                del self._shared[key]

    async def _cancel(self, command_id: str) -> None:
        with suppress(UnknownCommand):  # it was not accepted yet
            await self._dispatcher.cancel(command_id)

    # ------------------------------------------------------------------------------------------------- downloads

    async def download(self, command: Command, *, again: bool = False) -> Answer:
        """Begin in the background, or join what does the same already. `again`: whatever became of the last one."""
        key = _digest(command)
        last = self._downloads.pop(key, None)
        if last is not None and not again:
            answer = await self.look(last)
            if answer is not None and not answer.state.final:
                self._downloads[key] = last
                return answer
        if len(self._downloads) >= _MAX_DOWNLOADS:
            del self._downloads[next(iter(self._downloads))]
        job = self._downloads[key] = f"{_DOWNLOAD}{self._new_id()}"
        return await self._dispatcher.submit(command.model_copy(update={"id": job}))

    async def look(self, job: str | None) -> Answer | None:
        """A download as it is now; None where no download of that id is known."""
        if job is None or not job.startswith(_DOWNLOAD):
            return None
        try:
            return await self._dispatcher.get(job)
        except UnknownCommand:
            return None

    async def abandon(self, job: str | None) -> Answer | None:
        """Stop a download; when this returns nothing of it is left. None as for `look`."""
        if job is None or not job.startswith(_DOWNLOAD):
            return None
        try:
            return await self._dispatcher.cancel(job)
        except UnknownCommand:
            return None


def _digest(command: Command) -> str:
    return hashlib.sha256(canonical(command)).hexdigest()
