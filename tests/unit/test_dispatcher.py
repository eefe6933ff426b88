"""The dispatcher: one run for one id, order, limits, deadlines, cancellation at any point, and outcomes before answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from agent.commands import Answer, Command, Copy, Delete, Event, Outcome, Ping, State
from agent.dispatcher import Dispatcher, Limits
from agent.failures import Draining, IdReused, JournalUnusable, Overloaded, Stopping, UnknownCommand
from agent.journal import Journal
from agent.locks import Claim
from stores.contract import Progress
from stores.errors import NotFound
from stores.to import PrimaryDataStoreTO, VolumeObjectTO
from tests.doubles.executor import AtOnce, HeldExecutor
from tests.doubles.full_disk import largest_file

POOL = PrimaryDataStoreTO(uuid="p", poolType="Filesystem")


def writing(command_id: str, path: str = "v", **fields: Any) -> Delete:
    return Delete(id=command_id, data=VolumeObjectTO(path=path, dataStore=POOL), **fields)


@asynccontextmanager
async def running(
    directory: Path, executor: Any, limits: Limits | None = None, **options: Any
) -> AsyncIterator[Dispatcher]:
    """A dispatcher over a real journal; afterwards no task of it is left."""
    before = asyncio.all_tasks()
    async with (
        Journal(directory) as journal,
        Dispatcher(
            journal, executor, limits or Limits(), event_interval_s=0.01, record_retry_s=0.02, **options
        ) as dispatcher,
    ):
        yield dispatcher
    assert asyncio.all_tasks() == before


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_command_runs_and_is_answered_after_a_restart_too(tmp_path: Path) -> None:
    held = HeldExecutor()
    async with running(tmp_path, held) as dispatcher:
        accepted = await dispatcher.submit(writing("a"))
        assert (accepted.state, accepted.result) == (State.ACCEPTED, False)
        await until(lambda: "a" in held.runs)
        assert (await dispatcher.get("a")).state is State.RUNNING
        held.runs["a"].end.set_result(Outcome(durability="stored"))
        answer = await dispatcher.wait("a", 20)
        assert (answer.state, answer.result, answer.durability) == (State.SUCCEEDED, True, "stored")
        assert answer.started_at is not None
        assert answer.finished_at is not None
        assert answer.accepted_at <= answer.started_at <= answer.finished_at
    async with running(tmp_path, held) as dispatcher:
        assert await dispatcher.get("a") == answer
        assert await dispatcher.submit(writing("a")) == answer
        assert held.started == ["a"]


async def test_a_command_without_an_id_gets_one(tmp_path: Path) -> None:
    async with running(tmp_path, AtOnce()) as dispatcher:
        one, other = await dispatcher.submit(Ping()), await dispatcher.submit(Ping())
        assert one.id != other.id
        assert (await dispatcher.wait(one.id, 20)).result


async def test_the_same_id_joins_the_run_and_other_content_is_refused(tmp_path: Path) -> None:
    held = HeldExecutor()
    async with running(tmp_path, held) as dispatcher:
        answers = await asyncio.gather(*(dispatcher.submit(writing("a", deadline_s=n + 5.0)) for n in range(5)))
        assert {answer.id for answer in answers} == {"a"}
        with pytest.raises(IdReused):
            await dispatcher.submit(writing("a", path="other"))
        await until(lambda: "a" in held.runs)
        held.runs["a"].end.set_result(Outcome())
        final = await dispatcher.wait("a", 20)
        with pytest.raises(IdReused):
            await dispatcher.submit(writing("a", path="other"))
        assert await dispatcher.submit(writing("a")) == final
    assert held.started == ["a"]


async def test_a_different_secret_is_different_content(tmp_path: Path) -> None:
    def with_secret(secret: str) -> Delete:
        pool = PrimaryDataStoreTO.model_validate({"uuid": "p", "poolType": "x", "details": {"chap": secret}})
        return Delete(id="a", data=VolumeObjectTO(path="v", dataStore=pool))

    async with running(tmp_path, AtOnce()) as dispatcher:
        await dispatcher.submit(with_secret("one"))
        await dispatcher.submit(with_secret("one"))
        with pytest.raises(IdReused):
            await dispatcher.submit(with_secret("two"))


async def test_failures_are_answers(tmp_path: Path) -> None:
    held = HeldExecutor()
    async with running(tmp_path, held) as dispatcher:
        await dispatcher.submit(writing("a"))
        await dispatcher.submit(writing("b"))
        await until(lambda: len(held.runs) == 2)
        held.runs["a"].end.set_exception(NotFound("no such volume", ref="v"))
        held.runs["b"].end.set_exception(ZeroDivisionError("by zero"))
        one, other = await dispatcher.wait("a", 20), await dispatcher.wait("b", 20)
        assert one.state is other.state is State.FAILED
        assert one.error is not None
        assert (one.error.kind, one.error.retryable, one.error.details) == ("NotFound", "no", {"ref": "v"})
        assert other.error is not None
        assert other.error.kind == "Internal"
        assert "by zero" not in other.wire()
        assert (await dispatcher.wait("a", 0)) == one


async def test_only_so_many_run_at_once_in_order(tmp_path: Path) -> None:
    held = HeldExecutor()
    async with running(tmp_path, held, Limits(concurrency=2)) as dispatcher:
        for n in range(5):
            await dispatcher.submit(Ping(id=f"c{n}"))
        for n in range(5):
            await until(lambda n=n: f"c{n}" in held.runs)
            assert len(held.runs) <= 2
            status = dispatcher.status()
            assert (status.running, status.accepted) == (len(held.runs), 5 - n - len(held.runs))
            held.runs[f"c{n}"].end.set_result(Outcome())
            await dispatcher.wait(f"c{n}", 20)
        assert held.started == [f"c{n}" for n in range(5)]


async def test_a_command_that_waits_for_an_object_takes_no_turn(tmp_path: Path) -> None:
    held = HeldExecutor(keys={"a": [Claim("v")], "b": [Claim("v")]})
    async with running(tmp_path, held, Limits(concurrency=2)) as dispatcher:
        for command_id in ("a", "b", "c"):
            await dispatcher.submit(Ping(id=command_id))
        await until(lambda: set(held.runs) == {"a", "c"})
        held.runs["a"].end.set_result(Outcome())
        await until(lambda: set(held.runs) == {"b", "c"})
        for run in list(held.runs.values()):
            run.end.set_result(Outcome())
        await dispatcher.wait("b", 20)
        await dispatcher.wait("c", 20)
        assert held.started == ["a", "c", "b"]


async def test_a_full_queue_refuses_and_still_answers_for_known_ids(tmp_path: Path) -> None:
    held = HeldExecutor()
    async with running(tmp_path, held, Limits(concurrency=1, queue=2)) as dispatcher:
        await dispatcher.submit(Ping(id="done"))
        await until(lambda: "done" in held.runs)
        held.runs["done"].end.set_result(Outcome())
        done = await dispatcher.wait("done", 20)
        await dispatcher.submit(Ping(id="a"))
        await dispatcher.submit(Ping(id="b"))
        with pytest.raises(Overloaded) as caught:
            await dispatcher.submit(Ping(id="c"))
        assert caught.value.retry == "yes"
        with pytest.raises(UnknownCommand):
            await dispatcher.get("c")
        assert (await dispatcher.submit(Ping(id="b"))).state is State.ACCEPTED
        assert await dispatcher.submit(Ping(id="done")) == done
        await until(lambda: "a" in held.runs)
        held.runs["a"].end.set_result(Outcome())
        await dispatcher.wait("a", 20)
        assert (await dispatcher.submit(Ping(id="c"))).state is State.ACCEPTED


@pytest.mark.parametrize("waits", [False, True])
async def test_a_deadline_counts_from_acceptance(tmp_path: Path, waits: bool) -> None:
    held = HeldExecutor(keys={"first": [Claim("v")], "late": [Claim("v")]})
    async with running(tmp_path, held) as dispatcher:
        if waits:
            await dispatcher.submit(Ping(id="first"))
        await dispatcher.submit(Ping(id="late", deadline_s=0.05))
        answer = await dispatcher.wait("late", 20)
        assert answer.state is State.FAILED
        assert answer.error is not None
        assert (answer.error.kind, answer.error.retryable) == ("DeadlineExceeded", "yes")
        assert ("waited" if waits else "ran") in answer.error.message
        assert held.undone == ([] if waits else ["late"])


async def test_a_timeout_of_the_work_itself_is_not_the_deadline(tmp_path: Path) -> None:
    held = HeldExecutor()
    async with running(tmp_path, held) as dispatcher:
        await dispatcher.submit(Ping(id="a", deadline_s=60))
        await until(lambda: "a" in held.runs)
        held.runs["a"].end.set_exception(TimeoutError("of a socket"))
        answer = await dispatcher.wait("a", 20)
        assert answer.error is not None
        assert answer.error.kind == "Internal"


async def test_cancelling_a_running_command_undoes_it(tmp_path: Path) -> None:
    held = HeldExecutor()
    async with running(tmp_path, held) as dispatcher:
        await dispatcher.submit(writing("a"))
        await until(lambda: "a" in held.runs)
        answer = await dispatcher.cancel("a")
        assert answer.state is State.CANCELLED
        assert answer.error is not None
        assert answer.error.kind == "Cancelled"
        assert held.undone == ["a"]
        assert await dispatcher.cancel("a") == answer
        assert await dispatcher.submit(writing("a")) == answer


async def test_cancelling_while_it_waits_or_is_being_accepted_never_runs_it(tmp_path: Path) -> None:
    held = HeldExecutor(keys={"b": [Claim("v")], "c": [Claim("v")]})
    async with running(tmp_path, held, Limits(concurrency=1)) as dispatcher:
        await dispatcher.submit(Ping(id="a"))
        await until(lambda: "a" in held.runs)
        for command_id in ("b", "c"):  # b waits for a turn, c for b's lock
            await dispatcher.submit(Ping(id=command_id))
        submitting = asyncio.create_task(dispatcher.submit(Ping(id="d")))
        await asyncio.sleep(0)
        answers = [await dispatcher.cancel(command_id) for command_id in ("d", "c", "b")]
        assert [answer.state for answer in answers] == [State.CANCELLED] * 3
        await submitting
        held.runs["a"].end.set_result(Outcome())
        await dispatcher.wait("a", 20)
        assert held.started == ["a"]
        assert len(dispatcher._locks) == 0


async def test_cancelling_at_every_step_of_the_loop_leaves_nothing(tmp_path: Path) -> None:
    """A cancel after each possible number of loop iterations: the command is either done or undone, and says which."""

    class Steps(AtOnce):
        def __init__(self) -> None:
            self.done: set[str] = set()

        def claims(self, command: Command) -> Sequence[Claim]:
            return [Claim("v")]

        async def execute(self, command: Command, token: str, progress: Progress) -> Outcome:
            self.done.add(token)
            try:
                for _ in range(5):
                    await asyncio.sleep(0)
            except asyncio.CancelledError:
                self.done.discard(token)
                raise
            return Outcome()

    executor = Steps()
    seen: set[State] = set()
    async with running(tmp_path, executor) as dispatcher:
        for step in range(60):
            command_id = f"s{step}"
            submitting = asyncio.create_task(dispatcher.submit(writing(command_id)))
            await asyncio.sleep(0)
            for _ in range(step):
                await asyncio.sleep(0 if step % 2 else 0.0001)
            answer = await dispatcher.cancel(command_id)
            await submitting
            assert answer.state in (State.CANCELLED, State.SUCCEEDED)
            assert (command_id in executor.done) == (answer.state is State.SUCCEEDED)
            assert await dispatcher.get(command_id) == answer
            seen.add(answer.state)
        assert len(dispatcher._locks) == 0
        assert dispatcher.status().running == 0
    assert State.CANCELLED in seen


async def test_work_that_finishes_in_spite_of_a_cancel_has_succeeded(tmp_path: Path) -> None:
    class Stubborn(AtOnce):
        async def execute(self, command: Command, token: str, progress: Progress) -> Outcome:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                return Outcome(details="already published")
            return Outcome()

    async with running(tmp_path, Stubborn()) as dispatcher:
        await dispatcher.submit(Ping(id="a"))
        await until(lambda: dispatcher.status().running == 1)
        answer = await dispatcher.cancel("a")
        assert (answer.state, answer.details) == (State.SUCCEEDED, "already published")


async def test_whoever_submits_may_go_away(tmp_path: Path) -> None:
    held = HeldExecutor()
    async with running(tmp_path, held) as dispatcher:
        submitting = asyncio.create_task(dispatcher.submit(Ping(id="a")))
        await asyncio.sleep(0)
        submitting.cancel()
        await until(lambda: "a" in held.runs)
        waiting = asyncio.create_task(dispatcher.wait("a", 60))
        await asyncio.sleep(0.01)
        waiting.cancel()
        assert (await dispatcher.wait("a", 0)).state is State.RUNNING
        held.runs["a"].end.set_result(Outcome())
        assert (await dispatcher.wait("a", 20)).result


async def test_progress_comes_as_events_and_ends_with_the_final_state(tmp_path: Path) -> None:
    held = HeldExecutor()
    async with running(tmp_path, held) as dispatcher:
        await dispatcher.submit(writing("a"))
        events: list[Event] = []

        async def listen() -> None:
            async for event in dispatcher.events("a"):
                events.append(event)  # noqa: PERF401  seen while it grows

        listening = asyncio.create_task(listen())
        await until(lambda: "a" in held.runs)
        progress = held.runs["a"].progress
        progress.phase("copy", 1000)
        for _ in range(4):
            progress.advance(100)
        await until(lambda: events and events[-1].progress and events[-1].progress.bytes == 400)
        last = events[-1].progress
        assert last is not None
        assert (last.phase, last.total) == ("copy", 1000)
        assert last.rate > 0
        running_answer = await dispatcher.get("a")
        assert running_answer.progress is not None
        assert running_answer.progress.bytes == 400
        held.runs["a"].end.set_result(Outcome())
        await listening
        assert events[-1] == Event(id="a", state=State.SUCCEEDED)
        assert [event async for event in dispatcher.events("a")] == [Event(id="a", state=State.SUCCEEDED)]
        with pytest.raises(UnknownCommand):
            await anext(dispatcher.events("b"))


async def test_a_slow_listener_gets_the_latest_and_holds_nothing_up(tmp_path: Path) -> None:
    held = HeldExecutor()
    async with running(tmp_path, held) as dispatcher:
        await dispatcher.submit(writing("a"))
        await until(lambda: "a" in held.runs)
        listener = dispatcher.events("a")
        await anext(listener)
        held.runs["a"].progress.phase("copy", 10**6)
        for _ in range(10**5):
            held.runs["a"].progress.advance(10)
        event = await anext(listener)
        assert event.progress is not None
        assert event.progress.bytes == 10**6
        held.runs["a"].end.set_result(Outcome())
        await dispatcher.wait("a", 20)
        assert [event.state async for event in listener][-1] is State.SUCCEEDED


async def test_the_list_has_the_newest_first(tmp_path: Path) -> None:
    held = HeldExecutor()
    times = iter(float(n) for n in range(1000))
    async with running(tmp_path, held, Limits(concurrency=1), clock=lambda: next(times)) as dispatcher:
        for command_id in ("a", "b", "c"):
            await dispatcher.submit(Ping(id=command_id))
        await until(lambda: "a" in held.runs)
        held.runs["a"].end.set_exception(NotFound("gone"))
        await dispatcher.wait("a", 20)
        await until(lambda: "b" in held.runs)
        assert [(x.id, x.state.value) for x in await dispatcher.list()] == [
            ("c", "accepted"),
            ("b", "running"),
            ("a", "failed"),
        ]
        assert [x.id for x in await dispatcher.list(limit=2)] == ["c", "b"]
        assert [x.id for x in await dispatcher.list(state=State.FAILED)] == ["a"]
        assert [x.id for x in await dispatcher.list(state=State.RUNNING)] == ["b"]
        assert await dispatcher.list(state=State.SUCCEEDED) == []


async def test_shutting_down_lets_running_commands_finish_and_interrupts_the_rest(tmp_path: Path) -> None:
    held = HeldExecutor()
    async with running(tmp_path, held, Limits(concurrency=2)) as dispatcher:
        for command_id in ("quick", "slow", "waits"):
            await dispatcher.submit(writing(command_id))
        await until(lambda: len(held.runs) == 2)
        stopping = asyncio.create_task(dispatcher.shut_down(0.2))
        interrupted = await dispatcher.wait("waits", 20)
        assert interrupted.state is State.INTERRUPTED
        assert interrupted.error is not None
        assert "had not begun" in interrupted.error.message
        with pytest.raises(Stopping):
            await dispatcher.submit(Ping(id="new"))
        held.runs["quick"].end.set_result(Outcome())
        await stopping
        assert (await dispatcher.get("quick")).state is State.SUCCEEDED
        slow = await dispatcher.get("slow")
        assert slow.state is State.INTERRUPTED
        assert slow.error is not None
        assert (slow.error.kind, slow.error.retryable) == ("Interrupted", "yes")
        assert held.undone == ["slow"]
        assert not dispatcher.status().accepting
        assert await dispatcher.submit(writing("quick")) == await dispatcher.get("quick")
    async with Journal(tmp_path) as journal:
        assert await journal.unfinished() == []


async def test_leaving_the_dispatcher_interrupts_what_runs(tmp_path: Path) -> None:
    held = HeldExecutor()
    with suppress(RuntimeError):
        async with running(tmp_path, held) as dispatcher:
            await dispatcher.submit(writing("a"))
            await until(lambda: "a" in held.runs)
            raise RuntimeError("of the surroundings")
    async with running(tmp_path, held) as dispatcher:
        assert (await dispatcher.get("a")).state is State.INTERRUPTED


async def test_without_a_journal_nothing_is_accepted(tmp_path: Path) -> None:
    held = HeldExecutor()
    async with running(tmp_path, held) as dispatcher:
        with largest_file(0):
            with pytest.raises(JournalUnusable):
                await dispatcher.submit(writing("a"))
            assert not dispatcher.status().journal_usable
            assert (dispatcher.status().accepted, dispatcher.status().running) == (0, 0)
        with pytest.raises(UnknownCommand):
            await dispatcher.get("a")
        await dispatcher.submit(writing("a"))
        assert dispatcher.status().journal_usable


async def test_an_outcome_is_told_only_when_it_is_recorded(tmp_path: Path) -> None:
    held = HeldExecutor()
    async with running(tmp_path, held) as dispatcher:
        await dispatcher.submit(writing("a"))
        await until(lambda: "a" in held.runs)
        with largest_file(0):
            held.runs["a"].end.set_result(Outcome())
            assert (await dispatcher.wait("a", 0.2)).state is State.RUNNING
        assert (await dispatcher.wait("a", 20)).state is State.SUCCEEDED


async def test_a_journal_that_stays_broken_does_not_keep_the_agent_from_stopping(tmp_path: Path) -> None:
    held = HeldExecutor()
    async with running(tmp_path, held) as dispatcher:
        await dispatcher.submit(writing("a"))
        await until(lambda: "a" in held.runs)
        waiting = asyncio.create_task(dispatcher.wait("a", 60))
        await asyncio.sleep(0)
        with largest_file(0):
            await dispatcher.shut_down(0)
        with pytest.raises(JournalUnusable):
            await waiting
    async with Journal(tmp_path) as journal:
        assert [(e.id, e.state) for e in await journal.unfinished()] == [("a", State.RUNNING)]


async def test_the_observer_counts_once(tmp_path: Path) -> None:
    class Counting:
        def __init__(self) -> None:
            self.seen: list[object] = []

        def accepted(self, command: str) -> None:
            self.seen.append(command)

        def finished(self, answer: Answer) -> None:
            self.seen.append(answer.state)

        def advanced(self, count: int) -> None:
            self.seen.append(count)

    held, counting = HeldExecutor(), Counting()
    async with running(tmp_path, held, observer=counting) as dispatcher:
        await dispatcher.submit(Ping(id="a"))
        await dispatcher.submit(Ping(id="a"))
        await until(lambda: "a" in held.runs)
        held.runs["a"].progress.advance(7)
        held.runs["a"].end.set_result(Outcome())
        await dispatcher.wait("a", 20)
        await dispatcher.submit(Ping(id="a"))
    assert counting.seen == ["Ping", 7, State.SUCCEEDED]


async def test_only_writing_commands_are_journalled_as_running(tmp_path: Path) -> None:
    """Reading commands leave nothing that a recovery would have to look at, and save a write."""
    assert Copy.writes
    assert not Ping.writes
    held = HeldExecutor()
    async with Journal(tmp_path) as journal, Dispatcher(journal, held) as dispatcher:
        await dispatcher.submit(writing("w"))
        await dispatcher.submit(Ping(id="r"))
        await until(lambda: len(held.runs) == 2)
        assert [(e.id, e.state.value) for e in await journal.unfinished()] == [("w", "running"), ("r", "accepted")]


async def test_draining_refuses_what_is_new_and_ends_what_was_accepted(tmp_path: Path) -> None:
    held = HeldExecutor()
    async with running(tmp_path, held, Limits(concurrency=1)) as dispatcher:
        for command_id in ("runs", "waits"):
            await dispatcher.submit(writing(command_id))
        dispatcher.drain(True)
        with pytest.raises(Draining):
            await dispatcher.submit(Ping(id="new"))
        assert (await dispatcher.submit(writing("waits"))).state is State.ACCEPTED  # known: not new
        assert not await dispatcher.idle(0)
        for command_id in ("runs", "waits"):
            await until(lambda command_id=command_id: command_id in held.runs)
            held.runs[command_id].end.set_result(Outcome())
        assert await dispatcher.idle(20)
        assert dispatcher.status().draining
        dispatcher.drain(False)
        assert not (await dispatcher.submit(Ping(id="new"))).state.final


# ---------------------------------------------------------------------------- what is staged, and not stored in time


async def stopped_while_staged(dispatcher: Dispatcher, held: HeldExecutor, command: Command) -> None:
    """It runs, and what it wrote is safe: from here on its end is not the end of its upload."""
    await dispatcher.submit(command)
    assert command.id is not None
    command_id = command.id
    await until(lambda: command_id in held.runs or dispatcher.status().running == 0)
    held.staged.add(command_id)


async def test_a_deadline_that_passes_over_an_upload_does_not_claim_that_it_was_undone(tmp_path: Path) -> None:
    held = HeldExecutor()
    async with running(tmp_path, held) as dispatcher:
        await stopped_while_staged(dispatcher, held, writing("a", deadline_s=0.1))
        answer = await dispatcher.wait("a", 20)
        assert (answer.state, answer.result, answer.durability) == (State.FAILED, False, None)
        assert answer.error is not None
        assert (answer.error.kind, answer.error.retryable) == ("UploadPending", "yes")
        assert answer.error.details["upload"] == "u-a"

        # The same again, under the same id: it waits for that upload.
        again = await dispatcher.submit(writing("a", deadline_s=60))
        assert (again.state, again.error) == (State.ACCEPTED, None)
        await until(lambda: "a" in held.runs)
        with pytest.raises(IdReused):
            await dispatcher.submit(writing("a", "another"))
        held.runs["a"].end.set_result(Outcome(durability="stored"))
        answer = await dispatcher.wait("a", 20)
        assert (answer.state, answer.durability) == (State.SUCCEEDED, "stored")
        assert await dispatcher.submit(writing("a")) == answer
        assert held.started == ["a", "a"]
    async with Journal(tmp_path) as journal:
        entry = await journal.find("a")
        assert entry is not None
        assert entry.told() == answer


async def test_cancelling_gives_up_what_was_staged(tmp_path: Path) -> None:
    held = HeldExecutor()
    async with running(tmp_path, held) as dispatcher:
        await stopped_while_staged(dispatcher, held, writing("a"))
        assert (await dispatcher.cancel("a")).state is State.CANCELLED
        assert held.staged == set()


async def test_a_stop_of_the_agent_gives_nothing_up(tmp_path: Path) -> None:
    held = HeldExecutor()
    async with running(tmp_path, held) as dispatcher:
        await stopped_while_staged(dispatcher, held, writing("a"))
        await dispatcher.shut_down(0)
        answer = await dispatcher.get("a")
        assert answer.error is not None
        assert (answer.state, answer.error.kind) == (State.FAILED, "UploadPending")
        assert held.staged == {"a"}
    async with running(tmp_path, held) as dispatcher:
        await dispatcher.submit(writing("a"))
        await until(lambda: "a" in held.runs)


async def test_what_cannot_be_settled_is_told(tmp_path: Path) -> None:
    class Sick(HeldExecutor):
        async def settle(self, command: Command, token: str, *, give_up: bool) -> None:
            raise NotFound("nobody can say what became of it")

    held = Sick()
    async with running(tmp_path, held) as dispatcher:
        await stopped_while_staged(dispatcher, held, writing("a"))
        answer = await dispatcher.cancel("a")
        assert answer.error is not None
        assert (answer.state, answer.error.kind) == (State.FAILED, "NotFound")
