"""Waiting for XAPI's tasks: one `event.from` for all that are waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import unescape

import structlog

from hypervisors.xen.errors import HANDLE_INVALID, TASK_CANCELLED, failure
from hypervisors.xen.session import PoolClient
from stores.errors import Retry, StorageError, Unavailable
from stores.transfer.groups import first_failure

_log = structlog.get_logger(__name__)

_ENDED = {"success", "failure", "cancelled"}
_ANSWER_S = 30.0
"""More than what was asked for until `event.from` has to have answered: XAPI queues calls under load."""

Progress = Callable[[float], None]


@dataclass(eq=False)
class _Waiting:
    ended: asyncio.Future[dict[str, Any] | StorageError]
    progress: Progress


@dataclass
class TaskWaiter:
    """For `watching`."""

    client: PoolClient
    poll_s: float
    pause_s: float
    sleep: Callable[[float], Awaitable[None]]
    _waiting: dict[str, set[_Waiting]] = field(default_factory=dict)
    _wanted: asyncio.Event = field(default_factory=asyncio.Event)

    async def result(self, task: str, *, progress: Progress = lambda done: None) -> str:
        """What `task` returned, decoded: a reference, say. Its failure as `XapiFailure` or its kin. `progress` gets 0 to 1.

        `Unavailable` when XAPI does not know the task any more: it restarted, and nobody knows what came of it.
        """
        record = await self.ended(task, progress=progress)
        if record["status"] == "success":
            return plain(str(record["result"]))
        told = [str(part) for part in record["error_info"]] or [TASK_CANCELLED]
        raise failure(told[0], told[1:], doing=str(record["name_label"]) or "task")

    async def ended(self, task: str, *, progress: Progress = lambda done: None) -> dict[str, Any]:
        """The record of `task` once it has ended, in whichever way. A pool that cannot be reached for the time being is waited
        for: deadlines are the caller's."""
        waiting = _Waiting(asyncio.get_running_loop().create_future(), progress)
        self._waiting.setdefault(task, set()).add(waiting)
        self._wanted.set()
        try:
            await self._look(task)  # it may have ended before anybody listened
            outcome = await waiting.ended
        finally:
            waiting.ended.cancel()  # nobody asks any more what it holds
            self._waiting[task].discard(waiting)
            if not self._waiting[task]:
                del self._waiting[task]
        match outcome:
            case StorageError():
                raise outcome
            case _:
                return outcome

    async def listen(self) -> None:
        """Until cancelled. While nobody waits, nothing is asked."""
        token = ""
        while True:
            if not self._waiting:
                self._wanted.clear()
                await self._wanted.wait()
                token = ""
            try:
                token = await self._hear(token)
            except StorageError as problem:
                # Those who wait go on waiting, as a transfer does not end with a call: what fails for good fails in `_look`.
                _log.warning("xapi events interrupted", error=problem.message, kind=problem.kind)
                token = ""
                await self._look_at_all()
                await self.sleep(self.pause_s)

    async def _hear(self, token: str) -> str:
        told = await self.client.call("event.from", ["task"], token, self.poll_s, timeout_s=self.poll_s + _ANSWER_S)
        for event in told["events"]:
            if event["operation"] == "del":
                self._settle(event["ref"], _lost(event["ref"]))
            elif "snapshot" in event:
                self._tell(event["ref"], event["snapshot"])
        if told["events"]:
            return str(told["token"])
        # Silence: nothing happened, or the token is of a XAPI that was restarted since and says nothing to this one.
        await self._look_at_all()
        return ""

    async def _look_at_all(self) -> None:
        for task in list(self._waiting):
            await self._look(task)

    async def _look(self, task: str) -> None:
        try:
            self._tell(task, await self.client.call("task.get_record", task))
        except StorageError as problem:
            if problem.details.get("code") == HANDLE_INVALID:
                self._settle(task, _lost(task))
            elif problem.retry is not Retry.YES:
                self._settle(task, problem)

    def _tell(self, task: str, record: dict[str, Any]) -> None:
        for waiting in self._waiting.get(task, set()):
            waiting.progress(float(record["progress"]))
        if record["status"] in _ENDED:
            self._settle(task, record)

    def _settle(self, task: str, outcome: dict[str, Any] | StorageError) -> None:
        for waiting in self._waiting.get(task, set()):
            if not waiting.ended.done():
                waiting.ended.set_result(outcome)


def _lost(task: str) -> Unavailable:
    return Unavailable("XAPI does not know the task any more: it restarted, or somebody removed it", task=task)


def plain(result: str) -> str:
    """A task's `result` without the XML around it."""
    text = result.removeprefix("<value>").removesuffix("</value>").removeprefix("<string>").removesuffix("</string>")
    return unescape(text)


@asynccontextmanager
async def watching(
    client: PoolClient,
    *,
    poll_s: float = 30.0,
    pause_s: float = 1.0,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncIterator[TaskWaiter]:
    """Tasks of the pool can be waited for until the context ends. `poll_s`: after so much silence the tasks are looked at."""
    waiter = TaskWaiter(client, poll_s, pause_s, sleep)
    with first_failure():
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(waiter.listen(), name="xapi events")
            yield waiter
            listening.cancel()
