"""Wire commands on a real dispatcher: one run for equal requests, cancellation without a trace, downloads in the background."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent import commands
from agent.commands import Command, Outcome, State
from agent.dispatcher import Dispatcher, Limits
from agent.journal import Journal
from agent.transports.cloudstack.commands_desk import Desk
from agent.transports.cloudstack.commands_route import Route, failure
from agent.transports.cloudstack.models import WireAnswer, WireCommand
from agent.transports.cloudstack.models_storage import DeleteCommand
from stores.errors import NoSpace
from stores.to import PrimaryDataStoreTO, VolumeObjectTO
from tests.doubles.executor import HeldExecutor

POOL = PrimaryDataStoreTO(uuid="p", poolType="Filesystem")


def deleting(path: str = "v", **fields: Any) -> DeleteCommand:
    return DeleteCommand(data=VolumeObjectTO(path=path, dataStore=POOL), **fields)


def deletion(command: DeleteCommand) -> Command:
    return commands.Delete(data=command.data)


def done(command: WireCommand, answer: commands.Answer) -> WireAnswer:
    return WireAnswer(result=True, details=answer.id)


ROUTE = Route(deletion, done)


@dataclass
class Place:
    desk: Desk
    held: HeldExecutor
    dispatcher: Dispatcher

    async def running(self) -> str:
        """The id of the one command that runs."""
        await until(lambda: len(self.held.runs) == 1)
        return next(iter(self.held.runs))

    def end(self, command_id: str, result: BaseException | None = None) -> None:
        end = self.held.runs[command_id].end
        if result is not None:
            end.set_exception(result)
        else:
            end.set_result(Outcome())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


@asynccontextmanager
async def place(directory: Path, limits: Limits | None = None) -> AsyncIterator[Place]:
    """Afterwards no task is left and the desk remembers no command."""
    before, held = asyncio.all_tasks(), HeldExecutor()
    async with Journal(directory) as journal, Dispatcher(journal, held, limits or Limits()) as dispatcher:
        here = Place(Desk(dispatcher), held, dispatcher)
        yield here
        assert here.desk._shared == {}
    assert asyncio.all_tasks() == before


async def test_a_command_is_answered_when_it_has_ended(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        served = asyncio.create_task(here.desk.serve(ROUTE, deleting(), within_s=20))
        command_id = await here.running()
        command = here.held.runs[command_id].command
        assert (command.deadline_s, command.id) == (20, command_id)
        here.end(command_id)
        assert await served == WireAnswer(result=True, details=command_id)


async def test_equal_requests_are_one_run_until_it_ends_and_then_another(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        asked = [deleting(wait=wait) for wait in (0, 5)]  # what was sent again may allow another time
        served = [asyncio.create_task(here.desk.serve(ROUTE, one, within_s=20)) for one in asked]
        other = asyncio.create_task(here.desk.serve(ROUTE, deleting("w"), within_s=20))
        await until(lambda: len(here.held.runs) == 2)
        for command_id in list(here.held.runs):
            here.end(command_id)
        first, second = await asyncio.gather(*served)
        assert first == second
        assert (await other).details != first.details
        again = asyncio.create_task(here.desk.serve(ROUTE, deleting(), within_s=20))
        here.end(await here.running())
        assert (await again).details != first.details
        assert len(here.held.started) == 3


async def test_a_failure_is_an_answer(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        served = asyncio.create_task(here.desk.serve(ROUTE, deleting(), within_s=20))
        here.end(await here.running(), NoSpace("there is no room"))
        assert await served == WireAnswer(result=False, details="NoSpace: there is no room")


async def test_what_cannot_be_asked_or_accepted_is_an_answer(tmp_path: Path) -> None:
    def refuses(command: DeleteCommand) -> Command:
        raise NoSpace("never")

    def invalid(command: DeleteCommand) -> Command:
        return commands.ResizeVolume(newSize=-1)

    async with place(tmp_path, Limits(queue=0)) as here:
        assert (await here.desk.serve(Route(refuses, done), deleting(), within_s=20)).details == "NoSpace: never"
        unsound = await here.desk.serve(Route(invalid, done), deleting(), within_s=20)
        assert (unsound.details or "").startswith("InvalidCommand: ")
        full = await here.desk.serve(ROUTE, deleting(), within_s=20)
        assert (full.details or "").startswith("Overloaded: ")
        assert here.held.started == []


async def test_time_that_is_up_is_an_answer_and_nothing_is_left(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        answer = await here.desk.serve(ROUTE, deleting(), within_s=0.05)
        assert (answer.details or "").startswith("DeadlineExceeded: ")
        assert here.held.runs == {}


async def test_a_cancellation_undoes_the_command(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        served = asyncio.create_task(here.desk.serve(ROUTE, deleting(), within_s=20))
        command_id = await here.running()
        served.cancel()
        with pytest.raises(asyncio.CancelledError):
            await served
        assert here.held.undone == [command_id]
        assert (await here.dispatcher.get(command_id)).state is State.CANCELLED


async def test_a_cancellation_leaves_the_command_to_others_who_wait_for_it(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        first, second = (asyncio.create_task(here.desk.serve(ROUTE, deleting(), within_s=20)) for _ in range(2))
        command_id = await here.running()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert here.held.undone == []
        here.end(command_id)
        assert (await second).result


@pytest.mark.parametrize("steps", range(6))
async def test_a_cancellation_before_the_command_began_leaves_nothing(tmp_path: Path, steps: int) -> None:
    async with place(tmp_path) as here:
        served = asyncio.create_task(here.desk.serve(ROUTE, deleting(), within_s=20))
        for _ in range(steps):
            await asyncio.sleep(0)
        served.cancel()
        with pytest.raises(asyncio.CancelledError):
            await served
        await until(lambda: here.dispatcher.status().accepted == here.dispatcher.status().running == 0)
        assert here.held.runs == {}


async def test_what_follows_runs_after_a_success_only(tmp_path: Path) -> None:
    route = Route(deletion, done, then=lambda command, answer: commands.Ping())
    async with place(tmp_path) as here:
        served = asyncio.create_task(here.desk.serve(route, deleting(), within_s=20))
        here.end(await here.running(), NoSpace("there is no room"))
        assert not (await served).result
        assert len(here.held.started) == 1

        served = asyncio.create_task(here.desk.serve(route, deleting(), within_s=20))
        first = await here.running()
        here.end(first)
        await until(lambda: len(here.held.started) == 3 and len(here.held.runs) == 1)
        here.end(await here.running())
        assert await served == WireAnswer(result=True, details=first)

        served = asyncio.create_task(here.desk.serve(route, deleting(), within_s=20))
        here.end(await here.running())
        await until(lambda: len(here.held.started) == 5 and len(here.held.runs) == 1)
        here.end(await here.running(), NoSpace("there is no room"))
        answer = await served
        assert answer.result  # what was asked for is done
        assert "there is no room" in (answer.details or "")


async def test_a_failure_has_the_class_of_the_command() -> None:
    assert type(failure(deleting(), "x")) is WireAnswer


# ----------------------------------------------------------------------------------------------------------- downloads


async def test_a_download_goes_on_in_the_background_and_is_joined(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        began = await here.desk.download(deletion(deleting()))
        assert not began.state.final
        joined = await here.desk.download(deletion(deleting()))
        assert joined.id == began.id
        here.end(await here.running())
        await here.dispatcher.wait(began.id, 20)
        looked = await here.desk.look(began.id)
        assert looked is not None
        assert looked.state is State.SUCCEEDED
        again = await here.desk.download(deletion(deleting()))
        assert again.id != began.id
        abandoned = await here.desk.abandon(again.id)
        assert abandoned is not None
        assert abandoned.state is State.CANCELLED
        assert here.held.runs == {}


async def test_a_download_may_be_begun_again(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        began = await here.desk.download(deletion(deleting()))
        again = await here.desk.download(deletion(deleting()), again=True)
        assert again.id != began.id
        await here.desk.abandon(began.id)
        await here.desk.abandon(again.id)


async def test_only_downloads_are_looked_at_and_abandoned(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        served = asyncio.create_task(here.desk.serve(ROUTE, deleting(), within_s=20))
        command_id = await here.running()
        for job in (command_id, None, "", "cs-download-nobody"):
            assert await here.desk.look(job) is None
            assert await here.desk.abandon(job) is None
        here.end(command_id)
        assert (await served).result
