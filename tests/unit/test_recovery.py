"""Recovery: every command that a dead agent left gets its answer, whatever happens to the others."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from agent.commands import COMMAND, Answer, Command, Outcome, State, canonical
from agent.journal import Journal
from agent.journal_file import Entry
from agent.recovery import Report, recover
from stores.cache.writeback.errors import UploadPending
from stores.errors import DeviceFault

POOL = {"storeType": "primary", "uuid": "p", "poolType": "Filesystem", "details": {"chap": "secret-in-clear"}}


class Undoer:
    """Does by the volume's name what the test is about."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def undo(self, command: Command, token: str) -> Outcome | None:
        self.asked.append(token)
        assert command.command == "Delete"
        match command.data.path:
            case "finished":
                return Outcome(durability="stored")
            case "broken":
                raise DeviceFault("the pool cannot be read", errno="EIO")
            case "staged":
                raise UploadPending("the upload goes on", upload="u-1")
            case "bug":
                raise KeyError("secret-in-clear")
            case "hangs":
                await asyncio.sleep(60)
        return None


async def left_running(journal: Journal, command_id: str, path: str, *, began: bool = True) -> None:
    data = {"type": "volume", "path": path, "dataStore": POOL}
    command = COMMAND.validate_python({"command": "Delete", "id": command_id, "data": data})
    request = command.model_dump_json(by_alias=True, exclude_none=True)
    await journal.accept(Entry(command_id, "Delete", request, journal.fingerprint(canonical(command)), 1.0))
    if began:
        await journal.begin(command_id, 2.0)


async def answer_of(journal: Journal, command_id: str) -> Answer:
    entry = await journal.find(command_id)
    assert entry is not None
    return entry.told()


async def test_every_command_gets_its_answer(tmp_path: Path) -> None:
    undoer = Undoer()
    async with Journal(tmp_path, clock=lambda: 10.0) as journal:
        for command_id, path in (("a", "finished"), ("b", "half"), ("c", "broken"), ("d", "bug"), ("e", "hangs")):
            await left_running(journal, command_id, path)
        await left_running(journal, "g", "staged")
        await left_running(journal, "f", "waiting", began=False)
        with structlog.testing.capture_logs() as logs:
            report = await recover(journal, undoer, clock=lambda: 9.0, limit_s=0.05)
        assert report == Report(
            finished=("a",), pending=("g",), undone=("b",), never_begun=("f",), not_undone=("c", "d", "e")
        )
        assert sorted(undoer.asked) == ["a", "b", "c", "d", "e", "g"]
        assert str(report) == "1 found finished, 1 upload pending, 1 undone, 1 had not begun, 3 NOT undone"

        done = await answer_of(journal, "a")
        assert (done.state, done.result, done.durability) == (State.SUCCEEDED, True, "stored")
        assert (done.accepted_at, done.started_at, done.finished_at) == (1.0, 2.0, 9.0)
        told = {}
        for command_id in "bcdef":
            answer = await answer_of(journal, command_id)
            assert answer.state is State.INTERRUPTED
            assert answer.error is not None
            told[command_id] = (answer.error.kind, answer.error.retryable)
            assert "secret-in-clear" not in answer.wire()
        interrupted, not_undone = ("Interrupted", "yes"), ("NotUndone", "operator")
        assert told == {"b": interrupted, "c": not_undone, "d": not_undone, "e": not_undone, "f": interrupted}
        pending = await answer_of(journal, "g")
        assert pending.error is not None
        assert (pending.state, pending.error.kind) == (State.FAILED, "UploadPending")
        broken = (await answer_of(journal, "c")).error
        assert broken is not None
        assert "the pool cannot be read" in broken.message

        assert await journal.unfinished() == []
        assert await recover(journal, undoer) == Report()
    assert sum(record["event"] == "a command could not be undone" for record in logs) == 3


async def test_one_hanging_mount_costs_one_limit(tmp_path: Path) -> None:
    async with Journal(tmp_path, clock=lambda: 10.0) as journal:
        for number in range(20):
            await left_running(journal, f"c{number}", "hangs")
        with structlog.testing.capture_logs():
            async with asyncio.timeout(10):
                report = await recover(journal, Undoer(), clock=lambda: 9.0, limit_s=1.0)
        assert report.not_undone == tuple(f"c{number}" for number in range(20))


async def test_a_record_of_another_version_is_not_undone_by_guess(tmp_path: Path) -> None:
    undoer = Undoer()
    async with Journal(tmp_path, clock=lambda: 10.0) as journal:
        await journal.accept(Entry("a", "Teleport", '{"command":"Teleport"}', "f", 1.0))
        await journal.begin("a", 2.0)
        report = await recover(journal, undoer, clock=lambda: 9.0)
        assert report.not_undone == ("a",)
        assert undoer.asked == []
        error = (await answer_of(journal, "a")).error
        assert error is not None
        assert "another version" in error.message


def test_nothing_to_recover_is_said_as_well() -> None:
    assert str(Report()) == "nothing to recover"
