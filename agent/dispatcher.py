"""From an accepted command to its recorded outcome: journal, locks, turns, deadlines, cancellation, progress.

A command is one task of one task group:

    journal it -> wait for its locks -> wait for its turn -> run it -> journal how it ended -> tell

Locks come before turns, so that a command that waits for an object takes no turn from one that could run. Whoever holds a
turn has all its locks, so nothing can wait in a circle. Until the outcome is in the journal nobody is told of it.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import structlog

from agent.commands import Answer, Command, Event, Outcome, State, canonical
from agent.executor import Executor, Observer, Unobserved
from agent.failures import Draining, JournalUnusable, Overloaded, Stopping, UnknownCommand
from agent.job import Job, Stop
from agent.journal import Journal
from agent.journal_file import Entry
from agent.locks import Locks
from agent.progress import Tracker
from agent.replay import goes_on, replay, reused

_log = structlog.get_logger(__name__)

EVENT_INTERVAL_S = 0.2
"""Pace of progress events. Subscribers look this often; nobody is woken by the work itself."""
RECORD_RETRY_S = 1.0
"""Pause between attempts to record an outcome in a journal that fails."""


@dataclass(frozen=True, slots=True)
class Limits:
    concurrency: int = 8  # commands that run at once
    queue: int = 10_000  # commands accepted and not ended
    default_deadline_s: float = 4 * 3600.0


@dataclass(frozen=True, slots=True)
class DispatcherStatus:
    """What the dispatcher is doing at this moment."""

    accepting: bool
    draining: bool  # emptied for maintenance
    journal_usable: bool
    accepted: int  # journalled and not yet running
    running: int
    queue_limit: int
    concurrency: int


class Dispatcher:
    """See the module. An asynchronous context manager: commands run inside of it, and leaving it stops them."""

    def __init__(
        self,
        journal: Journal,
        executor: Executor,
        limits: Limits = Limits(),
        *,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
        event_interval_s: float = EVENT_INTERVAL_S,
        record_retry_s: float = RECORD_RETRY_S,
    ) -> None:
        """`clock` is the wall clock, for the times in answers; deadlines use the loop's."""
        self._journal = journal
        self._executor = executor
        self._limits = limits
        self._observer = observer or Unobserved()
        self._clock = clock
        self._new_id = new_id
        self._event_interval_s = event_interval_s
        self._record_retry_s = record_retry_s
        self._jobs: dict[str, Job] = {}
        self._locks = Locks()
        self._turns = asyncio.Semaphore(limits.concurrency)
        self._group = asyncio.TaskGroup()
        self._accepting = False
        self._draining = False
        self._give_up = False  # recording has been tried long enough

    async def __aenter__(self) -> Dispatcher:
        await self._group.__aenter__()
        self._accepting = True
        return self

    async def __aexit__(self, *failure: object) -> None:
        try:
            await self.shut_down(0)
        except BaseException as error:
            await self._group.__aexit__(type(error), error, error.__traceback__)
            raise
        await self._group.__aexit__(None, None, None)

    # ------------------------------------------------------------------------------------------ for the transports

    async def submit(self, command: Command) -> Answer:
        """Journal the command, put it in the queue, and say so. Durable when this returns.

        A command whose id was seen before is not run again: its present or final answer is returned. `IdReused` if the
        content differs, `Overloaded` if the queue is full, `Stopping` while the agent stops, `Draining` while it is emptied,
        `JournalUnusable` if it could not be journalled. Cancelling this call does not cancel the command.

        One whose answer was `UploadPending` is accepted once more, and waits for that upload.
        """
        command_id = command.id or self._new_id()
        fingerprint = self._journal.fingerprint(canonical(command))
        job = self._jobs.get(command_id)
        if job is None:
            refusal = self._refusal()
            if refusal is not None:
                entry = await self._journal.find(command_id) if command.id else None
                if entry is None:
                    raise refusal
                return replay(entry, fingerprint)
            job = self._start(command, command_id, fingerprint)
        known = await asyncio.shield(job.accepted)
        if known is not None:
            return replay(known, fingerprint)
        if job.fingerprint != fingerprint:
            raise reused(command_id)
        return job.ended.result() if job.ended.done() else job.answer()

    async def get(self, command_id: str) -> Answer:
        """The command's present answer. `UnknownCommand` if there is none, or no longer."""
        found = await self._find(command_id)
        return found.answer() if isinstance(found, Job) else found

    async def wait(self, command_id: str, seconds: float) -> Answer:
        """The final answer, or after that many seconds the present one. `UnknownCommand`."""
        found = await self._find(command_id)
        if isinstance(found, Answer):
            return found
        await asyncio.wait([found.ended], timeout=seconds)
        return found.ended.result() if found.ended.done() else found.answer()

    async def cancel(self, command_id: str) -> Answer:
        """Stop the command wherever it is and wait until nothing of it is left. One that already ended stays as it ended.
        `UnknownCommand`."""
        job = self._jobs.get(command_id)
        if job is not None:
            job.request_stop(Stop.CANCEL)
        found = await self._find(command_id)
        return await asyncio.shield(found.ended) if isinstance(found, Job) else found

    async def events(self, command_id: str) -> AsyncIterator[Event]:
        """Progress until the command ends; the last event has the final state. A slow consumer misses steps, never the
        last one. `UnknownCommand` on the first step."""
        found = await self._find(command_id)
        if isinstance(found, Job):
            last: Event | None = None
            while not found.ended.done():
                answer = found.answer()
                event = Event(id=answer.id, state=answer.state, progress=answer.progress)
                if event != last:
                    yield event
                    last = event
                await asyncio.wait([found.ended], timeout=self._event_interval_s)
            found = found.ended.result()
        yield Event(id=found.id, state=found.state)

    async def list(self, *, state: State | None = None, limit: int = 100) -> list[Answer]:
        """The newest commands first, at most `limit`."""
        live = [job.answer() for job in self._jobs.values() if job.accepted.done() and state in (None, job.state)]
        live.sort(key=lambda answer: answer.accepted_at, reverse=True)
        ended: Sequence[Entry] = ()
        if len(live) < limit and (state is None or state.final):
            ended = await self._journal.newest(limit - len(live), state)
        seen = {answer.id for answer in live}
        return live[:limit] + [entry.told() for entry in ended if entry.id not in seen]

    def status(self) -> DispatcherStatus:
        running = sum(job.state is State.RUNNING for job in self._jobs.values())
        return DispatcherStatus(
            accepting=self._accepting,
            draining=self._draining,
            journal_usable=self._journal.usable,
            accepted=len(self._jobs) - running,
            running=running,
            queue_limit=self._limits.queue,
            concurrency=self._limits.concurrency,
        )

    def under_way(self, command_id: str) -> bool:
        """Whether it waits or runs."""
        return command_id in self._jobs

    def drain(self, draining: bool) -> None:
        """Accept nothing new from now on, or again. What was accepted goes on to its end."""
        self._draining = draining

    async def idle(self, seconds: float) -> bool:
        """Whether no command waits or runs, now or within that many seconds."""
        await self._all_ended(seconds)
        return not self._jobs

    async def shut_down(self, seconds: float) -> None:
        """Stop accepting; what waits is answered `interrupted`; what runs gets that many seconds, then is interrupted
        too. Every outcome is recorded when this returns, unless the journal fails: then the next start accounts for it."""
        self._accepting = False
        for job in list(self._jobs.values()):
            if job.state is State.ACCEPTED:
                job.request_stop(Stop.INTERRUPT)
        await self._all_ended(seconds)
        for job in list(self._jobs.values()):
            job.request_stop(Stop.INTERRUPT)
        self._give_up = True
        await self._all_ended(None)

    async def _all_ended(self, seconds: float | None) -> None:
        tasks = [job.task for job in self._jobs.values() if job.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    # --------------------------------------------------------------------------------------------------- inside

    def _refusal(self) -> Stopping | Draining | Overloaded | None:
        if not self._accepting:
            return Stopping("the agent is stopping and accepts no commands; send it again when it is back")
        if self._draining:
            return Draining(
                "the agent is being emptied for maintenance and accepts no commands; send it again afterwards"
            )
        if len(self._jobs) >= self._limits.queue:
            return Overloaded(
                f"{len(self._jobs)} commands wait or run, and the limit is {self._limits.queue}; send it again later",
                limit=self._limits.queue,
            )
        return None

    def _start(self, command: Command, command_id: str, fingerprint: str) -> Job:
        loop = asyncio.get_running_loop()
        deadline_s = command.deadline_s or self._limits.default_deadline_s
        job = Job(
            id=command_id,
            command=command,
            fingerprint=fingerprint,
            deadline_s=deadline_s,
            deadline=loop.time() + deadline_s,
            accepted_at=self._clock(),
            tracker=Tracker(loop.time, count=self._observer.advanced),
            accepted=loop.create_future(),
            ended=loop.create_future(),
        )
        self._jobs[command_id] = job
        job.task = self._group.create_task(self._live(job), name=f"command {command_id}")
        return job

    async def _find(self, command_id: str) -> Job | Answer:
        job = self._jobs.get(command_id)
        if job is not None:
            known = await asyncio.shield(job.accepted)
            return job if known is None else known.told()
        entry = await self._journal.find(command_id)
        if entry is None:
            raise UnknownCommand(
                f"no command {command_id} is known here; finished ones are forgotten after the configured time",
                id=command_id,
            )
        return entry.told()

    async def _live(self, job: Job) -> None:
        """A command's whole life. Ends without an exception, whatever the command does."""
        structlog.contextvars.bind_contextvars(command_id=job.id, command=job.command.command)
        try:
            if await self._accept(job):
                answer = await self._perform(job)
                await self._record(job, answer)
        finally:
            del self._jobs[job.id]
            job.accepted.cancel()  # both are done, unless the dispatcher itself is torn down
            job.ended.cancel()

    async def _accept(self, job: Job) -> bool:
        entry = Entry(
            id=job.id,
            command=job.command.command,
            request=job.command.model_dump_json(by_alias=True, exclude_none=True),
            fingerprint=job.fingerprint,
            accepted_at=job.accepted_at,
        )
        try:
            known = await self._journal.accept(entry)
            if known is not None and goes_on(known, job.fingerprint):
                await self._journal.reopen(job.id, job.accepted_at)
                known = None
        except JournalUnusable as error:
            _log.critical("a command was refused because the journal failed", error=error.message)
            job.accepted.set_exception(error)
            job.accepted.exception()  # whoever submitted may have gone
            return False
        job.accepted.set_result(known)
        if known is not None:
            return False
        self._observer.accepted(job.command.command)
        return True

    async def _perform(self, job: Job) -> Answer:
        """Run it and make its final answer of whatever happens."""
        job.stoppable = True
        reason: Stop | None = None
        scope = asyncio.timeout_at(job.deadline)
        try:
            if job.stop is not None:  # while it was being accepted
                raise asyncio.CancelledError
            async with scope, self._locks.hold(self._executor.claims(job.command)), self._turns:
                outcome = await self._run(job)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if job.stop is None or task is None:
                raise
            task.uncancel()
            reason = job.stop
        except Exception as error:  # noqa: BLE001  becomes the command's answer
            if not isinstance(error, TimeoutError) or not scope.expired():
                return job.failed(error, self._clock())
        else:
            return job.succeeded(outcome, self._clock())
        finally:
            job.stoppable = False
        return await self._unfinished(job, reason)

    async def _unfinished(self, job: Job, reason: Stop | None) -> Answer:
        """The answer of a command that was stopped, or (without a reason) came too late: never that it was undone while what it
        has staged goes on to its store."""
        try:
            if job.started_at is not None:
                await self._executor.settle(job.command, job.id, give_up=reason is Stop.CANCEL)
        except Exception as error:  # noqa: BLE001  becomes the command's answer
            return job.failed(error, self._clock())
        if reason is None:
            return job.failed(job.late(), self._clock())
        return job.stopped(reason, self._clock())

    async def _run(self, job: Job) -> Outcome:
        job.started_at = self._clock()
        if job.command.writes:
            await self._journal.begin(job.id, job.started_at)
        job.state = State.RUNNING
        return await self._executor.execute(job.command, job.id, job.tracker)

    async def _record(self, job: Job, answer: Answer) -> None:
        """Journal the outcome before anybody is told. A journal that fails is asked again until it works: an outcome that
        is not on disk has not happened."""
        hindered: asyncio.CancelledError | None = None
        while True:
            recorded = self._journal.finish(answer)
            hindered = await _ended(recorded) or hindered
            error = recorded.exception()
            if error is None:
                break
            _log.critical("an outcome cannot be recorded", state=answer.state.value, error=str(error))
            if self._give_up:
                job.ended.set_exception(error)
                job.ended.exception()  # there may be nobody to see it
                return
            await asyncio.sleep(self._record_retry_s)
        job.ended.set_result(answer)
        self._observer.finished(answer)
        if answer.error is None:
            _log.info("command ended", state=answer.state.value)
        else:
            failure = answer.error
            _log.warning("command ended", state=answer.state.value, kind=failure.kind, error=failure.message)
        if hindered is not None and job.stop is None:
            raise hindered


async def _ended(future: asyncio.Future[None]) -> asyncio.CancelledError | None:
    """Wait until it is done, come what may; a cancellation that came meanwhile is handed back."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled
