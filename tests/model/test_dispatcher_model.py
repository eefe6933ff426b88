"""Dispatcher, journal and recovery against a model: submitted, repeated, cancelled, ended, stopped or killed in any order."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.commands import Answer, Command, Delete, Outcome, Ping, State
from agent.dispatcher import Dispatcher, Limits
from agent.failures import IdReused, Overloaded
from agent.journal import Journal
from agent.locks import Claim
from agent.recovery import recover
from stores.errors import Unavailable
from stores.to import PrimaryDataStoreTO, VolumeObjectTO
from tests.doubles.executor import HeldExecutor

POOL = PrimaryDataStoreTO(uuid="p", poolType="Filesystem")
LIMITS = Limits(concurrency=2, queue=6)
IDS = [f"c{number}" for number in range(12)]
CONTENTS = ["ping", "a", "b"]  # a Ping, or the volume that is to be deleted
SETTLE_S = 20.0

T = TypeVar("T")


class ByVolume(HeldExecutor):
    """Commands claim their volume."""

    def claims(self, command: Command) -> Sequence[Claim]:
        return [Claim(str(command.data.path))] if isinstance(command, Delete) else []


@dataclass
class Expected:
    content: str
    final: State | None = None
    answer: Answer | None = None  # once seen, it stays


def command_of(command_id: str, content: str) -> Command:
    if content == "ping":
        return Ping(id=command_id)
    return Delete(id=command_id, data=VolumeObjectTO(path=content, dataStore=POOL))


class DispatcherModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="sa-model-"))
        self.lives = 0
        self.known: dict[str, Expected] = {}  # in order of acceptance
        self.executor = ByVolume()
        self.runner = asyncio.Runner()
        self.silence = structlog.testing.capture_logs()
        self.silence.__enter__()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @initialize()
    def start(self) -> None:
        self.run(self._start())

    async def _start(self) -> None:
        self.stack = AsyncExitStack()
        self.executor = ByVolume(outcome_of_undo=self.executor.outcome_of_undo)
        self.journal = await self.stack.enter_async_context(Journal(self.directory / str(self.lives)))
        await recover(self.journal, self.executor)
        self.dispatcher = await self.stack.enter_async_context(Dispatcher(self.journal, self.executor, LIMITS))

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.runner.close()
        self.silence.__exit__(None, None, None)
        shutil.rmtree(self.directory)

    # ------------------------------------------------------------------------------------------------ what is done

    @rule(command_id=st.sampled_from(IDS), content=st.sampled_from(CONTENTS))
    def submit(self, command_id: str, content: str) -> None:
        expected = self.known.get(command_id)
        full = len(self.unfinished()) >= LIMITS.queue
        try:
            answer = self.run(self.dispatcher.submit(command_of(command_id, content)))
        except IdReused:
            assert expected is not None
            assert expected.content != content
            return
        except Overloaded:
            assert expected is None
            assert full
            return
        assert answer.id == command_id
        if expected is None:
            assert not full
            self.known[command_id] = Expected(content)
        else:
            assert expected.content == content
            assert answer.state.final == (expected.final is not None)

    @precondition(lambda self: self.executor.runs)
    @rule(data=st.data(), well=st.booleans())
    def end_a_run(self, data: st.DataObject, well: bool) -> None:
        command_id = data.draw(st.sampled_from(sorted(self.executor.runs)))
        end = self.executor.runs[command_id].end
        if well:
            end.set_result(Outcome(details="done"))
        else:
            end.set_exception(Unavailable("the store did not answer"))
        self.run(self.dispatcher.wait(command_id, SETTLE_S))
        self.known[command_id].final = State.SUCCEEDED if well else State.FAILED

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        command_id = data.draw(st.sampled_from(sorted(self.known)))
        answer = self.run(self.dispatcher.cancel(command_id))
        expected = self.known[command_id]
        expected.final = expected.final or State.CANCELLED
        assert answer.state is expected.final

    @rule()
    def stop_and_start(self) -> None:
        self.run(self.stack.aclose())
        for command_id in self.unfinished():
            self.known[command_id].final = State.INTERRUPTED
        self.run(self._start())

    @rule(found_finished=st.booleans())
    def kill_and_start(self, found_finished: bool) -> None:
        """What a killed process leaves is what is on disk at that moment: the next life begins with a copy of it."""
        begun = set(self.executor.runs)
        shutil.copytree(self.directory / str(self.lives), self.directory / str(self.lives + 1))
        self.run(self.stack.aclose())
        self.lives += 1
        self.executor.outcome_of_undo = lambda token: Outcome(details="found") if found_finished else None
        for command_id in self.unfinished():
            expected = self.known[command_id]
            wrote = command_id in begun and expected.content != "ping"
            expected.final = State.SUCCEEDED if wrote and found_finished else State.INTERRUPTED
        self.run(self._start())

    # ---------------------------------------------------------------------------------------------- what must hold

    def unfinished(self) -> list[str]:
        return [command_id for command_id, expected in self.known.items() if expected.final is None]

    def is_settled(self) -> bool:
        """Nobody waits who could run."""
        running = set(self.executor.runs)
        if len(running) == LIMITS.concurrency:
            return True
        busy = {self.known[command_id].content for command_id in running} - {"ping"}
        return all(
            self.known[command_id].content in busy for command_id in self.unfinished() if command_id not in running
        )

    @invariant()
    def all_is_as_expected(self) -> None:
        """One invariant, since the second half may look only when the first has let things settle."""
        self.everything_that_can_run_runs_in_order()
        self.every_command_is_told_as_it_is()

    def everything_that_can_run_runs_in_order(self) -> None:
        async def settle() -> None:
            async with asyncio.timeout(SETTLE_S):
                while not self.is_settled():
                    await asyncio.sleep(0.001)

        self.run(settle())
        running = list(self.executor.runs)
        assert len(running) <= LIMITS.concurrency
        assert set(running) <= set(self.unfinished())
        for volume in ("a", "b"):
            same = [command_id for command_id in self.unfinished() if self.known[command_id].content == volume]
            assert [command_id for command_id in same if command_id in running] in ([], same[:1])
        assert len(self.executor.started) == len(set(self.executor.started)), "no command runs twice"

    def every_command_is_told_as_it_is(self) -> None:
        for command_id, expected in self.known.items():
            answer = self.run(self.dispatcher.get(command_id))
            if expected.final is None:
                wanted = State.RUNNING if command_id in self.executor.runs else State.ACCEPTED
                assert answer.state is wanted
            else:
                assert answer.state is expected.final
                assert answer.result == (expected.final is State.SUCCEEDED)
                assert (answer.error is None) == answer.result
                assert expected.answer in (None, answer), "a final answer never changes"
                expected.answer = answer
        listed = self.run(self.dispatcher.list(limit=100))
        assert sorted(answer.id for answer in listed) == sorted(self.known)
        status = self.dispatcher.status()
        assert status.running + status.accepted == len(self.unfinished())


TestDispatcherModel = DispatcherModel.TestCase
TestDispatcherModel.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
